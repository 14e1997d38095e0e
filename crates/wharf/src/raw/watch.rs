//! The watch: how a block that nobody declared is noticed.
//!
//! Linux tells no program when one of its threads blocks. So the parked worker on top of the stack
//! looks, at a pace, whether the holders of running lanes get on, and only where packets wait. A
//! holder that sleeps outside the port loses its lane to the watching worker; one that computes
//! keeps it, but has its submissions made for it, and idle workers take its completions.
//!
//! The pace is slow until a block is seen, fast while blocks keep coming, and nothing at all once
//! no worker has run for a while.

use std::{
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
    schedule::{Hold, Worker},
};
use crate::sync::lock;

/// A first block is noticed within a millisecond. A look costs a few microseconds, a good part of
/// them for being woken: 1 % of a processor at this pace, while workers run.
const SLOW: Duration = Duration::from_micros(900);
const FAST: Duration = Duration::from_micros(50);
/// How long after a block the watch stays fast.
const ALERT: Duration = Duration::from_millis(30);
/// Looks at a port of which no worker runs, after which the watch sleeps until one does.
const IDLE_LOOKS: u32 = 25;
/// How many packets must wait in a lane that gets on before an idle worker is woken to help.
const HELP_FROM: u32 = 8;

#[derive(Debug)]
pub(crate) struct Watch {
    asleep: AtomicBool,
    alert: AtomicBool,
    noticed: AtomicU64,
    /// Looks in a row that found no worker running.
    idle_looks: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How far each lane had come at the last look.
    progress: Vec<u64>,
    alert_until: Option<Instant>,
    /// The files that tell what a thread does.
    threads: HashMap<i32, File>,
}

/// What a thread does, as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Runs,
    Sleeps,
}

impl Watch {
    pub(crate) fn new(lanes: usize) -> Self {
        Self {
            asleep: AtomicBool::new(false),
            alert: AtomicBool::new(false),
            noticed: AtomicU64::new(0),
            idle_looks: AtomicU32::new(0),
            state: Mutex::new(State {
                progress: vec![0; lanes],
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
    pub(crate) fn tick(&self, port: &Shared) -> Option<Duration> {
        if self.idle_looks.load(Ordering::Relaxed) >= IDLE_LOOKS {
            self.asleep.store(true, Ordering::SeqCst);
            // A worker that begins to run now either sees that we sleep or is seen here.
            let lanes = 0..port.lanes().len();
            let all_idle =
                { lanes }.all(|lane| matches!(port.dispatch.schedule.hold(lane), Hold::Idle(_)));
            if all_idle {
                return None;
            }
            self.asleep.store(false, Ordering::SeqCst);
            self.idle_looks.store(0, Ordering::Relaxed);
        }
        Some(if self.alert() { FAST } else { SLOW })
    }

    /// How long a worker in an idle lane sleeps before it looks, where none is parked.
    pub(crate) fn idle_tick(&self) -> Duration {
        SLOW * 2u32.pow(self.idle_looks.load(Ordering::Relaxed).min(7))
    }

    /// A worker of an idle lane was woken by a packet.
    pub(crate) fn was_busy(&self) {
        self.idle_looks.store(0, Ordering::Relaxed);
    }

    /// A worker begins to run: if the watch sleeps, it is called.
    pub(crate) fn rouse(&self, port: &Shared) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.idle_looks.store(0, Ordering::Relaxed);
            port.dispatch.schedule.call_watch();
        }
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
            port.glance(lane);
            let progress = port.progress(lane);
            let gets_on = std::mem::replace(&mut state.progress[lane], progress) != progress;
            let waiting = ring.ready() > 0 || port.queued() > 0;
            if !waiting && ring.unsubmitted() == 0 {
                continue;
            }
            if port.dispatch.schedule.has_sleepers(lane) {
                // It is about to wake up in its lane.
                continue;
            }
            let thread = port.dispatch.schedule.holder(lane).filter(|worker| worker.id == holder);
            let Some(thread) = thread.map(|worker| worker.thread) else { continue };
            match state.doing(thread) {
                Doing::Sleeps if !waiting => port.relieve(lane),
                Doing::Sleeps => {
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
                Doing::Runs if gets_on => {
                    if ring.ready() >= HELP_FROM {
                        port.release_newest();
                    }
                }
                Doing::Runs => port.relieve(lane),
            }
        }
        if running {
            self.idle_looks.store(0, Ordering::Relaxed);
        } else {
            self.idle_looks.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
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
