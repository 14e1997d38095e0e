//! What UDP needs from Windows: the calls that receive and send ([`transfer`]), what they are given
//! ([`header`]), and here the options that `socket2` does not know.

mod header;
mod transfer;

use std::{
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::windows::io::AsSocket,
    ptr,
};

use socket2::{Domain, SockAddr, SockRef, Socket};
use windows_sys::Win32::{
    NetworkManagement::{
        IpHelper::{
            ConvertInterfaceAliasToLuid, ConvertInterfaceLuidToIndex, FreeMibTable,
            GetUnicastIpAddressTable, MIB_UNICASTIPADDRESS_ROW, if_nametoindex,
        },
        Ndis::NET_LUID_LH,
    },
    Networking::WinSock as ws,
};

use super::{RawDescriptor, socket};
pub(crate) use self::transfer::{is_of_an_earlier_send, receive, send};
pub(crate) use self::header::{DatagramHeader, cuts_datagrams, is_ipv6};
pub(crate) use crate::sys::control;
use self::control::{ADDRESS_ROOM, write_address};

/// What to do where no interface has a name.
pub(crate) const NO_SUCH_NAME: &str = "there is none of this name (ipconfig lists them)";

/// The family of a socket.
pub(crate) fn domain(socket: &impl AsSocket) -> io::Result<Domain> {
    Ok(Domain::from(socket::protocol(socket.as_socket())?.iAddressFamily))
}

/// Sets an option that is a number.
fn set(socket: &impl AsSocket, level: i32, option: i32, value: u32) -> io::Result<()> {
    socket::set_at(socket.as_socket(), level, option, Some(&value))
}

/// Whether a socket has datagrams of IPv6 and of IPv4. One of IPv6 may have both.
fn families(socket: &impl AsSocket) -> io::Result<(bool, bool)> {
    let six = domain(socket)? == Domain::IPV6;
    Ok((six, !six || !SockRef::from(socket).only_v6()?))
}

/// Sets an option for the families that a socket has: that of IPv4 and that of IPv6.
fn set_both(
    socket: &impl AsSocket,
    four: i32,
    six: i32,
    value: impl Into<u32>,
) -> io::Result<()> {
    let value = value.into();
    let (has_six, has_four) = families(socket)?;
    if has_six {
        set(socket, ws::IPPROTO_IPV6, six, value)?;
    }
    if has_four {
        set(socket, ws::IPPROTO_IP, four, value)?;
    }
    Ok(())
}

pub(crate) fn set_packet_info(socket: &impl AsSocket, on: bool) -> io::Result<()> {
    set_both(socket, ws::IP_PKTINFO, ws::IPV6_PKTINFO, on)
}

pub(crate) fn set_receive_hop_limit(socket: &impl AsSocket, on: bool) -> io::Result<()> {
    set_both(socket, ws::IP_RECVTTL, ws::IPV6_HOPLIMIT, on)
}

/// The whole byte; or the lower two bits of it, where the system tells no more.
pub(crate) fn set_receive_traffic_class(socket: &impl AsSocket, on: bool) -> io::Result<()> {
    set_both(socket, ws::IP_RECVTOS, ws::IPV6_RECVTCLASS, on)
        .or_else(|_| set_both(socket, ws::IP_RECVECN, ws::IPV6_RECVECN, on))
}

/// What ICMP messages say is told by no call that is used here.
pub(crate) fn set_report_errors(_socket: &impl AsSocket, on: bool) -> io::Result<()> {
    if on { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

/// There is no queue of them.
pub(crate) fn forget_errors(_socket: RawDescriptor) {}

/// Windows 10 of 2004, Windows Server 2022.
pub(crate) fn set_coalescing(socket: &impl AsSocket, on: bool) -> io::Result<()> {
    let most = if on { u16::MAX.into() } else { 0 };
    match set(socket, ws::IPPROTO_UDP, ws::UDP_RECV_MAX_COALESCED_SIZE, most) {
        Err(error) if is_unknown(&error) => {
            // It has never been on, then.
            if on { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
        }
        result => result,
    }
}

/// Whether an option is none that this system knows.
fn is_unknown(error: &io::Error) -> bool {
    let unknown = [ws::WSAENOPROTOOPT, ws::WSAEINVAL, ws::WSAEOPNOTSUPP];
    error.raw_os_error().is_some_and(|code| unknown.contains(&code))
}

pub(crate) fn set_hop_limit(socket: &impl AsSocket, hops: u8) -> io::Result<()> {
    if hops == 0 {
        return Err(io::Error::from_raw_os_error(ws::WSAEINVAL));
    }
    set_both(socket, ws::IP_TTL, ws::IPV6_UNICAST_HOPS, hops)
}

pub(crate) fn set_multicast_hop_limit(socket: &impl AsSocket, hops: u8) -> io::Result<()> {
    set_both(socket, ws::IP_MULTICAST_TTL, ws::IPV6_MULTICAST_HOPS, hops)
}

pub(crate) fn set_multicast_loop(socket: &impl AsSocket, on: bool) -> io::Result<()> {
    set_both(socket, ws::IP_MULTICAST_LOOP, ws::IPV6_MULTICAST_LOOP, on)
}

pub(crate) fn set_multicast_interface(socket: &impl AsSocket, index: u32) -> io::Result<()> {
    let (six, four) = families(socket)?;
    if six {
        SockRef::from(socket).set_multicast_if_v6(index)?;
    }
    if four {
        SockRef::from(socket).set_multicast_if_v4(&name_of(index))?;
    }
    Ok(())
}

pub(crate) fn join(socket: &impl AsSocket, group: IpAddr, interface: u32) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match group {
        IpAddr::V4(group) => socket.join_multicast_v4(&group, &name_of(interface)),
        IpAddr::V6(group) => socket.join_multicast_v6(&group, interface),
    }
}

pub(crate) fn leave(socket: &impl AsSocket, group: IpAddr, interface: u32) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match group {
        IpAddr::V4(group) => socket.leave_multicast_v4(&group, &name_of(interface)),
        IpAddr::V6(group) => socket.leave_multicast_v6(&group, interface),
    }
}

/// Joins (or leaves) a group for what comes from one source.
pub(crate) fn join_source(
    socket: &impl AsSocket,
    source: IpAddr,
    group: IpAddr,
    interface: u32,
    join: bool,
) -> io::Result<()> {
    let (group, source) = match (group, source) {
        (IpAddr::V4(group), IpAddr::V4(source)) => {
            let socket = SockRef::from(socket);
            let interface = name_of(interface);
            return match join {
                true => socket.join_ssm_v4(&source, &group, &interface),
                false => socket.leave_ssm_v4(&source, &group, &interface),
            };
        }
        (IpAddr::V6(group), IpAddr::V6(source)) => (group, source),
        _ => return Err(io::Error::from_raw_os_error(ws::WSAEAFNOSUPPORT)),
    };
    let storage = |address: Ipv6Addr| {
        let mut bytes = [0; ADDRESS_ROOM];
        write_address(SocketAddr::new(address.into(), 0), &mut bytes);
        // SAFETY: both are plain bytes, and as many.
        unsafe { std::mem::transmute::<[u8; ADDRESS_ROOM], ws::SOCKADDR_STORAGE>(bytes) }
    };
    let membership = ws::GROUP_SOURCE_REQ {
        gsr_interface: interface,
        gsr_group: storage(group),
        gsr_source: storage(source),
    };
    let option = if join { ws::MCAST_JOIN_SOURCE_GROUP } else { ws::MCAST_LEAVE_SOURCE_GROUP };
    socket::set_at(
        socket.as_socket(),
        ws::IPPROTO_IPV6,
        option.cast_signed(),
        Some(&membership),
    )
}

/// By what calls for IPv4 know an interface: an address of its own; or its index, which they take
/// in the place of an address that begins with a zero.
fn name_of(interface: u32) -> Ipv4Addr {
    let index = Ipv4Addr::from(interface);
    if interface == 0 {
        return index;
    }
    let mut table = ptr::null_mut();
    // SAFETY: the place for the pointer lives across the call.
    if unsafe { GetUnicastIpAddressTable(ws::AF_INET, &raw mut table) } != 0 {
        return index;
    }
    // SAFETY: the call has given a table, which has as many rows as it says, all of IPv4; it is
    // freed after its last use.
    unsafe {
        let count = usize::try_from((*table).NumEntries).unwrap_or(0);
        let first = (&raw const (*table).Table).cast::<MIB_UNICASTIPADDRESS_ROW>();
        let rows = std::slice::from_raw_parts(first, count);
        let address = |row: &MIB_UNICASTIPADDRESS_ROW| {
            Ipv4Addr::from(row.Address.Ipv4.sin_addr.S_un.S_addr.to_ne_bytes())
        };
        let own = rows.iter().find(|row| row.InterfaceIndex == interface).map(address);
        FreeMibTable(table.cast());
        own.unwrap_or(index)
    }
}

/// Binds a socket so that it receives what is sent to a group and a port, and what is sent to the
/// port alone: no socket is bound to a group here.
pub(crate) fn bind_to_group(socket: &Socket, group: SocketAddr, _interface: u32) -> io::Result<()> {
    let any: SocketAddr = match group {
        SocketAddr::V4(group) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, group.port()).into(),
        SocketAddr::V6(group) => {
            SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, group.port(), 0, 0).into()
        }
    };
    socket.bind(&SockAddr::from(any))
}

/// Windows counts what it throws away for the machine, not for a socket.
pub(crate) fn dropped(_socket: &impl AsSocket) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The index of the interface with a name: that which people see, like Ethernet, or the system's
/// own, like ethernet_32769. None: there is none.
pub(crate) fn interface_named(name: &str) -> Option<u32> {
    let terminated = CString::new(name).ok()?;
    let wide: Vec<u16> = name.encode_utf16().chain([0]).collect();
    let (mut luid, mut index) = (NET_LUID_LH::default(), 0);
    // SAFETY: the names end with a zero, and all live across the calls.
    unsafe {
        if ConvertInterfaceAliasToLuid(wide.as_ptr(), &raw mut luid) != 0
            || ConvertInterfaceLuidToIndex(&raw const luid, &raw mut index) != 0
        {
            index = if_nametoindex(terminated.as_ptr().cast());
        }
    }
    (index > 0).then_some(index)
}

/// What to do about an error of a send.
pub(crate) fn send_remedy(code: i32) -> Option<&'static str> {
    Some(match code {
        ws::WSAEMSGSIZE => {
            "a datagram carries at most 65,507 bytes over IPv4 and 65,527 over IPv6, and no more \
             than its way lets through where it may not be taken apart"
        }
        ws::WSAEDESTADDRREQ | ws::WSAENOTCONN => "send it to an address, or connect the socket",
        ws::WSAEACCES => "a broadcast address has to be allowed first: set_broadcast(true)",
        ws::WSAENETUNREACH | ws::WSAEHOSTUNREACH => "there is no way to this address (route print)",
        ws::WSAEAFNOSUPPORT | ws::WSAEFAULT | ws::WSAEOPNOTSUPP => {
            "the address must be of the socket's family; and marks of a datagram need a system \
             that knows them"
        }
        ws::WSAENOBUFS => "the interface has more to send than it can: send more slowly",
        ws::WSAEINVAL | ws::WSAEADDRNOTAVAIL => {
            "send it to an address and a port that is not 0, or connect the socket; the source \
             address and the interface must be this machine's, and marks of a datagram need a \
             system that knows them"
        }
        _ => return None,
    })
}

/// What to do about an error of joining or leaving a group, or of choosing an interface.
pub(crate) fn group_remedy(code: i32) -> Option<&'static str> {
    Some(match code {
        ws::WSAEADDRINUSE => "the socket has joined it already",
        ws::WSAEADDRNOTAVAIL | ws::WSAEINVAL => {
            "leave only what was joined, in the same way; join on an interface that exists and \
             has a way to the group (ipconfig lists them), and once only"
        }
        ws::WSAENOBUFS => "too many groups: use another socket",
        _ => return None,
    })
}
