//! What the system writes before a datagram: into the headroom of its slice.

use std::{
    net::{IpAddr, SocketAddr},
    ptr,
};

use super::{
    engine::Traits,
    region::{HEADROOM, Slice},
};
use crate::sys::udp::control::{Facts, read_address};

/// The layout of it: four lengths and flags, then the address, then control messages. io_uring
/// writes it so; elsewhere it is written likewise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Room for the address.
    name: u16,
    /// Room for control messages.
    control: u16,
}

/// Of the address, of the control messages, of the datagram; then flags.
const LENGTHS: usize = 16;

/// An address of IPv4, and one of IPv6.
const NAMES: [usize; 2] = [size_of::<libc::sockaddr_in>(), size_of::<libc::sockaddr_in6>()];

/// The control messages that are ever asked for: a size, and the address that was sent to. A socket
/// of both families tells that twice.
const CONTROL: usize = space(4) + space(size_of::<libc::in_pktinfo>()) + SPACE_6;
const SPACE_6: usize = space(size_of::<libc::in6_pktinfo>());

/// The room that a control message with so many bytes takes: they come after a length, a level and
/// a type.
const fn space(bytes: usize) -> usize {
    size_of::<libc::cmsghdr>() + bytes.next_multiple_of(size_of::<usize>())
}

const _: () = assert!(LENGTHS + NAMES[1] + CONTROL <= HEADROOM);
// So that the control messages begin where words do.
const _: () = assert!(CONTROL.is_multiple_of(size_of::<usize>()));

impl Head {
    /// Nothing is written.
    pub(super) const NONE: Self = Self { name: 0, control: 0 };

    /// What it has to be for a socket.
    pub(super) fn new(traits: &Traits) -> Self {
        let name = if traits.addresses { NAMES[usize::from(traits.v6)] } else { 0 };
        let control = traits.coalesce || traits.local_addresses;
        let control = if control { CONTROL } else { 0 };
        // They are less than the headroom.
        let [name, control] = [name, control].map(|it| u16::try_from(it).unwrap_or(0));
        Self { name, control }
    }

    pub(super) fn name(self) -> usize {
        usize::from(self.name)
    }

    pub(super) fn control(self) -> usize {
        usize::from(self.control)
    }

    /// How many bytes it takes.
    #[inline]
    pub(super) fn bytes(self) -> usize {
        if self == Self::NONE { 0 } else { LENGTHS + self.name() + self.control() }
    }

    /// Where the address goes and where the control messages go; null where there are none.
    pub(super) fn places(self, slice: &Slice) -> [*mut u8; 2] {
        let start = slice.start();
        // SAFETY: both lie in the headroom, which is before every slice and is its.
        unsafe {
            let control = start.sub(self.control());
            let name = control.sub(self.name());
            [
                if self.name == 0 { ptr::null_mut() } else { name },
                if self.control == 0 { ptr::null_mut() } else { control },
            ]
        }
    }

    /// Writes the lengths: of the address, of the control messages, of the datagram.
    #[inline]
    pub(super) fn write_lengths(self, slice: &mut Slice, lengths: [u32; 3]) {
        let head = slice.headroom_mut(self.bytes());
        for (room, length) in head.chunks_exact_mut(4).zip(lengths) {
            room.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// The lengths that were written: of the address, of the control messages, of the datagram.
    fn lengths(self, slice: &Slice) -> [usize; 3] {
        let head = slice.headroom(self.bytes());
        [0, 4, 8].map(|at| {
            let word = head.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, |word| u32::from_ne_bytes(word) as usize)
        })
    }

    /// How long the datagram was before it was cut off.
    #[inline]
    pub(super) fn whole(self, slice: &Slice) -> usize {
        self.lengths(slice)[2]
    }

    /// Where it is from.
    pub(super) fn address(self, slice: &Slice) -> Option<SocketAddr> {
        let length = self.lengths(slice)[0].min(self.name());
        read_address(slice.headroom(self.bytes()).get(LENGTHS..LENGTHS + length)?)
    }

    fn facts(self, slice: &Slice) -> Facts {
        let start = LENGTHS + self.name();
        let length = self.lengths(slice)[1].min(self.control());
        let messages = slice.headroom(self.bytes()).get(start..start + length);
        messages.map(Facts::read).unwrap_or_default()
    }

    /// Which address it was sent to.
    pub(super) fn local(self, slice: &Slice) -> Option<IpAddr> {
        self.facts(slice).to.map(|to| to.to_canonical())
    }

    /// Of how many bytes each datagram is of those that were coalesced.
    pub(super) fn segment(self, slice: &Slice) -> Option<usize> {
        self.facts(slice).segment.filter(|&size| size > 0).map(usize::from)
    }
}
