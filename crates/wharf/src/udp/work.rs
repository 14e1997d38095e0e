//! What an operation on a socket for datagrams works with, while it is in flight.

use std::sync::Arc;

use super::{LARGEST, UdpSocket};
use crate::{
    block::{HandleShared, writable},
    buf::{Buf, Pooled},
    error::{Error, ErrorKind, Result},
    port::Op,
    raw::{self, Datagram, Request, Told},
};

/// See the module's page.
#[derive(Debug)]
pub(crate) enum Work {
    Recv(Buf),
    /// Into buffers of the pool, again and again.
    RecvEach,
    RecvErrors,
    /// To whom, and how, stands in the datagram.
    Send(Buf),
}

impl Work {
    /// That of an operation that goes on after this packet.
    pub(crate) fn of(told: Told) -> Self {
        match told {
            Told::Datagram(_) => Self::RecvEach,
            Told::Error(_) => Self::RecvErrors,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Recv(_) | Self::RecvEach => "recv",
            Self::RecvErrors => "recv_errors",
            Self::Send(_) => "send_to",
        }
    }

    pub(crate) fn explain(&self, error: Error) -> Error {
        if matches!(self, Self::Send(_)) { super::explain(error) } else { error }
    }

    /// # Safety
    ///
    /// So many bytes have been written from the start of the room on.
    pub(crate) unsafe fn set_filled(&mut self, bytes: usize) {
        if let Self::Recv(buf) = self {
            // SAFETY: the caller's promise.
            unsafe { buf.set_filled(bytes) };
        }
    }

    /// The request that it is for, pointing into it and the datagram.
    pub(crate) fn request(
        &mut self,
        datagram: *mut Datagram,
        handle: &raw::Handle,
    ) -> Result<Request> {
        Ok(match self {
            Self::Recv(buf) if buf.wants_pool() => {
                Request::ReceiveFromPooled { repeat: false, datagram }
            }
            Self::Recv(buf) => {
                let (buffer, length) = writable("recv", buf)?;
                if handle.coalesces() && (1..LARGEST).contains(&length) {
                    return Err(Error::of(ErrorKind::InvalidInput, "recv").with_remedy(
                        "where datagrams come several at once (set_coalescing), a buffer needs \
                         65,535 bytes, or comes from the pool",
                    ));
                }
                match length {
                    0 => Request::Readable,
                    _ => Request::ReceiveFrom { buffer, length, datagram },
                }
            }
            Self::RecvEach => Request::ReceiveFromPooled { repeat: true, datagram },
            Self::RecvErrors => Request::ReceiveError { datagram },
            Self::Send(buf) => {
                Request::SendTo { buffer: buf.as_ptr(), length: buf.len(), datagram }
            }
        })
    }

    /// The packet of an operation that is over, or goes on.
    pub(crate) fn into_op<K, M>(
        self,
        handle: Arc<HandleShared<K, M>>,
        buffer: Option<Pooled>,
        told: Option<Told>,
    ) -> Op<K, M> {
        let socket = UdpSocket::from_shared(handle);
        let (received, error) = match told {
            Some(Told::Datagram(received)) => (Some(received), None),
            Some(Told::Error(error)) => (None, Some(error)),
            None => (None, None),
        };
        match self {
            Self::Recv(buf) => {
                Op::RecvFrom { socket, buf: buffer.map_or(buf, Buf::from), received }
            }
            Self::RecvEach => {
                let buf = buffer.map_or_else(Buf::pooled, Buf::from);
                Op::RecvFrom { socket, buf, received }
            }
            Self::RecvErrors => Op::Icmp { socket, error },
            Self::Send(buf) => Op::SendTo { socket, buf },
        }
    }
}
