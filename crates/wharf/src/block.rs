//! What the safe layer keeps with an operation while it is in flight.
//!
//! A block is the operation's header followed by all that it needs: its handle, its buffers, its
//! user's context. From `launch` until its last completion it belongs to the port, and no handle,
//! packet or user can name it. Only then is it taken apart: the buffers and the context go into
//! the packet, and the block goes back to its port for the next operation, so that in the
//! steady state nothing is allocated.

use std::{
    net::Shutdown,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::SockAddr;

use crate::{
    branches::Branches,
    buf::Buf,
    datagram::Parcel,
    error::{Error, ErrorKind, Refused},
    port::PortShared,
    raw::{
        self, Datagram, Gather, Operation, Request, Slice,
        handle::{Attempted, Queues},
    },
    sync::{SpinGuard, lock},
    sys::{self, Descriptor, Kind},
    transmit::Transmit,
    udp,
};

/// What an operation works with, by kind.
#[derive(Debug)]
pub(crate) enum Payload {
    Idle,
    /// A value that was posted: it is the context.
    Posted,
    /// A value that is posted when something happens to a handle, which it keeps.
    #[cfg(target_os = "linux")]
    Notified(#[expect(dead_code, reason = "kept, not read")] Arc<raw::Handle>),
    /// A receive into a buffer: some bytes, or exactly so many.
    Recv(Buf, Option<usize>),
    /// A receive for which only the pool's buffers will do, again and again.
    RecvEach,
    Send(Buf),
    /// A send, and then a receive into the same buffer, as for `Recv`, or into one of the pool if
    /// it cannot be written to or was one.
    Exchange(Buf, Option<usize>),
    SendVectored(Box<Vectored>),
    Accept {
        repeat: bool,
    },
    AcceptFirst(Buf),
    Connect(Box<SockAddr>),
    /// To be connected to: an instance of a named pipe.
    #[cfg(windows)]
    ServePipe,
    /// And so that the socket can connect again, or not.
    #[cfg(windows)]
    Disconnect(bool),
    Shutdown(Shutdown),
    Transmit(Transmit),
    RecvMessage(Buf, Parcel),
    SendMessage(Buf, Parcel),
    /// A read at a position.
    Read(Buf, u64),
    ReadVectored(Box<Vectored>, u64),
    /// A write at a position, or to the end.
    Write(Buf, Option<u64>),
    WriteVectored(Box<Vectored>, Option<u64>),
    Sync {
        data_only: bool,
    },
    Allocate {
        offset: u64,
        length: u64,
    },
    Truncate(u64),
    Udp(udp::Work),
}

/// The parts of a vectored operation.
#[derive(Debug)]
pub(crate) struct Vectored {
    pub(crate) bufs: Vec<Buf>,
    slices: Vec<Slice>,
    gather: Gather,
}

// SAFETY: the pointers in the slices and the gather lead into the buffers and slices beside them,
// which move with them.
unsafe impl Send for Vectored {}

/// See the module's page. The header comes first: a pointer to it is a pointer to the block.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Block<K: 'static, M: 'static> {
    pub(crate) operation: Operation,
    pub(crate) handle: Option<Arc<HandleShared<K, M>>>,
    /// Tells this flight of the block from its others.
    pub(crate) flight: u64,
    pub(crate) payload: Payload,
    pub(crate) context: Option<M>,
    /// What a datagram of UDP is received or sent with. It stays for the next.
    datagram: Option<Box<Datagram>>,
}

// SAFETY: while idle a block is plain data; in flight it belongs to the port.
unsafe impl<K: Send + Sync, M: Send> Send for Block<K, M> {}

/// A handle as its clones, its operations and its packets share it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct HandleShared<K: 'static, M: 'static> {
    /// Dropped first: that of a branch borrows the descriptor of the whole.
    pub(crate) raw: raw::Handle,
    pub(crate) port: Arc<PortShared<K, M>>,
    role: Role<K, M>,
}

/// Whether a handle is what was associated, or only what one lane has of it.
#[derive(Debug)]
enum Role<K: 'static, M: 'static> {
    Whole {
        /// Its place among the port's handles.
        slot: u32,
        key: K,
        /// For what several lanes may use at the same time.
        branches: Option<Box<Branches<K, M>>>,
    },
    Branch {
        lane: u16,
        of: Arc<HandleShared<K, M>>,
    },
}

/// How many blocks this process has made.
static BLOCKS: AtomicU64 = AtomicU64::new(1);

/// Names one operation in flight on a handle, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId {
    address: usize,
    flight: u64,
}

/// What an operation may be given beside its request.
#[derive(Debug)]
pub(crate) struct Extras<M> {
    pub(crate) context: Option<M>,
    pub(crate) silent: bool,
    pub(crate) deadline: Option<Duration>,
}

impl<M> Default for Extras<M> {
    fn default() -> Self {
        Self { context: None, silent: false, deadline: None }
    }
}

impl<K, M> HandleShared<K, M> {
    /// Associates a descriptor, of a kind that will do, and makes it known to its port.
    pub(crate) fn new<D: Descriptor>(
        port: &Arc<PortShared<K, M>>,
        descriptor: D,
        key: K,
        will_do: fn(Kind) -> Result<(), Error>,
    ) -> Result<Arc<Self>, Refused<D>> {
        let mut handles = lock(&port.handles);
        let entry = handles.vacant_entry();
        let number = entry.key();
        let Ok(slot) = u32::try_from(number) else {
            return Err(Refused {
                error: Error::of(ErrorKind::OutOfDescriptors, "associate"),
                value: descriptor,
            });
        };
        let raw = port
            .raw
            .associate_if(descriptor.into(), number, will_do)
            .map_err(|refused| Refused { error: refused.error, value: D::back(refused.value) })?;
        let lanes = if raw.kind() == Kind::File { port.raw.shared().lane_count() } else { 1 };
        let role = Role::Whole { slot, key, branches: Branches::new(lanes) };
        let handle = Arc::new(Self { raw, port: port.clone(), role });
        entry.insert(Arc::downgrade(&handle));
        Ok(handle)
    }

    /// The key it was associated under.
    #[inline]
    pub(crate) fn key(&self) -> &K {
        match &self.role {
            Role::Whole { key, .. } => key,
            Role::Branch { of, .. } => of.key(),
        }
    }

    /// What was associated.
    pub(crate) fn whole(&self) -> &Self {
        match &self.role {
            Role::Whole { .. } => self,
            Role::Branch { of, .. } => of,
        }
    }

    /// Starts an operation without an order, in the branch of this worker's lane.
    #[inline]
    pub(crate) fn launch_here(
        self: &Arc<Self>,
        payload: Payload,
        extras: Extras<M>,
    ) -> Result<OpId, Refused<Payload>> {
        if self.is_elsewhere() {
            return self.here().launch(payload, extras);
        }
        self.launch(payload, extras)
    }

    /// Whether another part of this handle is for this worker.
    #[inline(always)]
    fn is_elsewhere(&self) -> bool {
        let own_lane = || self.port.raw.shared().own_lane();
        match &self.role {
            Role::Whole { branches: None, .. } => false,
            Role::Whole { branches: Some(branches), .. } => {
                own_lane().is_some_and(|own| !branches.is_home(own))
            }
            Role::Branch { lane, .. } => own_lane().is_some_and(|own| own != *lane),
        }
    }

    /// The part of this handle that is for this worker.
    #[cold]
    fn here(self: &Arc<Self>) -> Arc<Self> {
        let whole = match &self.role {
            Role::Whole { .. } => self,
            Role::Branch { of, .. } => of,
        };
        match (&whole.role, self.port.raw.shared().own_lane()) {
            (Role::Whole { branches: Some(branches), .. }, Some(lane))
                if !branches.is_home(lane) =>
            {
                whole.branch(branches, lane)
            }
            _ => whole.clone(),
        }
    }

    /// Starts an operation in the order of its direction.
    pub(crate) fn launch_in_order(
        self: &Arc<Self>,
        payload: Payload,
        extras: Extras<M>,
    ) -> Result<OpId, Refused<Payload>> {
        match &self.role {
            Role::Whole { .. } => self.launch(payload, extras),
            Role::Branch { of, .. } => of.launch(payload, extras),
        }
    }

    /// The branch of a lane. Of a closed handle there is no new one, and it refuses by itself.
    fn branch(self: &Arc<Self>, branches: &Branches<K, M>, lane: u16) -> Arc<Self> {
        let make = || {
            // Who closes looks for branches after that, one by one, under the same lock.
            if self.raw.is_closed() {
                return None;
            }
            // SAFETY: the branch holds this handle, and drops its own part first.
            let raw = unsafe { self.raw.branch(lane) };
            let role = Role::Branch { lane, of: self.clone() };
            Some(Arc::new(Self { raw, port: self.port.clone(), role }))
        };
        branches.of(lane, make).unwrap_or_else(|| self.clone())
    }

    /// The handle's branches, itself not included.
    fn branches(&self) -> impl Iterator<Item = Arc<Self>> {
        let branches = match &self.whole().role {
            Role::Whole { branches, .. } => branches.as_deref(),
            Role::Branch { .. } => None,
        };
        branches.into_iter().flat_map(Branches::live)
    }

    /// See [`raw::Handle::close`].
    pub(crate) fn close(&self) {
        self.whole().raw.close();
        self.branches().for_each(|branch| branch.raw.close());
    }

    /// See [`raw::Handle::cancel_all`].
    pub(crate) fn cancel_all(&self) -> usize {
        let count = self.whole().raw.cancel_all();
        count + self.branches().map(|branch| branch.raw.cancel_all()).sum::<usize>()
    }

    /// Starts an operation. Refused, its payload comes back.
    #[inline]
    pub(crate) fn launch(
        self: &Arc<Self>,
        payload: Payload,
        extras: Extras<M>,
    ) -> Result<OpId, Refused<Payload>> {
        let block = self.port.take_block();
        self.start(block, payload, extras, None)
    }

    /// Starts to send a datagram.
    pub(crate) fn launch_to(
        self: &Arc<Self>,
        buf: Buf,
        envelope: &udp::Envelope,
        extras: Extras<M>,
    ) -> Result<OpId, Refused<Payload>> {
        let payload = Payload::Udp(udp::Work::Send(buf));
        let block = self.port.take_block();
        // SAFETY: an idle block of the port's is ours alone.
        let datagram = unsafe { (*block).datagram.get_or_insert_default() };
        if let Err(error) = datagram.address_to(&self.raw, envelope) {
            // SAFETY: it was taken above, and has not been started.
            unsafe { self.port.put_block(block) };
            return Err(Refused { error, value: payload });
        }
        self.start(block, payload, extras, None)
    }

    /// Sends what a buffer holds if that can be done without waiting: neither a block nor a packet
    /// is needed then. What is left is for [`Self::launch_rest`].
    #[inline]
    pub(crate) fn send_now(&self, buf: &Buf) -> Result<Attempted<'_>, Error> {
        let request = Request::Send { buffer: buf.as_ptr(), length: buf.len() };
        // SAFETY: the buffer is borrowed until this is over.
        unsafe { self.raw.attempt(&request) }
    }

    /// Receives into a buffer of its own, likewise.
    #[inline]
    pub(crate) fn recv_now(&self, buf: &mut Buf) -> Result<Attempted<'_>, Error> {
        let request = match buf.room() {
            Some((buffer, length)) => Request::Receive { buffer, length, exact: false },
            None => Request::ReceivePooled { repeat: false },
        };
        // SAFETY: the buffer is borrowed until this is over.
        let attempted = unsafe { self.raw.attempt(&request) };
        if let Ok(Attempted::Over(bytes)) = attempted {
            // SAFETY: the kernel has written that many bytes from the room's start.
            unsafe { buf.set_filled(bytes) };
        }
        attempted
    }

    /// Starts an operation of which so much has been done, with the queues that were left with it.
    pub(crate) fn launch_rest(
        self: &Arc<Self>,
        payload: Payload,
        extras: Extras<M>,
        (state, done): (SpinGuard<'_, Queues>, usize),
    ) -> Result<OpId, Refused<Payload>> {
        let block = self.port.take_block();
        self.start(block, payload, extras, Some((state, done)))
    }

    /// `block` is idle, and ours alone. `begun`: what is left of an attempt, and how much is done.
    #[inline(always)]
    fn start(
        self: &Arc<Self>,
        block: *mut Block<K, M>,
        payload: Payload,
        extras: Extras<M>,
        begun: Option<(SpinGuard<'_, Queues>, usize)>,
    ) -> Result<OpId, Refused<Payload>> {
        // SAFETY: the block is ours alone.
        let id = unsafe { (*block).fill(payload, extras.context) };
        // SAFETY: the block is filled, and ours alone.
        match unsafe { self.fly(block, extras.deadline, extras.silent, begun) } {
            Ok(()) => Ok(id),
            // SAFETY: it is not in flight, so the block is ours alone again.
            Err(error) => Err(Refused { error, value: unsafe { self.land(block) } }),
        }
    }

    /// Starts the operation of a block.
    ///
    /// # Safety
    ///
    /// The block is filled, idle, and the caller's alone; pending, it is so no more.
    #[inline(always)]
    unsafe fn fly(
        self: &Arc<Self>,
        block: *mut Block<K, M>,
        deadline: Option<Duration>,
        silent: bool,
        begun: Option<(SpinGuard<'_, Queues>, usize)>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        let fields = unsafe { &mut *block };
        match &mut fields.payload {
            // The frequent ones are written where they belong without having been anywhere else.
            Payload::Recv(buf, _) if buf.wants_pool() => {
                let request = Request::ReceivePooled { repeat: false };
                fields.operation.prepare(request, deadline, silent);
            }
            Payload::Send(buf) => {
                let request = Request::Send { buffer: buf.as_ptr(), length: buf.len() };
                fields.operation.prepare(request, deadline, silent);
            }
            Payload::Exchange(buf, exact) => {
                let request = Request::Send { buffer: buf.as_ptr(), length: buf.len() };
                fields.operation.prepare(request, deadline, silent);
                fields.operation.second = Some(receive_next(buf, *exact)?);
            }
            Payload::Read(buf, offset) if !buf.wants_pool() => {
                let (buffer, length) = writable("read", buf)?;
                let length = some("read", length)?;
                let offset = range("read", *offset, length as u64)?;
                let request = Request::Read { buffer, length, offset };
                #[cfg(target_os = "linux")]
                {
                    fields.operation.system.piece = buf.piece();
                }
                fields.operation.prepare(request, deadline, silent);
            }
            _ => {
                let request = fields.request(&self.raw)?;
                #[cfg(target_os = "linux")]
                {
                    fields.operation.system.piece = fields.payload.piece();
                }
                fields.operation.prepare(request, deadline, silent);
            }
        }
        fields.handle = Some(self.clone());
        // SAFETY: the block stays where it is, untouched, until its last completion; the buffers
        // that the request points into are in the block's payload, whose heap memory does not
        // move with it; and the block holds a reference to this handle.
        unsafe {
            match begun {
                None => self.raw.start(block.cast()),
                Some((state, done)) => self.raw.begin(state, block.cast(), done),
            }
        }
    }

    /// Empties a block that is not in flight after all, and takes it back.
    ///
    /// # Safety
    ///
    /// It is idle, and the caller's alone.
    #[cold]
    unsafe fn land(&self, block: *mut Block<K, M>) -> Payload {
        // SAFETY: the caller's promise.
        let fields = unsafe { &mut *block };
        let payload = std::mem::replace(&mut fields.payload, Payload::Idle);
        (fields.context, fields.handle) = (None, None);
        // SAFETY: as above; it was taken from this port.
        unsafe { self.port.put_block(block) };
        payload
    }

    /// Asks for one operation to be cancelled.
    pub(crate) fn cancel(&self, id: OpId) -> bool {
        let cancel = |handle: &raw::Handle| {
            handle.cancel_if(ptr::with_exposed_provenance(id.address), &|operation| {
                // SAFETY: the raw handle asks only about an operation in flight on it, and every
                // such operation is the header of a block. `flight` does not change in flight.
                unsafe { (*operation.cast::<Block<K, M>>()).flight == id.flight }
            })
        };
        cancel(&self.whole().raw) || self.branches().any(|branch| cancel(&branch.raw))
    }
}

impl<K, M> PortShared<K, M> {
    /// An idle block, which is the caller's alone.
    #[inline]
    pub(crate) fn take_block(&self) -> *mut Block<K, M> {
        match self.raw.shared().take_spare() {
            Some(spare) => spare.cast(),
            None => Block::allocate(),
        }
    }

    /// Takes an idle block back.
    ///
    /// # Safety
    ///
    /// It was taken from this port, and is the caller's.
    #[inline]
    pub(crate) unsafe fn put_block(&self, block: *mut Block<K, M>) {
        // SAFETY: the caller's promise: a block of this port's kind, which `free` is for.
        unsafe { self.raw.shared().put_spare(block.cast()) };
    }
}

impl<K, M> Block<K, M> {
    #[cold]
    fn allocate() -> *mut Self {
        let block = Box::into_raw(Box::new(Self {
            operation: Operation::new(Request::Readable),
            handle: None,
            payload: Payload::Idle,
            context: None,
            datagram: None,
            // No two blocks' flights are ever numbered alike, even at one address.
            flight: BLOCKS.fetch_add(1, Ordering::Relaxed) << 32,
        }));
        let _ = block.expose_provenance();
        block
    }

    /// Frees an idle block.
    ///
    /// # Safety
    ///
    /// It was allocated here, is idle, and the caller's.
    pub(crate) unsafe fn free(block: *mut Operation) {
        // SAFETY: the caller's promise; the header is the block's first field.
        drop(unsafe { Box::from_raw(block.cast::<Self>()) });
    }

    /// Lets go of what an operation has sent that is about to receive, if that came from the pool:
    /// while it waits, it holds no buffer. Other buffers stay for the packet, because dropping them
    /// may run code of the user's, or because they are received into.
    ///
    /// # Safety
    ///
    /// It is the header of a block in flight, whose handle's lock is held, and nothing of it is
    /// outstanding.
    pub(crate) unsafe fn has_sent(operation: *mut Operation) {
        // SAFETY: the caller's promise; only the payload is touched, which nobody else does while
        // the lock is held.
        let payload = unsafe { &mut (*operation.cast::<Self>()).payload };
        if let Payload::Exchange(buf, _) = payload
            && buf.is_of_pool()
        {
            *buf = Buf::pooled();
        }
    }

    /// Puts into an idle block what its next operation works with.
    #[inline]
    fn fill(&mut self, payload: Payload, context: Option<M>) -> OpId {
        debug_assert!(self.payload.is_empty() && self.context.is_none());
        // SAFETY: what they replace has nothing to drop: an idle block is empty.
        unsafe {
            ptr::write(&raw mut self.payload, payload);
            ptr::write(&raw mut self.context, context);
        }
        self.flight += 1;
        OpId { address: ptr::from_mut(self) as usize, flight: self.flight }
    }

    /// The request that its payload is for.
    #[inline]
    fn request(&mut self, handle: &raw::Handle) -> Result<Request, Error> {
        match &mut self.payload {
            Payload::Udp(work) => {
                let datagram = &raw mut **self.datagram.get_or_insert_default();
                work.request(datagram, handle)
            }
            payload => payload.request(),
        }
    }
}

impl<K, M> Drop for HandleShared<K, M> {
    fn drop(&mut self) {
        if let Role::Whole { slot, .. } = self.role {
            lock(&self.port.handles).try_remove(slot as usize);
        }
    }
}

impl Payload {
    /// Whether nothing is left of it that would have to be dropped.
    fn is_empty(&self) -> bool {
        match self {
            Self::Idle | Self::Posted => true,
            Self::Recv(buf, _) | Self::Send(buf) | Self::Exchange(buf, _) | Self::Read(buf, _) => {
                buf.wants_pool()
            }
            _ => false,
        }
    }

    /// What rings may know the buffer of a write by; a read's is asked for where it is started.
    #[cfg(target_os = "linux")]
    fn piece(&self) -> *const sys::Piece {
        match self {
            Self::Write(buf, _) => buf.piece(),
            _ => ptr::null(),
        }
    }

    /// What its operation is called in errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Idle | Self::Posted => "post",
            #[cfg(target_os = "linux")]
            Self::Notified(_) => "notify",
            Self::Recv(..) | Self::RecvEach | Self::RecvMessage(..) => "recv",
            Self::Send(_) | Self::SendVectored(_) | Self::SendMessage(..) => "send",
            Self::Exchange(..) => "exchange",
            Self::Accept { .. } | Self::AcceptFirst(_) => "accept",
            Self::Connect(_) => "connect",
            #[cfg(windows)]
            Self::ServePipe => "serve_pipe",
            #[cfg(windows)]
            Self::Disconnect(_) => "disconnect",
            Self::Shutdown(_) => "shutdown",
            Self::Transmit(_) => "transmit",
            Self::Read(..) | Self::ReadVectored(..) => "read",
            Self::Write(..) | Self::WriteVectored(..) => "write",
            Self::Sync { .. } => "sync",
            Self::Allocate { .. } => "allocate",
            Self::Truncate(_) => "truncate",
            Self::Udp(work) => work.name(),
        }
    }

    /// What a completion's status means for it.
    pub(crate) fn error(&self, status: i32, handle: &raw::Handle) -> Error {
        let error = Error::from_status(status, self.name());
        if let Self::Udp(work) = self {
            return work.explain(error);
        }
        let file = match self {
            Self::Transmit(transmit) => Some(sys::file::raw(transmit.file())),
            _ => (handle.kind() == Kind::File).then(|| handle.fd()),
        };
        // Linux says of a file that was not opened for it what it says of a closed one.
        let not_for_this = match error.kind() {
            ErrorKind::Closed => file.is_some_and(sys::file::is_open),
            kind => kind == ErrorKind::PermissionDenied && file.is_some(),
        };
        if not_for_this {
            return error
                .as_kind(ErrorKind::PermissionDenied)
                .with_remedy("the file was not opened for this: open it to be read, or written");
        }
        if error.kind() == ErrorKind::InvalidInput && self.may_be_misaligned(handle) {
            return error.with_remedy(
                "direct I/O asks for positions, lengths and buffers that are multiples of what \
                 File::alignment says: take them from Buf::aligned",
            );
        }
        let appends = matches!(self, Self::Write(_, None) | Self::WriteVectored(_, None));
        if error.kind() == ErrorKind::Unsupported && appends {
            return error.with_remedy(
                "this system appends only to files that were opened for it: OpenOptions::append",
            );
        }
        if matches!(self, Self::Transmit(_)) && handle.kind() != Kind::Socket {
            return error.with_remedy("only to sockets is a file transmitted");
        }
        if matches!(self, Self::Shutdown(_)) && handle.kind() != Kind::Socket {
            return error.with_remedy("a pipe ends when the last clone of its Stream is dropped");
        }
        error
    }

    fn may_be_misaligned(&self, handle: &raw::Handle) -> bool {
        let moves = matches!(
            self,
            Self::Read(..) | Self::ReadVectored(..) | Self::Write(..) | Self::WriteVectored(..)
        );
        moves && sys::file::is_direct(handle.fd())
    }

    /// Takes over what an operation that is over has brought. What came from the pool lies in
    /// another buffer, which replaces this one in the packet.
    ///
    /// # Safety
    ///
    /// Its operation has just ended with this status, and so many bytes have been written from the
    /// start of the room on. Once for each operation.
    pub(crate) unsafe fn settle(&mut self, bytes: usize, status: i32) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Recv(buf, _) | Self::AcceptFirst(buf) | Self::Read(buf, _) => {
                    buf.set_filled(bytes);
                }
                Self::ReadVectored(vectored, _) => vectored.set_filled(bytes),
                Self::Udp(work) => work.set_filled(bytes),
                Self::RecvMessage(buf, parcel) => {
                    buf.set_filled(bytes);
                    if status == 0 {
                        parcel.arrive();
                    }
                }
                _ => {}
            }
        }
    }

    /// The request that this payload is for, pointing into it.
    #[inline]
    fn request(&mut self) -> Result<Request, Error> {
        Ok(match self {
            Self::Idle | Self::Posted => return Err(Error::of(ErrorKind::InvalidInput, "start")),
            #[cfg(target_os = "linux")]
            Self::Notified(_) => Request::Readable,
            Self::Recv(buf, exact) => receive_into("recv", buf, *exact)?,
            Self::RecvEach => Request::ReceivePooled { repeat: true },
            Self::SendVectored(vectored) => Request::SendVectored { gather: vectored.gather()? },
            Self::Accept { repeat } => Request::Accept { repeat: *repeat },
            Self::AcceptFirst(buf) => {
                let (buffer, length) = writable("accept_first", buf)?;
                if length == 0 {
                    return Err(Error::of(ErrorKind::InvalidInput, "accept_first")
                        .with_remedy("the buffer needs room for at least one byte"));
                }
                Request::AcceptFirst { buffer, length }
            }
            Self::Connect(address) => {
                Request::Connect { address: address.as_ptr().cast(), length: address.len() as _ }
            }
            #[cfg(windows)]
            Self::ServePipe => Request::Connect { address: ptr::null(), length: 0 },
            #[cfg(windows)]
            Self::Disconnect(reuse) => Request::Disconnect { reuse: *reuse },
            Self::Shutdown(how) => Request::Shutdown { how: *how },
            Self::Transmit(transmit) => Request::Transmit { transmission: transmit.prepare()? },
            Self::RecvMessage(buf, parcel) if buf.wants_pool() => {
                let message = parcel.message(ptr::null_mut(), 0);
                Request::ReceiveMessage { message, pooled: true }
            }
            Self::RecvMessage(buf, parcel) => {
                let (buffer, room) = writable("recv", buf)?;
                let message = parcel.message(buffer, some("recv", room)?);
                Request::ReceiveMessage { message, pooled: false }
            }
            Self::SendMessage(buf, parcel) => {
                Request::SendMessage { message: parcel.message(buf.as_ptr().cast_mut(), buf.len()) }
            }
            Self::Read(buf, offset) if buf.wants_pool() => {
                Request::ReadPooled { offset: range("read", *offset, 1 << 30)? }
            }
            Self::Send(_) | Self::Exchange(..) | Self::Read(..) => {
                unreachable!("made in place")
            }
            Self::ReadVectored(vectored, offset) => {
                let (scatter, length) = vectored.scatter()?;
                some("read", length)?;
                Request::ReadVectored { scatter, offset: range("read", *offset, length as u64)? }
            }
            Self::Write(buf, offset) => Request::Write {
                buffer: buf.as_ptr(),
                length: buf.len(),
                offset: place(*offset, buf.len())?,
            },
            Self::WriteVectored(vectored, offset) => {
                let length = vectored.bufs.iter().map(|buf| buf.len()).sum();
                Request::WriteVectored {
                    gather: vectored.gather()?,
                    offset: place(*offset, length)?,
                }
            }
            Self::Sync { data_only } => Request::Sync { data_only: *data_only },
            Self::Allocate { offset, length } => {
                Request::Allocate { offset: range("allocate", *offset, *length)?, length: *length }
            }
            Self::Truncate(length) => Request::Truncate { length: range("truncate", *length, 0)? },
            Self::Udp(_) => unreachable!("it needs its block's datagram"),
        })
    }
}

/// The request that receives into a buffer of its own: some bytes, or exactly so many.
fn receive_into(
    action: &'static str,
    buf: &mut Buf,
    exact: Option<usize>,
) -> Result<Request, Error> {
    let (buffer, room) = writable(action, buf)?;
    Ok(match exact {
        // No room: the zero-byte receive.
        None if room == 0 => Request::Readable,
        None => Request::Receive { buffer, length: room, exact: false },
        Some(length) if length > room || length == 0 => {
            return Err(Error::of(ErrorKind::InvalidInput, action)
                .with_remedy("ask for at least one byte, and for no more than fit"));
        }
        Some(length) => Request::Receive { buffer, length, exact: true },
    })
}

/// What follows when a buffer has been sent: a receive into it, or into one of the pool.
#[inline]
fn receive_next(buf: &mut Buf, exact: Option<usize>) -> Result<Request, Error> {
    if exact.is_none() && (buf.is_of_pool() || buf.room().is_none()) {
        return Ok(Request::ReceivePooled { repeat: false });
    }
    if buf.is_of_pool() {
        return Err(Error::of(ErrorKind::InvalidInput, "exchange")
            .with_remedy("only into a buffer of its own can exactly so many bytes be received"));
    }
    receive_into("exchange", buf, exact)
}

pub(crate) fn writable(action: &'static str, buf: &mut Buf) -> Result<(*mut u8, usize), Error> {
    buf.room().ok_or_else(|| {
        Error::of(ErrorKind::InvalidInput, action)
            .with_remedy("receive into a Vec, a Box<[u8]>, a BytesMut, a slice or a pooled buffer")
    })
}

/// A position from which so many bytes can be counted.
pub(crate) fn range(action: &'static str, offset: u64, length: u64) -> Result<u64, Error> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(offset),
        _ => Err(Error::of(ErrorKind::InvalidInput, action)
            .with_remedy("positions in a file go up to 2^63 - 1")),
    }
}

/// The same for a write, which may also go to the end.
fn place(offset: Option<u64>, length: usize) -> Result<u64, Error> {
    offset.map_or(Ok(Request::APPEND), |offset| range("write", offset, length as u64))
}

/// A length that is not zero: a read of nothing would look like the end of the file.
fn some(action: &'static str, length: usize) -> Result<usize, Error> {
    if length > 0 {
        return Ok(length);
    }
    Err(Error::of(ErrorKind::InvalidInput, action)
        .with_remedy("the buffer needs room for at least one byte"))
}

impl Vectored {
    pub(crate) fn new(bufs: Vec<Buf>) -> Self {
        Self { bufs, slices: Vec::new(), gather: Gather::new(ptr::null_mut(), 0) }
    }

    fn begin(&mut self) -> Result<(), Error> {
        if self.bufs.len() > Gather::MAX_SLICES {
            return Err(Error::of(ErrorKind::InvalidInput, "vectored")
                .with_remedy("at most 1,024 buffers go into one operation"));
        }
        self.slices.clear();
        Ok(())
    }

    fn push(&mut self, address: *mut u8, length: usize) -> Result<(), Error> {
        if !Slice::holds(length) {
            return Err(Error::of(ErrorKind::InvalidInput, "vectored")
                .with_remedy("here, no buffer of several may be larger than 4 GiB"));
        }
        self.slices.push(Slice::new(address, length));
        Ok(())
    }

    fn gather(&mut self) -> Result<*mut Gather, Error> {
        self.begin()?;
        for at in 0..self.bufs.len() {
            let buf = &self.bufs[at];
            self.push(buf.as_ptr().cast_mut(), buf.len())?;
        }
        self.gather = Gather::new(self.slices.as_mut_ptr(), self.slices.len());
        Ok(&raw mut self.gather)
    }

    /// The rooms of the buffers, to read into, and how many bytes fit.
    fn scatter(&mut self) -> Result<(*mut Gather, usize), Error> {
        self.begin()?;
        let mut total = 0;
        for at in 0..self.bufs.len() {
            let (address, room) = writable("read", &mut self.bufs[at])?;
            total += room;
            self.push(address, room)?;
        }
        self.gather = Gather::new(self.slices.as_mut_ptr(), self.slices.len());
        Ok((&raw mut self.gather, total))
    }

    /// Says how much a read has put into the buffers, from the first on.
    ///
    /// # Safety
    ///
    /// So many bytes of their rooms, taken together, are initialised.
    pub(crate) unsafe fn set_filled(&mut self, mut bytes: usize) {
        for buf in &mut self.bufs {
            let part = bytes.min(buf.capacity());
            // SAFETY: the caller's promise.
            unsafe { buf.set_filled(part) };
            bytes -= part;
        }
    }
}
