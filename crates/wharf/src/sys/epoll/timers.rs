//! When operations that wait are to be woken: deadlines and pauses, the earliest first.
//!
//! An operation is in here only while it is in flight, and is taken out before it is handed out:
//! nothing in here is ever stale, and there are never more timers than operations.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use crate::{raw::Operation, sync::lock, sys::Source};

/// Names a timer, also when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerId {
    number: u32,
    generation: u32,
}

/// The timers of a lane, behind a lock, with the next one's time beside it.
#[derive(Debug)]
pub(crate) struct Clock {
    timers: Mutex<Timers>,
    next: AtomicU64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { timers: Mutex::new(Timers::default()), next: AtomicU64::new(u64::MAX) }
    }

    /// When the next timer is due. `u64::MAX`: there is none.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Sets a timer. True: it is the next one now.
    pub(crate) fn set(&self, due: u64, operation: *mut Operation, of: Source) -> (TimerId, bool) {
        let mut timers = lock(&self.timers);
        let id = timers.insert(due, operation, of);
        let next = timers.next();
        self.next.store(next, Ordering::SeqCst);
        (id, next == due)
    }

    /// Stops a timer. False: it has gone off.
    pub(crate) fn stop(&self, id: TimerId) -> bool {
        let mut timers = lock(&self.timers);
        let stopped = timers.remove(id);
        self.next.store(timers.next(), Ordering::SeqCst);
        stopped
    }

    /// Hands the operations whose timers are due by `now` to `sink`.
    pub(crate) fn go_off(&self, now: u64, mut sink: impl FnMut(*mut Operation, Source)) {
        let mut timers = lock(&self.timers);
        while let Some((operation, of)) = timers.go_off(now) {
            sink(operation, of);
        }
        self.next.store(timers.next(), Ordering::SeqCst);
    }
}

/// A heap in which every timer knows its place, so that it can be taken out again.
#[derive(Debug, Default)]
struct Timers {
    /// Numbers of timers; each is due no later than the two below it.
    heap: Vec<u32>,
    timers: Vec<Timer>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    due: u64,
    operation: *mut Operation,
    of: Source,
    /// Its place in the heap.
    place: u32,
    /// Tells it from former ones of the same number.
    generation: u32,
}

// SAFETY: the operations are only stored here, never followed.
unsafe impl Send for Timers {}

impl Timers {
    /// When the next timer is due. `u64::MAX`: there is none.
    fn next(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |&number| self.timers[number as usize].due)
    }

    fn insert(&mut self, due: u64, operation: *mut Operation, of: Source) -> TimerId {
        let place = u32::try_from(self.heap.len()).unwrap_or(u32::MAX);
        let number = self.free.pop().unwrap_or_else(|| {
            let generation = 0;
            self.timers.push(Timer { due, operation, of, place, generation });
            u32::try_from(self.timers.len() - 1).unwrap_or(u32::MAX)
        });
        let timer = &mut self.timers[number as usize];
        let generation = timer.generation.wrapping_add(1);
        *timer = Timer { due, operation, of, place, generation };
        self.heap.push(number);
        self.rise(place as usize);
        TimerId { number, generation }
    }

    /// Takes a timer out. False: it has gone off.
    fn remove(&mut self, id: TimerId) -> bool {
        let Some(timer) = self.timers.get(id.number as usize) else { return false };
        let place = timer.place as usize;
        let there =
            timer.generation == id.generation && self.heap.get(place) == Some(&id.number);
        if there {
            self.take(place);
        }
        there
    }

    /// Takes the next timer out if it is due by `now`.
    fn go_off(&mut self, now: u64) -> Option<(*mut Operation, Source)> {
        if self.next() > now {
            return None;
        }
        let Timer { operation, of, .. } = self.take(0);
        Some((operation, of))
    }

    fn take(&mut self, place: usize) -> Timer {
        let number = self.heap.swap_remove(place);
        self.free.push(number);
        if let Some(&moved) = self.heap.get(place) {
            self.timers[moved as usize].place = u32::try_from(place).unwrap_or(u32::MAX);
            self.sink(place);
            self.rise(place);
        }
        self.timers[number as usize]
    }

    fn due(&self, place: usize) -> u64 {
        self.timers[self.heap[place] as usize].due
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        for place in [one, other] {
            let number = self.heap[place] as usize;
            self.timers[number].place = u32::try_from(place).unwrap_or(u32::MAX);
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.due(place) < self.due((place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let below = [2 * place + 1, 2 * place + 2].into_iter();
            let below = below.filter(|&below| below < self.heap.len());
            let Some(least) = below.min_by_key(|&below| self.due(below)) else { return };
            if self.due(place) <= self.due(least) {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Act {
        Insert(u64),
        Remove(usize),
        GoOff(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0u64..50).prop_map(Act::Insert),
            (0usize..64).prop_map(Act::Remove),
            (0u64..50).prop_map(Act::GoOff),
        ]
    }

    proptest! {
        /// Would catch: a timer that goes off early, late, twice, for another operation or after
        /// it was taken out; an id that reaches a later timer.
        #[test]
        fn timers_go_off_once_in_their_order(acts in prop::collection::vec(act(), 1..200)) {
            let mut timers = Timers::default();
            // What is in there, by id, and every id there has been.
            let mut model = BTreeMap::new();
            let mut ids = Vec::new();
            for (number, act) in acts.into_iter().enumerate() {
                match act {
                    Act::Insert(due) => {
                        let operation = std::ptr::without_provenance_mut(number + 1);
                        let id = timers.insert(due, operation, Source::Deadline);
                        prop_assert!(!ids.contains(&id));
                        model.insert(id, (due, operation));
                        ids.push(id);
                    }
                    Act::Remove(which) => {
                        if let Some(&id) = ids.get(which) {
                            prop_assert_eq!(timers.remove(id), model.remove(&id).is_some());
                        }
                    }
                    Act::GoOff(now) => {
                        let mut last = 0;
                        while let Some((operation, _)) = timers.go_off(now) {
                            let id = model.iter().find(|(_, timer)| timer.1 == operation);
                            let id = *id.expect("it was in there").0;
                            let (due, _) = model.remove(&id).expect("found above");
                            prop_assert!(last <= due && due <= now);
                            last = due;
                        }
                    }
                }
                let next = model.values().map(|timer| timer.0).min();
                prop_assert_eq!(timers.next(), next.unwrap_or(u64::MAX));
            }
        }
    }
}
