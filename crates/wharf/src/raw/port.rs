//! The port: lanes, the queue of posted packets, and the loop in which a worker waits.

use std::{
    cell::{Cell, RefCell},
    collections::{HashSet, VecDeque},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    Completion, Wait,
    handle::{Handle, Outcome},
    operation::{NO_BUFFER, Operation, Request, State},
    schedule::{Acquired, Parked, Schedule, Worker},
    watch::Watch,
};
use crate::{
    buf::Pooled,
    error::{Error, ErrorKind},
    stats::Stats,
    sync::lock,
    sys::{
        fork::ForkGuard,
        uring::{Event, Lane, Popped, Step, is_memory, ring::is_transient},
    },
};

/// How to build a port. See the fields' methods on [`crate::Builder`].
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) concurrency: usize,
    pub(crate) submissions: u32,
    pub(crate) pool_count: u16,
    pub(crate) pool_size: usize,
    pub(crate) queue_limit: u32,
    pub(crate) post_limit: usize,
    pub(crate) without_provided_buffers: bool,
    pub(crate) without_cooperative: bool,
    pub(crate) watch: bool,
}

/// Something for a worker to take that no kernel queue holds.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A packet somebody posted.
    Posted { bytes: usize, key: usize, operation: *mut Operation },
    /// An operation that is over.
    Ready(*mut Operation),
    /// An operation that waited for a pooled buffer.
    Retry(*mut Operation),
}

// SAFETY: the operations are in flight, and belong to whoever takes the entry; what a posted
// packet carries is opaque here.
unsafe impl Send for Entry {}

/// What is counted per lane, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters {
    stolen: AtomicU64,
    entries: AtomicU64,
    /// Moves whenever the holder takes a packet. Not exact: it has no lock.
    progress: AtomicU64,
    /// The watch found its holder busy for long: its completions may be taken by anyone.
    stuck: AtomicBool,
    /// A worker that waits elsewhere is woken when something can be taken here.
    attended: AtomicBool,
}

/// What is counted per thread, so that counting is a plain addition: only its thread writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Tally {
    packets: AtomicU64,
    started: AtomicU64,
    finished: AtomicU64,
}

impl Tally {
    const ALL: [fn(&Self) -> &AtomicU64; 3] =
        [|tally| &tally.packets, |tally| &tally.started, |tally| &tally.finished];
}

/// How many completions must wait in the lane of a worker that runs before an idle worker helps
/// itself. Moving a connection to another lane costs more than it gains if its own worker is
/// about to come for it.
const STEAL_FROM: u32 = 4;

/// How many packets a worker takes before it enters the kernel to submit what they have started
/// and to let the kernel complete what has come in, even if more are ready.
const BATCH: u32 = 128;
/// The same while handlers block: should the next one do, what waits would wait with it.
const ALERT_BATCH: u32 = 8;

/// A port, as its handles and its bound threads share it.
#[derive(Debug)]
pub(crate) struct Shared {
    lanes: Vec<Lane>,
    counters: Vec<Counters>,
    pub(super) schedule: Schedule,
    watch: Watch,
    queue: Mutex<VecDeque<Entry>>,
    queued: AtomicUsize,
    posted: AtomicU64,
    setup: Setup,
    next_lane: AtomicU16,
    guard: ForkGuard,
    /// The tallies of the threads that are bound to this port.
    tallies: Mutex<Vec<Arc<Tally>>>,
    /// What threads that are not bound have counted, and those that were.
    others: Tally,
}

// ---- Threads ------------------------------------------------------------------------------

/// A thread's tie to the port it last waited on.
struct Binding {
    port: Arc<Shared>,
    worker: Arc<Worker>,
    tally: Arc<Tally>,
}

impl Drop for Binding {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(Current::NONE));
        if let Some(lane) = self.port.schedule.lane_of(&self.worker)
            && !self.port.guard.in_child()
        {
            // What this thread had started but not submitted must not wait for the next holder.
            let _ = self.port.lanes[lane].submit();
        }
        self.port.give_up_lane(&self.worker);
        self.port.watch.forget(self.worker.thread);
        let mut tallies = lock(&self.port.tallies);
        for counter in Tally::ALL {
            let counted = counter(&self.tally).load(Ordering::Relaxed);
            counter(&self.port.others).fetch_add(counted, Ordering::Relaxed);
        }
        tallies.retain(|tally| !Arc::ptr_eq(tally, &self.tally));
    }
}

/// The same, for the fast path: null, or valid because the thread's binding keeps both alive.
#[derive(Clone, Copy)]
struct Current {
    port: *const Shared,
    worker: *const Arc<Worker>,
    tally: *const Tally,
}

impl Current {
    const NONE: Self =
        Self { port: std::ptr::null(), worker: std::ptr::null(), tally: std::ptr::null() };
}

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(Current::NONE) };
    static BINDING: RefCell<Option<Box<Binding>>> = const { RefCell::new(None) };
    /// Whether the last packet this thread took came from the posted queue.
    static TURN: Cell<bool> = const { Cell::new(false) };
    /// How many packets this thread has taken since it entered the kernel.
    static PACKETS: Cell<u32> = const { Cell::new(0) };
}

static NEXT_WORKER: AtomicU64 = AtomicU64::new(1);

fn thread_id() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    let id = unsafe { libc::syscall(libc::SYS_gettid) };
    i32::try_from(id).unwrap_or(0)
}

impl Shared {
    pub(crate) fn new(setup: Setup) -> Result<Arc<Self>, Error> {
        let concurrency = match setup.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            concurrency => concurrency.min(1024),
        };
        let (lanes, setup) = make_lanes(concurrency, setup)?;
        let guard = ForkGuard::new().map_err(|error| Error::from_io(&error, "port"))?;
        let port = Arc::new(Self {
            counters: lanes.iter().map(|_| Counters::default()).collect(),
            schedule: Schedule::new(lanes.len()),
            watch: Watch::new(lanes.len()),
            lanes,
            queue: Mutex::new(VecDeque::new()),
            queued: AtomicUsize::new(0),
            posted: AtomicU64::new(0),
            setup,
            next_lane: AtomicU16::new(0),
            guard,
            tallies: Mutex::new(Vec::new()),
            others: Tally::default(),
        });
        for lane in &port.lanes {
            let weak = Arc::downgrade(&port);
            lane.pool().set_resume(Box::new(move |operation| {
                if let Some(port) = weak.upgrade() {
                    port.enqueue(Entry::Retry(operation));
                }
            }));
        }
        Ok(port)
    }

    pub(crate) fn lane(&self, lane: u16) -> &Lane {
        &self.lanes[usize::from(lane)]
    }

    /// The lanes; none in a forked child, where their memory does not exist.
    pub(super) fn lanes(&self) -> &[Lane] {
        if self.guard.in_child() { &[] } else { &self.lanes }
    }

    pub(crate) fn closed(&self) -> bool {
        self.schedule.closed()
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

    /// A lane for a handle to begin in: each in turn.
    pub(crate) fn some_lane(&self) -> u16 {
        let lanes = u16::try_from(self.lanes.len()).unwrap_or(u16::MAX);
        self.next_lane.fetch_add(1, Ordering::Relaxed) % lanes
    }

    fn current(&self) -> Option<&Arc<Worker>> {
        let current = CURRENT.with(Cell::get);
        if !std::ptr::eq(current.port, self) {
            return None;
        }
        // SAFETY: a binding's box keeps the worker at this address for as long as CURRENT names
        // it, and only this thread changes its binding, never while `self` is borrowed here: the
        // places that rebind do not hold the reference.
        Some(unsafe { &*current.worker })
    }

    /// The lane this thread holds. A worker that finds it has lost its lane, because it was
    /// blocked, counts as running again from here on.
    pub(crate) fn own_lane(&self) -> Option<u16> {
        let worker = self.current()?;
        if let Some(lane) = self.schedule.lane_of(worker) {
            return u16::try_from(lane).ok();
        }
        worker.lane()?;
        self.schedule.come_back(worker);
        self.schedule.lane_of(worker).and_then(|lane| u16::try_from(lane).ok())
    }

    /// Submits a lane that is not this thread's own.
    pub(crate) fn submit_for(&self, lane: Option<u16>) {
        if let Some(lane) = lane {
            self.submit(usize::from(lane));
        }
    }

    fn enters(&self, lane: usize) {
        PACKETS.with(|packets| packets.set(0));
        self.counters[lane].entries.fetch_add(1, Ordering::Relaxed);
    }

    fn submit(&self, lane: usize) {
        self.enters(lane);
        if let Err(error) = self.lanes[lane].submit()
            && !is_transient(&error)
        {
            log::error!("io_uring_enter: {error}");
        }
    }

    pub(crate) fn count_started(&self) {
        self.count(|tally| &tally.started);
    }

    fn count(&self, counter: fn(&Tally) -> &AtomicU64) {
        let current = CURRENT.with(Cell::get);
        if !std::ptr::eq(current.port, self) {
            counter(&self.others).fetch_add(1, Ordering::Release);
            return;
        }
        // SAFETY: as for the worker in `current`.
        let counter = counter(unsafe { &*current.tally });
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Sums of counters over all threads, those that have gone included.
    fn sums<const N: usize>(&self, counters: [fn(&Tally) -> &AtomicU64; N]) -> [u64; N] {
        let tallies = lock(&self.tallies);
        let tallies = || tallies.iter().map(|tally| &**tally).chain([&self.others]);
        counters.map(|counter| tallies().map(|tally| counter(tally).load(Ordering::Acquire)).sum())
    }

    // ---- The queue that is ours ---------------------------------------------------------

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
        {
            let mut queue = lock(&self.queue);
            if queue.len() >= self.setup.post_limit {
                return Err(Error::of(ErrorKind::QueueFull, "post"));
            }
            if queue.try_reserve(1).is_err() {
                return Err(Error::of(ErrorKind::OutOfMemory, "post"));
            }
            queue.push_back(Entry::Posted { bytes, key, operation });
            self.queued.store(queue.len(), Ordering::SeqCst);
        }
        self.posted.fetch_add(1, Ordering::Relaxed);
        self.release_newest();
        Ok(())
    }

    /// Queues what the port itself has to say of an operation.
    pub(crate) fn enqueue(&self, entry: Entry) {
        {
            let mut queue = lock(&self.queue);
            queue.push_back(entry);
            self.queued.store(queue.len(), Ordering::SeqCst);
        }
        self.release_newest();
    }

    fn dequeue(&self) -> Option<Entry> {
        if self.queued.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut queue = lock(&self.queue);
        let entry = queue.pop_front();
        self.queued.store(queue.len(), Ordering::SeqCst);
        entry
    }

    /// Wakes the newest worker that waits, if any does.
    pub(super) fn release_newest(&self) {
        if let Some(lane) = self.schedule.release_newest() {
            self.wake(lane);
        }
    }

    /// Ends a worker's hold on its lane. If nobody takes it over, a worker that waits elsewhere
    /// must attend to what is still to come in it.
    fn give_up_lane(&self, worker: &Worker) {
        if let Some(lane) = self.schedule.lane_of(worker)
            && !self.guard.in_child()
        {
            // One that came too late to find its sleeper would wake whoever attends next.
            self.lanes[lane].clear_wakes();
        }
        if self.schedule.leave(worker) && !self.guard.in_child() {
            self.release_newest();
        }
    }

    /// Before a worker sleeps: sees to it that it is woken when something can be taken from a lane
    /// that nobody holds.
    fn attend(&self, own: usize) {
        if !self.schedule.any_free() {
            return;
        }
        for (number, other) in (0..).zip(&self.lanes) {
            let lane = usize::from(number);
            let attended = &self.counters[lane].attended;
            if lane == own || !self.schedule.is_free(lane) || attended.swap(true, Ordering::SeqCst)
            {
                continue;
            }
            if let Err(error) = self.lanes[own].attend(number, other) {
                attended.store(false, Ordering::SeqCst);
                log::error!("a lane that nobody holds could not be attended to: {error}");
            }
        }
    }

    /// Whether a worker was woken only because of a lane that has a holder again by now: it would
    /// snatch the next packet from a worker that began to wait later.
    fn was_attended_in_vain(&self, own: usize) -> bool {
        let mut in_vain = false;
        while let Some(other) = self.lanes[own].pop_attend() {
            let other = usize::from(other);
            self.counters[other].attended.store(false, Ordering::SeqCst);
            if self.schedule.is_free(other) {
                return false;
            }
            in_vain = true;
        }
        in_vain && self.lanes[own].ready() == 0
    }

    fn wake(&self, lane: usize) {
        self.counters[lane].entries.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.lanes[lane].wake() {
            log::error!("a waiting worker could not be woken: {error}");
        }
    }

    // ---- What the watch sees ------------------------------------------------------------

    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// How far a lane's holder has come: changes whenever it takes a packet or enters the kernel.
    pub(super) fn progress(&self, lane: usize) -> u64 {
        let counters = &self.counters[lane];
        counters.progress.load(Ordering::Relaxed) + counters.entries.load(Ordering::Relaxed)
    }

    /// Lets idle workers take a lane's completions, whose holder is busy with something else, and
    /// submits what it has left lying.
    pub(super) fn relieve(&self, lane: usize) {
        if self.lanes[lane].unsubmitted() > 0 {
            self.submit(lane);
        }
        if self.lanes[lane].ready() > 0 {
            self.counters[lane].stuck.store(true, Ordering::Relaxed);
            self.release_newest();
        }
    }

    // ---- Waiting ------------------------------------------------------------------------

    fn bind(self: &Arc<Self>) {
        if std::ptr::eq(CURRENT.with(Cell::get).port, Arc::as_ptr(self)) {
            return;
        }
        let worker = Worker::new(NEXT_WORKER.fetch_add(1, Ordering::Relaxed), thread_id());
        let tally = Arc::new(Tally::default());
        lock(&self.tallies).push(tally.clone());
        let binding = Box::new(Binding { port: self.clone(), worker, tally });
        let current = Current {
            port: Arc::as_ptr(self),
            worker: &raw const binding.worker,
            tally: Arc::as_ptr(&binding.tally),
        };
        // The former binding gives its lane back as it drops, outside the borrow.
        let former = BINDING.with(|slot| slot.borrow_mut().replace(binding));
        drop(former);
        CURRENT.with(|slot| slot.set(current));
    }

    /// Ends this thread's tie to the port.
    fn unbind(&self) {
        if std::ptr::eq(CURRENT.with(Cell::get).port, self) {
            let binding = BINDING.with(|slot| slot.borrow_mut().take());
            drop(binding);
        }
    }

    /// Waits for a completion. `retain` is called for an operation that goes on after the
    /// completion it has just given, at the last moment at which its memory is surely there.
    pub(crate) fn wait(
        self: &Arc<Self>,
        timeout: Option<Duration>,
        retain: &dyn Fn(*mut Operation),
    ) -> Wait<Completion> {
        if let Err(error) = self.check_process() {
            return Wait::Broken(error);
        }
        self.bind();
        let Some(worker) = self.current() else {
            return Wait::Broken(Error::of(ErrorKind::Closed, "wait"));
        };
        let waited = self.wait_as(worker, timeout, retain);
        worker.end_wait();
        if matches!(waited, Wait::Closed) {
            self.unbind();
        }
        waited
    }

    fn wait_as(
        &self,
        worker: &Arc<Worker>,
        timeout: Option<Duration>,
        retain: &dyn Fn(*mut Operation),
    ) -> Wait<Completion> {
        let polling = timeout == Some(Duration::ZERO);
        let deadline = deadline(timeout);
        loop {
            if self.closed() {
                return Wait::Closed;
            }
            let lane = match self.schedule.lane_of(worker) {
                Some(lane) => lane,
                None => match self.take_seat(worker, polling, deadline) {
                    Seat::Lane(lane) => lane,
                    Seat::TimedOut => return Wait::TimedOut,
                    Seat::Again => continue,
                },
            };
            if self.schedule.extra() > 0 {
                self.submit(lane);
                self.schedule.repay(worker);
                if !self.schedule.runs(lane, worker.id) {
                    continue;
                }
            }
            let batch = if self.watch.alert() { ALERT_BATCH } else { BATCH };
            if PACKETS.with(Cell::get) >= batch {
                self.submit(lane);
            }
            if let Some(completion) = self.take(lane, retain) {
                return Wait::Packet(completion);
            }
            if self.lanes[lane].unsubmitted() == 0
                && let Some(completion) = self.steal(lane, retain)
            {
                return Wait::Packet(completion);
            }
            if polling {
                self.submit(lane);
                return self.take(lane, retain).map_or(Wait::TimedOut, Wait::Packet);
            }
            match self.sleep(lane, worker, deadline) {
                Ok(()) => {}
                Err(error) => return Wait::Broken(error),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if self.closed() {
                    return Wait::Closed;
                }
                if let Some(lane) = self.schedule.lane_of(worker) {
                    return self.take(lane, retain).map_or(Wait::TimedOut, Wait::Packet);
                }
                // It lost its lane and stands on the stack: take_seat sorts that out.
            }
        }
    }

    /// Another packet for a worker that runs, if one is there: no entry into the kernel.
    pub(crate) fn take_more(&self, retain: &dyn Fn(*mut Operation)) -> Option<Completion> {
        let lane = self.schedule.lane_of(self.current()?)?;
        if self.closed() { None } else { self.take(lane, retain) }
    }

    /// Takes the next packet from a lane and the posted queue, from each in turn, so that neither
    /// starves the other.
    fn take(&self, lane: usize, retain: &dyn Fn(*mut Operation)) -> Option<Completion> {
        if self.queued.load(Ordering::Relaxed) > 0 {
            let posted_last = TURN.with(Cell::get);
            if !posted_last && let Some(completion) = self.take_queued(lane, retain) {
                return Some(completion);
            }
        }
        if let Some(completion) = self.take_from(lane, lane, retain) {
            TURN.with(|turn| turn.set(false));
            return Some(completion);
        }
        self.take_queued(lane, retain)
    }

    fn take_from(
        &self,
        lane: usize,
        own: usize,
        retain: &dyn Fn(*mut Operation),
    ) -> Option<Completion> {
        while let Some(popped) = self.lanes[lane].pop() {
            let event = match popped {
                Popped::Event(event) => event,
                Popped::Attend(other) => {
                    self.counters[usize::from(other)].attended.store(false, Ordering::SeqCst);
                    continue;
                }
                Popped::Wake if lane != own && self.schedule.has_sleepers(lane) => {
                    // It was meant for somebody who sleeps there, and who may not have seen it.
                    self.wake(lane);
                    return None;
                }
                Popped::Wake => continue,
            };
            if let Some(completion) = self.complete(lane, event, retain) {
                self.count_packet(own, &completion);
                return Some(completion);
            }
        }
        None
    }

    fn count_packet(&self, own: usize, completion: &Completion) {
        PACKETS.with(|packets| packets.set(packets.get() + 1));
        if !completion.silent {
            self.count(|tally| &tally.packets);
        }
        let progress = &self.counters[own].progress;
        progress.store(progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    fn take_queued(&self, own: usize, retain: &dyn Fn(*mut Operation)) -> Option<Completion> {
        while let Some(entry) = self.dequeue() {
            let completion = match entry {
                Entry::Posted { bytes, key, operation } => {
                    Some(Completion::posted(bytes, key, operation))
                }
                // SAFETY: the entry was made for an operation in flight with nothing outstanding,
                // and taking the entry gives it to us.
                Entry::Ready(operation) => unsafe { self.conclude(operation, retain) },
                // SAFETY: as above.
                Entry::Retry(operation) => unsafe { self.retry(operation, retain) },
            };
            if let Some(completion) = completion {
                TURN.with(|turn| turn.set(true));
                self.count_packet(own, &completion);
                return Some(completion);
            }
        }
        None
    }

    /// Takes a packet from the lane of another worker: one that has many, or is stuck.
    fn steal(&self, own: usize, retain: &dyn Fn(*mut Operation)) -> Option<Completion> {
        let count = self.lanes.len();
        for victim in (1..count).map(|distance| (own + distance) % count) {
            let ready = self.lanes[victim].ready();
            if ready == 0 {
                self.counters[victim].stuck.store(false, Ordering::Relaxed);
                continue;
            }
            let stuck = self.counters[victim].stuck.load(Ordering::Relaxed)
                || self.schedule.is_free(victim);
            // While handlers block, whose lane it is says little about who will come for it.
            if !stuck && ready < STEAL_FROM && !self.watch.alert() {
                continue;
            }
            if let Some(completion) = self.take_from(victim, own, retain) {
                self.counters[own].stolen.fetch_add(1, Ordering::Relaxed);
                return Some(completion);
            }
        }
        None
    }

    fn take_seat(&self, worker: &Arc<Worker>, polling: bool, deadline: Option<Instant>) -> Seat {
        match self.schedule.acquire(worker, !polling) {
            Acquired::Lane(lane) => Seat::Lane(lane),
            Acquired::Displaced(lane) => {
                self.evict(lane, worker);
                Seat::Lane(lane)
            }
            Acquired::Refused => {
                // Nobody may be there to see that the holder of a lane is blocked.
                if self.setup.watch && self.watch.look(self, Some(worker)) {
                    return Seat::Again;
                }
                self.schedule.run_extra(worker);
                Seat::TimedOut
            }
            Acquired::Parked => self.park(worker, deadline),
        }
    }

    fn evict(&self, lane: usize, holder: &Worker) {
        self.schedule.evict(lane, holder.id, || self.wake(lane));
    }

    fn park(&self, worker: &Arc<Worker>, deadline: Option<Instant>) -> Seat {
        loop {
            if self.closed() {
                return Seat::Again;
            }
            let left = left(deadline);
            if left == Some(Duration::ZERO) {
                if self.schedule.unpark(worker) {
                    self.schedule.run_extra(worker);
                    return Seat::TimedOut;
                }
                return Seat::Again;
            }
            let watching = self.setup.watch && self.schedule.on_watch(worker);
            let tick = if watching { self.watch.tick(self) } else { None };
            match worker.park(earlier(left, tick)) {
                Parked::Lane => return Seat::Again,
                Parked::Watch => {}
                Parked::TimedOut => {
                    if tick.is_some() && self.watch.look(self, Some(worker)) {
                        return Seat::Again;
                    }
                }
            }
        }
    }

    /// Waits in a lane: submits what is queued and sleeps until something completes or somebody
    /// wakes it, all in one entry into the kernel.
    fn sleep(
        &self,
        lane: usize,
        worker: &Arc<Worker>,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        self.evict(lane, worker);
        self.attend(lane);
        self.lanes[lane].pool().resume_free();
        // Without a parked worker to keep watch, the idle ones do, now and then.
        let watching = self.setup.watch && self.lanes.len() > 1 && self.schedule.parked() == 0;
        let mut result = Ok(());
        let wait = || loop {
            let tick = watching.then(|| self.watch.idle_tick());
            let time_left = left(deadline);
            self.enters(lane);
            result = self.lanes[lane].wait(earlier(time_left, tick));
            let ticked = watching
                && time_left.is_none_or(|left| left > Duration::ZERO)
                && result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            if result.is_ok() && self.was_attended_in_vain(lane) {
                continue;
            }
            if !ticked {
                break;
            }
            // It stays idle meanwhile: should there be something to do, the look wakes somebody.
            self.watch.look(self, None);
        };
        let work_waits = || self.queued.load(Ordering::SeqCst) > 0;
        if self.schedule.doze(lane, worker, work_waits, wait) {
            // They have done their work, and must not look like packets that wait.
            self.lanes[lane].clear_wakes();
            self.watch.rouse(self);
        }
        if watching {
            self.watch.was_busy();
        }
        match result {
            Err(error) if is_transient(&error) => {
                std::thread::yield_now();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
            Err(error) => Err(Error::from_io(&error, "io_uring_enter")),
            Ok(()) => Ok(()),
        }
    }

    /// Runs something that may block: meanwhile another worker has this one's lane.
    pub(crate) fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        struct ComeBack<'a>(&'a Shared, Arc<Worker>);
        impl Drop for ComeBack<'_> {
            fn drop(&mut self) {
                // Unless the work made the thread wait on another port.
                if self.0.current().is_some_and(|current| current.id == self.1.id) {
                    self.0.schedule.come_back(&self.1);
                }
            }
        }
        let Some(worker) = self.current().cloned() else { return work() };
        if let Some(lane) = self.schedule.lane_of(&worker)
            && self.lanes[lane].unsubmitted() > 0
        {
            self.submit(lane);
        }
        self.give_up_lane(&worker);
        let _come_back = ComeBack(self, worker);
        work()
    }

    // ---- Completing ---------------------------------------------------------------------

    /// Works an event of a lane into its operation. Returns the completion to hand out, if this
    /// was the last event it took.
    fn complete(
        &self,
        lane: usize,
        event: Event,
        retain: &dyn Fn(*mut Operation),
    ) -> Option<Completion> {
        let operation = event.operation;
        // SAFETY: an operation with an event to come is in flight; so its header is alive, its
        // handle is too (both the contract of start), and the handle's address does not change.
        let handle = unsafe { &*(*operation).handle };
        let mut state = handle.lock();
        // SAFETY: popped once from this lane, and the lock is held.
        let step = unsafe { self.lanes[lane].digest(event) };
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        match step {
            Step::Pending => return None,
            Step::Cancel => {
                // SAFETY: in flight, submitted to this lane, and the lock is held.
                if let Err(error) = unsafe { self.lanes[lane].push_cancel(operation) } {
                    log::warn!("a cancellation could not be queued: {error}");
                }
                return None;
            }
            Step::Again => {
                if matches!(op.request, Request::AcceptFirst { .. }) && op.accepted >= 0 {
                    handle.float(&mut state, operation);
                }
                // SAFETY: in flight, nothing outstanding, and the lock is held.
                unsafe { handle.again(&mut state, operation) };
                return None;
            }
            Step::Starve if op.flags.cancel => op.status = -libc::ECANCELED,
            Step::Starve => {
                op.set_state(State::Waiting);
                let again = std::mem::replace(&mut op.flags.starved, true);
                self.lanes[lane].pool().starve(operation, again);
                return None;
            }
            Step::Finish => {}
        }
        // SAFETY: as above.
        unsafe { self.hand_out(handle, state, operation, retain) }
    }

    /// Hands out the completion of an operation that is over but was kept back.
    ///
    /// # Safety
    ///
    /// The operation is in flight, nothing of it is outstanding, and it is the caller's.
    unsafe fn conclude(
        &self,
        operation: *mut Operation,
        retain: &dyn Fn(*mut Operation),
    ) -> Option<Completion> {
        // SAFETY: as in `complete`.
        let handle = unsafe { &*(*operation).handle };
        let state = handle.lock();
        // SAFETY: the caller's promise.
        unsafe { self.hand_out(handle, state, operation, retain) }
    }

    /// Tries a receive again for which there was no buffer.
    ///
    /// # Safety
    ///
    /// As for `conclude`.
    unsafe fn retry(
        &self,
        operation: *mut Operation,
        retain: &dyn Fn(*mut Operation),
    ) -> Option<Completion> {
        // SAFETY: as in `complete`.
        let handle = unsafe { &*(*operation).handle };
        let mut state = handle.lock();
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        if op.flags.cancel {
            op.status = -libc::ECANCELED;
            // SAFETY: the caller's promise.
            return unsafe { self.hand_out(handle, state, operation, retain) };
        }
        // SAFETY: the caller's promise.
        unsafe { handle.again(&mut state, operation) };
        None
    }

    /// # Safety
    ///
    /// The operation is in flight on `handle`, whose lock `state` is, and nothing is outstanding.
    unsafe fn hand_out(
        &self,
        handle: &Handle,
        mut state: std::sync::MutexGuard<'_, super::handle::Queues>,
        operation: *mut Operation,
        retain: &dyn Fn(*mut Operation),
    ) -> Option<Completion> {
        // SAFETY: the caller's promise.
        let outcome = unsafe { handle.conclude(&mut state, operation) };
        if outcome == Outcome::Deferred {
            return None;
        }
        // SAFETY: in flight, and the lock is held.
        let op = unsafe { &mut *operation };
        let mut completion = Completion::posted(op.bytes, handle.key(), operation);
        completion.status = op.status;
        completion.silent = op.flags.silent;
        completion.serial = state.is_serial() && !op.flags.silent;
        if op.accepted >= 0 {
            // SAFETY: the kernel gave this descriptor to the accept; nobody else owns it. It is
            // closed here if the accept failed after all.
            let accepted = unsafe { OwnedFd::from_raw_fd(op.accepted) };
            completion.accepted = (op.status == 0).then_some(accepted);
        }
        if op.buffer != NO_BUFFER {
            let pool = self.lane(op.lane).pool().clone();
            completion.buffer = Some(Pooled::new(pool, op.buffer, op.bytes));
        }
        op.next_round();
        if outcome == Outcome::More {
            completion.more = true;
            retain(operation);
            // SAFETY: in flight, nothing outstanding, and the lock is held.
            unsafe { handle.again(&mut state, operation) };
        } else {
            self.count(|tally| &tally.finished);
            op.set_state(State::Idle);
        }
        Some(completion)
    }

    // ---- Closing ------------------------------------------------------------------------

    pub(crate) fn close(&self) {
        for lane in self.schedule.close() {
            if !self.guard.in_child() {
                self.wake(lane);
            }
        }
    }

    /// Operations started and not handed out yet.
    pub(crate) fn in_flight(&self) -> u64 {
        // What is finished first: then the difference is never negative.
        let [finished, started] = self.sums([|tally| &tally.finished, |tally| &tally.started]);
        started.saturating_sub(finished)
    }

    /// After closing: hands everything that is still queued or in flight to `sink`, and waits for
    /// what the kernel still holds, at most until `patience` is over. Returns how many operations
    /// it did not let go.
    pub(crate) fn drain(&self, patience: Duration, sink: &mut dyn FnMut(Completion)) -> u64 {
        if self.guard.in_child() {
            return self.in_flight();
        }
        let deadline = Instant::now() + patience;
        let nothing = |_: *mut Operation| {};
        loop {
            for lane in 0..self.lanes.len() {
                while let Some(completion) = self.take(lane, &nothing) {
                    sink(completion);
                }
                self.submit(lane);
                while let Some(completion) = self.take(lane, &nothing) {
                    sink(completion);
                }
            }
            let left = self.in_flight();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            let pause = Duration::from_millis(1);
            for lane in &self.lanes {
                let _ = lane.wait(Some(pause / u32::try_from(self.lanes.len()).unwrap_or(1)));
            }
        }
    }

    // ---- Looking inside -----------------------------------------------------------------

    pub(crate) fn stats(&self) -> Stats {
        let sum = |counter: fn(&Counters) -> &AtomicU64| -> u64 {
            self.counters.iter().map(|counters| counter(counters).load(Ordering::Relaxed)).sum()
        };
        Stats {
            concurrency: self.lanes.len(),
            packets: self.sums([|tally| &tally.packets])[0],
            posted: self.posted.load(Ordering::Relaxed),
            stolen: sum(|counters| &counters.stolen),
            hand_overs: self.schedule.hand_overs(),
            blocks_noticed: self.watch.noticed(),
            running: self.schedule.running(),
            waiting: self.schedule.waiting(),
            queued: self.queued() + self.lanes().iter().map(Lane::requests_ready).sum::<usize>(),
            in_flight: self.in_flight(),
            kernel_entries: sum(|counters| &counters.entries),
            starving: self.lanes().iter().map(|lane| lane.pool().starving()).sum(),
            buffers_exhausted: self.lanes().iter().map(|lane| lane.pool().exhausted() as u64).sum(),
        }
    }

    // ---- One descriptor, one port -------------------------------------------------------

    /// Associates a descriptor.
    pub(crate) fn adopt(&self, fd: &OwnedFd) -> Result<(), Error> {
        self.check_process()?;
        if self.closed() {
            return Err(Error::of(ErrorKind::Closed, "associate"));
        }
        let socket = socket_inode(fd).map_err(|error| Error::from_io(&error, "associate"))?;
        if let Some(inode) = socket
            && !lock(&ASSOCIATED).get_or_insert_default().insert(inode)
        {
            return Err(Error::of(ErrorKind::Associated, "associate"));
        }
        Ok(())
    }

    /// Ends a descriptor's association: it is about to be closed.
    pub(crate) fn forget_descriptor(&self, fd: &OwnedFd) {
        if let Ok(Some(inode)) = socket_inode(fd) {
            lock(&ASSOCIATED).get_or_insert_default().remove(&inode);
        }
    }
}

/// The sockets that belong to a port of this process, by inode: a duplicate of a descriptor is
/// the same socket, and a socket belongs to one port until it is closed.
static ASSOCIATED: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

fn socket_inode(fd: &OwnedFd) -> io::Result<Option<u64>> {
    // SAFETY: plain integers, for which zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives across the call, the descriptor is open.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stat.st_mode & libc::S_IFMT == libc::S_IFSOCK).then_some(stat.st_ino))
}

/// When a wait that begins now is over. None: never, or too far away to name.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// How much of it is left.
pub(crate) fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Makes a port's lanes, all alike: where too little memory may be locked for them, smaller ones.
fn make_lanes(count: usize, mut setup: Setup) -> Result<(Vec<Lane>, Setup), Error> {
    const SMALLEST: u32 = 8;
    let asked = setup.submissions;
    loop {
        match (0..count).map(|_| Lane::new(&setup)).collect::<io::Result<Vec<_>>>() {
            Ok(lanes) => {
                if setup.submissions < asked {
                    log::warn!(
                        "too little memory may be locked: rings of {} entries instead of {asked} \
                         (raise RLIMIT_MEMLOCK)",
                        setup.submissions
                    );
                }
                return Ok((lanes, setup));
            }
            Err(error) if is_memory(&error) && setup.submissions > SMALLEST => {
                setup.submissions /= 2;
                // The kernel gives the memory of the rings just closed back a little later.
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(Error::from_setup(&error)),
        }
    }
}

/// What a worker that had no lane has now.
enum Seat {
    Lane(usize),
    TimedOut,
    /// Look again.
    Again,
}
