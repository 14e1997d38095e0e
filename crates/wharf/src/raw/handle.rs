//! An associated handle: a descriptor, its key, and the two queues that keep its operations in
//! order.
//!
//! The kernel gets one receive and one send of a socket at a time. Four receives that io_uring
//! holds for one socket complete in reverse, and the bytes of two sends interleave once the
//! socket's buffer is full; with one each, order is the order of starting. What says itself where
//! in a file it works goes to the kernel at once.

use std::{mem::ManuallyDrop, ptr, sync::Arc};

use super::{
    datagram::Datagrams,
    operation::{Direction, NO_BUFFER, Operation, Request, State},
    port::{Entry, Shared},
};
use crate::{
    error::{Error, ErrorKind},
    sync::{SpinGuard, SpinLock},
    sys::{
        self, Identity, Kind, NO_DESCRIPTOR, OwnedDescriptor, RawDescriptor, Registration, Step,
        Tried,
    },
};

/// Operations of a handle, linked through their headers.
#[repr(C)]
#[derive(Debug)]
struct List {
    length: u32,
    /// How many packets of this direction stand in the port's queue, and must be taken before the
    /// next one's.
    early: u32,
    first: *mut Operation,
    last: *mut Operation,
}

/// Operations of one direction: one in the kernel, the others behind it. Where there is no order,
/// all of them are in the list.
#[repr(C)]
#[derive(Debug)]
struct Queue {
    current: *mut Operation,
    list: List,
}

impl Queue {
    const fn new() -> Self {
        Self { current: ptr::null_mut(), list: List::new() }
    }

    fn busy(&self) -> bool {
        !self.current.is_null()
    }
}

impl List {
    const fn new() -> Self {
        Self { first: ptr::null_mut(), last: ptr::null_mut(), length: 0, early: 0 }
    }

    /// # Safety
    ///
    /// `operation` is alive and in no list.
    unsafe fn append(&mut self, operation: *mut Operation) {
        // SAFETY: the caller's promise; the last one is alive because it is in this queue.
        unsafe {
            (*operation).next = ptr::null_mut();
            (*operation).previous = self.last;
            if self.last.is_null() {
                self.first = operation;
            } else {
                (*self.last).next = operation;
            }
        }
        self.last = operation;
        self.length += 1;
    }

    fn take_first(&mut self) -> Option<*mut Operation> {
        let operation = self.first;
        if operation.is_null() {
            return None;
        }
        // SAFETY: it is in this queue.
        unsafe { self.unlink(operation) };
        Some(operation)
    }

    /// # Safety
    ///
    /// `operation` is in this queue.
    unsafe fn unlink(&mut self, operation: *mut Operation) {
        // SAFETY: the caller's promise; what is in this queue is alive, its neighbours as well.
        unsafe {
            let (previous, next) = ((*operation).previous, (*operation).next);
            if previous.is_null() {
                self.first = next;
            } else {
                (*previous).next = next;
            }
            if next.is_null() {
                self.last = previous;
            } else {
                (*next).previous = previous;
            }
            ((*operation).previous, (*operation).next) = (ptr::null_mut(), ptr::null_mut());
        }
        self.length -= 1;
    }

    fn remove(&mut self, operation: *mut Operation) -> bool {
        let found = self.contains(operation);
        if found {
            // SAFETY: it is in this queue.
            unsafe { self.unlink(operation) };
        }
        found
    }

    fn contains(&self, operation: *mut Operation) -> bool {
        let mut at = self.first;
        while !at.is_null() && at != operation {
            // SAFETY: what is in this queue is alive.
            at = unsafe { (*at).next };
        }
        !at.is_null()
    }
}

/// What of a handle is guarded by its lock: what every operation needs, then the rest. An operation
/// is in at most one of the lists.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Queues {
    lane: u16,
    serial: bool,
    /// A packet of this serial handle is out.
    out: bool,
    closing: bool,
    shut: bool,
    /// The last receive left nothing behind in the socket.
    emptied: bool,
    input: Queue,
    output: Queue,
    /// Accepts that have their connection and wait for its first data, and what has no order.
    floating: Queue,
    errors: Queue,
    /// Finished operations of a serial handle whose packets wait for the one that is out.
    deferred: List,
}

/// A descriptor that belongs to a port, under a key.
///
/// A handle must stay where it is, alive, while operations on it are in flight; dropping it
/// closes the descriptor.
#[repr(C)]
#[derive(Debug)]
pub struct Handle {
    // In the order in which they lie: first what every operation needs.
    pub(super) port: Arc<Shared>,
    key: usize,
    /// A branch's is the descriptor of the whole handle.
    pub(crate) fd: ManuallyDrop<OwnedDescriptor>,
    /// What the descriptor leads to.
    kind: Kind,
    is_branch: bool,
    pub(super) datagrams: Datagrams,
    registration: Registration,
    state: SpinLock<Queues>,
    identity: Identity,
}

// SAFETY: the operations in the queues are reached only under the lock, and the contract of
// `start` gives them to the library until their last completion.
unsafe impl Send for Handle {}
// SAFETY: as for Send.
unsafe impl Sync for Handle {}

impl Handle {
    pub(crate) fn new(
        fd: OwnedDescriptor,
        identity: Identity,
        registration: Registration,
        key: usize,
        port: Arc<Shared>,
    ) -> Self {
        let lane = port.some_lane();
        Self::assemble(fd, identity, registration, key, port, lane)
    }

    /// A part of a handle with a lock and a list of its own, for the operations without an order
    /// that are started in one lane.
    ///
    /// # Safety
    ///
    /// It is dropped before this handle, and no operation with an order is started on it.
    pub(crate) unsafe fn branch(&self, lane: u16) -> Self {
        // SAFETY: a copy of the descriptor that is used as long as the original is open (the
        // caller's promise), and never dropped.
        let fd = unsafe { ptr::read(&raw const *self.fd) };
        let registration = self.registration.of_branch();
        let (port, identity) = (self.port.clone(), self.identity);
        let mut branch = Self::assemble(fd, identity, registration, self.key, port, lane);
        branch.is_branch = true;
        branch
    }

    fn assemble(
        fd: OwnedDescriptor,
        identity: Identity,
        registration: Registration,
        key: usize,
        port: Arc<Shared>,
        lane: u16,
    ) -> Self {
        let state = Queues {
            lane,
            serial: false,
            out: false,
            closing: false,
            shut: false,
            emptied: false,
            input: Queue::new(),
            output: Queue::new(),
            errors: Queue::new(),
            deferred: List::new(),
            floating: Queue::new(),
        };
        let state = SpinLock::new(state);
        Self {
            fd: ManuallyDrop::new(fd),
            kind: identity.kind(),
            is_branch: false,
            identity,
            registration,
            key,
            port,
            state,
            datagrams: Datagrams::default(),
        }
    }

    /// What the descriptor leads to.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn fd(&self) -> RawDescriptor {
        sys::raw(&self.fd)
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// A system call is made for one of its operations, by us.
    #[inline]
    pub(crate) fn count_call(&self) {
        self.port.count_call();
    }

    /// The key it was associated under.
    pub fn key(&self) -> usize {
        self.key
    }

    /// From now on only one packet of this handle is out at a time: the next one is handed out
    /// after [`Self::release`].
    pub fn set_serial(&self, serial: bool) {
        let mut state = self.state.lock();
        state.serial = serial;
        if !serial {
            // Nobody else will let those out that wait for their turn.
            while let Some(next) = state.deferred.take_first() {
                self.port.enqueue(Entry::Ready(next));
            }
        }
    }

    /// Starts an operation. From `Ok` on it is in flight until its last completion has been
    /// handed out; refused, it is still the caller's.
    ///
    /// # Errors
    ///
    /// `Closed` if the handle or its port is closed, `QueueFull` if as many operations wait in
    /// its direction as the port allows, `Busy` if the operation is in flight already, or what
    /// the kernel says if it cannot take the request.
    ///
    /// # Safety
    ///
    /// Until the operation's last completion has been handed out: `operation` stays where it is,
    /// alive, and nobody else touches it; the pointers in its request stay valid, and what they
    /// lead to is left alone (read where the request reads, untouched where it writes); and this
    /// handle stays where it is, alive. An operation without a packet counts as in flight until
    /// [`Operation::is_pending`] says otherwise.
    #[doc(alias = "WSARecv")]
    #[doc(alias = "WSASend")]
    #[inline(always)]
    pub unsafe fn start(&self, operation: *mut Operation) -> Result<(), Error> {
        let state = self.open()?;
        // SAFETY: the caller's promise; and nothing of it has been done.
        unsafe { self.begin(state, operation, 0) }
    }

    /// Completes a receive into a buffer of the caller's, or a send, at once if it can be done
    /// without waiting: it then has no packet, and is its owner's again. Otherwise, or if others
    /// of its direction are in flight, or for any other request, starts it.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`]; and if it fails at once: there is no packet then either.
    ///
    /// # Safety
    ///
    /// As for [`Self::start`], if it is pending.
    #[doc(alias = "FILE_SKIP_COMPLETION_PORT_ON_SUCCESS")]
    pub unsafe fn start_or_complete(&self, operation: *mut Operation) -> Result<Started, Error> {
        // SAFETY: the caller gives us the operation.
        let op = unsafe { &*operation };
        if op.state() != State::Idle {
            return Err(Error::of(ErrorKind::Busy, "start"));
        }
        if op.second.is_some() {
            // SAFETY: the caller's promise.
            unsafe { self.start(operation) }?;
            return Ok(Started::Pending);
        }
        // SAFETY: the caller's promise.
        match unsafe { self.attempt(&op.request) }? {
            Attempted::Over(bytes) => Ok(Started::Completed(bytes)),
            Attempted::Left(state, done) => {
                // SAFETY: the caller's promise; and so much of it has been done.
                unsafe { self.begin(state, operation, done) }?;
                Ok(Started::Pending)
            }
        }
    }

    /// The queues, to put something into them.
    #[inline]
    fn open(&self) -> Result<SpinGuard<'_, Queues>, Error> {
        self.port.check_process()?;
        let state = self.state.lock();
        if state.closing || self.port.closed() {
            return Err(Error::of(ErrorKind::Closed, "start"));
        }
        Ok(state)
    }

    /// Does what a request asks for, if that can be done without waiting, and before its operation
    /// exists.
    ///
    /// # Safety
    ///
    /// The request's pointers are good.
    #[inline]
    pub(crate) unsafe fn attempt(&self, request: &Request) -> Result<Attempted<'_>, Error> {
        let mut state = self.open()?;
        let direction = request.direction();
        if state.queue(direction).busy() || state.length(direction) >= self.port.queue_limit() {
            return Ok(Attempted::Left(state, 0));
        }
        // SAFETY: the caller's promise.
        match unsafe { sys::attempt(self, request) } {
            Tried::Over(Ok(bytes)) => Ok(Attempted::Over(bytes)),
            Tried::Over(Err(error)) => Err(Error::from_io(&error, "start")),
            Tried::Left(done) => Ok(Attempted::Left(state, done)),
        }
    }

    /// Starts an operation of whose request so many bytes have been done, with what `open` or
    /// `attempt` has given.
    ///
    /// # Safety
    ///
    /// As for [`Self::start`].
    #[inline]
    pub(crate) unsafe fn begin(
        &self,
        mut state: SpinGuard<'_, Queues>,
        operation: *mut Operation,
        done: usize,
    ) -> Result<(), Error> {
        // SAFETY: the caller gives us the operation.
        let op = unsafe { &mut *operation };
        if op.state() != State::Idle {
            return Err(Error::of(ErrorKind::Busy, "start"));
        }
        let direction = op.request.direction();
        if state.length(direction) >= self.port.queue_limit() {
            return Err(Error::of(ErrorKind::QueueFull, "start"));
        }
        if op.second.is_some() {
            op.check_order()?;
        }
        op.begin(self, direction);
        op.bytes = done;
        let mut foreign = None;
        let queue = state.queue(direction);
        if queue.busy() {
            op.set_state(State::Queued);
            // SAFETY: it is alive (the caller's promise) and was idle, so it is in no list.
            unsafe { queue.list.append(operation) };
        } else {
            match direction {
                Direction::Unordered => {
                    op.flags.floating = true;
                    // SAFETY: as above.
                    unsafe { queue.list.append(operation) }
                }
                Direction::Out => queue.current = operation,
                Direction::Error => {
                    self.hear_errors()?;
                    queue.current = operation;
                }
                Direction::In => {
                    queue.current = operation;
                    // Something may have come since the last receive.
                    state.emptied = false;
                }
            }
            // SAFETY: it is in flight from here on, and we hold the lock. What is sent goes to the
            // kernel with whatever else this thread starts.
            if op.request.is_datagram()
                && direction != Direction::Out
                // SAFETY: as above.
                && unsafe { self.try_at_once(&mut state, operation) }
            {
                self.port.count_started();
                return Ok(());
            }
            if op.second.is_some()
                && self.registration.tries_first()
                // SAFETY: as above.
                && unsafe { self.send_first(&mut state, operation) }
            {
                self.port.count_started();
                return Ok(());
            }
            // SAFETY: as above.
            match unsafe { self.submit(&mut state, operation) } {
                Ok(lane) => foreign = lane,
                Err(error) => {
                    op.set_state(State::Idle);
                    let queue = state.queue(direction);
                    if direction == Direction::Unordered {
                        // SAFETY: it was appended above.
                        unsafe { queue.list.unlink(operation) };
                    } else {
                        queue.current = ptr::null_mut();
                    }
                    return Err(Error::from_io(&error, "submit"));
                }
            }
        }
        self.port.count_started();
        drop(state);
        self.port.submit_for(foreign);
        Ok(())
    }

    /// Pushes an operation to a lane. Returns the lane if it is not this thread's own, and has to
    /// be submitted once the lock is released.
    ///
    /// # Safety
    ///
    /// The operation is in flight on this handle, whose lock is held, with good pointers.
    #[inline(always)]
    unsafe fn submit(
        &self,
        state: &mut Queues,
        operation: *mut Operation,
    ) -> std::io::Result<Option<u16>> {
        // SAFETY: the caller's promise.
        let op = unsafe { &mut *operation };
        let own = self.port.own_lane();
        // A buffer that it has taken from a lane's pool keeps it in that lane.
        let lane = if op.buffer == NO_BUFFER { own.unwrap_or(state.lane) } else { op.lane };
        state.lane = lane;
        op.lane = lane;
        op.flags.emptied = state.emptied;
        op.set_state(State::Submitted);
        // SAFETY: the caller's promise.
        unsafe { self.port.lane(lane).push(operation)? };
        Ok(if own == Some(lane) { None } else { Some(lane) })
    }

    /// Tries to do an operation on a socket for datagrams without waiting. True: it is over, its
    /// packet stands in the port's queue, and the next one may be tried.
    ///
    /// # Safety
    ///
    /// The operation is the current one of its direction on this handle, whose lock is held, with
    /// good pointers and nothing outstanding.
    unsafe fn try_at_once(&self, state: &mut Queues, operation: *mut Operation) -> bool {
        /// The most parts of one send.
        const PARTS: usize = 4;
        // SAFETY: the caller's promise.
        let op = unsafe { &mut *operation };
        if !op.request.is_datagram() {
            return false;
        }
        let lane = self.port.own_lane().unwrap_or(state.lane);
        (state.lane, op.lane) = (lane, lane);
        for _ in 0..PARTS {
            if op.flags.pausing {
                return false;
            }
            // SAFETY: the caller's promise.
            match unsafe { self.port.lane(lane).attempt(op) } {
                Some(Step::Again) => {}
                Some(Step::Finish) => {
                    if !op.request.repeats() {
                        state.queue(op.direction).current = ptr::null_mut();
                    }
                    self.deliver(state, op);
                    return true;
                }
                _ => return false,
            }
        }
        false
    }

    /// Sends what an operation sends before it receives, if nothing has to wait for it. True: the
    /// operation has gone on.
    ///
    /// # Safety
    ///
    /// The operation is the current one of its direction on this handle, whose lock is held, with
    /// good pointers and nothing outstanding.
    #[inline(never)]
    unsafe fn send_first(&self, state: &mut Queues, operation: *mut Operation) -> bool {
        // SAFETY: the caller's promise.
        let op = unsafe { &mut *operation };
        // SAFETY: as above.
        match unsafe { sys::attempt(self, &op.request) } {
            Tried::Over(Ok(_)) => {
                // SAFETY: as above.
                unsafe { self.go_over(state, operation) };
                true
            }
            Tried::Over(Err(error)) => {
                op.status = -error.raw_os_error().unwrap_or(sys::FAILED);
                self.end(state, operation);
                true
            }
            Tried::Left(done) => {
                op.bytes = done;
                false
            }
        }
    }

    /// Lets an operation go on with its second request, in the other direction.
    ///
    /// # Safety
    ///
    /// The operation is in flight on this handle, whose lock is held, with good pointers and
    /// nothing outstanding.
    #[inline]
    pub(crate) unsafe fn go_over(&self, state: &mut Queues, operation: *mut Operation) {
        self.leave_queues(state, operation);
        // SAFETY: the caller's promise.
        let op = unsafe { &mut *operation };
        if let Some(second) = op.second.take() {
            op.direction = second.direction();
            op.request = second;
        }
        op.next_round();
        op.flags.expired = false;
        // SAFETY: what has been sent is not needed any more.
        unsafe { self.port.has_sent(operation) };
        if op.flags.cancel || state.closing {
            return self.cancel_queued(operation);
        }
        let direction = op.direction;
        let queue = state.queue(direction);
        if queue.busy() {
            op.set_state(State::Queued);
            // SAFETY: it is alive (the caller's promise), and has left its own queue.
            unsafe { queue.list.append(operation) };
            return;
        }
        queue.current = operation;
        // Something may have come since the last receive.
        state.emptied = false;
        // SAFETY: the caller's promise.
        unsafe { self.again(state, operation) };
    }

    /// Ends an operation with the status that it has.
    fn end(&self, state: &mut Queues, operation: *mut Operation) {
        // SAFETY: in flight, so alive, and the lock is held.
        unsafe { (*operation).set_state(State::Waiting) };
        self.leave_queues(state, operation);
        self.port.enqueue(Entry::Ready(operation));
    }

    /// Puts the packet of an operation that is over into the port's queue.
    fn deliver(&self, state: &mut Queues, op: &mut Operation) {
        state.queue(op.direction).list.early += 1;
        op.flags.early = true;
        op.set_state(State::Waiting);
        self.port.enqueue(Entry::Ready(op));
    }

    /// Lets the packet of an operation that is over wait its turn, if others of its direction stand
    /// in the port's queue that must be taken first.
    #[inline]
    pub(crate) fn queue_behind(&self, state: &mut Queues, op: &mut Operation) -> bool {
        let behind = state.queue(op.direction).list.early > 0;
        if behind {
            self.deliver(state, op);
        }
        behind
    }

    /// Asks for one operation to be cancelled, from any thread. True: it was in flight. Its
    /// packet comes all the same, and may say that it had already succeeded.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel(&self, operation: *const Operation) -> bool {
        self.cancel_if(operation, &|_| true)
    }

    /// The same, if the operation found in flight is the one that is meant: its memory may have
    /// been used again since.
    pub(crate) fn cancel_if(
        &self,
        operation: *const Operation,
        meant: &dyn Fn(*const Operation) -> bool,
    ) -> bool {
        if self.port.check_process().is_err() {
            return false;
        }
        let mut state = self.state.lock();
        if !state.holds(operation.cast_mut()) || !meant(operation) {
            return false;
        }
        let (found, foreign) = self.cancel_one(&mut state, operation.cast_mut());
        drop(state);
        self.port.submit_for(foreign);
        found
    }

    /// Asks for everything in flight on this handle to be cancelled. Returns how many operations
    /// that were.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel_all(&self) -> usize {
        if self.port.check_process().is_err() {
            return 0;
        }
        let mut count = 0;
        let mut lanes = Vec::new();
        let mut state = self.state.lock();
        // Those that wait go first, so that none of them starts when the current one ends.
        for direction in Queues::ORDERED {
            while let Some(operation) = state.queue(direction).list.take_first() {
                self.cancel_queued(operation);
                count += 1;
            }
        }
        let mut submitted = Vec::from(Queues::ORDERED.map(|it| state.queue(it).current));
        let mut at = state.floating.list.first;
        while !at.is_null() {
            submitted.push(at);
            // SAFETY: what is in this queue is alive.
            at = unsafe { (*at).next };
        }
        for operation in submitted.into_iter().filter(|operation| !operation.is_null()) {
            let (found, foreign) = self.cancel_one(&mut state, operation);
            count += usize::from(found);
            lanes.extend(foreign);
        }
        drop(state);
        lanes.sort_unstable();
        lanes.dedup();
        lanes.into_iter().for_each(|lane| self.port.submit_for(Some(lane)));
        count
    }

    fn cancel_queued(&self, operation: *mut Operation) {
        // SAFETY: it is in flight on this handle, so it is alive, and the lock is held.
        unsafe {
            (*operation).status = -sys::CANCELLED;
            (*operation).set_state(State::Waiting);
        }
        self.port.enqueue(Entry::Ready(operation));
    }

    fn cancel_one(&self, state: &mut Queues, operation: *mut Operation) -> (bool, Option<u16>) {
        if operation.is_null() {
            return (false, None);
        }
        if Queues::ORDERED.into_iter().any(|it| state.queue(it).list.remove(operation)) {
            self.cancel_queued(operation);
            return (true, None);
        }
        if !state.holds(operation) {
            return (false, None);
        }
        // SAFETY: it is in flight on this handle, so it is alive, and the lock is held.
        let op = unsafe { &mut *operation };
        op.flags.cancel = true;
        match op.state() {
            State::Submitted => {
                let own = self.port.own_lane();
                // SAFETY: in flight, submitted to that lane, and the lock is held.
                if let Err(error) = unsafe { self.port.lane(op.lane).push_cancel(operation) } {
                    log::warn!("a cancellation could not be queued: {error}");
                }
                (true, if own == Some(op.lane) { None } else { Some(op.lane) })
            }
            // It waits for a buffer: retried, it will find that it is cancelled.
            State::Waiting if self.port.lane(op.lane).pool_of(op).unstarve(operation) => {
                self.port.enqueue(Entry::Retry(operation));
                (true, None)
            }
            _ => (true, None),
        }
    }

    /// Refuses new operations and cancels those in flight. When the last has ended, both
    /// directions are shut down, so that the peer learns of it at once. The descriptor is closed
    /// when the handle is dropped.
    #[doc(alias = "closesocket")]
    pub fn close(&self) {
        if self.port.check_process().is_err() {
            return;
        }
        let mut state = self.state.lock();
        let first = !std::mem::replace(&mut state.closing, true);
        self.shut_if_done(&mut state);
        drop(state);
        if first {
            self.cancel_all();
        }
    }

    /// Whether [`Self::close`] has been called.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closing
    }

    /// close(2) sends no FIN while a receive is pending, and completes none either: so it is
    /// shutdown that ends a connection, once nothing of it is in the kernel.
    fn shut_if_done(&self, state: &mut Queues) {
        if !state.closing || state.shut {
            return;
        }
        let busy = Queues::ORDERED.into_iter().any(|it| state.queue(it).busy());
        if !busy && state.floating.list.length == 0 {
            state.shut = true;
            if self.kind() != Kind::Socket {
                return;
            }
            sys::end_connection(&self.fd);
        }
    }

    /// Takes an operation that is over out of its place, and lets the next one start.
    #[inline(always)]
    fn leave_queues(&self, state: &mut Queues, operation: *mut Operation) {
        // SAFETY: it is in flight on this handle, and the lock is held.
        let (direction, floating) = unsafe {
            let op = &mut *operation;
            (op.direction, std::mem::take(&mut op.flags.floating))
        };
        if floating {
            // SAFETY: it is among those.
            unsafe { state.floating.list.unlink(operation) };
            self.shut_if_done(state);
            return;
        }
        if state.queue(direction).current == operation {
            state.queue(direction).current = ptr::null_mut();
            if !state.queue(direction).list.first.is_null() {
                self.start_next(state, direction);
            }
        }
        if self.hears_errors() && !state.errors.busy() {
            self.stop_hearing();
        }
        self.shut_if_done(state);
    }

    fn start_next(&self, state: &mut Queues, direction: Direction) {
        /// How many operations are done at once before other handles have their turn.
        const BURST: usize = 32;
        for round in 0.. {
            if state.queue(direction).busy() {
                return;
            }
            let Some(next) = state.queue(direction).list.take_first() else { return };
            state.queue(direction).current = next;
            // SAFETY: it was queued on this handle, so it is in flight, and we hold the lock.
            if round < BURST && unsafe { self.try_at_once(state, next) } {
                continue;
            }
            // SAFETY: it was queued on this handle, so it is in flight, and we hold the lock. A
            // lane that is not ours is submitted by its holder or by the watch.
            match unsafe { self.submit(state, next) } {
                Ok(foreign) => self.port.submit_for(foreign),
                Err(error) => {
                    state.queue(direction).current = ptr::null_mut();
                    // SAFETY: as above.
                    unsafe {
                        (*next).status = -error.raw_os_error().unwrap_or(sys::FAILED);
                        (*next).set_state(State::Waiting);
                    }
                    self.port.enqueue(Entry::Ready(next));
                }
            }
        }
    }

    /// Decides what becomes of an operation whose submission is over: its packet goes out, alone
    /// or with more to follow, or waits for the packet that is out.
    ///
    /// # Safety
    ///
    /// The operation is in flight on this handle, no event of it is outstanding, and the lock is
    /// held (`state` is borrowed from it).
    #[inline(always)]
    pub(crate) unsafe fn conclude(&self, state: &mut Queues, operation: *mut Operation) -> Outcome {
        // SAFETY: the caller's promise.
        let op = unsafe { &mut *operation };
        if op.direction == Direction::In {
            state.emptied = op.flags.emptied && op.bytes > 0;
        }
        if std::mem::take(&mut op.flags.early) {
            state.queue(op.direction).list.early -= 1;
        }
        // A datagram may have no bytes.
        let came = op.bytes > 0 || op.accepted != NO_DESCRIPTOR || op.request.is_datagram();
        let again = op.request.repeats() && op.status == 0 && came;
        if !again {
            self.leave_queues(state, operation);
        }
        if state.serial && !op.flags.silent {
            if state.out && !op.flags.promised {
                op.set_state(State::Waiting);
                // SAFETY: alive, and in no list: it is `current` or has left the queues.
                unsafe { state.deferred.append(operation) };
                return Outcome::Deferred;
            }
            op.flags.promised = false;
            state.out = true;
        }
        if again { Outcome::More } else { Outcome::Last }
    }

    pub(crate) fn lock(&self) -> SpinGuard<'_, Queues> {
        self.state.lock()
    }

    /// Submits an operation once more, or ends it with the error that prevents it.
    ///
    /// # Safety
    ///
    /// The operation is in flight on this handle, no event of it is outstanding, and the lock is
    /// held.
    pub(crate) unsafe fn again(&self, state: &mut Queues, operation: *mut Operation) {
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        if op.flags.cancel || state.closing {
            // Asked for between two submissions, when there was nothing to cancel.
            op.status = -sys::CANCELLED;
            return self.end(state, operation);
        }
        let direction = op.direction;
        // SAFETY: the caller's promise; and what goes on is the current one of its direction.
        if unsafe { self.try_at_once(state, operation) } {
            self.start_next(state, direction);
            return;
        }
        // SAFETY: the caller's promise.
        match unsafe { self.submit(state, operation) } {
            Ok(foreign) => self.port.submit_for(foreign),
            Err(error) => {
                // SAFETY: in flight, and the lock is held.
                unsafe { (*operation).status = -error.raw_os_error().unwrap_or(sys::FAILED) };
                self.end(state, operation);
            }
        }
    }

    /// Moves an accept that has its connection out of the way of the next accept.
    pub(crate) fn float(&self, state: &mut Queues, operation: *mut Operation) {
        if state.input.current == operation {
            state.input.current = ptr::null_mut();
            // SAFETY: in flight, so alive; as `current` it was in no list.
            unsafe {
                (*operation).flags.floating = true;
                state.floating.list.append(operation);
            }
            self.start_next(state, Direction::In);
        }
    }

    /// How many operations wait or are in the kernel, in and out.
    pub(crate) fn pending(&self) -> [usize; 2] {
        let state = self.state.lock();
        [&state.input, &state.output]
            .map(|queue| queue.list.length as usize + usize::from(queue.busy()))
    }

    /// The packet of this serial handle that was out has been dealt with: the next may come.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.out = false;
        if let Some(next) = state.deferred.take_first() {
            state.out = true;
            // SAFETY: a deferred operation is in flight, and the lock is held.
            unsafe { (*next).flags.promised = true };
            self.port.enqueue(Entry::Ready(next));
        }
    }
}

/// What [`Handle::start_or_complete`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are all there are")]
pub enum Started {
    /// The operation is in flight, and a packet will come.
    Pending,
    /// It is over, with that many bytes, and no packet will come.
    Completed(usize),
}

/// What [`Handle::attempt`] has done.
#[derive(Debug)]
pub(crate) enum Attempted<'a> {
    /// All, with that many bytes.
    Over(usize),
    /// So many bytes of it. The rest takes an operation, and these queues.
    Left(SpinGuard<'a, Queues>, usize),
}

/// What becomes of an operation whose submission is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its last packet goes out.
    Last,
    /// A packet goes out, and the operation goes on.
    More,
    /// Its packet waits for the one that is out.
    Deferred,
}

impl Queues {
    /// What keeps an order.
    const ORDERED: [Direction; 3] = [Direction::In, Direction::Out, Direction::Error];

    /// Whether an operation is in flight on this handle, its packet not yet on its way.
    fn holds(&mut self, operation: *mut Operation) -> bool {
        let mut holds = |direction| {
            let queue = self.queue(direction);
            queue.current == operation || queue.list.contains(operation)
        };
        !operation.is_null()
            && (Self::ORDERED.into_iter().any(&mut holds) || holds(Direction::Unordered))
    }

    pub(crate) fn is_serial(&self) -> bool {
        self.serial
    }

    fn queue(&mut self, direction: Direction) -> &mut Queue {
        match direction {
            Direction::In => &mut self.input,
            Direction::Out => &mut self.output,
            Direction::Error => &mut self.errors,
            Direction::Unordered => &mut self.floating,
        }
    }

    /// How many operations count against the limit of a direction.
    fn length(&self, direction: Direction) -> u32 {
        match direction {
            Direction::In => self.input.list.length + self.floating.list.length,
            Direction::Out => self.output.list.length,
            Direction::Error => self.errors.list.length,
            Direction::Unordered => self.floating.list.length,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.port.unregister(&self.registration);
        if self.is_branch {
            return;
        }
        sys::release(self.identity);
        // SAFETY: dropped here only, and nobody uses it any more: branches are gone before.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}
