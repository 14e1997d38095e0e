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
    let mut count = [0; 8];
    // SAFETY: the bytes live across the call. It does not block: the event was made so.
    let _ = unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// Waits until it is signalled, at most until then. True: it is.
pub(crate) fn wait(event: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to look before the time.
            i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the structure lives across the call.
        let found = unsafe { libc::poll(&raw mut poll, 1, timeout) };
        if found > 0 {
            return Ok(true);
        }
        if found == 0 && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(false);
        }
        if found < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
