//! Completion queues, and the request queues of which they hold the completions.

use std::{
    fmt,
    net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::SockRef;
#[cfg(not(windows))]
use socket2::{Domain, Socket, Type};

use super::{
    Completion, Direction, Polled, Slice, Start,
    engine::{Engine, Flags, Request, Route, Traits},
};
use crate::{
    driver::{Choice, Driver},
    error::{Error, ErrorKind, Refused, Result},
    sys::{BorrowedSocket, OwnedSocket, udp},
};

/// How many requests of a request queue may be outstanding. Their completions have room reserved in
/// the completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "there are no other directions")]
pub struct Quota {
    /// How many receives.
    #[doc(alias = "MaxOutstandingReceive")]
    pub receives: usize,
    /// How many sends.
    #[doc(alias = "MaxOutstandingSend")]
    pub sends: usize,
}

impl Quota {
    fn total(&self) -> Option<usize> {
        self.receives.checked_add(self.sends)
    }
}

/// What is wanted of datagrams besides their bytes. Each costs a little with every datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    addresses: bool,
    local_addresses: bool,
    coalesce: bool,
}

impl Options {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { addresses: false, local_addresses: false, coalesce: false }
    }

    /// Where each datagram is from: [`Completion::address`].
    #[must_use]
    pub const fn addresses(mut self) -> Self {
        self.addresses = true;
        self
    }

    /// Which of this machine's addresses each datagram was sent to:
    /// [`Completion::local_address`].
    #[must_use]
    #[doc(alias = "IP_PKTINFO")]
    pub const fn local_addresses(mut self) -> Self {
        self.local_addresses = true;
        self
    }

    /// Lets the system put several datagrams of one sender into one slice (receive offload), which
    /// makes each of them many times cheaper. [`Completion::datagrams`] takes them apart. Slices
    /// should have room for 65,535 bytes: what does not fit is cut off.
    #[must_use]
    #[doc(alias = "UDP_GRO")]
    #[doc(alias = "UDP_RECV_MAX_COALESCED_SIZE")]
    pub const fn coalesce(mut self) -> Self {
        self.coalesce = true;
        self
    }
}

/// A socket's request queue in a completion queue: a name for it, to be copied at will.
///
/// After [`CompletionQueue::close`] it stands for nothing, and calls with it fail with `Closed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "RIO_RQ")]
pub struct RequestQueue {
    pub(super) index: u16,
    generation: u32,
    queue: u32,
}

impl RequestQueue {
    /// What an engine calls it; the completion queue adds the rest.
    #[inline]
    pub(super) fn unnamed(index: u16) -> Self {
        Self { index, generation: 0, queue: 0 }
    }
}

/// Where the completions of requests wait until they are dequeued.
///
/// `N` says how one learns that there are some: [`Polled`], by looking; [`Event`](super::Event), by
/// waiting for an event; [`Through`](super::Through), by a packet of a port.
///
/// When a queue is dropped, its sockets are closed, and everything outstanding is cancelled. On
/// io_uring and on Windows it waits until the kernel is done with it, at most for five seconds.
#[doc(alias = "RIO_CQ")]
#[doc(alias = "RIOCloseCompletionQueue")]
pub struct CompletionQueue<N = Polled> {
    /// First, so that what is outstanding ends as cancelled, and not because the engine goes.
    pub(super) notification: N,
    pub(super) engine: Engine,
    id: u32,
    capacity: usize,
    reserved: usize,
    places: Vec<Place>,
    choice: Choice,
}

/// A request queue as its completion queue sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    generation: u32,
    state: State,
    quota: Quota,
    receives: usize,
    sends: usize,
    pub(super) stream: bool,
    pub(super) v6: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Open,
    /// Closed, with completions that have not been dequeued.
    Closed,
}

/// The most completions a queue may have room for.
const CAPACITY_MAX: usize = 1 << 27;
/// The most request queues a completion queue may have.
const PLACES_MAX: usize = 1 << 15;

static QUEUES: AtomicU32 = AtomicU32::new(0);

impl<N> CompletionQueue<N> {
    pub(super) fn check_capacity(capacity: usize) -> Result<()> {
        if capacity == 0 || capacity > CAPACITY_MAX {
            return Err(Error::of(ErrorKind::InvalidInput, "capacity of a completion queue")
                .with_remedy("it has room for 1 to 134,217,728 completions"));
        }
        Ok(())
    }

    pub(super) fn of((engine, choice): (Engine, Choice), capacity: usize, notification: N) -> Self {
        let id = QUEUES.fetch_add(1, Ordering::Relaxed);
        Self { engine, id, capacity, reserved: 0, places: Vec::new(), choice, notification }
    }

    /// What carries the queue: never [`Driver::Auto`]. [`Driver::Epoll`] stands for plain calls
    /// that do not wait (recvmmsg, sendmmsg), and epoll where there are many sockets, or
    /// notifications; [`Driver::Iocp`] for overlapped calls; [`Driver::Rio`] for the system's own,
    /// and overlapped calls for sockets that were not made for that.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.choice.driver
    }

    /// Why it is not carried by io_uring, or on Windows by the system's own Registered I/O,
    /// although the choice was left to wharf: how that is refused, and what can be done about it.
    #[must_use]
    pub fn fallback(&self) -> Option<Error> {
        self.choice.refused
    }

    // ---- Sockets ------------------------------------------------------------------------

    /// Binds a UDP socket, and makes a request queue for it.
    ///
    /// # Errors
    ///
    /// If the address is not usable, in use, or not this machine's; and as for
    /// [`Self::udp_socket`].
    #[doc(alias = "RIOCreateRequestQueue")]
    pub fn udp(&mut self, address: impl ToSocketAddrs, quota: Quota) -> Result<RequestQueue> {
        let socket = bind_udp(address)?;
        Ok(self.udp_socket(socket, quota, Options::new())?)
    }

    /// Makes a request queue for a UDP socket, on which everything else has been set before: it may
    /// be connected, share its port, belong to groups.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a quota of nothing, `QueueFull` for one that is larger than the room that
    /// is left ([`Self::room`]), `Unsupported` if the system does not know an option. The socket
    /// comes back.
    #[doc(alias = "RIOCreateRequestQueue")]
    pub fn udp_socket(
        &mut self,
        socket: UdpSocket,
        quota: Quota,
        options: Options,
    ) -> Result<RequestQueue, Refused<UdpSocket>> {
        let v6 = match prepare(&socket, options) {
            Ok(v6) => v6,
            Err(error) => {
                let error = Error::from_io(&error, REQUEST_QUEUE);
                return Err(Refused { error, value: socket });
            }
        };
        let Options { addresses, local_addresses, coalesce } = options;
        let Quota { receives, sends } = quota;
        let stream = false;
        let traits = Traits { stream, v6, addresses, local_addresses, coalesce, receives, sends };
        self.open(socket.into(), quota, traits)
            .map_err(|Refused { error, value }| Refused { error, value: UdpSocket::from(value) })
    }

    /// Makes a request queue for a connection. Its receives complete in the order in which they
    /// were started, each with at least one byte, or with none at the end of the stream; its sends
    /// send everything, in order.
    ///
    /// # Errors
    ///
    /// As for [`Self::udp_socket`].
    #[doc(alias = "RIOCreateRequestQueue")]
    pub fn tcp_stream(
        &mut self,
        stream: TcpStream,
        quota: Quota,
    ) -> Result<RequestQueue, Refused<TcpStream>> {
        let _ = stream.set_nonblocking(false);
        let traits = Traits {
            stream: true,
            v6: false,
            addresses: false,
            local_addresses: false,
            coalesce: false,
            receives: quota.receives,
            sends: quota.sends,
        };
        self.open(stream.into(), quota, traits)
            .map_err(|Refused { error, value }| Refused { error, value: TcpStream::from(value) })
    }

    fn open(
        &mut self,
        socket: OwnedSocket,
        quota: Quota,
        traits: Traits,
    ) -> Result<RequestQueue, Refused<OwnedSocket>> {
        let place = match self.reserve(quota) {
            Ok(place) => place,
            Err(error) => return Err(Refused { error, value: socket }),
        };
        let index = u16::try_from(place).unwrap_or(u16::MAX);
        if let Err((error, socket)) = self.engine.open(index, socket, traits) {
            let error = Error::from_io(&error, REQUEST_QUEUE);
            return Err(Refused { error, value: socket });
        }
        self.reserved += quota.receives + quota.sends;
        let place = &mut self.places[place];
        let Traits { stream, v6, .. } = traits;
        let generation = place.generation;
        *place = Place { generation, state: State::Open, quota, receives: 0, sends: 0, stream, v6 };
        Ok(RequestQueue { index, generation, queue: self.id })
    }

    /// A place for a request queue with this quota, which there must be room for.
    fn reserve(&mut self, quota: Quota) -> Result<usize> {
        self.check_process(REQUEST_QUEUE)?;
        self.check_quota(quota, 0)?;
        let free = self.places.iter().position(|place| place.state == State::Free);
        if let Some(free) = free {
            return Ok(free);
        }
        if self.places.len() >= PLACES_MAX {
            return Err(Error::of(ErrorKind::QueueFull, REQUEST_QUEUE)
                .with_remedy("make another completion queue: one serves 32,768 sockets"));
        }
        self.places.push(Place {
            generation: 0,
            state: State::Free,
            quota,
            receives: 0,
            sends: 0,
            stream: false,
            v6: false,
        });
        Ok(self.places.len() - 1)
    }

    /// Whether a quota makes sense and fits where `now` is reserved for it already.
    fn check_quota(&self, quota: Quota, now: usize) -> Result<()> {
        let total = quota.total().unwrap_or(usize::MAX);
        if total == 0 {
            return Err(Error::of(ErrorKind::InvalidInput, REQUEST_QUEUE)
                .with_remedy("a quota allows at least one receive or one send"));
        }
        if total > self.room() + now {
            return Err(Error::of(ErrorKind::QueueFull, REQUEST_QUEUE)
                .with_remedy("resize the completion queue, or ask for a smaller quota"));
        }
        Ok(())
    }

    /// Changes a request queue's quota.
    ///
    /// # Errors
    ///
    /// `Busy` if more is outstanding than it would allow; otherwise as for [`Self::udp_socket`].
    #[doc(alias = "RIOResizeRequestQueue")]
    pub fn set_quota(&mut self, socket: RequestQueue, quota: Quota) -> Result<()> {
        let place = self.find(socket, REQUEST_QUEUE)?;
        let old = place.quota.receives + place.quota.sends;
        if place.receives > quota.receives || place.sends > quota.sends {
            return Err(Error::of(ErrorKind::Busy, REQUEST_QUEUE)
                .with_remedy("dequeue first: more is outstanding than the quota would allow"));
        }
        self.check_quota(quota, old)?;
        self.places[usize::from(socket.index)].quota = quota;
        self.reserved = self.reserved - old + quota.receives + quota.sends;
        Ok(())
    }

    /// Closes a request queue and its socket. Everything outstanding completes: what was not done
    /// yet fails as cancelled. The quota is free when those completions have been dequeued.
    ///
    /// # Errors
    ///
    /// `Closed` if it is closed already; `Forked` in a child of the process that made the queue.
    #[doc(alias = "closesocket")]
    pub fn close(&mut self, socket: RequestQueue) -> Result<()> {
        self.find(socket, "close a request queue")?;
        self.engine.close(socket.index);
        self.places[usize::from(socket.index)].state = State::Closed;
        self.free_if_over(socket.index);
        Ok(())
    }

    /// The address of a socket.
    ///
    /// # Errors
    ///
    /// `Closed` if it is closed.
    pub fn local_addr(&self, socket: RequestQueue) -> Result<SocketAddr> {
        const ACTION: &str = "local address";
        self.find(socket, ACTION)?;
        let look = |socket: BorrowedSocket<'_>| SockRef::from(&socket).local_addr();
        let address = self.engine.with_socket(socket.index, look);
        let address = address.ok_or_else(|| Error::of(ErrorKind::Closed, ACTION))?;
        let address = address.map_err(|error| Error::from_io(&error, ACTION))?;
        address.as_socket().ok_or_else(|| Error::of(ErrorKind::Unsupported, ACTION))
    }

    /// How many datagrams the system has thrown away since the socket was made, because its
    /// buffer was full. None where the system does not tell.
    #[must_use]
    pub fn dropped(&self, socket: RequestQueue) -> Option<u64> {
        self.find(socket, "dropped").ok()?;
        let dropped = self.engine.with_socket(socket.index, |socket| udp::dropped(&socket))?;
        dropped.ok().map(u64::from)
    }

    // ---- Requests -----------------------------------------------------------------------

    /// Starts a receive into all of a slice.
    ///
    /// On Linux it costs no system call: the kernel begins to fill slices when the queue next
    /// enters it, which is at a [`Self::commit`], when it is asked to notify, or when
    /// [`Self::dequeue`] finds nothing. Only the first receive while a notification is
    /// outstanding, and nothing else is posted, enters it at once.
    ///
    /// # Errors
    ///
    /// `QueueFull` if as many receives are outstanding as the quota allows, `Closed` if the request
    /// queue is closed. The slice comes back.
    #[doc(alias = "RIOReceive")]
    #[inline]
    pub fn receive(&mut self, socket: RequestQueue, slice: Slice) -> Result<(), Refused<Slice>> {
        self.start_receive(socket, slice, 0, Flags::default())
    }

    #[inline]
    pub(super) fn start_receive(
        &mut self,
        socket: RequestQueue,
        slice: Slice,
        context: u64,
        flags: Flags,
    ) -> Result<(), Refused<Slice>> {
        if let Err(error) = self.place(socket, Direction::Receive) {
            return Err(Refused { error, value: slice });
        }
        self.places[usize::from(socket.index)].receives += 1;
        self.engine.receive(socket.index, slice, context, flags);
        Ok(())
    }

    /// Sends what a slice holds, on a socket that is connected.
    ///
    /// # Errors
    ///
    /// `QueueFull` if as many sends are outstanding as the quota allows, `Closed` if the request
    /// queue is closed, `InvalidInput` if no datagram can be as large. The slice comes back.
    #[doc(alias = "RIOSend")]
    pub fn send(&mut self, socket: RequestQueue, slice: Slice) -> Result<(), Refused<Slice>> {
        self.start(socket).send(slice)
    }

    /// Sends a datagram to an address.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    #[doc(alias = "RIOSendEx")]
    pub fn send_to(
        &mut self,
        socket: RequestQueue,
        slice: Slice,
        address: SocketAddr,
    ) -> Result<(), Refused<Slice>> {
        self.start(socket).to(address).send(slice)
    }

    /// Starts a request with more to say than its slice.
    ///
    /// ```
    /// # use wharf::rio::{CompletionQueue, Quota, Region};
    /// # let region = Region::new(2, 64)?;
    /// # let mut queue = CompletionQueue::polled(8)?;
    /// # let socket = queue.udp("127.0.0.1:0", Quota { receives: 1, sends: 4 })?;
    /// # let address = queue.local_addr(socket)?;
    /// for mut slice in region.slices() {
    ///     slice.copy_from(b"hello")?;
    ///     queue.start(socket).to(address).context(7).deferred().send(slice)?;
    /// }
    /// queue.commit(socket)?; // both, with one system call
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[inline]
    pub fn start(&mut self, socket: RequestQueue) -> Start<'_, N> {
        let (flags, route) = (Flags::default(), Route::default());
        Start { queue: self, socket, context: 0, flags, route, deferred: false }
    }

    /// Starts what was deferred on a request queue.
    ///
    /// # Errors
    ///
    /// `Closed` if it is closed; `Forked` in a child of the process that made the queue; what the
    /// kernel says if it takes nothing (and then keeps it for the next time).
    #[doc(alias = "RIO_MSG_COMMIT_ONLY")]
    pub fn commit(&mut self, socket: RequestQueue) -> Result<()> {
        self.find(socket, "commit")?;
        self.engine.commit(socket.index).map_err(|error| Error::from_io(&error, "commit"))
    }

    // ---- Completions --------------------------------------------------------------------

    /// Takes the oldest completion. None: nothing is complete.
    ///
    /// # Errors
    ///
    /// `Forked` in a child of the process that made the queue; what the kernel says if it cannot be
    /// entered.
    #[doc(alias = "RIODequeueCompletion")]
    #[inline]
    pub fn dequeue(&mut self) -> Result<Option<Completion>> {
        match self.engine.pop_usual() {
            Some(done) => Ok(Some(self.give_back(done))),
            None => self.dequeue_other(),
        }
    }

    #[inline(never)]
    fn dequeue_other(&mut self) -> Result<Option<Completion>> {
        self.check_process("dequeue")?;
        let mut next = self.engine.pop();
        if next.is_none() {
            self.engine.look().map_err(|error| Error::from_io(&error, "dequeue"))?;
            next = self.engine.pop();
        }
        Ok(next.map(|done| self.give_back(done)))
    }

    /// Takes completions, at most `most`, to the end of `completions`. Returns how many.
    ///
    /// # Errors
    ///
    /// As for [`Self::dequeue`], if nothing was taken.
    #[doc(alias = "RIODequeueCompletion")]
    pub fn dequeue_many(
        &mut self,
        completions: &mut Vec<Completion>,
        most: usize,
    ) -> Result<usize> {
        for taken in 0..most {
            match self.dequeue() {
                Ok(Some(done)) => completions.push(done),
                Err(error) if taken == 0 => return Err(error),
                _ => return Ok(taken),
            }
        }
        Ok(most)
    }

    /// How many completions there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How much of it is not reserved for a request queue.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.reserved
    }

    /// Changes how many completions there is room for. (What exceeds the first capacity waits in
    /// the kernel in a list, and costs a little more to take.)
    ///
    /// # Errors
    ///
    /// `Busy` if more is reserved for request queues; `InvalidInput` as for a new queue.
    #[doc(alias = "RIOResizeCompletionQueue")]
    #[doc(alias = "WSAETOOMANYREFS")]
    pub fn resize(&mut self, capacity: usize) -> Result<()> {
        Self::check_capacity(capacity)?;
        if capacity < self.reserved {
            return Err(Error::of(ErrorKind::Busy, "resize a completion queue")
                .with_remedy("request queues have more reserved: lower their quotas first"));
        }
        self.capacity = capacity;
        Ok(())
    }

    // ---- Accounts -----------------------------------------------------------------------

    #[inline]
    pub(super) fn check_process(&self, action: &'static str) -> Result<()> {
        if self.engine.in_child() {
            return Err(Error::of(ErrorKind::Forked, action)
                .with_remedy("make a new completion queue in the child"));
        }
        Ok(())
    }

    #[inline]
    fn find(&self, socket: RequestQueue, action: &'static str) -> Result<&Place> {
        self.check_process(action)?;
        let place = self.places.get(usize::from(socket.index)).filter(|place| {
            let same = place.generation == socket.generation && self.id == socket.queue;
            same && place.state == State::Open
        });
        place.ok_or_else(|| {
            Error::of(ErrorKind::Closed, action)
                .with_remedy("the request queue was closed, or is another completion queue's")
        })
    }

    /// The place of a request queue in whose quota there is room for one more request.
    #[inline]
    pub(super) fn place(&self, socket: RequestQueue, direction: Direction) -> Result<&Place> {
        const FULL: &str = "dequeue first, or raise the quota";
        let action = match direction {
            Direction::Receive => "receive",
            Direction::Send => "send",
        };
        let place = self.find(socket, action)?;
        let full = match direction {
            Direction::Receive => place.receives >= place.quota.receives,
            Direction::Send => place.sends >= place.quota.sends,
        };
        if full {
            return Err(Error::of(ErrorKind::QueueFull, action).with_remedy(FULL));
        }
        Ok(place)
    }

    pub(super) fn start_send(
        &mut self,
        socket: RequestQueue,
        request: Request,
        route: Route,
        deferred: bool,
    ) {
        self.places[usize::from(socket.index)].sends += 1;
        self.engine.send(socket.index, request, route, deferred);
    }

    #[inline(always)]
    fn give_back(&mut self, mut done: Completion) -> Completion {
        let index = done.socket.index;
        let place = &mut self.places[usize::from(index)];
        match done.direction {
            Direction::Receive => place.receives -= 1,
            Direction::Send => place.sends -= 1,
        }
        done.socket = RequestQueue { index, generation: place.generation, queue: self.id };
        if place.state == State::Closed {
            self.free_if_over(index);
        }
        done
    }

    #[cold]
    fn free_if_over(&mut self, index: u16) {
        let place = &mut self.places[usize::from(index)];
        if place.receives + place.sends == 0 {
            place.state = State::Free;
            place.generation = place.generation.wrapping_add(1);
            self.reserved -= place.quota.receives + place.quota.sends;
        }
    }
}

const REQUEST_QUEUE: &str = "request queue";

/// Binds a UDP socket on which registered I/O may be done, for [`CompletionQueue::udp_socket`].
///
/// On Linux every socket will do. The Registered I/O of Windows wants one that was made for it, as
/// this one; on others the queue makes overlapped calls.
///
/// ```
/// use wharf::rio::{CompletionQueue, Options, Quota, bind_udp};
///
/// let socket = bind_udp("127.0.0.1:0")?;
/// let mut queue = CompletionQueue::polled(8)?;
/// let quota = Quota { receives: 8, sends: 0 };
/// let socket = queue.udp_socket(socket, quota, Options::new().addresses())?;
/// queue.close(socket)?;
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Errors
///
/// If the address is not usable, in use, or not this machine's.
#[doc(alias = "WSA_FLAG_REGISTERED_IO")]
pub fn bind_udp(address: impl ToSocketAddrs) -> Result<UdpSocket> {
    const NAME: &str = "give an address and a port, such as 127.0.0.1:7000, or a known host";
    let mut last = Error::of(ErrorKind::InvalidInput, "bind").with_remedy(NAME);
    for address in address.to_socket_addrs().map_err(|_| last)? {
        match bind(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Error::from_io(&error, "bind"),
        }
    }
    Err(last)
}

fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = cfg_select! {
        windows => { crate::sys::socket::new_for_datagrams(address)? }
        _ => { Socket::new(Domain::for_address(address), Type::DGRAM, None)? }
    };
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Sets on a socket what the options ask for. Returns whether it is one of IPv6.
fn prepare(socket: &UdpSocket, options: Options) -> std::io::Result<bool> {
    socket.set_nonblocking(false)?;
    let v6 = socket.local_addr()?.is_ipv6();
    if options.coalesce {
        udp::set_coalescing(socket, true)?;
    }
    if options.local_addresses {
        udp::set_packet_info(socket, true)?;
    }
    Ok(v6)
}

impl<N> fmt::Debug for CompletionQueue<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("capacity", &self.capacity)
            .field("reserved", &self.reserved)
            .finish_non_exhaustive()
    }
}
