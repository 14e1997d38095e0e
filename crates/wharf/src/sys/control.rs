//! Control messages and addresses as the kernel writes and reads them.
//!
//! Bytes in, values out, and the other way round: nothing here trusts what it reads, and none of
//! it needs `unsafe`. The layout is the kernel's (`struct cmsghdr` with a `size_t` for its length,
//! everything aligned to a `long`), whatever the C library says. That of Windows (WSACMSGHDR) is
//! the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

cfg_select! {
    windows => {
        use windows_sys::Win32::Networking::WinSock as names;

        const AF_INET: u16 = names::AF_INET;
        const AF_INET6: u16 = names::AF_INET6;
    }
    _ => {
        use libc as names;

        #[expect(clippy::cast_possible_truncation, reason = "a family has 16 bits")]
        const AF_INET: u16 = names::AF_INET as u16;
        #[expect(clippy::cast_possible_truncation, reason = "a family has 16 bits")]
        const AF_INET6: u16 = names::AF_INET6 as u16;
    }
}

/// Room for every control message that is ever asked for, all at once.
pub(crate) const ROOM: usize = 256;
/// Room for every address.
pub(crate) const ADDRESS_ROOM: usize = 128;

const WORD: usize = size_of::<usize>();
/// The length, the level and the type.
const HEADER: usize = WORD + 8;

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control<'a> {
    pub(crate) level: i32,
    pub(crate) kind: i32,
    pub(crate) data: &'a [u8],
}

/// Reads control messages, up to the first that makes no sense.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(messages: &'a [u8]) -> Self {
        Self { rest: messages }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Control<'a>;

    fn next(&mut self) -> Option<Control<'a>> {
        let length = usize::from_ne_bytes(part(self.rest, 0)?);
        let level = i32::from_ne_bytes(part(self.rest, WORD)?);
        let kind = i32::from_ne_bytes(part(self.rest, WORD + 4)?);
        let data = self.rest.get(HEADER..length)?;
        // The last one need not be followed by padding.
        self.rest = self.rest.get(length.next_multiple_of(WORD)..).unwrap_or_default();
        Some(Control { level, kind, data })
    }
}

/// Writes control messages.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    room: &'a mut [u8],
    used: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(room: &'a mut [u8]) -> Self {
        Self { room, used: 0 }
    }

    /// How many bytes have been written.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Adds one. False: there is no room for it, and nothing has been written.
    #[must_use]
    pub(crate) fn put(&mut self, level: i32, kind: i32, data: &[u8]) -> bool {
        let length = HEADER + data.len();
        let space = length.next_multiple_of(WORD);
        let Some(room) = self.room.get_mut(self.used..).and_then(|room| room.get_mut(..space))
        else {
            return false;
        };
        room[..WORD].copy_from_slice(&length.to_ne_bytes());
        room[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        room[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..length].copy_from_slice(data);
        room[length..].fill(0);
        self.used += space;
        true
    }
}

/// What the control messages of a received datagram say, or those of the error queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The address in the datagram's header that it was sent to.
    pub(crate) to: Option<IpAddr>,
    /// The address of this machine that an answer should come from, for IPv4.
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) interface: Option<u32>,
    pub(crate) hop_limit: Option<u8>,
    pub(crate) traffic_class: Option<u8>,
    /// How large each of several datagrams is that came as one.
    pub(crate) segment: Option<u16>,
    #[cfg(unix)]
    pub(crate) error: Option<Extended>,
}

/// What the error queue says of a datagram that was sent: `struct sock_extended_err`.
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extended {
    pub(crate) errno: i32,
    pub(crate) origin: u8,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) info: u32,
    /// Who has sent the ICMP message.
    pub(crate) offender: Option<SocketAddr>,
}

impl Facts {
    pub(crate) fn read(messages: &[u8]) -> Self {
        let mut facts = Self::default();
        for message in Reader::new(messages) {
            facts.learn(message);
        }
        facts
    }

    #[cfg(windows)]
    fn learn(&mut self, Control { level, kind, data }: Control<'_>) {
        const COALESCED: i32 = names::UDP_COALESCED_INFO as i32;
        match (level, kind) {
            (names::IPPROTO_IP, names::IP_PKTINFO) => {
                // IN_PKTINFO: the header's address, the interface.
                let (Some(to), Some(interface)) = (part::<4>(data, 0), part(data, 4)) else {
                    return;
                };
                self.interface = Some(u32::from_ne_bytes(interface));
                self.to = Some(Ipv4Addr::from(to).into());
            }
            (names::IPPROTO_IPV6, names::IPV6_PKTINFO) => self.learn_v6(data),
            // The one that was asked for, and the one that older systems answer with.
            (names::IPPROTO_IP, names::IP_TTL | names::IP_HOPLIMIT)
            | (names::IPPROTO_IPV6, names::IPV6_HOPLIMIT) => {
                self.hop_limit = byte(data);
            }
            (names::IPPROTO_IP, names::IP_TOS | names::IP_ECN)
            | (names::IPPROTO_IPV6, names::IPV6_TCLASS | names::IPV6_ECN) => {
                self.traffic_class = byte(data);
            }
            (names::IPPROTO_UDP, COALESCED) => {
                let size = part(data, 0).map(u32::from_ne_bytes);
                self.segment = size.and_then(|size| size.try_into().ok());
            }
            _ => {}
        }
    }

    /// `struct in6_pktinfo`: the header's address, the interface.
    fn learn_v6(&mut self, data: &[u8]) {
        let (Some(to), Some(interface)) = (part::<16>(data, 0), part(data, 16)) else { return };
        self.interface = Some(u32::from_ne_bytes(interface));
        self.to = Some(Ipv6Addr::from(to).into());
    }

    #[cfg(unix)]
    fn learn(&mut self, Control { level, kind, data }: Control<'_>) {
        match (level, kind) {
            (names::IPPROTO_IP, names::IP_PKTINFO) => {
                // struct in_pktinfo: the interface, our address, the header's address.
                let (Some(interface), Some(source), Some(to)) =
                    (part(data, 0), part::<4>(data, 4), part::<4>(data, 8))
                else {
                    return;
                };
                self.interface = Some(u32::from_ne_bytes(interface));
                self.source = Some(source.into());
                self.to = Some(Ipv4Addr::from(to).into());
            }
            (names::IPPROTO_IPV6, names::IPV6_PKTINFO) => self.learn_v6(data),
            (names::IPPROTO_IP, names::IP_TTL) | (names::IPPROTO_IPV6, names::IPV6_HOPLIMIT) => {
                self.hop_limit = byte(data);
            }
            (names::IPPROTO_IP, names::IP_TOS) | (names::IPPROTO_IPV6, names::IPV6_TCLASS) => {
                self.traffic_class = byte(data);
            }
            (names::SOL_UDP, names::UDP_GRO) => {
                let size = part(data, 0).map(i32::from_ne_bytes);
                self.segment = size.and_then(|size| size.try_into().ok());
            }
            (names::IPPROTO_IP, names::IP_RECVERR) | (names::IPPROTO_IPV6, names::IPV6_RECVERR) => {
                self.error = Extended::read(data);
            }
            _ => {}
        }
    }
}

#[cfg(unix)]
impl Extended {
    /// How many bytes `struct sock_extended_err` has. The offender's address follows it.
    const LENGTH: usize = 16;

    fn read(data: &[u8]) -> Option<Self> {
        Some(Self {
            errno: i32::from_ne_bytes(part(data, 0)?),
            origin: *data.get(4)?,
            kind: *data.get(5)?,
            code: *data.get(6)?,
            info: u32::from_ne_bytes(part(data, 8)?),
            offender: data.get(Self::LENGTH..).and_then(read_address),
        })
    }
}

/// A small number, which the kernel writes as a byte or as an int.
fn byte(data: &[u8]) -> Option<u8> {
    match part(data, 0).map(i32::from_ne_bytes) {
        Some(number) => number.try_into().ok(),
        None => data.first().copied(),
    }
}

/// Reads `struct sockaddr_in` or `sockaddr_in6`.
pub(crate) fn read_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(part(bytes, 0)?);
    let port = u16::from_be_bytes(part(bytes, 2)?);
    match family {
        AF_INET => Some(SocketAddrV4::new(part::<4>(bytes, 4)?.into(), port).into()),
        AF_INET6 => {
            let flow = u32::from_ne_bytes(part(bytes, 4)?);
            let address = part::<16>(bytes, 8)?.into();
            let scope = u32::from_ne_bytes(part(bytes, 24)?);
            Some(SocketAddrV6::new(address, port, flow, scope).into())
        }
        _ => None,
    }
}

/// Writes it, and says how long it is.
pub(crate) fn write_address(address: SocketAddr, room: &mut [u8; ADDRESS_ROOM]) -> usize {
    room.fill(0);
    let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    room[..2].copy_from_slice(&family.to_ne_bytes());
    room[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => {
            room[4..8].copy_from_slice(&address.ip().octets());
            16
        }
        SocketAddr::V6(address) => {
            room[4..8].copy_from_slice(&address.flowinfo().to_ne_bytes());
            room[8..24].copy_from_slice(&address.ip().octets());
            room[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
            28
        }
    }
}

/// So many bytes from a place on.
fn part<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_layout_is_that_of_the_c_library() {
        // SAFETY: plain arithmetic.
        let (space, length) = unsafe { (libc::CMSG_SPACE(5), libc::CMSG_LEN(5)) };
        let mut room = [0xff; ROOM];
        let mut writer = Writer::new(&mut room);
        assert!(writer.put(1, 2, b"hello"));
        assert_eq!(writer.used(), space as usize);
        assert_eq!(usize::from_ne_bytes(part(&room, 0).unwrap()), length as usize);
        assert_eq!(&room[length as usize - 5..length as usize], b"hello");
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let mut room = [7; HEADER + 8];
        let mut writer = Writer::new(&mut room);
        assert!(!writer.put(1, 2, &[0; 9]));
        assert_eq!((writer.used(), room), (0, [7; HEADER + 8]));
        let mut writer = Writer::new(&mut room);
        assert!(writer.put(1, 2, &[0; 8]));
        assert!(!writer.put(1, 2, &[]));
    }

    #[test]
    fn a_length_beyond_the_end_ends_it() {
        for length in [0, 1, HEADER - 1, HEADER + 1, 1 << 20, usize::MAX, usize::MAX - 6] {
            let mut room = [0; HEADER];
            room[..WORD].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Reader::new(&room).next(), None, "{length}");
        }
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let v4 = (any::<Ipv4Addr>(), any::<u16>());
        let v6 = (any::<Ipv6Addr>(), any::<u16>(), any::<u32>(), any::<u32>());
        prop_oneof![
            v4.prop_map(|(ip, port)| SocketAddrV4::new(ip, port).into()),
            v6.prop_map(|(ip, port, flow, scope)| SocketAddrV6::new(ip, port, flow, scope).into()),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            messages in proptest::collection::vec(
                (any::<i32>(), any::<i32>(), proptest::collection::vec(any::<u8>(), 0..40)),
                0..8,
            ),
        ) {
            let mut room = [0; ROOM];
            let mut writer = Writer::new(&mut room);
            let mut written = Vec::new();
            for (level, kind, data) in &messages {
                let before = writer.used();
                if writer.put(*level, *kind, data) {
                    written.push(Control { level: *level, kind: *kind, data });
                } else {
                    prop_assert!(before + HEADER + data.len() > ROOM - WORD + 1);
                }
            }
            let used = writer.used();
            let read: Vec<_> = Reader::new(&room[..used]).collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn anything_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..ROOM)) {
            let count = Reader::new(&bytes).count();
            prop_assert!(count * HEADER <= bytes.len());
            let _ = Facts::read(&bytes);
            let _ = read_address(&bytes);
        }

        #[test]
        fn addresses_come_back(address in any_address()) {
            let mut room = [0xff; ADDRESS_ROOM];
            let length = write_address(address, &mut room);
            prop_assert_eq!(read_address(&room[..length]), Some(address));
            prop_assert_eq!(read_address(&room[..7]), None);
            // The same bytes as the crate that everybody uses.
            let known = socket2::SockAddr::from(address);
            prop_assert_eq!(known.len() as usize, length);
            // SAFETY: so many bytes of the address are initialised.
            let known = unsafe { std::slice::from_raw_parts(known.as_ptr().cast::<u8>(), length) };
            prop_assert_eq!(known, &room[..length]);
        }
    }
}
