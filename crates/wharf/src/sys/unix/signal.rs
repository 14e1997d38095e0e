//! An event: a descriptor that is readable while it is signalled.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Instant,
};

/// An event that is not signalled.
pub(crate) fn new() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals it, as often as one likes.
pub(crate) fn raise(event: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: the bytes live across the call.
    let written = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    match io::Error::last_os_error() {
        // It has been signalled so often that one more does not fit: it is signalled.
        error if written < 0 && error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Resets it.
pub(crate) fn reset(event: BorrowedFd<'_>) {
    // A port that got a duplicate of it has made it block, for all duplicates.
    if !wait(event, Some(Instant::now())).unwrap_or(false) {
        return;
    }
    let mut count = [0; 8];
    // SAFETY: the bytes live across the call.
    let _ = unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// What has ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The event is signalled.
    Event,
    /// The other descriptor is readable.
    Other,
    TimedOut,
}

/// Waits until it is signalled, at most until then. True: it is.
pub(crate) fn wait(event: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    Ok(wait_with(event, None, deadline)? == Waited::Event)
}

/// Waits until it is signalled or the other descriptor is readable, at most until then.
pub(crate) fn wait_with(
    event: BorrowedFd<'_>,
    other: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Waited> {
    // A negative number is passed over.
    let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut poll = [entry(event.as_raw_fd()), entry(other.map_or(-1, |it| it.as_raw_fd()))];
    loop {
        let timeout = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to look before the time.
            i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: the structures live across the call.
        let found = unsafe { libc::poll(poll.as_mut_ptr(), 2, timeout) };
        if found > 0 {
            return Ok(if poll[0].revents != 0 { Waited::Event } else { Waited::Other });
        }
        if found == 0 && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Waited::TimedOut);
        }
        if found < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
