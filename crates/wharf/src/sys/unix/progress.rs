//! How an operation gets on: what a result of the system means for its request. The same for
//! drivers that are told of results and for those that make the calls themselves.

use std::{io, time::Duration};

use super::{NO_DESCRIPTOR, call, transmit, udp};
use crate::{
    raw::{
        Handle,
        operation::{Gather, Operation, Request},
    },
    sys::{Kind, Step, Tried},
};

/// The most one request may carry: Linux moves no more than this at once.
pub(crate) const MAX_BYTES: usize = 0x7fff_f000;

/// How long an accept pauses when there are no descriptors or no memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long a connect pauses that finds the socket connecting already.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// How long a request pauses that the kernel says would block.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// What a submission's result means.
///
/// # Safety
///
/// The operation is in flight, all events of its submission have come, and its pointers are
/// good.
pub(crate) unsafe fn evaluate(op: &mut Operation) -> Step {
    if op.flags.pausing {
        op.flags.pausing = false;
        return if op.flags.cancel { fail(op, libc::ECANCELED) } else { Step::Again };
    }
    if let Request::Transmit { transmission } = op.request
        && ![-libc::ECANCELED, -libc::EINTR].contains(&op.result)
    {
        // SAFETY: the transmission lives as long as the operation.
        return transmit::evaluate(op, unsafe { &mut *transmission });
    }
    let Ok(done) = usize::try_from(op.result) else {
        return evaluate_error(op, -op.result);
    };
    match op.request {
        Request::Receive { length, exact, .. } => {
            op.bytes += if length == 0 { 0 } else { done };
            if exact && done > 0 && op.bytes < length { go_on(op) } else { Step::Finish }
        }
        Request::ReceivePooled { .. }
        | Request::ReadPooled { .. }
        | Request::ReceiveMessage { .. } => {
            op.bytes = done;
            Step::Finish
        }
        Request::Send { length, .. } => {
            op.bytes += done;
            if op.bytes < length { go_on(op) } else { Step::Finish }
        }
        Request::SendVectored { gather } => {
            op.bytes += done;
            // SAFETY: the gather and its slices live as long as the operation.
            if unsafe { (*gather).advance(done) } { go_on(op) } else { Step::Finish }
        }
        Request::Transmit { .. } => unreachable!("no error, and evaluated above"),
        Request::SendMessage { message } => {
            op.bytes += done;
            // SAFETY: the message lives as long as the operation.
            if unsafe { (*message).advance(done) } { go_on(op) } else { Step::Finish }
        }
        Request::SendTo { length, .. } => {
            op.bytes += done;
            op.step = 0;
            if op.bytes < length { go_on(op) } else { Step::Finish }
        }
        Request::ReceiveFrom { .. }
        | Request::ReceiveFromPooled { .. }
        // SAFETY: the caller's promise.
        | Request::ReceiveError { .. } => unsafe { udp::came(op, done) },
        Request::AcceptFirst { .. } if op.accepted == NO_DESCRIPTOR => {
            op.accepted = op.result;
            op.system.restart_clock();
            go_on(op)
        }
        Request::AcceptFirst { .. } => {
            op.bytes = done;
            Step::Finish
        }
        Request::Accept { .. } => {
            op.accepted = op.result;
            Step::Finish
        }
        Request::Read { length, .. } => {
            op.bytes += done;
            // Less than was asked for is the end of the file; nothing is asked for beyond it,
            // where a direct read would not be aligned.
            if done == MAX_BYTES && op.bytes < length { go_on(op) } else { Step::Finish }
        }
        Request::ReadVectored { scatter, .. } => {
            op.bytes += done;
            // SAFETY: the slices live as long as the operation.
            let left = unsafe { (*scatter).advance(done) };
            if done == MAX_BYTES && left { go_on(op) } else { Step::Finish }
        }
        Request::Write { length, .. } => {
            op.bytes += done;
            let left = op.bytes < length;
            if left { wrote_part(op, done) } else { Step::Finish }
        }
        Request::WriteVectored { gather, .. } => {
            op.bytes += done;
            // SAFETY: the slices live as long as the operation.
            let left = unsafe { (*gather).advance(done) };
            if left { wrote_part(op, done) } else { Step::Finish }
        }
        Request::Readable
        | Request::Connect { .. }
        | Request::Shutdown { .. }
        | Request::Sync { .. }
        | Request::Allocate { .. }
        | Request::Truncate { .. } => Step::Finish,
    }
}

fn evaluate_error(op: &mut Operation, errno: i32) -> Step {
    let accepting = op.accepted == NO_DESCRIPTOR
        && matches!(op.request, Request::Accept { .. } | Request::AcceptFirst { .. });
    match (errno, op.request) {
        (libc::ECANCELED, request) if op.flags.expired || op.flags.cancel => {
            if matches!(request, Request::Connect { .. }) {
                give_up_connecting(op);
            }
            fail(op, if op.flags.expired { libc::ETIMEDOUT } else { libc::ECANCELED })
        }
        // The thread that had submitted it is gone, and took the request with it.
        (libc::ECANCELED | libc::EINTR, _) => {
            op.step = u8::from(matches!(op.request, Request::Connect { .. }));
            Step::Again
        }
        // A connect meets what an earlier one has begun: the same one, submitted from a thread
        // that is gone, or another that was given up.
        (libc::EISCONN, Request::Connect { .. }) if op.step == 1 => Step::Finish,
        (libc::EALREADY, Request::Connect { .. }) => {
            op.step = 1;
            pause(op, CONNECT_PAUSE)
        }
        (libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM, _) if accepting => {
            // Once, not at every try.
            if std::mem::replace(&mut op.step, 1) == 0 {
                log::warn!(
                    "accept: {}; trying again every {ACCEPT_PAUSE:?}",
                    io::Error::from_raw_os_error(errno)
                );
            }
            pause(op, ACCEPT_PAUSE)
        }
        // accept(2) passes on what went wrong with a connection that nobody has seen yet.
        (
            libc::ECONNABORTED
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH,
            _,
        ) if accepting => go_on(op),
        // The socket tells what an earlier datagram has met; this one has not been sent.
        (_, Request::SendTo { .. })
            if op.step == 0 && udp::is_of_an_earlier_send(errno) =>
        {
            op.step = 1;
            go_on(op)
        }
        // A card that cannot cut datagrams says EIO; EINVAL: they are too large for its packets.
        (libc::EIO | libc::EINVAL | libc::EMSGSIZE, Request::SendTo { datagram, .. })
            // SAFETY: nothing is outstanding, so nobody else uses the datagram, which lives as long
            // as the operation; its handle does, too.
            if unsafe {
                (*op.handle).refuse_offload(errno == libc::EIO);
                (*datagram).system.give_up_offload()
            } =>
        {
            go_on(op)
        }
        (libc::EAGAIN, _) => pause(op, BUSY_PAUSE),
        _ => fail(op, errno),
    }
}

pub(super) fn fail(op: &mut Operation, errno: i32) -> Step {
    op.status = -errno;
    Step::Finish
}

/// Tries to do what a request on a handle asks for, without waiting.
///
/// # Safety
///
/// The pointers in the request are good.
#[inline]
pub(crate) unsafe fn attempt(handle: &Handle, request: &Request) -> Tried {
    if handle.kind() != Kind::Socket {
        return Tried::Left(0);
    }
    let fd = handle.fd();
    let (done, wanted) = match *request {
        Request::Receive { buffer, length, exact } if length > 0 => {
            handle.count_call();
            // SAFETY: the caller's promise: so many bytes may be written there.
            let done = unsafe { call::receive(fd, buffer, length) };
            (done, if exact { length } else { 1 })
        }
        Request::Send { buffer, length } => {
            handle.count_call();
            // SAFETY: the caller's promise: so many bytes may be read there.
            (unsafe { call::send(fd, buffer, length) }, length)
        }
        _ => return Tried::Left(0),
    };
    let Ok(done) = usize::try_from(done) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Tried::Left(0),
            _ => Tried::Over(Err(error)),
        };
    };
    Tried::of(done, wanted)
}

/// The message that sends what is left of a gather.
///
/// # Safety
///
/// The gather and its slices are valid, and nobody else touches them.
pub(crate) unsafe fn message(gather: *mut Gather) -> *mut libc::msghdr {
    // SAFETY: the caller's promise.
    let gather = unsafe { &mut *gather };
    // SAFETY: as above.
    let slices = unsafe { gather.slices() };
    // A slice has the layout of an iovec.
    let (first, count) = (slices.as_mut_ptr().cast(), slices.len());
    gather.header.msg_iov = first;
    gather.header.msg_iovlen = count as _;
    &raw mut gather.header
}

/// Makes the socket forget a connect that was cancelled: the kernel would go on with it, and a
/// later connect would meet it.
fn give_up_connecting(op: &Operation) {
    static UNSPECIFIED: libc::sockaddr = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    const _: () = assert!(libc::AF_UNSPEC == 0);
    // SAFETY: an operation in flight has a handle, which outlives it; the address lives across
    // the call.
    unsafe {
        libc::connect((*op.handle).fd(), &raw const UNSPECIFIED, 16);
    }
}

/// Submits the rest, unless somebody wants the operation to end here.
pub(super) fn go_on(op: &mut Operation) -> Step {
    if op.flags.cancel {
        fail(op, libc::ECANCELED)
    } else if op.flags.expired {
        fail(op, libc::ETIMEDOUT)
    } else {
        Step::Again
    }
}

/// A write that did not write all goes on, unless it does not get on.
fn wrote_part(op: &mut Operation, done: usize) -> Step {
    if done == 0 { fail(op, libc::EIO) } else { go_on(op) }
}

fn pause(op: &mut Operation, pause: Duration) -> Step {
    if op.flags.cancel {
        return fail(op, libc::ECANCELED);
    }
    op.flags.pausing = true;
    op.system.pause = [0, i64::from(pause.subsec_nanos())];
    Step::Again
}
