//! What each request means to Windows.

use std::{
    io,
    mem::{self, offset_of},
    net::Shutdown,
    os::windows::io::{BorrowedSocket, IntoRawSocket},
    ptr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use windows_sys::Win32::{
    Foundation::{
        ERROR_BROKEN_PIPE, ERROR_HANDLE_EOF, ERROR_NETNAME_DELETED, ERROR_PIPE_NOT_CONNECTED,
        NTSTATUS, RtlNtStatusToDosError, STATUS_BUFFER_OVERFLOW,
    },
    Networking::WinSock as ws,
    System::IO::OVERLAPPED,
};

use super::{
    CANCELLED, FAILED, NO_DESCRIPTOR, OwnedDescriptor, Registration, raw, TIMED_OUT,
    Slice, borrow,
    file::{self, Chore},
    first::Signal,
    pipe,
    port::{CompletionPort, Entry},
    socket::{self, Accepting},
    timers::{self, Timer},
    transmit::{Next, Transmission},
    udp,
};
use crate::{
    error::{Error, ErrorKind},
    raw::{
        Handle,
        operation::{Gather, NO_BUFFER, Operation, Request},
        port::Setup,
    },
    sys::{Kind, Step, Tried, pool::Pool},
};

/// How long an accept pauses when there are no sockets or no memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What the key of a packet says of it.
pub(crate) mod key {
    /// A call of an operation's is over: every socket is associated under this key.
    pub(crate) const CALL: usize = 0;
    /// The same without the kernel: its result stands in the operation's header.
    pub(crate) const RESULT: usize = 1;
    /// The first receive of an accepted connection is over.
    pub(crate) const FIRST: usize = 2;
    /// A pause is over.
    pub(crate) const PAUSE: usize = 3;
    /// A deadline has passed.
    pub(crate) const DEADLINE: usize = 4;
    /// A file has been synced, cut or grown; the bytes are an error's code.
    pub(crate) const CHORE: usize = 5;
    /// Something stands in the port's own queue.
    pub(crate) const QUEUED: usize = 6;
    /// Somebody should look whether the port is closed.
    pub(crate) const WAKE: usize = 7;
}

/// What the driver keeps in the header of an operation.
#[repr(C)]
pub(crate) struct Header {
    /// What the kernel knows the operation by.
    overlapped: OVERLAPPED,
    /// The flags of a receive, which the kernel may write.
    flags: u32,
    /// When the deadline passes, once it counts.
    until: Option<Instant>,
    /// The time that is set, for the deadline or for a pause.
    timer: Option<Timer>,
    accepting: Option<Box<Accepting>>,
    signal: Option<Box<Signal>>,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Header {
    pub(crate) const NEW: Self = Self {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        overlapped: unsafe { mem::zeroed() },
        flags: 0,
        until: None,
        timer: None,
        accepting: None,
        signal: None,
    };

    /// Lets the deadline count anew.
    pub(crate) fn restart_clock(&mut self) {
        self.until = None;
    }
}

/// How a request has begun.
enum Begun {
    /// A packet comes.
    Called,
    /// It is over already, without one, having moved so many bytes.
    Over(usize),
}

/// The driver: one for a port, whose running slots are the kernel's business.
#[derive(Debug)]
pub(crate) struct Lane {
    port: Arc<CompletionPort>,
    pool: Arc<Pool>,
    datagrams: Arc<Pool>,
}

/// What a worker takes from the port about an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) operation: *mut Operation,
    of: Source,
}

/// What of an operation an event is about.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// A call of an associated socket's, with its status and its bytes.
    Call { status: NTSTATUS, bytes: u32 },
    /// The first receive of an accepted connection.
    First,
    /// What was done on another thread, with its error.
    Chore { code: u32 },
    /// What the driver has found out by itself.
    Result,
    Pause,
    Deadline,
}

impl Event {
    /// What a packet says of an operation. None: it is not about one.
    pub(crate) fn of(entry: Entry) -> Option<Self> {
        let of = match entry.key {
            key::CALL => Source::Call { status: entry.status, bytes: entry.bytes },
            key::RESULT => Source::Result,
            key::FIRST => Source::First,
            key::PAUSE => Source::Pause,
            key::DEADLINE => Source::Deadline,
            key::CHORE => Source::Chore { code: entry.bytes },
            _ => return None,
        };
        let mut operation = entry.pointer.cast::<Operation>();
        if entry.key == key::CALL {
            operation = operation.wrapping_byte_sub(offset_of!(Operation, system.overlapped));
        }
        Some(Self { operation, of })
    }
}

impl Lane {
    pub(crate) fn new(port: &Arc<CompletionPort>, setup: &Setup) -> io::Result<Self> {
        let pool = Pool::new(setup.pool_count, setup.pool_size, None)?;
        let datagrams = Pool::new(setup.datagram_pool_count, setup.datagram_pool_size, None)?;
        Ok(Self { port: port.clone(), pool: Arc::new(pool), datagrams: Arc::new(datagrams) })
    }

    /// Those that an operation takes, or has taken.
    pub(crate) fn pool_of(&self, operation: &Operation) -> &Arc<Pool> {
        if operation.request.is_datagram() { &self.datagrams } else { &self.pool }
    }

    /// All from which operations take buffers.
    pub(crate) fn pools(&self) -> [&Arc<Pool>; 2] {
        [&self.pool, &self.datagrams]
    }

    /// Tries to do the next step of an operation on a socket for datagrams at once: nothing does
    /// that here.
    ///
    /// # Safety
    ///
    /// As for [`Self::push`].
    pub(crate) unsafe fn attempt(&self, _operation: &mut Operation) -> Option<Step> {
        None
    }

    /// Takes the descriptor of a handle in: its packets come to this port from here on.
    pub(crate) fn register(
        &self,
        descriptor: &OwnedDescriptor,
        kind: Kind,
    ) -> Result<Registration, Error> {
        const NOT_OVERLAPPED: &str =
            "it has to be opened for overlapped operations, as Port::open, Port::pipe_from and \
             Port::pipe_to do, and may belong to one port only";
        self.port.associate(raw(descriptor), key::CALL).map_err(|error| {
            let failed = Error::from_io(&error, "associate");
            match (failed.kind(), kind) {
                // The kernel says no more than that.
                (ErrorKind::InvalidInput, Kind::Socket) => {
                    Error::of(ErrorKind::Associated, "associate")
                }
                (ErrorKind::InvalidInput, _) => failed.with_remedy(NOT_OVERLAPPED),
                _ => failed,
            }
        })?;
        let mut registration = Registration::default();
        if let OwnedDescriptor::Socket(socket) = descriptor {
            match socket::prepare(socket) {
                Ok(datagrams) => registration.datagrams = datagrams,
                Err(error) => log::debug!("a socket is used as it is: {error}"),
            }
        }
        Ok(registration)
    }

    /// Lets the descriptor of a handle go that is about to be closed.
    pub(crate) fn unregister(&self, _registration: &Registration) {}

    /// Begins the next step of an operation.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, its handle's lock is held, and its pointers are good.
    pub(crate) unsafe fn push(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise: nobody else touches the header under the handle's lock.
        let op = unsafe { &mut *operation };
        let timed = op.flags.timed && !op.flags.pausing && op.clock_runs();
        if timed && op.system.until.is_none() {
            op.system.until = Instant::now().checked_add(op.deadline);
        }
        if op.flags.pausing {
            let when = Instant::now() + ACCEPT_PAUSE;
            op.system.timer = Some(timers::set(&self.port, when, key::PAUSE, operation)?);
        } else if timed && let Some(until) = op.system.until {
            op.system.timer = Some(timers::set(&self.port, until, key::DEADLINE, operation)?);
        }
        op.outstanding = 1 + u8::from(!op.flags.pausing && op.system.timer.is_some());
        op.flags.requested = true;
        if op.flags.pausing {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        op.result = match unsafe { self.call(operation) } {
            Ok(Begun::Called) => return Ok(()),
            Ok(Begun::Over(bytes)) => i32::try_from(bytes).unwrap_or(i32::MAX),
            // There is no packet for a call that is refused: so that there is one for every
            // operation, whenever it fails, it is posted.
            Err(error) => -error.raw_os_error().unwrap_or(FAILED),
        };
        let Err(error) = self.port.post(0, key::RESULT, operation) else { return Ok(()) };
        op.outstanding -= 1;
        op.flags.requested = false;
        op.bytes = 0;
        self.release_empty(op);
        self.stop_clock(op);
        // A deadline that has passed meanwhile brings a packet: what the result is worth is seen
        // then.
        if op.outstanding > 0 { Ok(()) } else { Err(error) }
    }

    /// Makes the call that a request asks for next.
    ///
    /// # Safety
    ///
    /// As for `push`.
    unsafe fn call(&self, operation: *mut Operation) -> io::Result<Begun> {
        // SAFETY: the caller's promise.
        let op = unsafe { &mut *operation };
        // SAFETY: an operation in flight has a handle, which outlives it (the contract of start).
        let socket = unsafe { socket_of(op) };
        op.system.overlapped = OVERLAPPED::default();
        op.system.flags = 0;
        // SAFETY: as above.
        if unsafe { &*op.handle }.kind() == Kind::Pipe {
            // SAFETY: the caller's promise.
            return unsafe { self.call_pipe(op) };
        }
        let overlapped = &raw mut op.system.overlapped;
        let flags = &raw mut op.system.flags;
        // SAFETY: in all of them: the operation is in flight until its packet, so its header and
        // what its request points to stay where they are, untouched; `bytes` never exceeds
        // `length`.
        unsafe {
            match op.request {
                Request::Receive { .. } | Request::ReceivePooled { .. } | Request::Readable
                    if (*op.handle).registration().ended.load(Ordering::Relaxed) =>
                {
                    return self.receive_rest(op);
                }
                Request::Readable if (*op.handle).registration().datagrams => {
                    socket::wait_for_datagram(socket, flags, overlapped)?;
                }
                Request::Receive { length: 0, .. }
                | Request::Readable
                | Request::ReceivePooled { .. } => {
                    let nothing = socket::slice(ptr::null_mut(), 0);
                    socket::receive(socket, nothing, flags, overlapped)?;
                }
                Request::Receive { buffer, length, .. } => {
                    let rest = socket::slice(buffer.add(op.bytes), length - op.bytes);
                    socket::receive(socket, rest, flags, overlapped)?;
                }
                Request::Send { buffer, length } => {
                    let rest = buffer.add(op.bytes).cast_mut();
                    let rest = socket::slice(rest, length - op.bytes);
                    socket::send(socket, &[rest], overlapped)?;
                }
                Request::SendVectored { gather } => {
                    socket::send(socket, slices(gather), overlapped)?;
                }
                Request::AcceptFirst { buffer, length } if op.accepted != NO_DESCRIPTOR => {
                    let signal = Signal::new(&self.port, key::FIRST, operation)?;
                    op.system.overlapped.hEvent = signal.event();
                    let accepted = borrow(op.accepted);
                    socket::receive(accepted, socket::slice(buffer, length), flags, overlapped)?;
                    op.system.signal = Some(signal);
                }
                Request::Accept { .. } | Request::AcceptFirst { .. } => {
                    let accepting = op.system.accepting.insert(Accepting::new(socket)?);
                    accepting.start(socket, overlapped)?;
                }
                Request::Connect { address, length } => {
                    socket::connect(socket, address, length, overlapped)?;
                }
                Request::ReceiveMessage { message, pooled: false } => {
                    let Slice(room) = (*message).slice;
                    socket::receive_from(socket, room, message, flags, overlapped)?;
                }
                Request::ReceiveMessage { message, .. } => {
                    // Without a buffer, one is taken when this is evaluated.
                    let Ok(id) = u16::try_from(op.buffer) else { return Ok(Begun::Over(0)) };
                    let room = socket::slice(self.pool.address(id), self.pool.size());
                    socket::receive_from(socket, room, message, flags, overlapped)?;
                }
                Request::SendMessage { message } => {
                    socket::send_to(socket, message, overlapped)?;
                }
                Request::ReceiveFrom { buffer, length, datagram } => {
                    let header = &raw mut (*datagram).system;
                    udp::receive(socket, header, buffer, length, overlapped)?;
                }
                Request::ReceiveFromPooled { datagram, .. } => {
                    if op.buffer == NO_BUFFER {
                        // Without one, it waits for one when this is evaluated.
                        let Some(id) = self.datagrams.take() else { return Ok(Begun::Over(0)) };
                        op.buffer = u32::from(id);
                    }
                    let buffer = self.datagrams.address(u16::try_from(op.buffer).unwrap_or(0));
                    let header = &raw mut (*datagram).system;
                    udp::receive(socket, header, buffer, self.datagrams.size(), overlapped)?;
                }
                Request::SendTo { buffer, length, datagram } => {
                    let (rest, left) = (buffer.add(op.bytes), length - op.bytes);
                    udp::send(socket, &raw mut (*datagram).system, rest, left, overlapped)?;
                }
                Request::ReceiveError { .. } => {
                    return Err(io::Error::from_raw_os_error(ws::WSAEOPNOTSUPP));
                }
                Request::Shutdown { how } => {
                    end(op, how)?;
                    return Ok(Begun::Over(0));
                }
                Request::Disconnect { reuse } => {
                    end_receiving(op);
                    socket::disconnect(socket, reuse, overlapped)?;
                }
                Request::Read { buffer, length, offset } => {
                    let (buffer, length) = (buffer.add(op.bytes), length - op.bytes);
                    return read(op, buffer, length, offset);
                }
                Request::ReadPooled { offset } => {
                    // Without a buffer, one is taken when this is evaluated.
                    let Ok(id) = u16::try_from(op.buffer) else { return Ok(Begun::Over(0)) };
                    let buffer = self.pool.address(id).add(op.bytes);
                    return read(op, buffer, self.pool.size() - op.bytes, offset);
                }
                Request::ReadVectored { scatter, offset } => {
                    let Slice(next) = next_slice(scatter);
                    return read(op, next.buf, next.len as usize, offset);
                }
                Request::Write { buffer, length, offset } => {
                    let (buffer, length) = (buffer.add(op.bytes), length - op.bytes);
                    return write(op, buffer, length, offset);
                }
                Request::WriteVectored { gather, offset } => {
                    let Slice(next) = next_slice(gather);
                    return write(op, next.buf, next.len as usize, offset);
                }
                Request::Transmit { transmission } => {
                    transmit(socket, &mut *transmission, overlapped)?;
                }
                Request::Sync { .. } => self.chore(operation, Chore::Sync)?,
                Request::Allocate { offset, length } => {
                    self.chore(operation, Chore::Allocate { offset, length })?;
                }
                Request::Truncate { length } => {
                    self.chore(operation, Chore::Truncate { length })?;
                }
            }
        }
        Ok(Begun::Called)
    }

    /// The same for an end of a pipe.
    ///
    /// # Safety
    ///
    /// As for `push`.
    unsafe fn call_pipe(&self, op: &mut Operation) -> io::Result<Begun> {
        // SAFETY: an operation in flight has a handle, which outlives it.
        let pipe = unsafe { &*op.handle }.fd();
        let overlapped = &raw mut op.system.overlapped;
        // SAFETY: in all of them: the operation is in flight until its packet, so its header and
        // what its request points to stay where they are, untouched; `bytes` never exceeds
        // `length`.
        unsafe {
            match op.request {
                Request::ReceivePooled { .. } if op.buffer != NO_BUFFER => {
                    let buffer = self.pool.address(u16::try_from(op.buffer).unwrap_or(0));
                    pipe::read(pipe, buffer, self.pool.size(), overlapped)?;
                }
                Request::Receive { length: 0, .. }
                | Request::Readable
                | Request::ReceivePooled { .. } => {
                    pipe::read(pipe, ptr::null_mut(), 0, overlapped)?;
                }
                Request::Receive { buffer, length, .. } => {
                    let (rest, left) = (buffer.add(op.bytes), length - op.bytes);
                    pipe::read(pipe, rest, left, overlapped)?;
                }
                Request::Send { buffer, length } => {
                    if length == op.bytes {
                        return Ok(Begun::Over(0));
                    }
                    let (rest, left) = (buffer.add(op.bytes), length - op.bytes);
                    pipe::write(pipe, rest, left, overlapped)?;
                }
                Request::SendVectored { gather } => {
                    let Slice(next) = next_slice(gather);
                    if next.len == 0 {
                        return Ok(Begun::Over(0));
                    }
                    pipe::write(pipe, next.buf, next.len as usize, overlapped)?;
                }
                Request::Connect { address, .. } if address.is_null() => {
                    if !pipe::connect(pipe, overlapped)? {
                        return Ok(Begun::Over(0));
                    }
                }
                Request::Disconnect { .. } => {
                    pipe::disconnect(pipe)?;
                    return Ok(Begun::Over(0));
                }
                // Only for sockets, or for files.
                _ => return Err(io::Error::from_raw_os_error(ws::WSAENOTSOCK)),
            }
        }
        Ok(Begun::Called)
    }

    /// Has something done that no call does without waiting.
    fn chore(&self, operation: *mut Operation, chore: Chore) -> io::Result<()> {
        // SAFETY: an operation in flight has a handle, which outlives it.
        let file = unsafe { &*(*operation).handle }.fd();
        file::start(&self.port, key::CHORE, operation, file, chore)
    }

    /// Receives what has arrived on a socket whose receiving direction was ended: if that is
    /// nothing, the end.
    ///
    /// # Safety
    ///
    /// As for `push`.
    unsafe fn receive_rest(&self, op: &mut Operation) -> io::Result<Begun> {
        let Request::Receive { buffer, length: length @ 1.., .. } = op.request else {
            // What is there for a pooled buffer is found when one is taken.
            return Ok(Begun::Over(0));
        };
        // SAFETY: the caller's promise; `bytes` never exceeds `length`.
        let received = unsafe {
            let rest = socket::slice(buffer.add(op.bytes), length - op.bytes);
            socket::receive_now(socket_of(op), rest)
        };
        match received {
            Ok(bytes) => Ok(Begun::Over(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Begun::Over(0)),
            Err(error) => Err(error),
        }
    }

    /// Asks for what `push` began last to be cancelled. It may come too late.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, submitted, and its handle's lock is held.
    pub(crate) unsafe fn push_cancel(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise: nobody else touches the header under the handle's lock.
        let op = unsafe { &mut *operation };
        if !op.flags.pausing {
            self.cancel(op);
        } else if op.system.timer.take_if(|timer| timers::clear(*timer)).is_some() {
            // It is over now.
            let now = Instant::now();
            op.system.timer = Some(timers::set(&self.port, now, key::PAUSE, operation)?);
        }
        Ok(())
    }

    fn cancel(&self, op: &Operation) {
        let overlapped = &raw const op.system.overlapped;
        if op.system.signal.is_some() {
            // SAFETY: the connection that the operation has accepted, and still has.
            socket::cancel(unsafe { borrow(op.accepted) }, overlapped);
        } else {
            // SAFETY: an operation in flight has a handle, which outlives it.
            socket::cancel(unsafe { socket_of(op) }, overlapped);
        }
    }

    /// Takes a deadline back, unless its packet is on its way.
    fn stop_clock(&self, op: &mut Operation) {
        if op.system.timer.take_if(|timer| timers::clear(*timer)).is_some() {
            op.outstanding -= 1;
        }
    }

    /// Works out what an event means for its operation.
    ///
    /// # Safety
    ///
    /// The event has not been digested before, and the lock of its operation's handle is held.
    pub(crate) unsafe fn digest(&self, event: Event) -> Step {
        // SAFETY: an operation with an event to come is in flight, so its header is alive, and
        // nobody else touches it under the lock.
        let op = unsafe { &mut *event.operation };
        op.outstanding -= 1;
        match event.of {
            Source::Deadline => {
                op.system.timer = None;
                op.flags.expired = true;
                if op.flags.requested {
                    self.cancel(op);
                }
            }
            of => {
                match of {
                    Source::Call { status, bytes } => self.note(op, status, bytes),
                    Source::First => self.note_first(op),
                    Source::Chore { code } => op.result = -code.cast_signed(),
                    _ => {}
                }
                op.flags.requested = false;
                if op.flags.pausing {
                    op.system.timer = None;
                } else {
                    self.stop_clock(op);
                }
            }
        }
        if op.outstanding > 0 {
            return Step::Pending;
        }
        // SAFETY: as above.
        unsafe { self.evaluate(op) }
    }

    fn note(&self, op: &mut Operation, status: NTSTATUS, bytes: u32) {
        // SAFETY: an operation in flight has a handle, which outlives it.
        let kind = unsafe { &*op.handle }.kind();
        // Of a message in a pipe, what did not fit comes next.
        let in_part = status == STATUS_BUFFER_OVERFLOW && kind == Kind::Pipe;
        op.result = if status >= 0 || in_part {
            bytes.cast_signed()
        } else {
            // What was cancelled may have been done in part.
            let done = usize::try_from(bytes).unwrap_or(0);
            op.bytes += done;
            // SAFETY: the gather, its slices and the transmission live as long as the operation.
            let _more = unsafe {
                match op.request {
                    Request::SendVectored { gather } => (*gather).advance(done),
                    Request::Transmit { transmission } => (*transmission).advance(done),
                    _ => false,
                }
            };
            // SAFETY: an operation in flight has a handle, which outlives it; its call is over.
            -unsafe {
                match kind {
                    Kind::Socket => {
                        socket::error_of(socket_of(op), &raw const op.system.overlapped, status)
                    }
                    _ => RtlNtStatusToDosError(status).cast_signed(),
                }
            }
        };
    }

    fn note_first(&self, op: &mut Operation) {
        if let Some(mut signal) = op.system.signal.take() {
            signal.has_fired();
        }
        let overlapped = &op.system.overlapped;
        #[expect(clippy::cast_possible_truncation, reason = "an NTSTATUS has 32 bits, and so")]
        let (status, bytes) = (overlapped.Internal as NTSTATUS, overlapped.InternalHigh as i32);
        op.result = if status >= 0 {
            bytes
        } else {
            // SAFETY: the connection that the operation has accepted; its call is over.
            -unsafe {
                let accepted = borrow(op.accepted);
                socket::error_of(accepted, &raw const op.system.overlapped, status)
            }
        };
    }

    /// What a result means for its request.
    ///
    /// # Safety
    ///
    /// The operation is in flight, all events of its last step have come, and its pointers are
    /// good.
    unsafe fn evaluate(&self, op: &mut Operation) -> Step {
        if op.flags.pausing {
            op.flags.pausing = false;
            return if op.flags.cancel { fail(op, CANCELLED) } else { Step::Again };
        }
        let Ok(done) = usize::try_from(op.result) else {
            return self.evaluate_error(op, -op.result);
        };
        // SAFETY: an operation in flight has a handle, which outlives it.
        let (socket, pipe) = unsafe { (socket_of(op), (*op.handle).kind() == Kind::Pipe) };
        match op.request {
            // Somebody has written nothing: the end has a code of its own.
            Request::Receive { length: 1.., .. } if pipe && done == 0 => go_on(op),
            Request::ReceivePooled { .. } if pipe => {
                if op.buffer == NO_BUFFER {
                    let Some(id) = self.pool.take() else { return Step::Starve };
                    op.buffer = u32::from(id);
                    return Step::Again;
                }
                op.bytes = done;
                if done == 0 { go_on(op) } else { Step::Finish }
            }
            Request::Connect { .. } if pipe => Step::Finish,
            Request::Receive { length, exact, .. } => {
                op.bytes += if length == 0 { 0 } else { done };
                if exact && done > 0 && op.bytes < length { go_on(op) } else { Step::Finish }
            }
            Request::ReceivePooled { .. } => self.fill(op),
            Request::Send { length, .. } => {
                op.bytes += done;
                if op.bytes < length { go_on(op) } else { Step::Finish }
            }
            Request::SendVectored { gather } => {
                op.bytes += done;
                // SAFETY: the gather and its slices live as long as the operation.
                if unsafe { (*gather).advance(done) } { go_on(op) } else { Step::Finish }
            }
            Request::AcceptFirst { .. } if op.accepted != NO_DESCRIPTOR => {
                op.bytes = done;
                Step::Finish
            }
            Request::Accept { .. } | Request::AcceptFirst { .. } => {
                let accepting = op.system.accepting.take();
                match accepting.map(|accepting| accepting.finish(socket)) {
                    Some(Ok(accepted)) => op.accepted = accepted.into_raw_socket() as _,
                    // It was lost before anybody has seen it.
                    Some(Err(_)) | None => return go_on(op),
                }
                match op.request {
                    Request::AcceptFirst { .. } => go_on(op),
                    _ => Step::Finish,
                }
            }
            Request::Connect { .. } => match socket::finish_connect(socket) {
                Ok(()) => Step::Finish,
                Err(error) => fail(op, error.raw_os_error().unwrap_or(FAILED)),
            },
            Request::Read { length, .. } => {
                op.bytes += done;
                if done > 0 && op.bytes < length { go_on(op) } else { Step::Finish }
            }
            Request::ReadPooled { .. }
            | Request::ReceiveMessage { pooled: true, .. }
            | Request::ReceiveFromPooled { .. }
                if op.buffer == NO_BUFFER =>
            {
                let Some(id) = self.pool_of(op).take() else { return Step::Starve };
                op.buffer = u32::from(id);
                Step::Again
            }
            Request::ReadPooled { .. } => {
                op.bytes += done;
                if done > 0 && op.bytes < self.pool.size() { return go_on(op) };
                self.release_empty(op);
                Step::Finish
            }
            Request::ReceiveMessage { .. } => {
                op.bytes = done;
                self.release_empty(op);
                Step::Finish
            }
            Request::SendMessage { .. } => {
                op.bytes = done;
                Step::Finish
            }
            Request::ReceiveFrom { datagram, .. }
            | Request::ReceiveFromPooled { datagram, .. } => {
                op.bytes = done;
                // SAFETY: the datagram lives as long as the operation, and its call is over.
                unsafe { (*datagram).system.came(done, false) };
                Step::Finish
            }
            Request::SendTo { length, .. } => {
                op.bytes += done;
                if op.bytes < length { go_on(op) } else { Step::Finish }
            }
            Request::Transmit { transmission } => {
                op.bytes += done;
                // SAFETY: the transmission lives as long as the operation.
                if unsafe { (*transmission).advance(done) } { go_on(op) } else { Step::Finish }
            }
            Request::ReadVectored { scatter, .. } => {
                op.bytes += done;
                // SAFETY: the gather and its slices live as long as the operation.
                let more = unsafe { (*scatter).advance(done) };
                if done > 0 && more { go_on(op) } else { Step::Finish }
            }
            Request::Write { length, .. } => {
                op.bytes += done;
                if op.bytes < length { go_on(op) } else { Step::Finish }
            }
            Request::WriteVectored { gather, .. } => {
                op.bytes += done;
                // SAFETY: the gather and its slices live as long as the operation.
                if unsafe { (*gather).advance(done) } { go_on(op) } else { Step::Finish }
            }
            Request::Disconnect { reuse } => {
                if reuse && !pipe {
                    // The next connection receives again.
                    // SAFETY: an operation in flight has a handle, which outlives it.
                    let registration = unsafe { &*op.handle }.registration();
                    registration.ended.store(false, Ordering::Relaxed);
                }
                Step::Finish
            }
            Request::Readable
            | Request::ReceiveError { .. }
            | Request::Shutdown { .. }
            | Request::Sync { .. }
            | Request::Allocate { .. }
            | Request::Truncate { .. } => Step::Finish,
        }
    }

    /// Takes a buffer of the pool for what is there to be received.
    fn fill(&self, op: &mut Operation) -> Step {
        let Some(id) = self.pool.take() else { return Step::Starve };
        // SAFETY: an operation in flight has a handle, which outlives it; the buffer is ours.
        let received = unsafe {
            let slice = socket::slice(self.pool.address(id), self.pool.size());
            socket::receive_now(socket_of(op), slice)
        };
        if let Ok(bytes @ 1..) = received {
            (op.buffer, op.bytes) = (u32::from(id), bytes);
            return Step::Finish;
        }
        self.pool.give_back(id);
        match received {
            Ok(_) => Step::Finish,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // SAFETY: an operation in flight has a handle, which outlives it.
                let ended = unsafe { &*op.handle }.registration().ended.load(Ordering::Relaxed);
                // Otherwise somebody else has taken what was there.
                if ended { Step::Finish } else { go_on(op) }
            }
            Err(error) => fail(op, error.raw_os_error().unwrap_or(FAILED)),
        }
    }

    /// Gives a buffer of the pool back that holds nothing.
    fn release_empty(&self, op: &mut Operation) {
        if op.bytes == 0
            && let Ok(id) = u16::try_from(op.buffer)
        {
            self.pool_of(op).give_back(id);
            op.buffer = NO_BUFFER;
        }
    }

    fn evaluate_error(&self, op: &mut Operation, code: i32) -> Step {
        op.system.accepting = None;
        if let Request::ReceiveMessage { message, .. } = op.request
            && code == ws::WSAEMSGSIZE
        {
            // It has filled the room, as has been noted, and the rest is lost.
            // SAFETY: the message lives as long as the operation.
            unsafe { (*message).truncated = true };
            return Step::Finish;
        }
        if code == ws::WSAEMSGSIZE {
            match op.request {
                // There is one, which is still there.
                Request::Readable => return Step::Finish,
                Request::ReceiveFrom { datagram, .. }
                | Request::ReceiveFromPooled { datagram, .. } => {
                    // SAFETY: the datagram lives as long as the operation, and its call is over.
                    unsafe { (*datagram).system.came(op.bytes, true) };
                    return Step::Finish;
                }
                _ => {}
            }
        }
        if op.request.is_pooled() {
            self.release_empty(op);
        }
        let accepting = op.accepted == NO_DESCRIPTOR
            && matches!(op.request, Request::Accept { .. } | Request::AcceptFirst { .. });
        match code {
            // The other end of a pipe is gone.
            PIPE_ENDED | PIPE_LEFT
                if matches!(
                    op.request,
                    Request::Receive { .. } | Request::ReceivePooled { .. } | Request::Readable
                ) =>
            {
                Step::Finish
            }
            // The end of the file, of which a transmission was promised more.
            END_OF_FILE if !matches!(op.request, Request::Transmit { .. }) => Step::Finish,
            CANCELLED if op.flags.expired => fail(op, TIMED_OUT),
            CANCELLED if op.flags.cancel => fail(op, CANCELLED),
            // Nobody asked for that: a thread is gone, and took its calls with it.
            CANCELLED if !matches!(op.request, Request::Connect { .. }) => Step::Again,
            ws::WSAEMFILE | ws::WSAENOBUFS if accepting => {
                if op.flags.cancel {
                    return fail(op, CANCELLED);
                }
                // Once, not at every try.
                if mem::replace(&mut op.step, 1) == 0 {
                    let error = io::Error::from_raw_os_error(code);
                    log::warn!("accept: {error}; trying again every {ACCEPT_PAUSE:?}");
                }
                op.flags.pausing = true;
                Step::Again
            }
            // The socket tells what an earlier datagram has met; this one has not come, or has not
            // been sent.
            _ if udp::is_of_an_earlier_send(code)
                && match op.request {
                    Request::ReceiveFrom { .. } | Request::ReceiveFromPooled { .. } => true,
                    // SAFETY: the datagram lives as long as the operation, and its call is over.
                    Request::SendTo { datagram, .. } => unsafe {
                        (*datagram).system.may_try_again()
                    },
                    _ => false,
                } =>
            {
                go_on(op)
            }
            // What sends cannot be given several datagrams at once.
            ws::WSAEINVAL | ws::WSAEMSGSIZE | ws::WSAEOPNOTSUPP
                if let Request::SendTo { datagram, .. } = op.request
                    // SAFETY: nothing is outstanding, so nobody else uses the datagram, which lives
                    // as long as the operation; its handle does, too.
                    && unsafe {
                        (*op.handle).refuse_offload(code == ws::WSAEOPNOTSUPP);
                        (*datagram).system.give_up_offload()
                    } =>
            {
                go_on(op)
            }
            // What went wrong with a connection that nobody has seen yet.
            ws::WSAECONNRESET | ws::WSAECONNABORTED | NETNAME_DELETED if accepting => go_on(op),
            _ => fail(op, code),
        }
    }
}

/// Starts to send what a transmission has next.
///
/// # Safety
///
/// The transmission is good, and stays where it is until the packet, like the overlapped structure.
unsafe fn transmit(
    socket: BorrowedSocket<'_>,
    transmission: &mut Transmission,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let size = match transmission.reads() {
        true => file::metadata(transmission.file())?.len(),
        false => 0,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match transmission.next(size) {
            Next::Send(buffers) => socket::send(socket, &buffers, overlapped),
            Next::Transmit { offset, length, buffers } => {
                let file = transmission.file();
                file::set_offset(&mut *overlapped, offset);
                socket::transmit(socket, file, length, buffers, overlapped)
            }
            Next::Ended => Err(io::Error::from_raw_os_error(END_OF_FILE)),
        }
    }
}

/// Starts to read from where the operation has come to.
///
/// # Safety
///
/// The operation is in flight, and its room has that many bytes.
unsafe fn read(
    op: &mut Operation,
    buffer: *mut u8,
    length: usize,
    offset: u64,
) -> io::Result<Begun> {
    if length == 0 {
        return Ok(Begun::Over(0));
    }
    let offset = offset + op.bytes as u64;
    // SAFETY: the caller's promise; an operation in flight has a handle, which outlives it.
    let begun = unsafe {
        file::read((*op.handle).fd(), buffer, length, offset, &raw mut op.system.overlapped)?
    };
    Ok(if begun { Begun::Called } else { Begun::Over(0) })
}

/// Starts to write to where the operation has come to, or to the end.
///
/// # Safety
///
/// As for `read`.
unsafe fn write(
    op: &mut Operation,
    buffer: *const u8,
    length: usize,
    offset: u64,
) -> io::Result<Begun> {
    if length == 0 {
        return Ok(Begun::Over(0));
    }
    let at_end = offset == Request::APPEND;
    let offset = if at_end { offset } else { offset + op.bytes as u64 };
    // SAFETY: as for `read`.
    let begun = unsafe {
        file::write((*op.handle).fd(), buffer, length, offset, &raw mut op.system.overlapped)?
    };
    Ok(if begun { Begun::Called } else { Begun::Over(0) })
}

/// The first slice that has something in it.
///
/// # Safety
///
/// The gather and its slices are valid.
unsafe fn next_slice(gather: *mut Gather) -> Slice {
    // SAFETY: the caller's promise.
    unsafe {
        (*gather).advance(0);
        (*gather).slices().first().copied().unwrap_or(Slice::new(ptr::null_mut(), 0))
    }
}

/// Ends a direction of a connection, or both.
fn end(op: &Operation, how: Shutdown) -> io::Result<()> {
    // SAFETY: an operation in flight has a handle, which outlives it.
    let socket = unsafe { socket_of(op) };
    if how != Shutdown::Read {
        socket2::SockRef::from(&socket).shutdown(Shutdown::Write)?;
    }
    if how != Shutdown::Write {
        end_receiving(op);
    }
    Ok(())
}

/// Lets receives take what has arrived, and wait for no more. Not by SD_RECEIVE, which resets the
/// connection if something more arrives. The receive that waits is cancelled without its user's
/// asking, and so begun again: it is the only call of the socket's, because this operation is alone
/// in the other direction.
fn end_receiving(op: &Operation) {
    // SAFETY: an operation in flight has a handle, which outlives it.
    let (socket, registration) = unsafe { (socket_of(op), (*op.handle).registration()) };
    registration.ended.store(true, Ordering::Relaxed);
    socket::cancel(socket, ptr::null());
}

/// The socket of an operation's handle.
///
/// # Safety
///
/// The operation has a handle, which outlives what is returned.
unsafe fn socket_of<'a>(op: &Operation) -> BorrowedSocket<'a> {
    // SAFETY: the caller's promise.
    unsafe { borrow((*op.handle).fd()) }
}

const END_OF_FILE: i32 = ERROR_HANDLE_EOF.cast_signed();
const PIPE_ENDED: i32 = ERROR_BROKEN_PIPE.cast_signed();
const PIPE_LEFT: i32 = ERROR_PIPE_NOT_CONNECTED.cast_signed();
const NETNAME_DELETED: i32 = ERROR_NETNAME_DELETED.cast_signed();

fn fail(op: &mut Operation, code: i32) -> Step {
    op.status = -code;
    Step::Finish
}

/// Goes on with the rest, unless somebody wants the operation to end here.
fn go_on(op: &mut Operation) -> Step {
    if op.flags.cancel {
        fail(op, CANCELLED)
    } else if op.flags.expired {
        fail(op, TIMED_OUT)
    } else {
        Step::Again
    }
}

/// The slices of a vectored send, as Winsock wants them.
///
/// # Safety
///
/// The gather and its slices are valid for as long as what is returned.
unsafe fn slices<'a>(gather: *mut Gather) -> &'a [ws::WSABUF] {
    // SAFETY: the caller's promise. A slice is a WSABUF and nothing else.
    unsafe {
        let slices = (*gather).slices();
        std::slice::from_raw_parts(slices.as_ptr().cast(), slices.len())
    }
}

/// Tries to do what a request on a handle asks for, without waiting.
///
/// # Safety
///
/// The pointers in the request are good.
pub(crate) unsafe fn attempt(handle: &Handle, request: &Request) -> Tried {
    if handle.kind() != Kind::Socket {
        // No call on a pipe that is overlapped does without waiting.
        return Tried::Left(0);
    }
    // SAFETY: the handle's socket stays open as long as the handle, which outlives this.
    let socket = unsafe { borrow(handle.fd()) };
    // SAFETY: in both: the caller's promise.
    let (done, wanted) = unsafe {
        match *request {
            Request::Receive { buffer, length, exact } if length > 0 => {
                let done = socket::receive_now(socket, socket::slice(buffer, length));
                (done, if exact { length } else { 1 })
            }
            Request::Send { buffer, length } => {
                (socket::send_now(socket, socket::slice(buffer.cast_mut(), length)), length)
            }
            _ => return Tried::Left(0),
        }
    };
    handle.count_call();
    match done {
        Ok(done) => Tried::of(done, wanted),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Tried::Left(0),
        Err(error) => Tried::Over(Err(error)),
    }
}
