//! What goes with a datagram beside its bytes: where from, where to, and marks in its header.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    slice::Chunks,
};

use crate::error::Error;

/// What is known of a datagram that was received.
///
/// Who sent it and how long it is always are. The rest is there if the socket was asked to tell:
/// see [`UdpSocket::set_packet_info`](crate::UdpSocket::set_packet_info) and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "WSAMSG")]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// The address that it was sent to: one of this machine's, a group's, or a broadcast address.
    pub to: Option<IpAddr>,
    /// The index of the interface through which it came.
    pub interface: Option<u32>,
    /// How many more routers it could have passed: the TTL of IPv4, the hop limit of IPv6.
    pub hop_limit: Option<u8>,
    /// The byte of its header that holds the ECN mark (the lower two bits, see [`Self::ecn`]) and
    /// the DSCP.
    pub traffic_class: Option<u8>,
    /// How many bytes it has. More than the packet says were received: the rest did not fit into
    /// the buffer, and is lost. Windows does not tell how much that was: there it is one byte
    /// more than what fitted.
    pub length: usize,
    /// See [`Self::datagrams`]. 0: it came alone.
    pub(crate) segment: u16,
    /// The address of this machine that an answer should come from.
    pub(crate) source: Option<Ipv4Addr>,
}

impl Received {
    /// Whether it was longer than the buffer into which it was received, so that its end is lost.
    /// `bytes` is what the packet says.
    #[must_use]
    #[doc(alias = "MSG_TRUNC")]
    #[doc(alias = "WSAEMSGSIZE")]
    pub fn is_truncated(&self, bytes: usize) -> bool {
        self.length > bytes
    }

    /// The mark that routers set where they are congested.
    #[must_use]
    pub fn ecn(&self) -> Option<Ecn> {
        self.traffic_class.map(Ecn::of)
    }

    /// How many bytes each datagram has in the buffer, but for the last one, which may have fewer.
    #[must_use]
    pub fn segment_size(&self) -> usize {
        match self.segment {
            0 => self.length,
            size => size.into(),
        }
    }

    /// The datagrams in the packet's buffer: one, unless the socket was told to take several at
    /// once ([`UdpSocket::set_coalescing`](crate::UdpSocket::set_coalescing)). They all come from
    /// the same sender. The last one may be truncated.
    pub fn datagrams<'a>(&self, buf: &'a [u8]) -> Datagrams<'a> {
        let parts = (!buf.is_empty()).then(|| buf.chunks(self.segment_size().max(1)));
        Datagrams { parts, empty: buf.is_empty() }
    }
}

/// The datagrams in a buffer: see [`Received::datagrams`].
#[derive(Clone, Debug)]
pub struct Datagrams<'a> {
    parts: Option<Chunks<'a, u8>>,
    /// One without bytes is still to come.
    empty: bool,
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match &mut self.parts {
            Some(parts) => parts.next(),
            None => std::mem::take(&mut self.empty).then_some(&[]),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count =
            self.parts.as_ref().map_or_else(|| usize::from(self.empty), ExactSizeIterator::len);
        (count, Some(count))
    }
}

impl ExactSizeIterator for Datagrams<'_> {}

/// How a datagram is to be sent: to whom, from which address and interface, with which marks.
///
/// An address is one too: it says to whom, and leaves the rest to the socket.
///
/// ```
/// use std::net::SocketAddr;
/// use wharf::{Ecn, Envelope};
///
/// let to: SocketAddr = "192.0.2.1:7000".parse()?;
/// let plain = Envelope::from(to);
/// let marked = Envelope::to(to).hop_limit(2).ecn(Ecn::Ect0);
/// assert_ne!(plain, marked);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "WSASendMsg")]
pub struct Envelope {
    pub(crate) to: Option<SocketAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) interface: Option<u32>,
    pub(crate) hop_limit: Option<u8>,
    pub(crate) traffic_class: Option<u8>,
    pub(crate) segment: u16,
}

impl From<SocketAddr> for Envelope {
    fn from(to: SocketAddr) -> Self {
        Self::to(to)
    }
}

impl Envelope {
    /// To this address.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self { to: Some(address), ..Self::default() }
    }

    /// To whom the socket is connected: see [`UdpSocket::connect`](crate::UdpSocket::connect).
    #[must_use]
    pub fn connected() -> Self {
        Self::default()
    }

    /// To who has sent a datagram, from the address to which that was sent and through the
    /// interface by which it came, if the socket was asked to tell.
    #[must_use]
    pub fn reply(to: &Received) -> Self {
        let unicast = to.to.filter(|address| address.is_ipv6() && !address.is_multicast());
        let source = to.source.map(IpAddr::from).or(unicast);
        Self { source, interface: to.interface, ..Self::to(to.from) }
    }

    /// From this address of the machine's, which must be of the same family as that it goes to.
    #[must_use]
    #[doc(alias = "IP_PKTINFO")]
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Through the interface with this index; [`Received::interface`] and
    /// [`Interface::index`](crate::Interface::index) give one.
    #[must_use]
    #[doc(alias = "IP_PKTINFO")]
    pub fn interface(mut self, index: u32) -> Self {
        self.interface = Some(index);
        self
    }

    /// How many routers it may pass: the TTL of IPv4, the hop limit of IPv6. Not 0.
    #[must_use]
    #[doc(alias = "IP_TTL")]
    #[doc(alias = "IPV6_HOPLIMIT")]
    pub fn hop_limit(mut self, hops: u8) -> Self {
        self.hop_limit = Some(hops);
        self
    }

    /// Its mark for routers that are congested. The rest of the header's byte, the DSCP, is 0 for
    /// this datagram: use [`Self::traffic_class`] for both.
    #[must_use]
    #[doc(alias = "WSASetRecvIPEcn")]
    pub fn ecn(self, mark: Ecn) -> Self {
        self.traffic_class(mark as u8)
    }

    /// The byte of its header that holds the DSCP and, in the lower two bits, the ECN mark.
    #[must_use]
    #[doc(alias = "IP_TOS")]
    #[doc(alias = "IPV6_TCLASS")]
    pub fn traffic_class(mut self, byte: u8) -> Self {
        self.traffic_class = Some(byte);
        self
    }

    /// Sends the buffer as several datagrams, of so many bytes each but for the last one, which may
    /// have fewer. The system is given as many at once as it takes (segmentation offload); where it
    /// cannot cut them, wharf does.
    ///
    /// 0 is the same as not to say it: the buffer is one datagram.
    #[must_use]
    #[doc(alias = "UDP_SEGMENT")]
    #[doc(alias = "UDP_SEND_MSG_SIZE")]
    pub fn segments(mut self, bytes: u16) -> Self {
        self.segment = bytes;
        self
    }

    /// Whether there is more to say than to whom.
    pub(crate) fn has_marks(&self) -> bool {
        Self { to: None, segment: 0, ..*self } != Self::default()
    }
}

/// Explicit congestion notification: the mark in a datagram's header that routers set where they
/// would otherwise have to drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "two bits")]
#[repr(u8)]
pub enum Ecn {
    /// The sender does not take part.
    NotEct = 0,
    /// The sender takes part, in the way of L4S.
    Ect1 = 1,
    /// The sender takes part.
    Ect0 = 2,
    /// A router on the way was congested.
    Ce = 3,
}

impl Ecn {
    fn of(traffic_class: u8) -> Self {
        match traffic_class & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// What the network, or the system, has said of a datagram that was sent earlier: see
/// [`UdpSocket::recv_errors`](crate::UdpSocket::recv_errors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IcmpError {
    /// What it means: `ConnectionRefused` if nobody listens there.
    pub error: Error,
    /// Where the datagram was sent to.
    pub to: SocketAddr,
    /// Who says so: the receiver, or a router on the way. None: this machine.
    pub reporter: Option<IpAddr>,
    /// Type and code of the ICMP message.
    pub icmp: Option<(u8, u8)>,
    /// The datagram was too large for the way it took, which lets packets of so many bytes
    /// through, headers included.
    pub mtu: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(length: usize, segment: u16) -> Received {
        Received {
            from: SocketAddr::from(([127, 0, 0, 1], 1)),
            to: None,
            interface: None,
            hop_limit: None,
            traffic_class: None,
            length,
            segment,
            source: None,
        }
    }

    #[test]
    fn a_datagram_without_bytes_is_one() {
        let datagrams = received(0, 0).datagrams(&[]);
        assert_eq!(datagrams.len(), 1);
        assert_eq!(datagrams.collect::<Vec<_>>(), [&[] as &[u8]]);
    }

    #[test]
    fn datagrams_keep_their_boundaries() {
        let parts = |segment, bytes: &'static [u8]| {
            received(bytes.len(), segment).datagrams(bytes).collect::<Vec<_>>()
        };
        assert_eq!(parts(0, b"abcdef"), [b"abcdef"]);
        assert_eq!(parts(2, b"abcdef"), [b"ab", b"cd", b"ef"]);
        assert_eq!(parts(4, b"abcdef"), [&b"abcd"[..], b"ef"]);
        assert_eq!(parts(6, b"abcdef"), [b"abcdef"]);
        assert_eq!(parts(9, b"abcdef"), [b"abcdef"]);
    }

    #[test]
    fn a_reply_does_not_come_from_a_group() {
        let mut it = received(1, 0);
        it.to = Some("ff02::1".parse().unwrap());
        assert_eq!(Envelope::reply(&it).source, None);
        it.to = Some("fe80::1".parse().unwrap());
        assert_eq!(Envelope::reply(&it).source, it.to);
        it.to = Some("224.0.0.1".parse().unwrap());
        it.source = Some(Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(Envelope::reply(&it).source, Some("192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn marks_are_two_bits() {
        for (byte, mark) in [(0, Ecn::NotEct), (0xb9, Ecn::Ect1), (2, Ecn::Ect0), (255, Ecn::Ce)] {
            assert_eq!(Ecn::of(byte), mark);
            assert_eq!(mark as u8, byte & 3);
        }
    }
}
