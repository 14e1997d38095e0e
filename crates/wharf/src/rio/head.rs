//! What the system writes before a datagram: into the headroom of its slice.

use std::net::{IpAddr, SocketAddr};

use super::{
    engine::Traits,
    region::{HEADROOM, Slice},
};
use crate::sys::control::{Facts, read_address};

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
const NAMES: [usize; 2] = [16, 28];

/// The control messages that are ever asked for: a size, and the address that was sent to. A socket
/// of both families tells that twice.
const CONTROL: usize = space(4) + space(PACKET_INFO[0]) + space(PACKET_INFO[1]);
/// Of IPv4 (Windows has less of it), and of IPv6.
const PACKET_INFO: [usize; 2] = [12, 20];

/// The room that a control message with so many bytes takes: they come after a length, a level and
/// a type.
const fn space(bytes: usize) -> usize {
    size_of::<usize>() + 8 + bytes.next_multiple_of(size_of::<usize>())
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
    #[cfg(target_os = "linux")]
    pub(super) fn places(self, slice: &Slice) -> [*mut u8; 2] {
        let (start, null) = (slice.start(), std::ptr::null_mut());
        // SAFETY: both lie in the headroom, which is before every slice and is its.
        unsafe {
            let control = start.sub(self.control());
            let name = control.sub(self.name());
            [
                if self.name == 0 { null } else { name },
                if self.control == 0 { null } else { control },
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

    /// Writes all of it, from where the system has put it: the address, the control messages, and
    /// how long the datagram is. What there is no room for is left out.
    #[cfg(windows)]
    pub(super) fn write(self, slice: &mut Slice, [name, control]: [&[u8]; 2], whole: usize) {
        if self == Self::NONE {
            return;
        }
        let name = &name[..name.len().min(self.name())];
        let control = &control[..control.len().min(self.control())];
        let lengths = [name.len(), control.len(), whole];
        self.write_lengths(slice, lengths.map(|it| u32::try_from(it).unwrap_or(u32::MAX)));
        let room = &mut slice.headroom_mut(self.bytes())[LENGTHS..];
        room[..name.len()].copy_from_slice(name);
        room[self.name()..][..control.len()].copy_from_slice(control);
    }

    /// The lengths that were written: of the address, of the control messages, of the datagram.
    #[inline]
    fn lengths(self, slice: &Slice) -> [usize; 3] {
        let head = slice.headroom(self.bytes());
        let Some(words) = head.first_chunk::<12>() else { return [0; 3] };
        let (words, _) = words.as_chunks::<4>();
        [0, 1, 2].map(|at| u32::from_ne_bytes(words[at]) as usize)
    }

    /// How long the datagram was before it was cut off.
    #[cfg(target_os = "linux")]
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
