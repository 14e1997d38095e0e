//! What the kernel has of a request.

use std::ptr;

use windows_sys::Win32::System::IO::OVERLAPPED;

use super::super::{Direction, Request};
use crate::sys::DatagramHeader;

/// A call: a datagram, with its request, or the next bytes of a stream, whose requests stand in
/// its socket's queue.
#[repr(C)]
pub(super) struct Call {
    /// First: a pointer to it is a pointer to the call.
    overlapped: OVERLAPPED,
    /// The flags of a receive, which the kernel may write.
    pub(super) flags: u32,
    pub(super) index: u16,
    pub(super) direction: Direction,
    pub(super) request: Option<Request>,
    /// How much of a send that is cut here into several datagrams has been sent.
    pub(super) sent: usize,
    pub(super) header: DatagramHeader,
}

// SAFETY: the pointers in it are the kernel's, or null; what they lead to stays with the call.
unsafe impl Send for Call {}

impl Call {
    /// One for this request, or this stream.
    pub(super) fn new(
        spare: &mut Vec<Box<Self>>,
        index: u16,
        direction: Direction,
        request: Option<Request>,
    ) -> Box<Self> {
        let mut call = spare.pop().unwrap_or_else(|| {
            Box::new(Self {
                overlapped: OVERLAPPED::default(),
                flags: 0,
                index,
                direction,
                request: None,
                sent: 0,
                header: DatagramHeader::new(),
            })
        });
        (call.index, call.direction, call.sent) = (index, direction, 0);
        call.request = request;
        call
    }

    /// Makes it ready to be given to the kernel, again or for the first time.
    pub(super) fn renew(&mut self) {
        self.overlapped = OVERLAPPED::default();
        self.flags = 0;
    }

    /// What the kernel has done with it.
    pub(super) fn overlapped(&self) -> *const OVERLAPPED {
        ptr::from_ref(&self.overlapped)
    }
}
