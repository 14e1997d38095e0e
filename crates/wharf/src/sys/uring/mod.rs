//! The io_uring driver: one ring per lane, and what each request means in it.
//!
//! Every request is one single-shot kernel operation at a time. The kernel's multishot receives
//! and accepts are not used: several completions of one operation could then be taken by several
//! threads at once, in any order, its last one included.

pub(crate) mod probe;
mod buffers;
mod files;
mod provided;
mod ring;

use std::{
    io::{self, Write},
    net::Shutdown,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, OnceLock},
    time::Duration,
};

use linux_raw_sys::io_uring as abi;

use self::{buffers::Buffers, files::Files};
pub(crate) use self::{
    buffers::Piece,
    files::Registration,
    provided::Provided,
    ring::{Cqe, Ring, RingSize, Sqe, is_transient},
};
use super::{
    Event, Kind, NO_DESCRIPTOR, Popped, Source, Step, file,
    udp,
    pool::Pool,
    progress::{self, MAX_BYTES},
    transmit::{Chunks, Next},
};
use crate::{
    error::Error,
    raw::{
        Gather, Handle, Transmission,
        operation::{Direction, NO_BUFFER, Operation, Request},
        port::Setup,
    },
};

/// What this kernel's io_uring can do, found out by asking it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// IORING_SETUP_COOP_TASKRUN (Linux 5.19).
    pub(crate) cooperative: bool,
    /// Provided-buffer rings (Linux 5.19).
    pub(crate) provided_buffers: bool,
    /// IORING_RECVSEND_POLL_FIRST, and a completion that says whether more is there (Linux 5.19).
    pub(crate) poll_first: bool,
    /// Waiting does not count as I/O wait (Linux 6.15).
    pub(crate) no_iowait: bool,
    /// IORING_OP_FTRUNCATE (Linux 6.9).
    pub(crate) truncate: bool,
    /// A file that the ring knew by a number is closed as soon as it is taken out (Linux 6.13).
    pub(crate) lets_go: bool,
}

/// Opcodes without which the driver cannot work, all known since Linux 5.11.
const REQUIRED: [(abi::io_uring_op, &str); 18] = [
    (abi::io_uring_op::IORING_OP_NOP, "NOP"),
    (abi::io_uring_op::IORING_OP_POLL_ADD, "POLL_ADD"),
    (abi::io_uring_op::IORING_OP_SENDMSG, "SENDMSG"),
    (abi::io_uring_op::IORING_OP_RECVMSG, "RECVMSG"),
    (abi::io_uring_op::IORING_OP_TIMEOUT, "TIMEOUT"),
    (abi::io_uring_op::IORING_OP_ACCEPT, "ACCEPT"),
    (abi::io_uring_op::IORING_OP_ASYNC_CANCEL, "ASYNC_CANCEL"),
    (abi::io_uring_op::IORING_OP_LINK_TIMEOUT, "LINK_TIMEOUT"),
    (abi::io_uring_op::IORING_OP_CONNECT, "CONNECT"),
    (abi::io_uring_op::IORING_OP_SEND, "SEND"),
    (abi::io_uring_op::IORING_OP_RECV, "RECV"),
    (abi::io_uring_op::IORING_OP_SHUTDOWN, "SHUTDOWN"),
    (abi::io_uring_op::IORING_OP_READ, "READ"),
    (abi::io_uring_op::IORING_OP_READV, "READV"),
    (abi::io_uring_op::IORING_OP_WRITE, "WRITE"),
    (abi::io_uring_op::IORING_OP_WRITEV, "WRITEV"),
    (abi::io_uring_op::IORING_OP_FSYNC, "FSYNC"),
    (abi::io_uring_op::IORING_OP_FALLOCATE, "FALLOCATE"),
];

#[repr(C)]
struct Probe {
    header: [u8; 16],
    ops: [[u8; 8]; 64],
}

impl Features {
    /// Asks the kernel once per process.
    pub(crate) fn probe() -> io::Result<Self> {
        static FOUND: OnceLock<Features> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(*found);
        }
        let found = Self::ask()?;
        Ok(*FOUND.get_or_init(|| found))
    }

    fn ask() -> io::Result<Self> {
        let size = RingSize { submissions: 2, completions: 4 };
        let ring = Ring::new(size, false)?;
        let mut probe = Probe { header: [0; 16], ops: [[0; 8]; 64] };
        // SAFETY: the structure has the layout of io_uring_probe with room for 64 operations.
        unsafe {
            ring.register(
                abi::io_uring_register_op::IORING_REGISTER_PROBE as u32,
                (&raw mut probe).cast(),
                64,
            )?;
        }
        let knows = |opcode: abi::io_uring_op| {
            u32::from(probe.ops[opcode as usize][2]) & abi::IO_URING_OP_SUPPORTED != 0
        };
        for (opcode, name) in REQUIRED {
            if !knows(opcode) {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("this kernel's io_uring has no {name}"),
                ));
            }
        }
        Ok(Self {
            cooperative: Ring::supports(abi::IORING_SETUP_COOP_TASKRUN),
            provided_buffers: Provided::new(&ring, 1).is_ok(),
            poll_first: knows_poll_first(&ring).unwrap_or(false),
            no_iowait: ring.features() & abi::IORING_FEAT_NO_IOWAIT != 0,
            truncate: knows(abi::io_uring_op::IORING_OP_FTRUNCATE),
            lets_go: files::lets_go(&ring).unwrap_or(false),
        })
    }
}

/// Tries a receive that polls first, on a throwaway socket that has data.
fn knows_poll_first(ring: &Ring) -> io::Result<bool> {
    let (mut one, other) = UnixStream::pair()?;
    one.write_all(&[1])?;
    let mut byte = [0];
    let entry = Sqe { fd: other.as_raw_fd(), user_data: 1, ..Sqe::default() };
    let entry = Sqe { ioprio: POLL_FIRST, ..receive(entry, byte.as_mut_ptr(), 1, 0) };
    // SAFETY: the byte and the sockets live until the completion, which comes without anybody
    // else's doing, because the data is there already.
    unsafe { ring.push(&[entry])? };
    loop {
        ring.enter(1, None)?;
        if let Some(cqe) = ring.pop_if(|_| true) {
            return Ok(cqe.result == 1);
        }
    }
}

/// One running slot of a port: a ring and the buffers its receives take.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Goes before the ring.
    buffers: Buffers,
    ring: Ring,
    pool: Arc<Pool>,
    chunks: Chunks,
    datagrams: Arc<Pool>,
    files: Files,
    features: Features,
}

#[expect(clippy::cast_possible_truncation, reason = "it is 1")]
const POLL_FIRST: u16 = abi::IORING_RECVSEND_POLL_FIRST as u16;

/// What the low bits of a completion's user data say of it, beside the operation's address.
const TAGS: u64 = 7;
const DEADLINE_TAG: u64 = 1;
const ATTEND_TAG: u64 = 2;
const CANCEL_TAG: u64 = 3;

fn address_of(operation: *mut Operation) -> u64 {
    operation as u64
}

fn clamp(bytes: usize) -> u32 {
    u32::try_from(bytes.min(MAX_BYTES)).unwrap_or(0)
}

impl Lane {
    /// Makes a port's lanes, all alike: where too little memory may be locked for them, smaller
    /// ones.
    pub(crate) fn make(count: usize, setup: &Setup, chunks: &Chunks) -> io::Result<Vec<Self>> {
        const SMALLEST: u32 = 8;
        // How often the smallest are tried again.
        let mut patience = 5;
        let asked = setup.submissions;
        let mut setup = setup.clone();
        loop {
            let lanes = (0..count).map(|_| Self::new(&setup, chunks.clone()));
            match lanes.collect::<io::Result<Vec<_>>>() {
                Ok(lanes) => {
                    if setup.submissions < asked {
                        log::warn!(
                            "too little memory may be locked: rings of {} entries instead of \
                             {asked} (raise RLIMIT_MEMLOCK)",
                            setup.submissions
                        );
                    }
                    return Ok(lanes);
                }
                Err(error)
                    if is_memory(&error) && (setup.submissions > SMALLEST || patience > 0) =>
                {
                    if setup.submissions > SMALLEST {
                        setup.submissions /= 2;
                    } else {
                        patience -= 1;
                    }
                    // The kernel gives the memory of the rings just closed back a little later: a
                    // machine that is busy may take several of these pauses.
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a lane: its ring and its pool.
    fn new(setup: &Setup, chunks: Chunks) -> io::Result<Self> {
        let mut features = Features::probe()?;
        features.provided_buffers &= !setup.without_provided_buffers;
        features.cooperative &= !setup.without_cooperative;
        features.poll_first &= !setup.without_cooperative;
        features.truncate &= !setup.without_cooperative;
        features.lets_go &= !setup.without_cooperative;
        let size = RingSize {
            submissions: setup.submissions,
            completions: setup.submissions.saturating_mul(8),
        };
        let ring = Ring::new(size, features.cooperative)?;
        let provided = features.provided_buffers.then(|| Provided::new(&ring, setup.pool_count));
        let provided = provided.and_then(Result::ok);
        features.provided_buffers = provided.is_some();
        let pool = Pool::new(setup.pool_count, setup.pool_size, provided)?;
        let datagrams = Pool::new(setup.datagram_pool_count, setup.datagram_pool_size, None)?;
        let (pool, datagrams) = (Arc::new(pool), Arc::new(datagrams));
        let files = Files::new(!setup.without_cooperative);
        let buffers = Buffers::new(&ring, !setup.without_cooperative);
        Ok(Self { buffers, ring, pool, chunks, datagrams, files, features })
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn datagrams(&self) -> &Arc<Pool> {
        &self.datagrams
    }

    pub(crate) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Lets a handle go, of which nothing is in flight. It may have a number in this lane.
    pub(crate) fn unregister(&self, registration: &Registration) {
        if let Some(number) = registration.number_in(registration.lane()) {
            self.files.remove(&self.ring, number);
        }
    }

    pub(crate) fn unsubmitted(&self) -> u32 {
        self.ring.unsubmitted()
    }

    /// Completions to take, those that wait in the kernel for room included (as one).
    pub(crate) fn ready(&self) -> u32 {
        self.ring.ready().max(u32::from(self.ring.overflowed()))
    }

    /// How many operations have something to take here: neither wake-ups nor what only belongs to
    /// deadlines and cancellations counts.
    pub(crate) fn requests_ready(&self) -> usize {
        let waiting = self.ring.count(|user_data| user_data != 0 && user_data & TAGS == 0);
        waiting.max(usize::from(self.ring.overflowed()))
    }

    /// Takes the oldest completion.
    pub(crate) fn pop(&self) -> Option<Popped> {
        let Cqe { user_data, result, flags } = self.ring.pop_if(|_| true)?;
        let operation = user_data & !TAGS;
        Some(match user_data & TAGS {
            ATTEND_TAG => Popped::Attend(usize::try_from(operation / (TAGS + 1)).unwrap_or(0)),
            _ if operation == 0 => Popped::Wake,
            tag => Popped::Event(Event {
                operation: operation as *mut Operation,
                of: match tag {
                    DEADLINE_TAG => Source::Deadline,
                    CANCEL_TAG => Source::Cancel,
                    _ => Source::Request,
                },
                result,
                flags,
            }),
        })
    }

    /// Takes the wake-ups out of the way that lie before everything else.
    pub(crate) fn clear_wakes(&self) {
        while self.ring.pop_if(|cqe| cqe.user_data == 0).is_some() {}
    }

    /// Takes the oldest completion if it is an `Attend`.
    pub(crate) fn pop_attend(&self) -> Option<u16> {
        let cqe = self.ring.pop_if(|cqe| cqe.user_data & TAGS == ATTEND_TAG)?;
        u16::try_from(cqe.user_data / (TAGS + 1)).ok()
    }

    /// Wakes who waits in this lane, once, when there is something to take from another.
    pub(crate) fn attend(&self, number: u16, other: &Self) -> io::Result<()> {
        let ring = Sqe { fd: other.ring.fd(), ..Sqe::default() };
        let user_data = (u64::from(number) * (TAGS + 1)) | ATTEND_TAG;
        // SAFETY: a poll points to nothing.
        unsafe { self.ring.push(&[Sqe { user_data, ..poll_in(ring) }]) }
    }

    /// How often the kernel was entered.
    pub(crate) fn entries(&self) -> u64 {
        self.ring.entries()
    }

    /// Enters the kernel without waiting: submits what is queued.
    pub(crate) fn submit(&self) -> io::Result<()> {
        self.ring.enter(0, None)
    }

    /// Enters the kernel: submits what is queued and waits for a completion.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.ring.enter(1, timeout)
    }

    /// Wakes whoever waits in this lane, from any thread: a completion that means nothing, made
    /// by the waker itself, so that it needs no help from the thread that sleeps.
    pub(crate) fn wake(&self) -> io::Result<()> {
        // SAFETY: it points to nothing.
        unsafe { self.ring.push(&[nothing()])? };
        self.ring.enter(0, None)
    }

    /// Queues the next step of an operation.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, its handle's lock is held, and its pointers are good.
    #[inline(always)]
    pub(crate) unsafe fn push(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise: nobody else touches the header under the handle's lock.
        let op = unsafe { &mut *operation };
        let timed = op.flags.timed && !op.flags.pausing && op.clock_runs();
        op.outstanding = 1 + u8::from(timed);
        op.flags.requested = true;
        if timed {
            // SAFETY: the caller's promise.
            return unsafe { self.push_timed(op) };
        }
        let make = |entry: &mut Sqe| {
            self.prepare(op, entry);
            entry.user_data = address_of(operation);
        };
        // SAFETY: the caller's promise.
        unsafe { self.ring.push_one(make) }
    }

    /// The same with its deadline.
    ///
    /// # Safety
    ///
    /// As for `push`.
    #[cold]
    unsafe fn push_timed(&self, op: &mut Operation) -> io::Result<()> {
        let mut entry = Sqe::default();
        self.prepare(op, &mut entry);
        entry.user_data = address_of(op);
        if op.system.deadline == [0; 2] {
            op.system.deadline = monotonic_after(op.deadline);
        }
        entry.flags |= 1 << abi::io_uring_sqe_flags_bit::IOSQE_IO_LINK_BIT as u8;
        let limit = Sqe {
            opcode: abi::io_uring_op::IORING_OP_LINK_TIMEOUT as u8,
            fd: -1,
            addr: op.system.deadline.as_ptr() as u64,
            len: 1,
            op_flags: abi::IORING_TIMEOUT_ABS,
            user_data: address_of(op) | DEADLINE_TAG,
            ..Sqe::default()
        };
        // SAFETY: the caller's promise; the deadline lies in the header.
        unsafe { self.ring.push(&[entry, limit]) }
    }

    /// Queues a request to cancel what `push` submitted last for an operation of this lane. It
    /// may come too late; its own event belongs to the operation.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, submitted to this lane, and its handle's lock is held.
    pub(crate) unsafe fn push_cancel(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise: nobody else touches the header under the handle's lock.
        let op = unsafe { &mut *operation };
        if op.flags.cancelling {
            return Ok(());
        }
        let entry = Sqe {
            opcode: abi::io_uring_op::IORING_OP_ASYNC_CANCEL as u8,
            fd: -1,
            addr: address_of(operation),
            user_data: address_of(operation) | CANCEL_TAG,
            ..Sqe::default()
        };
        // SAFETY: the address is compared by the kernel, never followed.
        unsafe { self.ring.push(&[entry])? };
        op.flags.cancelling = true;
        op.outstanding += 1;
        Ok(())
    }

    /// Makes the entry of an operation's next step, all but its user data.
    #[inline(always)]
    fn prepare(&self, op: &mut Operation, entry: &mut Sqe) {
        // SAFETY: an operation in flight has a handle, which outlives it (the contract of start).
        let handle = unsafe { &*op.handle };
        let socket = handle.kind() == Kind::Socket;
        *entry = match op.request {
            _ if op.flags.pausing => self.prepare_rare(op, handle),
            // The frequent ones are made in place.
            Request::Receive { buffer, length: length @ 1.., exact } if socket => {
                let (fd, flags) = self.socket_of(op, handle);
                let entry = Sqe { flags, ioprio: self.poll_first(op), fd, ..Sqe::default() };
                // SAFETY: `bytes` never exceeds `length`.
                let rest = unsafe { buffer.add(op.bytes) };
                let wait = if exact { libc::MSG_WAITALL } else { 0 };
                receive(entry, rest, length - op.bytes, wait)
            }
            Request::ReceivePooled { .. } if socket && self.features.provided_buffers => {
                let (fd, flags) = self.socket_of(op, handle);
                Sqe {
                    opcode: abi::io_uring_op::IORING_OP_RECV as u8,
                    flags: flags | SELECT_BUFFER,
                    ioprio: self.poll_first(op),
                    fd,
                    len: clamp(self.pool.size()),
                    buf_index: Provided::GROUP,
                    ..Sqe::default()
                }
            }
            Request::Send { buffer, length } if socket => {
                let (fd, flags) = self.socket_of(op, handle);
                Sqe {
                    opcode: abi::io_uring_op::IORING_OP_SEND as u8,
                    flags,
                    fd,
                    // SAFETY: `bytes` never exceeds `length`.
                    addr: unsafe { buffer.add(op.bytes) } as u64,
                    len: clamp(length - op.bytes),
                    op_flags: SEND_FLAGS.cast_unsigned(),
                    ..Sqe::default()
                }
            }
            Request::Read { buffer, length, offset } => {
                let (fd, flags) = self.file_of(op, handle);
                let number = self.memory_of(op);
                let opcode = match number {
                    None => abi::io_uring_op::IORING_OP_READ,
                    Some(_) => abi::io_uring_op::IORING_OP_READ_FIXED,
                };
                Sqe {
                    opcode: opcode as u8,
                    buf_index: number.unwrap_or(0),
                    flags,
                    fd,
                    off: offset + op.bytes as u64,
                    // SAFETY: `bytes` never exceeds `length`.
                    addr: unsafe { buffer.add(op.bytes) } as u64,
                    len: clamp(length - op.bytes),
                    ..Sqe::default()
                }
            }
            _ => self.prepare_rare(op, handle),
        };
    }

    #[inline(never)]
    fn prepare_rare(&self, op: &mut Operation, handle: &Handle) -> Sqe {
        let entry = Sqe { fd: handle.fd(), ..Sqe::default() };
        let socket = handle.kind() == Kind::Socket;
        if op.flags.pausing {
            return Sqe {
                opcode: abi::io_uring_op::IORING_OP_TIMEOUT as u8,
                fd: -1,
                addr: op.system.pause.as_ptr() as u64,
                len: 1,
                ..entry
            };
        }
        match op.request {
            Request::Receive { length: 0, .. } | Request::Readable => poll_in(entry),
            Request::Receive { buffer, length, .. } => {
                // SAFETY: `bytes` never exceeds `length`.
                let rest = unsafe { buffer.add(op.bytes) };
                read(unplaced(entry), rest, length - op.bytes)
            }
            Request::ReceivePooled { .. } if self.features.provided_buffers => {
                select_buffer(read(unplaced(entry), std::ptr::null_mut(), self.pool.size()))
            }
            Request::ReceivePooled { .. } => match u16::try_from(op.buffer) {
                Ok(id) if socket => {
                    let buffer = self.pool.address(id);
                    receive(entry, buffer, self.pool.size(), libc::MSG_DONTWAIT)
                }
                Ok(id) => read(unplaced(entry), self.pool.address(id), self.pool.size()),
                Err(_) => poll_in(entry),
            },
            Request::Send { buffer, length } => {
                // SAFETY: `bytes` never exceeds `length`.
                let rest = unsafe { buffer.add(op.bytes) };
                write(unplaced(entry), rest, length - op.bytes)
            }
            Request::SendVectored { gather } if !socket => {
                // SAFETY: the gather lives as long as the operation (the contract of start).
                unsafe { vectored(unplaced(entry), abi::io_uring_op::IORING_OP_WRITEV, gather) }
            }
            Request::SendVectored { gather } => {
                // SAFETY: the gather lives as long as the operation (the contract of start).
                send_message(entry, unsafe { progress::message(gather) }, SEND_FLAGS)
            }
            Request::ReceiveMessage { message, pooled: false } => {
                // SAFETY: the message lives as long as the operation (the contract of start).
                receive_message(entry, unsafe { (*message).prepare(true) }, 0)
            }
            Request::ReceiveMessage { message, .. } if self.features.provided_buffers => {
                let nowhere = std::ptr::null_mut();
                // SAFETY: as above.
                let header = unsafe { (*message).prepare_into(nowhere, self.pool.size()) };
                select_buffer(receive_message(entry, header, 0))
            }
            Request::ReceiveMessage { message, .. } => match u16::try_from(op.buffer) {
                Ok(id) => {
                    let (buffer, size) = (self.pool.address(id), self.pool.size());
                    // SAFETY: as above.
                    let header = unsafe { (*message).prepare_into(buffer, size) };
                    receive_message(entry, header, libc::MSG_DONTWAIT)
                }
                Err(_) => poll_in(entry),
            },
            Request::SendMessage { message } => {
                // SAFETY: as above.
                send_message(entry, unsafe { (*message).prepare(false) }, SEND_FLAGS)
            }
            // Once it is readable, the call is made here: see `evaluate`.
            Request::ReceiveFrom { .. } | Request::ReceiveFromPooled { .. } => poll_in(entry),
            Request::ReceiveError { .. } => poll(entry, 0),
            Request::SendTo { buffer, length, datagram } => {
                // SAFETY: `bytes` never exceeds `length`, and the datagram lives as long as the
                // operation (the contract of start).
                let header = unsafe {
                    let rest = buffer.add(op.bytes);
                    (*datagram).system.for_send(rest, length - op.bytes)
                };
                send_message(entry, header, libc::MSG_NOSIGNAL)
            }
            Request::Transmit { transmission } => {
                // SAFETY: the transmission lives as long as the operation, whose handle's lock is
                // held (the contract of start).
                self.prepare_transmit(entry, op, unsafe { &mut *transmission })
            }
            Request::AcceptFirst { buffer, length } if op.accepted != NO_DESCRIPTOR => {
                receive(Sqe { fd: op.accepted, ..entry }, buffer, length, 0)
            }
            Request::Accept { .. } | Request::AcceptFirst { .. } => Sqe {
                opcode: abi::io_uring_op::IORING_OP_ACCEPT as u8,
                op_flags: libc::SOCK_CLOEXEC.cast_unsigned(),
                ..entry
            },
            Request::Connect { address, length } => Sqe {
                opcode: abi::io_uring_op::IORING_OP_CONNECT as u8,
                addr: address as u64,
                off: u64::from(length),
                ..entry
            },
            Request::Shutdown { how } => Sqe {
                opcode: abi::io_uring_op::IORING_OP_SHUTDOWN as u8,
                len: match how {
                    Shutdown::Read => 0,
                    Shutdown::Write => 1,
                    Shutdown::Both => 2,
                },
                ..entry
            },
            Request::Read { .. }
            | Request::ReadPooled { .. }
            | Request::ReadVectored { .. }
            | Request::Write { .. }
            | Request::WriteVectored { .. } => self.prepare_placed(op, handle),
            Request::Sync { data_only } => Sqe {
                opcode: abi::io_uring_op::IORING_OP_FSYNC as u8,
                op_flags: if data_only { abi::IORING_FSYNC_DATASYNC } else { 0 },
                ..entry
            },
            Request::Allocate { offset, length } => Sqe {
                opcode: abi::io_uring_op::IORING_OP_FALLOCATE as u8,
                off: offset,
                addr: length,
                ..entry
            },
            Request::Truncate { length } if self.features.truncate => Sqe {
                opcode: abi::io_uring_op::IORING_OP_FTRUNCATE as u8,
                off: length,
                ..entry
            },
            Request::Truncate { length } => {
                // The system call is made here and now, by the thread that starts it.
                if let Err(error) = file::truncate(handle.fd(), length) {
                    op.status = -error.raw_os_error().unwrap_or(libc::EIO);
                }
                nothing()
            }
        }
    }

    /// The file of an operation, and the flag that says whether it is named by a number.
    #[inline]
    fn file_of(&self, op: &Operation, handle: &Handle) -> (i32, u8) {
        let registration = handle.registration().uring();
        if let Some(number) = registration.number_in(op.lane) {
            let flag = 1 << abi::io_uring_sqe_flags_bit::IOSQE_FIXED_FILE_BIT as u8;
            return (i32::from(number), flag);
        }
        if registration.is_worth_a_number() {
            registration.set(op.lane, self.files.add(&self.ring, handle.fd()));
        }
        (handle.fd(), 0)
    }

    /// The same for a socket, which has a number only where it is let go at once when it is closed.
    #[inline]
    fn socket_of(&self, op: &Operation, handle: &Handle) -> (i32, u8) {
        if self.features.lets_go { self.file_of(op, handle) } else { (handle.fd(), 0) }
    }

    /// The number of the memory that a read reads into or a write writes from, if it has one.
    #[inline]
    fn memory_of(&self, op: &Operation) -> Option<u16> {
        debug_assert!(matches!(op.request, Request::Read { .. } | Request::Write { .. }));
        // SAFETY: a read or a write in flight has its buffer, whose piece this is (the contract of
        // `Header`).
        let piece = unsafe { op.system.piece.as_ref() };
        piece.and_then(|piece| self.buffers.number_of(piece))
    }

    /// What reads or writes at a position of a file.
    #[inline(never)]
    fn prepare_placed(&self, op: &Operation, handle: &Handle) -> Sqe {
        let (fd, flags) = self.file_of(op, handle);
        let entry = Sqe { fd, flags, ..Sqe::default() };
        match op.request {
            Request::ReadPooled { offset } if self.features.provided_buffers => {
                let nowhere = std::ptr::null_mut();
                select_buffer(read(at(entry, op, offset), nowhere, self.pool.size()))
            }
            Request::ReadPooled { offset } => match u16::try_from(op.buffer) {
                Ok(id) => read(at(entry, op, offset), self.pool.address(id), self.pool.size()),
                Err(_) => nothing(),
            },
            Request::ReadVectored { scatter, offset } => {
                let entry = at(entry, op, offset);
                // SAFETY: the slices live as long as the operation (the contract of start).
                unsafe { vectored(entry, abi::io_uring_op::IORING_OP_READV, scatter) }
            }
            Request::Write { buffer, length, offset } => {
                // SAFETY: `bytes` never exceeds `length`.
                let rest = unsafe { buffer.add(op.bytes) };
                let entry = write(at(entry, op, offset), rest, length - op.bytes);
                numbered(entry, abi::io_uring_op::IORING_OP_WRITE_FIXED, self.memory_of(op))
            }
            Request::WriteVectored { gather, offset } => {
                let entry = at(entry, op, offset);
                // SAFETY: as for the vectored read.
                unsafe { vectored(entry, abi::io_uring_op::IORING_OP_WRITEV, gather) }
            }
            _ => unreachable!("it names no position"),
        }
    }

    fn prepare_transmit(
        &self,
        entry: Sqe,
        op: &mut Operation,
        transmission: &mut Transmission,
    ) -> Sqe {
        if !self.chunks.prepare(op, transmission) {
            // It starves, as `evaluate` will find.
            return nothing();
        }
        let pool = self.chunks.of(transmission);
        let buffer = match u16::try_from(op.buffer) {
            Ok(id) => pool.address(id),
            Err(_) => std::ptr::null_mut(),
        };
        match transmission.next() {
            Next::Read => {
                let file = Sqe { fd: transmission.file(), off: transmission.offset(), ..entry };
                read(file, buffer, transmission.wanted(pool.size()))
            }
            Next::Send => {
                let (header, flags) = transmission.message(buffer);
                send_message(entry, header, flags)
            }
            Next::Wait => poll(entry, libc::POLLOUT),
            Next::End => nothing(),
        }
    }

    /// A receive that follows at once on one that emptied the socket finds nothing: it saves a try.
    fn poll_first(&self, op: &Operation) -> u16 {
        if op.flags.emptied && self.features.poll_first { POLL_FIRST } else { 0 }
    }

    /// Works out what an event means for its operation.
    ///
    /// # Safety
    ///
    /// The event came from this lane and has not been digested before, and the lock of its
    /// operation's handle is held.
    #[inline(always)]
    pub(crate) unsafe fn digest(&self, event: Event) -> Step {
        // SAFETY: an operation with an event to come is in flight, so its header is alive, and
        // nobody else touches it under the lock.
        let op = unsafe { &mut *event.operation };
        op.outstanding -= 1;
        match event.of {
            Source::Deadline => {
                op.flags.expired |= event.result == -libc::ETIME;
                if event.result == -libc::EINVAL && op.flags.requested {
                    return Step::Cancel;
                }
            }
            Source::Cancel => {
                op.flags.cancelling = false;
                // A request that the kernel is just trying again is nowhere to be found. Nor is
                // what a disk is busy with, which cannot be called back.
                let elusive = op.direction != Direction::Unordered;
                if event.result == -libc::ENOENT && op.flags.requested && elusive {
                    return Step::Cancel;
                }
            }
            Source::Request => {
                op.flags.requested = false;
                op.result = event.result;
                op.flags.emptied = event.flags & abi::IORING_CQE_F_SOCK_NONEMPTY == 0;
                if event.flags & abi::IORING_CQE_F_BUFFER != 0 {
                    op.buffer = event.flags >> abi::IORING_CQE_BUFFER_SHIFT;
                }
            }
        }
        if op.outstanding > 0 {
            return Step::Pending;
        }
        // SAFETY: as above.
        let step = unsafe { self.evaluate(op) };
        // It holds nothing, unless it is about to be filled.
        let empty = op.bytes == 0 && !(step == Step::Again && op.step == 1);
        if op.buffer != NO_BUFFER && self.chunks.lets_go(op, step).unwrap_or(empty) {
            let pool = if op.request.is_datagram() {
                &self.datagrams
            } else {
                self.chunks.pool_of(op).unwrap_or(&self.pool)
            };
            pool.give_back(u16::try_from(op.buffer).unwrap_or(0));
            op.buffer = NO_BUFFER;
        }
        step
    }

    /// What a submission's result means; buffers of the pool are this driver's own affair.
    ///
    /// # Safety
    ///
    /// As for [`progress::evaluate`].
    #[inline(always)]
    unsafe fn evaluate(&self, op: &mut Operation) -> Step {
        let ready = op.result >= 0 && !op.flags.pausing;
        if ready && op.request.is_datagram() && op.direction != Direction::Out {
            // SAFETY: the caller's promise.
            return unsafe { udp::ready(op, &self.datagrams) };
        }
        if op.request.is_pooled() && !op.flags.pausing {
            match (op.result, op.step) {
                (0.., 0) if !self.features.provided_buffers => {
                    // Readable now, or a file: the next step fills a buffer.
                    let Some(id) = self.pool.take() else { return Step::Starve };
                    op.buffer = u32::from(id);
                    op.step = 1;
                    return Step::Again;
                }
                (0.., _) => op.step = 0,
                (result, _) if result == -libc::ENOBUFS => return Step::Starve,
                (result, _)
                    if result == -libc::EAGAIN && !self.features.provided_buffers =>
                {
                    op.step = 0;
                    return Step::Again;
                }
                _ => {}
            }
        }
        if let Request::Transmit { transmission } = op.request
            && !op.flags.pausing
            && op.result >= 0
            && op.buffer == NO_BUFFER
            // SAFETY: the caller's promise.
            && unsafe { (*transmission).needs_buffer() }
        {
            return Step::Starve;
        }
        // SAFETY: the caller's promise.
        unsafe { progress::evaluate(op) }
    }
}

const SELECT_BUFFER: u8 = 1 << abi::io_uring_sqe_flags_bit::IOSQE_BUFFER_SELECT_BIT as u8;
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

fn receive(entry: Sqe, buffer: *mut u8, length: usize, flags: i32) -> Sqe {
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_RECV as u8,
        addr: buffer as u64,
        len: clamp(length),
        op_flags: flags.cast_unsigned(),
        ..entry
    }
}

fn receive_message(entry: Sqe, header: *mut libc::msghdr, flags: i32) -> Sqe {
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_RECVMSG as u8,
        addr: header as u64,
        len: 1,
        op_flags: (flags | libc::MSG_CMSG_CLOEXEC).cast_unsigned(),
        ..entry
    }
}

fn send_message(entry: Sqe, header: *mut libc::msghdr, flags: i32) -> Sqe {
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_SENDMSG as u8,
        addr: header as u64,
        len: 1,
        op_flags: flags.cast_unsigned(),
        ..entry
    }
}

/// For what has no positions: a pipe, a terminal.
fn unplaced(entry: Sqe) -> Sqe {
    Sqe { off: u64::MAX, ..entry }
}

/// Where in its file an operation goes on.
fn at(entry: Sqe, op: &Operation, offset: u64) -> Sqe {
    match offset {
        Request::APPEND => Sqe { op_flags: libc::RWF_APPEND.cast_unsigned(), ..entry },
        _ => Sqe { off: offset + op.bytes as u64, ..entry },
    }
}

fn read(entry: Sqe, buffer: *mut u8, length: usize) -> Sqe {
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_READ as u8,
        addr: buffer as u64,
        len: clamp(length),
        ..entry
    }
}

fn write(entry: Sqe, bytes: *const u8, length: usize) -> Sqe {
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_WRITE as u8,
        addr: bytes as u64,
        len: clamp(length),
        ..entry
    }
}

/// The same with memory that the ring knows by a number, if it does.
fn numbered(entry: Sqe, opcode: abi::io_uring_op, number: Option<u16>) -> Sqe {
    match number {
        None => entry,
        Some(buf_index) => Sqe { opcode: opcode as u8, buf_index, ..entry },
    }
}

/// # Safety
///
/// The gather and its slices are valid.
unsafe fn vectored(entry: Sqe, opcode: abi::io_uring_op, gather: *mut Gather) -> Sqe {
    // SAFETY: the caller's promise.
    let slices = unsafe { (*gather).slices() };
    Sqe {
        opcode: opcode as u8,
        addr: slices.as_ptr() as u64,
        len: u32::try_from(slices.len()).unwrap_or(u32::MAX),
        ..entry
    }
}

/// Lets the kernel take a buffer of the pool.
fn select_buffer(entry: Sqe) -> Sqe {
    Sqe { flags: entry.flags | SELECT_BUFFER, buf_index: Provided::GROUP, ..entry }
}

/// What is over at once.
fn nothing() -> Sqe {
    Sqe { opcode: abi::io_uring_op::IORING_OP_NOP as u8, fd: -1, ..Sqe::default() }
}

fn poll_in(entry: Sqe) -> Sqe {
    poll(entry, libc::POLLIN | libc::POLLRDHUP)
}

fn poll(entry: Sqe, events: libc::c_short) -> Sqe {
    let events = u32::from(events.cast_unsigned());
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_POLL_ADD as u8,
        // The kernel wants the two halves of the word swapped on big-endian machines.
        op_flags: if cfg!(target_endian = "big") { events.rotate_left(16) } else { events },
        ..entry
    }
}

/// The time `delay` from now on the clock that the kernel's timers use.
fn monotonic_after(delay: Duration) -> [i64; 2] {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives across the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    let due = Duration::new(seconds, nanos).saturating_add(delay);
    [i64::try_from(due.as_secs()).unwrap_or(i64::MAX), i64::from(due.subsec_nanos())]
}

/// Whether io_uring cannot be had here, for a reason that lies in the machine: not for want of
/// descriptors, say, which the next attempt may find.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(code) => {
            matches!(code, libc::EPERM | libc::EACCES | libc::ENOSYS | libc::ENOMEM)
        }
        None => error.kind() == io::ErrorKind::Unsupported,
    }
}

/// Whether a ring was refused for want of memory that may be locked.
fn is_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM))
}

/// What keeps a ring from being made, and what to do about it.
pub(crate) fn refusal(error: &io::Error) -> Error {
    let built = Error::from_io(error, "io_uring_setup");
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => built.with_remedy(
            "io_uring is refused here, by a seccomp profile (containers do that: allow \
             io_uring_setup, io_uring_enter and io_uring_register in it) or by \
             sysctl kernel.io_uring_disabled (set it to 0)",
        ),
        Some(libc::ENOSYS) => built.with_remedy(
            "this kernel has no io_uring, or a seccomp profile hides it; wharf needs \
             Linux 5.11",
        ),
        Some(libc::ENOMEM) => built.with_remedy(
            "too little memory may be locked: raise RLIMIT_MEMLOCK (ulimit -l), or lower \
             the concurrency value or the ring's size",
        ),
        Some(libc::EMFILE | libc::ENFILE) => built,
        _ if error.kind() == io::ErrorKind::Unsupported => {
            built.with_remedy("wharf needs the io_uring of Linux 5.11")
        }
        _ => built,
    }
}
