//! Whether the watch sleeps, with no alarm set: who sends it to sleep, and who sees to it that it
//! wakes up.
//!
//! What holds when nobody is in the middle of one of these functions: if a worker runs, the alarm
//! is set, or will be by the watching worker before it listens.

use crate::sync::{AtomicBool, Ordering, fence};

#[derive(Debug)]
pub(super) struct Repose {
    asleep: AtomicBool,
}

impl Repose {
    pub(super) fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// The watching worker has found nobody running. True: it may sleep until it is called.
    /// False: it must see to it that the alarm is set.
    pub(super) fn lie_down(&self, all_idle: impl FnOnce() -> bool) -> bool {
        self.asleep.swap(true, Ordering::SeqCst);
        // A worker that begins to run now either sees that we sleep or is seen here.
        fence(Ordering::SeqCst);
        let may = all_idle();
        if !may {
            self.asleep.store(false, Ordering::SeqCst);
            // What is seen of the alarm from here on is no older. (The order of all that is
            // SeqCst says so, too; but loom knows only that of fences.)
            fence(Ordering::SeqCst);
        }
        may
    }

    /// A worker begins to run. True: it must set the alarm, or call the watch.
    #[inline]
    pub(super) fn rouse(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst)
    }

    /// A worker has begun to wait, and sends the watch to sleep: unsets the alarm unless another
    /// worker runs. True: it must set the alarm again.
    pub(super) fn rest(&self, all_idle: impl FnOnce() -> bool, unset: impl FnOnce()) -> bool {
        if self.asleep.swap(true, Ordering::SeqCst) {
            return false;
        }
        fence(Ordering::SeqCst);
        if !all_idle() {
            // Nobody else may have lain down upon our word.
            return self.rouse();
        }
        unset();
        fence(Ordering::SeqCst);
        // Who has begun to run since has set it, perhaps before that.
        !self.asleep.load(Ordering::SeqCst)
    }
}

#[cfg(all(test, loom))]
mod model {
    use std::sync::Arc;

    use loom::thread;

    use super::*;

    struct Model {
        repose: Repose,
        running: [AtomicBool; 2],
        set: AtomicBool,
    }

    impl Model {
        fn new(set: bool) -> Arc<Self> {
            Arc::new(Self {
                repose: Repose::new(),
                running: [AtomicBool::new(false), AtomicBool::new(false)],
                set: AtomicBool::new(set),
            })
        }

        fn all_idle(&self) -> bool {
            self.running.iter().all(|running| !running.load(Ordering::SeqCst))
        }

        fn begin(&self, worker: usize) {
            self.running[worker].swap(true, Ordering::SeqCst);
            if self.repose.rouse() {
                self.set.swap(true, Ordering::SeqCst);
            }
        }

        fn wait(&self, worker: usize) {
            self.running[worker].swap(false, Ordering::SeqCst);
            let unset = || {
                self.set.swap(false, Ordering::SeqCst);
            };
            if self.repose.rest(|| self.all_idle(), unset) {
                self.set.swap(true, Ordering::SeqCst);
            }
        }

        /// The watching worker has seen the alarm go off, and nobody running.
        fn keep(&self) {
            if !self.repose.lie_down(|| self.all_idle()) && !self.set.load(Ordering::SeqCst) {
                self.set.swap(true, Ordering::SeqCst);
            }
        }

        fn check(&self) {
            assert!(self.all_idle() || self.set.load(Ordering::SeqCst), "nobody watches");
        }
    }

    #[test]
    fn whoever_runs_is_watched_though_another_rests() {
        loom::model(|| {
            let model = Model::new(true);
            model.begin(0);
            let other = {
                let model = model.clone();
                thread::spawn(move || {
                    model.begin(1);
                    model.wait(1);
                })
            };
            model.wait(0);
            model.begin(0);
            other.join().unwrap();
            model.check();
        });
    }

    #[test]
    fn whoever_runs_is_watched_though_the_watch_lies_down() {
        loom::model(|| {
            // The alarm has gone off.
            let model = Model::new(false);
            let watch = {
                let model = model.clone();
                thread::spawn(move || model.keep())
            };
            let other = {
                let model = model.clone();
                thread::spawn(move || {
                    model.begin(1);
                    model.wait(1);
                })
            };
            model.begin(0);
            watch.join().unwrap();
            other.join().unwrap();
            model.check();
        });
    }
}
