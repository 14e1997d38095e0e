//! Datagram sockets, and messages with which descriptors travel.

use std::{cell::RefCell, fmt, net::SocketAddr, path::Path, sync::Arc};

use socket2::{SockAddr, SockRef};

#[cfg(unix)]
use crate::{block::Extras, tcp::Stream};
use crate::{
    block::{HandleShared, OpId, Payload},
    buf::Buf,
    error::{Error, ErrorKind, Refused, Result},
    port::Port,
    raw,
    start::Start,
    sys::{Kind, OwnedDescriptor, OwnedSocket},
};

/// Where a datagram goes to or comes from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address(SockAddr);

impl Address {
    /// A socket of this machine, by its path.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the path is too long (about 100 bytes).
    pub fn unix(path: impl AsRef<Path>) -> Result<Self> {
        SockAddr::unix(path).map(Self).map_err(|error| Error::from_io(&error, "address"))
    }

    /// The address and the port, if it is one of the Internet's.
    #[must_use]
    pub fn as_socket(&self) -> Option<SocketAddr> {
        self.0.as_socket()
    }

    /// The path, if it is a socket of this machine that has one.
    #[cfg(unix)]
    #[must_use]
    pub fn as_path(&self) -> Option<&Path> {
        self.0.as_pathname()
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self(address.into())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_socket() {
            Some(address) => address.fmt(f),
            #[cfg(unix)]
            None => fmt::Debug::fmt(&self.as_path(), f),
            #[cfg(not(unix))]
            None => f.write_str("Address"),
        }
    }
}

/// What came with a message beside its bytes.
pub struct Ancillary(Parcel);

impl Ancillary {
    pub(crate) fn new(parcel: Parcel) -> Self {
        Self(parcel)
    }

    /// Where it came from. None: the sender has no address, or nothing was received.
    #[must_use]
    pub fn from(&self) -> Option<Address> {
        self.0.letter().arrived.then(|| self.0.letter().message.address().map(Address)).flatten()
    }

    /// Whether it was longer than the room for it, and the rest is lost.
    #[must_use]
    #[doc(alias = "WSAEMSGSIZE")]
    pub fn is_truncated(&self) -> bool {
        self.0.letter().arrived && self.0.letter().message.is_truncated()
    }

    /// Takes the descriptors that came with it. Those that are left are closed with this.
    #[cfg(unix)]
    #[doc(alias = "SCM_RIGHTS")]
    pub fn take_descriptors(&mut self) -> Vec<OwnedDescriptor> {
        std::mem::take(&mut self.0.letter_mut().descriptors)
    }

    /// Whether more descriptors came than there was room for, and those are lost.
    #[cfg(unix)]
    #[must_use]
    pub fn has_lost_descriptors(&self) -> bool {
        self.0.letter().arrived && self.0.letter().message.has_lost_descriptors()
    }
}

impl fmt::Debug for Ancillary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ancillary")
            .field("from", &self.from())
            .field("truncated", &self.is_truncated())
            .field("descriptors", &self.0.letter().descriptors)
            .finish_non_exhaustive()
    }
}

/// A message and what belongs to it, at a fixed address. Kept for the next one when it is dropped,
/// so that nothing is allocated in the steady state.
#[derive(Debug)]
pub(crate) struct Parcel(Option<Box<Letter>>);

#[derive(Debug, Default)]
pub(crate) struct Letter {
    message: raw::Message,
    /// Those that are sent, or have come.
    descriptors: Vec<OwnedDescriptor>,
    /// Whether something was received with it.
    arrived: bool,
    /// Whether it is of a datagram socket.
    datagram: bool,
}

thread_local! {
    #[expect(clippy::vec_box, reason = "a message stays where it is as long as it is used")]
    static SPARE: RefCell<Vec<Box<Letter>>> = const { RefCell::new(Vec::new()) };
}

/// How many a thread keeps.
const SPARE_LETTERS: usize = 64;

impl Parcel {
    fn new() -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        Self(Some(spare.unwrap_or_default()))
    }

    fn letter(&self) -> &Letter {
        let Some(letter) = &self.0 else { unreachable!("only a drop takes it") };
        letter
    }

    fn letter_mut(&mut self) -> &mut Letter {
        let Some(letter) = &mut self.0 else { unreachable!("only a drop takes it") };
        letter
    }

    /// A message to receive, with room for descriptors.
    fn to_receive(datagram: bool, descriptors: usize) -> Self {
        let mut parcel = Self::new();
        let letter = parcel.letter_mut();
        letter.datagram = datagram;
        letter.message.make_room(descriptors);
        parcel
    }

    /// A message to send.
    fn to_send(
        datagram: bool,
        address: Option<&Address>,
        descriptors: Vec<OwnedDescriptor>,
    ) -> Self {
        let mut parcel = Self::new();
        let letter = parcel.letter_mut();
        letter.datagram = datagram;
        letter.message.clear();
        if let Some(address) = address {
            letter.message.set_address(&address.0);
        }
        letter.message.set_descriptors(&descriptors);
        letter.descriptors = descriptors;
        parcel
    }

    pub(crate) fn is_datagram(&self) -> bool {
        self.letter().datagram
    }

    /// The message of these bytes, which stays where it is as long as the parcel is.
    pub(crate) fn message(&mut self, bytes: *mut u8, length: usize) -> *mut raw::Message {
        let letter = self.letter_mut();
        letter.arrived = false;
        letter.message.set_bytes(bytes, length);
        &raw mut letter.message
    }

    /// Takes over what came with a message.
    ///
    /// # Safety
    ///
    /// A receive with this message has just succeeded.
    pub(crate) unsafe fn arrive(&mut self) {
        let letter = self.letter_mut();
        letter.arrived = true;
        // SAFETY: the caller's promise.
        letter.descriptors = unsafe { letter.message.take_descriptors() };
    }

    #[cfg(unix)]
    fn into_descriptors(mut self) -> Vec<OwnedDescriptor> {
        std::mem::take(&mut self.letter_mut().descriptors)
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        let Some(mut letter) = self.0.take() else { return };
        letter.descriptors.clear();
        letter.arrived = false;
        // On a thread that is about to end it is freed.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_LETTERS {
                spare.push(letter);
            }
        });
    }
}

/// A datagram socket of any family that belongs to a port: one of this machine's (Unix), say. For
/// UDP there is [`UdpSocket`](crate::UdpSocket), which knows more.
/// Clones are the same socket.
///
/// Any number of receives and sends may be started: those of one direction take effect in the
/// order in which they were started. A receive takes one datagram; what does not fit into its
/// buffer is lost, and [`Ancillary::is_truncated`] says so.
///
/// ```
/// use std::net::UdpSocket;
/// use wharf::{Buf, Op, Port, Wait};
///
/// let port = Port::<()>::new(1)?;
/// let socket = port.associate_datagram(UdpSocket::bind("127.0.0.1:0")?, ())?;
/// let client = UdpSocket::bind("127.0.0.1:0")?;
/// client.send_to(b"hello", socket.local_addr()?.as_socket().unwrap())?;
///
/// socket.recv_from(Buf::with_capacity(1500))?;
/// let Wait::Packet(packet) = port.wait() else { panic!() };
/// let Op::RecvDatagram { socket, buf, message } = packet.op else { panic!() };
/// assert_eq!((&*buf, message.is_truncated()), (&b"hello"[..], false));
/// socket.send_to(buf, message.from().unwrap())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Datagram<K: 'static, M: 'static = ()> {
    pub(crate) shared: Arc<HandleShared<K, M>>,
}

impl<K, M> Clone for Datagram<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K, M> fmt::Debug for Datagram<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram").field("local", &self.local_addr().ok()).finish()
    }
}

/// Two clones of one socket are equal.
impl<K, M> PartialEq for Datagram<K, M> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl<K, M> Eq for Datagram<K, M> {}

fn sockets(kind: Kind) -> Result<()> {
    match kind {
        Kind::Socket => Ok(()),
        _ => Err(Error::of(ErrorKind::InvalidInput, "associate")
            .with_remedy("only sockets exchange datagrams")),
    }
}

impl<K, M> Port<K, M>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    /// Associates a datagram socket: a `std::net::UdpSocket`, a
    /// `std::os::unix::net::UnixDatagram`, a `socket2::Socket`.
    ///
    /// # Errors
    ///
    /// `Associated` if the socket belongs to a port already, `InvalidInput` for what is no socket,
    /// `Closed` if the port is closed. The descriptor comes back.
    pub fn associate_datagram(
        &self,
        socket: impl Into<OwnedSocket>,
        key: K,
    ) -> Result<Datagram<K, M>, Refused<OwnedSocket>> {
        let shared = HandleShared::new(self.shared(), socket.into(), key, sockets)?;
        Ok(Datagram::from_shared(shared))
    }
}

fn refused(refused: Refused<Payload>) -> Refused<Buf> {
    let Refused { error, value } = refused;
    let value = match value {
        Payload::RecvMessage(buf, _) | Payload::SendMessage(buf, _) => buf,
        _ => Buf::default(),
    };
    Refused { error, value }
}

#[cfg(unix)]
fn refused_both(refused: Refused<Payload>) -> Refused<(Buf, Vec<OwnedDescriptor>)> {
    let Refused { error, value } = refused;
    let value = match value {
        Payload::SendMessage(buf, parcel) => (buf, parcel.into_descriptors()),
        _ => (Buf::default(), Vec::new()),
    };
    Refused { error, value }
}

#[cfg(unix)]
fn check_count(descriptors: usize) -> Result<()> {
    if descriptors <= raw::Message::MAX_DESCRIPTORS {
        return Ok(());
    }
    Err(Error::of(ErrorKind::InvalidInput, "descriptors")
        .with_remedy("at most 253 descriptors travel with one message"))
}

impl<K, M> Start<'_, Datagram<K, M>, M> {
    /// See [`Datagram::recv_from`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_from(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        let payload = Payload::RecvMessage(buf.into(), Parcel::to_receive(true, 0));
        self.handle.shared.launch(payload, self.extras).map_err(refused)
    }

    /// See [`Datagram::send_to`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_to(
        self,
        buf: impl Into<Buf>,
        address: impl Into<Address>,
    ) -> Result<OpId, Refused<Buf>> {
        let parcel = Parcel::to_send(true, Some(&address.into()), Vec::new());
        let payload = Payload::SendMessage(buf.into(), parcel);
        self.handle.shared.launch(payload, self.extras).map_err(refused)
    }

    /// See [`Datagram::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        let payload = Payload::SendMessage(buf.into(), Parcel::to_send(true, None, Vec::new()));
        self.handle.shared.launch(payload, self.extras).map_err(refused)
    }
}

/// With descriptors.
#[cfg(unix)]
impl<K, M> Start<'_, Datagram<K, M>, M> {
    /// See [`Datagram::recv_with_descriptors`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_with_descriptors(
        self,
        buf: impl Into<Buf>,
        most: usize,
    ) -> Result<OpId, Refused<Buf>> {
        recv_with_descriptors(&self.handle.shared, true, buf.into(), most, self.extras)
    }

    /// See [`Datagram::send_with_descriptors`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_with_descriptors(
        self,
        buf: impl Into<Buf>,
        address: Option<Address>,
        descriptors: Vec<OwnedDescriptor>,
    ) -> Result<OpId, Refused<(Buf, Vec<OwnedDescriptor>)>> {
        let parcel = |descriptors| Parcel::to_send(true, address.as_ref(), descriptors);
        send_with_descriptors(&self.handle.shared, buf.into(), descriptors, parcel, self.extras)
    }
}

/// With descriptors, over a Unix socket.
#[cfg(unix)]
impl<K, M> Start<'_, Stream<K, M>, M> {
    /// See [`Stream::recv_with_descriptors`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_with_descriptors(
        self,
        buf: impl Into<Buf>,
        most: usize,
    ) -> Result<OpId, Refused<Buf>> {
        recv_with_descriptors(&self.handle.shared, false, buf.into(), most, self.extras)
    }

    /// See [`Stream::send_with_descriptors`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_with_descriptors(
        self,
        buf: impl Into<Buf>,
        descriptors: Vec<OwnedDescriptor>,
    ) -> Result<OpId, Refused<(Buf, Vec<OwnedDescriptor>)>> {
        let buf = buf.into();
        if buf.is_empty() {
            let error = Error::of(ErrorKind::InvalidInput, "send")
                .with_remedy("on a stream, descriptors travel with at least one byte");
            return Err(Refused { error, value: (buf, descriptors) });
        }
        let parcel = |descriptors| Parcel::to_send(false, None, descriptors);
        send_with_descriptors(&self.handle.shared, buf, descriptors, parcel, self.extras)
    }
}

#[cfg(unix)]
fn recv_with_descriptors<K, M>(
    shared: &Arc<HandleShared<K, M>>,
    datagram: bool,
    buf: Buf,
    most: usize,
    extras: Extras<M>,
) -> Result<OpId, Refused<Buf>> {
    if let Err(error) = check_count(most) {
        return Err(Refused { error, value: buf });
    }
    let payload = Payload::RecvMessage(buf, Parcel::to_receive(datagram, most));
    shared.launch(payload, extras).map_err(refused)
}

#[cfg(unix)]
fn send_with_descriptors<K, M>(
    shared: &Arc<HandleShared<K, M>>,
    buf: Buf,
    descriptors: Vec<OwnedDescriptor>,
    parcel: impl FnOnce(Vec<OwnedDescriptor>) -> Parcel,
    extras: Extras<M>,
) -> Result<OpId, Refused<(Buf, Vec<OwnedDescriptor>)>> {
    if let Err(error) = check_count(descriptors.len()) {
        return Err(Refused { error, value: (buf, descriptors) });
    }
    let payload = Payload::SendMessage(buf, parcel(descriptors));
    shared.launch(payload, extras).map_err(refused_both)
}

/// With descriptors, over a Unix socket.
#[cfg(unix)]
impl<K, M> Stream<K, M> {
    /// Receives at least one byte, and the descriptors that were sent with it: at most as many as
    /// said, others are lost. The packet is an [`Op::RecvMessage`](crate::Op::RecvMessage). In turn
    /// with other receives.
    ///
    /// # Errors
    ///
    /// As for [`Stream::recv`]; and `InvalidInput` for more than 253 descriptors. A socket that is
    /// none of this machine's gives no descriptors.
    #[doc(alias = "SCM_RIGHTS")]
    pub fn recv_with_descriptors(
        &self,
        buf: impl Into<Buf>,
        most: usize,
    ) -> Result<(), Refused<Buf>> {
        self.start().recv_with_descriptors(buf, most).map(drop)
    }

    /// Sends all bytes of a buffer, at least one, and descriptors with the first of them. The peer
    /// gets duplicates. The packet is an [`Op::Send`](crate::Op::Send); with it our descriptors
    /// have been closed. In turn with other sends.
    ///
    /// # Errors
    ///
    /// As for [`Stream::send`]; and `InvalidInput` for no byte, or more than 253 descriptors.
    /// Buffer and descriptors come back.
    #[doc(alias = "SCM_RIGHTS")]
    #[doc(alias = "WSADuplicateSocket")]
    pub fn send_with_descriptors(
        &self,
        buf: impl Into<Buf>,
        descriptors: Vec<OwnedDescriptor>,
    ) -> Result<(), Refused<(Buf, Vec<OwnedDescriptor>)>> {
        self.start().send_with_descriptors(buf, descriptors).map(drop)
    }
}

impl<K, M> Datagram<K, M> {
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

    /// Receives a datagram, into a buffer of the caller's or one of the pool. The packet is an
    /// [`Op::RecvDatagram`](crate::Op::RecvDatagram).
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull`, or `InvalidInput` for a buffer that cannot be written to or has no
    /// room; it comes back.
    #[doc(alias = "WSARecvFrom")]
    #[doc(alias = "WSARecvMsg")]
    pub fn recv_from(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().recv_from(buf).map(drop)
    }

    /// Sends what a buffer holds as one datagram. The packet is an
    /// [`Op::SendDatagram`](crate::Op::SendDatagram).
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`; the buffer comes back. One that is too large for a datagram fails
    /// with `InvalidInput`, in its packet.
    #[doc(alias = "WSASendTo")]
    #[doc(alias = "WSASendMsg")]
    pub fn send_to(
        &self,
        buf: impl Into<Buf>,
        address: impl Into<Address>,
    ) -> Result<(), Refused<Buf>> {
        self.start().send_to(buf, address).map(drop)
    }

    /// The same on a socket that was connected to an address before it was associated.
    ///
    /// # Errors
    ///
    /// As for [`Self::send_to`].
    pub fn send(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().send(buf).map(drop)
    }

    /// Receives a datagram and the descriptors that were sent with it: at most as many as said,
    /// others are lost. The packet is an [`Op::RecvDatagram`](crate::Op::RecvDatagram).
    ///
    /// # Errors
    ///
    /// As for [`Self::recv_from`]; and `InvalidInput` for more than 253 descriptors.
    #[cfg(unix)]
    #[doc(alias = "SCM_RIGHTS")]
    pub fn recv_with_descriptors(
        &self,
        buf: impl Into<Buf>,
        most: usize,
    ) -> Result<(), Refused<Buf>> {
        self.start().recv_with_descriptors(buf, most).map(drop)
    }

    /// Sends a datagram with descriptors, of which the receiver gets duplicates, to an address or
    /// to whom the socket is connected. The packet is an
    /// [`Op::SendDatagram`](crate::Op::SendDatagram); with it our descriptors have been closed.
    ///
    /// # Errors
    ///
    /// As for [`Self::send_to`]; and `InvalidInput` for more than 253 descriptors. Buffer and
    /// descriptors come back.
    #[cfg(unix)]
    #[doc(alias = "SCM_RIGHTS")]
    pub fn send_with_descriptors(
        &self,
        buf: impl Into<Buf>,
        address: Option<Address>,
        descriptors: Vec<OwnedDescriptor>,
    ) -> Result<(), Refused<(Buf, Vec<OwnedDescriptor>)>> {
        self.start().send_with_descriptors(buf, address, descriptors).map(drop)
    }

    /// Asks for one operation to be cancelled; see [`Stream::cancel`].
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
    /// is cancelled.
    #[doc(alias = "closesocket")]
    pub fn close(&self) {
        self.shared.raw.close();
    }

    /// From now on only one packet of this socket is out at a time; see [`Stream::set_serial`].
    pub fn set_serial(&self, serial: bool) {
        self.shared.raw.set_serial(serial);
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn local_addr(&self) -> Result<Address> {
        let found = SockRef::from(self).local_addr();
        found.map(Address).map_err(|error| Error::from_io(&error, "address"))
    }
}
