//! Tells a forked child from its parent with one load.

use std::{
    io, ptr,
    sync::atomic::{AtomicU32, Ordering},
};

/// A page that the kernel wipes in a child.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    page: *const AtomicU32,
}

// SAFETY: the page holds one atomic, is written once before it is shared, and lives as long as
// the guard.
unsafe impl Send for ForkGuard {}
// SAFETY: as for Send.
unsafe impl Sync for ForkGuard {}

const PAGE: usize = 4096;

impl ForkGuard {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a fresh mapping aliases nothing.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let guard = Self { page: page.cast::<AtomicU32>() };
        // SAFETY: the page was mapped above and holds at least one word.
        unsafe {
            (*guard.page).store(1, Ordering::Relaxed);
            if libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(guard)
    }

    /// Whether this process is a child of the one that made the guard.
    pub(crate) fn in_child(&self) -> bool {
        // SAFETY: the page lives as long as the guard.
        unsafe { (*self.page).load(Ordering::Relaxed) == 0 }
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once.
        unsafe { libc::munmap(self.page.cast_mut().cast(), PAGE) };
    }
}
