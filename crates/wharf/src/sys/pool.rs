//! The buffers of one lane's pool, which receives take when data is there.
//!
//! Where the kernel knows provided-buffer rings it takes a buffer by itself; elsewhere the driver
//! waits for readiness first and takes one then. Either way an idle connection holds none.
//!
//! Buffers come back to the end of the kernel's queue, so all of them are used in turn. A pool
//! begins with a few, which stay in the processor's cache, and grows by one whenever a receive
//! finds none, up to its size: what was never needed is never touched, and costs no memory.

use std::{
    collections::VecDeque,
    io,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{Mapping, Provided};
use crate::raw::Operation;

/// Hands an operation that has waited for a buffer back to its port.
pub(crate) type Resume = Box<dyn Fn(*mut Operation) + Send + Sync>;

/// See the module's page.
pub(crate) struct Pool {
    region: Mapping,
    size: usize,
    count: u16,
    /// Times an operation had to wait because no buffer was left.
    exhausted: AtomicUsize,
    /// How many operations wait for one.
    starving: AtomicUsize,
    /// The free buffer that came back last, where we take them: the next one to be taken, without
    /// the lock. Or `NONE`.
    latest: AtomicU32,
    keeps_latest: bool,
    state: Mutex<State>,
    resume: OnceLock<Resume>,
}

struct State {
    /// How many buffers are in use or free; those from here on were never needed.
    grown: u16,
    /// The free buffers, where the kernel takes them.
    provided: Option<Provided>,
    /// The free buffers, where we do.
    free: Vec<u16>,
    starving: VecDeque<*mut Operation>,
}

// SAFETY: the operations in `starving` are only stored here, never dereferenced.
unsafe impl Send for State {}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("size", &self.size).field("count", &self.count).finish()
    }
}

/// No buffer's number.
const NONE: u32 = u32::MAX;

/// How many buffers a pool begins with.
const FIRST_BUFFERS: u16 = 32;

impl Pool {
    /// `count` is a power of two. `provided` is where the kernel finds the buffers, if it does.
    pub(crate) fn new(count: u16, size: usize, provided: Option<Provided>) -> io::Result<Self> {
        let pool = Self {
            region: Mapping::new(usize::from(count) * size, None)?,
            size,
            count,
            exhausted: AtomicUsize::new(0),
            starving: AtomicUsize::new(0),
            latest: AtomicU32::new(NONE),
            keeps_latest: provided.is_none(),
            state: Mutex::new(State {
                grown: 0,
                provided,
                free: Vec::with_capacity(usize::from(count)),
                starving: VecDeque::new(),
            }),
            resume: OnceLock::new(),
        };
        let mut state = pool.lock();
        for _ in 0..FIRST_BUFFERS {
            pool.grow_locked(&mut state);
        }
        drop(state);
        Ok(pool)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How an operation that waits for a buffer gets back to its port.
    pub(crate) fn set_resume(&self, resume: Resume) {
        let _ = self.resume.set(resume);
    }

    /// Bytes in one buffer.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn exhausted(&self) -> usize {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// Where a buffer lies.
    pub(crate) fn address(&self, id: u16) -> *mut u8 {
        debug_assert!(id < self.count);
        // SAFETY: the region holds `count` buffers of `size` bytes.
        unsafe { self.region.address().add(usize::from(id) * self.size) }
    }

    /// Takes a free buffer, where they are ours to take.
    #[inline]
    pub(crate) fn take(&self) -> Option<u16> {
        let latest = self.latest.swap(NONE, Ordering::SeqCst);
        u16::try_from(latest).ok().or_else(|| self.take_locked())
    }

    fn take_locked(&self) -> Option<u16> {
        let mut state = self.lock();
        if state.free.is_empty() {
            self.grow_locked(&mut state);
        }
        state.free.pop()
    }

    /// Adds a buffer for a receive that has found none. False: the pool has its full size.
    pub(crate) fn grow(&self) -> bool {
        self.grow_locked(&mut self.lock())
    }

    fn grow_locked(&self, state: &mut State) -> bool {
        let grows = state.grown < self.count;
        if grows {
            let id = state.grown;
            state.grown += 1;
            self.put(state, id);
        }
        grows
    }

    /// How many buffers are free, if none lies in a completion that nobody has taken yet. Every
    /// buffer in a user's hands holds a reference to the pool, and so does the lane.
    fn free(self: &Arc<Self>) -> usize {
        let state = self.lock();
        match state.provided {
            Some(_) => usize::from(state.grown).saturating_sub(Arc::strong_count(self) - 1),
            None => self.free_locked(&state),
        }
    }

    /// The same where it is us who take them.
    fn free_locked(&self, state: &State) -> usize {
        state.free.len() + usize::from(self.latest.load(Ordering::SeqCst) != NONE)
    }

    fn put(&self, state: &mut State, id: u16) {
        match &mut state.provided {
            Some(provided) => provided.put(id, self.address(id), self.size),
            None => state.free.push(id),
        }
    }

    /// Gives a buffer back, and lets the operation go on that has waited longest for one.
    #[inline]
    pub(crate) fn give_back(&self, id: u16) {
        let (old, new, order) = (NONE, u32::from(id), Ordering::SeqCst);
        if !self.keeps_latest || self.latest.compare_exchange(old, new, order, order).is_err() {
            return self.give_back_locked(id);
        }
        // Who starves from here on finds it.
        if self.starving.load(order) > 0
            && let Ok(id) = u16::try_from(self.latest.swap(NONE, order))
        {
            self.give_back_locked(id);
        }
    }

    fn give_back_locked(&self, id: u16) {
        let mut state = self.lock();
        self.put(&mut state, id);
        self.resume_next(state);
    }

    /// Lets the operation go on that has waited longest, if one waits.
    fn resume_next(&self, mut state: MutexGuard<'_, State>) {
        let next = self.next_starving(&mut state);
        drop(state);
        if let (Some(operation), Some(resume)) = (next, self.resume.get()) {
            resume(operation);
        }
    }

    /// Lets as many waiting operations go on as there are free buffers. Called when every
    /// completion that may hold one has been taken: a buffer that came back just before an
    /// operation began to wait has woken nobody.
    pub(crate) fn resume_free(self: &Arc<Self>) {
        if self.starving() == 0 {
            return;
        }
        let Some(resume) = self.resume.get() else { return };
        for _ in 0..self.free() {
            let next = self.next_starving(&mut self.lock());
            let Some(operation) = next else { return };
            resume(operation);
        }
    }

    fn next_starving(&self, state: &mut State) -> Option<*mut Operation> {
        let next = state.starving.pop_front();
        self.starving.store(state.starving.len(), Ordering::Relaxed);
        next
    }

    /// Lets an operation wait for a buffer: behind the others, or before them if it has had its
    /// turn and found none after all.
    pub(crate) fn starve(&self, operation: *mut Operation, again: bool) {
        let mut state = self.lock();
        if again {
            state.starving.push_front(operation);
        } else {
            self.exhausted.fetch_add(1, Ordering::Relaxed);
            state.starving.push_back(operation);
        }
        self.starving.store(state.starving.len(), Ordering::Relaxed);
        // Who gives one back from here on sees this; one that has just come back is seen here.
        fence(Ordering::SeqCst);
        if self.keeps_latest && self.free_locked(&state) > 0 {
            self.resume_next(state);
        }
    }

    /// How many operations wait for a buffer.
    pub(crate) fn starving(&self) -> usize {
        self.starving.load(Ordering::Relaxed)
    }

    /// Takes an operation out of the line. False: it was not there.
    pub(crate) fn unstarve(&self, operation: *mut Operation) -> bool {
        let mut state = self.lock();
        let place = state.starving.iter().position(|&waiting| waiting == operation);
        let found = place.is_some_and(|place| state.starving.remove(place).is_some());
        self.starving.store(state.starving.len(), Ordering::Relaxed);
        found
    }
}
