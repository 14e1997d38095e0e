//! The operation header: one operation's life, at one address.
//!
//! # Who may touch an operation, and when
//!
//! | State | Where it is | Who may read or write the header and what it points to |
//! |---|---|---|
//! | `Idle` | with its owner | the owner alone |
//! | `Queued` | in its handle's queue, behind another of its direction | the library, under the handle's lock |
//! | `Submitted` | in a submission queue or in the kernel | the kernel may write to the buffer; the library writes the header under the handle's lock |
//! | `Waiting` | waiting for a pooled buffer or for its packet to be taken | the library, under the handle's lock |
//! | `Idle` again | its [`Completion`](super::Completion) has been handed out | the owner alone |
//!
//! An operation leaves `Idle` in one place, `Handle::start`, and it counts as accepted from the
//! moment that function returns `Ok`. It is `Idle` again in one place: where its last completion
//! is handed out. In between exactly one of the rows holds, and the owner may do nothing with it
//! but pass its address to [`Handle::cancel`](super::Handle::cancel).

use std::{
    net::Shutdown,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use super::{Datagram, Handle};
use crate::error::{Error, ErrorKind};
use crate::sys::{
    Header, Message, MessageHeader, NO_DESCRIPTOR, RawDescriptor, Slice, Transmission,
};

/// What an operation asks for.
///
/// Pointers must stay valid, and what they point to must be left alone, from
/// [`Handle::start`](super::Handle::start) until the operation's last completion.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Request {
    /// Receive into a buffer of the caller's: at least one byte, or (`exact`) all of them.
    /// Completes with 0 at the end of the stream; an exact receive that meets the end early
    /// completes with what it got.
    #[doc(alias = "WSARecv")]
    Receive {
        /// Where to put the bytes.
        buffer: *mut u8,
        /// How many bytes fit.
        length: usize,
        /// Go on until the buffer is full.
        exact: bool,
    },
    /// Receive into a buffer of the port's pool, which is taken when data is there.
    ReceivePooled {
        /// Start the next receive by itself when one completes with data: completions then carry
        /// [`Completion::more`](super::Completion::more) until the last.
        repeat: bool,
    },
    /// Complete with 0 when there is something to receive, or the end of the stream: the
    /// zero-byte receive.
    Readable,
    /// Send all bytes of a buffer. A failure after a part was sent reports both.
    #[doc(alias = "WSASend")]
    Send {
        /// The bytes to send.
        buffer: *const u8,
        /// How many.
        length: usize,
    },
    /// Send all bytes of several buffers, in order.
    SendVectored {
        /// The slices.
        gather: *mut Gather,
    },
    /// Receive a datagram, or at least one byte of a stream, with what travels along.
    #[doc(alias = "WSARecvMsg")]
    ReceiveMessage {
        /// Where to put the bytes and the rest.
        message: *mut Message,
        /// Put the bytes into a buffer of the port's pool, instead of where the message says.
        pooled: bool,
    },
    /// Send a datagram, or all bytes of a part of a stream, with what travels along.
    #[doc(alias = "WSASendMsg")]
    SendMessage {
        /// The bytes and the rest.
        message: *mut Message,
    },
    /// Send bytes, a part of a file, and bytes again. Completes with how many were sent; fails with
    /// `UnexpectedEnd` if the file ends before its part does.
    #[doc(alias = "TransmitFile")]
    Transmit {
        /// What is sent.
        transmission: *mut Transmission,
    },
    /// Accept a connection. Completes with its descriptor in
    /// [`Completion::accepted`](super::Completion::accepted).
    #[doc(alias = "AcceptEx")]
    Accept {
        /// Start the next accept by itself when one completes.
        repeat: bool,
    },
    /// Accept a connection and receive its first data, at least one byte, into a buffer of the
    /// caller's. The operation's deadline counts from the accept. A connection that sends nothing
    /// in time completes the operation with `TimedOut`, and is closed.
    AcceptFirst {
        /// Where to put the first data.
        buffer: *mut u8,
        /// How many bytes fit.
        length: usize,
    },
    /// Connect to an address; or, on Windows, wait until a client has connected to an instance of a
    /// named pipe.
    #[doc(alias = "ConnectEx")]
    #[doc(alias = "ConnectNamedPipe")]
    Connect {
        /// A `sockaddr` of the system's; null for a pipe.
        address: *const u8,
        /// Its length in bytes.
        length: u32,
    },
    /// End one or both directions, after every send that was started before.
    #[doc(alias = "DisconnectEx")]
    Shutdown {
        /// Which direction.
        how: Shutdown,
    },
    /// End a connection, after every send that was started before; a named pipe's instance is taken
    /// from its client.
    #[cfg(windows)]
    #[doc(alias = "DisconnectEx")]
    #[doc(alias = "DisconnectNamedPipe")]
    Disconnect {
        /// Leave a socket so that it can connect again.
        reuse: bool,
    },
    /// Receive one datagram into a buffer of the caller's. What does not fit is lost.
    #[doc(alias = "WSARecvMsg")]
    #[doc(alias = "WSARecvFrom")]
    ReceiveFrom {
        /// Where to put the bytes.
        buffer: *mut u8,
        /// How many bytes fit.
        length: usize,
        /// Where to put what else there is to say of it.
        datagram: *mut Datagram,
    },
    /// The same into a buffer of the port's pool for datagrams.
    ReceiveFromPooled {
        /// Start the next receive by itself when one completes: completions then carry
        /// [`Completion::more`](super::Completion::more) until the last.
        repeat: bool,
        /// As for `ReceiveFrom`.
        datagram: *mut Datagram,
    },
    /// Send a buffer as one datagram, or as several.
    #[doc(alias = "WSASendMsg")]
    #[doc(alias = "WSASendTo")]
    SendTo {
        /// The bytes to send.
        buffer: *const u8,
        /// How many.
        length: usize,
        /// To whom, and how.
        datagram: *mut Datagram,
    },
    /// Receive what the network says of datagrams that were sent, again and again.
    ReceiveError {
        /// Where to put it.
        datagram: *mut Datagram,
    },
    /// Read from a file into a buffer of the caller's, as much as fits. Completes with less only
    /// at the end of the file, and with 0 beyond it.
    #[doc(alias = "ReadFile")]
    Read {
        /// Where to put the bytes.
        buffer: *mut u8,
        /// How many bytes fit.
        length: usize,
        /// The position in the file.
        offset: u64,
    },
    /// The same into a buffer of the port's pool.
    ReadPooled {
        /// The position in the file.
        offset: u64,
    },
    /// The same into several buffers, one after the other.
    #[doc(alias = "ReadFileScatter")]
    ReadVectored {
        /// Where to put the bytes.
        scatter: *mut Gather,
        /// The position in the file.
        offset: u64,
    },
    /// Write all bytes of a buffer to a file. A failure after a part was written reports both.
    #[doc(alias = "WriteFile")]
    Write {
        /// The bytes to write.
        buffer: *const u8,
        /// How many.
        length: usize,
        /// The position in the file, or [`Request::APPEND`].
        offset: u64,
    },
    /// Write all bytes of several buffers, in order.
    #[doc(alias = "WriteFileGather")]
    WriteVectored {
        /// The slices.
        gather: *mut Gather,
        /// The position in the file, or [`Request::APPEND`].
        offset: u64,
    },
    /// See to it that what has been written to a file is on the disk: writes that have completed,
    /// not those still in flight.
    #[doc(alias = "FlushFileBuffers")]
    Sync {
        /// The data and what is needed to find it, but not the times, for example.
        data_only: bool,
    },
    /// Make sure that there is room on the disk for a part of a file, which grows if it is smaller.
    Allocate {
        /// Where the part begins.
        offset: u64,
        /// How many bytes it has.
        length: u64,
    },
    /// Cut a file to a size, or grow it to that by a hole.
    #[doc(alias = "SetEndOfFile")]
    Truncate {
        /// The size.
        length: u64,
    },
}

/// The slices of a vectored operation, at a fixed address that the caller owns.
#[derive(Debug)]
pub struct Gather {
    slices: *mut Slice,
    count: usize,
    /// What the driver makes of them, where the system reads it.
    #[cfg_attr(windows, expect(dead_code, reason = "there, the slices are enough"))]
    pub(crate) header: MessageHeader,
}

impl Gather {
    /// The most slices one vectored operation may have.
    pub const MAX_SLICES: usize = 1024;

    /// Gathers `count` slices, at most [`Self::MAX_SLICES`], from `slices` on. The array of slices
    /// is used up on the way: it is advanced past what has been sent. Like the bytes it leads to
    /// it must stay valid as long as the operation.
    #[must_use]
    pub const fn new(slices: *mut Slice, count: usize) -> Self {
        // SAFETY: plain integers and pointers, for which zero is a value.
        let header = unsafe { std::mem::zeroed() };
        Self { slices, count, header }
    }

    /// The slices that are left.
    ///
    /// # Safety
    ///
    /// They must still be valid.
    pub(crate) unsafe fn slices(&mut self) -> &mut [Slice] {
        if self.count == 0 {
            return &mut [];
        }
        // SAFETY: the caller's promise, and that of whoever made the gather.
        unsafe { std::slice::from_raw_parts_mut(self.slices, self.count) }
    }

    /// Moves past bytes that have been sent. Returns whether any are left.
    ///
    /// # Safety
    ///
    /// The slices must still be valid.
    pub(crate) unsafe fn advance(&mut self, bytes: usize) -> bool {
        // SAFETY: the caller's promise.
        let slices = unsafe { self.slices() };
        let mut rest = bytes;
        let mut done = 0;
        while done < slices.len() && slices[done].length() <= rest {
            rest -= slices[done].length();
            done += 1;
        }
        let left = &mut slices[done..];
        if let Some(first) = left.first_mut() {
            first.skip(rest);
        }
        (self.slices, self.count) = (left.as_mut_ptr(), left.len());
        self.count > 0
    }
}

/// The queue of its handle that an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// One at a time reaches the kernel, in the order in which they were started.
    In,
    /// The same, apart from `In`.
    Out,
    /// The same, for what the network says of datagrams that were sent.
    Error,
    /// All reach the kernel at once, and are over in any order.
    Unordered,
}

impl Request {
    /// The position of a write that goes to wherever the file ends. Such writes of one handle are
    /// done one after the other, in the order in which they were started.
    #[doc(alias = "FILE_APPEND_DATA")]
    pub const APPEND: u64 = u64::MAX;

    pub(crate) fn direction(&self) -> Direction {
        match self {
            Self::Receive { .. }
            | Self::ReceivePooled { .. }
            | Self::ReceiveMessage { .. }
            | Self::Readable
            | Self::Accept { .. }
            | Self::AcceptFirst { .. } => Direction::In,
            Self::Send { .. }
            | Self::SendVectored { .. }
            | Self::SendMessage { .. }
            | Self::Transmit { .. }
            | Self::Connect { .. }
            | Self::Shutdown { .. }
            | Self::Write { offset: Self::APPEND, .. }
            | Self::WriteVectored { offset: Self::APPEND, .. } => Direction::Out,
            Self::Read { .. }
            | Self::ReadPooled { .. }
            | Self::ReadVectored { .. }
            | Self::Write { .. }
            | Self::WriteVectored { .. }
            | Self::Sync { .. }
            | Self::Allocate { .. }
            | Self::Truncate { .. } => Direction::Unordered,
            Self::ReceiveFrom { .. } | Self::ReceiveFromPooled { .. } => Direction::In,
            Self::SendTo { .. } => Direction::Out,
            #[cfg(windows)]
            Self::Disconnect { .. } => Direction::Out,
            Self::ReceiveError { .. } => Direction::Error,
        }
    }

    /// Whether it takes a buffer of the pool.
    pub(crate) fn is_pooled(&self) -> bool {
        matches!(
            self,
            Self::ReceivePooled { .. }
                | Self::ReadPooled { .. }
                | Self::ReceiveMessage { pooled: true, .. }
                | Self::ReceiveFromPooled { .. }
        )
    }

    #[cfg(unix)]
    pub(crate) fn transmission(&self) -> Option<*mut Transmission> {
        match self {
            Self::Transmit { transmission } => Some(*transmission),
            _ => None,
        }
    }

    pub(crate) fn repeats(&self) -> bool {
        match self {
            Self::ReceivePooled { repeat } | Self::Accept { repeat } => *repeat,
            Self::ReceiveFromPooled { repeat, .. } => *repeat,
            Self::ReceiveError { .. } => true,
            _ => false,
        }
    }

    /// Whether it is about a datagram of UDP.
    pub(crate) fn is_datagram(&self) -> bool {
        matches!(
            self,
            Self::ReceiveFrom { .. }
                | Self::ReceiveFromPooled { .. }
                | Self::SendTo { .. }
                | Self::ReceiveError { .. }
        )
    }

    /// What a datagram is received or sent with.
    pub(crate) fn datagram(&self) -> Option<*mut Datagram> {
        match *self {
            Self::ReceiveFrom { datagram, .. }
            | Self::ReceiveFromPooled { datagram, .. }
            | Self::SendTo { datagram, .. }
            | Self::ReceiveError { datagram } => Some(datagram),
            _ => None,
        }
    }
}

/// See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Idle,
    Queued,
    Submitted,
    Waiting,
}

/// The header of an operation, at a fixed address that the caller owns: the OVERLAPPED.
///
/// Put it first in a `#[repr(C)]` structure of your own, and the pointer in a
/// [`Completion`](super::Completion) is a pointer to that structure.
///
/// Its fields are in the order in which they lie: what every round needs comes first, in two lines
/// of the cache that the processor fetches together. With thousands of connections nothing of an
/// operation is in the cache any more when its round is over.
#[repr(C, align(128))]
#[derive(Debug)]
#[doc(alias = "OVERLAPPED")]
pub struct Operation {
    state: AtomicU8,
    /// The direction of its request, since it was started.
    pub(crate) direction: Direction,
    pub(crate) flags: Flags,
    /// Events of the driver's still to come, the deadline's included.
    pub(crate) outstanding: u8,
    /// The driver's step within a request that takes several.
    pub(crate) step: u8,
    /// The lane it was submitted to last.
    pub(crate) lane: u16,
    /// What the system said last: a number, or an error as a negative code.
    pub(crate) result: i32,
    /// 0, or the system's error code, negative.
    pub(crate) status: i32,
    /// The pooled buffer a receive has taken, or `u32::MAX`.
    pub(crate) buffer: u32,
    /// The descriptor of a connection an accept has produced, or `NO_DESCRIPTOR`.
    pub(crate) accepted: RawDescriptor,
    /// Bytes done so far.
    pub(crate) bytes: usize,
    pub(crate) handle: *const Handle,
    /// Next in whichever list of its handle the operation is in.
    pub(crate) next: *mut Self,
    pub(crate) request: Request,
    /// What it asks for when its request has been met.
    pub(crate) second: Option<Request>,
    /// The one before it in its list.
    pub(crate) previous: *mut Self,
    /// How long it may take once it has reached the kernel, if it is timed.
    pub(crate) deadline: Duration,
    /// The driver's own part.
    pub(crate) system: Header,
}

/// Facts about an operation in flight.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each named")]
pub(crate) struct Flags {
    /// Its user asked for it to be cancelled.
    pub(crate) cancel: bool,
    /// Its deadline passed.
    pub(crate) expired: bool,
    /// It has no packet.
    pub(crate) silent: bool,
    /// It has a deadline.
    pub(crate) timed: bool,
    /// It is among those of its handle that have no order.
    pub(crate) floating: bool,
    /// What is submitted now is a pause before the request is tried again.
    pub(crate) pausing: bool,
    /// The last receive of its handle left nothing behind in the socket.
    pub(crate) emptied: bool,
    /// It has waited for a pooled buffer, and has not had one since.
    pub(crate) starved: bool,
    /// Its request is in a submission queue or in the kernel.
    pub(crate) requested: bool,
    /// A cancellation of it is.
    #[cfg_attr(windows, expect(dead_code, reason = "there, it is over when it is asked for"))]
    pub(crate) cancelling: bool,
    /// Its deferred packet is the next of its serial handle.
    pub(crate) promised: bool,
    /// Its packet stands in the port's queue, before those of what its direction does next.
    pub(crate) early: bool,
}

pub(crate) const NO_BUFFER: u32 = u32::MAX;

impl Operation {
    /// An idle operation.
    #[must_use]
    pub const fn new(request: Request) -> Self {
        Self {
            state: AtomicU8::new(State::Idle as u8),
            direction: Direction::Unordered,
            flags: Flags {
                cancel: false,
                expired: false,
                silent: false,
                timed: false,
                floating: false,
                pausing: false,
                emptied: false,
                starved: false,
                requested: false,
                cancelling: false,
                promised: false,
                early: false,
            },
            outstanding: 0,
            step: 0,
            lane: 0,
            result: 0,
            status: 0,
            buffer: NO_BUFFER,
            accepted: NO_DESCRIPTOR,
            bytes: 0,
            handle: std::ptr::null(),
            next: std::ptr::null_mut(),
            previous: std::ptr::null_mut(),
            request,
            second: None,
            deadline: Duration::ZERO,
            system: Header::NEW,
        }
    }

    /// Lets the operation go on with a receive when what it sends has been sent, instead of
    /// completing: the two are one operation with one completion. It is that of the receive, unless
    /// sending fails; [`Self::is_second`] tells which. The receive takes its place behind others of
    /// its direction when its turn comes, and a deadline counts for each of the two.
    #[must_use]
    #[doc(alias = "TransactNamedPipe")]
    pub const fn with_second(mut self, request: Request) -> Self {
        self.second = Some(request);
        self
    }

    /// Of an operation made by [`Self::with_second`], whose owner asks after its completion:
    /// whether it went on with its second request.
    #[must_use]
    pub const fn is_second(&self) -> bool {
        self.second.is_none()
    }

    /// Whether its second request can follow the first.
    #[inline(never)]
    pub(crate) fn check_order(&self) -> Result<(), Error> {
        let sends = matches!(
            self.request,
            Request::Send { .. }
                | Request::SendVectored { .. }
                | Request::SendMessage { .. }
                | Request::Transmit { .. }
        );
        let receives = matches!(
            self.second,
            Some(
                Request::Receive { .. }
                    | Request::ReceivePooled { .. }
                    | Request::ReceiveMessage { .. }
                    | Request::Readable
            )
        );
        if sends && receives {
            return Ok(());
        }
        Err(Error::of(ErrorKind::InvalidInput, "start")
            .with_remedy("only a receive can follow, and only what sends to a stream"))
    }

    /// Limits how long the operation may take, counted from when it reaches the kernel (not
    /// while it stands behind another of its direction). It then completes with `TimedOut`.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self.flags.timed = true;
        self
    }

    /// Gives the operation no packet: nobody hears of its end. Its memory must then stay valid
    /// until the port is closed and drained.
    #[must_use]
    #[doc(alias = "hEvent")]
    pub const fn without_packet(mut self) -> Self {
        self.flags.silent = true;
        self
    }

    /// Whether the deadline counts in the step that comes next.
    pub(crate) fn clock_runs(&self) -> bool {
        !matches!(self.request, Request::AcceptFirst { .. }) || self.accepted != NO_DESCRIPTOR
    }

    /// Whether the operation is in flight. Meant for operations without a packet, which have no
    /// other way to tell that they are over; any thread may ask.
    #[must_use]
    #[doc(alias = "HasOverlappedIoCompleted")]
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) != State::Idle as u8
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Idle,
            1 => State::Queued,
            2 => State::Submitted,
            _ => State::Waiting,
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Makes an idle operation a new one; what `begin` sets is left to that.
    pub(crate) fn prepare(&mut self, request: Request, deadline: Option<Duration>, silent: bool) {
        self.request = request;
        self.second = None;
        self.flags.timed = deadline.is_some();
        if let Some(deadline) = deadline {
            self.deadline = deadline;
        }
        self.flags.silent = silent;
    }

    /// Prepares the header for a new flight.
    pub(crate) fn begin(&mut self, handle: &Handle, direction: Direction) {
        self.handle = handle;
        self.direction = direction;
        self.status = 0;
        let Flags { silent, timed, .. } = self.flags;
        self.flags = Flags { silent, timed, ..Flags::default() };
        self.next_round();
    }

    /// Forgets what the last round of a repeating operation has produced.
    pub(crate) fn next_round(&mut self) {
        self.bytes = 0;
        self.flags.starved = false;
        self.accepted = NO_DESCRIPTOR;
        self.buffer = NO_BUFFER;
        self.step = 0;
        if self.flags.timed {
            self.system.restart_clock();
        }
    }
}
