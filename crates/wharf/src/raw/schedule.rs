//! Which workers run: the concurrency value, the waiting workers and the hand-overs.
//!
//! A port has as many *lanes* as its concurrency value, and a worker must hold one to run. A lane
//! is free (nobody holds it), running (its holder handles a packet), or idle (its holder waits in
//! the kernel for a completion). Workers without a lane are parked on a stack.
//!
//! What holds at all times:
//!
//! - every lane has at most one holder: its word names it, and changes by compare-and-swap;
//! - nobody is parked while a lane is free;
//! - holders of idle lanes have begun to wait after every parked worker. So the newest waiter is
//!   the holder of the lane that went idle last, and then the top of the stack. A worker that
//!   comes to wait and finds no free lane takes the lane of the *oldest* idle holder, who moves to
//!   the top of the stack: that is what makes release newest-first.
//!
//! This module knows nothing of rings: waiting in a lane and waking it are its caller's business.
//! That is what lets a model checker run it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use crate::{
    sync::{
        AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence, pause,
    },
    sys::Bell,
};

/// Names a worker within its process. Never 0.
pub(crate) type WorkerId = u64;

/// The state of a lane and who holds it, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Free,
    Running(WorkerId),
    Idle(WorkerId),
}

impl Hold {
    fn word(self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Running(id) => id << 1,
            Self::Idle(id) => id << 1 | 1,
        }
    }

    fn from_word(word: u64) -> Self {
        match (word >> 1, word & 1) {
            (0, _) => Self::Free,
            (id, 0) => Self::Running(id),
            (id, _) => Self::Idle(id),
        }
    }
}

/// A thread that waits on the port, as the port knows it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    /// The system's id of the thread.
    pub(crate) thread: i32,
    /// The lane it was last given, plus one. Whether it still holds it is the lane's word to say.
    lane: AtomicUsize,
    /// When it began to wait, counted in waits of the whole port; 0 while it does not wait.
    since: AtomicU64,
    mailbox: Mutex<Mailbox>,
    wake: Condvar,
}

/// What a parked worker is told.
#[derive(Debug)]
struct Mailbox {
    signal: Signal,
    /// It listens for the alarm, and this wakes it.
    bell: Option<Arc<Bell>>,
}

/// Why a parked worker is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    None,
    /// It is now at the top of the stack, and keeps watch.
    Watch,
    /// It holds a lane.
    Lane,
}

/// How a wait for a lane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    Lane,
    Watch,
    TimedOut,
}

impl Worker {
    pub(crate) fn new(id: WorkerId, thread: i32) -> Arc<Self> {
        Arc::new(Self {
            id,
            thread,
            lane: AtomicUsize::new(0),
            since: AtomicU64::new(0),
            mailbox: Mutex::new(Mailbox { signal: Signal::None, bell: None }),
            wake: Condvar::new(),
        })
    }

    /// It has what it waited for, or has given up.
    pub(crate) fn end_wait(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// The lane it was last given.
    pub(crate) fn lane(&self) -> Option<usize> {
        self.lane.load(Ordering::Acquire).checked_sub(1)
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, signal: Signal) {
        let mut mailbox = self.mailbox();
        if mailbox.signal != Signal::Lane {
            mailbox.signal = signal;
        }
        match &mailbox.bell {
            Some(bell) => {
                bell.ring();
            }
            None => {
                drop(mailbox);
                self.wake.notify_one();
            }
        }
    }

    /// Sleeps like [`Self::park`], but for the alarm: in `listen`, which the bell ends, and which
    /// says whether the alarm has gone off.
    pub(crate) fn park_listening(
        &self,
        bell: &Arc<Bell>,
        listen: impl FnOnce() -> bool,
    ) -> Parked {
        let mut mailbox = self.mailbox();
        let mut off = false;
        if mailbox.signal == Signal::None {
            mailbox.bell = Some(bell.clone());
            drop(mailbox);
            off = listen();
            mailbox = self.mailbox();
            mailbox.bell = None;
        }
        match std::mem::replace(&mut mailbox.signal, Signal::None) {
            Signal::Lane => Parked::Lane,
            Signal::None if off => Parked::TimedOut,
            Signal::Watch | Signal::None => Parked::Watch,
        }
    }

    /// Sleeps until it is given a lane or the watch, or the time is over.
    pub(crate) fn park(&self, timeout: Option<Duration>) -> Parked {
        let mut mailbox = self.mailbox();
        loop {
            match std::mem::replace(&mut mailbox.signal, Signal::None) {
                Signal::Lane => return Parked::Lane,
                Signal::Watch => return Parked::Watch,
                Signal::None => {}
            }
            match timeout {
                None => {
                    mailbox = self.wake.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
                }
                Some(timeout) => {
                    let (guard, result) = self
                        .wake
                        .wait_timeout(mailbox, timeout)
                        .unwrap_or_else(PoisonError::into_inner);
                    mailbox = guard;
                    if result.timed_out() && mailbox.signal == Signal::None {
                        return Parked::TimedOut;
                    }
                }
            }
        }
    }
}

/// What a worker that asked for a lane got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// It holds this lane.
    Lane(usize),
    /// It holds this lane, whose former holder still waits in it and must be woken.
    Displaced(usize),
    /// It stands on top of the stack: it must park, and keeps watch.
    Parked,
    /// No lane can be had now, and it did not want to wait.
    Refused,
}

/// On a cache line of its own: its holder looks at it for each packet, and writes to it for each
/// wait.
#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    word: AtomicU64,
    /// Since when its holder waits, counted in waits of the whole port.
    idle_since: AtomicU64,
    /// Threads that wait in it, or are about to. More than its holder only after it has changed
    /// hands under a sleeper.
    sleepers: AtomicUsize,
    /// Its holder has found nothing to do, and waits.
    asleep: AtomicBool,
}

/// How many waits there have been, apart from what is looked at for each packet.
#[derive(Debug)]
#[repr(align(128))]
struct Waits(AtomicU64);

#[derive(Debug)]
struct Inner {
    /// Workers without a lane that wait, the newest last.
    parked: Vec<Arc<Worker>>,
    /// Who holds each lane.
    holders: Vec<Option<Arc<Worker>>>,
    /// Workers that run without a lane, having come back from a block.
    extra: Vec<Arc<Worker>>,
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Schedule {
    lanes: Vec<Lane>,
    inner: Mutex<Inner>,
    waits: Waits,
    /// How many workers run without a lane.
    extra: AtomicUsize,
    /// How many workers are parked.
    parked: AtomicUsize,
    /// How many lanes are free.
    free: AtomicUsize,
    closed: AtomicBool,
    /// Somebody has called for help since a worker that was about to wait last looked.
    called: AtomicBool,
    hand_overs: AtomicU64,
}

impl Schedule {
    pub(crate) fn new(lanes: usize) -> Self {
        Self {
            lanes: (0..lanes)
                .map(|_| Lane {
                    word: AtomicU64::new(0),
                    idle_since: AtomicU64::new(0),
                    sleepers: AtomicUsize::new(0),
                    asleep: AtomicBool::new(false),
                })
                .collect(),
            inner: Mutex::new(Inner {
                parked: Vec::new(),
                holders: vec![None; lanes],
                extra: Vec::new(),
            }),
            waits: Waits(AtomicU64::new(1)),
            extra: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            free: AtomicUsize::new(lanes),
            closed: AtomicBool::new(false),
            called: AtomicBool::new(false),
            hand_overs: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hold(&self, lane: usize) -> Hold {
        Hold::from_word(self.lanes[lane].word.load(Ordering::SeqCst))
    }

    /// Whether this worker holds this lane and runs.
    pub(crate) fn runs(&self, lane: usize, worker: WorkerId) -> bool {
        self.lanes[lane].word.load(Ordering::Acquire) == Hold::Running(worker).word()
    }

    /// The lane this worker holds, if any.
    pub(crate) fn lane_of(&self, worker: &Worker) -> Option<usize> {
        worker.lane().filter(|&lane| self.runs(lane, worker.id))
    }

    fn swap(&self, lane: usize, from: Hold, to: Hold) -> bool {
        self.lanes[lane]
            .word
            .compare_exchange(from.word(), to.word(), Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Whether there are lanes that nobody holds.
    pub(crate) fn any_free(&self) -> bool {
        self.free.load(Ordering::Relaxed) > 0
    }

    fn is_idle(&self, lane: usize) -> bool {
        matches!(self.hold(lane), Hold::Idle(_))
    }

    /// The lanes whose holders wait, as they are looked at one by one.
    fn idle(&self) -> impl Iterator<Item = usize> {
        (0..self.lanes.len()).filter(|&lane| self.is_idle(lane))
    }

    /// Whether a worker waits in a lane of its own.
    pub(crate) fn any_idle(&self) -> bool {
        self.idle().next().is_some()
    }

    /// Whether all lanes have a worker that waits.
    pub(crate) fn all_idle(&self) -> bool {
        (0..self.lanes.len()).all(|lane| self.is_idle(lane))
    }

    /// Whether nobody holds this lane.
    pub(crate) fn is_free(&self, lane: usize) -> bool {
        self.hold(lane) == Hold::Free
    }

    /// How many lanes are running, workers that run without a lane included.
    pub(crate) fn running(&self) -> usize {
        let lanes = 0..self.lanes.len();
        let running = lanes.filter(|&lane| matches!(self.hold(lane), Hold::Running(_))).count();
        running + self.extra()
    }

    /// How many workers wait, in an idle lane or parked.
    pub(crate) fn waiting(&self) -> usize {
        let asleep = |lane: &usize| self.lanes[*lane].asleep.load(Ordering::Relaxed);
        self.idle().filter(asleep).count() + self.parked()
    }

    pub(crate) fn parked(&self) -> usize {
        self.parked.load(Ordering::SeqCst)
    }

    pub(crate) fn extra(&self) -> usize {
        self.extra.load(Ordering::Relaxed)
    }

    pub(crate) fn hand_overs(&self) -> u64 {
        self.hand_overs.load(Ordering::Relaxed)
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// The holder of a lane, as far as one can know without stopping the world.
    pub(crate) fn holder(&self, lane: usize) -> Option<Arc<Worker>> {
        self.lock().holders[lane].clone()
    }

    /// Whether this worker stands on top of the stack: it is the one that keeps watch.
    pub(crate) fn on_watch(&self, worker: &Worker) -> bool {
        self.lock().parked.last().is_some_and(|top| top.id == worker.id)
    }

    // ---- Coming to wait -------------------------------------------------------------------

    /// A worker without a lane wants one. With `park` unset it does not want to wait for it.
    pub(crate) fn acquire(&self, worker: &Arc<Worker>, park: bool) -> Acquired {
        let mut inner = self.lock();
        self.forget_extra(&mut inner, worker.id);
        let count = self.lanes.len();
        // It may have been given a lane since it looked.
        if let Some(lane) = self.lane_of(worker) {
            return Acquired::Lane(lane);
        }
        for lane in 0..count {
            if self.swap(lane, Hold::Free, Hold::Running(worker.id)) {
                self.free.fetch_sub(1, Ordering::SeqCst);
                self.seat(&mut inner, lane, worker);
                return Acquired::Lane(lane);
            }
        }
        if inner.parked.iter().any(|parked| parked.id == worker.id) {
            // Its lane was taken while it slept in it, and it has its place on the stack.
            return Acquired::Parked;
        }
        if !park {
            return Acquired::Refused;
        }
        // The oldest idle holder makes room. While we look it may begin to run: look again.
        loop {
            let since = |lane: &usize| self.lanes[*lane].idle_since.load(Ordering::Relaxed);
            let Some(lane) = self.idle().min_by_key(since) else { break };
            let Hold::Idle(former) = self.hold(lane) else { continue };
            if self.swap(lane, Hold::Idle(former), Hold::Running(worker.id)) {
                if let Some(former) = inner.holders[lane].take() {
                    self.push_parked(&mut inner, former);
                }
                self.seat(&mut inner, lane, worker);
                return Acquired::Displaced(lane);
            }
        }
        self.push_parked(&mut inner, worker.clone());
        Acquired::Parked
    }

    fn seat(&self, inner: &mut Inner, lane: usize, worker: &Arc<Worker>) {
        worker.lane.store(lane + 1, Ordering::Release);
        inner.holders[lane] = Some(worker.clone());
    }

    fn push_parked(&self, inner: &mut Inner, worker: Arc<Worker>) {
        self.begin_wait(&worker);
        inner.parked.push(worker);
        self.parked.store(inner.parked.len(), Ordering::SeqCst);
    }

    fn pop_parked(&self, inner: &mut Inner) -> Option<Arc<Worker>> {
        let worker = inner.parked.pop();
        self.parked.store(inner.parked.len(), Ordering::SeqCst);
        worker
    }

    fn forget_extra(&self, inner: &mut Inner, worker: WorkerId) {
        inner.extra.retain(|extra| extra.id != worker);
        self.extra.store(inner.extra.len(), Ordering::SeqCst);
    }

    /// A parked worker gives up waiting. False: it has been given a lane in the meantime.
    pub(crate) fn unpark(&self, worker: &Worker) -> bool {
        let mut inner = self.lock();
        let place = inner.parked.iter().position(|parked| parked.id == worker.id);
        let Some(place) = place else { return false };
        let was_top = place + 1 == inner.parked.len();
        inner.parked.remove(place);
        self.parked.store(inner.parked.len(), Ordering::SeqCst);
        if was_top && let Some(top) = inner.parked.last() {
            top.notify(Signal::Watch);
        }
        true
    }

    /// A parked worker goes on running without a lane, its wait having timed out.
    pub(crate) fn run_extra(&self, worker: &Arc<Worker>) {
        let mut inner = self.lock();
        if self.lane_of(worker).is_none() && !inner.extra.iter().any(|w| w.id == worker.id) {
            inner.extra.push(worker.clone());
            self.extra.store(inner.extra.len(), Ordering::SeqCst);
        }
    }

    // ---- Sleeping in a lane ---------------------------------------------------------------

    /// Since when a worker waits: from now on, if it did not before. A place on the stack or in
    /// another lane does not make it newer.
    fn begin_wait(&self, worker: &Worker) -> u64 {
        let since = worker.since.load(Ordering::Relaxed);
        if since > 0 {
            return since;
        }
        let now = self.waits.0.fetch_add(1, Ordering::Relaxed);
        worker.since.store(now, Ordering::Relaxed);
        now
    }

    /// The holder of a lane waits in it. `work_waits` looks once more for work that was queued
    /// before the lane went idle; if there is none, `wait` sleeps until a wake-up of the lane,
    /// which may have come before. False: the lane has another holder now, and the worker stands
    /// on the stack, or holds another lane.
    pub(crate) fn doze(
        &self,
        lane: usize,
        worker: &Worker,
        work_waits: impl FnOnce() -> bool,
        wait: impl FnOnce(),
    ) -> bool {
        let place = &self.lanes[lane];
        place.sleepers.fetch_add(1, Ordering::SeqCst);
        place.idle_since.store(self.begin_wait(worker), Ordering::Relaxed);
        let worker = worker.id;
        if self.swap(lane, Hold::Running(worker), Hold::Idle(worker)) {
            // Who queues work after this look finds the lane idle, and wakes it.
            fence(Ordering::SeqCst);
            if !work_waits() && !self.is_called() && !self.closed() {
                place.asleep.store(true, Ordering::Relaxed);
                wait();
                place.asleep.store(false, Ordering::Relaxed);
            }
        }
        place.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.swap(lane, Hold::Idle(worker), Hold::Running(worker)) || self.runs(lane, worker)
    }

    /// Whether somebody waits in a lane, or is on the way into or out of it.
    pub(crate) fn has_sleepers(&self, lane: usize) -> bool {
        self.lanes[lane].sleepers.load(Ordering::Relaxed) > 0
    }

    /// Wakes those who still sleep in a lane that is not theirs any more, until they are gone: two
    /// sleepers would both be woken by one completion, and one that stands on the stack could not
    /// be reached there.
    pub(crate) fn evict(&self, lane: usize, holder: WorkerId, mut wake: impl FnMut()) {
        let mut attempt = 0;
        // The holder may lose the lane meanwhile: who sleeps there then does so rightly.
        while self.lanes[lane].sleepers.load(Ordering::SeqCst) > 0 && self.runs(lane, holder) {
            wake();
            pause(attempt);
            attempt += 1;
        }
    }

    /// Work has come that any worker may take: picks the newest waiter, whose lane runs from now
    /// on and must be woken. None: nobody waits in a lane, so somebody running will come by.
    pub(crate) fn release_newest(&self) -> Option<usize> {
        fence(Ordering::SeqCst);
        loop {
            let since = |lane: &usize| self.lanes[*lane].idle_since.load(Ordering::Relaxed);
            let lane = self.idle().max_by_key(since)?;
            if let Hold::Idle(worker) = self.hold(lane)
                && self.swap(lane, Hold::Idle(worker), Hold::Running(worker))
            {
                return Some(lane);
            }
        }
    }

    /// Work waits in a lane whose holder will not come for it soon, and that others may take. As
    /// `release_newest`, but a worker that runs and is about to wait looks for work once more.
    pub(crate) fn call_for_help(&self) -> Option<usize> {
        self.called.store(true, Ordering::SeqCst);
        self.release_newest()
    }

    /// Whether somebody has called for help: the worker that asks is to look for work again.
    fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst) && self.called.swap(false, Ordering::SeqCst)
    }

    // ---- Giving a lane up -----------------------------------------------------------------

    /// The holder of a running lane gives it up: to the newest parked worker, or to nobody. True:
    /// to nobody, so that another worker must attend to it.
    pub(crate) fn leave(&self, worker: &Worker) -> bool {
        let mut inner = self.lock();
        self.forget_extra(&mut inner, worker.id);
        self.lane_of(worker).is_some_and(|lane| self.vacate(&mut inner, lane, worker.id))
    }

    fn vacate(&self, inner: &mut Inner, lane: usize, holder: WorkerId) -> bool {
        let from = Hold::Running(holder);
        if let Some(extra) = inner.extra.pop() {
            if self.swap(lane, from, Hold::Running(extra.id)) {
                self.seat(inner, lane, &extra);
            } else {
                inner.extra.push(extra);
            }
            self.extra.store(inner.extra.len(), Ordering::SeqCst);
            return false;
        }
        let heir = if self.closed() { None } else { inner.parked.last().cloned() };
        let Some(heir) = heir else {
            let freed = self.swap(lane, from, Hold::Free);
            if freed {
                inner.holders[lane] = None;
                self.free.fetch_add(1, Ordering::SeqCst);
            }
            return freed;
        };
        if self.swap(lane, from, Hold::Running(heir.id)) {
            self.pop_parked(inner);
            self.seat(inner, lane, &heir);
            self.hand_overs.fetch_add(1, Ordering::Relaxed);
            heir.notify(Signal::Lane);
            if let Some(top) = inner.parked.last() {
                top.notify(Signal::Watch);
            }
        }
        false
    }

    /// A worker is back from a block it had declared, or has noticed that it lost its lane in one
    /// it had not: it runs on, in a free lane if there is one, else beyond the limit until some
    /// worker waits.
    pub(crate) fn come_back(&self, worker: &Arc<Worker>) {
        let mut inner = self.lock();
        if self.lane_of(worker).is_some() {
            return;
        }
        for lane in 0..self.lanes.len() {
            if self.swap(lane, Hold::Free, Hold::Running(worker.id)) {
                self.free.fetch_sub(1, Ordering::SeqCst);
                self.seat(&mut inner, lane, worker);
                return;
            }
        }
        if !inner.extra.iter().any(|extra| extra.id == worker.id) {
            inner.extra.push(worker.clone());
            self.extra.store(inner.extra.len(), Ordering::SeqCst);
        }
    }

    /// More workers run than there are lanes, and this one comes to wait: its lane passes to one
    /// that runs without.
    pub(crate) fn repay(&self, worker: &Worker) {
        let mut inner = self.lock();
        let Some(lane) = self.lane_of(worker) else { return };
        let Some(extra) = inner.extra.pop() else { return };
        if self.swap(lane, Hold::Running(worker.id), Hold::Running(extra.id)) {
            self.seat(&mut inner, lane, &extra);
        } else {
            inner.extra.push(extra);
        }
        self.extra.store(inner.extra.len(), Ordering::SeqCst);
    }

    /// The watch has found that the holder of a running lane is blocked: the watching worker takes
    /// the lane. False: one of the two has moved on.
    pub(crate) fn take_over(&self, lane: usize, blocked: WorkerId, watcher: &Arc<Worker>) -> bool {
        let mut inner = self.lock();
        // It may have been given a lane while it looked.
        if self.closed()
            || self.lane_of(watcher).is_some()
            || !self.swap(lane, Hold::Running(blocked), Hold::Running(watcher.id))
        {
            return false;
        }
        inner.parked.retain(|parked| parked.id != watcher.id);
        self.parked.store(inner.parked.len(), Ordering::SeqCst);
        self.seat(&mut inner, lane, watcher);
        self.hand_overs.fetch_add(1, Ordering::Relaxed);
        if let Some(top) = inner.parked.last() {
            top.notify(Signal::Watch);
        }
        true
    }

    /// Wakes the worker on top of the stack to keep watch.
    pub(crate) fn call_watch(&self) {
        if let Some(top) = self.lock().parked.last() {
            top.notify(Signal::Watch);
        }
    }

    // ---- Closing --------------------------------------------------------------------------

    /// Closes: parked workers are let go, and no lane changes hands any more. Returns the lanes
    /// that must be woken.
    pub(crate) fn close(&self) -> Vec<usize> {
        let mut inner = self.lock();
        self.closed.store(true, Ordering::SeqCst);
        // Who goes idle after this sees it, and who did before is seen below.
        fence(Ordering::SeqCst);
        for worker in inner.parked.drain(..) {
            worker.notify(Signal::Watch);
        }
        self.parked.store(0, Ordering::SeqCst);
        self.idle().collect()
    }
}

#[cfg(all(test, loom))]
mod model {
    //! Every interleaving of a few threads with the real schedule, on lanes that are condition
    //! variables. The loop is the port's own, reduced to posted packets.

    use loom::thread;

    use super::*;

    struct Model {
        schedule: Schedule,
        /// Wake-ups of each lane that nobody has taken.
        wakes: Vec<(Mutex<usize>, Condvar)>,
        queue: Mutex<usize>,
        queued: AtomicUsize,
        /// Packets in a lane whose holder will not come for them.
        left: Mutex<usize>,
        taken: AtomicUsize,
    }

    impl Model {
        fn new(lanes: usize) -> Arc<Self> {
            Arc::new(Self {
                schedule: Schedule::new(lanes),
                wakes: (0..lanes).map(|_| (Mutex::new(0), Condvar::new())).collect(),
                queue: Mutex::new(0),
                queued: AtomicUsize::new(0),
                left: Mutex::new(0),
                taken: AtomicUsize::new(0),
            })
        }

        fn wake(&self, lane: usize) {
            *self.wakes[lane].0.lock().unwrap() += 1;
            self.wakes[lane].1.notify_all();
        }

        fn sleep(&self, lane: usize) {
            let (wakes, woken) = &self.wakes[lane];
            let mut count = wakes.lock().unwrap();
            while *count == 0 {
                count = woken.wait(count).unwrap();
            }
        }

        fn post(&self) {
            let mut queue = self.queue.lock().unwrap();
            *queue += 1;
            self.queued.store(*queue, Ordering::SeqCst);
            drop(queue);
            if let Some(lane) = self.schedule.release_newest() {
                self.wake(lane);
            }
        }

        fn take(&self, lane: usize) -> bool {
            // The holder clears wake-ups out of its lane, as it does in the real queue.
            *self.wakes[lane].0.lock().unwrap() = 0;
            let mut queue = self.queue.lock().unwrap();
            if *queue == 0 {
                drop(queue);
                return self.steal();
            }
            *queue -= 1;
            self.queued.store(*queue, Ordering::SeqCst);
            drop(queue);
            let running = self.schedule.running() - self.schedule.extra();
            assert!(running <= self.wakes.len(), "more run than may");
            self.taken.fetch_add(1, Ordering::SeqCst);
            true
        }

        fn steal(&self) -> bool {
            let mut left = self.left.lock().unwrap();
            let some = *left > 0;
            *left -= usize::from(some);
            some
        }

        fn close(&self) {
            for lane in self.schedule.close() {
                self.wake(lane);
            }
        }

        /// Waits for one packet. False: closed.
        fn wait(&self, worker: &Arc<Worker>) -> bool {
            loop {
                if self.schedule.closed() {
                    return false;
                }
                let Some(lane) = self.schedule.lane_of(worker) else {
                    match self.schedule.acquire(worker, true) {
                        Acquired::Lane(_) => {}
                        Acquired::Displaced(lane) => {
                            self.schedule.evict(lane, worker.id, || self.wake(lane));
                        }
                        Acquired::Refused => unreachable!("it wants to wait"),
                        Acquired::Parked => {
                            while !self.schedule.closed() && worker.park(None) != Parked::Lane {}
                        }
                    }
                    continue;
                };
                if self.schedule.extra() > 0 {
                    self.schedule.repay(worker);
                    if !self.schedule.runs(lane, worker.id) {
                        continue;
                    }
                }
                if self.take(lane) {
                    worker.end_wait();
                    return true;
                }
                self.schedule.evict(lane, worker.id, || self.wake(lane));
                let work_waits = || self.queued.load(Ordering::SeqCst) > 0;
                self.schedule.doze(lane, worker, work_waits, || self.sleep(lane));
            }
        }
    }

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(model);
    }

    fn worker(model: &Arc<Model>, id: WorkerId, packets: usize) -> thread::JoinHandle<Arc<Worker>> {
        let model = model.clone();
        thread::spawn(move || {
            let worker = Worker::new(id, 0);
            for _ in 0..packets {
                assert!(model.wait(&worker), "closed before its packet came");
            }
            worker
        })
    }

    #[test]
    fn a_post_wakes_a_worker_that_is_about_to_sleep() {
        check(|| {
            let model = Model::new(1);
            let one = worker(&model, 1, 2);
            model.post();
            model.post();
            one.join().unwrap();
            assert_eq!(model.taken.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn two_workers_take_two_packets_through_one_lane() {
        check(|| {
            let model = Model::new(1);
            let run = |id| {
                let model = model.clone();
                thread::spawn(move || {
                    let worker = Worker::new(id, 0);
                    assert!(model.wait(&worker));
                    // It exits, and its lane must reach the other.
                    model.schedule.leave(&worker);
                })
            };
            let (one, two) = (run(1), run(2));
            model.post();
            model.post();
            one.join().unwrap();
            two.join().unwrap();
            assert_eq!(model.taken.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn a_call_for_help_reaches_a_worker_that_is_about_to_wait() {
        check(|| {
            let model = Model::new(2);
            let busy = Worker::new(1, 0);
            assert_eq!(model.schedule.acquire(&busy, true), Acquired::Lane(0));
            let idle = worker(&model, 2, 1);
            *model.left.lock().unwrap() += 1;
            if let Some(lane) = model.schedule.call_for_help() {
                model.wake(lane);
            }
            // It does not come by until the other worker has taken what it left.
            idle.join().unwrap();
        });
    }

    #[test]
    fn closing_reaches_every_waiter() {
        check(|| {
            let model = Model::new(1);
            let run = |id| {
                let model = model.clone();
                thread::spawn(move || while model.wait(&Worker::new(id, 0)) {})
            };
            let (one, two) = (run(1), run(2));
            model.close();
            one.join().unwrap();
            two.join().unwrap();
        });
    }

    #[test]
    fn a_blocked_worker_loses_its_lane_to_the_watch_and_waits_again() {
        check(|| {
            let model = Model::new(1);
            let blocked = Worker::new(1, 0);
            assert_eq!(model.schedule.acquire(&blocked, true), Acquired::Lane(0));
            let watcher = {
                let model = model.clone();
                thread::spawn(move || {
                    let worker = Worker::new(2, 0);
                    match model.schedule.acquire(&worker, true) {
                        Acquired::Parked => {
                            model.schedule.take_over(0, 1, &worker);
                        }
                        Acquired::Displaced(lane) => {
                            model.schedule.evict(lane, worker.id, || model.wake(lane));
                        }
                        other => assert_eq!(other, Acquired::Lane(0)),
                    }
                    assert!(model.wait(&worker));
                    model.schedule.leave(&worker);
                })
            };
            model.post();
            model.post();
            // It comes back from its block and waits, with or without its lane.
            assert!(model.wait(&blocked));
            model.schedule.leave(&blocked);
            watcher.join().unwrap();
            assert_eq!(model.taken.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn a_declared_block_lets_another_worker_run() {
        check(|| {
            let model = Model::new(1);
            let declared = Worker::new(1, 0);
            assert_eq!(model.schedule.acquire(&declared, true), Acquired::Lane(0));
            let other = worker(&model, 2, 1);
            model.post();
            // The block lasts until the other worker has taken the packet: it must get the lane.
            model.schedule.leave(&declared);
            let other = other.join().unwrap();
            model.schedule.come_back(&declared);
            model.schedule.leave(&other);
            model.post();
            assert!(model.wait(&declared));
        });
    }

    #[test]
    fn a_worker_that_ran_beyond_the_limit_is_given_a_lane_by_one_that_waits() {
        check(|| {
            let model = Model::new(1);
            let (one, two) = (Worker::new(1, 0), Worker::new(2, 0));
            assert_eq!(model.schedule.acquire(&one, true), Acquired::Lane(0));
            model.schedule.come_back(&two);
            assert_eq!(model.schedule.running(), 2);
            let waits = {
                let (model, one) = (model.clone(), one);
                thread::spawn(move || {
                    assert!(model.wait(&one));
                    model.schedule.leave(&one);
                })
            };
            model.post();
            model.post();
            assert!(model.wait(&two));
            model.schedule.leave(&two);
            waits.join().unwrap();
            assert_eq!(model.schedule.running(), 0);
        });
    }
}
