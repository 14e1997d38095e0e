//! An event object, which is signalled until it is reset.

use std::{
    io,
    os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle},
    ptr,
    time::Instant,
};

use windows_sys::Win32::{
    Foundation::{WAIT_OBJECT_0, WAIT_TIMEOUT},
    System::Threading::{CreateEventW, ResetEvent, SetEvent, WaitForSingleObject},
};

use super::port::milliseconds;

/// An event that is not signalled.
pub(crate) fn new() -> io::Result<OwnedHandle> {
    // SAFETY: an event of its own, without a name.
    let event = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
    if event.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedHandle::from_raw_handle(event) })
}

/// Signals it, as often as one likes.
pub(crate) fn raise(event: BorrowedHandle<'_>) -> io::Result<()> {
    // SAFETY: an open handle.
    let raised = unsafe { SetEvent(event.as_raw_handle()) };
    if raised == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Resets it.
pub(crate) fn reset(event: BorrowedHandle<'_>) {
    // SAFETY: an open handle.
    unsafe { ResetEvent(event.as_raw_handle()) };
}

/// Waits until it is signalled, at most until then. True: it is.
pub(crate) fn wait(event: BorrowedHandle<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // SAFETY: an open handle.
        match unsafe { WaitForSingleObject(event.as_raw_handle(), milliseconds(left)) } {
            WAIT_OBJECT_0 => return Ok(true),
            // One wait may be shorter than what is left.
            WAIT_TIMEOUT if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            WAIT_TIMEOUT => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}
