//! One io_uring instance: its mappings, its queues, its one system call.
//!
//! Unlike the usual wrappers, both queues may be used by any thread. The submission queue has a
//! lock; the completion queue has none: taking an entry is a compare-and-swap on its head, so an
//! idle worker can take completions from the ring of a worker that is stuck. Who has the ring to
//! himself (`&mut`) needs neither: [`Ring::push_alone`], [`Ring::pop_alone`].

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    time::Duration,
};

use linux_raw_sys::io_uring as abi;

use crate::{sync::SpinLock, sys::Mapping};

/// A submission queue entry, in the layout of `struct io_uring_sqe`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sqe {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) ioprio: u16,
    pub(crate) fd: i32,
    /// The offset, or a second address.
    pub(crate) off: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    /// Flags of the operation itself (`msg_flags`, `accept_flags`, `timeout_flags`, …).
    pub(crate) op_flags: u32,
    pub(crate) user_data: u64,
    /// Index of a registered buffer, or the group to take a buffer from.
    pub(crate) buf_index: u16,
    pub(crate) personality: u16,
    pub(crate) splice_fd_in: i32,
    pub(crate) pad: [u64; 2],
}

const _: () = assert!(size_of::<Sqe>() == size_of::<abi::io_uring_sqe>());
const _: () = assert!(size_of::<Sqe>() == 64);

/// A completion queue entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cqe {
    pub(crate) user_data: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// How large a ring to ask for, in entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSize {
    pub(crate) submissions: u32,
    pub(crate) completions: u32,
}

/// An io_uring instance. See the module's page for who may call what.
#[derive(Debug)]
pub(crate) struct Ring {
    fd: OwnedFd,
    features: u32,
    no_iowait: bool,
    size: RingSize,
    entries: AtomicU64,
    /// Guards the submission queue's tail and the entries behind it.
    submit: SpinLock<()>,
    sq_head: *const AtomicU32,
    sq_tail: *const AtomicU32,
    sq_flags: *const AtomicU32,
    sq_mask: u32,
    cq_head: *const AtomicU32,
    cq_tail: *const AtomicU32,
    cq_flags: *const AtomicU32,
    cq_mask: u32,
    cqes: *const [AtomicU64; 2],
    sqes: Mapping,
    /// Keeps what the pointers above point into.
    _rings: Mapping,
}

// SAFETY: the pointers lead into `_rings` and `sqes`, which live as long as `self`. Everything
// reached through them is either an atomic or (the entries of the submission queue) written only
// under `submit`.
unsafe impl Send for Ring {}
// SAFETY: as for Send.
unsafe impl Sync for Ring {}

fn setup(size: RingSize, flags: u32) -> io::Result<(OwnedFd, abi::io_uring_params)> {
    // SAFETY: io_uring_params is plain integers, for which zero is a value.
    let mut params: abi::io_uring_params = unsafe { std::mem::zeroed() };
    params.flags = flags | abi::IORING_SETUP_CQSIZE | abi::IORING_SETUP_CLAMP;
    params.cq_entries = size.completions;
    // SAFETY: io_uring_setup reads and writes the params, which live across the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, size.submissions, &raw mut params) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, params))
}

impl Ring {
    /// Makes a ring. Kernels that do not know an optional flag get the ring without it.
    pub(crate) fn new(size: RingSize, cooperative: bool) -> io::Result<Self> {
        let cooperative = if cooperative { abi::IORING_SETUP_COOP_TASKRUN } else { 0 };
        let submit_all = abi::IORING_SETUP_SUBMIT_ALL;
        Self::try_flags(size, &[cooperative | submit_all, submit_all, 0])
    }

    /// Makes a ring for one owner, who looks at it often. The kernel does not interrupt the owner
    /// for what it has to do on his behalf: it says so in the ring ([`Self::work_waits`]), and
    /// does it when he next enters.
    pub(crate) fn polled(size: RingSize) -> io::Result<Self> {
        let polled = abi::IORING_SETUP_COOP_TASKRUN | abi::IORING_SETUP_TASKRUN_FLAG;
        Self::try_flags(size, &[polled | abi::IORING_SETUP_SUBMIT_ALL])
    }

    fn try_flags(size: RingSize, attempts: &[u32]) -> io::Result<Self> {
        for flags in attempts {
            match setup(size, *flags) {
                Ok((fd, params)) => return Self::map(fd, &params),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Err(too_old())
    }

    /// Whether the kernel knows a set-up flag.
    pub(crate) fn supports(flag: u32) -> bool {
        setup(RingSize { submissions: 2, completions: 4 }, flag).is_ok()
    }

    fn map(fd: OwnedFd, params: &abi::io_uring_params) -> io::Result<Self> {
        let needed = abi::IORING_FEAT_SINGLE_MMAP
            | abi::IORING_FEAT_NODROP
            | abi::IORING_FEAT_SUBMIT_STABLE
            | abi::IORING_FEAT_FAST_POLL
            | abi::IORING_FEAT_EXT_ARG;
        if params.features & needed != needed {
            return Err(too_old());
        }
        let sq_bytes = params.sq_off.array as usize + params.sq_entries as usize * 4;
        let cq_bytes = params.cq_off.cqes as usize + params.cq_entries as usize * 16;
        let raw = fd.as_raw_fd();
        let rings =
            Mapping::new(sq_bytes.max(cq_bytes), Some((raw, i64::from(abi::IORING_OFF_SQ_RING))))?;
        let sqes = Mapping::new(
            params.sq_entries as usize * size_of::<Sqe>(),
            Some((raw, i64::from(abi::IORING_OFF_SQES))),
        )?;
        for mapping in [&rings, &sqes] {
            // SAFETY: the range is a whole mapping of ours; the advice changes only what a child
            // made by fork inherits.
            unsafe {
                libc::madvise(mapping.address().cast(), mapping.length(), libc::MADV_DONTFORK);
            }
        }
        let mask = |offset| {
            // SAFETY: the kernel wrote both masks when it made the ring, before we mapped it.
            unsafe { (*rings.atomic(offset)).load(Ordering::Relaxed) }
        };
        let (sq_mask, cq_mask) = (mask(params.sq_off.ring_mask), mask(params.cq_off.ring_mask));
        for slot in 0..params.sq_entries {
            // Entry n of the queue is always slot n: the indirection is never used.
            // SAFETY: the array has sq_entries slots inside the mapping, and the kernel reads
            // them only during io_uring_enter.
            unsafe {
                (*rings.atomic(params.sq_off.array + slot * 4)).store(slot, Ordering::Relaxed);
            }
        }
        Ok(Self {
            features: params.features,
            no_iowait: params.features & abi::IORING_FEAT_NO_IOWAIT != 0,
            size: RingSize { submissions: params.sq_entries, completions: params.cq_entries },
            entries: AtomicU64::new(0),
            submit: SpinLock::new(()),
            sq_head: rings.atomic(params.sq_off.head),
            sq_tail: rings.atomic(params.sq_off.tail),
            sq_flags: rings.atomic(params.sq_off.flags),
            sq_mask,
            cq_head: rings.atomic(params.cq_off.head),
            cq_tail: rings.atomic(params.cq_off.tail),
            cq_flags: rings.atomic(params.cq_off.flags),
            cq_mask,
            cqes: rings.atomic(params.cq_off.cqes).cast(),
            sqes,
            _rings: rings,
            fd,
        })
    }

    /// The IORING_FEAT_* bits the kernel reported.
    pub(crate) fn features(&self) -> u32 {
        self.features
    }

    fn load(counter: *const AtomicU32, order: Ordering) -> u32 {
        // SAFETY: only called with this ring's own counters, which live as long as the ring.
        unsafe { (*counter).load(order) }
    }

    /// Entries queued that the kernel has not taken yet.
    pub(crate) fn unsubmitted(&self) -> u32 {
        let head = Self::load(self.sq_head, Ordering::Acquire);
        Self::load(self.sq_tail, Ordering::Relaxed).wrapping_sub(head)
    }

    /// Completions waiting to be taken.
    pub(crate) fn ready(&self) -> u32 {
        let head = Self::load(self.cq_head, Ordering::Relaxed);
        // A thief may move the head between the two loads: never report more than there are.
        let ready = Self::load(self.cq_tail, Ordering::Acquire).wrapping_sub(head);
        if ready > self.size.completions { 0 } else { ready }
    }

    /// Counts the completions waiting to be taken whose user data is wanted. Others may take some
    /// meanwhile: the number is a snapshot at best.
    pub(crate) fn count(&self, wanted: impl Fn(u64) -> bool) -> usize {
        let head = Self::load(self.cq_head, Ordering::Acquire);
        let user_data = |index: u32| {
            // SAFETY: the masked index lies inside the queue; the read is atomic.
            let words = unsafe { &*self.cqes.add((index & self.cq_mask) as usize) };
            words[0].load(Ordering::Relaxed)
        };
        let entries = (0..self.ready()).map(|distance| user_data(head.wrapping_add(distance)));
        entries.filter(|&user_data| wanted(user_data)).count()
    }

    /// Whether completions wait inside the kernel because the queue was full.
    pub(crate) fn overflowed(&self) -> bool {
        Self::load(self.sq_flags, Ordering::Relaxed) & abi::IORING_SQ_CQ_OVERFLOW != 0
    }

    /// Queues entries so that the kernel sees all of them, next to each other, or none. Where
    /// there is no room, what is queued is submitted first.
    ///
    /// # Safety
    ///
    /// What the entries point to must stay valid until their completions are taken.
    #[inline]
    pub(crate) unsafe fn push(&self, entries: &[Sqe]) -> io::Result<()> {
        let _guard = self.submit.lock();
        // SAFETY: the caller's promise; we hold the lock.
        unsafe { self.push_locked(entries) }
    }

    /// The same for who has the ring to himself.
    ///
    /// # Safety
    ///
    /// As for [`Self::push`].
    pub(crate) unsafe fn push_alone(&mut self, entries: &[Sqe]) -> io::Result<()> {
        // SAFETY: the caller's promise; nobody else can reach the ring.
        unsafe { self.push_locked(entries) }
    }

    /// Queues one entry, made in place.
    ///
    /// # Safety
    ///
    /// As for [`Self::push`].
    #[inline(always)]
    pub(crate) unsafe fn push_one(&self, make: impl FnOnce(&mut Sqe)) -> io::Result<()> {
        let _guard = self.submit.lock();
        self.make_room(1)?;
        let tail = Self::load(self.sq_tail, Ordering::Relaxed);
        // SAFETY: the slot lies inside the mapping (masked), belongs to the free part of the queue
        // (checked above), and nobody else pushes while we hold the lock. An entry is plain
        // integers, of which any bytes make one.
        make(unsafe { &mut *self.slot(tail) });
        // SAFETY: the tail counter lives as long as the ring. Release publishes the entry.
        unsafe { (*self.sq_tail).store(tail.wrapping_add(1), Ordering::Release) };
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Self::push`], and nobody else pushes meanwhile.
    #[inline]
    unsafe fn push_locked(&self, entries: &[Sqe]) -> io::Result<()> {
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        self.make_room(count)?;
        let tail = Self::load(self.sq_tail, Ordering::Relaxed);
        for (index, entry) in (0..).zip(entries) {
            // SAFETY: the slot lies inside the mapping (masked), belongs to the free part of the
            // queue (checked above), and nobody else pushes.
            unsafe { self.slot(tail.wrapping_add(index)).write(*entry) };
        }
        // SAFETY: the tail counter lives as long as the ring. Release publishes the entries.
        unsafe { (*self.sq_tail).store(tail.wrapping_add(count), Ordering::Release) };
        Ok(())
    }

    #[inline]
    fn slot(&self, index: u32) -> *mut Sqe {
        let slots = self.sqes.address().cast::<Sqe>();
        // SAFETY: the masked index lies inside the mapping.
        unsafe { slots.add((index & self.sq_mask) as usize) }
    }

    /// Submits what is queued until there is room for so many entries.
    #[inline]
    fn make_room(&self, count: u32) -> io::Result<()> {
        if self.size.submissions - self.unsubmitted() >= count {
            return Ok(());
        }
        self.submit_for_room(count)
    }

    #[cold]
    fn submit_for_room(&self, count: u32) -> io::Result<()> {
        let mut attempts = 0;
        while self.size.submissions - self.unsubmitted() < count {
            match self.enter(0, None) {
                Ok(()) => {}
                // The kernel is short of memory, or the completion queue has to be emptied first.
                Err(error) if attempts < 1000 && is_transient(&error) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
            attempts += 1;
        }
        Ok(())
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Takes the oldest completion, if it is wanted. Any thread may call this at any time.
    pub(crate) fn pop_if(&self, wanted: impl Fn(&Cqe) -> bool) -> Option<Cqe> {
        // SAFETY: the head counter lives as long as the ring.
        let head_counter = unsafe { &*self.cq_head };
        let mut head = head_counter.load(Ordering::Acquire);
        loop {
            if head == Self::load(self.cq_tail, Ordering::Acquire) {
                return None;
            }
            // The kernel may be overwriting this entry only if another thread has moved the head
            // past it; then what we read is discarded because the compare-and-swap below fails.
            // Reads are atomic, so a torn read is a stale value, not a data race.
            let cqe = self.completion(head);
            if !wanted(&cqe) {
                return None;
            }
            match head_counter.compare_exchange_weak(
                head,
                head.wrapping_add(1),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(cqe),
                Err(current) => head = current,
            }
        }
    }

    /// Takes the oldest completion, for who has the ring to himself.
    #[inline]
    pub(crate) fn pop_alone(&mut self) -> Option<Cqe> {
        let cqe = self.peek_alone()?;
        self.pass_alone();
        Some(cqe)
    }

    /// The oldest completion, which stays where it is. For who has the ring to himself.
    #[inline]
    pub(crate) fn peek_alone(&mut self) -> Option<Cqe> {
        let head = Self::load(self.cq_head, Ordering::Relaxed);
        let some = head != Self::load(self.cq_tail, Ordering::Acquire);
        some.then(|| self.completion(head))
    }

    /// Takes the completion that was peeked at.
    #[inline]
    pub(crate) fn pass_alone(&mut self) {
        let head = Self::load(self.cq_head, Ordering::Relaxed);
        // SAFETY: the head counter lives as long as the ring. Release: the kernel may overwrite
        // the entry once it sees the new head, and we have read it.
        unsafe { (*self.cq_head).store(head.wrapping_add(1), Ordering::Release) };
    }

    /// The entry of the completion queue with this index.
    #[inline]
    fn completion(&self, index: u32) -> Cqe {
        // SAFETY: the masked index lies inside the queue; the reads are atomic.
        let words = unsafe { &*self.cqes.add((index & self.cq_mask) as usize) };
        let [low, high] = split(words[1].load(Ordering::Relaxed));
        let user_data = words[0].load(Ordering::Relaxed);
        Cqe { user_data, result: low.cast_signed(), flags: high }
    }

    /// How many completions there have ever been, modulo 2³².
    pub(crate) fn completed(&self) -> u32 {
        Self::load(self.cq_tail, Ordering::Acquire)
    }

    /// Whether the kernel has something to do for a [`Self::polled`] ring, at the next entry.
    #[inline]
    pub(crate) fn work_waits(&self) -> bool {
        let work = abi::IORING_SQ_TASKRUN | abi::IORING_SQ_CQ_OVERFLOW;
        Self::load(self.sq_flags, Ordering::Relaxed) & work != 0
    }

    /// Signals an eventfd for each completion, while [`Self::set_signalling`] says so.
    pub(crate) fn register_event(&self, event: BorrowedFd<'_>) -> io::Result<()> {
        let event = event.as_raw_fd();
        let opcode = abi::io_uring_register_op::IORING_REGISTER_EVENTFD as u32;
        // SAFETY: the argument is a descriptor, read during the call.
        unsafe { self.register(opcode, (&raw const event).cast(), 1) }
    }

    /// Whether completions signal the registered event from now on.
    pub(crate) fn set_signalling(&self, on: bool) {
        let flags = if on { 0 } else { abi::IORING_CQ_EVENTFD_DISABLED };
        // SAFETY: the flags live as long as the ring, and are ours to write. Sequentially
        // consistent with the look at the queue that follows: either we see a completion, or the
        // kernel sees that it has to signal.
        unsafe { (*self.cq_flags).store(flags, Ordering::SeqCst) };
        fence(Ordering::SeqCst);
    }

    /// Enters the kernel once: submits everything queued, and waits until at least `wanted`
    /// completions are there, or the time-out passes (`ErrorKind::TimedOut`).
    pub(crate) fn enter(&self, wanted: u32, timeout: Option<Duration>) -> io::Result<()> {
        let mut flags = abi::IORING_ENTER_GETEVENTS;
        let timespec = timeout.map(|timeout| abi::__kernel_timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        // SAFETY: plain integers, for which zero is a value.
        let mut argument: abi::io_uring_getevents_arg = unsafe { std::mem::zeroed() };
        let (address, length) = match &timespec {
            Some(timespec) => {
                flags |= abi::IORING_ENTER_EXT_ARG;
                argument.ts = std::ptr::from_ref(timespec) as u64;
                ((&raw const argument).cast::<u8>(), size_of_val(&argument))
            }
            None => (std::ptr::null(), 0),
        };
        self.entries.fetch_add(1, Ordering::Relaxed);
        if wanted > 0 && self.no_iowait {
            flags |= abi::IORING_ENTER_NO_IOWAIT;
        }
        // SAFETY: the argument and the time live across the call; what queued entries point to
        // was promised by whoever called `push`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                self.unsubmitted(),
                wanted,
                flags,
                address,
                length,
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ETIME) => Err(io::ErrorKind::TimedOut.into()),
            Some(libc::EINTR) => Ok(()),
            _ => Err(error),
        }
    }

    /// How often the kernel was entered.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Calls io_uring_register.
    ///
    /// # Safety
    ///
    /// `argument` must be what `opcode` asks for, and stay valid as long as it asks for.
    pub(crate) unsafe fn register(
        &self,
        opcode: u32,
        argument: *const u8,
        count: u32,
    ) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { register(self.fd.as_raw_fd(), opcode, argument, count) }
    }
}

/// Calls io_uring_register.
///
/// # Safety
///
/// As for [`Ring::register`].
pub(super) unsafe fn register(
    ring: RawFd,
    opcode: u32,
    argument: *const u8,
    count: u32,
) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, opcode, argument, count) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives a ring a table of so many files or buffers, in which none is yet.
pub(super) fn make_table(
    ring: RawFd,
    opcode: abi::io_uring_register_op,
    size: u16,
) -> io::Result<()> {
    let table = abi::io_uring_rsrc_register {
        nr: u32::from(size),
        flags: abi::IORING_RSRC_REGISTER_SPARSE,
        resv2: 0,
        data: 0,
        tags: 0,
    };
    let length = u32::try_from(size_of_val(&table)).unwrap_or(0);
    // SAFETY: the structure is what both opcodes for tables ask for, and is read during the call.
    unsafe { register(ring, opcode as u32, (&raw const table).cast(), length) }
}

fn too_old() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this kernel's io_uring is older than Linux 5.11",
    )
}

/// Whether entering again later may succeed.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

/// The two halves of a completion's second word, in memory order.
fn split(word: u64) -> [u32; 2] {
    let bytes = word.to_ne_bytes();
    let half =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [half(0), half(4)]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn nop(user_data: u64) -> Sqe {
        Sqe { opcode: abi::io_uring_op::IORING_OP_NOP as u8, user_data, ..Sqe::default() }
    }

    #[test]
    fn every_completion_survives_a_completion_queue_that_is_too_small() {
        let ring = Ring::new(RingSize { submissions: 2, completions: 4 }, true).unwrap();
        for number in 0..64 {
            // SAFETY: a NOP points to nothing.
            unsafe { ring.push(&[nop(number)]) }.unwrap();
        }
        let mut seen = Vec::new();
        while seen.len() < 64 {
            match ring.pop_if(|_| true) {
                Some(cqe) => seen.push(cqe.user_data),
                None => ring.enter(1, Some(Duration::from_secs(5))).unwrap(),
            }
        }
        assert_eq!(seen, (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn two_threads_take_each_completion_once() {
        let ring = Ring::new(RingSize { submissions: 64, completions: 128 }, true).unwrap();
        let taken = AtomicU64::new(0);
        let sum = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while taken.load(Ordering::Relaxed) < 10_000 {
                        if let Some(cqe) = ring.pop_if(|_| true) {
                            taken.fetch_add(1, Ordering::Relaxed);
                            sum.fetch_add(cqe.user_data, Ordering::Relaxed);
                        }
                    }
                });
            }
            for number in 1..=10_000 {
                // SAFETY: a NOP points to nothing.
                unsafe { ring.push(&[nop(number)]) }.unwrap();
                if number % 16 == 0 {
                    while let Err(error) = ring.enter(0, None) {
                        assert!(is_transient(&error), "{error}");
                    }
                }
            }
            while ring.unsubmitted() > 0 || ring.overflowed() {
                let _ = ring.enter(0, None);
            }
        });
        assert_eq!(sum.into_inner(), 10_000 * 10_001 / 2);
    }

    #[test]
    fn waiting_for_nothing_times_out() {
        let ring = Ring::new(RingSize { submissions: 2, completions: 4 }, true).unwrap();
        let error = ring.enter(1, Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
