//! Threads for calls that may block, which are those on files.
//!
//! There are at most [`THREADS`] per port, started as calls wait for one, and kept until the port
//! ends. Calls wait in one line. It is as long as there are operations on files in flight, which
//! the limit of each handle bounds.

use std::{
    collections::VecDeque,
    sync::atomic::Ordering,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
};

use super::inbox::Inbox;
use crate::{
    raw::Operation,
    sync::lock,
    sys::unix::{Call, Called},
};

/// As many calls of a port may block at once.
const THREADS: usize = 32;

/// A call on the way to a thread that makes it.
#[derive(Debug)]
struct Job {
    call: Call,
    operation: *mut Operation,
    /// Where its result goes.
    inbox: Arc<Inbox>,
}

// SAFETY: the operation is in flight; its header is not touched here.
unsafe impl Send for Job {}

#[derive(Debug, Default)]
struct Line {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    /// Threads that make a call. The others wait for a job, or are about to.
    busy: usize,
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    line: Mutex<Line>,
    come: Condvar,
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Blocking {
    shared: Arc<Shared>,
    process: u32,
}

impl Blocking {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default(), process: std::process::id() }
    }

    /// Lets a thread make a call. Its result comes to the inbox. Where no thread can be started,
    /// and there is none, the caller makes the call itself.
    ///
    /// # Safety
    ///
    /// The operation is in flight until its event has been taken from the inbox, and the pointers
    /// in its request are good.
    pub(crate) unsafe fn make(&self, call: Call, operation: *mut Operation, inbox: Arc<Inbox>) {
        let mut line = lock(&self.shared.line);
        if line.busy + line.jobs.len() >= line.threads.len() && line.threads.len() < THREADS {
            let shared = self.shared.clone();
            let name = format!("wharf-file-{}", line.threads.len());
            let thread = std::thread::Builder::new().name(name).spawn(move || shared.work());
            match thread {
                Ok(thread) => line.threads.push(thread),
                Err(error) if line.threads.is_empty() => {
                    drop(line);
                    log::warn!("no thread for files can be started: {error}");
                    let job = Job { call, operation, inbox };
                    // SAFETY: the caller's promise.
                    let result = unsafe { job.make() };
                    job.tell(result);
                    return;
                }
                Err(_) => {}
            }
        }
        line.jobs.push_back(Job { call, operation, inbox });
        drop(line);
        self.shared.come.notify_one();
    }

    /// Takes a call back that no thread has begun to make. False: one has.
    pub(crate) fn withdraw(&self, operation: *const Operation) -> bool {
        let mut line = lock(&self.shared.line);
        let place = line.jobs.iter().position(|job| job.operation.cast_const() == operation);
        place.is_some_and(|place| line.jobs.remove(place).is_some())
    }
}

impl Shared {
    fn work(&self) {
        let mut line = lock(&self.line);
        loop {
            if let Some(job) = line.jobs.pop_front() {
                line.busy += 1;
                drop(line);
                // SAFETY: it was taken once, and its operation is in flight (the promise of make).
                let result = unsafe { job.make() };
                // Who is told of the result may have another job at once.
                lock(&self.line).busy -= 1;
                job.tell(result);
                line = lock(&self.line);
            } else if line.over {
                return;
            } else {
                line = self.come.wait(line).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Job {
    /// # Safety
    ///
    /// As for [`Blocking::make`].
    unsafe fn make(&self) -> i32 {
        self.inbox.calls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        match unsafe { self.call.make() } {
            Called::Over { result, .. } => result,
            Called::WouldBlock => -libc::EAGAIN,
        }
    }

    fn tell(self, result: i32) {
        self.inbox.put_result(self.operation, result);
        // Whoever is responsible for the lane may be asleep, and this thread cannot know.
        if let Err(error) = self.inbox.waker.raise() {
            log::error!("a waiting worker could not be woken: {error}");
        }
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        let mut line = lock(&self.shared.line);
        line.over = true;
        let threads = std::mem::take(&mut line.threads);
        drop(line);
        if std::process::id() != self.process {
            // They live in the process before the fork.
            std::mem::forget(threads);
            return;
        }
        self.shared.come.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}
