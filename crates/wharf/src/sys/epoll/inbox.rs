//! What there is to take in a lane, and how its worker is woken.

use std::{
    collections::VecDeque,
    io, ptr,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering},
    },
};

use super::poller::Waker;
use crate::{
    raw::Operation,
    sync::lock,
    sys::{Event, Popped, Source},
};

/// In an event's flags: the call may succeed now; it has not been made.
pub(crate) const TRY: u32 = 1;
/// In an event's flags: its result stands in the header.
pub(crate) const KEPT: u32 = 2;

/// A queue that any thread may put into and take from.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<VecDeque<Popped>>,
    /// How long the queue is.
    ready: AtomicU32,
    /// An operation whose call was made at once. It is taken before the queue, while everything
    /// about it is in the processor's cache, and without a lock; but not twice in a row.
    latest: AtomicPtr<Operation>,
    /// The latest one was taken last.
    in_turn: AtomicBool,
    /// System calls that threads for files have made.
    pub(crate) calls: AtomicU64,
    pub(crate) waker: Waker,
}

// SAFETY: the operations in the queue are only stored here; whoever takes an event goes by the
// lock of its handle.
unsafe impl Send for Inbox {}
// SAFETY: as for Send.
unsafe impl Sync for Inbox {}

impl Inbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(VecDeque::with_capacity(64)),
            ready: AtomicU32::new(0),
            latest: AtomicPtr::new(ptr::null_mut()),
            in_turn: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            waker: Waker::new()?,
        })
    }

    /// How much is there.
    pub(crate) fn ready(&self) -> u32 {
        self.ready.load(Ordering::Relaxed) + u32::from(self.has_latest())
    }

    fn has_latest(&self) -> bool {
        !self.latest.load(Ordering::Relaxed).is_null()
    }

    /// How many operations have something to take: their deadlines do not count.
    pub(crate) fn requests(&self) -> usize {
        let is_request = |popped: &&Popped| {
            matches!(popped, Popped::Event(Event { of: Source::Request, .. }))
        };
        lock(&self.queue).iter().filter(is_request).count() + usize::from(self.has_latest())
    }

    pub(crate) fn put(&self, popped: Popped) {
        self.fill().put(popped);
    }

    pub(crate) fn put_result(&self, operation: *mut Operation, result: i32) {
        self.put(Popped::Event(Event { operation, of: Source::Request, result, flags: 0 }));
    }

    /// The call of an operation has been made at once, and its result stands in its header.
    pub(crate) fn put_latest(&self, operation: *mut Operation) {
        let (none, order) = (ptr::null_mut(), Ordering::Release);
        if self.latest.compare_exchange(none, operation, order, Ordering::Relaxed).is_err() {
            self.put(kept(operation));
        }
    }

    pub(crate) fn put_try(&self, operation: *mut Operation) {
        self.fill().put_try(operation);
    }

    /// To put in several.
    pub(crate) fn fill(&self) -> Filling<'_> {
        Filling { inbox: self, queue: lock(&self.queue) }
    }

    /// Takes the latest or the oldest.
    pub(crate) fn take(&self) -> Option<Popped> {
        let queued = self.ready.load(Ordering::Relaxed) > 0;
        let turn = self.in_turn.load(Ordering::Relaxed);
        if self.has_latest() && !(turn && queued) {
            let operation = self.latest.swap(ptr::null_mut(), Ordering::Acquire);
            if !operation.is_null() {
                self.in_turn.store(true, Ordering::Relaxed);
                return Some(kept(operation));
            }
        }
        if turn {
            self.in_turn.store(false, Ordering::Relaxed);
        }
        self.take_if(|_| true)
    }

    /// Takes the oldest, if it is wanted.
    pub(crate) fn take_if(&self, wanted: impl FnOnce(&Popped) -> bool) -> Option<Popped> {
        if self.ready.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut queue = lock(&self.queue);
        if !queue.front().is_some_and(wanted) {
            return None;
        }
        let popped = queue.pop_front();
        self.count(&queue);
        popped
    }

    fn count(&self, queue: &VecDeque<Popped>) {
        // Who has to know for sure stands on the other side of a fence.
        self.ready.store(u32::try_from(queue.len()).unwrap_or(u32::MAX), Ordering::Release);
    }
}

fn kept(operation: *mut Operation) -> Popped {
    Popped::Event(Event { operation, of: Source::Request, result: 0, flags: KEPT })
}

/// See [`Inbox::fill`].
pub(crate) struct Filling<'a> {
    inbox: &'a Inbox,
    queue: MutexGuard<'a, VecDeque<Popped>>,
}

impl Filling<'_> {
    pub(crate) fn put(&mut self, popped: Popped) {
        self.queue.push_back(popped);
    }

    pub(crate) fn put_try(&mut self, operation: *mut Operation) {
        let of = Source::Request;
        self.put(Popped::Event(Event { operation, of, result: 0, flags: TRY }));
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.inbox.count(&self.queue);
    }
}
