//! Registered I/O on io_uring, by rings of the completion queue's own.
//!
//! # Receives
//!
//! A receive that is posted becomes an entry of a ring of provided buffers, which the kernel reads:
//! a few writes to memory and no system call. One multishot receive per socket, *armed* when the
//! owner next enters the kernel, puts each datagram into the oldest entry. It ends when it finds no
//! entry, on an error, on an empty datagram, and when the thread exits that armed it; then it is
//! armed anew.
//!
//! # Sends
//!
//! A datagram is a request of its own. On a stream one request is in the kernel at a time, a
//! *flight* of as many of the waiting slices as it may have: the bytes of two would mix.
//!
//! # Notifications
//!
//! The kernel signals an event for each completion in a ring, and knows nothing of completions
//! that shall not notify. So there are two rings: what may notify goes into the loud one, which has
//! the event, and the rest into the quiet one. Receives complete in order, so that those of one
//! socket that are posted (in the kernel's reach) are all loud or all quiet, and the next *run*
//! waits. While a notification is wanted, a quiet run with a loud one behind it is armed as a
//! chain: when the run is used up, poll for the datagram that the loud one would get, and then put
//! a completion into the loud ring.
//!
//! # Who may touch a slice
//!
//! | Where the request is | Who may touch its slice |
//! |---|---|
//! | `Input::waiting`, `Stream::waiting` | nobody: the engine owns it, and gives it to no one |
//! | `Posted`: in a ring of provided buffers | the kernel may write to it while a receive is armed |
//! | `Input::whole`, `Datagrams`, `Stream::flight`: in the kernel | the kernel |
//! | its last completion has been taken from the ring | the engine, and after `pop` the program |
//!
//! A slice keeps its region mapped, and the engine keeps the slice. It lets go of one only after
//! the kernel's completion for it, or (what is posted) when no receive of the socket is armed, the
//! entry has been taken back, and none will be armed that could find it. When the engine is
//! dropped it cancels everything and waits for that; should it wait in vain, the sockets and their
//! slices are leaked, as they are when the engine is forgotten. So the kernel never writes to
//! memory that is unmapped, or that a program can see.
//!
//! # Threads
//!
//! The rings have no SINGLE_ISSUER and no DEFER_TASKRUN, so that the queue may move to another
//! thread, and be dropped there, at any time. A request belongs to the thread that submitted it
//! all the same: that one completes it, wherever it is. So receives are armed anew when another
//! thread has become the owner.

mod output;
mod posted;
mod probe;

use std::{
    collections::VecDeque,
    io,
    mem::{ManuallyDrop, take},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use linux_raw_sys::io_uring as abi;

pub(super) use self::probe::FLOOR;
use self::{
    output::{Datagrams, Output, Sent, Stream},
    posted::Posted,
};
use super::{Armed, Direction, Flags, Head, Opened, Request, Route, Setup, Slice, Traits};
use crate::{
    rio::completion::Completion,
    sys::{
        ForkGuard, signal, udp,
        uring::{Cqe, Ring, RingSize, Sqe, is_transient},
    },
};

/// Submissions between two entries of the kernel; a longer batch of sends is submitted in parts.
const SUBMISSIONS: u32 = 512;
/// How long closing waits for requests that the kernel does not let go.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it pauses between two looks, after the first few.
const PAUSE: Duration = Duration::from_micros(100);
/// After so many entries of the kernel in a row, a thread is the owner.
const NATURALISED: u32 = 16;
/// How long asking for a notification waits for what it has to change in the kernel. If a thread
/// that does not get on has armed a receive, the notification may come too early after that.
const PATIENCE_TO_ARM: Duration = Duration::from_millis(20);

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Engine {
    loud: ManuallyDrop<Ring>,
    /// Where notifications may be asked for.
    quiet: ManuallyDrop<Option<Ring>>,
    sockets: Vec<Option<Box<Socket>>>,
    /// Sockets for which something is to be armed or submitted.
    attention: VecDeque<u16>,
    /// Completions taken from the rings that nobody has asked for yet.
    done: VecDeque<Completion>,
    guard: ForkGuard,
    /// The thread that arms receives, and how often in a row another one has entered.
    owner: usize,
    strange: u32,
    event: Option<Arc<OwnedFd>>,
    /// Quiet receives are armed with a chain where a loud one is behind them.
    chaining: bool,
    /// A notification is outstanding: how many completions the loud ring had had when it was asked
    /// for.
    wanted: Option<u32>,
}

/// Which ring: the one that may notify, or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Loud,
    Quiet,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    stream: bool,
    /// What is written before its datagrams.
    head: Head,
    /// Where something is to be written before datagrams: how much.
    message: Option<Box<Message>>,
    /// It stands in `Engine::attention`.
    noted: bool,
    closing: bool,
    /// Submissions whose last completion has not been taken yet.
    in_kernel: u32,
    input: Input,
    output: Output,
}

/// From which the kernel takes how much room there is before a datagram, at a fixed address.
struct Message(libc::msghdr);

// SAFETY: it holds numbers, and pointers that are null.
unsafe impl Send for Message {}
// SAFETY: as for Send.
unsafe impl Sync for Message {}

impl Message {
    fn new(head: Head) -> Box<Self> {
        // SAFETY: plain integers and pointers, for which zero is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_namelen = u32::try_from(head.name()).unwrap_or(0);
        message.msg_controllen = head.control() as _;
        Box::new(Self(message))
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

/// The receives of a socket.
#[derive(Debug)]
struct Input {
    /// For the loud ring, and for the quiet one if there is one. At most one of them has entries.
    posted: [Option<Posted>; 2],
    /// Where the current run of receives is posted.
    side: Side,
    armed: Option<Armament>,
    /// What is armed shall end.
    recall: bool,
    /// A receive of a whole slice is a run of its own: it and how much it has got.
    whole: Option<(Request, usize)>,
    /// The runs behind the current one, in order.
    waiting: VecDeque<Request>,
    /// An error of a stream that nobody was there to be told of. Nothing is armed then.
    failed: i32,
}

/// A receive that is in the kernel.
#[derive(Clone, Copy, Debug)]
struct Armament {
    kind: Kind,
    side: Side,
    /// It puts a completion into the loud ring when a loud receive behind it would complete.
    chained: bool,
    /// It has been asked to end.
    ending: bool,
}

/// What a socket's receives need next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Nothing,
    Arm(Armament),
    End(Armament),
}

/// What a submission was for. With the number of its socket, and for a datagram the one of its
/// slot, it is the user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// The multishot receive.
    Receive,
    /// The receive of a whole slice.
    Whole,
    /// A send.
    Send,
    /// A cancellation.
    Cancel,
    /// A later part of a chain.
    Chain,
    /// Of nothing, but it notifies. A chain has put it into the loud ring, or we have.
    Attend,
}

fn user_data(kind: Kind, index: u16, slot: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(index) << 8 | kind as u64
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "each takes the bits that user_data gave it")]
fn meaning(user_data: u64) -> (Kind, u16, u32) {
    let kind = match user_data as u8 {
        0 => Kind::Receive,
        1 => Kind::Whole,
        2 => Kind::Send,
        3 => Kind::Cancel,
        4 => Kind::Chain,
        _ => Kind::Attend,
    };
    (kind, (user_data >> 8) as u16, (user_data >> 32) as u32)
}

const BUFFER_SELECT: u8 = 1 << abi::io_uring_sqe_flags_bit::IOSQE_BUFFER_SELECT_BIT as u8;
const HARDLINK: u8 = 1 << abi::io_uring_sqe_flags_bit::IOSQE_IO_HARDLINK_BIT as u8;
#[expect(clippy::cast_possible_truncation, reason = "it is 2")]
const MULTISHOT: u16 = abi::IORING_RECV_MULTISHOT as u16;

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}

impl Engine {
    pub(crate) fn new(setup: Setup) -> io::Result<Self> {
        probe::probe()?;
        let completions = u32::try_from(setup.capacity).unwrap_or(u32::MAX);
        let completions = completions.saturating_add(64).max(2 * SUBMISSIONS);
        let size = RingSize { submissions: SUBMISSIONS, completions };
        let (loud, quiet) = match setup.notifies {
            // Who waits elsewhere wants to be interrupted.
            true => (Ring::new(size, false)?, Some(Ring::new(size, false)?)),
            false => (Ring::polled(size)?, None),
        };
        Ok(Self {
            loud: ManuallyDrop::new(loud),
            quiet: ManuallyDrop::new(quiet),
            sockets: Vec::new(),
            attention: VecDeque::new(),
            done: VecDeque::new(),
            guard: ForkGuard::new()?,
            owner: this_thread(),
            strange: 0,
            event: None,
            chaining: false,
            wanted: None,
        })
    }

    pub(crate) fn open(&mut self, index: u16, fd: OwnedFd, traits: Traits) -> Opened {
        let head = Head::new(&traits);
        let bytes = head.bytes();
        let loud = Posted::new(&self.loud, traits.receives, index, bytes);
        let quiet = self.quiet.as_ref();
        let quiet = quiet.map(|ring| Posted::new(ring, traits.receives, index, bytes)).transpose();
        let posted = match (loud, quiet) {
            (Ok(loud), Ok(quiet)) => [Some(loud), quiet],
            (Err(error), _) | (_, Err(error)) => {
                self.unregister(index);
                return Err((error, fd));
            }
        };
        let socket = Socket {
            fd,
            stream: traits.stream,
            head,
            message: (head != Head::NONE).then(|| Message::new(head)),
            noted: false,
            closing: false,
            in_kernel: 0,
            input: Input {
                posted,
                side: Side::Loud,
                armed: None,
                recall: false,
                whole: None,
                waiting: VecDeque::new(),
                failed: 0,
            },
            output: match traits.stream {
                true => Output::Stream(Stream::default()),
                false => Output::Datagrams(Datagrams::default()),
            },
        };
        let at = usize::from(index);
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        debug_assert!(self.sockets[at].is_none(), "the number is in use");
        self.sockets[at] = Some(Box::new(socket));
        Ok(())
    }

    /// Lets the kernel forget the rings of buffers of this number, if it has any.
    fn unregister(&self, index: u16) {
        // SAFETY: plain integers, for which zero is a value.
        let mut group: abi::io_uring_buf_reg = unsafe { std::mem::zeroed() };
        group.bgid = index;
        let opcode = abi::io_uring_register_op::IORING_UNREGISTER_PBUF_RING as u32;
        for ring in [Some(&*self.loud), self.quiet.as_ref()].into_iter().flatten() {
            // SAFETY: the structure is what this opcode asks for, and read during the call.
            let _ = unsafe { ring.register(opcode, (&raw const group).cast(), 1) };
        }
    }

    pub(crate) fn with_socket<T>(
        &self,
        index: u16,
        look: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Option<T> {
        Some(look(self.sockets.get(usize::from(index))?.as_ref()?.fd.as_fd()))
    }

    pub(crate) fn in_child(&self) -> bool {
        self.guard.in_child()
    }

    #[inline]
    fn get(&mut self, index: u16) -> Option<&mut Socket> {
        self.sockets.get_mut(usize::from(index))?.as_deref_mut()
    }

    fn note(&mut self, index: u16) {
        if let Some(socket) = self.get(index)
            && !std::mem::replace(&mut socket.noted, true)
        {
            self.attention.push_back(index);
        }
    }

    fn note_all(&mut self) {
        (0..self.sockets.len()).for_each(|at| self.note(u16::try_from(at).unwrap_or(u16::MAX)));
    }

    fn ring(&mut self, side: Side) -> &mut Ring {
        match (side, self.quiet.as_mut()) {
            (Side::Quiet, Some(quiet)) => quiet,
            _ => &mut self.loud,
        }
    }

    // ---- Starting ---------------------------------------------------------------------------

    #[inline(always)]
    pub(crate) fn receive(&mut self, index: u16, slice: Slice, context: u64, flags: Flags) {
        if let Some(socket) = self.get(index)
            && socket.input.armed.is_some()
            && socket.input.waiting.is_empty()
            && socket.input.joins(flags)
        {
            socket.input.current().push(Request { slice, context, flags });
        } else {
            self.receive_slowly(index, Request { slice, context, flags });
        }
    }

    #[inline(never)]
    fn receive_slowly(&mut self, index: u16, request: Request) {
        let Some(socket) = self.get(index) else { return };
        let input = &mut socket.input;
        if input.failed != 0 {
            let status = take(&mut input.failed);
            self.finish(index, Direction::Receive, request, status, 0);
            return self.tell();
        }
        if input.waiting.is_empty() && input.joins(request.flags) {
            input.current().push(request);
        } else {
            input.waiting.push_back(request);
        }
        self.note(index);
        // The owner may go to sleep with that, and nobody would arm it.
        if self.is_outstanding()
            && let Err(error) = self.enter()
        {
            log::warn!("receives are kept for later, as the kernel cannot be entered: {error}");
        }
    }

    pub(crate) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        let quiet = request.flags.is_quiet();
        let Some(socket) = self.get(index) else { return };
        match &mut socket.output {
            Output::Stream(stream) => {
                stream.waiting.push_back(request);
                if !deferred {
                    self.take_off(index);
                }
            }
            Output::Datagrams(datagrams) => {
                let slot = datagrams.put(request, route);
                let entry = datagrams.submission(slot);
                self.submit_send(index, slot, quiet, entry);
            }
        }
        if !deferred && let Err(error) = self.enter() {
            log::warn!("sends are kept for later, as the kernel cannot be entered: {error}");
        }
    }

    /// Puts a send into the submission queue, or ends it with what prevents that.
    fn submit_send(&mut self, index: u16, slot: u32, quiet: bool, entry: Sqe) {
        let Some(socket) = self.get(index) else { return };
        let user_data = user_data(Kind::Send, index, slot);
        let entry = Sqe { fd: socket.fd.as_raw_fd(), user_data, ..entry };
        socket.in_kernel += 1;
        let side = if quiet { Side::Quiet } else { Side::Loud };
        // SAFETY: what the entry points to lies in boxes and slices that the socket keeps until
        // the send has completed.
        if let Err(error) = unsafe { self.ring(side).push_alone(&[entry]) } {
            let result = -error.raw_os_error().unwrap_or(libc::EIO);
            let failed = Cqe { user_data, result, flags: 0 };
            if let Some(done) = self.digest(failed) {
                self.done.push_back(done);
                self.tell();
            }
        }
    }

    /// Sends what waits on a stream, and what is left of its last flight, if nothing of it is in
    /// the kernel.
    fn take_off(&mut self, index: u16) {
        if let Some(Socket { output: Output::Stream(stream), closing: false, .. }) = self.get(index)
            && let Some(entry) = stream.take_off()
        {
            let quiet = stream.is_quiet();
            self.submit_send(index, 0, quiet, entry);
        }
    }

    pub(crate) fn commit(&mut self, index: u16) -> io::Result<()> {
        self.take_off(index);
        self.enter()
    }

    /// Brings everything that waits for it on its way: arms receives, ends them, starts flights.
    fn attend(&mut self) {
        for _ in 0..self.attention.len() {
            let Some(index) = self.attention.pop_front() else { return };
            let chaining = self.chaining;
            let loud = self.loud.fd();
            let Some(socket) = self.get(index) else { continue };
            socket.noted = false;
            if socket.closing {
                continue;
            }
            let done = match socket.input.next(chaining) {
                Next::Nothing => Ok(()),
                Next::Arm(armament) => {
                    let chain = socket.arm(index, armament, loud);
                    let entries = if armament.chained { &chain[..] } else { &chain[..1] };
                    // As if they were in the kernel already: what `push_alone` has to say is
                    // whether they are.
                    socket.input.armed = Some(armament);
                    socket.in_kernel += if armament.chained { 3 } else { 1 };
                    // SAFETY: what the entries point to is kept by the socket until their
                    // completions.
                    unsafe { self.ring(armament.side).push_alone(entries) }.inspect_err(|_| {
                        if let Some(socket) = self.get(index) {
                            socket.input.armed = None;
                            socket.in_kernel -= if armament.chained { 3 } else { 1 };
                        }
                    })
                }
                Next::End(armament) => {
                    socket.input.armed = Some(Armament { ending: true, ..armament });
                    self.cancel(armament.side, armament.kind, index)
                }
            };
            let recall = match self.get(index).map(|socket| &mut socket.output) {
                Some(Output::Stream(stream)) if stream.recall => {
                    self.cancel(Side::Quiet, Kind::Send, index)
                }
                _ => Ok(()),
            };
            if done.and(recall).is_err() {
                // The kernel is short of memory: later.
                self.note(index);
            }
            self.take_off(index);
        }
    }

    /// Asks for the one submission of a kind that a socket has in the kernel to be cancelled.
    fn cancel(&mut self, side: Side, kind: Kind, index: u16) -> io::Result<()> {
        let entry = Sqe {
            opcode: abi::io_uring_op::IORING_OP_ASYNC_CANCEL as u8,
            fd: -1,
            addr: user_data(kind, index, 0),
            user_data: user_data(Kind::Cancel, index, 0),
            ..Sqe::default()
        };
        // SAFETY: a cancellation points to nothing.
        unsafe { self.ring(side).push_alone(&[entry]) }
    }

    /// Enters the kernel where it has something to do.
    fn enter(&mut self) -> io::Result<()> {
        self.notice();
        self.naturalise();
        self.attend();
        for ring in [Some(&*self.loud), self.quiet.as_ref()].into_iter().flatten() {
            if ring.unsubmitted() > 0 || ring.work_waits() {
                match ring.enter(0, None) {
                    Err(error) if !is_transient(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Notices that another thread has become the owner, and arms receives anew from there.
    fn naturalise(&mut self) {
        let here = this_thread();
        if here == self.owner {
            self.strange = 0;
            return;
        }
        self.strange += 1;
        if self.strange >= NATURALISED {
            self.owner = here;
            for socket in self.sockets.iter_mut().flatten() {
                socket.input.recall = socket.input.armed.is_some();
            }
            self.note_all();
        }
    }

    // ---- Completing -------------------------------------------------------------------------

    #[inline(always)]
    pub(crate) fn pop_usual(&mut self) -> Option<Completion> {
        const USUAL: u32 = abi::IORING_CQE_F_MORE | abi::IORING_CQE_F_BUFFER;
        if !self.done.is_empty() || self.wanted.is_some() || self.guard.in_child() {
            return None;
        }
        let cqe = self.loud.peek_alone()?;
        let (kind, index, _) = meaning(cqe.user_data);
        let socket = self.sockets.get_mut(usize::from(index))?.as_deref_mut()?;
        if kind != Kind::Receive || cqe.flags & USUAL != USUAL || !socket.input.waiting.is_empty() {
            return None;
        }
        let place = cqe.flags >> abi::IORING_CQE_BUFFER_SHIFT;
        let request = socket.input.current().take(place)?;
        self.loud.pass_alone();
        Some(socket.received(index, request, cqe.result))
    }

    pub(crate) fn pop(&mut self) -> Option<Completion> {
        self.notice();
        loop {
            if !self.done.is_empty() {
                return self.done.pop_front();
            }
            let cqe = self.take()?;
            if let Some(done) = self.digest(cqe) {
                return Some(done);
            }
        }
    }

    #[inline]
    pub(crate) fn look(&mut self) -> io::Result<()> {
        if self.wants_kernel() { self.enter() } else { Ok(()) }
    }

    /// Takes the next completion of the kernel's.
    #[inline]
    fn take(&mut self) -> Option<Cqe> {
        self.loud.pop_alone().or_else(|| self.quiet.as_mut()?.pop_alone())
    }

    /// Takes all completions out of the rings.
    fn reap(&mut self) {
        while let Some(cqe) = self.take() {
            if let Some(done) = self.digest(cqe) {
                self.done.push_back(done);
            }
        }
    }

    /// Whether there is something to enter the kernel for.
    #[inline]
    fn wants_kernel(&self) -> bool {
        let wants = |ring: &Ring| ring.work_waits() || ring.unsubmitted() > 0;
        !self.attention.is_empty() || wants(&self.loud) || self.quiet.as_ref().is_some_and(wants)
    }

    /// Works out what a completion means. Where it ends several requests, they are put into `done`.
    #[inline]
    fn digest(&mut self, cqe: Cqe) -> Option<Completion> {
        let (kind, index, slot) = meaning(cqe.user_data);
        let last = cqe.flags & abi::IORING_CQE_F_MORE == 0;
        let socket = self.get(index)?;
        if last && !matches!(kind, Kind::Cancel | Kind::Attend) {
            socket.in_kernel -= 1;
        }
        match kind {
            Kind::Receive => {
                if last {
                    socket.input.disarmed();
                    self.note(index);
                }
                self.received(index, cqe)
            }
            Kind::Whole => {
                socket.input.disarmed();
                self.note(index);
                self.received_whole(index, cqe.result)
            }
            Kind::Send => self.sent(index, slot, cqe.result),
            Kind::Attend => {
                self.note(index);
                None
            }
            Kind::Cancel | Kind::Chain => None,
        }
    }

    #[inline]
    fn received(&mut self, index: u16, cqe: Cqe) -> Option<Completion> {
        let socket = self.get(index)?;
        let posted = socket.input.current();
        if cqe.flags & abi::IORING_CQE_F_BUFFER != 0 {
            let request = posted.take(cqe.flags >> abi::IORING_CQE_BUFFER_SHIFT)?;
            let done = socket.received(index, request, cqe.result);
            if !socket.input.waiting.is_empty() {
                self.note(index);
            }
            return Some(done);
        }
        // It has ended without taking a buffer, so the oldest entry is still the kernel's.
        match -cqe.result {
            // No entry was left, or it was cancelled: by us, or because its thread has exited.
            libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR => None,
            status if socket.stream => {
                self.ended(index, -status);
                None
            }
            status if udp::is_of_an_earlier_send(status) => None,
            // An empty datagram, or an error of this machine.
            status => {
                let mut request = posted.take_oldest()?;
                request.slice.set_received(0);
                Some(Completion::of(index, Direction::Receive, request, -status, 0))
            }
        }
    }

    /// A stream is at its end, or broken: every receive is told.
    fn ended(&mut self, index: u16, status: i32) {
        let Some(socket) = self.get(index) else { return };
        let mut told = false;
        let requests: Vec<_> = socket.input.take_all().collect();
        for mut request in requests {
            told = true;
            request.slice.set_received(0);
            self.finish(index, Direction::Receive, request, status, 0);
        }
        if !told && let Some(socket) = self.get(index) {
            socket.input.failed = status;
        }
    }

    fn received_whole(&mut self, index: u16, result: i32) -> Option<Completion> {
        let socket = self.get(index)?;
        let (mut request, mut filled) = socket.input.whole.take()?;
        filled += usize::try_from(result).unwrap_or(0);
        let again = match -result {
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => !socket.closing,
            _ => result > 0 && filled < request.slice.capacity(),
        };
        if again {
            socket.input.whole = Some((request, filled));
            return None;
        }
        request.slice.set_received(filled);
        Some(Completion::of(index, Direction::Receive, request, result.min(0), filled))
    }

    fn sent(&mut self, index: u16, slot: u32, result: i32) -> Option<Completion> {
        let socket = self.sockets.get_mut(usize::from(index))?.as_deref_mut()?;
        // Cancelled though nobody asked: the thread has exited that submitted it.
        let again = matches!(-result, libc::ECANCELED | libc::EINTR) && !socket.closing;
        match &mut socket.output {
            Output::Datagrams(datagrams) if again => {
                let (entry, quiet) = (datagrams.submission(slot), datagrams.is_quiet(slot));
                self.submit_send(index, slot, quiet, entry);
                None
            }
            Output::Datagrams(datagrams) => {
                let request = datagrams.take(slot)?;
                let bytes = usize::try_from(result).unwrap_or(0);
                Some(Completion::of(index, Direction::Send, request, result.min(0), bytes))
            }
            Output::Stream(stream) => {
                let done = &mut self.done;
                stream.land(result, again, |Sent { request, status, bytes }| {
                    done.push_back(Completion::of(index, Direction::Send, request, status, bytes));
                });
                self.note(index);
                None
            }
        }
    }

    fn finish(
        &mut self,
        index: u16,
        direction: Direction,
        request: Request,
        status: i32,
        bytes: usize,
    ) {
        self.done.push_back(Completion::of(index, direction, request, status, bytes));
    }

    // ---- Notifying --------------------------------------------------------------------------

    /// An event that the kernel signals when something that notifies completes, each time
    /// [`Self::arm`] says so.
    pub(crate) fn event(&mut self) -> io::Result<Arc<OwnedFd>> {
        let event = Arc::new(signal::new()?);
        self.loud.set_signalling(false);
        self.loud.register_event(event.as_fd())?;
        Ok(self.event.insert(event).clone())
    }

    /// The loud ring itself is readable while there are completions in it, and [`Self::arm`] leaves
    /// none there.
    pub(crate) fn sign(&mut self) -> io::Result<OwnedFd> {
        self.loud.as_fd().try_clone_to_owned()
    }

    /// Asks for the event to be signalled, once.
    pub(crate) fn arm(&mut self) -> io::Result<Armed> {
        if self.is_outstanding() {
            return Ok(Armed::Already);
        }
        self.disarm();
        if let Some(event) = &self.event {
            signal::reset(event.as_fd());
        }
        self.chaining = true;
        for socket in self.sockets.iter_mut().flatten() {
            // A receive that is armed without anything to receive into would complete, with
            // nothing for anybody.
            socket.input.recall |= socket.input.armed.is_some() && socket.input.is_empty();
            if let Output::Stream(stream) = &mut socket.output {
                stream.recall = stream.loud_waits();
            }
        }
        self.note_all();
        let deadline = Instant::now() + PATIENCE_TO_ARM;
        loop {
            self.reap();
            if self.done.iter().any(|done| !done.flags.is_quiet()) {
                self.disarm();
                return Ok(Armed::Now);
            }
            let changing = self.sockets.iter().flatten().any(|socket| socket.is_changing());
            if self.wants_kernel() {
                self.enter()?;
            } else if changing && Instant::now() < deadline {
                thread::sleep(PAUSE);
            } else {
                self.loud.set_signalling(true);
                // What completes from here on is signalled.
                let then = self.loud.completed();
                if self.loud.ready() == 0 {
                    self.wanted = Some(then);
                    return Ok(Armed::Later);
                }
                self.loud.set_signalling(false);
            }
        }
    }

    /// Whether a notification is outstanding: wanted, and not made yet.
    fn is_outstanding(&self) -> bool {
        self.wanted.is_some_and(|then| self.loud.completed() == then)
    }

    /// Notices that a notification has been made: once is enough.
    fn notice(&mut self) {
        if self.wanted.is_some() && !self.is_outstanding() {
            self.disarm();
        }
    }

    /// Lets the kernel notify of what has completed without it, if that is wanted.
    fn tell(&mut self) {
        if !self.is_outstanding() || self.done.iter().all(|done| done.flags.is_quiet()) {
            return;
        }
        let opcode = abi::io_uring_op::IORING_OP_NOP as u8;
        let nop =
            Sqe { opcode, fd: -1, user_data: user_data(Kind::Attend, 0, 0), ..Sqe::default() };
        // SAFETY: a NOP points to nothing.
        let told = unsafe { self.loud.push_alone(&[nop]) }.and_then(|()| self.enter());
        if let Err(error) = told {
            log::warn!("a notification could not be made: {error}");
        }
    }

    pub(crate) fn disarm(&mut self) {
        self.wanted = None;
        self.chaining = false;
        self.loud.set_signalling(false);
    }

    // ---- Closing ----------------------------------------------------------------------------

    pub(crate) fn close(&mut self, index: u16) {
        let Some(socket) = self.get(index) else { return };
        socket.closing = true;
        if !self.settle(index) {
            log::error!("the kernel still holds requests of a socket that was closed");
            return;
        }
        let Some(mut socket) = self.sockets[usize::from(index)].take() else { return };
        if let Some((mut request, filled)) = socket.input.whole.take() {
            request.slice.set_received(filled);
            self.finish(index, Direction::Receive, request, -libc::ECANCELED, filled);
        }
        for mut request in socket.input.take_all() {
            request.slice.set_received(0);
            self.finish(index, Direction::Receive, request, -libc::ECANCELED, 0);
        }
        if let Output::Stream(stream) = &mut socket.output {
            while let Some(sent) = stream.give_up_first(-libc::ECANCELED) {
                let Sent { request, status, bytes } = sent;
                self.finish(index, Direction::Send, request, status, bytes);
            }
        }
        self.unregister(index);
        self.tell();
    }

    /// Cancels what closing sockets have in the kernel, and waits until this one of them has
    /// nothing there. False: it has waited for too long.
    fn settle(&mut self, index: u16) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.reap();
            let Some(socket) = self.get(index).filter(|socket| socket.in_kernel > 0) else {
                return true;
            };
            if Instant::now() >= deadline {
                return false;
            }
            let entry = Sqe {
                opcode: abi::io_uring_op::IORING_OP_ASYNC_CANCEL as u8,
                fd: socket.fd.as_raw_fd(),
                op_flags: abi::IORING_ASYNC_CANCEL_FD | abi::IORING_ASYNC_CANCEL_ALL,
                user_data: user_data(Kind::Cancel, index, 0),
                ..Sqe::default()
            };
            for side in [Side::Loud, Side::Quiet] {
                // SAFETY: a cancellation points to nothing.
                if let Err(error) = unsafe { self.ring(side).push_alone(&[entry]) } {
                    log::warn!("a cancellation could not be queued: {error}");
                }
            }
            let entered = self.enter();
            self.reap();
            if self.get(index).is_some_and(|socket| socket.in_kernel > 0) {
                thread::sleep(PAUSE);
            }
            if let Err(error) = entered {
                log::warn!("a cancellation could not be submitted: {error}");
                return false;
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.guard.in_child() {
            // The rings and what is in flight are the parent's, and the rings are not even mapped
            // here. The slices are copies.
            return;
        }
        for socket in self.sockets.iter_mut().flatten() {
            socket.closing = true;
        }
        for at in 0..self.sockets.len() {
            self.settle(u16::try_from(at).unwrap_or(u16::MAX));
        }
        for socket in self.sockets.drain(..).flatten().filter(|socket| socket.in_kernel > 0) {
            log::error!("the kernel still holds requests of a socket: their memory is leaked");
            let _ = ManuallyDrop::new(socket);
        }
        // SAFETY: they are dropped once, here.
        unsafe {
            ManuallyDrop::drop(&mut self.loud);
            ManuallyDrop::drop(&mut self.quiet);
        }
    }
}

impl Input {
    #[inline(always)]
    fn side_of(&self, flags: Flags) -> Side {
        if flags.is_quiet() && self.posted[1].is_some() { Side::Quiet } else { Side::Loud }
    }

    /// What the current run is posted to.
    #[inline(always)]
    fn current(&mut self) -> &mut Posted {
        // There is always the loud one, and `side` is only ever that of one that is there.
        let [loud, quiet] = &mut self.posted;
        match (self.side, quiet, loud) {
            (Side::Quiet, Some(quiet), _) => quiet,
            (_, _, Some(loud)) => loud,
            _ => unreachable!("made by `open`"),
        }
    }

    /// Whether no receive is there.
    fn is_empty(&mut self) -> bool {
        self.waiting.is_empty() && self.whole.is_none() && self.current().is_empty()
    }

    /// Whether a receive belongs to the current run, and has room there.
    #[inline(always)]
    fn joins(&mut self, flags: Flags) -> bool {
        let joins = !flags.is_whole() && self.whole.is_none();
        joins && self.side_of(flags) == self.side && !self.current().is_full()
    }

    fn disarmed(&mut self) {
        self.armed = None;
        self.recall = false;
    }

    /// Whether a loud receive waits behind a quiet run.
    fn needs_chain(&self) -> bool {
        let loud = |request: &Request| self.side_of(request.flags) == Side::Loud;
        self.side == Side::Quiet && self.waiting.iter().any(loud)
    }

    /// What is to be done next. Posts what can be posted.
    fn next(&mut self, chaining: bool) -> Next {
        if self.armed.is_none()
            && self.whole.is_none()
            && self.current().is_empty()
            && let Some(first) = self.waiting.front()
        {
            // The next run begins.
            self.side = self.side_of(first.flags);
            if first.flags.is_whole() {
                self.whole = self.waiting.pop_front().map(|request| (request, 0));
            }
        }
        while let Some(request) = self.waiting.pop_front() {
            if !self.joins(request.flags) {
                self.waiting.push_front(request);
                break;
            }
            self.current().push(request);
        }
        let chained = chaining && self.needs_chain();
        if let Some(armed) = self.armed {
            let used_up = self.whole.is_none() && self.current().is_empty();
            let over = used_up && !self.waiting.is_empty();
            let ends = over || self.recall || (chained && !armed.chained);
            return if ends && !armed.ending { Next::End(armed) } else { Next::Nothing };
        }
        let kind = if self.whole.is_some() { Kind::Whole } else { Kind::Receive };
        if kind == Kind::Receive && self.current().is_empty() {
            return Next::Nothing;
        }
        Next::Arm(Armament { kind, side: self.side, chained, ending: false })
    }

    /// Takes every receive back that the kernel has not consumed, in order. None may be armed.
    fn take_all(&mut self) -> impl Iterator<Item = Request> {
        let posted: Vec<_> = self.current().take_all().collect();
        posted.into_iter().chain(self.waiting.drain(..))
    }
}

impl Socket {
    /// What a receive has brought.
    #[inline(always)]
    fn received(&self, index: u16, mut request: Request, result: i32) -> Completion {
        let got = usize::try_from(result).unwrap_or(0);
        let bytes = got.saturating_sub(self.head.bytes()).min(request.slice.capacity());
        request.slice.set_received(bytes);
        let mut done = Completion::of(index, Direction::Receive, request, 0, bytes);
        let whole = match self.head {
            // With MSG_TRUNC the result is the length of the datagram, fitting or not.
            Head::NONE => got,
            head => head.whole(&done.slice),
        };
        done.whole = u32::try_from(whole).unwrap_or(u32::MAX);
        done.head = self.head;
        done
    }

    /// Whether something is on its way out of the kernel.
    fn is_changing(&self) -> bool {
        self.input.armed.is_some_and(|armed| armed.ending)
            || matches!(&self.output, Output::Stream(stream) if stream.recall)
    }

    /// The submission that arms a receive, and the two that make a chain of it.
    fn arm(&self, index: u16, armament: Armament, loud: i32) -> [Sqe; 3] {
        let flags = if armament.chained { HARDLINK } else { 0 };
        let user_data = |kind| user_data(kind, index, 0);
        let entry = Sqe { fd: self.fd.as_raw_fd(), flags, ..Sqe::default() };
        let receive = match &self.input.whole {
            Some((request, filled)) => {
                // SAFETY: it has got no more than its capacity.
                let rest = unsafe { request.slice.start().add(*filled) };
                let length = request.slice.capacity() - filled;
                Sqe {
                    opcode: abi::io_uring_op::IORING_OP_RECV as u8,
                    addr: rest as u64,
                    len: u32::try_from(length).unwrap_or(u32::MAX),
                    op_flags: libc::MSG_WAITALL.cast_unsigned(),
                    ..entry
                }
            }
            None => {
                let entry = Sqe {
                    flags: flags | BUFFER_SELECT,
                    ioprio: MULTISHOT,
                    buf_index: index,
                    // The result is the length of the datagram, fitting or not.
                    op_flags: if self.stream { 0 } else { libc::MSG_TRUNC.cast_unsigned() },
                    ..entry
                };
                match &self.message {
                    None => Sqe { opcode: abi::io_uring_op::IORING_OP_RECV as u8, ..entry },
                    Some(message) => Sqe {
                        opcode: abi::io_uring_op::IORING_OP_RECVMSG as u8,
                        addr: &raw const message.0 as u64,
                        len: 1,
                        ..entry
                    },
                }
            }
        };
        let poll = Sqe {
            opcode: abi::io_uring_op::IORING_OP_POLL_ADD as u8,
            op_flags: poll_mask(libc::POLLIN),
            user_data: user_data(Kind::Chain),
            ..entry
        };
        let tell = Sqe {
            opcode: abi::io_uring_op::IORING_OP_MSG_RING as u8,
            fd: loud,
            off: user_data(Kind::Attend),
            user_data: user_data(Kind::Chain),
            ..Sqe::default()
        };
        [Sqe { user_data: user_data(armament.kind), ..receive }, poll, tell]
    }
}

/// The events of a poll, as the kernel wants them: a big-endian machine's halves are swapped.
fn poll_mask(events: i16) -> u32 {
    let mask = u32::from(events.cast_unsigned());
    if cfg!(target_endian = "big") { mask.rotate_left(16) } else { mask }
}
