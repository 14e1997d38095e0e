//! How workers wait where the kernel has completion ports: in the kernel, which releases the
//! newest of them, keeps as many running as the concurrency value says, and sees when one blocks.
//!
//! Every packet of the kernel's port has a key of ours that says what it is. What is posted stands
//! in a queue of the port's own, in order; a packet without further meaning says that something
//! stands there, so that it is the kernel that chooses who takes it.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Completion, Taking, Wait,
    port::{Entry, Setup, Shared, deadline, left},
};
use crate::{
    driver::{Choice, Driver},
    error::{Error, ErrorKind},
    stats::Stats,
    sync::lock,
    sys::{CompletionPort, Event, Lane, key, pool::Pool, refusal, set_alarm},
};

/// Where workers wait, and what they have to take.
#[derive(Debug)]
pub(super) struct Dispatch {
    port: Arc<CompletionPort>,
    /// There is one driver for all workers, in which nothing waits.
    lane: Lane,
    concurrency: usize,
    queue: Mutex<VecDeque<Entry>>,
    closed: AtomicBool,
    /// Threads that are bound.
    bound: AtomicUsize,
    /// Threads that wait, or are about to.
    waiting: AtomicUsize,
    entries: AtomicU64,
}

/// What the port knows of a thread that is bound to it: the kernel knows the rest.
#[derive(Debug)]
pub(super) struct Place;

/// How often a drain looks whether something has come that brings no packet.
const DRAIN_PAUSE: Duration = Duration::from_millis(10);

impl Dispatch {
    pub(super) fn new(setup: &Setup) -> Result<(Self, Choice), Error> {
        match setup.driver.wanted()? {
            Driver::Auto | Driver::Iocp => {}
            other => return Err(other.elsewhere()),
        }
        let concurrency = match setup.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            concurrency => concurrency.min(1024),
        };
        let kernel = u32::try_from(concurrency).unwrap_or(1);
        let port = CompletionPort::new(kernel).map_err(|error| refusal(&error))?;
        let port = Arc::new(port);
        let dispatch = Self {
            lane: Lane::new(&port, setup).map_err(|error| refusal(&error))?,
            port,
            concurrency,
            queue: Mutex::new(VecDeque::new()),
            closed: AtomicBool::new(false),
            bound: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            entries: AtomicU64::new(0),
        };
        Ok((dispatch, Choice { driver: Driver::Iocp, refused: None }))
    }

    /// Has a packet come that says so, at the latest when there is memory for it.
    fn announce(&self, key: usize) {
        if self.port.post(0, key, std::ptr::null_mut::<u8>()).is_err() {
            set_alarm(&self.port, key);
        }
    }
}

impl Shared {
    /// A thread binds itself to the port.
    pub(super) fn arrive(&self) -> Place {
        self.dispatch.bound.fetch_add(1, Ordering::Relaxed);
        Place
    }

    /// A bound thread leaves the port.
    pub(super) fn depart(&self, _place: &Place) {
        self.dispatch.bound.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn lane(&self, _lane: u16) -> &Lane {
        &self.dispatch.lane
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        std::slice::from_ref(&self.dispatch.lane)
    }

    /// A lane for a handle to begin in.
    pub(crate) fn some_lane(&self) -> u16 {
        0
    }

    /// The lane in which this thread starts operations.
    pub(crate) fn own_lane(&self) -> Option<u16> {
        Some(0)
    }

    /// What is started is started at once.
    pub(crate) fn submit_for(&self, _lane: Option<u16>) {}

    pub(crate) fn closed(&self) -> bool {
        self.dispatch.closed.load(Ordering::SeqCst)
    }

    // ---- The queue that is ours ---------------------------------------------------------

    /// Queues a posted packet.
    pub(super) fn push_posted(&self, entry: Entry) -> Result<(), Error> {
        let mut queue = lock(&self.dispatch.queue);
        if queue.len() >= self.setup.post_limit {
            return Err(Error::of(ErrorKind::QueueFull, "post"));
        }
        if queue.try_reserve(1).is_err() {
            return Err(Error::of(ErrorKind::OutOfMemory, "post"));
        }
        // Under the lock: what cannot be announced has not been taken by anybody yet.
        let nothing = std::ptr::null_mut::<u8>();
        self.dispatch
            .port
            .post(0, key::QUEUED, nothing)
            .map_err(|error| Error::from_io(&error, "post"))?;
        queue.push_back(entry);
        Ok(())
    }

    /// Queues what the port itself has to say of an operation.
    pub(crate) fn enqueue(&self, entry: Entry) {
        lock(&self.dispatch.queue).push_back(entry);
        self.dispatch.announce(key::QUEUED);
    }

    fn dequeue(&self) -> Option<Entry> {
        lock(&self.dispatch.queue).pop_front()
    }

    // ---- Waiting ------------------------------------------------------------------------

    pub(super) fn end_wait(&self, _place: &Place) {}

    pub(super) fn wait_as(
        &self,
        _place: &Place,
        timeout: Option<Duration>,
        taking: &mut Taking<'_>,
    ) -> Wait<()> {
        let deadline = deadline(timeout);
        let mut time_left = timeout;
        loop {
            self.dispatch.waiting.fetch_add(1, Ordering::SeqCst);
            // Whoever closes the port from here on sees that somebody waits, and wakes them.
            let taken = if self.closed() { Ok(None) } else { self.take(time_left, taking) };
            let others = self.dispatch.waiting.fetch_sub(1, Ordering::SeqCst) - 1;
            if self.closed() && others > 0 {
                self.dispatch.announce(key::WAKE);
            }
            match taken {
                Err(error) => {
                    return Wait::Broken(Error::from_io(&error, "GetQueuedCompletionStatusEx"));
                }
                Ok(Some(true)) => return Wait::Packet(()),
                Ok(_) if self.closed() => return Wait::Closed,
                // A poll goes on until there is nothing, whatever else it meets.
                Ok(Some(false)) => {}
                // One wait may be shorter than the time-out.
                Ok(None) if left(deadline).is_some_and(|left| left.is_zero()) => {
                    return Wait::TimedOut;
                }
                Ok(None) => {}
            }
            time_left = left(deadline).or(timeout);
        }
    }

    /// Another packet, if one is there.
    pub(crate) fn take_more(&self, taking: &mut Taking<'_>) -> bool {
        while !self.closed() {
            match self.take(Some(Duration::ZERO), taking) {
                Ok(Some(false)) => {}
                taken => return matches!(taken, Ok(Some(true))),
            }
        }
        false
    }

    /// Takes one packet of the kernel's, if one comes in time, and does what it asks for: that may
    /// give a completion.
    fn take(
        &self,
        timeout: Option<Duration>,
        taking: &mut Taking<'_>,
    ) -> io::Result<Option<bool>> {
        self.dispatch.lane.pools().into_iter().for_each(Pool::resume_free);
        self.dispatch.entries.fetch_add(1, Ordering::Relaxed);
        let mut packet = None;
        self.dispatch.port.wait(1, timeout, |taken| packet = Some(taken))?;
        let Some(packet) = packet else { return Ok(None) };
        let completed = match Event::of(packet) {
            Some(event) => self.complete(0, event, taking),
            None if packet.key == key::QUEUED => match self.dequeue() {
                // SAFETY: taken once.
                Some(entry) => unsafe { self.redeem(entry, taking) },
                None => false,
            },
            None => false,
        };
        if completed && !taking.completion.silent {
            self.count(|tally| &tally.packets);
        }
        Ok(Some(completed))
    }

    /// Runs something that may block. The kernel notices, and releases another thread.
    pub(crate) fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }

    // ---- Closing ------------------------------------------------------------------------

    pub(crate) fn close(&self) {
        self.dispatch.closed.store(true, Ordering::SeqCst);
        // Not by closing the kernel's port: what is in flight still has packets to come. One who
        // waits wakes the next.
        if self.dispatch.waiting.load(Ordering::SeqCst) > 0 {
            self.dispatch.announce(key::WAKE);
        }
    }

    /// After closing: hands everything that is still queued or in flight to `sink`, and waits for
    /// what the kernel still holds, at most until `patience` is over. Returns how many operations
    /// it did not let go.
    pub(crate) fn drain(&self, patience: Duration, sink: &mut dyn FnMut(&mut Completion)) -> u64 {
        let deadline = Instant::now() + patience;
        let mut taking = Taking::new(&|_| {});
        loop {
            while let Ok(Some(taken)) = self.take(Some(Duration::ZERO), &mut taking) {
                if taken {
                    sink(&mut taking.completion);
                }
            }
            // What is posted and could not be announced.
            while let Some(entry) = self.dequeue() {
                // SAFETY: taken once.
                if unsafe { self.redeem(entry, &mut taking) } {
                    sink(&mut taking.completion);
                }
            }
            if self.dispatch.waiting.load(Ordering::SeqCst) > 0 {
                // The packet that was meant to wake them may have been taken here.
                self.dispatch.announce(key::WAKE);
            }
            let left = self.in_flight();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            if let Ok(Some(true)) = self.take(Some(DRAIN_PAUSE), &mut taking) {
                sink(&mut taking.completion);
            }
        }
    }

    // ---- Looking inside -----------------------------------------------------------------

    pub(crate) fn stats(&self) -> Stats {
        let dispatch = &self.dispatch;
        let pools = dispatch.lane.pools();
        let waiting = dispatch.waiting.load(Ordering::Relaxed);
        let [packets, calls] = self.sums([|tally| &tally.packets, |tally| &tally.calls]);
        Stats {
            concurrency: dispatch.concurrency,
            packets,
            posted: self.posted.load(Ordering::Relaxed),
            stolen: 0,
            hand_overs: 0,
            blocks_noticed: 0,
            running: dispatch.bound.load(Ordering::Relaxed).saturating_sub(waiting),
            waiting,
            queued: dispatch.port.depth(),
            in_flight: self.in_flight(),
            kernel_entries: calls + dispatch.entries.load(Ordering::Relaxed),
            starving: pools.iter().map(|pool| pool.starving()).sum(),
            buffers_exhausted: pools.iter().map(|pool| pool.exhausted() as u64).sum(),
        }
    }
}
