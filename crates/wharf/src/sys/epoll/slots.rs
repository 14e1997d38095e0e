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
    ptr::{self, NonNull},
    sync::{OnceLock, PoisonError},
};

use super::{
    poller::{EDGES, Poller},
    timers::Clock,
};
use crate::{
    raw::operation::{Direction, Operation},
    sync::{
        AtomicBool, AtomicI32, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Mutex, MutexGuard,
        Ordering,
    },
    sys::{NO_DESCRIPTOR, RawDescriptor},
};

/// A slot as long as it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim(NonNull<Slot>);

// SAFETY: what can be reached through it is shared, and made for that.
unsafe impl Send for Claim {}
// SAFETY: as for Send.
unsafe impl Sync for Claim {}

impl Claim {
    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: slots stay where they are until their registry is dropped, with the port. Claims
        // are kept by handles and operations in flight, none of which outlives its port.
        unsafe { self.0.as_ref() }
    }
}

/// What the kernel is given for a slot, and gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    number: u32,
    generation: u32,
}

impl Token {
    fn from_bits(bits: u64) -> Self {
        let number = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { number, generation: (bits >> 32) as u32 }
    }

    fn bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.number)
    }
}

/// In no lane.
const NOWHERE: u16 = u16::MAX;

/// There is no lock. What is registered where is changed by who has the lock of the descriptor's
/// handle, or makes or ends it, and only looked at by who takes the kernel's events; the two meet
/// in `word`.
#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    number: u32,
    generation: AtomicU32,
    fd: AtomicI32,
    /// The lane with whose poller it is registered.
    lane: AtomicU16,
    /// A receive that did not fill its buffer does not mean that nothing is left.
    careful: AtomicBool,
    /// How many of the edges for reading are dealt with: nothing is left to read of what they told
    /// of. Written by whoever receives, one at a time.
    drained: AtomicU32,
    /// How often the descriptor has become ready, for reading (in the upper half) and for anything
    /// else; and in the lowest bits for which directions an operation waits. An edge too many, as
    /// when the lower half is full, does no harm.
    word: AtomicU64,
    /// The operation of each direction: it is whoever's who clears its bit.
    waiting: [AtomicPtr<Operation>; 3],
}

/// An edge for reading, and one for anything else.
const READABLE: u64 = 1 << 32;
const OTHERWISE: u64 = 1 << 3;
/// The bits for those that wait.
const WAITING: u64 = 0b111;

/// How many edges of a direction a slot's word has counted.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the half that is meant")]
fn edges(word: u64, direction: Direction) -> u32 {
    match direction {
        Direction::In => (word >> 32) as u32,
        _ => (word as u32) >> OTHERWISE.trailing_zeros(),
    }
}

impl Slot {
    fn new(number: u32) -> Self {
        Self {
            number,
            generation: AtomicU32::new(1),
            fd: AtomicI32::new(NO_DESCRIPTOR),
            lane: AtomicU16::new(NOWHERE),
            careful: AtomicBool::new(false),
            drained: AtomicU32::new(0),
            word: AtomicU64::new(0),
            waiting: [ptr::null_mut(); 3].map(AtomicPtr::new),
        }
    }

    #[inline]
    fn edges(&self, direction: Direction) -> u32 {
        edges(self.word.load(Ordering::Acquire), direction)
    }

    fn is_empty(&self) -> bool {
        self.word.load(Ordering::Acquire) & WAITING == 0
    }

    /// Puts an operation in that waits, unless there is an edge that it has not seen.
    #[inline]
    fn put(&self, direction: Direction, operation: *mut Operation, seen: u32) -> bool {
        let side = index(direction);
        let mut word = self.word.load(Ordering::Acquire);
        debug_assert_eq!(word & (1 << side), 0);
        self.waiting[side].store(operation, Ordering::Relaxed);
        while edges(word, direction) == seen {
            let new = word | 1 << side;
            let (done, failed) = (Ordering::AcqRel, Ordering::Acquire);
            match self.word.compare_exchange_weak(word, new, done, failed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Counts edges, and takes out those that wait in directions that are ready.
    #[inline]
    fn count(&self, edges: u64, ready: u64, mut sink: impl FnMut(*mut Operation)) {
        let count = |word: u64| Some((word & !ready).wrapping_add(edges));
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let word = self.word.fetch_update(order.0, order.1, count).unwrap_or(0);
        for (side, waiting) in self.waiting.iter().enumerate() {
            if word & ready & (1 << side) != 0 {
                sink(waiting.load(Ordering::Relaxed));
            }
        }
    }

    /// Takes an operation out that waits. False: somebody else has.
    fn take(&self, direction: Direction, operation: *mut Operation) -> bool {
        let side = index(direction);
        let bit = 1 << side;
        self.waiting[side].load(Ordering::Relaxed) == operation
            && self.word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
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

const FIRST: u32 = if cfg!(loom) { 2 } else { 64 };
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

    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        let (chunk, offset) = place(number);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// A slot for a descriptor. `careful`: it is no TCP socket.
    pub(crate) fn claim(&self, fd: RawDescriptor, careful: bool) -> io::Result<Claim> {
        let number = self.free().pop();
        let number = number.unwrap_or_else(|| self.used.fetch_add(1, Ordering::Relaxed));
        let (chunk, _) = place(number);
        let length = FIRST << chunk;
        let first = length - FIRST;
        let chunk = self.chunks.get(chunk).ok_or(io::ErrorKind::OutOfMemory)?;
        chunk.get_or_init(|| (first..first + length).map(Slot::new).collect());
        let slot = self.slot(number).ok_or(io::ErrorKind::OutOfMemory)?;
        debug_assert_eq!(slot.number, number);
        slot.fd.store(fd, Ordering::Relaxed);
        slot.careful.store(careful, Ordering::Relaxed);
        slot.drained.store(slot.edges(Direction::In), Ordering::Relaxed);
        Ok(Claim(NonNull::from(slot)))
    }

    /// Gives a slot back whose descriptor is about to be closed. Nothing waits in it.
    pub(crate) fn release(&self, claim: Claim) {
        let slot = claim.slot();
        debug_assert!(slot.is_empty());
        slot.generation.fetch_add(1, Ordering::SeqCst);
        let lane = slot.lane.swap(NOWHERE, Ordering::SeqCst);
        if lane != NOWHERE {
            let _ = self.pollers[usize::from(lane)].remove(slot.fd.load(Ordering::Relaxed));
        }
        self.free().push(slot.number);
    }

    /// How often a descriptor has become ready so far. To be asked before a call that may find it
    /// is not.
    #[inline]
    pub(crate) fn edges(&self, claim: Claim, direction: Direction) -> u32 {
        claim.slot().edges(direction)
    }

    /// Lets an operation wait. `seen`: the call was made, and would have blocked; it knew of so
    /// many edges. Otherwise it waits unless the descriptor is known to be readable.
    ///
    /// The descriptor is registered with the poller of `lane`, unless an operation of the other
    /// direction waits where it is registered already.
    #[inline]
    pub(crate) fn park(
        &self,
        claim: Claim,
        direction: Direction,
        operation: *mut Operation,
        seen: Option<u32>,
        lane: u16,
    ) -> io::Result<Parked> {
        let slot = claim.slot();
        let tried = seen.is_some();
        if let Some(seen) = seen
            && direction == Direction::In
        {
            slot.drained.store(seen, Ordering::Relaxed);
        }
        let seen = seen.unwrap_or_else(|| slot.drained.load(Ordering::Relaxed));
        if slot.lane.load(Ordering::Relaxed) != lane && slot.is_empty() {
            if slot.edges(direction) != seen {
                return Ok(Parked::Ready);
            }
            if !self.move_to(slot, lane, tried)? {
                return Ok(Parked::Ready);
            }
        }
        let lane = slot.lane.load(Ordering::Relaxed);
        Ok(if slot.put(direction, operation, seen) { Parked::In(lane) } else { Parked::Ready })
    }

    /// Registers a descriptor with a lane's poller, and no other. False: it need not be.
    #[cold]
    fn move_to(&self, slot: &Slot, lane: u16, tried: bool) -> io::Result<bool> {
        let fd = slot.fd.load(Ordering::Relaxed);
        let former = slot.lane.load(Ordering::Relaxed);
        if former != NOWHERE {
            self.pollers[usize::from(former)].remove(fd)?;
        }
        let generation = slot.generation.load(Ordering::Relaxed);
        let token = Token { number: slot.number, generation };
        // Before there can be an event, or it would be taken for one of a former registration.
        slot.lane.store(lane, Ordering::SeqCst);
        // If it is ready now, that is the first edge.
        let added = self.pollers[usize::from(lane)].add(fd, EDGES, token.bits());
        let Err(error) = added else { return Ok(true) };
        slot.lane.store(NOWHERE, Ordering::SeqCst);
        match error.raw_os_error() {
            // A device that is always ready, as the null device is. One that would block all the
            // same is tried again, after a pause.
            Some(libc::EPERM) if tried => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            Some(libc::EPERM) => Ok(false),
            _ => Err(error),
        }
    }

    /// A receive has not filled its buffer: nothing is left to read, unless something has come
    /// since the edge it knew of.
    #[inline]
    pub(crate) fn spent(&self, claim: Claim, seen: u32) {
        let slot = claim.slot();
        if !slot.careful.load(Ordering::Relaxed) {
            slot.drained.store(seen, Ordering::Relaxed);
        }
    }

    /// Takes a waiting operation out. False: its event is on its way.
    pub(crate) fn unpark(&self, claim: Claim, op: &mut Operation) -> bool {
        claim.slot().take(op.direction, &raw mut *op)
    }

    /// The kernel says that a descriptor has become ready: hands the operations that have waited
    /// for it to `sink`.
    #[inline]
    pub(crate) fn ready(
        &self,
        lane: u16,
        token: u64,
        events: u32,
        sink: impl FnMut(*mut Operation),
    ) {
        let token = Token::from_bits(token);
        let Some(slot) = self.slot(token.number) else { return };
        // It has been registered elsewhere since, and would have been told there; or its slot was
        // given to another. Should that happen from here on, that one has an edge too many.
        if slot.generation.load(Ordering::SeqCst) != token.generation
            || slot.lane.load(Ordering::SeqCst) != lane
        {
            return;
        }
        let is = |flags: i32| events & flags.cast_unsigned() != 0;
        let over = is(libc::EPOLLHUP | libc::EPOLLERR);
        let readable = is(libc::EPOLLIN | libc::EPOLLRDHUP) || over;
        let writable = is(libc::EPOLLOUT) || over;
        // The end of the stream has no edge of its own if it came together with data, and urgent
        // data makes receives end early.
        if is(libc::EPOLLRDHUP | libc::EPOLLPRI) || over {
            slot.careful.store(true, Ordering::Relaxed);
        }
        let edges = if readable { READABLE } else { 0 } + if writable { OTHERWISE } else { 0 };
        let ready = u64::from(readable) | (u64::from(writable) << 1) | (u64::from(over) << 2);
        slot.count(edges, ready, sink);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Would catch: an edge between a call that would have blocked and the waiting, of which
    /// nobody tells; an operation that is handed out twice.
    #[test]
    fn whoever_waits_hears_of_the_next_edge() {
        const EDGES: u32 = 100_000;
        let operation = || ptr::without_provenance_mut(64);
        let slot = Slot::new(0);
        let [there, brought, told, lost] = [const { AtomicU32::new(0) }; 4];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..EDGES {
                    // Another edge would make up for one that was lost.
                    while there.load(Ordering::SeqCst) > 0 {
                        if lost.load(Ordering::SeqCst) > 0 {
                            return;
                        }
                        std::thread::yield_now();
                    }
                    there.store(1, Ordering::SeqCst);
                    slot.count(READABLE | OTHERWISE, 0b011, |waiting| {
                        assert_eq!(waiting, operation());
                        told.fetch_add(1, Ordering::SeqCst);
                    });
                    brought.fetch_add(1, Ordering::SeqCst);
                }
            });
            let (mut taken, mut waits) = (0, 0);
            while taken < EDGES && lost.load(Ordering::SeqCst) == 0 {
                let seen = slot.edges(Direction::In);
                match there.swap(0, Ordering::SeqCst) {
                    0 if slot.put(Direction::In, operation(), seen) => {
                        waits += 1;
                        while told.load(Ordering::SeqCst) < waits {
                            let over = brought.load(Ordering::SeqCst) > taken;
                            let told = told.load(Ordering::SeqCst) == waits;
                            if over && !told {
                                lost.store(1, Ordering::SeqCst);
                                break;
                            }
                            std::thread::yield_now();
                        }
                    }
                    more => taken += more,
                }
            }
            assert_eq!(told.load(Ordering::SeqCst), waits, "it waits for what has come");
            assert!(!slot.take(Direction::In, operation()), "nobody waits");
        });
    }

    /// Would catch: a cancellation that finds what waits in the other direction, or nobody.
    #[test]
    fn what_waits_is_taken_out_once() {
        let one = ptr::without_provenance_mut(64);
        let other = ptr::without_provenance_mut(128);
        let slot = Slot::new(0);
        assert!(slot.put(Direction::In, one, 0) && slot.put(Direction::Out, other, 0));
        assert!(!slot.take(Direction::In, other) && !slot.is_empty());
        assert!(slot.take(Direction::In, one) && !slot.take(Direction::In, one));
        let mut told = Vec::new();
        slot.count(READABLE | OTHERWISE, 0b011, |waiting| told.push(waiting));
        assert!(told == [other] && slot.is_empty());
        assert!(!slot.put(Direction::In, one, 0) && slot.put(Direction::In, one, 1));
        assert_eq!(slot.edges(Direction::Out), 1);
    }
}

#[cfg(all(test, loom))]
mod model {
    //! Every interleaving of a few threads with the real registry, and with the real kernel, whose
    //! calls are made one after the other.

    use std::{
        io::{Read, Write},
        os::{fd::AsRawFd, unix::net::UnixStream},
        sync::Arc,
        time::Duration,
    };

    use loom::thread;

    use super::*;
    use crate::sync::{AtomicUsize, kernel};

    struct Model {
        registry: Registry,
        /// How often each operation has been handed to whoever makes its call.
        told: [AtomicUsize; 2],
    }

    /// The first operation and the second one; nobody follows the pointers.
    const ONE: usize = 0;
    const TWO: usize = 1;

    fn operation(index: usize) -> *mut Operation {
        ptr::without_provenance_mut(64 * (index + 1))
    }

    /// A connection, and its peer.
    fn connection() -> (UnixStream, UnixStream) {
        let (ours, peers) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, peers)
    }

    fn send(mut peer: &UnixStream) {
        kernel(|| peer.write_all(b"!")).unwrap();
    }

    impl Model {
        fn new(lanes: usize) -> Arc<Self> {
            Arc::new(Self {
                registry: Registry::new(lanes).unwrap(),
                told: [AtomicUsize::new(0), AtomicUsize::new(0)],
            })
        }

        fn told(&self, index: usize) -> usize {
            self.told[index].load(Ordering::SeqCst)
        }

        fn ready(&self, lane: u16, events: &[(u64, u32)]) {
            for &(token, events) in events {
                self.registry.ready(lane, token, events, |waiting| {
                    let index = (0..2).find(|&index| operation(index) == waiting);
                    self.told[index.unwrap()].fetch_add(1, Ordering::SeqCst);
                });
            }
        }

        fn events(&self, lane: u16) -> Vec<(u64, u32)> {
            let mut events = Vec::new();
            let poller = &self.registry.pollers[usize::from(lane)];
            poller.wait(Some(Duration::ZERO), |token, of| events.push((token, of))).unwrap();
            events
        }

        fn look(&self, lane: u16) {
            self.ready(lane, &self.events(lane));
        }

        /// Receives as the driver does. None: it waits.
        fn receive(
            &self,
            mut ours: &UnixStream,
            claim: Claim,
            index: usize,
            lane: u16,
        ) -> Option<usize> {
            loop {
                let seen = self.registry.edges(claim, Direction::In);
                let mut room = [0; 8];
                let received = kernel(|| ours.read(&mut room));
                if let Ok(bytes) = received {
                    // Here others may get on. Loom would not see that it matters: of a word's
                    // accesses it remembers the last, and whoever counts an edge looks first.
                    kernel(|| ());
                    self.registry.spent(claim, seen);
                    return Some(bytes);
                }
                if self.park(claim, index, Some(seen), lane) {
                    return None;
                }
            }
        }

        fn park(&self, claim: Claim, index: usize, seen: Option<u32>, lane: u16) -> bool {
            let parked =
                self.registry.park(claim, Direction::In, operation(index), seen, lane).unwrap();
            parked != Parked::Ready
        }
    }

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(model);
    }

    /// A receive that has emptied the socket, and the next, which waits without a call.
    #[test]
    fn whoever_waits_is_told_once_of_what_comes() {
        check(|| {
            let model = Model::new(1);
            let (ours, peer) = connection();
            let claim = model.registry.claim(ours.as_raw_fd(), false).unwrap();
            assert!(model.park(claim, ONE, None, 0));
            send(&peer);
            model.look(0);
            assert_eq!(model.told(ONE), 1);
            let others = [1, 0].map(|sends| {
                let (model, peer) = (model.clone(), peer.try_clone().unwrap());
                thread::spawn(move || {
                    (0..sends).for_each(|_| send(&peer));
                    model.look(0);
                })
            });
            let (mut received, mut waits) = (0, false);
            while !waits && received < 2 {
                match model.receive(&ours, claim, ONE, 0) {
                    Some(bytes) => {
                        received += bytes;
                        waits = received < 2 && model.park(claim, ONE, None, 0);
                    }
                    None => waits = true,
                }
            }
            others.into_iter().for_each(|other| other.join().unwrap());
            model.look(0);
            assert_eq!(model.told(ONE), 1 + usize::from(waits));
        });
    }

    #[test]
    fn whoever_is_called_back_is_not_told() {
        check(|| {
            let model = Model::new(1);
            let (ours, peer) = connection();
            let claim = model.registry.claim(ours.as_raw_fd(), false).unwrap();
            assert!(model.park(claim, ONE, None, 0));
            // The first events: it can be written to.
            model.look(0);
            let seen = Some(model.registry.edges(claim, Direction::Out));
            let sends = operation(TWO);
            let parked = model.registry.park(claim, Direction::Out, sends, seen, 0).unwrap();
            assert_eq!(parked, Parked::In(0));
            let others = [0, 1].map(|sends| {
                let (model, peer) = (model.clone(), peer.try_clone().unwrap());
                thread::spawn(move || {
                    (0..sends).for_each(|_| send(&peer));
                    model.look(0);
                })
            });
            let taken = claim.slot().take(Direction::In, operation(ONE));
            others.into_iter().for_each(|other| other.join().unwrap());
            model.look(0);
            assert_eq!(model.told(ONE), usize::from(!taken));
            assert_eq!(model.told(TWO), 1, "the other direction is ready, too");
        });
    }

    #[test]
    fn whoever_moves_to_another_lane_is_told_there() {
        check(|| {
            let model = Model::new(2);
            let (ours, peer) = connection();
            let claim = model.registry.claim(ours.as_raw_fd(), false).unwrap();
            assert!(model.park(claim, TWO, None, 0));
            send(&peer);
            model.look(0);
            assert_eq!(model.told(TWO), 1);
            assert_eq!(model.receive(&ours, claim, TWO, 0), Some(1));
            let others = [0, 1].map(|lane| {
                let (model, peer) = (model.clone(), peer.try_clone().unwrap());
                thread::spawn(move || {
                    if lane == 0 {
                        send(&peer);
                    }
                    model.look(lane);
                })
            });
            let received = model.receive(&ours, claim, ONE, 1);
            others.into_iter().for_each(|other| other.join().unwrap());
            (0..2).for_each(|lane| model.look(lane));
            assert_eq!(model.told(ONE), usize::from(received.is_none()));
        });
    }

    #[test]
    fn what_came_for_a_former_owner_is_nothing_to_the_next() {
        check(|| {
            let model = Model::new(1);
            let (former, formers_peer) = connection();
            let claim = model.registry.claim(former.as_raw_fd(), false).unwrap();
            assert_eq!(model.receive(&former, claim, ONE, 0), None);
            assert!(claim.slot().take(Direction::In, operation(ONE)));
            send(&formers_peer);
            let given = Arc::new(AtomicBool::new(false));
            let other = {
                let (model, given) = (model.clone(), given.clone());
                thread::spawn(move || {
                    let events = model.events(0);
                    let late = given.load(Ordering::SeqCst);
                    model.ready(0, &events);
                    late
                })
            };
            model.registry.release(claim);
            let (ours, peer) = connection();
            assert_eq!(model.registry.claim(ours.as_raw_fd(), false).unwrap(), claim);
            assert_eq!(model.receive(&ours, claim, TWO, 0), None);
            given.store(true, Ordering::SeqCst);
            let late = other.join().unwrap();
            assert!(!late || model.told(TWO) == 0, "a call in vain, though all was over before");
            send(&peer);
            model.look(0);
            assert_eq!((model.told(ONE), model.told(TWO)), (0, 1));
        });
    }

    #[test]
    fn a_slot_is_given_away_when_its_owner_is_done_with_it() {
        check(|| {
            let model = Model::new(1);
            let (former, _peer) = connection();
            let formers = model.registry.claim(former.as_raw_fd(), false).unwrap();
            assert_eq!(model.receive(&former, formers, ONE, 0), None);
            assert!(formers.slot().take(Direction::In, operation(ONE)));
            let owners = [ONE, TWO].map(|index| {
                let model = model.clone();
                thread::spawn(move || {
                    let (ours, peer) = connection();
                    let claim = model.registry.claim(ours.as_raw_fd(), false).unwrap();
                    assert_eq!(model.receive(&ours, claim, index, 0), None);
                    (claim, ours, peer)
                })
            });
            model.registry.release(formers);
            let owners = owners.map(|owner| owner.join().unwrap());
            assert_ne!(owners[0].0, owners[1].0);
            owners.iter().for_each(|(_, _, peer)| send(peer));
            model.look(0);
            assert_eq!((model.told(ONE), model.told(TWO)), (1, 1));
        });
    }
}
