//! What the driver knows of each descriptor: where it is registered, whether something can be read
//! from it, and which operations wait for it to be ready.
//!
//! The kernel is given a token with each descriptor and gives it back with each event. A token is
//! the number of a slot and its generation. Slots are used again but never freed before the port
//! is, and an event with an old generation means nothing: so an event may come as late as it likes,
//! after its handle was closed or its descriptor's number given to another.
//!
//! An operation that waits stands in its slot, and is in flight; so it is alive, and its handle is.

use std::{
    io,
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    sync::{Mutex, MutexGuard, OnceLock},
};

use super::{
    poller::{EDGES, Poller},
    timers::Clock,
};
use crate::{
    raw::operation::{Direction, Operation},
    sync::lock,
    sys::{NO_DESCRIPTOR, RawDescriptor},
};

/// Names a slot, as long as it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    number: u32,
    generation: u32,
}

impl Token {
    fn from_bits(bits: u64) -> Self {
        let number = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { number, generation: (bits >> 32) as u32 }
    }

    pub(crate) fn bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.number)
    }
}

/// In no lane.
const NOWHERE: u16 = u16::MAX;

#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    /// How often the descriptor has become ready, for each direction. Written under the lock.
    edges: [AtomicU32; 3],
    /// How many of those for reading are dealt with: nothing is left to read of what they told of.
    /// Written by whoever receives, one at a time.
    drained: AtomicU32,
    /// A receive that did not fill its buffer does not mean that nothing is left.
    careful: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    generation: u32,
    fd: RawDescriptor,
    /// The lane with whose poller it is registered.
    lane: u16,
    /// The operation of each direction that waits.
    waiting: [*mut Operation; 3],
}

// SAFETY: the operations are only stored here, never followed.
unsafe impl Send for State {}

impl Slot {
    fn new() -> Self {
        Self {
            edges: [const { AtomicU32::new(0) }; 3],
            drained: AtomicU32::new(0),
            careful: AtomicBool::new(false),
            state: Mutex::new(State {
                generation: 1,
                fd: NO_DESCRIPTOR,
                lane: NOWHERE,
                waiting: [ptr::null_mut(); 3],
            }),
        }
    }

    fn edges(&self, direction: Direction) -> u32 {
        self.edges[index(direction)].load(Ordering::Acquire)
    }
}

/// How an operation waits now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It stands in its slot; its event will come to this lane.
    In(u16),
    /// It does not: the descriptor has become ready meanwhile.
    Ready,
}

/// What the lanes of a port share: the slots, and each other's pollers and clocks.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) pollers: Vec<Poller>,
    pub(crate) clocks: Vec<Clock>,
    /// Chunk n has `FIRST << n` slots.
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    free: Mutex<Vec<u32>>,
    used: AtomicU32,
}

const FIRST: u32 = 64;
const CHUNKS: usize = 24;

/// In which chunk a slot lies, and where.
fn place(number: u32) -> (usize, usize) {
    let chunk = (number / FIRST + 1).ilog2();
    (chunk as usize, (number - FIRST * ((1 << chunk) - 1)) as usize)
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::In => 0,
        Direction::Out => 1,
        Direction::Error => 2,
        Direction::Unordered => unreachable!("it waits for no readiness"),
    }
}

impl Registry {
    pub(crate) fn new(lanes: usize) -> io::Result<Self> {
        Ok(Self {
            pollers: (0..lanes).map(|_| Poller::new()).collect::<io::Result<_>>()?,
            clocks: (0..lanes).map(|_| Clock::new()).collect(),
            chunks: [const { OnceLock::new() }; CHUNKS],
            free: Mutex::new(Vec::new()),
            used: AtomicU32::new(0),
        })
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        let (chunk, offset) = place(number);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// A slot and its state, if the token still names it.
    fn claimed(&self, token: Token) -> Option<(&Slot, MutexGuard<'_, State>)> {
        let slot = self.slot(token.number)?;
        let state = lock(&slot.state);
        (state.generation == token.generation).then_some((slot, state))
    }

    /// A slot for a descriptor. `careful`: it is no TCP socket.
    pub(crate) fn claim(&self, fd: RawDescriptor, careful: bool) -> io::Result<Token> {
        let number = lock(&self.free).pop();
        let number = number.unwrap_or_else(|| self.used.fetch_add(1, Ordering::Relaxed));
        let (chunk, _) = place(number);
        let length = (FIRST as usize) << chunk;
        let chunk = self.chunks.get(chunk).ok_or(io::ErrorKind::OutOfMemory)?;
        chunk.get_or_init(|| (0..length).map(|_| Slot::new()).collect());
        let slot = self.slot(number).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut state = lock(&slot.state);
        state.fd = fd;
        slot.careful.store(careful, Ordering::Relaxed);
        slot.drained.store(slot.edges(Direction::In), Ordering::Relaxed);
        Ok(Token { number, generation: state.generation })
    }

    /// Gives a slot back whose descriptor is about to be closed. Nothing waits in it.
    pub(crate) fn release(&self, token: Token) {
        let Some((_, mut state)) = self.claimed(token) else { return };
        debug_assert!(state.waiting.iter().all(|waiting| waiting.is_null()));
        state.generation = state.generation.wrapping_add(1);
        if state.lane != NOWHERE {
            let _ = self.pollers[usize::from(state.lane)].remove(state.fd);
            state.lane = NOWHERE;
        }
        drop(state);
        lock(&self.free).push(token.number);
    }

    /// How often a descriptor has become ready so far. To be asked before a call that may find it
    /// is not.
    pub(crate) fn edges(&self, token: Token, direction: Direction) -> u32 {
        self.slot(token.number).map_or(0, |slot| slot.edges(direction))
    }

    /// Lets an operation wait. `seen`: the call was made, and would have blocked; it knew of so
    /// many edges. Otherwise it waits unless the descriptor is known to be readable.
    ///
    /// The descriptor is registered with the poller of `lane`, unless an operation of the other
    /// direction waits where it is registered already.
    pub(crate) fn park(
        &self,
        token: Token,
        direction: Direction,
        operation: *mut Operation,
        seen: Option<u32>,
        lane: u16,
    ) -> io::Result<Parked> {
        let Some((slot, mut state)) = self.claimed(token) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let side = index(direction);
        let tried = seen.is_some();
        if let Some(seen) = seen
            && direction == Direction::In
        {
            slot.drained.store(seen, Ordering::Relaxed);
        }
        let seen = seen.unwrap_or_else(|| slot.drained.load(Ordering::Relaxed));
        if slot.edges(direction) != seen {
            return Ok(Parked::Ready);
        }
        let alone = state.waiting.iter().all(|waiting| waiting.is_null());
        if state.lane != lane && alone {
            if state.lane != NOWHERE {
                self.pollers[usize::from(state.lane)].remove(state.fd)?;
                state.lane = NOWHERE;
            }
            // If it is ready now, that is the first edge.
            match self.pollers[usize::from(lane)].add(state.fd, EDGES, token.bits()) {
                Ok(()) => state.lane = lane,
                // A device that is always ready, as the null device is. One that would block all
                // the same is tried again, after a pause.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    return if tried {
                        Err(io::Error::from_raw_os_error(libc::EAGAIN))
                    } else {
                        Ok(Parked::Ready)
                    };
                }
                Err(error) => return Err(error),
            }
        }
        debug_assert!(state.waiting[side].is_null());
        state.waiting[side] = operation;
        Ok(Parked::In(state.lane))
    }

    /// A receive has not filled its buffer: nothing is left to read, unless something has come
    /// since the edge it knew of.
    pub(crate) fn spent(&self, token: Token, seen: u32) {
        if let Some(slot) = self.slot(token.number)
            && !slot.careful.load(Ordering::Relaxed)
        {
            slot.drained.store(seen, Ordering::Relaxed);
        }
    }

    /// Takes a waiting operation out. False: its event is on its way.
    pub(crate) fn unpark(&self, token: Token, operation: *mut Operation) -> bool {
        let Some((_, mut state)) = self.claimed(token) else { return false };
        let place = state.waiting.iter_mut().find(|waiting| **waiting == operation);
        place.map(|waiting| *waiting = ptr::null_mut()).is_some()
    }

    /// The kernel says that a descriptor has become ready: hands the operations that have waited
    /// for it to `sink`.
    pub(crate) fn ready(
        &self,
        lane: u16,
        token: u64,
        events: u32,
        mut sink: impl FnMut(*mut Operation),
    ) {
        let Some((slot, mut state)) = self.claimed(Token::from_bits(token)) else { return };
        // It has been registered elsewhere since, and would have been told there.
        if state.lane != lane {
            return;
        }
        let is = |flags: i32| events & flags.cast_unsigned() != 0;
        let over = is(libc::EPOLLHUP | libc::EPOLLERR);
        let readable = is(libc::EPOLLIN | libc::EPOLLRDHUP) || over;
        // The end of the stream has no edge of its own if it came together with data, and urgent
        // data makes receives end early.
        if is(libc::EPOLLRDHUP | libc::EPOLLPRI) || over {
            slot.careful.store(true, Ordering::Relaxed);
        }
        for (side, ready) in [(0, readable), (1, is(libc::EPOLLOUT) || over), (2, over)] {
            if ready {
                let edges = slot.edges[side].load(Ordering::Relaxed);
                slot.edges[side].store(edges.wrapping_add(1), Ordering::Release);
                let operation = std::mem::replace(&mut state.waiting[side], ptr::null_mut());
                if !operation.is_null() {
                    sink(operation);
                }
            }
        }
    }
}
