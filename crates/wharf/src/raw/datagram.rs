//! What a datagram is received or sent with, beside its buffer.

use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;

use super::{Handle, Operation, Request};
use crate::{
    error::{Error, ErrorKind},
    sys,
    udp::{Envelope, IcmpError, Received},
};

/// The address, and what else is said of a datagram, at a fixed address that the caller owns.
#[derive(Debug)]
#[doc(alias = "WSAMSG")]
pub struct Datagram {
    pub(crate) system: sys::DatagramHeader,
}

impl Default for Datagram {
    fn default() -> Self {
        Self::new()
    }
}

impl Datagram {
    /// An empty one, to receive with.
    #[must_use]
    pub fn new() -> Self {
        Self { system: sys::DatagramHeader::new() }
    }

    /// Addresses it, to send with, on a handle.
    ///
    /// # Errors
    ///
    /// If the system does not tell which family the handle's socket is of.
    pub fn address_to(&mut self, handle: &Handle, envelope: &Envelope) -> Result<(), Error> {
        let ipv6 = envelope.to.is_none()
            && envelope.has_marks()
            && sys::is_ipv6(handle.socket()).map_err(|error| Error::from_io(&error, "send_to"))?;
        self.system.address_to(envelope, ipv6, handle.offloads());
        Ok(())
    }
}

/// What came with a packet, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// Of a datagram that was received.
    Datagram(Received),
    /// What the network says of one that was sent.
    Error(IcmpError),
}

impl Told {
    /// What an operation that is over has brought.
    ///
    /// # Safety
    ///
    /// The operation is in flight, nothing of it is outstanding, and the lock of its handle is
    /// held.
    pub(super) unsafe fn of(op: &Operation) -> Option<Self> {
        if op.status != 0 {
            return None;
        }
        let datagram = op.request.datagram()?;
        // SAFETY: nobody else uses the datagram now, which lives as long as the operation.
        let header = unsafe { &(*datagram).system };
        match op.request {
            Request::SendTo { .. } => None,
            Request::ReceiveError { .. } => header.icmp_error().map(Self::Error),
            _ => header.received().map(Self::Datagram),
        }
    }
}

/// What is known of a socket for datagrams. None of it is guarded.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    /// What its packets go through cannot cut datagrams.
    offload_refused: AtomicBool,
    /// Somebody receives what the network says of datagrams that were sent.
    hears_errors: AtomicBool,
    /// Datagrams may come several at once.
    coalesces: AtomicBool,
}

impl Handle {
    pub(crate) fn socket(&self) -> SockRef<'_> {
        sys::socket(&self.fd)
    }

    /// Whether datagrams are left to the kernel to cut.
    pub(crate) fn offloads(&self) -> bool {
        self.port.offloads() && !self.datagrams.offload_refused.load(Ordering::Relaxed)
    }

    /// From now on, if so, they are not.
    pub(crate) fn refuse_offload(&self, refused: bool) {
        self.datagrams.offload_refused.fetch_or(refused, Ordering::Relaxed);
    }

    pub(crate) fn hears_errors(&self) -> bool {
        self.datagrams.hears_errors.load(Ordering::Relaxed)
    }

    pub(crate) fn coalesces(&self) -> bool {
        self.datagrams.coalesces.load(Ordering::Relaxed)
    }

    /// Says whether datagrams may come several at once, which takes large buffers. False: those of
    /// the pool are not large enough.
    pub(crate) fn set_coalesces(&self, on: bool, room: usize) -> bool {
        let fits = !on || self.port.datagram_room() >= room;
        if fits {
            self.datagrams.coalesces.store(on, Ordering::Relaxed);
        }
        fits
    }

    /// From now on the system keeps what the network says.
    pub(super) fn hear_errors(&self) -> Result<(), Error> {
        sys::udp::set_report_errors(&*self.socket(), true).map_err(|error| {
            let error = Error::from_io(&error, "start");
            match error.kind() {
                ErrorKind::Unsupported => error.with_remedy(
                    "this system does not tell them; receives and sends go on without",
                ),
                _ => error,
            }
        })?;
        self.datagrams.hears_errors.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends that when nobody listens any more: nothing must pile up.
    #[cold]
    pub(super) fn stop_hearing(&self) {
        self.datagrams.hears_errors.store(false, Ordering::Relaxed);
        let _ = sys::udp::set_report_errors(&*self.socket(), false);
        sys::udp::forget_errors(self.fd());
    }
}
