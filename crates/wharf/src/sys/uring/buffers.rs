//! Memory that a ring knows by a number.
//!
//! For each direct read or write the kernel looks up the pages of its buffer, and holds on to them
//! until it is over. The pages of memory that is registered with the ring are looked up once.

use std::{
    io,
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use linux_raw_sys::io_uring as abi;

use super::{Ring, ring};
use crate::sync::lock;

/// A part of a region that a ring takes as one buffer. When it is dropped, no ring has it any more.
#[derive(Debug)]
pub(crate) struct Piece {
    /// No other piece has it, or ever will: another may lie at this address later.
    id: u64,
    address: usize,
    length: usize,
    /// The tables that know of it.
    tables: Mutex<Vec<Weak<Table>>>,
}

impl Piece {
    /// The most bytes a ring takes as one buffer.
    pub(crate) const BYTES_MAX: usize = 1 << 30;

    /// # Safety
    ///
    /// So many bytes are mapped at the address, and stay so until the piece has been dropped.
    pub(crate) unsafe fn new(address: *mut u8, length: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, address: address.expose_provenance(), length, tables: Mutex::default() }
    }

    /// A table has been asked to take it.
    fn note(&self, table: &Arc<Table>) {
        let mut tables = lock(&self.tables);
        // Those whose rings are gone need not hear of the end.
        tables.retain(|it| it.strong_count() > 0);
        if !tables.iter().any(|it| ptr::eq(it.as_ptr(), Arc::as_ptr(table))) {
            tables.push(Arc::downgrade(table));
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let tables = self.tables.get_mut().unwrap_or_else(PoisonError::into_inner);
        for table in tables.iter().filter_map(Weak::upgrade) {
            table.remove(self.id);
        }
    }
}

/// The memory that is registered with a ring. Goes before that.
#[derive(Debug)]
pub(super) struct Buffers {
    table: Arc<Table>,
}

/// What a ring has, as the pieces know it.
#[derive(Debug)]
struct Table {
    /// Whose ring it is: a child made by fork has its descriptor, too.
    process: u32,
    /// Pieces that have been looked up, to be found without the lock: each at the place that its id
    /// gives, with its number, or `NONE`, in the lowest 16 bits. One that is gone is looked up no
    /// more.
    latest: [AtomicU64; PLACES],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None: it is closed.
    ring: Option<RawFd>,
    /// The numbers that are free. None: the ring has no table yet.
    free: Option<Vec<u16>>,
    /// Pieces that the ring has been asked to take, with their numbers if it did.
    known: Vec<(u64, Option<u16>)>,
}

/// How many pieces one ring may know. They are few and large.
const SIZE: u16 = 64;

/// As many as four bits tell apart.
const PLACES: usize = 16;

/// No piece's number.
const NONE: u16 = u16::MAX;

fn word(id: u64, number: Option<u16>) -> u64 {
    id << 16 | u64::from(number.unwrap_or(NONE))
}

fn number(word: u64) -> Option<u16> {
    let number = (word & 0xffff) as u16;
    (number != NONE).then_some(number)
}

impl Buffers {
    /// `allowed`: to use the table at all.
    pub(super) fn new(ring: &Ring, allowed: bool) -> Self {
        let state = State {
            ring: Some(ring.fd()),
            free: if allowed { None } else { Some(Vec::new()) },
            known: Vec::new(),
        };
        let table = Table {
            process: std::process::id(),
            latest: [const { AtomicU64::new(0) }; PLACES],
            state: Mutex::new(state),
        };
        Self { table: Arc::new(table) }
    }

    /// The number of a piece, which the ring takes now if it has not been asked before. None: it
    /// does not. The kernel is too old (before Linux 5.19), so much memory may not be locked
    /// (RLIMIT_MEMLOCK), or there is no number left.
    #[inline]
    pub(super) fn number_of(&self, piece: &Piece) -> Option<u16> {
        let latest = self.table.latest(piece.id).load(Ordering::Acquire);
        if latest >> 16 == piece.id { number(latest) } else { self.look_up(piece) }
    }

    #[cold]
    fn look_up(&self, piece: &Piece) -> Option<u16> {
        let mut state = lock(&self.table.state);
        let known = state.known.iter().find(|(id, _)| *id == piece.id);
        let number = match known {
            Some((_, number)) => *number,
            None => {
                let number = state.add(piece);
                state.known.push((piece.id, number));
                piece.note(&self.table);
                number
            }
        };
        self.table.latest(piece.id).store(word(piece.id, number), Ordering::Release);
        number
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // A child's copy of the lock may be held by a thread that the child has not.
        if self.table.is_ours() {
            lock(&self.table.state).ring = None;
        }
    }
}

impl Table {
    fn latest(&self, id: u64) -> &AtomicU64 {
        &self.latest[usize::from((id & 0xf) as u8)]
    }

    fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// Forgets a piece, with which nothing is in flight any more.
    fn remove(&self, id: u64) {
        if !self.is_ours() {
            return;
        }
        let mut state = lock(&self.state);
        let Some(place) = state.known.iter().position(|(it, _)| *it == id) else { return };
        let (_, number) = state.known.swap_remove(place);
        let (Some(number), Some(ring)) = (number, state.ring) else { return };
        // SAFETY: it names no memory.
        if let Err(error) = unsafe { put(ring, number, 0, 0) } {
            return log::warn!("a ring keeps memory that nobody uses: {error}");
        }
        state.free.get_or_insert_default().push(number);
        // There may be room now for what was refused.
        state.known.retain(|(_, number)| number.is_some());
        for latest in &self.latest {
            if self::number(latest.load(Ordering::Relaxed)).is_none() {
                latest.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl State {
    fn add(&mut self, piece: &Piece) -> Option<u16> {
        let ring = self.ring?;
        let free = self.free.get_or_insert_with(|| {
            let opcode = abi::io_uring_register_op::IORING_REGISTER_BUFFERS2;
            let made = ring::make_table(ring, opcode, SIZE);
            if made.is_ok() { (0..SIZE).rev().collect() } else { Vec::new() }
        });
        let number = *free.last()?;
        // SAFETY: the piece is there, and so is its memory; when it goes, it is taken out.
        match unsafe { put(ring, number, piece.address, piece.length) } {
            Ok(()) => free.pop(),
            Err(error) => {
                let remedy = match error.raw_os_error() {
                    Some(libc::ENOMEM) => ": raise RLIMIT_MEMLOCK",
                    _ => "",
                };
                let length = piece.length;
                log::warn!("{length} bytes of a region are not registered: {error}{remedy}");
                None
            }
        }
    }
}

/// Puts memory under a number, or none: of no bytes at no address.
///
/// # Safety
///
/// The memory is mapped, and is taken out before it is no more.
unsafe fn put(ring: RawFd, number: u16, address: usize, length: usize) -> io::Result<()> {
    let memory =
        libc::iovec { iov_base: ptr::with_exposed_provenance_mut(address), iov_len: length };
    let update = abi::io_uring_rsrc_update2 {
        offset: u32::from(number),
        resv: 0,
        data: (&raw const memory) as u64,
        tags: 0,
        nr: 1,
        resv2: 0,
    };
    let opcode = abi::io_uring_register_op::IORING_REGISTER_BUFFERS_UPDATE;
    let size = u32::try_from(size_of_val(&update)).unwrap_or(0);
    // SAFETY: the structure is what this opcode asks for; it leads to one address and length, and
    // both are read during the call. Of the memory, the caller's promise.
    unsafe { ring::register(ring, opcode as u32, (&raw const update).cast(), size) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::{Mapping, uring::RingSize};

    /// A page of its own, and what a ring may know it by.
    struct Page {
        piece: Piece,
        _memory: Mapping,
    }

    impl Page {
        fn new() -> Self {
            let memory = Mapping::resident(4096).unwrap();
            // SAFETY: the memory lies beside the piece, and goes after it.
            let piece = unsafe { Piece::new(memory.address(), memory.length()) };
            Self { piece, _memory: memory }
        }

        fn many(count: u16) -> Vec<Self> {
            (0..count).map(|_| Self::new()).collect()
        }
    }

    fn ring() -> Ring {
        Ring::new(RingSize { submissions: 2, completions: 4 }, false).unwrap()
    }

    fn numbers(buffers: &Buffers, pages: &[Page]) -> Vec<Option<u16>> {
        pages.iter().map(|page| buffers.number_of(&page.piece)).collect()
    }

    /// Would catch: a number that two pieces have, that changes, or that does not come back; a
    /// piece that was refused and is never asked for again.
    #[test]
    fn a_ring_takes_so_many_pieces_and_others_when_they_go() {
        let ring = ring();
        let buffers = Buffers::new(&ring, true);
        let mut pages = Page::many(SIZE);
        let given = numbers(&buffers, &pages);
        let mut sorted = given.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..SIZE).map(Some).collect::<Vec<_>>());
        let late = Page::many(20);
        assert_eq!(numbers(&buffers, &late), [None; 20]);
        assert_eq!(numbers(&buffers, &pages), given);
        drop(pages.remove(7));
        let mut found: Vec<_> = numbers(&buffers, &late).into_iter().flatten().collect();
        assert_eq!(found, [given[7].unwrap()]);
        pages.clear();
        found = numbers(&buffers, &late).into_iter().flatten().collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 20);
        drop(late);
        assert!(lock(&buffers.table.state).known.is_empty());
        assert!(numbers(&buffers, &Page::many(SIZE)).iter().all(Option::is_some));
    }

    /// Would catch: a descriptor that is used when it may be another's, or rings that a piece
    /// remembers for ever.
    #[test]
    fn a_piece_outlives_its_rings() {
        let page = Page::new();
        for _ in 0..10 {
            let ring = ring();
            let buffers = Buffers::new(&ring, true);
            assert_eq!(buffers.number_of(&page.piece), Some(0));
            drop(buffers);
            assert!(lock(&page.piece.tables).len() <= 1);
        }
        let (one, other) = (ring(), ring());
        let (one, other) = (Buffers::new(&one, true), Buffers::new(&other, true));
        assert_eq!((one.number_of(&page.piece), other.number_of(&page.piece)), (Some(0), Some(0)));
        drop(page);
        for buffers in [one, other] {
            assert_eq!(lock(&buffers.table.state).free.as_ref().map(Vec::len), Some(64));
        }
    }

    /// Would catch: the table being used where it is not to be.
    #[test]
    fn a_ring_that_may_not_take_any_takes_none() {
        let ring = ring();
        let buffers = Buffers::new(&ring, false);
        assert_eq!(numbers(&buffers, &Page::many(3)), [None; 3]);
    }
}
