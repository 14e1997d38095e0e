//! Making the call that an operation asks for.

use std::{io, net::Shutdown, ptr};

use super::{
    NO_DESCRIPTOR, RawDescriptor, file,
    progress::{MAX_BYTES, message},
    transmit::Next,
    udp,
};
use crate::{
    raw::{
        Gather,
        operation::{NO_BUFFER, Operation, Request},
    },
    sys::{Kind, pool::Pool},
};

/// The call that an operation asks for next, with all that it needs: it may be made by a thread
/// that does not hold the handle's lock, and does not touch the operation's header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    fd: RawDescriptor,
    kind: Kind,
    request: Request,
    /// How many bytes are done already.
    done: usize,
    /// The buffer of the pool that it has taken, and its size.
    pooled: (*mut u8, usize),
}

// SAFETY: the pointers are those of an operation in flight, which any thread may follow for it.
unsafe impl Send for Call {}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// It is over: what the system said, an error as a negative errno.
    Over {
        result: i32,
        /// It has left nothing to receive.
        drained: bool,
    },
    /// It has to wait until its descriptor is ready.
    WouldBlock,
}

impl Call {
    /// An operation in flight, which has its buffer if it needs one of the pool.
    #[inline]
    pub(crate) fn of(op: &Operation, pool: &Pool) -> Self {
        // SAFETY: an operation in flight has a handle, which outlives it (the contract of start).
        let handle = unsafe { &*op.handle };
        let accepted = op.accepted != NO_DESCRIPTOR;
        Self {
            fd: if accepted { op.accepted } else { handle.fd() },
            kind: handle.kind(),
            request: match op.request {
                Request::AcceptFirst { buffer, length } if accepted => {
                    Request::Receive { buffer, length, exact: false }
                }
                request => request,
            },
            done: op.bytes,
            pooled: match u16::try_from(op.buffer) {
                Ok(id) if op.buffer != NO_BUFFER => (pool.address(id), pool.size()),
                _ => (ptr::null_mut(), 0),
            },
        }
    }

    /// Makes it. A socket's does not wait. That of a pipe does not if the pipe is non-blocking,
    /// and a listener's and a connect likewise; that of a file does.
    ///
    /// # Safety
    ///
    /// The operation is still in flight, and the pointers in its request are good.
    #[inline]
    pub(crate) unsafe fn make(self) -> Called {
        let Self { fd, done, .. } = self;
        let mut room = None;
        let send_flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let socket = self.kind == Kind::Socket;
        // SAFETY: the caller's promise, for all pointers; what is done is never more than what is
        // asked for, so what is left lies inside the same buffer.
        let result = unsafe {
            match self.request {
                Request::ReceiveFrom { .. }
                | Request::ReceiveFromPooled { .. }
                | Request::ReceiveError { .. }
                | Request::SendTo { .. } => return udp::call(fd, self.request, done, self.pooled),
                Request::Receive { length: 0, .. } | Request::Readable => return readable(fd),
                Request::Receive { .. } | Request::ReceivePooled { .. } => {
                    let (buffer, length) = match self.request {
                        Request::Receive { buffer, length, .. } => {
                            (buffer.add(done), (length - done).min(MAX_BYTES))
                        }
                        _ => self.pooled,
                    };
                    room = Some(length);
                    if socket {
                        receive(fd, buffer, length)
                    } else {
                        libc::read(fd, buffer.cast(), length)
                    }
                }
                Request::Send { buffer, length } => {
                    let (rest, length) = (buffer.add(done), (length - done).min(MAX_BYTES));
                    if socket {
                        send(fd, rest, length)
                    } else {
                        libc::write(fd, rest.cast(), length)
                    }
                }
                Request::SendVectored { gather } if socket => {
                    libc::sendmsg(fd, message(gather), send_flags)
                }
                Request::SendVectored { gather } => {
                    let (slices, count) = vectors(gather);
                    libc::writev(fd, slices, count)
                }
                Request::SendMessage { message } => {
                    libc::sendmsg(fd, (*message).prepare(false), send_flags)
                }
                Request::ReceiveMessage { message, pooled } => {
                    let header = if pooled {
                        let (buffer, size) = self.pooled;
                        (*message).prepare_into(buffer, size)
                    } else {
                        (*message).prepare(true)
                    };
                    libc::recvmsg(fd, header, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC)
                }
                Request::Transmit { transmission } => {
                    let (buffer, size) = self.pooled;
                    match (*transmission).next() {
                        Next::Read => {
                            let read = &*transmission;
                            let (offset, wanted) = (read.offset().cast_signed(), read.wanted(size));
                            libc::pread64(read.file(), buffer.cast(), wanted, offset)
                        }
                        Next::Send => {
                            let (header, flags) = (*transmission).message(buffer);
                            libc::sendmsg(fd, header, flags)
                        }
                        Next::Wait => return ready(fd, libc::POLLOUT),
                        Next::End => return Called::Over { result: 0, drained: false },
                    }
                }
                Request::Accept { .. } | Request::AcceptFirst { .. } => {
                    let accepted =
                        libc::accept4(fd, ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC);
                    accepted as isize
                }
                Request::Connect { address, length } => {
                    libc::connect(fd, address.cast(), length) as isize
                }
                Request::Shutdown { how } => {
                    let how = match how {
                        Shutdown::Read => libc::SHUT_RD,
                        Shutdown::Write => libc::SHUT_WR,
                        Shutdown::Both => libc::SHUT_RDWR,
                    };
                    libc::shutdown(fd, how) as isize
                }
                Request::Read { buffer, length, offset } => {
                    let length = (length - done).min(MAX_BYTES);
                    libc::pread64(fd, buffer.add(done).cast(), length, self.position(offset))
                }
                Request::ReadPooled { offset } => {
                    let (buffer, length) = self.pooled;
                    libc::pread64(fd, buffer.cast(), length, self.position(offset))
                }
                Request::ReadVectored { scatter, offset } => {
                    let (slices, count) = vectors(scatter);
                    libc::preadv64(fd, slices, count, self.position(offset))
                }
                Request::Write { buffer, length, offset } => {
                    let length = (length - done).min(MAX_BYTES);
                    let rest = libc::iovec {
                        iov_base: buffer.add(done).cast_mut().cast(),
                        iov_len: length,
                    };
                    self.write(&raw const rest, 1, offset)
                }
                Request::WriteVectored { gather, offset } => {
                    let (slices, count) = vectors(gather);
                    self.write(slices, count, offset)
                }
                Request::Sync { data_only: true } => libc::fdatasync(fd) as isize,
                Request::Sync { data_only: false } => libc::fsync(fd) as isize,
                Request::Allocate { offset, length } => {
                    libc::fallocate64(fd, 0, offset.cast_signed(), length.cast_signed()) as isize
                }
                Request::Truncate { length } => match file::truncate(fd, length) {
                    Ok(()) => 0,
                    Err(error) => return over(&error),
                },
            }
        };
        let Ok(result) = usize::try_from(result) else {
            let error = io::Error::last_os_error();
            return match (error.raw_os_error(), self.request) {
                // Nothing tells when the backlog of a Unix socket has room: it pauses.
                (Some(libc::EAGAIN), Request::Connect { .. }) => over(&error),
                // It gives its buffer back before it waits.
                (Some(libc::EAGAIN), Request::Transmit { .. }) => over(&error),
                (Some(libc::EINPROGRESS | libc::EALREADY), Request::Connect { .. })
                | (Some(libc::EAGAIN), _) => Called::WouldBlock,
                _ => over(&error),
            };
        };
        let drained = room.is_some_and(|room| 0 < result && result < room);
        // No call moves more than MAX_BYTES.
        Called::Over { result: i32::try_from(result).unwrap_or(i32::MAX), drained }
    }

    /// Where in its file it goes on.
    fn position(&self, offset: u64) -> i64 {
        offset.wrapping_add(self.done as u64).cast_signed()
    }

    /// # Safety
    ///
    /// The slices and their bytes are good.
    unsafe fn write(&self, slices: *const libc::iovec, count: i32, offset: u64) -> isize {
        // SAFETY: the caller's promise.
        unsafe {
            match offset {
                Request::APPEND => {
                    let result = libc::pwritev2(self.fd, slices, count, 0, libc::RWF_APPEND);
                    if result < 0 && lacks_call() && file::is_append_only(self.fd) {
                        libc::writev(self.fd, slices, count)
                    } else {
                        result
                    }
                }
                _ => libc::pwritev64(self.fd, slices, count, self.position(offset)),
            }
        }
    }
}

/// # Safety
///
/// The gather and its slices are valid.
unsafe fn vectors(gather: *mut Gather) -> (*const libc::iovec, i32) {
    // SAFETY: the caller's promise. A slice has the layout of an iovec.
    let slices = unsafe { (*gather).slices() };
    (slices.as_ptr().cast(), i32::try_from(slices.len()).unwrap_or(i32::MAX))
}

/// Whether the last call has failed because the system does not have it, or its flag.
fn lacks_call() -> bool {
    let errno = io::Error::last_os_error().raw_os_error();
    matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

fn over(error: &io::Error) -> Called {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    Called::Over { result: -errno, drained: false }
}

/// recv(2) without waiting. The C library's own function is a point at which a thread may be
/// cancelled, which Rust's threads never are: what it does about that takes 35 ns.
///
/// # Safety
///
/// So many bytes may be written there.
#[inline]
pub(crate) unsafe fn receive(fd: RawDescriptor, buffer: *mut u8, length: usize) -> isize {
    let nobody = ptr::null_mut::<libc::sockaddr>();
    // SAFETY: the caller's promise.
    let result = unsafe {
        let flags = libc::MSG_DONTWAIT;
        libc::syscall(libc::SYS_recvfrom, fd, buffer, length, flags, nobody, nobody)
    };
    isize::try_from(result).unwrap_or(-1)
}

/// send(2) without waiting, likewise.
///
/// # Safety
///
/// So many bytes may be read there.
#[inline]
pub(super) unsafe fn send(fd: RawDescriptor, bytes: *const u8, length: usize) -> isize {
    let nobody = ptr::null::<libc::sockaddr>();
    // SAFETY: the caller's promise.
    let result = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::syscall(libc::SYS_sendto, fd, bytes, length, flags, nobody, 0usize)
    };
    isize::try_from(result).unwrap_or(-1)
}

/// Whether there is something to receive, or the end of the stream.
fn readable(fd: RawDescriptor) -> Called {
    ready(fd, libc::POLLIN | libc::POLLRDHUP)
}

fn ready(fd: RawDescriptor, events: libc::c_short) -> Called {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the structure lives across the call.
    match unsafe { libc::poll(&raw mut poll, 1, 0) } {
        0 => Called::WouldBlock,
        1 => Called::Over { result: 0, drained: false },
        _ => over(&io::Error::last_os_error()),
    }
}
