//! Deadlines and pauses: a queue of times, and one thread that posts a packet when one has come.
//!
//! The thread begins with the first time that is set, and ends when none has been set for a while.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::port::CompletionPort;
use crate::{raw::Operation, sync::lock};

/// Names a time that is set.
pub(crate) type Timer = (Instant, u64);

/// Whom to tell what.
struct Alarm {
    port: Arc<CompletionPort>,
    key: usize,
    operation: *mut Operation,
}

// SAFETY: the operation is handed on, never looked at.
unsafe impl Send for Alarm {}

#[derive(Default)]
struct State {
    alarms: BTreeMap<Timer, Alarm>,
    last: u64,
    running: bool,
}

static TIMERS: Mutex<State> =
    Mutex::new(State { alarms: BTreeMap::new(), last: 0, running: false });
static CHANGED: Condvar = Condvar::new();

/// How long the thread stays for the next one when no time is set.
const IDLE: Duration = Duration::from_secs(10);
/// How long it waits before it tries again to post a packet for which there was no memory.
const RETRY: Duration = Duration::from_millis(10);

/// Sets a time: when it has come, a packet with this key and this operation is posted to `port`,
/// once, unless it is [`clear`]ed before.
pub(crate) fn set(
    port: &Arc<CompletionPort>,
    when: Instant,
    key: usize,
    operation: *mut Operation,
) -> io::Result<Timer> {
    let mut state = lock(&TIMERS);
    if !state.running {
        thread::Builder::new().name("wharf-timers".into()).spawn(run)?;
        state.running = true;
    }
    state.last += 1;
    let timer = (when, state.last);
    let first = state.alarms.first_key_value().is_none_or(|(&first, _)| timer < first);
    state.alarms.insert(timer, Alarm { port: port.clone(), key, operation });
    drop(state);
    if first {
        CHANGED.notify_one();
    }
    Ok(timer)
}

/// Takes a time back. False: its packet has been posted, or is about to be.
pub(crate) fn clear(timer: Timer) -> bool {
    lock(&TIMERS).alarms.remove(&timer).is_some()
}

fn run() {
    let mut state = lock(&TIMERS);
    loop {
        let now = Instant::now();
        while let Some(entry) = state.alarms.first_entry()
            && entry.key().0 <= now
        {
            let alarm = entry.get();
            if alarm.port.post(0, alarm.key, alarm.operation).is_err() {
                let (timer, alarm) = entry.remove_entry();
                // Under the same number: whoever would clear it finds that it is too late.
                state.alarms.insert((now + RETRY, timer.1), alarm);
                break;
            }
            entry.remove();
        }
        let next = state.alarms.first_key_value().map(|(&(when, _), _)| when);
        let pause = next.map_or(IDLE, |when| when.saturating_duration_since(now));
        let (guard, waited) = CHANGED
            .wait_timeout(state, pause)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        state = guard;
        if waited.timed_out() && state.alarms.is_empty() && next.is_none() {
            state.running = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn times_come_in_their_order_and_once() {
        let port = Arc::new(CompletionPort::new(1).unwrap());
        let begin = Instant::now();
        let set = |millis, key| {
            set(&port, begin + Duration::from_millis(millis), key, ptr::null_mut()).unwrap()
        };
        set(40, 3);
        let cleared = set(20, 2);
        let first = set(1, 1);
        assert!(clear(cleared) && !clear(cleared));
        let mut keys = Vec::new();
        while keys.len() < 2 {
            port.wait(1, None, |entry| keys.push(entry.key)).unwrap();
        }
        assert_eq!(keys, [1, 3]);
        assert!(!clear(first));
        assert_eq!(port.depth(), 0);
    }
}
