//! The watch: how a block that nobody declared is noticed.
//!
//! Linux tells no program when one of its threads blocks. So the parked worker on top of the stack
//! looks, at a pace, whether the holders of running lanes get on, and only where packets wait. A
//! holder that sleeps outside the port loses its lane to the watching worker; one that computes
//! keeps it, but has its submissions made for it, and idle workers take its completions.
//!
//! The pace is slow until a block is seen, fast while blocks keep coming, and nothing at all once
//! no worker has run for a while. While it is slow, workers that get on put the next look off: each
//! says when it last came back from the kernel, and a look is due only so long after the earliest
//! of them. Waking somebody to look costs several times as much, so nobody is woken as long as all
//! get on.
//!
//! Where others use the processors too, so that workers wait their turn, it is slower still: a look
//! would take a turn from somebody, and find most often that the worker has none.

use std::{
    cell::Cell,
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    sync::Arc,
    sync::Mutex,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{
    port::Shared,
    repose::Repose,
    schedule::{Hold, Parked, Worker},
};
use crate::{
    sync::lock,
    sys::{
        Alarm, Lane, processor_delay, processor_time, processor_time_of_all, processors_idle,
    },
};

/// A first block is noticed within a millisecond. A look costs a few microseconds, a good part of
/// them for being woken: 1 % of a processor at this pace, while workers run.
const SLOW: Duration = Duration::from_micros(900);
const FAST: Duration = Duration::from_micros(50);
/// How long after a block the watch stays fast.
const ALERT: Duration = Duration::from_millis(30);
/// A look that is due within this time is put off by a worker that gets on, and one that would be
/// put off by less is not: each time costs a system call, and on a virtual machine more than that.
const MARGIN: Duration = Duration::from_micros(100);
/// It is so much longer for each operation that is about to be submitted: until that is done, the
/// worker does not come back to put anything off.
const SUBMISSION: Duration = Duration::from_nanos(1500);
/// Looks at a port of which no worker runs, after which the watch sleeps until one does. To rouse
/// it costs about as much as a look.
const IDLE_LOOKS: u32 = 1;
/// How many times the alarm is unset, at a system call each, where waits turn out to be short, for
/// each time that a look finds nobody running, or would have.
const RESTS: u32 = 8;
/// A holder that does not get on, but has used so much of a processor meanwhile, computes. One that
/// has used less waits for a processor, and nobody does its work for it without one; but after
/// so long, whoever can get one should.
const COMPUTES: Duration = Duration::from_micros(450);
const OUTRUN: Duration = Duration::from_millis(10);
/// The pace where others use the processors too: where a worker has lately waited for one for a
/// quarter of the time. A look would mostly come while it waits, take somebody's turn, and find
/// nothing; and whoever takes a lane over would have to wait, too. Schedulers change turns every
/// few milliseconds.
const CROWDED: Duration = Duration::from_millis(6);
const CROWDED_FROM: u32 = 4;
/// There, a look is put off so much earlier: before the worker's turn is over, and by more than
/// the turn of another lasts. It is due after the scheduler's next tick (of 4 ms, most often), so
/// that the processor's timer mostly stays as it is.
const TURN: Duration = Duration::from_micros(4200);
/// How long processors are taken to stay crowded, and how often a worker asks.
const CROWD: Duration = Duration::from_millis(100);
const ASK: Duration = Duration::from_millis(25);
/// How many packets must wait in a lane that gets on before an idle worker is woken to help.
const HELP_FROM: u32 = 8;
/// It is woken if half a processor or more had nothing to do for the last while, or a packet costs
/// so much that another worker makes up for what two lanes cost: each then has fewer packets in a
/// turn, so more system calls and changes of thread. Otherwise others use the processors, most
/// often those who send what waits.
const LEISURE: u32 = 2;
const WORTH_HELP: Duration = Duration::from_micros(6);
const MEASURED_FOR: Duration = Duration::from_millis(100);

thread_local! {
    /// When this worker last asked how long it has waited for processors, and what it was told.
    static DELAYED: Cell<Option<(Instant, Option<Duration>)>> = const { Cell::new(None) };
}

#[derive(Debug)]
pub(crate) struct Watch {
    repose: Repose,
    alert: AtomicBool,
    noticed: AtomicU64,
    /// Looks in a row that found no worker running.
    idle_looks: AtomicU32,
    /// How often the alarm may be unset by a worker that begins to wait.
    rests: AtomicU32,
    /// When it last was, by the alarm's clock.
    rested: AtomicU64,
    /// Until when processors are taken to be crowded, by the alarm's clock.
    crowded_until: AtomicU64,
    need: Mutex<Need>,
    /// None: the watching worker wakes at every look, as it does while blocks keep coming.
    alarm: Option<Alarm>,
    /// When each lane's holder was last seen to get on, by the alarm's clock.
    seen: Vec<Seen>,
    state: Mutex<State>,
}

/// On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Seen(AtomicU64);

#[derive(Debug)]
struct State {
    lanes: Vec<Looked>,
    alert_until: Option<Instant>,
    /// The files that tell what a thread does.
    threads: HashMap<i32, File>,
}

/// Whether another worker is worth while where packets wait.
#[derive(Debug, Default)]
struct Need {
    /// When that was last measured, and from what.
    asked: Option<(Instant, Measured)>,
    found: bool,
}

/// Sums since the system, or the process, began.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// How long processors had nothing to do, where the system tells.
    idle: Option<Duration>,
    /// The processor time of this process.
    used: Option<Duration>,
    packets: u64,
}

impl Need {
    fn is_there(&mut self, now: Instant, measure: impl FnOnce() -> Measured) -> bool {
        let before = self.asked.map(|(asked, measured)| (now - asked, measured));
        if before.is_some_and(|(time, _)| time < MEASURED_FOR) {
            return self.found;
        }
        let after = measure();
        self.asked = Some((now, after));
        self.found = match before {
            Some((time, before)) if time < 2 * MEASURED_FOR => after.is_worth(&before, time),
            // There was less to do meanwhile.
            _ => false,
        };
        self.found
    }
}

impl Measured {
    /// Whether, since `before`, so long ago, a processor was there, or packets were worth one.
    fn is_worth(&self, before: &Self, time: Duration) -> bool {
        let packets = u32::try_from(self.packets.saturating_sub(before.packets));
        let times = (since(self.idle, before.idle), since(self.used, before.used));
        let (Some(idle), Some(used)) = times else { return true };
        idle * LEISURE >= time || used >= WORTH_HELP * packets.unwrap_or(u32::MAX)
    }
}

fn since(after: Option<Duration>, before: Option<Duration>) -> Option<Duration> {
    Some(after?.saturating_sub(before?))
}

/// What looks at a lane have found.
#[derive(Clone, Copy, Debug)]
struct Looked {
    /// How far it has come.
    progress: u64,
    /// When it was first seen to have come so far.
    since: Instant,
    /// The processor time of its holder, when that was first asked for since.
    used: Option<Duration>,
}

impl Looked {
    /// Notes how far it has come. Whether that is further than at the last look.
    fn notice(&mut self, progress: u64, now: Instant) -> bool {
        let gets_on = self.progress != progress;
        if gets_on {
            *self = Self { progress, since: now, used: None };
        }
        gets_on
    }

    /// Whether its holder, which has used so much of a processor by now and does not get on,
    /// computes, and does not only wait for a processor.
    fn computes(&mut self, now: Instant, used: Option<Duration>) -> bool {
        let Some(used) = used else { return true };
        let before = *self.used.get_or_insert(used);
        used.saturating_sub(before) >= COMPUTES || now - self.since >= OUTRUN
    }
}

/// What a thread does, as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Runs,
    Sleeps,
}

impl Watch {
    pub(crate) fn new(lanes: usize, on: bool) -> Self {
        let alarm = on.then(Alarm::new).transpose().unwrap_or_else(|error| {
            log::warn!("no timer: the watch wakes more often than it has to: {error}");
            None
        });
        Self {
            alarm,
            seen: (0..lanes).map(|_| Seen::default()).collect(),
            repose: Repose::new(),
            alert: AtomicBool::new(false),
            noticed: AtomicU64::new(0),
            idle_looks: AtomicU32::new(0),
            rests: AtomicU32::new(0),
            rested: AtomicU64::new(0),
            crowded_until: AtomicU64::new(0),
            need: Mutex::new(Need::default()),
            state: Mutex::new(State {
                lanes: vec![
                    Looked { progress: 0, since: Instant::now(), used: None };
                    lanes
                ],
                alert_until: None,
                threads: HashMap::new(),
            }),
        }
    }

    /// Blocks noticed so far.
    pub(crate) fn noticed(&self) -> u64 {
        self.noticed.load(Ordering::Relaxed)
    }

    /// Whether a block was noticed a short while ago.
    pub(crate) fn alert(&self) -> bool {
        self.alert.load(Ordering::Relaxed)
    }

    /// Forgets a thread that is about to exit.
    pub(crate) fn forget(&self, thread: i32) {
        lock(&self.state).threads.remove(&thread);
    }

    /// How long the watching worker sleeps before its next look. None: until it is roused.
    fn tick(&self, port: &Shared) -> Option<Duration> {
        if self.idle_looks.load(Ordering::Relaxed) >= IDLE_LOOKS {
            if self.repose.lie_down(|| port.dispatch.schedule.all_idle()) {
                return None;
            }
            self.idle_looks.store(0, Ordering::Relaxed);
        }
        Some(if self.alert() { FAST } else { SLOW })
    }

    /// How long after a worker was last seen to get on the next look is due.
    fn pace(&self, now: u64) -> Pace {
        if now < self.crowded_until.load(Ordering::Relaxed) { Pace::CROWDED } else { Pace::SLOW }
    }

    /// How long a worker in an idle lane sleeps before it looks, where none is parked.
    pub(crate) fn idle_tick(&self) -> Duration {
        SLOW * 2u32.pow(self.idle_looks.load(Ordering::Relaxed).min(7))
    }

    /// A worker of an idle lane was woken by a packet.
    pub(crate) fn was_busy(&self) {
        // Others look at what is beside it for each packet.
        if self.idle_looks.load(Ordering::Relaxed) > 0 {
            self.idle_looks.store(0, Ordering::Relaxed);
        }
    }

    /// A worker begins to run: if the watch sleeps, it is called.
    pub(crate) fn rouse(&self, port: &Shared) {
        if self.repose.rouse() {
            self.call(port);
        }
    }

    fn call(&self, port: &Shared) {
        self.idle_looks.store(0, Ordering::Relaxed);
        if let Some(alarm) = &self.alarm {
            let rested = self.rested.swap(0, Ordering::Relaxed);
            if rested > 0 && alarm.now() >= rested + nanos(SLOW) {
                self.rests.store(RESTS, Ordering::Relaxed);
            }
            alarm.set(SLOW);
            if alarm.is_heard() {
                return;
            }
        }
        port.dispatch.schedule.call_watch();
    }

    /// A worker has nothing to do, and begins to wait. If it is the last, and waits have lately
    /// been long, it sends the watch to sleep, which then need not look to find that out.
    pub(crate) fn rest(&self, port: &Shared) {
        let Some(alarm) = &self.alarm else { return };
        let rests = self.rests.load(Ordering::Relaxed);
        if rests == 0 || self.alert() || alarm.due().is_none() {
            return;
        }
        let unset = || {
            self.rests.store(rests - 1, Ordering::Relaxed);
            self.rested.store(alarm.now(), Ordering::Relaxed);
            alarm.unset();
        };
        if self.repose.rest(|| port.dispatch.schedule.all_idle(), unset) {
            self.call(port);
        }
    }

    /// A lane's holder gets on: it comes back from the kernel or is about to enter it, or has taken
    /// some packets. Where all who run do, the next look is put off.
    #[inline]
    pub(crate) fn gets_on(&self, port: &Shared, lane: usize, now: Instant) {
        if let Some(alarm) = &self.alarm
            && let Some(due) = alarm.due()
        {
            let (time, now) = (now, alarm.at(now));
            self.seen[lane].0.store(now, Ordering::Relaxed);
            let submits = port.lanes().get(lane).map_or(0, Lane::unsubmitted);
            let ahead = u64::from(submits) * nanos(SUBMISSION);
            if due < now + self.pace(now).margin + ahead {
                self.notice_crowd(time, now, processor_delay);
                if self.put_off(port, lane, alarm, due, now) {
                    self.have_help(port, time);
                }
            }
        }
    }

    /// Asks now and then how long this worker has waited for a processor.
    fn notice_crowd(
        &self,
        time: Instant,
        now: u64,
        delay: impl FnOnce() -> Option<Duration>,
    ) {
        let last = DELAYED.get();
        if last.is_some_and(|(asked, _)| time - asked < ASK) {
            return;
        }
        let delay = delay();
        DELAYED.set(Some((time, delay)));
        if let (Some((asked, Some(before))), Some(delay)) = (last, delay)
            && delay.saturating_sub(before) * CROWDED_FROM >= time - asked
        {
            self.crowded_until.store(now + nanos(CROWD), Ordering::Relaxed);
        }
    }

    /// Whether it was put off, and an idle worker could help one that gets on.
    #[inline(never)]
    fn put_off(&self, port: &Shared, lane: usize, alarm: &Alarm, due: u64, now: u64) -> bool {
        let mut oldest = now;
        let mut help = false;
        for (number, ring) in port.lanes().iter().enumerate() {
            match port.dispatch.schedule.hold(number) {
                // Somebody has to look into it.
                Hold::Free => return false,
                // Should it run and block, it does so after this.
                Hold::Idle(_) => {}
                Hold::Running(_) => {
                    if number != lane {
                        oldest = oldest.min(self.seen[number].0.load(Ordering::Relaxed));
                    }
                    help |= ring.ready() >= HELP_FROM;
                }
            }
        }
        let later = self.pace(now).later(due, oldest);
        let put_off = later.is_some_and(|later| alarm.put_off(due, later));
        put_off && help && port.dispatch.schedule.any_idle()
    }

    /// Packets wait in a lane that gets on: wakes an idle worker, if that is worth while.
    fn have_help(&self, port: &Shared, now: Instant) {
        let measure = || {
            let [packets] = port.sums([|tally| &tally.packets]);
            Measured { idle: processors_idle(), used: processor_time_of_all(), packets }
        };
        if self.alert() || lock(&self.need).is_there(now, measure) {
            port.release_newest();
        }
    }

    /// Sleeps as the worker who keeps watch: until the next look is due (`TimedOut`), or it is
    /// given something else to do, or the time is over.
    pub(crate) fn keep(&self, port: &Shared, worker: &Worker, left: Option<Duration>) -> Parked {
        let tick = self.tick(port);
        if let Some(alarm) = &self.alarm
            && tick != Some(FAST)
        {
            if let Some(ear) = alarm.listen() {
                if tick.is_some() && !alarm.is_set() {
                    alarm.set(self.pace(alarm.now()).tick());
                }
                return worker.park_listening(ear.bell(), || ear.wait(left));
            }
            // One who kept watch before still listens, and is to stop.
            alarm.ring();
        }
        let tick = tick.unwrap_or(SLOW);
        worker.park(Some(left.map_or(tick, |left| left.min(tick))))
    }

    /// Looks at every running lane. `watcher`, a worker without a lane that looks, takes the first
    /// one whose holder is blocked: true.
    pub(crate) fn look(&self, port: &Shared, watcher: Option<&Arc<Worker>>) -> bool {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.alert_until.is_some_and(|until| now >= until) {
            state.alert_until = None;
            self.alert.store(false, Ordering::Relaxed);
        }
        let mut running = false;
        for (lane, ring) in port.lanes().iter().enumerate() {
            let holder = match port.dispatch.schedule.hold(lane) {
                Hold::Running(holder) => holder,
                Hold::Idle(_) => continue,
                Hold::Free => {
                    port.glance(lane);
                    port.relieve(lane);
                    continue;
                }
            };
            running = true;
            let progress = port.progress(lane);
            let gets_on = state.lanes[lane].notice(progress, now);
            // Where a system call tells what waits, it is made only if something depends on it.
            let waiting = || ring.ready() > 0 || port.queued() > 0;
            if ring.rouses() && !waiting() && ring.unsubmitted() == 0 {
                continue;
            }
            if port.dispatch.schedule.has_sleepers(lane) {
                // It is about to wake up in its lane.
                continue;
            }
            let thread = port.dispatch.schedule.holder(lane).filter(|worker| worker.id == holder);
            let Some(thread) = thread.map(|worker| worker.thread) else { continue };
            match state.doing(thread) {
                Doing::Sleeps => {
                    port.glance(lane);
                    if !waiting() {
                        port.relieve(lane);
                        continue;
                    }
                    // It may have gone on since: then it keeps its lane.
                    if port.progress(lane) != progress {
                        continue;
                    }
                    if let Some(watcher) = watcher
                        && port.dispatch.schedule.take_over(lane, holder, watcher)
                    {
                        self.noticed.fetch_add(1, Ordering::Relaxed);
                        state.alert_until = Some(now + ALERT);
                        self.alert.store(true, Ordering::Relaxed);
                        return true;
                    }
                    port.relieve(lane);
                }
                Doing::Runs => {
                    let computes = state.lanes[lane].computes(now, processor_time(thread));
                    if !gets_on && (computes || self.alert()) {
                        port.glance(lane);
                        port.relieve(lane);
                    } else if gets_on && port.dispatch.schedule.any_idle() {
                        port.glance(lane);
                        if ring.ready() >= HELP_FROM {
                            self.have_help(port, now);
                        }
                    }
                }
            }
        }
        if running {
            self.idle_looks.store(0, Ordering::Relaxed);
        } else {
            self.idle_looks.fetch_add(1, Ordering::Relaxed);
            self.rests.store(RESTS, Ordering::Relaxed);
        }
        false
    }
}

/// How often looks are made while no blocks come, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    tick: u64,
    /// A look that is due within this time is put off.
    margin: u64,
}

impl Pace {
    const SLOW: Self = Self { tick: nanos(SLOW), margin: nanos(MARGIN) };
    const CROWDED: Self = Self { tick: nanos(CROWDED), margin: nanos(TURN) };

    fn tick(self) -> Duration {
        Duration::from_nanos(self.tick)
    }

    /// Until when a look may be put off that is due at `due`, if those who run have been seen to
    /// get on at `oldest` or later. None: it is not worth while.
    fn later(self, due: u64, oldest: u64) -> Option<u64> {
        let later = oldest + self.tick;
        (later >= due + nanos(MARGIN)).then_some(later)
    }
}

const fn nanos(time: Duration) -> u64 {
    // They are all below a second.
    time.subsec_nanos() as u64
}

impl State {
    /// Whether a thread runs (or could) or sleeps. Where the system does not tell, it runs.
    fn doing(&mut self, thread: i32) -> Doing {
        use std::collections::hash_map::Entry;
        let file = match self.threads.entry(thread) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match File::open(format!("/proc/self/task/{thread}/stat")) {
                Ok(file) => entry.insert(file),
                Err(_) => return Doing::Runs,
            },
        };
        let mut line = [0; 128];
        let length = file.read_at(&mut line, 0).unwrap_or(0);
        // The name, in parentheses, may itself hold anything: the state follows the last one.
        let state = line[..length].iter().rposition(|&byte| byte == b')').map(|at| at + 2);
        match state.and_then(|at| line[..length].get(at)) {
            Some(b'S' | b'D') => Doing::Sleeps,
            _ => Doing::Runs,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A lane of the model: since when its holder runs without having been seen to get on.
    #[derive(Clone, Copy, Debug)]
    struct Lane {
        runs: bool,
        seen: u64,
    }

    proptest! {
        /// Would catch: a look that is put off because one worker gets on, while another does not;
        /// a margin that is added where it must not be.
        #[test]
        fn a_look_is_never_later_than_the_first_block_may_wait(
            pace in prop::sample::select(vec![Pace::SLOW, Pace::CROWDED]),
            steps in prop::collection::vec((0usize..3, 0u64..400_000, any::<bool>()), 1..200),
        ) {
            let mut lanes = [Lane { runs: true, seen: 0 }; 3];
            let (mut now, mut due) = (0, pace.tick);
            for (number, pause, runs) in steps {
                now += pause;
                while due <= now {
                    // A look finds who is blocked by then.
                    for lane in &mut lanes {
                        lane.seen = lane.seen.max(due);
                    }
                    due += pace.tick;
                }
                // It comes back from the kernel, and waits there again or not.
                lanes[number] = Lane { runs: true, seen: now };
                let others = lanes.iter().filter(|lane| lane.runs).map(|lane| lane.seen);
                if due < now + pace.margin
                    && let Some(later) = pace.later(due, others.min().unwrap_or(now))
                {
                    prop_assert!(later > due);
                    due = later;
                }
                for lane in lanes.iter().filter(|lane| lane.runs) {
                    prop_assert!(due <= lane.seen + pace.tick);
                }
                lanes[number].runs = runs;
            }
        }
    }

    /// Would catch: work that is done for a holder that only waits for its turn; a holder that
    /// computes on, or is outrun for long, and that nobody relieves.
    #[test]
    fn who_waits_for_a_processor_does_not_compute() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut lane = Looked { progress: 0, since: start, used: None };
        assert!(lane.notice(1, start));
        assert!(!lane.computes(start, Some(ms(5))));
        for look in 1..9 {
            let now = start + ms(look);
            assert!(!lane.notice(1, now));
            assert!(!lane.computes(now, Some(ms(5))), "others run");
        }
        assert!(lane.computes(start + ms(9), Some(ms(6))), "it has run for a millisecond");
        assert!(lane.computes(start + ms(10), Some(ms(5))), "others have run for long");
        assert!(lane.notice(2, start + ms(11)));
        assert!(!lane.computes(start + ms(11), Some(ms(9))));
        assert!(lane.computes(start + ms(12), None), "where the system does not say");
    }

    /// Would catch: a watch that does not learn that others use the processor, or never forgets it;
    /// one that takes a worker with a processor of its own for one that waits.
    #[test]
    fn who_waits_for_a_processor_is_in_a_crowd() {
        let watch = Watch::new(1, true);
        let ms = Duration::from_millis;
        let start = Instant::now();
        let ask = |at: Duration, delay| {
            let now = u64::try_from(at.as_nanos()).unwrap();
            let asked = Cell::new(false);
            watch.notice_crowd(start + at, now, || {
                asked.set(true);
                delay
            });
            (asked.get(), watch.pace(now).tick == Pace::CROWDED.tick)
        };
        assert_eq!(ask(ms(0), Some(ms(500))), (true, false), "it may have been at any time");
        assert_eq!(ask(ms(24), Some(ms(524))), (false, false), "it asks seldom");
        assert_eq!(ask(ms(100), Some(ms(524))), (true, false), "less than a quarter");
        assert_eq!(ask(ms(140), Some(ms(534))), (true, true));
        assert_eq!(ask(ms(239), Some(ms(534))), (true, true), "for a while");
        assert_eq!(ask(ms(240), Some(ms(534))), (false, false), "no longer");
        assert_eq!(ask(ms(265), None), (true, false), "where the system does not say");
        assert_eq!(ask(ms(266), None), (false, false), "it asks seldom there, too");
        assert_eq!(ask(ms(300), Some(ms(600))), (true, false));
    }

    /// Would catch: help where no processor is left and packets are cheap; none where one is, or
    /// packets are worth it; a system that is asked each time.
    #[test]
    fn another_worker_is_there_where_that_is_worth_while() {
        let mut need = Need::default();
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut ask = |at, idle: Option<u64>, used, packets| {
            let asked = Cell::new(false);
            let is_there = need.is_there(start + ms(at), || {
                asked.set(true);
                Measured { idle: idle.map(ms), used: Some(ms(used)), packets }
            });
            (asked.get(), is_there)
        };
        assert_eq!(ask(0, Some(7000), 0, 0), (true, false), "it has to be found out");
        assert_eq!(ask(99, Some(7000), 0, 0), (false, false), "it asks seldom");
        assert_eq!(ask(100, Some(7050), 50, 10_000), (true, true), "half of one is there");
        assert_eq!(ask(199, Some(7050), 50, 10_000), (false, true), "for a while");
        assert_eq!(ask(200, Some(7090), 150, 27_000), (true, false), "less, and 5.9 us each");
        assert_eq!(ask(300, Some(7090), 270, 47_000), (true, true), "6 us each");
        assert_eq!(ask(400, Some(7080), 370, 67_000), (true, false), "a clock that goes backwards");
        assert_eq!(ask(599, Some(7380), 470, 87_000), (true, true), "more than one is there");
        assert_eq!(ask(799, Some(7780), 999, 87_000), (true, false), "it was so long ago");
        assert_eq!(ask(899, None, 1000, 99_000), (true, true), "where the system does not say");
    }

    /// Would catch: a watch that wakes somebody a thousand times a second for nothing.
    #[test]
    fn nobody_is_woken_to_look_while_a_worker_gets_on() {
        let mut due = nanos(SLOW);
        let mut put_off = 0;
        for now in (0..1_000_000_000).step_by(50_000) {
            assert!(now < due);
            if due < now + nanos(MARGIN) {
                due = Pace::SLOW.later(due, now).expect("it gets on");
                put_off += 1;
            }
        }
        assert!(put_off < 1_300, "{put_off} system calls in a second");
    }
}
