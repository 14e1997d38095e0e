//! TCP: listeners, connections, and how their operations are started.

use std::{
    fmt,
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{SockAddr, SockRef};

use crate::{
    block::{Extras, HandleShared, OpId, Payload, Vectored},
    buf::Buf,
    error::{Error, ErrorKind, Refused, Result},
    port::PortShared,
    raw::handle::Attempted,
    start::Start,
    sys::{Kind, OwnedSocket},
};

/// A listening socket that belongs to a port. Clones are the same socket.
///
/// It is closed when the last clone and the last operation on it are gone.
pub struct Listener<K: 'static, M: 'static = ()> {
    pub(crate) shared: Arc<HandleShared<K, M>>,
}

/// A connection that belongs to a port. Clones are the same connection.
///
/// An operation in flight holds a clone, and its packet brings it: a server needs to keep none.
/// The connection is closed when the last clone and the last operation on it are gone, or by
/// [`Stream::close`].
///
/// Any number of receives and sends may be started; those of one direction take effect in the
/// order in which they were started, whichever worker starts them. Their packets leave the port in
/// that order too, but two workers that take one each may handle them at the same time: see
/// [`Stream::set_serial`].
pub struct Stream<K: 'static, M: 'static = ()> {
    pub(crate) shared: Arc<HandleShared<K, M>>,
}

impl<K, M> Clone for Listener<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K, M> Clone for Stream<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K, M> fmt::Debug for Listener<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("local", &self.local_addr().ok()).finish()
    }
}

impl<K, M> fmt::Debug for Stream<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer_addr().ok()).finish()
    }
}

/// Two clones of one connection are equal.
impl<K, M> PartialEq for Stream<K, M> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl<K, M> Eq for Stream<K, M> {}

fn address(address: std::io::Result<SockAddr>) -> Result<SocketAddr> {
    address
        .map_err(|error| Error::from_io(&error, "address"))?
        .as_socket()
        .ok_or_else(|| Error::of(ErrorKind::Unsupported, "address"))
}

/// What bytes can be received from and sent to, in order.
pub(crate) fn streams(kind: Kind) -> Result<()> {
    match kind {
        Kind::Socket | Kind::Pipe => Ok(()),
        Kind::File => Err(Error::of(ErrorKind::InvalidInput, "associate")
            .with_remedy("a file has positions: see File::associate")),
        Kind::Directory => Err(Error::of(ErrorKind::IsADirectory, "associate")),
    }
}

fn refused(refused: Refused<Payload>) -> Refused<Buf> {
    let Refused { error, value } = refused;
    let value = match value {
        Payload::Recv(buf, _)
        | Payload::Send(buf)
        | Payload::Exchange(buf, _)
        | Payload::AcceptFirst(buf) => buf,
        _ => Buf::default(),
    };
    Refused { error, value }
}

/// What is in flight on a connection: started, and no packet on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// Receives, those of exchanges included that have sent.
    pub receives: usize,
    /// Sends, exchanges that have not sent all, and what else has its place in their order.
    pub sends: usize,
}

/// What became of an operation that was to be done at once if possible.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "these are all there are")]
pub enum Now<M = ()> {
    /// It is in flight, and its packet will come.
    Pending(OpId),
    /// It is over, and has no packet.
    Completed {
        /// The buffer, holding what was received or sent.
        buf: Buf,
        /// How many bytes.
        bytes: usize,
        /// The context it was given.
        context: Option<M>,
    },
}

impl<K, M> Start<'_, Stream<K, M>, M> {
    /// See [`Stream::recv`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        self.handle.shared.launch(Payload::Recv(buf.into(), None), self.extras).map_err(refused)
    }

    /// See [`Stream::recv_exact`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_exact(self, buf: impl Into<Buf>, bytes: usize) -> Result<OpId, Refused<Buf>> {
        self.handle
            .shared
            .launch(Payload::Recv(buf.into(), Some(bytes)), self.extras)
            .map_err(refused)
    }

    /// Receives at once if something is there, without a packet; otherwise starts a receive. Into a
    /// buffer of the caller's; one of the pool is always waited for.
    ///
    /// # Errors
    ///
    /// As for [`Stream::recv`]; and if it fails at once, without a packet. The buffer comes back.
    #[doc(alias = "FILE_SKIP_COMPLETION_PORT_ON_SUCCESS")]
    pub fn recv_now(self, buf: impl Into<Buf>) -> Result<Now<M>, Refused<Buf>> {
        let mut buf = buf.into();
        let attempted = self.handle.shared.recv_now(&mut buf);
        self.go_on(attempted, buf, |buf| Payload::Recv(buf, None))
    }

    /// Sends at once if all of it can be given to the kernel, without a packet; otherwise starts a
    /// send, of what is left.
    ///
    /// # Errors
    ///
    /// As for [`Stream::send`]; and if it fails at once, without a packet. The buffer comes back.
    #[doc(alias = "FILE_SKIP_COMPLETION_PORT_ON_SUCCESS")]
    pub fn send_now(self, buf: impl Into<Buf>) -> Result<Now<M>, Refused<Buf>> {
        let buf = buf.into();
        let attempted = self.handle.shared.send_now(&buf);
        self.go_on(attempted, buf, Payload::Send)
    }

    /// What comes of an attempt: the rest of it is started.
    #[inline]
    fn go_on(
        self,
        attempted: Result<Attempted<'_>>,
        buf: Buf,
        payload: impl FnOnce(Buf) -> Payload,
    ) -> Result<Now<M>, Refused<Buf>> {
        match attempted {
            Ok(Attempted::Over(bytes)) => {
                Ok(Now::Completed { buf, bytes, context: self.extras.context })
            }
            Ok(Attempted::Left(state, done)) => {
                let rest = self.handle.shared.launch_rest(payload(buf), self.extras, (state, done));
                rest.map(Now::Pending).map_err(refused)
            }
            Err(error) => Err(Refused { error, value: buf }),
        }
    }

    /// See [`Stream::recv_each`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_each(self) -> Result<OpId> {
        Ok(self.handle.shared.launch(Payload::RecvEach, self.extras).map_err(refused)?)
    }

    /// See [`Stream::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        self.handle.shared.launch(Payload::Send(buf.into()), self.extras).map_err(refused)
    }

    /// See [`Stream::exchange`]. A deadline counts for the send, and anew for the receive.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn exchange(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        let payload = Payload::Exchange(buf.into(), None);
        self.handle.shared.launch(payload, self.extras).map_err(refused)
    }

    /// See [`Stream::exchange_exact`]. A deadline counts for the send, and anew for the receive.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn exchange_exact(self, buf: impl Into<Buf>, bytes: usize) -> Result<OpId, Refused<Buf>> {
        let payload = Payload::Exchange(buf.into(), Some(bytes));
        self.handle.shared.launch(payload, self.extras).map_err(refused)
    }

    /// See [`Stream::send_vectored`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_vectored(self, bufs: Vec<Buf>) -> Result<OpId, Refused<Vec<Buf>>> {
        let payload = Payload::SendVectored(Box::new(Vectored::new(bufs)));
        self.handle.shared.launch(payload, self.extras).map_err(|refused| {
            let Payload::SendVectored(vectored) = refused.value else {
                unreachable!("what was handed in comes back")
            };
            Refused { error: refused.error, value: vectored.bufs }
        })
    }

    /// See [`Stream::shutdown`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn shutdown(self, how: Shutdown) -> Result<OpId> {
        Ok(self.handle.shared.launch(Payload::Shutdown(how), self.extras).map_err(refused)?)
    }

    /// See [`Stream::disconnect`].
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(windows)]
    pub fn disconnect(self, reuse: bool) -> Result<OpId> {
        Ok(self.handle.shared.launch(Payload::Disconnect(reuse), self.extras).map_err(refused)?)
    }

    /// See [`Stream::connect`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn connect(self, address: SocketAddr) -> Result<OpId> {
        self.connect_to(address.into())
    }

    pub(crate) fn connect_to(self, address: SockAddr) -> Result<OpId> {
        let address = Box::new(address);
        Ok(self.handle.shared.launch(Payload::Connect(address), self.extras).map_err(refused)?)
    }
}

impl<K, M> Start<'_, Listener<K, M>, M> {
    /// See [`Listener::accept_one`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept_one(self) -> Result<OpId> {
        Ok(self
            .handle
            .shared
            .launch(Payload::Accept { repeat: false }, self.extras)
            .map_err(refused)?)
    }

    /// See [`Listener::accept_first`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept_first(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        self.handle.shared.launch(Payload::AcceptFirst(buf.into()), self.extras).map_err(refused)
    }
}

impl<K, M> Stream<K, M> {
    pub(crate) fn from_shared(shared: Arc<HandleShared<K, M>>) -> Self {
        Self { shared }
    }

    /// The per-handle data it was associated under.
    pub fn key(&self) -> &K {
        self.shared.key()
    }

    /// An operation with a context, a deadline, without a packet, or to be cancelled.
    pub fn start(&self) -> Start<'_, Self, M> {
        Start::of(self)
    }

    /// Receives at least one byte, at most what fits: into a buffer of the caller's, whose
    /// contents are replaced, or into one of the pool ([`Buf::pooled`]). The packet is an
    /// [`Op::Recv`](crate::Op::Recv); zero bytes are the end of the stream. A buffer without room
    /// makes it a zero-byte receive: its packet comes, with zero bytes, when there is something to
    /// receive.
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull`, or `InvalidInput` for a buffer that cannot be written to; the buffer
    /// comes back.
    #[doc(alias = "WSARecv")]
    pub fn recv(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().recv(buf).map(drop)
    }

    /// Receives exactly so many bytes, or as many as come before the end of the stream.
    ///
    /// # Errors
    ///
    /// As for [`Self::recv`]; and `InvalidInput` for no byte, or more than fit.
    #[doc(alias = "MSG_WAITALL")]
    pub fn recv_exact(&self, buf: impl Into<Buf>, bytes: usize) -> Result<(), Refused<Buf>> {
        self.start().recv_exact(buf, bytes).map(drop)
    }

    /// Goes on receiving into buffers of the pool: a packet for each, all but the last with
    /// [`Packet::more`](crate::Packet#structfield.more) set. The last has no data: the end of the
    /// stream, an error, or the cancellation. The next receive starts when a packet is taken, so a
    /// connection never has more than one packet waiting and one receive in the kernel.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    pub fn recv_each(&self) -> Result<()> {
        self.start().recv_each().map(drop)
    }

    /// Sends all bytes of a buffer. The packet is an [`Op::Send`](crate::Op::Send).
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`; the buffer comes back.
    #[doc(alias = "WSASend")]
    pub fn send(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().send(buf).map(drop)
    }

    /// Sends all bytes of a buffer, and then receives, as one operation: an answer and the next
    /// request of a server, a request and its answer of a client. There is one packet where a send
    /// and a receive would have two: an [`Op::Recv`](crate::Op::Recv) once something has been
    /// received; or, if sending fails, an [`Op::Send`](crate::Op::Send) with the error, and nothing
    /// is received.
    ///
    /// The buffer is received into, in its whole capacity, as by [`Self::recv`]. One of the pool
    /// goes back to it when it has been sent, and another is taken when data is there; so it is
    /// for one that cannot be written to (`Bytes`, static), which is dropped with the packet's
    /// making.
    ///
    /// The receive takes its place in the order of receives when the sending is over, not when this
    /// is called.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    #[doc(alias = "TransactNamedPipe")]
    pub fn exchange(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().exchange(buf).map(drop)
    }

    /// The same, to receive exactly so many bytes into the buffer that was sent.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`]; and `InvalidInput` for no byte or more than fit, and for a buffer of
    /// the pool or one that cannot be written to.
    pub fn exchange_exact(&self, buf: impl Into<Buf>, bytes: usize) -> Result<(), Refused<Buf>> {
        self.start().exchange_exact(buf, bytes).map(drop)
    }

    /// What is in flight on this connection.
    pub fn pending(&self) -> Pending {
        let [receives, sends] = self.shared.raw.pending();
        Pending { receives, sends }
    }

    /// Sends all bytes of several buffers, at most 1,024, in order, as one operation with one
    /// packet, an [`Op::SendVectored`](crate::Op::SendVectored).
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull`, or `InvalidInput` for too many buffers; they come back.
    pub fn send_vectored(&self, bufs: Vec<Buf>) -> Result<(), Refused<Vec<Buf>>> {
        self.start().send_vectored(bufs).map(drop)
    }

    /// Ends a direction, or both, after every send that was started before. The packet is an
    /// [`Op::Shutdown`](crate::Op::Shutdown).
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "DisconnectEx")]
    pub fn shutdown(&self, how: Shutdown) -> Result<()> {
        self.start().shutdown(how).map(drop)
    }

    /// Ends the connection after every send that was started before, and in both directions:
    /// receives take what has arrived, and then see the end, or fail. The packet is an
    /// [`Op::Shutdown`](crate::Op::Shutdown).
    ///
    /// With `reuse` the socket may be connected again after it ([`Self::connect`]). That may make
    /// the packet wait for as long as the system keeps an ended connection (TIME_WAIT), minutes
    /// perhaps.
    ///
    /// An instance of a named pipe is taken from its client at once, who cannot receive what is
    /// left, and may be served again ([`Self::serve_pipe`]); `reuse` says nothing there.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[cfg(windows)]
    #[doc(alias = "DisconnectEx")]
    #[doc(alias = "TF_REUSE_SOCKET")]
    #[doc(alias = "DisconnectNamedPipe")]
    pub fn disconnect(&self, reuse: bool) -> Result<()> {
        self.start().disconnect(reuse).map(drop)
    }

    /// Connects, or tries to connect again. The packet is an [`Op::Connect`](crate::Op::Connect).
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "ConnectEx")]
    pub fn connect(&self, address: SocketAddr) -> Result<()> {
        self.start().connect(address).map(drop)
    }

    /// Asks for one operation to be cancelled, from any thread. True: it was in flight. Its packet
    /// comes all the same, and may say that it had succeeded by then.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel(&self, id: OpId) -> bool {
        self.shared.cancel(id)
    }

    /// Asks for everything in flight on this connection to be cancelled. Returns how many
    /// operations that were.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel_all(&self) -> usize {
        self.shared.raw.cancel_all()
    }

    /// Closes the connection for all who hold it: nothing more can be started, what is in flight
    /// is cancelled and comes back in its packets, and then the peer learns of the end.
    #[doc(alias = "closesocket")]
    pub fn close(&self) {
        self.shared.raw.close();
    }

    /// From now on only one packet of this connection is out at a time: the next one is handed to
    /// a worker when the last one's [`Packet::turn`](crate::Packet#structfield.turn) is dropped.
    /// For handlers that keep state per connection and want no lock.
    pub fn set_serial(&self, serial: bool) {
        self.shared.raw.set_serial(serial);
    }

    /// The address of the peer.
    ///
    /// # Errors
    ///
    /// If the socket is not connected.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        self.has_addresses()?;
        address(SockRef::from(self).peer_addr())
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.has_addresses()?;
        address(SockRef::from(self).local_addr())
    }

    fn has_addresses(&self) -> Result<()> {
        match self.shared.raw.kind() {
            Kind::Socket => Ok(()),
            _ => Err(Error::of(ErrorKind::Unsupported, "address")),
        }
    }
}

impl<K, M> Listener<K, M> {
    pub(crate) fn from_shared(shared: Arc<HandleShared<K, M>>) -> Self {
        Self { shared }
    }

    /// The per-handle data it was associated under.
    pub fn key(&self) -> &K {
        self.shared.key()
    }

    /// An operation with a context, a deadline, without a packet, or to be cancelled.
    pub fn start(&self) -> Start<'_, Self, M> {
        Start::of(self)
    }

    /// Goes on accepting: a packet, an [`Op::Accept`](crate::Op::Accept), for every connection.
    /// Where there are no descriptors or no memory for a connection it waits a little and goes on;
    /// the connection stays in the backlog.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "AcceptEx")]
    pub fn accept(&self) -> Result<()> {
        let accept = Payload::Accept { repeat: true };
        self.shared.launch(accept, Extras::default()).map(drop).map_err(|refused| refused.error)
    }

    /// Accepts one connection. Any number of these may wait.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "AcceptEx")]
    pub fn accept_one(&self) -> Result<()> {
        self.start().accept_one().map(drop)
    }

    /// Accepts one connection together with its first data, which the packet brings in the
    /// buffer. A connection that sends nothing before the deadline is closed, and the packet fails
    /// with `TimedOut`. While it waits for data the next accept goes on: start as many as
    /// connections may be silent at once.
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull`, or `InvalidInput` for a buffer without room; it comes back.
    #[doc(alias = "AcceptEx")]
    pub fn accept_first(
        &self,
        buf: impl Into<Buf>,
        deadline: Duration,
    ) -> Result<(), Refused<Buf>> {
        self.start().deadline(deadline).accept_first(buf).map(drop)
    }

    /// Asks for one operation to be cancelled; see [`Stream::cancel`].
    pub fn cancel(&self, id: OpId) -> bool {
        self.shared.cancel(id)
    }

    /// Asks for every accept to be cancelled. Returns how many there were.
    pub fn cancel_all(&self) -> usize {
        self.shared.raw.cancel_all()
    }

    /// Stops listening: what is in flight is cancelled, and nothing more can be started.
    pub fn close(&self) {
        self.shared.raw.close();
    }

    /// The address it listens on, with the real port where 0 was asked for.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        address(SockRef::from(self).local_addr())
    }
}

/// A connection that was accepted and is not associated yet. Dropping it closes it.
pub struct Incoming<K: 'static, M: 'static = ()> {
    pub(crate) fd: OwnedSocket,
    port: Arc<PortShared<K, M>>,
}

impl<K, M> fmt::Debug for Incoming<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("fd", &self.fd).finish()
    }
}

impl<K, M> Incoming<K, M> {
    pub(crate) fn new(fd: OwnedSocket, port: Arc<PortShared<K, M>>) -> Self {
        Self { fd, port }
    }

    /// Associates it, under a key, with the port whose listener accepted it.
    ///
    /// # Errors
    ///
    /// `Closed` if the port is closed. The connection is closed then.
    pub fn associate(self, key: K) -> Result<Stream<K, M>> {
        Ok(Stream::from_shared(HandleShared::new(&self.port, self.fd, key, streams)?))
    }

    /// The address of the peer.
    ///
    /// # Errors
    ///
    /// If it is gone already.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        address(SockRef::from(&self.fd).peer_addr())
    }
}

/// To associate it with another port, or to use it without one.
impl<K, M> From<Incoming<K, M>> for OwnedSocket {
    fn from(incoming: Incoming<K, M>) -> Self {
        incoming.fd
    }
}
