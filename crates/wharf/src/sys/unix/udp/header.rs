//! The header that recvmsg and sendmsg want: where addresses and control messages lie, all at one
//! fixed address.

use std::{io, net::SocketAddr, ptr, sync::OnceLock};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    error::Error,
    sys::control::{ADDRESS_ROOM, Facts, ROOM, Writer, read_address, write_address},
    udp::{Envelope, IcmpError, Received},
};

/// The most datagrams that the kernel cuts out of one send.
const SEGMENTS: usize = 64;
/// The most bytes of a datagram over IPv4, and of all datagrams of one send.
const BYTES: usize = 65_507;
#[expect(clippy::cast_possible_truncation, reason = "it is 128")]
const ADDRESS_LENGTH: libc::socklen_t = ADDRESS_ROOM as libc::socklen_t;

/// See the module's page. Nobody may touch it while the kernel uses it.
#[repr(C)]
pub(crate) struct DatagramHeader {
    header: libc::msghdr,
    slice: libc::iovec,
    address: Aligned<ADDRESS_ROOM>,
    control: Aligned<ROOM>,
    /// What a send has: how long its address is, and how long its control messages are, without
    /// and with the one that asks for several datagrams.
    address_length: u32,
    control_lengths: [usize; 2],
    /// How many bytes each datagram of a send has. 0: it is one.
    segment: u16,
    /// The kernel is asked to cut them.
    offload: bool,
    /// How many bytes a received datagram has.
    length: usize,
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
        // SAFETY: plain integers and null pointers, for which zero is a value.
        let (header, slice) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            header,
            slice,
            address: Aligned([0; ADDRESS_ROOM]),
            control: Aligned([0; ROOM]),
            address_length: 0,
            control_lengths: [0; 2],
            segment: 0,
            offload: false,
            length: 0,
        }
    }

    /// What the kernel reads and writes.
    fn point(&mut self, buffer: *mut u8, length: usize) -> *mut libc::msghdr {
        self.slice = libc::iovec { iov_base: buffer.cast(), iov_len: length };
        self.header.msg_name = (&raw mut self.address).cast();
        self.header.msg_iov = &raw mut self.slice;
        self.header.msg_iovlen = 1;
        self.header.msg_control = (&raw mut self.control).cast();
        self.header.msg_flags = 0;
        &raw mut self.header
    }

    // ---- Receiving ----------------------------------------------------------------------

    /// The header with which a datagram is received into a buffer.
    pub(crate) fn for_receive(&mut self, buffer: *mut u8, length: usize) -> *mut libc::msghdr {
        let header = self.point(buffer, length);
        self.header.msg_namelen = ADDRESS_LENGTH;
        self.header.msg_controllen = ROOM as _;
        header
    }

    /// How many bytes fit into the buffer.
    pub(crate) fn room(&self) -> usize {
        self.slice.iov_len
    }

    /// Notes what came: a datagram of so many bytes, of which perhaps not all fit into the buffer.
    /// False: none. The socket has been shut down.
    pub(crate) fn came(&mut self, length: usize) -> bool {
        self.length = length;
        length > 0 || self.header.msg_namelen > 0
    }

    fn facts(&self) -> Facts {
        // What was cut off for want of room (MSG_CTRUNC) is not counted in the length.
        let length = self.header.msg_controllen.min(ROOM);
        Facts::read(&self.control.0[..length])
    }

    fn address(&self) -> Option<SocketAddr> {
        let length = (self.header.msg_namelen as usize).min(ADDRESS_ROOM);
        read_address(&self.address.0[..length])
    }

    /// What is known of the datagram that was received with this header.
    pub(crate) fn received(&self) -> Option<Received> {
        let from = self.address()?;
        let facts = self.facts();
        Some(Received {
            from,
            to: facts.to,
            interface: facts.interface,
            hop_limit: facts.hop_limit,
            traffic_class: facts.traffic_class,
            length: self.length,
            segment: facts.segment.unwrap_or(0),
            source: facts.source,
        })
    }

    /// What the error queue says. None: something else than an error in the network.
    pub(crate) fn icmp_error(&self) -> Option<IcmpError> {
        let extended = self.facts().error?;
        let from_network =
            matches!(extended.origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
        if !from_network && extended.origin != libc::SO_EE_ORIGIN_LOCAL {
            return None;
        }
        let too_large = extended.errno == libc::EMSGSIZE && extended.info > 0;
        Some(IcmpError {
            error: Error::from_status(-extended.errno, "a datagram sent earlier"),
            to: self.address()?,
            reporter: extended.offender.filter(|_| from_network).map(|from| from.ip()),
            icmp: from_network.then_some((extended.kind, extended.code)),
            mtu: too_large.then_some(extended.info),
        })
    }

    // ---- Sending ------------------------------------------------------------------------

    /// Addresses what will be sent. `ipv6`: the family, where the envelope names no address.
    pub(crate) fn address_to(&mut self, envelope: &Envelope, ipv6: bool, offload: bool) {
        let to = envelope.to;
        let length = to.map_or(0, |to| write_address(to, &mut self.address.0));
        self.address_length = u32::try_from(length).unwrap_or(0);
        self.segment = envelope.segment;
        self.offload = offload;
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
            if ipv6 {
                let mut info = [0; 20];
                if let Some(std::net::IpAddr::V6(source)) = envelope.source {
                    info[..16].copy_from_slice(&source.octets());
                }
                info[16..].copy_from_slice(&interface);
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            } else {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&interface);
                let source = envelope.source.map(|source| source.to_canonical());
                if let Some(std::net::IpAddr::V4(source)) = source {
                    info[4..8].copy_from_slice(&source.octets());
                }
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
        }
        if let Some(hops) = envelope.hop_limit {
            let hops = i32::from(hops).to_ne_bytes();
            if ipv6 {
                put(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &hops);
            } else {
                put(libc::IPPROTO_IP, libc::IP_TTL, &hops);
            }
        }
        if let Some(class) = envelope.traffic_class {
            let class = i32::from(class).to_ne_bytes();
            if ipv6 {
                put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class);
            } else {
                put(libc::IPPROTO_IP, libc::IP_TOS, &class);
            }
        }
        let plain = control.used();
        if self.segment > 0 && offload {
            complete &=
                control.put(libc::SOL_UDP, libc::UDP_SEGMENT, &self.segment.to_ne_bytes());
        }
        self.control_lengths = [plain, control.used()];
        debug_assert!(complete, "the room is for all of them");
    }

    /// The header with which the next part of a buffer is sent, of which so much is left.
    pub(crate) fn for_send(&mut self, rest: *const u8, left: usize) -> *mut libc::msghdr {
        let segment = usize::from(self.segment);
        let (length, cut) = match segment {
            0 => (left, false),
            _ if !self.offload => (left.min(segment), false),
            _ => {
                let most = SEGMENTS.min(BYTES / segment).max(1) * segment;
                (left.min(most), left > segment)
            }
        };
        // The kernel only reads what it is told to send.
        let header = self.point(rest.cast_mut(), length);
        self.header.msg_namelen = self.address_length as _;
        self.header.msg_controllen = self.control_lengths[usize::from(cut)] as _;
        if self.header.msg_namelen == 0 {
            self.header.msg_name = ptr::null_mut();
        }
        if self.header.msg_controllen == 0 {
            self.header.msg_control = ptr::null_mut();
        }
        header
    }

    /// From now on the datagrams of this send are cut here. False: so they are already, or it is
    /// one.
    pub(crate) fn give_up_offload(&mut self) -> bool {
        self.segment > 0 && std::mem::replace(&mut self.offload, false)
    }
}

/// Whether the kernel cuts datagrams (UDP_SEGMENT, Linux 4.18), found out by asking it.
pub(crate) fn cuts_datagrams() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        Socket::new(Domain::IPV4, Type::DGRAM, None)
            .and_then(|socket| super::set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 1200))
            .is_ok()
    })
}

/// Whether a socket's datagrams are of IPv6.
pub(crate) fn is_ipv6(socket: SockRef<'_>) -> io::Result<bool> {
    Ok(socket.domain()? == Domain::IPV6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(bytes: usize, segment: u16, offload: bool) -> Vec<(usize, bool)> {
        let mut message = DatagramHeader::new();
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        message.address_to(&Envelope::to(to).segments(segment), false, offload);
        let mut sent = 0;
        let mut parts = Vec::new();
        loop {
            message.for_send(ptr::dangling(), bytes - sent);
            parts.push((message.slice.iov_len, message.header.msg_controllen > 0));
            sent += message.slice.iov_len;
            if sent == bytes {
                return parts;
            }
        }
    }

    #[test]
    fn a_buffer_is_cut_into_what_the_kernel_takes() {
        assert_eq!(lengths(100, 0, true), [(100, false)]);
        assert_eq!(lengths(0, 10, true), [(0, false)]);
        assert_eq!(lengths(10, 10, true), [(10, false)]);
        assert_eq!(lengths(25, 10, true), [(25, true)]);
        assert_eq!(lengths(25, 10, false), [(10, false), (10, false), (5, false)]);
        // 64 at once, or 65,507 bytes.
        assert_eq!(lengths(1300, 10, true), [(640, true), (640, true), (20, true)]);
        assert_eq!(lengths(645, 10, true), [(640, true), (5, false)]);
        let [(first, true), (second, true)] = lengths(100_000, 1400, true)[..] else { panic!() };
        assert!(first <= BYTES && first % 1400 == 0 && first + second == 100_000);
        assert_eq!(lengths(130_000, 65_000, true), [(65_000, true), (65_000, false)]);
    }

    #[test]
    fn all_marks_fit() {
        for to in ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"] {
            let to: SocketAddr = to.parse().unwrap();
            let source = if to.is_ipv4() { "192.0.2.2" } else { "2001:db8::2" };
            let envelope = Envelope::to(to)
                .source(source.parse().unwrap())
                .interface(3)
                .hop_limit(4)
                .traffic_class(5)
                .segments(6);
            let mut message = DatagramHeader::new();
            message.address_to(&envelope, false, true);
            message.for_send(ptr::dangling(), 100);
            let facts = message.facts();
            assert_eq!((facts.interface, facts.hop_limit), (Some(3), Some(4)), "{to}");
            assert_eq!(facts.traffic_class, Some(5), "{to}");
            assert_eq!(message.address(), Some(to));
        }
    }
}
