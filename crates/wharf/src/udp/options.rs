//! What a socket can be asked for: groups, marks, what it tells of datagrams, and its buffers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::SockRef;

use super::{LARGEST, UdpSocket};
use crate::{
    error::{Error, ErrorKind, Result},
    sys::udp,
};

/// A network interface of this machine, by its index.
///
/// ```
/// use wharf::Interface;
///
/// assert!(Interface::named("no such interface").is_err());
/// assert_eq!(Interface::from_index(2).index(), 2);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias = "if_nametoindex")]
pub struct Interface(u32);

impl Interface {
    /// The one that the system chooses.
    pub const ANY: Self = Self(0);

    /// The one with this name.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is none.
    pub fn named(name: &str) -> Result<Self> {
        udp::interface_named(name).map(Self).ok_or_else(|| {
            Error::of(ErrorKind::InvalidInput, "interface").with_remedy(udp::NO_SUCH_NAME)
        })
    }

    /// The one with this index, as a packet tells it.
    #[must_use]
    pub fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// Its index; 0 for [`Self::ANY`].
    #[must_use]
    pub fn index(self) -> u32 {
        self.0
    }
}

/// # Groups and broadcasts
impl<K, M> UdpSocket<K, M> {
    /// Joins a group: receives what is sent to it and to the socket's port, through this interface.
    /// From the first group on, the socket receives what is sent to groups it has joined only, not
    /// to those that others on this machine have.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the address is no group, or of another family than the socket's; or what
    /// the system says if there is no such interface, or the group has been joined already.
    #[doc(alias = "IP_ADD_MEMBERSHIP")]
    #[doc(alias = "IPV6_JOIN_GROUP")]
    #[doc(alias = "WSAJoinLeaf")]
    pub fn join(&self, group: IpAddr, interface: Interface) -> Result<()> {
        self.check_group(group)?;
        of_group(udp::join(self, group, interface.0))
    }

    /// Leaves a group that was joined on this interface.
    ///
    /// # Errors
    ///
    /// As for [`Self::join`]; if it was not joined, `AddressNotAvailable`.
    #[doc(alias = "IP_DROP_MEMBERSHIP")]
    #[doc(alias = "IPV6_LEAVE_GROUP")]
    pub fn leave(&self, group: IpAddr, interface: Interface) -> Result<()> {
        self.check_group(group)?;
        of_group(udp::leave(self, group, interface.0))
    }

    /// Joins a group for what one sender sends to it. Others may be added. One that was joined as a
    /// whole is from then on joined for that sender only.
    ///
    /// # Errors
    ///
    /// As for [`Self::join`].
    #[doc(alias = "MCAST_JOIN_SOURCE_GROUP")]
    #[doc(alias = "IP_ADD_SOURCE_MEMBERSHIP")]
    pub fn join_source(&self, source: IpAddr, group: IpAddr, interface: Interface) -> Result<()> {
        self.check_group(group)?;
        of_group(udp::join_source(self, source, group, interface.0, true))
    }

    /// Leaves a group for what this sender sends to it.
    ///
    /// # Errors
    ///
    /// As for [`Self::leave`].
    #[doc(alias = "MCAST_LEAVE_SOURCE_GROUP")]
    #[doc(alias = "IP_DROP_SOURCE_MEMBERSHIP")]
    pub fn leave_source(&self, source: IpAddr, group: IpAddr, interface: Interface) -> Result<()> {
        self.check_group(group)?;
        of_group(udp::join_source(self, source, group, interface.0, false))
    }

    fn check_group(&self, group: IpAddr) -> Result<()> {
        super::check_group(group)?;
        if self.local_addr()?.is_ipv4() != group.is_ipv4() {
            return Err(Error::of(ErrorKind::InvalidInput, "join")
                .with_remedy("bind the socket to an address of the group's family"));
        }
        Ok(())
    }

    /// Through which interface datagrams to groups go out, if their envelope does not say.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    #[doc(alias = "IP_MULTICAST_IF")]
    pub fn set_multicast_interface(&self, interface: Interface) -> Result<()> {
        of_group(udp::set_multicast_interface(self, interface.0))
    }

    /// Whether sockets of this machine that have joined a group receive what this one sends to it.
    /// By default they do.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "IP_MULTICAST_LOOP")]
    pub fn set_multicast_loop(&self, on: bool) -> Result<()> {
        option(udp::set_multicast_loop(self, on))
    }

    /// How many routers datagrams to groups may pass. By default 1: they stay in the local network.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "IP_MULTICAST_TTL")]
    pub fn set_multicast_hop_limit(&self, hops: u8) -> Result<()> {
        option(udp::set_multicast_hop_limit(self, hops))
    }

    /// Whether datagrams may be sent to broadcast addresses. By default that is refused with
    /// `PermissionDenied`. They are received in any case, by sockets that are bound to all
    /// addresses or to the broadcast address itself.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "SO_BROADCAST")]
    pub fn set_broadcast(&self, on: bool) -> Result<()> {
        option(SockRef::from(self).set_broadcast(on))
    }
}

/// # What goes with datagrams
impl<K, M> UdpSocket<K, M> {
    /// Whether [`Received`](crate::Received) tells to which address a datagram was sent and through
    /// which interface it came.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "IP_PKTINFO")]
    #[doc(alias = "IPV6_RECVPKTINFO")]
    pub fn set_packet_info(&self, on: bool) -> Result<()> {
        option(udp::set_packet_info(self, on))
    }

    /// Whether [`Received`](crate::Received) tells the hop limit.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "IP_RECVTTL")]
    #[doc(alias = "IPV6_RECVHOPLIMIT")]
    pub fn set_recv_hop_limit(&self, on: bool) -> Result<()> {
        option(udp::set_receive_hop_limit(self, on))
    }

    /// Whether [`Received`](crate::Received) tells the traffic class, with the ECN mark in it.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "IP_RECVTOS")]
    #[doc(alias = "IPV6_RECVTCLASS")]
    #[doc(alias = "WSASetRecvIPEcn")]
    pub fn set_recv_traffic_class(&self, on: bool) -> Result<()> {
        option(udp::set_receive_traffic_class(self, on))
    }

    /// The hop limit of datagrams whose envelope does not say it, but for those to groups.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for 0.
    #[doc(alias = "IP_TTL")]
    #[doc(alias = "IPV6_UNICAST_HOPS")]
    pub fn set_hop_limit(&self, hops: u8) -> Result<()> {
        option(udp::set_hop_limit(self, hops))
    }

    /// Whether a receive may bring several datagrams of one sender at once, as the system has them
    /// after taking them off the network together (GRO): [`Received::datagrams`] takes them apart.
    /// By default it does not.
    ///
    /// Where datagrams come in large numbers this saves most of the work. A receive then needs a
    /// buffer of at least 65,535 bytes, because what does not fit would be whole datagrams: one of
    /// the pool, or as large a one of your own; smaller ones are refused. Receives that are in
    /// flight already are not.
    ///
    /// [`Received::datagrams`]: crate::Received::datagrams
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the pool's buffers for datagrams are smaller than that; `Unsupported`
    /// before Linux 5.0 and Windows 10 of 2004.
    #[doc(alias = "UDP_GRO")]
    #[doc(alias = "UDP_RECV_MAX_COALESCED_SIZE")]
    pub fn set_coalescing(&self, on: bool) -> Result<()> {
        let raw = &self.shared.raw;
        if !raw.set_coalesces(on, LARGEST) {
            return Err(Error::of(ErrorKind::InvalidInput, "coalescing").with_remedy(
                "give the port's pool for datagrams buffers of at least 65,535 bytes",
            ));
        }
        option(udp::set_coalescing(self, on)).inspect_err(|_| {
            raw.set_coalesces(!on, 0);
        })
    }
}

/// # Buffers of the system, and what they could not hold
impl<K, M> UdpSocket<K, M> {
    /// How many bytes of datagrams may wait in the system to be received, overhead included. What
    /// comes when they are full is lost. Returns how many it has given: Linux doubles what is asked
    /// for, up to twice sysctl net.core.rmem_max.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "SO_RCVBUF")]
    pub fn set_recv_buffer(&self, bytes: usize) -> Result<usize> {
        let socket = SockRef::from(self);
        option(socket.set_recv_buffer_size(bytes).and_then(|()| socket.recv_buffer_size()))
    }

    /// How many bytes of datagrams may wait in the system to be sent. Sends wait meanwhile, in
    /// order. Returns how many it has given, as for [`Self::set_recv_buffer`].
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "SO_SNDBUF")]
    pub fn set_send_buffer(&self, bytes: usize) -> Result<usize> {
        let socket = SockRef::from(self);
        option(socket.set_send_buffer_size(bytes).and_then(|()| socket.send_buffer_size()))
    }

    /// How many datagrams the system has thrown away since the socket was made, because there was
    /// no room for them or their checksum was wrong. The number begins anew after 2³² - 1.
    ///
    /// # Errors
    ///
    /// `Unsupported` before Linux 4.12, and on Windows, which counts them for the machine only.
    #[doc(alias = "SO_MEMINFO")]
    #[doc(alias = "SO_RXQ_OVFL")]
    pub fn dropped(&self) -> Result<u32> {
        option(udp::dropped(self))
    }

    /// Lets the socket send to one peer, and receive from it only. Nothing is sent by that.
    /// Another call chooses another peer.
    ///
    /// # Errors
    ///
    /// If there is no way to the address.
    #[doc(alias = "WSAConnect")]
    pub fn connect(&self, address: SocketAddr) -> Result<()> {
        SockRef::from(self)
            .connect(&address.into())
            .map_err(|error| super::explain(Error::from_io(&error, "connect")))
    }
}

fn option<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(|error| Error::from_io(&error, "option"))
}

pub(super) fn of_group<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(|error| {
        let remedy = error.raw_os_error().and_then(udp::group_remedy);
        let error = Error::from_io(&error, "multicast");
        remedy.map_or(error, |remedy| error.with_remedy(remedy))
    })
}
