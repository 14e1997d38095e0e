//! UDP: sockets, and how their operations are started.

mod datagram;
mod options;
mod work;

use std::{
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

pub(crate) use self::work::Work;
pub use self::{
    datagram::{Datagrams, Ecn, Envelope, IcmpError, Received},
    options::Interface,
};
use crate::{
    block::{HandleShared, OpId, Payload},
    buf::Buf,
    error::{Error, ErrorKind, Refused, Result},
    port::Port,
    start::Start,
    sys::{self, Kind, OwnedSocket},
};

/// The most bytes that come at once: a whole packet of IP.
const LARGEST: usize = 65_535;
/// How large the pool's buffers for datagrams are, if nothing else is said. One cache line more
/// than a power of two, so that the first bytes of all of them do not compete for the same places
/// in the processor's caches.
pub(crate) const BUFFER: usize = 65_536 + 64;

/// A socket for datagrams that belongs to a port. Clones are the same socket.
///
/// An operation in flight holds a clone, and its packet brings it. The socket is closed when the
/// last clone and the last operation on it are gone, or by [`UdpSocket::close`].
///
/// Any number of receives and sends may be started; those of one direction take effect in the
/// order in which they were started, whichever worker starts them: the first receive gets the
/// first datagram. Their packets leave the port in that order too, but two workers that take one
/// each may handle them at the same time: see [`UdpSocket::set_serial`].
///
/// Datagrams may be lost, doubled or come in another order than they were sent in. What the
/// network has to say about one that was sent does not fail a receive, here: it is passed over, or
/// told by [`UdpSocket::recv_errors`].
///
/// ```
/// use wharf::{Op, Port};
///
/// let port = Port::<()>::new(1)?;
/// let socket = port.bind_udp("127.0.0.1:0", ())?;
/// socket.recv_each()?; // goes on receiving
/// # let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
/// # peer.send_to(b"hello", socket.local_addr()?).unwrap();
/// # let client = std::thread::spawn({ let port = port.clone(); move || {
/// #     assert_eq!(peer.recv(&mut [0; 10]).unwrap(), 5);
/// #     port.close();
/// # }});
///
/// port.workers(2).run(|packet| {
///     packet.bytes()?;
///     if let Op::RecvFrom { socket, buf, received: Some(received) } = packet.op {
///         socket.send_to(buf, received.from)?;
///     }
///     Ok(())
/// })?;
/// # client.join().unwrap();
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct UdpSocket<K: 'static, M: 'static = ()> {
    pub(crate) shared: Arc<HandleShared<K, M>>,
}

impl<K, M> Clone for UdpSocket<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K, M> fmt::Debug for UdpSocket<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("local", &self.local_addr().ok()).finish()
    }
}

/// Two clones of one socket are equal.
impl<K, M> PartialEq for UdpSocket<K, M> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl<K, M> Eq for UdpSocket<K, M> {}

/// # Sockets for datagrams
impl<K, M> Port<K, M>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    /// Makes a socket for datagrams with this address of its own; port 0: one that the system
    /// chooses. On `[::]` it has datagrams of IPv4, too, on Linux; on Windows only of IPv6.
    ///
    /// What has to be set before that (to share the address with other programs, for example) is
    /// set on a `socket2::Socket`, which is then associated.
    ///
    /// # Errors
    ///
    /// If the address is not usable, in use, or not this machine's.
    pub fn bind_udp(&self, address: impl ToSocketAddrs, key: K) -> Result<UdpSocket<K, M>> {
        const NAME: &str = "give an address and a port, such as 127.0.0.1:7000, or a known host";
        let mut last = Error::of(ErrorKind::InvalidInput, "bind").with_remedy(NAME);
        for address in address.to_socket_addrs().map_err(|_| last)? {
            let bound = Socket::new(Domain::for_address(address), Type::DGRAM, None)
                .and_then(|socket| socket.bind(&SockAddr::from(address)).map(|()| socket));
            match bound {
                Ok(socket) => return Ok(self.associate_udp(socket, key)?),
                Err(error) => last = Error::of_address(&error, "bind"),
            }
        }
        Err(last)
    }

    /// Makes a socket that receives what is sent to a group and a port, through this interface. It
    /// shares both with other sockets of this machine that are made like this (SO_REUSEADDR): all
    /// of them receive every datagram. On Windows it receives what is sent to the port alone, too:
    /// no socket is bound to a group there.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the address is no group; or what the system says if there is no such
    /// interface, or another program has the port for itself.
    #[doc(alias = "WSAJoinLeaf")]
    pub fn bind_multicast(
        &self,
        group: SocketAddr,
        interface: Interface,
        key: K,
    ) -> Result<UdpSocket<K, M>> {
        check_group(group.ip())?;
        let socket = Socket::new(Domain::for_address(group), Type::DGRAM, None)
            .and_then(|socket| {
                socket.set_reuse_address(true)?;
                sys::udp::bind_to_group(&socket, group, interface.index())?;
                Ok(socket)
            })
            .map_err(|error| Error::of_address(&error, "bind"))?;
        options::of_group(sys::udp::join(&socket, group.ip(), interface.index()))?;
        Ok(self.associate_udp(socket, key)?)
    }

    /// Associates a socket for datagrams that is bound, or connected: a `std::net::UdpSocket`, a
    /// `socket2::Socket`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is none, `Associated` if it belongs to a port already, `Closed` if the
    /// port is closed. The descriptor comes back.
    pub fn associate_udp(
        &self,
        socket: impl Into<OwnedSocket>,
        key: K,
    ) -> Result<UdpSocket<K, M>, Refused<OwnedSocket>> {
        let socket = socket.into();
        if let Err(error) = check_socket(&socket) {
            return Err(Refused { error, value: socket });
        }
        HandleShared::new(self.shared(), socket, key, any).map(UdpSocket::from_shared)
    }
}

fn any(_: Kind) -> Result<()> {
    Ok(())
}

/// Whether it is a socket for datagrams of IP.
fn check_socket(socket: &OwnedSocket) -> Result<()> {
    let ip = |domain| domain == Domain::IPV4 || domain == Domain::IPV6;
    match (SockRef::from(socket).r#type(), sys::udp::domain(socket)) {
        (Ok(Type::DGRAM), Ok(domain)) if ip(domain) => Ok(()),
        _ => Err(Error::of(ErrorKind::InvalidInput, "associate")
            .with_remedy("this takes UDP sockets; for streams there is Port::associate")),
    }
}

fn check_group(group: IpAddr) -> Result<()> {
    if group.is_multicast() {
        return Ok(());
    }
    Err(Error::of(ErrorKind::InvalidInput, "multicast")
        .with_remedy("a group is an address from 224.0.0.0 to 239.255.255.255, or one in ff00::/8"))
}

/// Says what can be done about an error of a send.
fn explain(error: Error) -> Error {
    let remedy = error.raw_os_error().and_then(sys::udp::send_remedy);
    remedy.map_or(error, |remedy| error.with_remedy(remedy))
}

impl Envelope {
    /// Refuses what cannot be sent.
    pub(crate) fn check(&self, bytes: usize) -> Result<()> {
        let refuse =
            |remedy| Err(Error::of(ErrorKind::InvalidInput, "send_to").with_remedy(remedy));
        let four = self.to.is_some_and(|to| to.ip().to_canonical().is_ipv4());
        let most = if four { 65_507 } else { 65_527 };
        let largest = if self.segment == 0 { bytes } else { self.segment.into() };
        if largest > most {
            return refuse(
                "a datagram carries at most 65,507 bytes over IPv4 and 65,527 over IPv6; \
                 Envelope::segments cuts a larger buffer into several",
            );
        }
        if self.hop_limit == Some(0) {
            return refuse("a hop limit is from 1 to 255");
        }
        let family = |address: IpAddr| address.to_canonical().is_ipv4();
        if let (Some(to), Some(source)) = (self.to, self.source)
            && family(to.ip()) != family(source)
        {
            return refuse("the source and the address it goes to must be of one family");
        }
        Ok(())
    }
}

fn refused(refused: Refused<Payload>) -> Refused<Buf> {
    let Refused { error, value } = refused;
    let value = match value {
        Payload::Udp(Work::Recv(buf) | Work::Send(buf)) => buf,
        _ => Buf::default(),
    };
    Refused { error, value }
}

impl<K, M> Start<'_, UdpSocket<K, M>, M> {
    /// See [`UdpSocket::recv`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        self.handle
            .shared
            .launch(Payload::Udp(Work::Recv(buf.into())), self.extras)
            .map_err(refused)
    }

    /// See [`UdpSocket::recv_each`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_each(self) -> Result<OpId> {
        Ok(self.handle.shared.launch(Payload::Udp(Work::RecvEach), self.extras).map_err(refused)?)
    }

    /// See [`UdpSocket::recv_errors`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_errors(self) -> Result<OpId> {
        Ok(self
            .handle
            .shared
            .launch(Payload::Udp(Work::RecvErrors), self.extras)
            .map_err(refused)?)
    }

    /// See [`UdpSocket::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        self.send_to(buf, Envelope::connected())
    }

    /// See [`UdpSocket::send_to`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_to(
        self,
        buf: impl Into<Buf>,
        to: impl Into<Envelope>,
    ) -> Result<OpId, Refused<Buf>> {
        let (buf, envelope) = (buf.into(), to.into());
        if let Err(error) = envelope.check(buf.len()) {
            return Err(Refused { error, value: buf });
        }
        self.handle.shared.launch_to(buf, &envelope, self.extras).map_err(refused)
    }
}

/// # Operations
impl<K, M> UdpSocket<K, M> {
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

    /// Receives one datagram: into a buffer of the caller's, whose contents are replaced, or into
    /// one of the pool ([`Buf::pooled`]), which is taken when there is one. The packet is an
    /// [`Op::RecvFrom`](crate::Op::RecvFrom), and says who sent it. Zero bytes are a datagram, too.
    ///
    /// What does not fit into the buffer is lost:
    /// [`Received::is_truncated`] tells. A buffer without room makes
    /// it a zero-byte receive: its packet comes, without a datagram, when there is one to receive.
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull`, or `InvalidInput` for a buffer that cannot be written to, or is too
    /// small where datagrams come several at once; the buffer comes back.
    #[doc(alias = "recv_from")]
    #[doc(alias = "WSARecvFrom")]
    #[doc(alias = "WSARecvMsg")]
    pub fn recv(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().recv(buf).map(drop)
    }

    /// Goes on receiving datagrams into buffers of the pool: a packet for each, all but the last
    /// with [`Packet::more`](crate::Packet#structfield.more) set. The last brings none: it is an
    /// error, or the cancellation. The next receive starts when a packet is taken, so that no more
    /// than one packet waits, and as many workers as may run handle one each.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "WSARecvFrom")]
    pub fn recv_each(&self) -> Result<()> {
        self.start().recv_each().map(drop)
    }

    /// Goes on telling what the network says about datagrams that were sent: a packet, an
    /// [`Op::Icmp`](crate::Op::Icmp), for each ICMP message. Nobody has to listen: what nobody asks
    /// for is thrown away. The system keeps few of them, and routers may send few.
    ///
    /// Until it is cancelled the system also fails sends and receives because of them; that is
    /// passed over.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`; `Unsupported` on Windows: receives and sends go on without.
    #[doc(alias = "IP_RECVERR")]
    #[doc(alias = "SIO_UDP_CONNRESET")]
    pub fn recv_errors(&self) -> Result<()> {
        self.start().recv_errors().map(drop)
    }

    /// Sends a buffer as one datagram to whom the socket is connected; see [`Self::connect`].
    ///
    /// # Errors
    ///
    /// As for [`Self::send_to`].
    #[doc(alias = "WSASend")]
    pub fn send(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().send(buf).map(drop)
    }

    /// Sends a buffer as one datagram, or as several, to an address, or as an envelope says. The
    /// packet is an [`Op::SendTo`](crate::Op::SendTo): the system has the datagram. Nobody knows
    /// whether it arrives.
    ///
    /// ```
    /// use wharf::{Envelope, Port, Wait};
    ///
    /// let port = Port::<()>::new(1)?;
    /// let socket = port.bind_udp("127.0.0.1:0", ())?;
    /// let peer = std::net::UdpSocket::bind("127.0.0.1:0")?;
    /// let to = peer.local_addr()?;
    ///
    /// socket.send_to("hello", to)?;
    /// socket.send_to("a datagram at a time", Envelope::to(to).segments(5))?;
    /// for length in [5, 20] {
    ///     let Wait::Packet(sent) = port.wait() else { panic!() };
    ///     assert_eq!(sent.bytes()?, length);
    /// }
    /// let mut buffer = [0; 100];
    /// assert_eq!(peer.recv(&mut buffer)?, 5);
    /// for part in ["a dat", "agram", " at a", " time"] {
    ///     let length = peer.recv(&mut buffer)?;
    ///     assert_eq!(&buffer[..length], part.as_bytes());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull`, or `InvalidInput` for a datagram that is too large, or an envelope
    /// that makes no sense; the buffer comes back.
    #[doc(alias = "sendto")]
    #[doc(alias = "WSASendTo")]
    #[doc(alias = "WSASendMsg")]
    pub fn send_to(
        &self,
        buf: impl Into<Buf>,
        to: impl Into<Envelope>,
    ) -> Result<(), Refused<Buf>> {
        self.start().send_to(buf, to).map(drop)
    }

    /// Asks for one operation to be cancelled, from any thread. True: it was in flight. Its packet
    /// comes all the same, and may say that it had succeeded by then.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel(&self, id: OpId) -> bool {
        self.shared.cancel(id)
    }

    /// Asks for everything in flight on this socket to be cancelled. Returns how many operations
    /// that were.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel_all(&self) -> usize {
        self.shared.raw.cancel_all()
    }

    /// Closes the socket for all who hold it: nothing more can be started, and what is in flight
    /// is cancelled and comes back in its packets.
    #[doc(alias = "closesocket")]
    pub fn close(&self) {
        self.shared.raw.close();
    }

    /// From now on only one packet of this socket is out at a time: the next one is handed to a
    /// worker when the last one's [`Packet::turn`](crate::Packet#structfield.turn) is dropped.
    pub fn set_serial(&self, serial: bool) {
        self.shared.raw.set_serial(serial);
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        address(SockRef::from(self).local_addr())
    }

    /// The address to which it is connected.
    ///
    /// # Errors
    ///
    /// If it is not.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        address(SockRef::from(self).peer_addr())
    }
}

fn address(address: std::io::Result<SockAddr>) -> Result<SocketAddr> {
    address
        .map_err(|error| Error::from_io(&error, "address"))?
        .as_socket()
        .ok_or_else(|| Error::of(ErrorKind::Unsupported, "address"))
}
