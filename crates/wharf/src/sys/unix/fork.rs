//! Tells a forked child from its parent with two loads.

use std::{
    io, ptr,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

/// A page that the kernel wipes in a child. Before Linux 4.14 it does not, and emulated ones only
/// say so: there, the C library's fork counts, which is not every way to fork.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    page: *const AtomicU32,
    forks: u32,
}

/// How many forks lie between this process and the one that has asked to count them.
static FORKS: AtomicU32 = AtomicU32::new(0);

fn count_forks() {
    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    static ASKED: Once = Once::new();
    // Without memory for it, there is still the page.
    // SAFETY: what is called in a child does what is allowed there: it adds to a number.
    ASKED.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(forked));
    });
}

// SAFETY: the page holds one atomic, is written once before it is shared, and lives as long as
// the guard.
unsafe impl Send for ForkGuard {}
// SAFETY: as for Send.
unsafe impl Sync for ForkGuard {}

const PAGE: usize = 4096;

impl ForkGuard {
    pub(crate) fn new() -> io::Result<Self> {
        count_forks();
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
        let page = page.cast::<AtomicU32>();
        // SAFETY: the page was mapped above and holds at least one word. Whether the kernel knows
        // this advice does not matter: see the type.
        unsafe {
            (*page).store(1, Ordering::Relaxed);
            libc::madvise(page.cast(), PAGE, libc::MADV_WIPEONFORK);
        }
        Ok(Self { page, forks: FORKS.load(Ordering::Relaxed) })
    }

    /// Whether this process is a child of the one that made the guard.
    pub(crate) fn in_child(&self) -> bool {
        // SAFETY: the page lives as long as the guard.
        let wiped = unsafe { (*self.page).load(Ordering::Relaxed) == 0 };
        wiped || FORKS.load(Ordering::Relaxed) != self.forks
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once.
        unsafe { libc::munmap(self.page.cast_mut().cast(), PAGE) };
    }
}
