//! What UDP needs from a Unix: the calls that receive and send ([`transfer`]), what they are given
//! ([`header`]), and here the options that `socket2` does not know.

mod header;
mod transfer;

use std::{
    ffi::CString,
    io,
    mem::size_of_val,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use socket2::{Domain, InterfaceIndexOrAddress, SockAddr, SockRef, Socket};

pub(crate) use crate::sys::control;
use self::control::{ADDRESS_ROOM, write_address};
pub(super) use self::transfer::{call, came};
pub(crate) use self::{
    header::{DatagramHeader, cuts_datagrams, is_ipv6},
    transfer::{attempt, forget_errors, is_of_an_earlier_send, ready},
};

/// Sets an option that is a number.
pub(crate) fn set(socket: &impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: an int is what these options are, and any will do.
    unsafe { set_to(socket, level, option, &value) }
}

/// # Safety
///
/// The value has the layout that the option asks for.
unsafe fn set_to<T>(socket: &impl AsFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(value)).unwrap_or(0);
    // SAFETY: the value lives across the call, and the caller vouches for its layout.
    let result = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::setsockopt(fd, level, option, (&raw const *value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What to do where no interface has a name.
pub(crate) const NO_SUCH_NAME: &str = "there is none of this name (ip link lists them)";

/// The family of a socket.
pub(crate) fn domain(socket: &impl AsFd) -> io::Result<Domain> {
    SockRef::from(socket).domain()
}

/// Whether a socket has datagrams of IPv6 and of IPv4. One of IPv6 may have both.
fn families(socket: &impl AsFd) -> io::Result<(bool, bool)> {
    let socket = SockRef::from(socket);
    let six = socket.domain()? == Domain::IPV6;
    Ok((six, !six || !socket.only_v6()?))
}

/// Sets an option for the families that a socket has: (level, option) of IPv4 and of IPv6.
fn set_both(
    socket: &impl AsFd,
    four: (i32, i32),
    six: (i32, i32),
    value: impl Into<i32>,
) -> io::Result<()> {
    let value = value.into();
    let (has_six, has_four) = families(socket)?;
    if has_six {
        set(socket, six.0, six.1, value)?;
    }
    if has_four {
        set(socket, four.0, four.1, value)?;
    }
    Ok(())
}

pub(crate) fn set_packet_info(socket: &impl AsFd, on: bool) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_PKTINFO);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), on)
}

pub(crate) fn set_receive_hop_limit(socket: &impl AsFd, on: bool) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_RECVTTL);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT), on)
}

pub(crate) fn set_receive_traffic_class(socket: &impl AsFd, on: bool) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_RECVTOS);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS), on)
}

pub(crate) fn set_report_errors(socket: &impl AsFd, on: bool) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_RECVERR);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_RECVERR), on)
}

/// Linux 5.0.
pub(crate) fn set_coalescing(socket: &impl AsFd, on: bool) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, on.into())
}

pub(crate) fn set_hop_limit(socket: &impl AsFd, hops: u8) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_TTL);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS), hops)
}

pub(crate) fn set_multicast_hop_limit(socket: &impl AsFd, hops: u8) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS), hops)
}

pub(crate) fn set_multicast_loop(socket: &impl AsFd, on: bool) -> io::Result<()> {
    let four = (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP);
    set_both(socket, four, (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP), on)
}

pub(crate) fn set_multicast_interface(socket: &impl AsFd, index: u32) -> io::Result<()> {
    let (six, four) = families(socket)?;
    if six {
        SockRef::from(socket).set_multicast_if_v6(index)?;
    }
    if four {
        let any = libc::in_addr { s_addr: 0 };
        let index = i32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let interface =
            libc::ip_mreqn { imr_multiaddr: any, imr_address: any, imr_ifindex: index };
        // SAFETY: it is what this option asks for.
        unsafe { set_to(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface)? };
    }
    Ok(())
}

/// A socket receives what is sent to the groups that it has joined, not to those that others have.
pub(crate) fn own_groups_only(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if socket.domain()? == Domain::IPV6 {
        socket.set_multicast_all_v6(false)
    } else {
        socket.set_multicast_all_v4(false)
    }
}

pub(crate) fn join(socket: &impl AsFd, group: IpAddr, interface: u32) -> io::Result<()> {
    own_groups_only(socket)?;
    let socket = SockRef::from(socket);
    match group {
        IpAddr::V4(group) => {
            socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface))
        }
        IpAddr::V6(group) => socket.join_multicast_v6(&group, interface),
    }
}

pub(crate) fn leave(socket: &impl AsFd, group: IpAddr, interface: u32) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match group {
        IpAddr::V4(group) => {
            socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface))
        }
        IpAddr::V6(group) => socket.leave_multicast_v6(&group, interface),
    }
}

/// Joins (or leaves) a group for what comes from one source.
pub(crate) fn join_source(
    socket: &impl AsFd,
    source: IpAddr,
    group: IpAddr,
    interface: u32,
    join: bool,
) -> io::Result<()> {
    /// `struct group_source_req`.
    #[repr(C)]
    struct Membership {
        interface: u32,
        group: Storage,
        source: Storage,
    }
    /// `struct sockaddr_storage`, which is aligned like a `long`.
    #[repr(C)]
    struct Storage {
        aligned: [usize; 0],
        bytes: [u8; ADDRESS_ROOM],
    }
    const _: () = assert!(size_of::<Membership>() == size_of::<libc::group_source_req>());
    impl Storage {
        fn of(address: IpAddr) -> Self {
            let mut bytes = [0; ADDRESS_ROOM];
            write_address(SocketAddr::new(address, 0), &mut bytes);
            Self { aligned: [], bytes }
        }
    }

    own_groups_only(socket)?;
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let option =
        if join { libc::MCAST_JOIN_SOURCE_GROUP } else { libc::MCAST_LEAVE_SOURCE_GROUP };
    let membership =
        Membership { interface, group: Storage::of(group), source: Storage::of(source) };
    // SAFETY: it is what this option asks for.
    unsafe { set_to(socket, level, option, &membership) }
}

/// Binds a socket so that it receives what is sent to a group and a port.
pub(crate) fn bind_to_group(socket: &Socket, group: SocketAddr, interface: u32) -> io::Result<()> {
    let mut group = group;
    if let SocketAddr::V6(group) = &mut group
        && group.scope_id() == 0
    {
        group.set_scope_id(interface);
    }
    // An address of a group: nothing that is sent to the port alone, nor to another group.
    socket.bind(&SockAddr::from(group))
}

/// How many datagrams the kernel has thrown away for want of room, or because they were damaged.
pub(crate) fn dropped(socket: &impl AsFd) -> io::Result<u32> {
    const DROPS: usize = 8;
    let mut values = [0u32; 16];
    let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
    // SAFETY: the option is an array of numbers, as many as fit are written, and both live across
    // the call.
    let result = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        let option = libc::SO_MEMINFO;
        libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut values).cast(), &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize / size_of::<u32>() > DROPS {
        Ok(values[DROPS])
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The index of the interface with a name. None: there is none.
pub(crate) fn interface_named(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with a zero and lives across the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index > 0).then_some(index)
}

/// What to do about an error of a send.
pub(crate) fn send_remedy(code: i32) -> Option<&'static str> {
    Some(match code {
        libc::EMSGSIZE => {
            "a datagram carries at most 65,507 bytes over IPv4 and 65,527 over IPv6, and no more \
             than its way lets through where it may not be taken apart"
        }
        libc::EDESTADDRREQ | libc::ENOTCONN => "send it to an address, or connect the socket",
        libc::EACCES => "a broadcast address has to be allowed first: set_broadcast(true)",
        libc::ENETUNREACH | libc::EHOSTUNREACH => "there is no way to this address (ip route)",
        libc::EAFNOSUPPORT => "the address must be of the socket's family",
        libc::ENOBUFS => "the interface has more to send than it can: send more slowly",
        libc::EPERM => "a firewall's rule forbids it",
        libc::EINVAL => {
            "the source address and the interface must be this machine's, and the address no \
             multicast group of another interface"
        }
        _ => return None,
    })
}

/// What to do about an error of joining or leaving a group, or of choosing an interface.
pub(crate) fn group_remedy(code: i32) -> Option<&'static str> {
    Some(match code {
        libc::ENODEV | libc::ENXIO => {
            "there is no such interface, or none with a way to the group (ip link lists them)"
        }
        libc::EADDRINUSE => "the socket has joined it already",
        libc::EADDRNOTAVAIL => {
            "leave only what was joined, in the same way; join on an interface that exists"
        }
        libc::ENOBUFS | libc::ENOMEM => {
            "too many groups: raise sysctl net.ipv4.igmp_max_memberships, or use another socket"
        }
        libc::EINVAL => {
            "a group is joined either as a whole or for some sources, and on one interface"
        }
        _ => return None,
    })
}

