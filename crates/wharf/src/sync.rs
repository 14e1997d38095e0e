//! The synchronisation primitives from which the port's schedule, the slots of the epoll driver and
//! the locks of handles and rings are built: std's, or loom's where these are being model-checked.

use std::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{Mutex as PlainMutex, MutexGuard as PlainGuard},
};

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

#[cfg(windows)]
use std::sync::atomic::{AtomicBool, Ordering};

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
pub(crate) fn pause(attempt: u32) {
    #[cfg(loom)]
    {
        let _ = attempt;
        loom::thread::yield_now();
    }
    #[cfg(not(loom))]
    std::thread::sleep(std::time::Duration::from_micros(5 << attempt.min(8)));
}

/// A lock for what every operation needs, but hardly ever two threads at once, and none for long.
///
/// A mutex finds out with a second atomic exchange, when it is released, whether somebody waits.
/// This one is released by a plain store, which costs a tenth of that; who finds it held looks
/// again a few times, and then after short sleeps. There are five releases in an echo.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SpinLock<T> {
    held: AtomicBool,
    data: UnsafeCell<T>,
}

// SAFETY: the data is reached through a guard, and there is one at a time: it goes from thread to
// thread, but no two share it.
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// The data of a [`SpinLock`], which is held meanwhile.
#[derive(Debug)]
pub(crate) struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
    /// It is of the thread that has it, and to be shared only if the data is: it is never.
    of_this_thread: PhantomData<*mut T>,
}

impl<T> SpinLock<T> {
    pub(crate) fn new(data: T) -> Self {
        Self { held: AtomicBool::new(false), data: UnsafeCell::new(data) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
        if !self.try_hold() {
            self.wait();
        }
        SpinGuard { lock: self, of_this_thread: PhantomData }
    }

    #[inline]
    fn try_hold(&self) -> bool {
        // Acquire: what its last holder did to the data has been done.
        let order = (Ordering::Acquire, Ordering::Relaxed);
        self.held.compare_exchange(false, true, order.0, order.1).is_ok()
    }

    #[cold]
    fn wait(&self) {
        /// They take about as long as what the lock is held for.
        const LOOKS: u32 = 64;
        let mut attempt: u32 = 0;
        while !self.try_hold() {
            match attempt.checked_sub(LOOKS) {
                None if !cfg!(loom) => std::hint::spin_loop(),
                // Whoever has it may wait for a processor.
                sleeps => pause(sleeps.unwrap_or(0)),
            }
            attempt += 1;
        }
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this is the only guard, and it is borrowed.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this is the only guard, and it is borrowed mutably.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: what was done to the data is seen by whoever gets it next.
        self.lock.held.store(false, Ordering::Release);
    }
}

/// Locks a mutex (of std's, wherever the rest is loom's) whose data stays consistent at every step,
/// so that a panic elsewhere while it was held says nothing about the data.
pub(crate) fn lock<T>(mutex: &PlainMutex<T>) -> PlainGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, loom))]
mod models {
    use loom::{cell::UnsafeCell, model, sync::Arc, thread};

    use super::SpinLock;

    /// Would catch: two who have the lock; a holder who does not see what the last one did.
    #[test]
    fn one_at_a_time_has_the_lock() {
        model(|| {
            let shared = Arc::new((SpinLock::new(()), UnsafeCell::new(0)));
            let add = |shared: &(SpinLock<()>, UnsafeCell<i32>)| {
                let _guard = shared.0.lock();
                // SAFETY: the lock is held; loom checks that.
                shared.1.with_mut(|number| unsafe { *number += 1 });
            };
            let other = shared.clone();
            let other = thread::spawn(move || add(&other));
            add(&shared);
            other.join().unwrap();
            let _guard = shared.0.lock();
            // SAFETY: as above.
            assert_eq!(shared.1.with(|number| unsafe { *number }), 2);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    /// Would catch: somebody who waits for good; a lock that is kept when its holder panics.
    #[test]
    fn a_lock_that_is_held_for_long_is_had_in_the_end() {
        let lock = SpinLock::new(0);
        let guard = lock.lock();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        *lock.lock() += 1;
                    }
                });
            }
            thread::sleep(Duration::from_millis(20));
            drop(guard);
        });
        assert_eq!(*lock.lock(), 4000);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = lock.lock();
            panic!("while it is held");
        }));
        assert!(panic.is_err());
        assert_eq!(*lock.lock(), 4000);
    }
}
