//! The port: what is the same however its workers wait.
//!
//! How they wait is the system's business, in a module of its own ([`super::lanes`] where a port
//! is several kernel objects and the concurrency value ours to keep). It provides:
//!
//! - `Dispatch`, a part of [`Shared`], and `Place`, what it knows of a thread that is bound;
//! - `Dispatch::new`, and on [`Shared`]: `arrive` and `depart` (of a bound thread), `wait_as`,
//!   `end_wait`, `take_more`, `blocking`; `push_posted`, `enqueue`; `closed`, `close`, `drain`;
//!   `lane`, `lanes`, `some_lane`, `own_lane`, `submit_for`; `stats`.

use std::{
    cell::{Cell, RefCell},
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use super::{
    Completion, Taking, Told, Wait,
    dispatch::{Dispatch, Place},
    handle::{Handle, Outcome, Queues},
    operation::{NO_BUFFER, Operation, Request, State},
};
use crate::{
    buf::Pooled,
    driver::{Choice, Driver},
    error::{Error, ErrorKind},
    sync::{SpinGuard, lock},
    sys::{
        self, Event, ForkGuard, Identity, Kind, Lane, NO_DESCRIPTOR, OwnedDescriptor, Registration,
        Step,
    },
};

/// How to build a port. See the fields' methods on [`crate::Builder`].
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) driver: Driver,
    pub(crate) concurrency: usize,
    pub(crate) submissions: u32,
    pub(crate) pool_count: u16,
    pub(crate) pool_size: usize,
    pub(crate) datagram_pool_count: u16,
    pub(crate) datagram_pool_size: usize,
    pub(crate) queue_limit: u32,
    pub(crate) post_limit: usize,
    pub(crate) without_provided_buffers: bool,
    pub(crate) without_cooperative: bool,
    pub(crate) without_offload: bool,
    pub(crate) watch: bool,
}

/// Something for a worker to take that is no event of a lane.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A packet somebody posted.
    Posted { bytes: usize, key: usize, operation: *mut Operation },
    /// A packet that was promised, and comes to nothing.
    #[cfg(windows)]
    Cancelled(*mut Operation),
    /// An operation that is over.
    Ready(*mut Operation),
    /// An operation that waited for a pooled buffer.
    Retry(*mut Operation),
}

// SAFETY: the operations are in flight, and belong to whoever takes the entry; what a posted
// packet carries is opaque here.
unsafe impl Send for Entry {}

/// What is counted per thread, so that counting is a plain addition: only its thread writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    pub(super) packets: AtomicU64,
    /// System calls that the port made itself, for operations.
    pub(super) calls: AtomicU64,
    started: AtomicU64,
    finished: AtomicU64,
}

impl Tally {
    const ALL: [fn(&Self) -> &AtomicU64; 4] = [
        |tally| &tally.packets,
        |tally| &tally.calls,
        |tally| &tally.started,
        |tally| &tally.finished,
    ];
}

/// A port, as its handles and its bound threads share it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) dispatch: Dispatch,
    pub(super) setup: Setup,
    pub(crate) choice: Choice,
    pub(super) guard: ForkGuard,
    pub(super) posted: AtomicU64,
    /// The tallies of the threads that are bound to this port.
    tallies: Mutex<Vec<Arc<Tally>>>,
    /// What threads that are not bound have counted, and those that were.
    others: Tally,
    /// Idle operations that no thread has for itself.
    spare: Mutex<Spare>,
    /// What the layer above does with its operations.
    hooks: OnceLock<Hooks>,
}

/// What the layer above does with its operations. Each function may be called by any thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hooks {
    /// Frees an idle one.
    pub(crate) free: unsafe fn(*mut Operation),
    /// Lets go of what one has sent that is about to receive. Called under its handle's lock.
    pub(crate) has_sent: unsafe fn(*mut Operation),
}

/// Idle operations that the layer above keeps for its next: a list through their headers. A thread
/// that is bound has one of its own, so that an operation that is over is the next to start, still
/// in the processor's cache, and nothing is shared on the way.
#[derive(Debug)]
struct Spare {
    first: Cell<*mut Operation>,
    length: Cell<usize>,
}

// SAFETY: the operations in the list are idle, and owned by it.
unsafe impl Send for Spare {}

impl Spare {
    /// How many a thread keeps for itself, and how many it leaves to others beyond that.
    const OWN: usize = 64;
    const SHARED: usize = 1024;

    const fn new() -> Self {
        Self { first: Cell::new(std::ptr::null_mut()), length: Cell::new(0) }
    }

    fn take(&self) -> Option<*mut Operation> {
        let operation = self.first.get();
        if operation.is_null() {
            return None;
        }
        // SAFETY: what is in the list is alive, and idle.
        self.first.set(unsafe { (*operation).next });
        self.length.set(self.length.get() - 1);
        Some(operation)
    }

    /// # Safety
    ///
    /// The operation is idle, and the caller's.
    unsafe fn put(&self, operation: *mut Operation) {
        // SAFETY: the caller's promise.
        unsafe { (*operation).next = self.first.get() };
        self.first.set(operation);
        self.length.set(self.length.get() + 1);
    }
}

// ---- Threads ------------------------------------------------------------------------------

/// A thread's tie to the port it last waited on.
struct Binding {
    port: Arc<Shared>,
    place: Place,
    tally: Arc<Tally>,
    spare: Spare,
}

impl Drop for Binding {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(std::ptr::null()));
        self.port.depart(&self.place);
        let mut tallies = lock(&self.port.tallies);
        for counter in Tally::ALL {
            let counted = counter(&self.tally).load(Ordering::Relaxed);
            counter(&self.port.others).fetch_add(counted, Ordering::Relaxed);
        }
        tallies.retain(|tally| !Arc::ptr_eq(tally, &self.tally));
        drop(tallies);
        while let Some(operation) = self.spare.take() {
            // SAFETY: it was in the list, so it is idle, and nobody else's.
            unsafe { self.port.put_spare(operation) };
        }
    }
}

thread_local! {
    /// What `BINDING` has in its box, for the fast path: null, or valid.
    static CURRENT: Cell<*const Binding> = const { Cell::new(std::ptr::null()) };
    static BINDING: RefCell<Option<Box<Binding>>> = const { RefCell::new(None) };
}

impl Shared {
    pub(crate) fn new(setup: Setup) -> Result<Arc<Self>, Error> {
        let (dispatch, choice) = Dispatch::new(&setup)?;
        choice.announce();
        let guard = ForkGuard::new().map_err(|error| Error::from_io(&error, "port"))?;
        let port = Arc::new(Self {
            dispatch,
            setup,
            choice,
            guard,
            posted: AtomicU64::new(0),
            tallies: Mutex::new(Vec::new()),
            others: Tally::default(),
            spare: Mutex::new(Spare::new()),
            hooks: OnceLock::new(),
        });
        for pool in port.lanes().iter().flat_map(Lane::pools) {
            let weak = Arc::downgrade(&port);
            pool.set_resume(Box::new(move |operation| {
                if let Some(port) = weak.upgrade() {
                    port.enqueue(Entry::Retry(operation));
                }
            }));
        }
        Ok(port)
    }

    /// Whether datagrams are left to the kernel to cut, if it can.
    pub(crate) fn offloads(&self) -> bool {
        !self.setup.without_offload && sys::cuts_datagrams()
    }

    /// How many bytes fit into a pooled buffer for datagrams.
    pub(crate) fn datagram_room(&self) -> usize {
        self.setup.datagram_pool_size
    }

    pub(crate) fn lane_count(&self) -> usize {
        self.lanes().len()
    }

    pub(crate) fn queue_limit(&self) -> u32 {
        self.setup.queue_limit
    }

    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if self.guard.in_child() {
            return Err(Error::of(ErrorKind::Forked, "port"));
        }
        Ok(())
    }

    /// This thread's binding, if it is one to this port.
    #[inline]
    fn binding(&self) -> Option<&Binding> {
        // SAFETY: the box keeps it at this address for as long as CURRENT names it, and only this
        // thread changes its binding, never while `self` is borrowed here: the places that rebind
        // do not hold the reference.
        let binding = unsafe { CURRENT.with(Cell::get).as_ref()? };
        std::ptr::eq(Arc::as_ptr(&binding.port), self).then_some(binding)
    }

    /// This thread's place, if it is bound to this port.
    #[inline]
    pub(super) fn current(&self) -> Option<&Place> {
        self.binding().map(|binding| &binding.place)
    }

    pub(crate) fn count_started(&self) {
        self.count(|tally| &tally.started);
    }

    /// A system call has been made for an operation, or is about to be.
    pub(super) fn count_call(&self) {
        self.count(|tally| &tally.calls);
    }

    #[inline]
    pub(super) fn count(&self, counter: fn(&Tally) -> &AtomicU64) {
        let Some(binding) = self.binding() else {
            counter(&self.others).fetch_add(1, Ordering::Release);
            return;
        };
        let counter = counter(&binding.tally);
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Sums of counters over all threads, those that have gone included.
    pub(super) fn sums<const N: usize>(&self, counters: [fn(&Tally) -> &AtomicU64; N]) -> [u64; N] {
        let tallies = lock(&self.tallies);
        let tallies = || tallies.iter().map(|tally| &**tally).chain([&self.others]);
        counters.map(|counter| tallies().map(|tally| counter(tally).load(Ordering::Acquire)).sum())
    }

    // ---- Idle operations of the layer above -----------------------------------------------

    /// Says what the layer above does with its operations: with all of this port.
    ///
    /// # Safety
    ///
    /// Whatever is given to [`Self::put_spare`] may be freed by `free`; of whatever is started on
    /// a handle of this port, `has_sent` may be told that it has.
    pub(crate) unsafe fn set_hooks(&self, hooks: Hooks) {
        let _ = self.hooks.set(hooks);
    }

    /// Tells the layer above that an operation has sent what it had to, and receives next.
    ///
    /// # Safety
    ///
    /// So it is.
    #[inline]
    pub(super) unsafe fn has_sent(&self, operation: *mut Operation) {
        if let Some(hooks) = self.hooks.get() {
            // SAFETY: the caller's promise, and that of `set_hooks`.
            unsafe { (hooks.has_sent)(operation) };
        }
    }

    /// An idle operation that was kept, which is the caller's now.
    #[inline]
    pub(crate) fn take_spare(&self) -> Option<*mut Operation> {
        let own = self.binding().and_then(|binding| binding.spare.take());
        own.or_else(|| lock(&self.spare).take())
    }

    /// Keeps an idle operation for the next, or frees it where there are enough.
    ///
    /// # Safety
    ///
    /// It is idle, the caller's, and of the kind that [`Self::set_hooks`] speaks of.
    #[inline]
    pub(crate) unsafe fn put_spare(&self, operation: *mut Operation) {
        if let Some(Binding { spare, .. }) = self.binding()
            && spare.length.get() < Spare::OWN
        {
            // SAFETY: the caller's promise.
            return unsafe { spare.put(operation) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.leave_spare(operation) };
    }

    /// Leaves one to other threads.
    ///
    /// # Safety
    ///
    /// As for `put_spare`.
    #[cold]
    unsafe fn leave_spare(&self, operation: *mut Operation) {
        let shared = lock(&self.spare);
        if shared.length.get() < Spare::SHARED {
            // SAFETY: the caller's promise.
            return unsafe { shared.put(operation) };
        }
        drop(shared);
        // SAFETY: the caller's promise.
        unsafe { self.free_spare(operation) };
    }

    /// # Safety
    ///
    /// As for `put_spare`.
    unsafe fn free_spare(&self, operation: *mut Operation) {
        if let Some(hooks) = self.hooks.get() {
            // SAFETY: the caller's promise, and that of `set_hooks`.
            unsafe { (hooks.free)(operation) };
        }
    }

    // ---- Waiting ------------------------------------------------------------------------

    fn bind(self: &Arc<Self>) {
        if self.binding().is_some() {
            return;
        }
        let tally = Arc::new(Tally::default());
        lock(&self.tallies).push(tally.clone());
        let (port, place, spare) = (self.clone(), self.arrive(), Spare::new());
        let binding = Box::new(Binding { port, place, tally, spare });
        // The former binding gives its lane back as it drops, outside the borrow.
        let former = BINDING.with(|slot| slot.borrow_mut().replace(binding));
        drop(former);
        let current = BINDING.with(|slot| slot.borrow().as_deref().map(std::ptr::from_ref));
        CURRENT.with(|slot| slot.set(current.unwrap_or(std::ptr::null())));
    }

    /// Ends this thread's tie to the port.
    fn unbind(&self) {
        if self.binding().is_some() {
            let binding = BINDING.with(|slot| slot.borrow_mut().take());
            drop(binding);
        }
    }

    /// Waits for a completion, which `taking` then has.
    pub(crate) fn wait(
        self: &Arc<Self>,
        timeout: Option<Duration>,
        taking: &mut Taking<'_>,
    ) -> Wait<()> {
        if let Err(error) = self.check_process() {
            return Wait::Broken(error);
        }
        self.bind();
        let Some(place) = self.current() else {
            return Wait::Broken(Error::of(ErrorKind::Closed, "wait"));
        };
        let waited = self.wait_as(place, timeout, taking);
        self.end_wait(place);
        if matches!(waited, Wait::Closed) {
            self.unbind();
        }
        waited
    }

    /// Posts a packet.
    pub(crate) fn post(
        &self,
        bytes: usize,
        key: usize,
        operation: *mut Operation,
    ) -> Result<(), Error> {
        self.check_process()?;
        if self.closed() {
            return Err(Error::of(ErrorKind::Closed, "post"));
        }
        self.push_posted(Entry::Posted { bytes, key, operation })?;
        self.posted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What an entry has for the worker that takes it.
    ///
    /// # Safety
    ///
    /// Taken once.
    pub(super) unsafe fn redeem(&self, entry: Entry, taking: &mut Taking<'_>) -> bool {
        match entry {
            Entry::Posted { bytes, key, operation } => {
                taking.completion = Completion::posted(bytes, key, operation);
                true
            }
            #[cfg(windows)]
            Entry::Cancelled(operation) => {
                taking.completion = Completion::posted(0, 0, operation);
                taking.completion.status = -sys::CANCELLED;
                true
            }
            // SAFETY: the entry was made for an operation in flight with nothing outstanding, and
            // taking it gives the operation to us.
            Entry::Ready(operation) => unsafe { self.conclude(operation, taking) },
            // SAFETY: as above.
            Entry::Retry(operation) => unsafe { self.retry(operation, taking) },
        }
    }

    // ---- Completing ---------------------------------------------------------------------

    /// Works an event of a lane into its operation. True: this was the last event it took, and
    /// `taking` has its completion.
    #[inline]
    pub(super) fn complete(&self, lane: u16, event: Event, taking: &mut Taking<'_>) -> bool {
        let operation = event.operation;
        // SAFETY: an operation with an event to come is in flight; so its header is alive, its
        // handle is too (both the contract of start), and the handle's address does not change.
        let handle = unsafe { &*(*operation).handle };
        let mut state = handle.lock();
        let lane = self.lane(lane);
        // SAFETY: popped once from this lane, and the lock is held.
        let step = unsafe { lane.digest(event) };
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        match step {
            Step::Pending => return false,
            Step::Cancel => {
                // SAFETY: in flight, submitted to this lane, and the lock is held.
                if let Err(error) = unsafe { lane.push_cancel(operation) } {
                    log::warn!("a cancellation could not be queued: {error}");
                }
                return false;
            }
            Step::Again => {
                if matches!(op.request, Request::AcceptFirst { .. }) && op.accepted != NO_DESCRIPTOR
                {
                    handle.float(&mut state, operation);
                }
                // SAFETY: in flight, nothing outstanding, and the lock is held.
                unsafe { handle.again(&mut state, operation) };
                return false;
            }
            Step::Starve if op.flags.cancel => op.status = -sys::CANCELLED,
            Step::Starve if lane.pool_of(op).grow() => {
                // SAFETY: in flight, nothing outstanding, and the lock is held.
                unsafe { handle.again(&mut state, operation) };
                return false;
            }
            Step::Starve => {
                op.set_state(State::Waiting);
                let again = std::mem::replace(&mut op.flags.starved, true);
                lane.pool_of(op).starve(operation, again);
                return false;
            }
            Step::Finish if op.second.is_some() && op.status == 0 => {
                // SAFETY: in flight, nothing outstanding, and the lock is held.
                unsafe { handle.go_over(&mut state, operation) };
                return false;
            }
            Step::Finish if handle.queue_behind(&mut state, op) => return false,
            Step::Finish => {}
        }
        // SAFETY: as above.
        unsafe { self.hand_out(handle, state, operation, taking) }
    }

    /// Hands out the completion of an operation that is over but was kept back.
    ///
    /// # Safety
    ///
    /// The operation is in flight, nothing of it is outstanding, and it is the caller's.
    unsafe fn conclude(&self, operation: *mut Operation, taking: &mut Taking<'_>) -> bool {
        // SAFETY: as in `complete`.
        let handle = unsafe { &*(*operation).handle };
        let state = handle.lock();
        // SAFETY: the caller's promise.
        unsafe { self.hand_out_late(handle, state, operation, taking) }
    }

    /// Tries a receive again for which there was no buffer.
    ///
    /// # Safety
    ///
    /// As for `conclude`.
    unsafe fn retry(&self, operation: *mut Operation, taking: &mut Taking<'_>) -> bool {
        // SAFETY: as in `complete`.
        let handle = unsafe { &*(*operation).handle };
        let mut state = handle.lock();
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        if op.flags.cancel {
            op.status = -sys::CANCELLED;
            // SAFETY: the caller's promise.
            return unsafe { self.hand_out_late(handle, state, operation, taking) };
        }
        // SAFETY: the caller's promise.
        unsafe { handle.again(&mut state, operation) };
        false
    }

    /// Hands out what did not come straight from a lane.
    ///
    /// # Safety
    ///
    /// As for `hand_out`.
    #[inline(never)]
    unsafe fn hand_out_late(
        &self,
        handle: &Handle,
        state: SpinGuard<'_, Queues>,
        operation: *mut Operation,
        taking: &mut Taking<'_>,
    ) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.hand_out(handle, state, operation, taking) }
    }

    /// # Safety
    ///
    /// The operation is in flight on `handle`, whose lock `state` is, and nothing is outstanding.
    #[inline(always)]
    unsafe fn hand_out(
        &self,
        handle: &Handle,
        mut state: SpinGuard<'_, Queues>,
        operation: *mut Operation,
        taking: &mut Taking<'_>,
    ) -> bool {
        // SAFETY: the caller's promise.
        let outcome = unsafe { handle.conclude(&mut state, operation) };
        if outcome == Outcome::Deferred {
            return false;
        }
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        let completion = &mut taking.completion;
        *completion = Completion::posted(op.bytes, handle.key(), operation);
        completion.status = op.status;
        completion.silent = op.flags.silent;
        completion.serial = state.is_serial() && !op.flags.silent;
        if op.accepted != NO_DESCRIPTOR {
            // SAFETY: the kernel gave this descriptor to the accept; nobody else owns it. It is
            // closed here if the accept failed after all.
            let accepted = unsafe { sys::own(op.accepted) };
            completion.accepted = (op.status == 0).then_some(accepted);
        }
        if op.buffer != NO_BUFFER {
            let pool = self.lane(op.lane).pool_of(op).clone();
            completion.buffer = Some(Pooled::new(pool, op.buffer, op.bytes));
        }
        if op.request.is_datagram() {
            // SAFETY: in flight, nothing outstanding, and the lock is held.
            completion.told = unsafe { Told::of(op) };
        }
        op.next_round();
        if outcome == Outcome::More {
            completion.more = true;
            (taking.retain)(operation);
            // SAFETY: in flight, nothing outstanding, and the lock is held.
            unsafe { handle.again(&mut state, operation) };
        } else {
            self.count(|tally| &tally.finished);
            op.set_state(State::Idle);
        }
        true
    }

    /// Operations started and not handed out yet.
    pub(crate) fn in_flight(&self) -> u64 {
        // What is finished first: then the difference is never negative.
        let [finished, started] = self.sums([|tally| &tally.finished, |tally| &tally.started]);
        started.saturating_sub(finished)
    }

    // ---- One descriptor, one port -------------------------------------------------------

    /// Associates a descriptor.
    pub(crate) fn adopt(
        &self,
        descriptor: &OwnedDescriptor,
        will_do: fn(Kind) -> Result<(), Error>,
    ) -> Result<(Identity, Registration), Error> {
        self.check_process()?;
        if self.closed() {
            return Err(Error::of(ErrorKind::Closed, "associate"));
        }
        let identity = Identity::of(descriptor);
        let identity = identity.map_err(|error| Error::from_io(&error, "associate"))?;
        will_do(identity.kind())?;
        if !sys::adopt(identity) {
            return Err(Error::of(ErrorKind::Associated, "associate"));
        }
        match self.lane(0).register(descriptor, identity.kind()) {
            Ok(registration) => Ok((identity, registration)),
            Err(error) => {
                sys::release(identity);
                Err(error)
            }
        }
    }

    /// The driver may forget a handle: nothing of it is in flight.
    pub(crate) fn unregister(&self, registration: &Registration) {
        if !self.guard.in_child() {
            self.lane(registration.lane()).unregister(registration);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        loop {
            let spare = lock(&self.spare).take();
            let Some(operation) = spare else { return };
            // SAFETY: it was in the list, so it is idle, and nobody else's.
            unsafe { self.free_spare(operation) };
        }
    }
}

/// When a wait that begins now is over. None: never, or too far away to name.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// How much of it is left.
pub(crate) fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}
