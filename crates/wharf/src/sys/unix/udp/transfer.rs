//! Receiving and sending datagrams: the system calls, and what their results mean.
//!
//! A datagram is received by a call that does not wait: once the socket is known to be readable,
//! and before that on suspicion. So a busy socket is emptied without asking the kernel to tell when
//! there is more, and the receives of a queue are done in order, at once, for any worker to take.

use std::io;

use crate::{
    raw::operation::{Direction, NO_BUFFER, Operation, Request},
    sys::{
        Step,
        pool::Pool,
        unix::{
            Call, Called, RawDescriptor,
            progress::{evaluate, fail, go_on},
        },
    },
};

/// How many errors that earlier datagrams have left behind are passed over in one go.
const ERRORS: usize = 16;

/// The step of a receive that has just been tried, and must wait until the kernel calls.
const IN_VAIN: u8 = 1;

/// Tries to do what a request asks for. None: it has to wait.
///
/// # Safety
///
/// The operation is in flight, nothing of it is outstanding, and its pointers are good.
pub(crate) unsafe fn attempt(op: &mut Operation, pool: &Pool) -> Option<Step> {
    if op.direction != Direction::Out && std::mem::take(&mut op.step) == IN_VAIN {
        return None;
    }
    if op.request.is_pooled() {
        let Some(id) = pool.take() else { return Some(Step::Starve) };
        op.buffer = u32::from(id);
    }
    // SAFETY: an operation in flight has a handle, which outlives it.
    unsafe { &*op.handle }.count_call();
    // SAFETY: the caller's promise.
    let step = match unsafe { Call::of(op, pool).make() } {
        Called::WouldBlock => None,
        Called::Over { result, .. } => {
            op.result = result;
            // SAFETY: as above.
            Some(unsafe { evaluate(op) })
        }
    };
    let kept = step == Some(Step::Finish) && op.status == 0;
    if op.buffer != NO_BUFFER && !kept {
        pool.give_back(u16::try_from(op.buffer).unwrap_or(0));
        op.buffer = NO_BUFFER;
    }
    step
}

/// Does what a request asks for whose socket is ready: `op.result` says for what.
///
/// # Safety
///
/// As for `attempt`.
pub(crate) unsafe fn ready(op: &mut Operation, pool: &Pool) -> Step {
    let events = op.result;
    // SAFETY: the caller's promise.
    if let Some(step) = unsafe { attempt(op, pool) } {
        return step;
    }
    let hears = op.direction == Direction::Error;
    if hears && events & i32::from(libc::POLLHUP) != 0 {
        return fail(op, libc::ESHUTDOWN);
    }
    // SAFETY: an operation in flight has a handle, which outlives it.
    let handle = unsafe { &*op.handle };
    if !hears && events & i32::from(libc::POLLERR) != 0 && !handle.hears_errors() {
        forget_errors(handle.fd());
    }
    op.step = IN_VAIN;
    go_on(op)
}

/// What a call's result means for a receive, or for what the error queue has given.
///
/// # Safety
///
/// Nothing of the operation is outstanding, and its pointers are good.
pub(in crate::sys::unix) unsafe fn came(op: &mut Operation, length: usize) -> Step {
    let Some(datagram) = op.request.datagram() else { unreachable!("a receive") };
    // SAFETY: the caller's promise: nobody else uses it.
    let header = unsafe { &mut (*datagram).system };
    match op.request {
        Request::ReceiveError { .. } => return Step::Finish,
        Request::ReceiveFrom { length: room, .. } => op.bytes = length.min(room),
        _ => op.bytes = length.min(header.room()),
    }
    if header.came(length) { Step::Finish } else { fail(op, libc::ESHUTDOWN) }
}

/// Makes the call of a request. `done`: so much of it has been sent already; `pooled`: the buffer
/// of the pool, if it takes one.
///
/// # Safety
///
/// The pointers in the request are good, and nobody else follows them.
pub(in crate::sys::unix) unsafe fn call(
    fd: RawDescriptor,
    request: Request,
    done: usize,
    pooled: (*mut u8, usize),
) -> Called {
    // MSG_TRUNC: the length of the datagram, not of what fits.
    let receive = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let errors = libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE;
    let mut nothing = 0u8;
    for _ in 0..ERRORS {
        // SAFETY: the caller's promise; what is done is never more than there is to send.
        let result = unsafe {
            match request {
                Request::ReceiveFrom { buffer, length, datagram } => {
                    libc::recvmsg(fd, (*datagram).system.for_receive(buffer, length), receive)
                }
                Request::ReceiveFromPooled { datagram, .. } => {
                    let (buffer, length) = pooled;
                    libc::recvmsg(fd, (*datagram).system.for_receive(buffer, length), receive)
                }
                Request::ReceiveError { datagram } => {
                    libc::recvmsg(fd, (*datagram).system.for_receive(&raw mut nothing, 1), errors)
                }
                Request::SendTo { buffer, length, datagram } => {
                    let header = (*datagram).system.for_send(buffer.add(done), length - done);
                    libc::sendmsg(fd, header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                }
                _ => unreachable!("no datagram"),
            }
        };
        let errno = match usize::try_from(result) {
            Ok(done) => {
                if let Request::ReceiveError { datagram } = request
                    // SAFETY: the caller's promise; the kernel is done with it.
                    && unsafe { (*datagram).system.icmp_error() }.is_none()
                {
                    continue;
                }
                let result = i32::try_from(done).unwrap_or(i32::MAX);
                return Called::Over { result, drained: false };
            }
            Err(_) => io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        };
        match (errno, request) {
            (libc::EAGAIN, _) => return Called::WouldBlock,
            (libc::EINTR, _) => {}
            (_, Request::ReceiveFrom { .. } | Request::ReceiveFromPooled { .. })
                if is_of_an_earlier_send(errno) => {}
            _ => return Called::Over { result: -errno, drained: false },
        }
    }
    // It waits, and will be called at once if there is more.
    Called::Over { result: -libc::EAGAIN, drained: false }
}

/// Throws away what the error queue holds, so that the socket does not look ready for ever.
pub(crate) fn forget_errors(fd: RawDescriptor) {
    let mut header = super::header::DatagramHeader::new();
    let mut nothing = 0;
    loop {
        let header = header.for_receive(&raw mut nothing, 1);
        // SAFETY: all that the header leads to lives here.
        let came = unsafe { libc::recvmsg(fd, header, libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE) };
        if came < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Whether an error may be one that a datagram sent earlier has met on its way, and that the socket
/// reports with the next call, whatever that does. What ICMP messages are turned into.
pub(crate) fn is_of_an_earlier_send(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EPROTO
            | libc::EMSGSIZE
            | libc::EOPNOTSUPP
            | libc::EACCES
    )
}
