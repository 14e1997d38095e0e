//! The synchronisation primitives from which the port's schedule and the slots of the epoll driver
//! are built: std's, or loom's where these are being model-checked.

use std::sync::{Mutex as PlainMutex, MutexGuard as PlainGuard};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{
        AtomicBool, AtomicI32, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        fence,
    },
};
#[cfg(not(any(loom, windows)))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{
        AtomicBool, AtomicI32, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        fence,
    },
};

#[cfg(loom)]
loom::lazy_static! {
    static ref KERNEL: Mutex<()> = Mutex::new(());
}

/// Makes a system call upon which the order of others' actions depends. The kernel has locks of
/// its own for that, which loom does not see.
#[cfg(not(windows))]
#[inline]
pub(crate) fn kernel<T>(call: impl FnOnce() -> T) -> T {
    #[cfg(loom)]
    let _ordered = KERNEL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    call()
}

/// Lets others run before looking again: `attempt` counts the looks so far.
#[cfg(not(windows))]
pub(crate) fn pause(attempt: u32) {
    #[cfg(loom)]
    {
        let _ = attempt;
        loom::thread::yield_now();
    }
    #[cfg(not(loom))]
    std::thread::sleep(std::time::Duration::from_micros(5 << attempt.min(8)));
}

/// Locks a mutex (of std's, wherever the rest is loom's) whose data stays consistent at every step,
/// so that a panic elsewhere while it was held says nothing about the data.
pub(crate) fn lock<T>(mutex: &PlainMutex<T>) -> PlainGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
