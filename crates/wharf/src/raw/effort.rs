//! What a packet costs its worker, handler included, and whether that is much.
//!
//! Where it is little, what waits behind a packet will be taken in a moment, and to have another
//! worker come for it costs more than it gains. Where it is much, nothing is saved by leaving it
//! there. To find out must cost nothing where it is little, so time is taken only now and then, as
//! a worker comes by. By the clock a packet also takes long if its worker has been preempted, or
//! was blocked. So what the clock says has to be borne out by the processor's time, which costs ten
//! times as much to ask for.

use std::time::{Duration, Instant};

/// From here on, in nanoseconds, a packet is dear: what it costs to take time for each of them does
/// not count.
const DEAR: u64 = 20_000;
/// What so many packets cost counts as much as all that was before them.
const MEMORY: u64 = 8;

#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Since when packets have been counted, and how many there were before. None: what comes next
    /// is not their time.
    since: Option<(Instant, u32)>,
    /// The processor's time then, where the clock says that packets are dear.
    used: Option<Duration>,
    /// What each has cost by the clock, in nanoseconds, and by the processor's time while that is
    /// asked for.
    passed: u64,
    worked: u64,
}

impl Effort {
    pub(super) const NONE: Self = Self { since: None, used: None, passed: 0, worked: 0 };

    /// Whether packets are known to be dear.
    pub(super) fn is_dear(&self) -> bool {
        self.worked >= DEAR
    }

    /// What so many packets are going to cost, if they are dear.
    pub(super) fn of(&self, packets: u32) -> Duration {
        Duration::from_nanos(self.worked.saturating_mul(packets.into()))
    }

    /// From here on time does not count, until the next note.
    pub(super) fn pause(&mut self) {
        self.since = None;
    }

    /// Notes that the worker has taken so many packets by now, and is done with them. `used` is
    /// the processor's time that its thread has had.
    pub(super) fn note(
        &mut self,
        now: Instant,
        packets: u32,
        used: impl Fn() -> Option<Duration>,
    ) {
        let since = self.since.replace((now, packets));
        let metered = self.used;
        if metered.is_some() {
            self.used = used();
        }
        let Some((since, before)) = since else { return };
        let done = packets.saturating_sub(before);
        if done == 0 {
            return;
        }
        self.passed = average(self.passed, now.saturating_duration_since(since), done);
        if let (Some(before), Some(after)) = (metered, self.used) {
            self.worked = average(self.worked, after.saturating_sub(before), done);
        }
        if self.passed < DEAR {
            self.used = None;
            self.worked = 0;
        } else if metered.is_none() {
            self.used = used();
        }
    }
}

fn average(each: u64, took: Duration, packets: u32) -> u64 {
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    each.saturating_mul(MEMORY).saturating_add(took) / (MEMORY + u64::from(packets))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A worker, what it has noted, and its clocks.
    struct Model {
        effort: Effort,
        now: Instant,
        used: Duration,
        packets: u32,
        /// How often it asked for the processor's time.
        asked: std::cell::Cell<u32>,
    }

    impl Model {
        fn new() -> Self {
            let (effort, now) = (Effort::NONE, Instant::now());
            let mut new =
                Self { effort, now, used: Duration::ZERO, packets: 0, asked: 0.into() };
            new.note();
            new
        }

        fn note(&mut self) {
            self.effort.note(self.now, self.packets, || {
                self.asked.set(self.asked.get() + 1);
                Some(self.used)
            });
        }

        /// Packets that cost so many microseconds each; the worker gets no processor for others.
        fn take(&mut self, packets: u32, each: u64, preempted: u64) {
            let used = Duration::from_micros(each) * packets;
            self.packets += packets;
            self.used += used;
            self.now += used + Duration::from_micros(preempted);
            self.note();
        }
    }

    /// Would catch: a worker that calls for help because it was preempted or blocked; one that asks
    /// for the processor's time again and again although its packets are cheap.
    #[test]
    fn cheap_packets_are_never_dear() {
        let mut model = Model::new();
        for round in 0..1000 {
            let preempted = if round % 20 == 0 { 4000 } else { 0 };
            model.take(1 + round % 16, 3, preempted);
            assert!(!model.effort.is_dear());
        }
        assert!(model.asked.get() <= 500, "{:?}", model.asked);
    }

    /// Would catch: packets that stay cheap for good because once they were, or dear because they
    /// once were; what happens between packets counted with them.
    #[test]
    fn what_packets_cost_is_learnt_and_forgotten() {
        let mut model = Model::new();
        model.take(100, 3, 0);
        for _ in 0..8 {
            model.take(1, 400, 0);
        }
        assert!(model.effort.is_dear());
        assert!(model.effort.of(2) > Duration::from_micros(100), "{:?}", model.effort);
        for _ in 0..30 {
            // Cheap and dear ones in turn are dear.
            model.take(1, 2, 0);
            model.take(1, 400, 0);
            assert!(model.effort.is_dear());
        }
        for _ in 0..50 {
            model.take(1, 2, 0);
        }
        assert!(!model.effort.is_dear());
        for _ in 0..50 {
            model.effort.pause();
            model.now += Duration::from_millis(1);
            model.used += Duration::from_millis(1);
            model.note();
            model.take(2, 2, 0);
        }
        assert!(!model.effort.is_dear(), "the time in between does not count");
    }
}
