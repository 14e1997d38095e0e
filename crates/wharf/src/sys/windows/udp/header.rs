//! What WSARecvMsg and WSASendMsg want: where addresses and control messages lie, all at one fixed
//! address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ptr,
    sync::OnceLock,
};

use socket2::{Domain, SockRef, Socket, Type};
use windows_sys::Win32::Networking::WinSock as ws;

use crate::{
    sys::{
        control::{ADDRESS_ROOM, Facts, ROOM, Writer, read_address, write_address},
        windows::socket,
    },
    udp::{Envelope, IcmpError, Received},
};

/// The most bytes of a datagram over IPv4, and of all datagrams of one send.
const BYTES: usize = 65_507;

/// See the module's page. Nobody may touch it while the kernel uses it.
#[repr(C)]
pub(crate) struct DatagramHeader {
    message: ws::WSAMSG,
    slice: ws::WSABUF,
    address: Aligned<ADDRESS_ROOM>,
    control: Aligned<ROOM>,
    /// What a send has: how long its address is, and how long its control messages are, without
    /// and with the one that asks for several datagrams.
    address_length: i32,
    control_lengths: [u32; 2],
    /// How many bytes each datagram of a send has. 0: it is one.
    segment: u16,
    /// The system is asked to cut them.
    offload: bool,
    /// It has been tried again already, after an error that another datagram has met.
    tried_again: bool,
    /// How many bytes were received, and whether that is not all.
    length: usize,
    truncated: bool,
}

#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

impl std::fmt::Debug for DatagramHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatagramHeader").finish_non_exhaustive()
    }
}

// SAFETY: the pointers in it are set before each use, and lead into itself or to the buffer of the
// operation that uses it, whose owner has promised to keep that where it is.
unsafe impl Send for DatagramHeader {}

impl DatagramHeader {
    pub(crate) fn new() -> Self {
        let nothing = ws::WSABUF { len: 0, buf: ptr::null_mut() };
        Self {
            message: ws::WSAMSG::default(),
            slice: nothing,
            address: Aligned([0; ADDRESS_ROOM]),
            control: Aligned([0; ROOM]),
            address_length: 0,
            control_lengths: [0; 2],
            segment: 0,
            offload: false,
            tried_again: false,
            length: 0,
            truncated: false,
        }
    }

    /// What the system reads and writes.
    fn point(&mut self, buffer: *mut u8, length: usize) -> *mut ws::WSAMSG {
        self.slice = socket::slice(buffer, length);
        self.message = ws::WSAMSG {
            name: (&raw mut self.address).cast(),
            namelen: 0,
            lpBuffers: &raw mut self.slice,
            dwBufferCount: 1,
            Control: ws::WSABUF { len: 0, buf: (&raw mut self.control).cast() },
            dwFlags: 0,
        };
        &raw mut self.message
    }

    // ---- Receiving ----------------------------------------------------------------------

    /// The message with which a datagram is received into a buffer.
    pub(super) fn for_receive(&mut self, buffer: *mut u8, length: usize) -> *mut ws::WSAMSG {
        let message = self.point(buffer, length);
        self.message.namelen = ADDRESS_ROOM as i32;
        self.message.Control.len = ROOM as u32;
        message
    }

    /// Notes what came: so many bytes, and perhaps more that did not fit into the buffer.
    pub(crate) fn came(&mut self, length: usize, truncated: bool) {
        self.length = length;
        self.truncated = truncated || self.message.dwFlags & ws::MSG_TRUNC != 0;
    }

    /// The bytes of the address and of the control messages, as the system has written them.
    pub(crate) fn written(&self) -> [&[u8]; 2] {
        let name = usize::try_from(self.message.namelen).unwrap_or(0).min(ADDRESS_ROOM);
        let control = usize::try_from(self.message.Control.len).unwrap_or(0).min(ROOM);
        [&self.address.0[..name], &self.control.0[..control]]
    }

    /// Whether what came did not fit.
    pub(crate) fn is_truncated(&self) -> bool {
        self.truncated
    }

    fn facts(&self) -> Facts {
        Facts::read(self.written()[1])
    }

    /// What is known of the datagram that was received with this header.
    pub(crate) fn received(&self) -> Option<Received> {
        let from = read_address(self.written()[0])?;
        let facts = self.facts();
        let to_many = self.message.dwFlags & (ws::MSG_BCAST | ws::MSG_MCAST) != 0;
        let source = match facts.to {
            Some(IpAddr::V4(to)) if !to_many && !to.is_multicast() && !to.is_broadcast() => {
                Some(to)
            }
            _ => None,
        };
        Some(Received {
            from,
            to: facts.to,
            interface: facts.interface,
            hop_limit: facts.hop_limit,
            traffic_class: facts.traffic_class,
            // How much more there was is not known here.
            length: self.length + usize::from(self.truncated),
            segment: facts.segment.unwrap_or(0),
            source,
        })
    }

    /// Nothing is told here of what became of a datagram.
    #[expect(clippy::unused_self, reason = "elsewhere it is in it")]
    pub(crate) fn icmp_error(&self) -> Option<IcmpError> {
        None
    }

    // ---- Sending ------------------------------------------------------------------------

    /// Addresses what will be sent. `ipv6`: the family, where the envelope names no address.
    pub(crate) fn address_to(&mut self, envelope: &Envelope, ipv6: bool, offload: bool) {
        let to = envelope.to;
        let length = to.map_or(0, |to| write_address(to, &mut self.address.0));
        self.address_length = i32::try_from(length).unwrap_or(0);
        self.segment = envelope.segment;
        self.offload = offload;
        self.tried_again = false;
        // A datagram to an address of IPv4 that is written like one of IPv6 is one of IPv4.
        let ipv6 = match to {
            Some(SocketAddr::V6(to)) => to.ip().to_ipv4_mapped().is_none(),
            Some(SocketAddr::V4(_)) => false,
            None => ipv6,
        };
        let mut control = Writer::new(&mut self.control.0);
        let mut complete = true;
        let mut put = |level, kind, data: &[u8]| complete &= control.put(level, kind, data);
        if envelope.source.is_some() || envelope.interface.is_some() {
            let interface = envelope.interface.unwrap_or(0).to_ne_bytes();
            let source = envelope.source.map(|source| source.to_canonical());
            if ipv6 {
                let mut info = [0; 20];
                if let Some(IpAddr::V6(source)) = source {
                    info[..16].copy_from_slice(&source.octets());
                }
                info[16..].copy_from_slice(&interface);
                put(ws::IPPROTO_IPV6, ws::IPV6_PKTINFO, &info);
            } else {
                let mut info = [0; 8];
                if let Some(IpAddr::V4(source)) = source {
                    info[..4].copy_from_slice(&source.octets());
                }
                info[4..].copy_from_slice(&interface);
                put(ws::IPPROTO_IP, ws::IP_PKTINFO, &info);
            }
        }
        let level = if ipv6 { ws::IPPROTO_IPV6 } else { ws::IPPROTO_IP };
        if let Some(hops) = envelope.hop_limit {
            let kind = if ipv6 { ws::IPV6_HOPLIMIT } else { ws::IP_TTL };
            put(level, kind, &i32::from(hops).to_ne_bytes());
        }
        if let Some(class) = envelope.traffic_class {
            // More systems take the mark alone than the whole byte.
            let kind = match (class <= 3, ipv6) {
                (true, true) => ws::IPV6_ECN,
                (true, false) => ws::IP_ECN,
                (false, true) => ws::IPV6_TCLASS,
                (false, false) => ws::IP_TOS,
            };
            put(level, kind, &i32::from(class).to_ne_bytes());
        }
        let plain = control.used();
        if self.segment > 0 && offload {
            let size = u32::from(self.segment).to_ne_bytes();
            complete &= control.put(ws::IPPROTO_UDP, ws::UDP_SEND_MSG_SIZE, &size);
        }
        let lengths = [plain, control.used()];
        self.control_lengths = lengths.map(|length| u32::try_from(length).unwrap_or(0));
        debug_assert!(complete, "the room is for all of them");
    }

    /// The message with which the next part of a buffer is sent, of which so much is left.
    pub(super) fn for_send(&mut self, rest: *const u8, left: usize) -> *const ws::WSAMSG {
        let segment = usize::from(self.segment);
        let (length, cut) = match segment {
            0 => (left, false),
            _ if !self.offload => (left.min(segment), false),
            _ => (left.min((BYTES / segment).max(1) * segment), left > segment),
        };
        // The system only reads what it is told to send.
        let message = self.point(rest.cast_mut(), length);
        self.message.namelen = self.address_length;
        self.message.Control.len = self.control_lengths[usize::from(cut)];
        if self.message.namelen == 0 {
            self.message.name = ptr::null_mut();
        }
        message
    }

    /// From now on the datagrams of this send are cut here. False: so they are already, or it is
    /// one.
    pub(crate) fn give_up_offload(&mut self) -> bool {
        self.segment > 0 && std::mem::replace(&mut self.offload, false)
    }

    /// Whether an error that another datagram has met may be passed over, once.
    pub(crate) fn may_try_again(&mut self) -> bool {
        !std::mem::replace(&mut self.tried_again, true)
    }
}

/// Whether the system cuts datagrams (UDP_SEND_MSG_SIZE, Windows 10 of 2004), found out by asking
/// it.
pub(crate) fn cuts_datagrams() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        Socket::new(Domain::IPV4, Type::DGRAM, None)
            .and_then(|socket| super::set(&socket, ws::IPPROTO_UDP, ws::UDP_SEND_MSG_SIZE, 1200))
            .is_ok()
    })
}

/// Whether a socket's datagrams are of IPv6.
pub(crate) fn is_ipv6(socket: SockRef<'_>) -> io::Result<bool> {
    Ok(super::domain(&*socket)? == Domain::IPV6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(bytes: usize, segment: u16, offload: bool) -> Vec<(usize, bool)> {
        let mut header = DatagramHeader::new();
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        header.address_to(&Envelope::to(to).segments(segment), false, offload);
        let mut sent = 0;
        let mut parts = Vec::new();
        loop {
            header.for_send(ptr::dangling(), bytes - sent);
            let length = header.slice.len as usize;
            parts.push((length, header.message.Control.len > 0));
            sent += length;
            if sent == bytes {
                return parts;
            }
        }
    }

    #[test]
    fn a_buffer_is_cut_into_what_the_system_takes() {
        assert_eq!(lengths(100, 0, true), [(100, false)]);
        assert_eq!(lengths(0, 10, true), [(0, false)]);
        assert_eq!(lengths(10, 10, true), [(10, false)]);
        assert_eq!(lengths(25, 10, true), [(25, true)]);
        assert_eq!(lengths(25, 10, false), [(10, false), (10, false), (5, false)]);
        let [(first, true), (second, true)] = lengths(100_000, 1400, true)[..] else { panic!() };
        assert!(first <= BYTES && first % 1400 == 0 && first + second == 100_000);
        assert_eq!(lengths(130_000, 65_000, true), [(65_000, true), (65_000, false)]);
    }

    #[test]
    fn all_marks_fit() {
        for (to, class) in [
            ("192.0.2.1:1", 2),
            ("192.0.2.1:1", 0xb9),
            ("[2001:db8::1]:1", 3),
            ("[2001:db8::1]:1", 0xb9),
            ("[::ffff:192.0.2.1]:1", 1),
        ] {
            let to: SocketAddr = to.parse().unwrap();
            let source = if to.is_ipv4() { "192.0.2.2" } else { "2001:db8::2" };
            let envelope = Envelope::to(to)
                .source(source.parse().unwrap())
                .interface(3)
                .hop_limit(4)
                .traffic_class(class)
                .segments(6);
            let mut header = DatagramHeader::new();
            header.address_to(&envelope, false, true);
            header.for_send(ptr::dangling(), 100);
            let facts = header.facts();
            assert_eq!((facts.interface, facts.hop_limit), (Some(3), Some(4)), "{to}");
            assert_eq!(facts.traffic_class, Some(class), "{to}");
            assert_eq!(header.received().unwrap().from, to);
        }
    }

    #[test]
    fn an_answer_comes_from_no_group() {
        let mut header = DatagramHeader::new();
        for (to, flags, source) in [
            ([192, 0, 2, 1], 0, true),
            ([192, 0, 2, 255], ws::MSG_BCAST, false),
            ([255, 255, 255, 255], 0, false),
            ([224, 0, 0, 1], 0, false),
            ([224, 0, 0, 1], ws::MSG_MCAST, false),
        ] {
            header.for_receive(ptr::dangling_mut(), 1);
            let mut control = Writer::new(&mut header.control.0);
            let mut info = [0; 8];
            info[..4].copy_from_slice(&to);
            assert!(control.put(ws::IPPROTO_IP, ws::IP_PKTINFO, &info));
            header.message.Control.len = control.used() as u32;
            header.message.dwFlags = flags;
            write_address(SocketAddr::from(([127, 0, 0, 1], 9)), &mut header.address.0);
            let received = header.received().unwrap();
            assert_eq!(received.to, Some(IpAddr::from(to)));
            assert_eq!(received.source.is_some(), source, "{to:?}");
        }
    }
}
