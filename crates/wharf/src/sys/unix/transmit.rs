//! How a part of a file gets to a socket. Small ones, and what is not in the system's memory: read
//! into a buffer, sent from there, in turn. Else the system passes its own pages on; see `pass`.
//!
//! A buffer is held only while it is filled and emptied. What the socket does not take at once is
//! let go, and read again when there is room: so peers that do not read hold no buffers, and the
//! few that a port has for this serve any number of them.

use std::{io, mem::zeroed, ptr, sync::Arc};

use super::{
    RawDescriptor, Slice,
    progress::{fail, go_on},
};
use crate::{
    raw::{
        Handle,
        operation::{NO_BUFFER, Operation},
    },
    sys::{Step, pool::Pool},
};

/// The most that is read and sent at once. More gains nothing, see docs/DESIGN.md.
const CHUNK: usize = 256 << 10;
/// What goes into a small buffer.
const SMALL_CHUNK: usize = 16 << 10;
/// How many buffers of either size a port has: 8 MiB of each, of which as much is touched as is
/// used at once.
const SMALL_CHUNKS: u16 = 512;
const CHUNKS: u16 = 32;

/// The least of a file that is worth passing on without reading it, see docs/DESIGN.md.
const PASSED_MIN: usize = SMALL_CHUNK + 1;
/// The most that is passed on at once: the thread that does it has other things to do.
const PASSED_MAX: usize = 2 << 20;

/// How much the system has read ahead, as a rule, when it has anything.
const AHEAD: usize = 128 << 10;
/// How often it is tried to pass on what there is room for.
const PASSES: usize = 4;

/// A head, a part of a file and a tail on their way to a socket, at a fixed address that the
/// caller owns.
#[doc(alias = "TRANSMIT_FILE_BUFFERS")]
pub struct Transmission {
    head: Slice,
    tail: Slice,
    file: RawDescriptor,
    /// Where the rest of the file's part begins, and how long it is.
    offset: u64,
    left: u64,
    step: Next,
    /// Whether its buffer is a large one.
    large: bool,
    /// How much of the rest lies in the buffer.
    filled: usize,
    /// How much the socket seems to take at once.
    limit: usize,
    /// Nothing speaks against passing the file's pages on.
    passes: bool,
    /// Why it is over.
    errno: i32,
    header: libc::msghdr,
    slices: [Slice; 3],
}

// SAFETY: the pointers lead to what its user has promised for as long as it is used.
unsafe impl Send for Transmission {}

impl std::fmt::Debug for Transmission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transmission")
            .field("offset", &self.offset)
            .field("left", &self.left)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

/// What has to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Fill the buffer.
    Read,
    /// Send what is there.
    Send,
    /// Wait until the socket has room.
    Wait,
    /// Nothing: it is over.
    End,
}

impl Transmission {
    /// Sends the bytes of `head`, then `length` bytes of a file from `offset` on, then those of
    /// `tail`. The bytes must stay valid, and the file open, as long as the operation.
    #[must_use]
    pub const fn new(
        head: Slice,
        file: RawDescriptor,
        offset: u64,
        length: u64,
        tail: Slice,
    ) -> Self {
        let none = Slice::new(ptr::null_mut(), 0);
        Self {
            head,
            tail,
            file,
            offset,
            left: length,
            step: if length > 0 { Next::Read } else { Next::Send },
            large: false,
            filled: 0,
            limit: CHUNK,
            passes: true,
            errno: 0,
            // SAFETY: plain integers and pointers, for which zero is a value.
            header: unsafe { zeroed() },
            slices: [none; 3],
        }
    }

    pub(crate) fn next(&self) -> Next {
        self.step
    }

    pub(crate) fn file(&self) -> RawDescriptor {
        self.file
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether a buffer has to be there for the next step.
    pub(crate) fn needs_buffer(&self) -> bool {
        self.step == Next::Read || self.filled > 0
    }

    /// How much to read into a buffer of this size.
    pub(crate) fn wanted(&self, size: usize) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX).min(self.limit).min(size)
    }

    /// Fills the buffer if nothing has to be waited for: the system has the data in its memory.
    ///
    /// # Safety
    ///
    /// The buffer has so many bytes, and nobody else uses it.
    unsafe fn read_now(&mut self, buffer: *mut u8, size: usize) {
        let room = libc::iovec { iov_base: buffer.cast(), iov_len: self.wanted(size) };
        let offset = self.offset.cast_signed();
        // SAFETY: the caller's promise.
        let read =
            unsafe { libc::preadv64v2(self.file, &raw const room, 1, offset, libc::RWF_NOWAIT) };
        if let Ok(read) = usize::try_from(read)
            && read > 0
        {
            self.filled = read;
            self.step = Next::Send;
        }
    }

    /// Sends as much of the file as the system has in its memory and the socket has room for,
    /// without reading it: sendfile. Returns how many bytes that were, with those of the head. When
    /// it cannot do anything, the next step is what it was: to fill a buffer.
    ///
    /// A call of sendfile waits for the disk, and for room unless the socket is non-blocking, which
    /// those of io_uring must not be. So it is asked for no more than there is room for; should it
    /// wait all the same, it does so for a few ticks of the kernel's clock, and never again.
    ///
    /// # Safety
    ///
    /// The head's bytes are valid, and the file is open.
    unsafe fn pass(&mut self, handle: &Handle) -> usize {
        let socket = handle.fd();
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(PASSED_MAX);
        // Nothing keeps sendfile from raising the signal for a peer that is gone.
        if !self.passes || wanted < PASSED_MIN || !ignores_broken_pipes() {
            return 0;
        }
        // Without room it is left to a send to say so: by what the system tells, a socket could be
        // full for which a poll finds room.
        let Some(room) = room(socket) else { return 0 };
        let wanted = wanted.min(room.saturating_sub(self.head.length()));
        if wanted < PASSED_MIN || !self.in_memory(self.offset) {
            return 0;
        }
        // What is read from the disk is read in pieces that are larger than this.
        let last = self.offset + wanted as u64 - 1;
        if wanted > AHEAD && !self.in_memory(last) {
            return 0;
        }
        if !handle.registration().hurry(socket) {
            return 0;
        }
        let mut sent = 0;
        if self.head.length() > 0 {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE;
            // SAFETY: the caller's promise.
            let result =
                unsafe { libc::send(socket, self.head.address(), self.head.length(), flags) };
            let Ok(result) = usize::try_from(result) else {
                self.stop_passing();
                return 0;
            };
            self.head.skip(result);
            sent = result;
            if self.head.length() > 0 {
                self.step = Next::Wait;
                return sent;
            }
        }
        let mut passed = 0;
        // A completion of io_uring's that comes meanwhile makes it return early.
        for _ in 0..PASSES {
            let mut offset = self.offset.cast_signed();
            let rest = wanted - passed;
            // SAFETY: the offset lives across the call.
            let result = unsafe { libc::sendfile64(socket, self.file, &raw mut offset, rest) };
            let Ok(result) = usize::try_from(result) else {
                self.stop_passing();
                return sent + passed;
            };
            self.offset += result as u64;
            self.left -= result as u64;
            passed += result;
            if result == 0 || passed == wanted {
                break;
            }
        }
        // Unless the file has ended, or the socket takes less than it says.
        self.passes = passed == wanted;
        self.step = match (self.left, self.tail.length()) {
            (1.., _) if self.passes => Next::Wait,
            (1.., _) => Next::Read,
            (0, 1..) => Next::Send,
            (0, 0) => Next::End,
        };
        sent + passed
    }

    /// After a call that has failed.
    fn stop_passing(&mut self) {
        self.passes = false;
        match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
            libc::EAGAIN | libc::EINTR => self.step = Next::Wait,
            // Not every file can do it.
            libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP => {}
            errno => (self.step, self.errno) = (Next::End, errno),
        }
    }

    /// Whether the system has a byte of the file in its memory.
    fn in_memory(&self, at: u64) -> bool {
        let mut byte = 0_u8;
        let room = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let (at, flags) = (at.cast_signed(), libc::RWF_NOWAIT);
        // SAFETY: the byte lives across the call.
        unsafe { libc::preadv64v2(self.file, &raw const room, 1, at, flags) == 1 }
    }

    /// The message to send next, and its flags.
    pub(crate) fn message(&mut self, buffer: *mut u8) -> (*mut libc::msghdr, i32) {
        let last = self.left == self.filled as u64;
        self.slices = [self.head, Slice::new(buffer, self.filled), self.tail];
        self.header.msg_iov = self.slices.as_mut_ptr().cast();
        self.header.msg_iovlen = if last { 3 } else { 2 };
        let more = if last { 0 } else { libc::MSG_MORE };
        (&raw mut self.header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more)
    }

    /// Takes note of how much has been sent. Returns whether that was all.
    fn sent(&mut self, mut bytes: usize) -> bool {
        let last = self.left == self.filled as u64;
        let tail = if last { self.tail.length() } else { 0 };
        let whole = bytes == self.head.length() + self.filled + tail;
        let head = bytes.min(self.head.length());
        self.head.skip(head);
        bytes -= head;
        let chunk = bytes.min(self.filled);
        self.offset += chunk as u64;
        self.left -= chunk as u64;
        self.tail.skip(bytes - chunk);
        if whole && last {
            return true;
        }
        if whole {
            self.limit = (self.limit * 2).min(CHUNK);
        } else {
            // It takes about as much the next time; what did not fit has to be read once more.
            let next = if chunk > 0 { chunk * 2 } else { self.limit / 2 };
            self.limit = next.clamp(SMALL_CHUNK / 4, CHUNK);
        }
        self.filled = 0;
        self.step = match (whole, self.left) {
            (false, _) => Next::Wait,
            (true, 0) => Next::Send,
            (true, _) => Next::Read,
        };
        false
    }
}

/// Whether this process ignores the signal for connections that are gone, as Rust's programs do.
fn ignores_broken_pipes() -> bool {
    // SAFETY: plain integers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: the structure lives across the call.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// For how many bytes a socket has room. None: nobody knows.
fn room(socket: RawDescriptor) -> Option<usize> {
    const COUNT: usize = 9;
    let mut found = [0_u32; COUNT];
    let size = libc::socklen_t::try_from(size_of_val(&found)).unwrap_or(0);
    let mut length = size;
    // SAFETY: the numbers live across the call, and it is told how many there are.
    let asked = unsafe {
        let into = found.as_mut_ptr().cast();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, into, &raw mut length)
    };
    // Emulated systems that do not know the option answer as if it were a single number.
    if asked != 0 || length < size {
        return None;
    }
    // The indices are those of sock_diag(7): the limit, what is queued, what has been sent.
    let [_, _, sent, limit, _, queued, ..] = found;
    let free = limit.saturating_sub(queued.max(sent)) as usize;
    // The queue itself takes some.
    Some(free - free / 16)
}

/// Lets a call that would wait for room in a socket wait for a tick only. What this library calls
/// does not wait anyway.
pub(crate) fn never_waits_long(socket: RawDescriptor) -> bool {
    let shortest = libc::timeval { tv_sec: 0, tv_usec: 1 };
    let length = libc::socklen_t::try_from(size_of_val(&shortest)).unwrap_or(0);
    // SAFETY: the structure lives across the call.
    let set = unsafe {
        let from = (&raw const shortest).cast();
        libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_SNDTIMEO, from, length)
    };
    set == 0
}

/// What the result of a step means.
pub(crate) fn evaluate(op: &mut Operation, transmission: &mut Transmission) -> Step {
    let result = op.result;
    let done = match (usize::try_from(result), transmission.step) {
        (Ok(done), _) => done,
        (Err(_), Next::Send) if result == -libc::EAGAIN => 0,
        (Err(_), _) => return fail(op, -result),
    };
    match transmission.step {
        Next::Read if done == 0 => return fail(op, libc::ENODATA),
        Next::Read => {
            transmission.filled = done;
            transmission.step = Next::Send;
        }
        Next::Send => {
            op.bytes += done;
            if transmission.sent(done) {
                return Step::Finish;
            }
        }
        Next::End if transmission.errno != 0 => return fail(op, transmission.errno),
        Next::End => return Step::Finish,
        Next::Wait => {
            transmission.step = if transmission.left > 0 { Next::Read } else { Next::Send };
        }
    }
    go_on(op)
}

/// The buffers that transmissions of a port go through.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    small: Arc<Pool>,
    large: Arc<Pool>,
}

impl Chunks {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            small: Pool::new(SMALL_CHUNKS, SMALL_CHUNK, None)?.into(),
            large: Pool::new(CHUNKS, CHUNK, None)?.into(),
        })
    }

    /// Both.
    pub(crate) fn pools(&self) -> [&Arc<Pool>; 2] {
        [&self.small, &self.large]
    }

    /// Those from which a transmission has taken one, or waits for one.
    pub(crate) fn of(&self, transmission: &Transmission) -> &Arc<Pool> {
        if transmission.large { &self.large } else { &self.small }
    }

    /// Those of an operation, if it is a transmission.
    pub(crate) fn pool_of(&self, op: &Operation) -> Option<&Arc<Pool>> {
        // SAFETY: an operation that has to do with buffers is in flight, with its handle's lock
        // held, and its transmission is there as long.
        op.request.transmission().map(|transmission| self.of(unsafe { &*transmission }))
    }

    /// Gets the buffer for the next step, and fills it if that can be done at once. False: there is
    /// none.
    pub(crate) fn prepare(&self, op: &mut Operation, transmission: &mut Transmission) -> bool {
        if transmission.step == Next::Read && op.buffer == NO_BUFFER {
            // SAFETY: an operation in flight has a handle, which outlives it, and what it sends
            // is there as long (the contract of start).
            op.bytes += unsafe { transmission.pass(&*op.handle) };
        }
        if !transmission.needs_buffer() {
            return true;
        }
        if op.buffer == NO_BUFFER {
            transmission.large = transmission.wanted(CHUNK) > SMALL_CHUNK;
            match self.of(transmission).take() {
                Some(id) => op.buffer = u32::from(id),
                None => return false,
            }
        }
        if transmission.step == Next::Read {
            let pool = self.of(transmission);
            let buffer = pool.address(u16::try_from(op.buffer).unwrap_or(0));
            // SAFETY: the operation has taken the buffer, which is of that size.
            unsafe { transmission.read_now(buffer, pool.size()) };
        }
        true
    }

    /// Whether a transmission has no use for its buffer after a step: it is over, or the buffer is
    /// empty and will not be filled soon, or others wait for one.
    pub(crate) fn lets_go(&self, op: &Operation, step: Step) -> Option<bool> {
        // SAFETY: as for `pool_of`.
        let transmission = unsafe { &*op.request.transmission()? };
        let others_wait = self.of(transmission).starving() > 0;
        let empty = transmission.filled == 0 && (transmission.step != Next::Read || others_wait);
        Some(step != Step::Again || empty)
    }
}
