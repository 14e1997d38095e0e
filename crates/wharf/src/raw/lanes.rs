//! How workers wait where the kernel leaves that to us: lanes, the queue of posted packets, and
//! the loop in which a worker waits.

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    Completion, Taking, Wait,
    effort::Effort,
    port::{Entry, Setup, Shared, deadline, left},
    schedule::{Acquired, Hold, Parked, Schedule, Worker},
    watch::Watch,
};
use crate::{
    driver::Choice,
    error::{Error, ErrorKind},
    stats::Stats,
    sync::lock,
    sys::{Lane, Popped, is_transient, pool::Pool, processor_time, thread_id},
};

/// What is counted per lane, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters {
    stolen: AtomicU64,
    /// Moves whenever the holder takes a packet, or somebody enters the kernel for the lane. Not
    /// exact: it has no lock.
    progress: AtomicU64,
    /// Its holder has called for help, or the watch found it busy for long: its completions may be
    /// taken by anyone.
    stuck: AtomicBool,
    /// A worker that waits elsewhere is woken when something can be taken here.
    attended: AtomicBool,
}

/// How many completions must wait in the lane of a worker that runs before an idle worker helps
/// itself. Moving a connection to another lane costs more than it gains if its own worker is
/// about to come for it.
const STEAL_FROM: u32 = 4;
/// A worker that has something to submit helps itself where so many times as much waits as it has
/// taken since it last entered the kernel.
const HARDLY_BUSY: u32 = 8;

/// How many events a worker takes, packets or steps of operations that go on, before it enters the
/// kernel to submit what they have started and to let it complete what has come in, even if more
/// are ready.
const BATCH: u32 = 256;
/// The same while handlers block: should the next one do, what waits would wait with it.
const ALERT_BATCH: u32 = 16;

/// After so many packets in a row the watch is told that the worker gets on, and what they cost is
/// noted; where they are dear, after each.
const SEEN_AFTER: u32 = 16;
/// What has been started is not kept back for longer than this, nor what waits in a lane while
/// another worker has nothing to do, if what packets cost can be foreseen.
const PATIENCE: Duration = Duration::from_micros(100);

/// Where workers wait, and what they have to take.
#[derive(Debug)]
pub(super) struct Dispatch {
    lanes: Vec<Lane>,
    counters: Vec<Counters>,
    pub(super) schedule: Schedule,
    watch: Watch,
    queue: Mutex<VecDeque<Entry>>,
    queued: AtomicUsize,
    next_lane: AtomicU16,
}

/// What the port knows of a thread that is bound to it.
pub(super) type Place = Arc<Worker>;

thread_local! {
    /// Whether the last packet this thread took came from the posted queue.
    static TURN: Cell<bool> = const { Cell::new(false) };
    /// How many more packets of another lane this thread is about to take.
    static SHARE: Cell<u32> = const { Cell::new(0) };
    /// How many events this thread has worked through since it entered the kernel.
    static EVENTS: Cell<u32> = const { Cell::new(0) };
    /// How many of them were packets.
    static PACKETS: Cell<u32> = const { Cell::new(0) };
    /// How many packets it will have taken when it next looks at the time.
    static LOOK: Cell<u32> = const { Cell::new(SEEN_AFTER - 1) };
    /// What they cost.
    static EFFORT: Cell<Effort> = const { Cell::new(Effort::NONE) };
}

static NEXT_WORKER: AtomicU64 = AtomicU64::new(1);

impl Dispatch {
    pub(super) fn new(setup: &Setup) -> Result<(Self, Choice), Error> {
        let concurrency = match setup.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            concurrency => concurrency.min(1024),
        };
        let (lanes, choice) = Lane::make(concurrency, setup)?;
        let dispatch = Self {
            counters: lanes.iter().map(|_| Counters::default()).collect(),
            schedule: Schedule::new(lanes.len()),
            watch: Watch::new(lanes.len(), setup.watch),
            lanes,
            queue: Mutex::new(VecDeque::new()),
            queued: AtomicUsize::new(0),
            next_lane: AtomicU16::new(0),
        };
        Ok((dispatch, choice))
    }
}

impl Shared {
    /// A thread binds itself to the port.
    pub(super) fn arrive(&self) -> Place {
        Worker::new(NEXT_WORKER.fetch_add(1, Ordering::Relaxed), thread_id())
    }

    /// A bound thread leaves the port.
    pub(super) fn depart(&self, worker: &Place) {
        if let Some(lane) = self.dispatch.schedule.lane_of(worker)
            && !self.guard.in_child()
        {
            // What this thread had started but not submitted must not wait for the next holder.
            let _ = self.dispatch.lanes[lane].submit();
        }
        self.give_up_lane(worker);
        self.dispatch.watch.forget(worker.thread);
    }

    pub(crate) fn lane(&self, lane: u16) -> &Lane {
        &self.dispatch.lanes[usize::from(lane)]
    }

    /// The lanes; none in a forked child, where their memory does not exist.
    pub(super) fn lanes(&self) -> &[Lane] {
        if self.guard.in_child() { &[] } else { &self.dispatch.lanes }
    }

    pub(crate) fn closed(&self) -> bool {
        self.dispatch.schedule.closed()
    }

    /// A lane for a handle to begin in: each in turn.
    pub(crate) fn some_lane(&self) -> u16 {
        let lanes = u16::try_from(self.dispatch.lanes.len()).unwrap_or(u16::MAX);
        self.dispatch.next_lane.fetch_add(1, Ordering::Relaxed) % lanes
    }

    /// The lane this thread holds. A worker that finds it has lost its lane, because it was
    /// blocked, counts as running again from here on.
    #[inline]
    pub(crate) fn own_lane(&self) -> Option<u16> {
        let worker = self.current()?;
        let lane = self.dispatch.schedule.lane_of(worker).or_else(|| self.come_back(worker))?;
        u16::try_from(lane).ok()
    }

    #[cold]
    fn come_back(&self, worker: &Place) -> Option<usize> {
        worker.lane()?;
        self.dispatch.schedule.come_back(worker);
        self.dispatch.schedule.lane_of(worker)
    }

    /// Lets a lane go on in which this thread, which does not hold it, has started something.
    pub(crate) fn submit_for(&self, lane: Option<u16>) {
        let Some(lane) = lane.map(usize::from) else { return };
        if self.dispatch.lanes[lane].rouses() {
            self.submit(lane);
        } else {
            self.rouse(lane);
        }
    }

    /// Wakes who waits in a lane, or attends to it, if there is something to take that this thread
    /// may have put there.
    fn rouse(&self, lane: usize) {
        // Who went to sleep before this is seen here; who does so after it sees what we did.
        fence(Ordering::SeqCst);
        if self.dispatch.lanes[lane].must_rouse()
            && !matches!(self.dispatch.schedule.hold(lane), Hold::Running(_))
        {
            self.wake(lane);
        }
    }

    /// Brings up to date how much there is to take in a lane that this thread need not hold.
    pub(super) fn glance(&self, lane: usize) {
        let ring = &self.dispatch.lanes[lane];
        if !ring.rouses() {
            ring.glance();
            self.rouse(lane);
        }
    }

    fn enters(&self, lane: usize) {
        EVENTS.with(|events| events.set(0));
        PACKETS.with(|packets| packets.set(0));
        let mut effort = EFFORT.with(Cell::get);
        effort.pause();
        EFFORT.with(|it| it.set(effort));
        LOOK.with(|look| look.set(if effort.is_dear() { 0 } else { SEEN_AFTER - 1 }));
        self.gets_on(lane);
    }

    #[inline(never)]
    fn submit(&self, lane: usize) {
        self.enters(lane);
        if let Err(error) = self.dispatch.lanes[lane].submit()
            && !is_transient(&error)
        {
            log::error!("a lane does not get on: {error}");
        }
        self.rouse(lane);
    }

    // ---- The queue that is ours ---------------------------------------------------------

    /// Queues a posted packet.
    pub(super) fn push_posted(&self, entry: Entry) -> Result<(), Error> {
        {
            let mut queue = lock(&self.dispatch.queue);
            if queue.len() >= self.setup.post_limit {
                return Err(Error::of(ErrorKind::QueueFull, "post"));
            }
            if queue.try_reserve(1).is_err() {
                return Err(Error::of(ErrorKind::OutOfMemory, "post"));
            }
            queue.push_back(entry);
            self.dispatch.queued.store(queue.len(), Ordering::SeqCst);
        }
        self.release_newest();
        Ok(())
    }

    /// Queues what the port itself has to say of an operation.
    pub(crate) fn enqueue(&self, entry: Entry) {
        {
            let mut queue = lock(&self.dispatch.queue);
            queue.push_back(entry);
            self.dispatch.queued.store(queue.len(), Ordering::SeqCst);
        }
        self.release_newest();
    }

    fn dequeue(&self) -> Option<Entry> {
        if self.dispatch.queued.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut queue = lock(&self.dispatch.queue);
        let entry = queue.pop_front();
        self.dispatch.queued.store(queue.len(), Ordering::SeqCst);
        entry
    }

    /// Wakes the newest worker that waits, if any does.
    pub(super) fn release_newest(&self) {
        if let Some(lane) = self.dispatch.schedule.release_newest() {
            self.wake(lane);
        }
    }

    /// Ends a worker's hold on its lane. If nobody takes it over, a worker that waits elsewhere
    /// must attend to what is still to come in it.
    fn give_up_lane(&self, worker: &Worker) {
        if let Some(lane) = self.dispatch.schedule.lane_of(worker)
            && !self.guard.in_child()
        {
            // One that came too late to find its sleeper would wake whoever attends next.
            self.dispatch.lanes[lane].clear_wakes();
        }
        if self.dispatch.schedule.leave(worker) && !self.guard.in_child() {
            self.release_newest();
        }
    }

    /// Before a worker sleeps: sees to it that it is woken when something can be taken from a lane
    /// that nobody holds. Returns when something is due in one, if it has to be looked after.
    fn attend(&self, own: usize) -> Attention {
        let mut attention = Attention { due: None, needed: self.dispatch.schedule.any_free() };
        if !attention.needed {
            return attention;
        }
        for (number, other) in (0..).zip(&self.dispatch.lanes) {
            let lane = usize::from(number);
            if lane == own || !self.dispatch.schedule.is_free(lane) {
                continue;
            }
            let attended = &self.dispatch.counters[lane].attended;
            let asked = attended.swap(true, Ordering::SeqCst);
            if let Err(error) = self.dispatch.lanes[own].attend(number, other, asked) {
                attended.store(false, Ordering::SeqCst);
                log::error!("a lane that nobody holds could not be attended to: {error}");
            }
            attention.due = earlier(attention.due, other.until_due());
        }
        attention
    }

    /// Whether a worker was woken only because of a lane that has a holder again by now: it would
    /// snatch the next packet from a worker that began to wait later.
    fn was_attended_in_vain(&self, own: usize) -> bool {
        let mut in_vain = false;
        while let Some(other) = self.dispatch.lanes[own].pop_attend() {
            if self.is_attended(usize::from(other)) {
                return false;
            }
            in_vain = true;
        }
        in_vain && self.dispatch.lanes[own].ready() == 0
    }

    /// A lane that this thread attends to has something to take. False: it has a holder by now.
    fn is_attended(&self, lane: usize) -> bool {
        self.dispatch.counters[lane].attended.store(false, Ordering::SeqCst);
        let free = self.dispatch.schedule.is_free(lane);
        if free {
            self.glance(lane);
        }
        free
    }

    fn wake(&self, lane: usize) {
        if let Err(error) = self.dispatch.lanes[lane].wake() {
            log::error!("a waiting worker could not be woken: {error}");
        }
    }

    // ---- What the watch sees ------------------------------------------------------------

    pub(super) fn queued(&self) -> usize {
        self.dispatch.queued.load(Ordering::Relaxed)
    }

    /// How far a lane's holder has come: changes whenever it takes a packet or enters the kernel.
    pub(super) fn progress(&self, lane: usize) -> u64 {
        self.dispatch.counters[lane].progress.load(Ordering::Relaxed)
    }

    fn gets_on(&self, lane: usize) {
        let progress = &self.dispatch.counters[lane].progress;
        progress.store(progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Lets idle workers take a lane's completions, whose holder is busy with something else, and
    /// submits what it has left lying.
    pub(super) fn relieve(&self, lane: usize) {
        if self.dispatch.lanes[lane].unsubmitted() > 0 {
            self.submit(lane);
        }
        if self.dispatch.lanes[lane].ready() > 0 {
            self.call_for_help(lane);
        }
    }

    /// Has another worker take what waits in a lane, if one has nothing to do.
    fn call_for_help(&self, lane: usize) {
        self.dispatch.counters[lane].stuck.store(true, Ordering::SeqCst);
        if let Some(lane) = self.dispatch.schedule.call_for_help() {
            self.wake(lane);
        }
    }

    // ---- What packets cost ----------------------------------------------------------------

    /// The worker has come by, or is about to enter the kernel: notes what its packets have cost.
    fn note(&self, lane: usize, worker: &Worker) -> Effort {
        let now = Instant::now();
        self.dispatch.watch.gets_on(self, lane, now);
        let mut effort = EFFORT.with(Cell::get);
        effort.note(now, PACKETS.with(Cell::get), || processor_time(worker.thread));
        EFFORT.with(|it| it.set(effort));
        effort
    }

    /// The worker looks at the time. Where packets are dear, what it has started does not wait for
    /// long, nor does what it would only come to after long, if another worker can.
    #[inline(never)]
    fn take_stock(&self, lane: usize, worker: &Worker) {
        let mut effort = self.note(lane, worker);
        let next = if effort.is_dear() { 0 } else { PACKETS.with(Cell::get) + SEEN_AFTER };
        LOOK.with(|look| look.set(next));
        if !effort.is_dear() {
            return;
        }
        let ring = &self.dispatch.lanes[lane];
        if ring.ready() > 0
            && ring.unsubmitted() > 0
            && effort.of(PACKETS.with(Cell::get)) >= PATIENCE
        {
            self.submit(lane);
            effort = self.note(lane, worker);
        }
        let behind = ring.ready().saturating_sub(1);
        if effort.of(behind) >= PATIENCE && self.dispatch.schedule.any_idle() {
            self.call_for_help(lane);
        }
    }

    // ---- Waiting ------------------------------------------------------------------------

    pub(super) fn end_wait(&self, worker: &Place) {
        worker.end_wait();
    }

    pub(super) fn wait_as(
        &self,
        worker: &Arc<Worker>,
        timeout: Option<Duration>,
        taking: &mut Taking<'_>,
    ) -> Wait<()> {
        let polling = timeout == Some(Duration::ZERO);
        let deadline = deadline(timeout);
        loop {
            if self.closed() {
                return Wait::Closed;
            }
            let lane = match self.dispatch.schedule.lane_of(worker) {
                Some(lane) => lane,
                None => match self.take_seat(worker, polling, deadline) {
                    Seat::Lane(lane) => lane,
                    Seat::TimedOut => return Wait::TimedOut,
                    Seat::Again => continue,
                },
            };
            if self.dispatch.schedule.extra() > 0 {
                self.submit(lane);
                self.dispatch.schedule.repay(worker);
                if !self.dispatch.schedule.runs(lane, worker.id) {
                    continue;
                }
            }
            if PACKETS.with(Cell::get) >= LOOK.with(Cell::get) {
                self.take_stock(lane, worker);
            }
            if EVENTS.with(Cell::get) >= self.batch() {
                self.submit(lane);
            }
            if self.take(lane, taking) || self.steal(lane, taking) {
                return Wait::Packet(());
            }
            if polling {
                self.submit(lane);
                return if self.take(lane, taking) { Wait::Packet(()) } else { Wait::TimedOut };
            }
            match self.sleep(lane, worker, deadline) {
                Ok(()) => {}
                Err(error) => return Wait::Broken(error),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if self.closed() {
                    return Wait::Closed;
                }
                if let Some(lane) = self.dispatch.schedule.lane_of(worker) {
                    return if self.take(lane, taking) { Wait::Packet(()) } else { Wait::TimedOut };
                }
                // It lost its lane and stands on the stack: take_seat sorts that out.
            }
        }
    }

    /// Another packet for a worker that runs, if one is there: no entry into the kernel.
    pub(crate) fn take_more(&self, taking: &mut Taking<'_>) -> bool {
        let lane = self.current().and_then(|worker| self.dispatch.schedule.lane_of(worker));
        lane.is_some_and(|lane| !self.closed() && self.take(lane, taking))
    }

    /// Takes the next packet from a lane and the posted queue, from each in turn, so that neither
    /// starves the other.
    fn take(&self, lane: usize, taking: &mut Taking<'_>) -> bool {
        if self.dispatch.queued.load(Ordering::Relaxed) > 0 {
            let posted_last = TURN.with(Cell::get);
            if !posted_last && self.take_queued(lane, taking) {
                return true;
            }
        }
        if self.take_from(lane, lane, taking) {
            TURN.with(|turn| turn.set(false));
            return true;
        }
        self.take_queued(lane, taking)
    }

    fn take_from(
        &self,
        lane: usize,
        own: usize,
        taking: &mut Taking<'_>,
    ) -> bool {
        let number = u16::try_from(lane).unwrap_or(u16::MAX);
        while let Some(popped) = self.dispatch.lanes[lane].pop() {
            let event = match popped {
                Popped::Event(event) => event,
                Popped::Attend(other) => {
                    self.is_attended(other);
                    continue;
                }
                Popped::Wake if lane != own && self.dispatch.schedule.has_sleepers(lane) => {
                    // It was meant for somebody who sleeps there, and who may not have seen it.
                    self.wake(lane);
                    return false;
                }
                Popped::Wake => continue,
            };
            if self.complete(number, event, taking) {
                self.count_packet(own, &taking.completion);
                return true;
            }
            self.goes_on(own);
        }
        false
    }

    /// An event was no packet: it may have begun something else, and there may be many of them in a
    /// row.
    fn goes_on(&self, own: usize) {
        let events = self.count_event(own);
        if events >= self.batch() {
            self.submit(own);
        } else if events.is_multiple_of(SEEN_AFTER) {
            self.dispatch.watch.gets_on(self, own, Instant::now());
        }
    }

    /// How many events a worker may work through before it submits.
    fn batch(&self) -> u32 {
        if self.dispatch.watch.alert() { ALERT_BATCH } else { BATCH }
    }

    /// Counts an event of this worker's since it entered the kernel.
    fn count_event(&self, own: usize) -> u32 {
        self.gets_on(own);
        EVENTS.with(|events| {
            events.set(events.get() + 1);
            events.get()
        })
    }

    fn count_packet(&self, own: usize, completion: &Completion) {
        self.count_event(own);
        PACKETS.with(|packets| packets.set(packets.get() + 1));
        if !completion.silent {
            self.count(|tally| &tally.packets);
        }
    }

    #[inline(never)]
    fn take_queued(&self, own: usize, taking: &mut Taking<'_>) -> bool {
        while let Some(entry) = self.dequeue() {
            // SAFETY: it has been taken from the queue, once.
            if unsafe { self.redeem(entry, taking) } {
                TURN.with(|turn| turn.set(true));
                self.count_packet(own, &taking.completion);
                return true;
            }
        }
        false
    }

    /// Takes a packet from the lane of another worker: one that has many, has called for help or is
    /// stuck. Who has hardly anything of its own takes half of what waits, one after the other:
    /// otherwise two workers whose operations are over as soon as they are submitted, one with many
    /// and one with a few, would go on like that, and one of them would enter the kernel for each
    /// few.
    #[inline(never)]
    fn steal(&self, own: usize, taking: &mut Taking<'_>) -> bool {
        let count = self.dispatch.lanes.len();
        if count == 1 {
            return false;
        }
        let share = SHARE.with(Cell::take);
        let mut busy = match self.dispatch.lanes[own].unsubmitted() {
            0 => 0,
            _ => PACKETS.with(Cell::get),
        };
        for victim in (1..count).map(|distance| (own + distance) % count) {
            let ready = self.dispatch.lanes[victim].ready();
            let called = &self.dispatch.counters[victim].stuck;
            if ready == 0 {
                if called.load(Ordering::Relaxed) {
                    called.store(false, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    if self.dispatch.lanes[victim].ready() > 0 {
                        // Its holder may have called just now.
                        called.store(true, Ordering::Relaxed);
                    }
                }
                continue;
            }
            let called = called.load(Ordering::Relaxed);
            if called && busy > 0 {
                // What this worker has started would wait for as long as what it takes there does.
                self.submit(own);
                busy = 0;
            } else if share == 0 && ready < busy * HARDLY_BUSY {
                continue;
            }
            let stuck = called || self.dispatch.schedule.is_free(victim);
            // While handlers block, whose lane it is says little about who will come for it.
            if !stuck && ready < STEAL_FROM && !self.dispatch.watch.alert() {
                continue;
            }
            if self.take_from(victim, own, taking) {
                let share = match (share, busy) {
                    (0, 0) => 0,
                    (0, _) => ready / 2 - 1,
                    _ => share - 1,
                };
                SHARE.with(|it| it.set(share));
                self.dispatch.counters[own].stolen.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    #[inline(never)]
    fn take_seat(&self, worker: &Arc<Worker>, polling: bool, deadline: Option<Instant>) -> Seat {
        match self.dispatch.schedule.acquire(worker, !polling) {
            Acquired::Lane(lane) => {
                self.dispatch.watch.rouse(self);
                Seat::Lane(lane)
            }
            Acquired::Displaced(lane) => {
                self.evict(lane, worker);
                self.dispatch.watch.rouse(self);
                Seat::Lane(lane)
            }
            Acquired::Refused => {
                // Nobody may be there to see that the holder of a lane is blocked.
                if self.setup.watch && self.dispatch.watch.look(self, Some(worker)) {
                    return Seat::Again;
                }
                self.dispatch.schedule.run_extra(worker);
                Seat::TimedOut
            }
            Acquired::Parked => self.park(worker, deadline),
        }
    }

    fn evict(&self, lane: usize, holder: &Worker) {
        self.dispatch.schedule.evict(lane, holder.id, || self.wake(lane));
    }

    fn park(&self, worker: &Arc<Worker>, deadline: Option<Instant>) -> Seat {
        // While blocks keep coming, a holder may be in one already: who begins to keep watch does
        // not sleep before its first look.
        let mut begins = true;
        loop {
            if self.closed() {
                return Seat::Again;
            }
            let left = left(deadline);
            if left == Some(Duration::ZERO) {
                if self.dispatch.schedule.unpark(worker) {
                    self.dispatch.schedule.run_extra(worker);
                    return Seat::TimedOut;
                }
                return Seat::Again;
            }
            let watching = self.setup.watch && self.dispatch.schedule.on_watch(worker);
            if watching
                && std::mem::take(&mut begins)
                && self.dispatch.watch.alert()
                && self.dispatch.watch.look(self, Some(worker))
            {
                return Seat::Again;
            }
            let parked = if watching {
                self.dispatch.watch.keep(self, worker, left)
            } else {
                worker.park(left)
            };
            match parked {
                Parked::Lane => return Seat::Again,
                Parked::Watch => begins = true,
                Parked::TimedOut => {
                    if watching && self.dispatch.watch.look(self, Some(worker)) {
                        return Seat::Again;
                    }
                }
            }
        }
    }

    /// Waits in a lane: submits what is queued and sleeps until something completes or somebody
    /// wakes it, all in one entry into the kernel.
    #[inline(never)]
    fn sleep(
        &self,
        lane: usize,
        worker: &Arc<Worker>,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        self.evict(lane, worker);
        self.note(lane, worker);
        let attention = self.attend(lane);
        self.dispatch.lanes[lane].pools().into_iter().for_each(Pool::resume_free);
        // Without a parked worker to keep watch, the idle ones do, now and then.
        let watching = self.setup.watch
            && self.dispatch.lanes.len() > 1
            && self.dispatch.schedule.parked() == 0;
        let mut result = Ok(());
        let mut wait = || loop {
            let tick = watching.then(|| self.dispatch.watch.idle_tick());
            let time_left = left(deadline);
            self.enters(lane);
            let timeout = earlier(earlier(time_left, tick), attention.due);
            result = self.dispatch.lanes[lane].wait(timeout, attention.needed);
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
            self.dispatch.watch.look(self, None);
        };
        let work_waits = || self.dispatch.queued.load(Ordering::SeqCst) > 0;
        let rest = || {
            self.dispatch.watch.rest(self);
            wait();
        };
        if self.dispatch.schedule.doze(lane, worker, work_waits, rest) {
            // They have done their work, and must not look like packets that wait.
            self.dispatch.lanes[lane].clear_wakes();
            self.dispatch.watch.rouse(self);
            self.note(lane, worker);
        }
        if watching {
            self.dispatch.watch.was_busy();
        }
        match result {
            Err(error) if is_transient(&error) => {
                std::thread::yield_now();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
            Err(error) => Err(Error::from_io(&error, "wait")),
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
                    self.0.dispatch.schedule.come_back(&self.1);
                }
            }
        }
        let Some(worker) = self.current().cloned() else { return work() };
        if let Some(lane) = self.dispatch.schedule.lane_of(&worker)
            && self.dispatch.lanes[lane].unsubmitted() > 0
        {
            self.submit(lane);
        }
        self.give_up_lane(&worker);
        let _come_back = ComeBack(self, worker);
        work()
    }

    // ---- Closing ------------------------------------------------------------------------

    pub(crate) fn close(&self) {
        for lane in self.dispatch.schedule.close() {
            if !self.guard.in_child() {
                self.wake(lane);
            }
        }
    }

    /// After closing: hands everything that is still queued or in flight to `sink`, and waits for
    /// what the kernel still holds, at most until `patience` is over. Returns how many operations
    /// it did not let go.
    pub(crate) fn drain(&self, patience: Duration, sink: &mut dyn FnMut(&mut Completion)) -> u64 {
        if self.guard.in_child() {
            return self.in_flight();
        }
        let deadline = Instant::now() + patience;
        let mut taking = Taking::new(&|_| {});
        loop {
            for lane in 0..self.dispatch.lanes.len() {
                while self.take(lane, &mut taking) {
                    sink(&mut taking.completion);
                }
                self.submit(lane);
                while self.take(lane, &mut taking) {
                    sink(&mut taking.completion);
                }
            }
            let left = self.in_flight();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            let lanes = u32::try_from(self.dispatch.lanes.len()).unwrap_or(1);
            let pause = Duration::from_millis(1) / lanes;
            for lane in &self.dispatch.lanes {
                let _ = lane.wait(Some(pause), false);
            }
        }
    }

    // ---- Looking inside -----------------------------------------------------------------

    pub(crate) fn stats(&self) -> Stats {
        (0..self.lanes().len()).for_each(|lane| self.glance(lane));
        let sum = |counter: fn(&Counters) -> &AtomicU64| -> u64 {
            self.dispatch
                .counters
                .iter()
                .map(|counters| counter(counters).load(Ordering::Relaxed))
                .sum()
        };
        let pools = || self.lanes().iter().flat_map(Lane::pools);
        let [packets, calls] = self.sums([|tally| &tally.packets, |tally| &tally.calls]);
        Stats {
            concurrency: self.dispatch.lanes.len(),
            packets,
            posted: self.posted.load(Ordering::Relaxed),
            stolen: sum(|counters| &counters.stolen),
            hand_overs: self.dispatch.schedule.hand_overs(),
            blocks_noticed: self.dispatch.watch.noticed(),
            running: self.dispatch.schedule.running(),
            waiting: self.dispatch.schedule.waiting(),
            queued: self.queued() + self.lanes().iter().map(Lane::requests_ready).sum::<usize>(),
            in_flight: self.in_flight(),
            kernel_entries: calls + self.lanes().iter().map(Lane::entries).sum::<u64>(),
            starving: pools().map(|pool| pool.starving()).sum(),
            buffers_exhausted: pools().map(|pool| pool.exhausted() as u64).sum(),
        }
    }
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// What a worker looks after while it sleeps, beside its own lane.
struct Attention {
    /// How long it is until a lane that nobody holds needs somebody.
    due: Option<Duration>,
    /// There are such lanes.
    needed: bool,
}

/// What a worker that had no lane has now.
enum Seat {
    Lane(usize),
    TimedOut,
    /// Look again.
    Again,
}
