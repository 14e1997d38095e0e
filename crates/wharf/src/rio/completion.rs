//! What becomes of a request.

use std::net::{IpAddr, SocketAddr};

use super::{RequestQueue, Slice, engine::Flags, head::Head};
use crate::{
    error::{Error, Result},
    sys::udp,
};

/// Which direction a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[expect(clippy::exhaustive_enums, reason = "there are no other directions")]
pub enum Direction {
    /// A receive.
    Receive,
    /// A send.
    Send,
}

/// A request that is over. Its slice is the program's again, and its place in the quota is free.
#[derive(Debug)]
#[non_exhaustive]
#[doc(alias = "RIORESULT")]
pub struct Completion {
    /// The request queue it was started on.
    pub socket: RequestQueue,
    /// Whether it received or sent.
    pub direction: Direction,
    /// Its slice, holding what was received, or what was to be sent.
    pub slice: Slice,
    /// What [`Start::context`](super::Start::context) gave it, or 0.
    pub context: u64,
    /// 0 or an error of the system's, negative.
    pub(super) status: i32,
    pub(super) bytes: u32,
    /// How long the datagram was before it was cut off.
    pub(super) whole: u32,
    /// How to read what was written before the slice.
    pub(super) head: Head,
    pub(super) flags: Flags,
}

impl Completion {
    /// How many bytes were moved. Of a datagram that was larger than its slice, those that fit: see
    /// [`Self::truncated`].
    ///
    /// # Errors
    ///
    /// What the request failed with.
    #[inline]
    pub fn bytes(&self) -> Result<usize> {
        if self.status == 0 { Ok(self.bytes as usize) } else { Err(self.error()) }
    }

    #[cold]
    fn error(&self) -> Error {
        match self.direction {
            Direction::Receive => Error::from_status(self.status, "receive"),
            Direction::Send => {
                let error = Error::from_status(self.status, "send");
                match udp::send_remedy(-self.status) {
                    Some(remedy) => error.with_remedy(remedy),
                    None => error,
                }
            }
        }
    }

    /// How many bytes were moved, also by a request that then failed.
    #[must_use]
    pub fn transferred(&self) -> usize {
        self.bytes as usize
    }

    /// Where a datagram is from, on a request queue made with
    /// [`Options::addresses`](super::Options::addresses).
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.head.address(&self.slice)
    }

    /// Which address a datagram was sent to, on a request queue made with
    /// [`Options::local_addresses`](super::Options::local_addresses): one of this machine's, or of
    /// a group.
    #[must_use]
    pub fn local_address(&self) -> Option<IpAddr> {
        self.head.local(&self.slice)
    }

    /// How many bytes a datagram had that was larger than the slice: the slice is full, the rest is
    /// lost. None: it fitted. (Windows does not tell how many: one more than the slice's.)
    #[must_use]
    #[doc(alias = "WSAEMSGSIZE")]
    pub fn truncated(&self) -> Option<usize> {
        (self.whole > self.bytes).then_some(self.whole as usize)
    }

    /// Of how many bytes each datagram is if several were coalesced into this slice; the last one
    /// may be shorter.
    #[must_use]
    pub fn segment_size(&self) -> Option<usize> {
        self.head.segment(&self.slice)
    }

    /// The received datagrams, one by one: those that were coalesced, or the only one.
    ///
    /// A coalesced one that was cut off ends in a datagram that is not whole, or lacks some; see
    /// [`Self::truncated`].
    #[inline]
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let bytes = &self.slice[..];
        let size = self.segment_size().unwrap_or(bytes.len()).max(1);
        Datagrams { rest: Some(bytes), size }
    }
}

/// The parts of what has come, all but the last of one size. Of nothing there is one: an empty
/// datagram is one all the same.
struct Datagrams<'a> {
    rest: Option<&'a [u8]>,
    size: usize,
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        match rest.split_at_checked(self.size) {
            Some((first, rest)) if !rest.is_empty() => {
                self.rest = Some(rest);
                Some(first)
            }
            _ => self.rest.take(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.rest.map_or(0, |rest| rest.len().div_ceil(self.size).max(1));
        (left, Some(left))
    }
}

impl ExactSizeIterator for Datagrams<'_> {}

#[cfg(test)]
mod tests {
    use super::Datagrams;

    /// Would catch: an empty datagram or a short last one that is lost, or a wrong length.
    #[test]
    fn what_came_together_is_taken_apart() {
        let parts = |bytes: &[u8], size: usize| {
            let mut datagrams = Datagrams { rest: Some(bytes), size };
            let mut lengths = Vec::new();
            loop {
                let left = datagrams.len();
                let Some(part) = datagrams.next() else { break lengths };
                assert_eq!(datagrams.len(), left - 1);
                lengths.push(part.len());
            }
        };
        let bytes = [7; 10];
        for (length, size, expected) in [
            (0, 1, &[0][..]),
            (0, 5, &[0]),
            (1, 5, &[1]),
            (5, 5, &[5]),
            (10, 5, &[5, 5]),
            (10, 4, &[4, 4, 2]),
            (10, 11, &[10]),
            (3, 1, &[1, 1, 1]),
        ] {
            assert_eq!(parts(&bytes[..length], size), expected, "{length} by {size}");
        }
    }
}
