//! What there is to take in a lane, and how its worker is woken.

use std::{
    collections::VecDeque,
    io, ptr,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
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

/// Added to the address in `latest`: the call has not been made. Operations lie at even addresses.
const READY: usize = 1;
const _: () = assert!(align_of::<Operation>() > READY);

/// With a packet of the queue's before them, that is four buffers of one connection, or three and a
/// look that finds no more.
const IN_A_ROW: u32 = 3;

/// A queue that any thread may put into and take from.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<VecDeque<Popped>>,
    /// How long the queue is.
    ready: AtomicU32,
    /// An operation whose call was made at once, or can be (`READY`): more has come than its last
    /// one had room for. It is taken before the queue, while everything about it is in the
    /// processor's cache, and without a lock; but not more than `IN_A_ROW` times.
    latest: AtomicPtr<Operation>,
    /// How many have been taken there since one was taken from the queue.
    in_turn: AtomicU32,
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
            in_turn: AtomicU32::new(0),
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
        if !self.set_latest(operation) {
            self.put(kept(operation));
        }
    }

    /// The call of an operation that has just been started would not block.
    pub(crate) fn put_ready(&self, operation: *mut Operation) {
        if !self.set_latest(operation.map_addr(|address| address | READY)) {
            self.put(to_try(operation));
        }
    }

    fn set_latest(&self, operation: *mut Operation) -> bool {
        let (none, order) = (ptr::null_mut(), Ordering::Release);
        self.latest.compare_exchange(none, operation, order, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn put_try(&self, operation: *mut Operation) {
        self.put(to_try(operation));
    }

    /// To put in several.
    pub(crate) fn fill(&self) -> Filling<'_> {
        Filling { inbox: self, queue: lock(&self.queue) }
    }

    /// Takes the latest or the oldest.
    pub(crate) fn take(&self) -> Option<Popped> {
        let queued = self.ready.load(Ordering::Relaxed) > 0;
        let in_turn = self.in_turn.load(Ordering::Relaxed);
        if self.has_latest() && !(in_turn == IN_A_ROW && queued) {
            let operation = self.latest.swap(ptr::null_mut(), Ordering::Acquire);
            if !operation.is_null() {
                self.in_turn.store((in_turn + 1).min(IN_A_ROW), Ordering::Relaxed);
                return Some(if operation.addr() & READY == 0 {
                    kept(operation)
                } else {
                    to_try(operation.map_addr(|address| address & !READY))
                });
            }
        }
        if in_turn > 0 {
            self.in_turn.store(0, Ordering::Relaxed);
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

fn to_try(operation: *mut Operation) -> Popped {
    Popped::Event(Event { operation, of: Source::Request, result: 0, flags: TRY })
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
        self.put(to_try(operation));
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.inbox.count(&self.queue);
    }
}
