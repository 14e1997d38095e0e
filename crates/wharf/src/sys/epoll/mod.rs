//! The fallback driver, on epoll: it makes the calls itself, and waits for readiness only where
//! they would block.
//!
//! What sends, connects or shuts down is tried at once, by whoever starts it, and its result goes
//! into the lane's queue, from which its packet is taken like any other. What receives or accepts
//! is tried by the worker that takes it, so that data is read when somebody is there to handle it,
//! and a pooled buffer is in use only from then on. What would block waits in the slot of its
//! descriptor, until an edge puts it into the queue again.
//!
//! An operation in flight is in one place at a time: in its slot, in the queue (its event), or in
//! the hands of whoever has taken that event. Its timer, if it has one, is another event to come.

mod blocking;
mod inbox;
mod poller;
mod slots;
mod timers;

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub(crate) use self::poller::{LEVEL, ONCE, Poller};
use self::{
    blocking::Blocking,
    inbox::{Inbox, KEPT, TRY},
    slots::{Claim, Parked, Registry},
    timers::{Clock, TimerId},
};
use super::{
    CANCELLED, Event, Kind, NO_DESCRIPTOR, OwnedDescriptor, Popped, RawDescriptor, Source, Step,
    pool::Pool,
    progress,
    transmit::{Chunks, Next},
    unix::{Call, Called, receive},
};
use crate::raw::{
    operation::{Direction, NO_BUFFER, Operation, Request},
    port::Setup,
};

/// One running slot of a port: a poller, and what is there to take.
#[derive(Debug)]
pub(crate) struct Lane {
    number: u16,
    registry: Arc<Registry>,
    blocking: Arc<Blocking>,
    inbox: Arc<Inbox>,
    /// For a worker that attends to other lanes too: this lane's poller and theirs.
    around: OnceLock<Poller>,
    /// Something has been started since the last look at the poller.
    started: AtomicBool,
    /// Whoever sleeps here may have to wake earlier than it knows.
    hurry: AtomicBool,
    epoch: Instant,
    pool: Arc<Pool>,
    chunks: Chunks,
    datagrams: Arc<Pool>,
}

/// What this driver knows of a handle's descriptor.
#[derive(Debug, Default)]
pub(crate) struct Registration {
    /// None: its calls block, and are made by threads for that.
    slot: Option<Claim>,
    /// It was not non-blocking before, and others may know it who do not expect it to be.
    restore: Option<RawDescriptor>,
}

/// What this driver keeps in the header of an operation.
#[derive(Debug)]
pub(crate) struct Header {
    /// The slot of a connection that was accepted and is to give its first data.
    slot: Option<Claim>,
    /// When its deadline passes; 0: not yet known, or never.
    pub(crate) due: u64,
    timer: Option<TimerId>,
    /// The lane with whose clock the timer runs.
    clock: u16,
}

impl Header {
    pub(crate) const NEW: Self = Self { slot: None, due: 0, timer: None, clock: 0 };
}

/// The token of a lane's waker in its poller, and of its poller among others.
const OWN: u64 = u64::MAX;

impl Lane {
    pub(crate) fn make(count: usize, setup: &Setup, chunks: &Chunks) -> io::Result<Vec<Self>> {
        let registry = Arc::new(Registry::new(count)?);
        let blocking = Arc::new(Blocking::new());
        let epoch = Instant::now();
        (0..u16::try_from(count).unwrap_or(u16::MAX))
            .map(|number| {
                let inbox = Arc::new(Inbox::new()?);
                registry.pollers[usize::from(number)].add(inbox.waker.fd(), LEVEL, OWN)?;
                Ok(Self {
                    number,
                    registry: registry.clone(),
                    blocking: blocking.clone(),
                    inbox,
                    around: OnceLock::new(),
                    started: AtomicBool::new(false),
                    hurry: AtomicBool::new(false),
                    epoch,
                    pool: Arc::new(Pool::new(setup.pool_count, setup.pool_size, None)?),
                    chunks: chunks.clone(),
                    datagrams: Arc::new(Pool::new(
                        setup.datagram_pool_count,
                        setup.datagram_pool_size,
                        None,
                    )?),
                })
            })
            .collect()
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn datagrams(&self) -> &Arc<Pool> {
        &self.datagrams
    }

    pub(crate) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// The pool from which an operation takes its buffer.
    fn pool_of(&self, op: &Operation) -> &Arc<Pool> {
        if op.request.is_datagram() {
            return &self.datagrams;
        }
        self.chunks.pool_of(op).unwrap_or(&self.pool)
    }

    fn poller(&self) -> &Poller {
        &self.registry.pollers[usize::from(self.number)]
    }

    fn clock(&self) -> &Clock {
        &self.registry.clocks[usize::from(self.number)]
    }

    // ---- Descriptors --------------------------------------------------------------------

    /// Takes a handle's descriptor in. Unless its calls block, it is made non-blocking: between
    /// the edge and the call, somebody else may have been faster, or a connection be gone.
    pub(crate) fn register(
        &self,
        descriptor: &OwnedDescriptor,
        kind: Kind,
    ) -> io::Result<Registration> {
        if matches!(kind, Kind::File | Kind::Directory) {
            return Ok(Registration { slot: None, restore: None });
        }
        let fd = super::raw(descriptor);
        let slot = self.registry.claim(fd, !super::is_tcp(descriptor))?;
        let changed = super::set_nonblocking(fd, true);
        let restore = (changed && kind == Kind::Pipe).then_some(fd);
        Ok(Registration { slot: Some(slot), restore })
    }

    /// Lets a descriptor go that is about to be closed, and of which nothing is in flight.
    pub(crate) fn unregister(&self, registration: &Registration) {
        if let Some(claim) = registration.slot {
            self.registry.release(claim);
        }
        if let Some(fd) = registration.restore {
            super::set_nonblocking(fd, false);
        }
    }

    /// The slot in which an operation waits: that of its handle, or of the connection it has
    /// accepted, which has one of its own. None: its calls block.
    fn claim(op: &Operation) -> Option<Claim> {
        if op.direction == Direction::Unordered {
            return None;
        }
        if let Request::Transmit { transmission } = op.request
            // SAFETY: the transmission lives as long as the operation, which is in flight, with
            // its handle's lock held.
            && unsafe { (*transmission).next() } == Next::Read
        {
            return None;
        }
        // SAFETY: an operation in flight has a handle, which outlives it (the contract of start).
        op.system.epoll.slot.or_else(|| unsafe { (*op.handle).registration().epoll().slot })
    }

    // ---- Taking -------------------------------------------------------------------------

    pub(crate) fn ready(&self) -> u32 {
        self.inbox.ready()
    }

    pub(crate) fn requests_ready(&self) -> usize {
        self.inbox.requests()
    }

    pub(crate) fn pop(&self) -> Option<Popped> {
        self.inbox.take()
    }

    pub(crate) fn pop_attend(&self) -> Option<u16> {
        match self.inbox.take_if(|popped| matches!(popped, Popped::Attend(_)))? {
            Popped::Attend(lane) => u16::try_from(lane).ok(),
            _ => None,
        }
    }

    pub(crate) fn entries(&self) -> u64 {
        let around = self.around.get().map_or(0, Poller::calls);
        let files = self.inbox.calls.load(Ordering::Relaxed);
        self.poller().calls() + around + self.inbox.waker.calls() + files
    }

    // ---- Looking and waiting ------------------------------------------------------------

    /// Whether something was started since the last look: the next look may bring it.
    pub(crate) fn unsubmitted(&self) -> u32 {
        u32::from(self.started.load(Ordering::Relaxed))
    }

    /// Looks what has become ready, without waiting.
    pub(crate) fn submit(&self) -> io::Result<()> {
        self.look(Some(Duration::ZERO)).map(drop)
    }

    /// Puts into the queue what has become ready and what is due. Returns whether anything has
    /// come, a wake-up included.
    fn look(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.started.store(false, Ordering::Relaxed);
        let mut came = false;
        let mut filling = None;
        self.poller().wait(timeout, |token, events| {
            came = true;
            if token == OWN {
                self.inbox.waker.report();
            } else {
                let filling = filling.get_or_insert_with(|| self.inbox.fill());
                self.registry.ready(self.number, token, events, |operation| {
                    filling.put_try(operation);
                });
            }
        })?;
        drop(filling);
        Ok(self.go_off() || came)
    }

    pub(crate) fn wait(&self, timeout: Option<Duration>, attending: bool) -> io::Result<()> {
        self.hurry.store(false, Ordering::SeqCst);
        if self.ready() > 0 {
            return self.submit();
        }
        let timeout = match (timeout, self.until_due()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let came =
            if attending { self.look_around(timeout)? } else { self.look(timeout)? };
        if came || self.ready() > 0 { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// Waits for other lanes too.
    fn look_around(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let Some(around) = self.around.get() else { return self.look(timeout) };
        around.arm(self.poller().fd(), ONCE, OWN)?;
        let mut came = false;
        around.wait(timeout, |token, _| {
            came = true;
            if token != OWN {
                self.inbox.put(Popped::Attend(usize::try_from(token).unwrap_or(0)));
            }
        })?;
        Ok(self.look(Some(Duration::ZERO))? || came)
    }

    /// See [`super::Lane::attend`].
    pub(crate) fn attend(&self, number: u16, other: &Self, asked: bool) -> io::Result<()> {
        // Nobody else clears it there.
        other.inbox.waker.clear();
        if other.until_due() == Some(Duration::ZERO) {
            other.go_off();
        }
        if other.ready() > 0 {
            self.inbox.put(Popped::Attend(usize::from(number)));
            return Ok(());
        }
        if asked {
            return Ok(());
        }
        let around = match self.around.get() {
            Some(around) => around,
            None => {
                let around = Poller::new()?;
                self.around.get_or_init(|| around)
            }
        };
        around.arm(other.poller().fd(), ONCE, u64::from(number))
    }

    pub(crate) fn wake(&self) -> io::Result<()> {
        self.inbox.waker.raise()
    }

    pub(crate) fn clear_wakes(&self) {
        self.inbox.waker.clear();
    }

    /// Whether who waits in this lane must be woken because of what another thread has put in.
    pub(crate) fn must_rouse(&self) -> bool {
        self.ready() > 0 || self.hurry.load(Ordering::SeqCst)
    }

    // ---- Timers -------------------------------------------------------------------------

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn after(&self, delay: Duration) -> u64 {
        self.now().saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX - 1))
    }

    /// How long it is until a timer of this lane goes off.
    pub(crate) fn until_due(&self) -> Option<Duration> {
        let due = self.clock().next();
        (due < u64::MAX).then(|| Duration::from_nanos(due.saturating_sub(self.now())))
    }

    /// Puts into the queue what is due. Returns whether anything was.
    fn go_off(&self) -> bool {
        if self.clock().next() == u64::MAX {
            return false;
        }
        let mut any = false;
        self.clock().go_off(self.now(), |operation, of| {
            any = true;
            self.inbox.put(Popped::Event(Event { operation, of, result: 0, flags: 0 }));
        });
        any
    }

    fn set_timer(&self, op: &mut Operation, due: u64, of: Source) {
        let (timer, next) = self.clock().set(due, &raw mut *op, of);
        op.system.epoll.timer = Some(timer);
        op.system.epoll.clock = self.number;
        if next {
            self.hurry.store(true, Ordering::SeqCst);
        }
    }

    /// Stops an operation's timer. False: it has none, or its event is on its way.
    fn stop_timer(&self, op: &mut Operation) -> bool {
        let clock = &self.registry.clocks[usize::from(op.system.epoll.clock)];
        op.system.epoll.timer.take().is_some_and(|timer| clock.stop(timer))
    }

    // ---- Operations ---------------------------------------------------------------------

    /// Begins the next step of an operation. Its lane is afterwards the one to which its events
    /// come: this one, unless its descriptor is tied to another.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, its handle's lock is held, and its pointers are good.
    pub(crate) unsafe fn push(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise: nobody else touches the header under the handle's lock.
        let op = unsafe { &mut *operation };
        self.started.store(true, Ordering::Relaxed);
        op.outstanding = 1;
        op.flags.requested = true;
        if op.flags.pausing {
            let pause = Duration::from_nanos(op.system.pause[1].unsigned_abs());
            self.set_timer(op, self.after(pause), Source::Request);
            return Ok(());
        }
        if op.flags.timed && op.clock_runs() && op.system.epoll.due == 0 {
            op.system.epoll.due = self.after(op.deadline).max(1);
        }
        if op.accepted != NO_DESCRIPTOR && op.system.epoll.slot.is_none() {
            op.system.epoll.slot = Some(self.registry.claim(op.accepted, true)?);
        }
        let attempt = match (Self::claim(op), op.direction) {
            (Some(claim), Direction::In) => self.park(op, claim, None),
            // SAFETY: the caller's promise.
            _ => unsafe { self.call(op) },
        };
        match attempt {
            Ok(Attempt::Waits) => {}
            Ok(Attempt::Done(result)) => {
                op.result = result;
                self.inbox.put_latest(operation);
            }
            Ok(Attempt::Ready) => self.inbox.put_ready(operation),
            Ok(Attempt::Starves) => self.inbox.put_try(operation),
            Err(error) => {
                self.forget_slot(op);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes the call of an operation, or lets it wait if that would block.
    ///
    /// # Safety
    ///
    /// As for `push`.
    unsafe fn call(&self, op: &mut Operation) -> io::Result<Attempt> {
        let direction = op.direction;
        op.lane = self.number;
        loop {
            if op.buffer == NO_BUFFER && op.request.is_pooled() {
                match self.pool_of(op).take() {
                    Some(id) => op.buffer = u32::from(id),
                    None => return Ok(Attempt::Starves),
                }
            }
            if let Request::Transmit { transmission } = op.request {
                // SAFETY: as for the claim.
                let transmission = unsafe { &mut *transmission };
                if !self.chunks.prepare(op, transmission) {
                    return Ok(Attempt::Starves);
                }
            }
            let call = Call::of(op, self.pool_of(op));
            let Some(claim) = Self::claim(op) else {
                self.start_clock(op);
                // SAFETY: the caller's promise.
                unsafe { self.blocking.make(call, &raw mut *op, self.inbox.clone()) };
                return Ok(Attempt::Waits);
            };
            // SAFETY: as for the claim.
            unsafe { &*op.handle }.count_call();
            let seen = self.registry.edges(claim, direction);
            // SAFETY: the caller's promise.
            match unsafe { call.make() } {
                Called::Over { result, drained } => {
                    if drained {
                        self.registry.spent(claim, seen);
                    }
                    return Ok(Attempt::Done(result));
                }
                Called::WouldBlock => {}
            }
            if matches!(op.request, Request::Connect { .. }) {
                // Called again when it is over, it says how.
                op.step = 1;
            }
            match self.blocked(op, claim, seen)? {
                Attempt::Ready => {}
                attempt => return Ok(attempt),
            }
        }
    }

    /// Lets an operation wait whose call would have blocked, unless more edges have come than it
    /// knew of.
    fn blocked(&self, op: &mut Operation, claim: Claim, seen: u32) -> io::Result<Attempt> {
        self.give_back(op);
        if op.flags.expired {
            // The deadline has passed meanwhile, and this was its last chance.
            return Ok(Attempt::Done(-CANCELLED));
        }
        self.park(op, claim, Some(seen))
    }

    /// The most frequent call by a shorter way: a receive from a socket into a buffer of the pool.
    /// `Ready`: it has to go the longer one.
    ///
    /// # Safety
    ///
    /// As for `push`.
    #[inline]
    unsafe fn receive(&self, op: &mut Operation) -> io::Result<Attempt> {
        // SAFETY: an operation in flight has a handle, which outlives it (the contract of start).
        let handle = unsafe { &*op.handle };
        let Some(claim) = handle.registration().epoll().slot else { return Ok(Attempt::Ready) };
        if handle.kind() != Kind::Socket || op.buffer != NO_BUFFER {
            return Ok(Attempt::Ready);
        }
        let Some(id) = self.pool.take() else { return Ok(Attempt::Starves) };
        let room = self.pool.size();
        handle.count_call();
        let seen = self.registry.edges(claim, Direction::In);
        // SAFETY: the buffer is ours from `take` on, and has so much room.
        let received = unsafe { receive(handle.fd(), self.pool.address(id), room) };
        op.lane = self.number;
        op.buffer = u32::from(id);
        let Ok(bytes) = usize::try_from(received) else {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            return match error {
                libc::EAGAIN => self.blocked(op, claim, seen),
                _ => Ok(Attempt::Done(-error)),
            };
        };
        if 0 < bytes && bytes < room {
            self.registry.spent(claim, seen);
        }
        Ok(Attempt::Done(i32::try_from(bytes).unwrap_or(i32::MAX)))
    }

    /// Lets an operation wait for its descriptor, with its clock running.
    fn park(&self, op: &mut Operation, claim: Claim, seen: Option<u32>) -> io::Result<Attempt> {
        // As soon as it stands there its event may come, but whoever takes that waits for the lock
        // of the handle.
        let direction = op.direction;
        let operation = &raw mut *op;
        match self.registry.park(claim, direction, operation, seen, self.number)? {
            Parked::Ready => Ok(Attempt::Ready),
            Parked::In(lane) => {
                op.lane = lane;
                self.start_clock(op);
                Ok(Attempt::Waits)
            }
        }
    }

    /// From now on somebody else decides how long it takes.
    fn start_clock(&self, op: &mut Operation) {
        if op.flags.timed && op.system.epoll.due != 0 && op.system.epoll.timer.is_none() {
            op.outstanding += 1;
            self.set_timer(op, op.system.epoll.due, Source::Deadline);
        }
    }

    fn give_back(&self, op: &mut Operation) {
        if op.buffer != NO_BUFFER {
            self.pool_of(op).give_back(u16::try_from(op.buffer).unwrap_or(0));
            op.buffer = NO_BUFFER;
        }
    }

    /// Ends the slot of a connection that has been accepted.
    fn forget_slot(&self, op: &mut Operation) {
        if let Some(claim) = op.system.epoll.slot.take() {
            self.registry.release(claim);
        }
    }

    /// Takes an operation out that waits. Its event comes all the same, and says so.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, submitted to this lane, and its handle's lock is held.
    pub(crate) unsafe fn push_cancel(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise: nobody else touches the header under the handle's lock.
        let op = unsafe { &mut *operation };
        if op.flags.pausing {
            if self.stop_timer(op) {
                self.inbox.put_result(operation, 0);
            }
        } else if op.flags.requested && self.withdraw(op) {
            self.inbox.put_result(operation, -CANCELLED);
        }
        Ok(())
    }

    /// Takes an operation from where it waits. False: its event is on its way, or a thread makes
    /// its call, which cannot be called back.
    fn withdraw(&self, op: &mut Operation) -> bool {
        match Self::claim(op) {
            Some(claim) => self.registry.unpark(claim, op),
            None => self.blocking.withdraw(&raw const *op),
        }
    }

    /// Works out what an event means for its operation; where it only says that the call may
    /// succeed now, makes it.
    ///
    /// # Safety
    ///
    /// The event came from this lane and has not been digested before, and the lock of its
    /// operation's handle is held.
    pub(crate) unsafe fn digest(&self, event: Event) -> Step {
        // SAFETY: an operation with an event to come is in flight, so its header is alive, and
        // nobody else touches it under the lock.
        let op = unsafe { &mut *event.operation };
        op.outstanding -= 1;
        match event.of {
            Source::Deadline => {
                op.flags.expired = true;
                op.system.epoll.timer = None;
                if op.flags.requested && self.withdraw(op) {
                    op.outstanding -= 1;
                    op.flags.requested = false;
                    op.result = -CANCELLED;
                }
            }
            Source::Request if op.flags.pausing => {
                op.system.epoll.timer = None;
                op.flags.requested = false;
            }
            Source::Request | Source::Cancel => {
                if event.flags & KEPT == 0 {
                    op.result = event.result;
                }
                if event.flags & TRY != 0 {
                    // SAFETY: the caller's promise.
                    match unsafe { self.try_again(op) } {
                        Attempt::Done(result) => op.result = result,
                        Attempt::Starves => return self.starves(op),
                        Attempt::Ready | Attempt::Waits => {
                            op.outstanding += 1;
                            return Step::Pending;
                        }
                    }
                }
                op.flags.requested = false;
                if self.stop_timer(op) {
                    op.outstanding -= 1;
                }
            }
        }
        if op.outstanding > 0 {
            return Step::Pending;
        }
        self.forget_slot(op);
        // SAFETY: in flight, nothing outstanding, and the pointers are good (the contract of
        // start).
        let step = unsafe { progress::evaluate(op) };
        if self.chunks.lets_go(op, step).unwrap_or(op.bytes == 0) {
            self.give_back(op);
        }
        step
    }

    /// # Safety
    ///
    /// As for `digest`.
    unsafe fn try_again(&self, op: &mut Operation) -> Attempt {
        if op.flags.cancel {
            // What is cancelled takes nothing.
            return Attempt::Done(-CANCELLED);
        }
        let received = match op.request {
            // SAFETY: the caller's promise.
            Request::ReceivePooled { .. } => unsafe { self.receive(op) },
            _ => Ok(Attempt::Ready),
        };
        let attempt = match received {
            // SAFETY: the caller's promise.
            Ok(Attempt::Ready) => unsafe { self.call(op) },
            attempt => attempt,
        };
        match attempt {
            Ok(attempt) => attempt,
            Err(error) => Attempt::Done(-error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// There is no buffer for a receive that could go on. While it waits for one, nobody watches
    /// its clock.
    fn starves(&self, op: &mut Operation) -> Step {
        op.flags.requested = false;
        if self.stop_timer(op) {
            op.outstanding -= 1;
        }
        if op.outstanding > 0 {
            // Its deadline has just passed.
            op.result = -CANCELLED;
            return Step::Pending;
        }
        Step::Starve
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// It is over: what the system said.
    Done(i32),
    /// It would block, and waits; its event will come.
    Waits,
    /// It can be made.
    Ready,
    /// It needs a pooled buffer, and there is none.
    Starves,
}
