//! Receives within the kernel's reach.

use std::io;

use super::super::Request;
use crate::sys::uring::{Provided, Ring};

/// A ring of provided buffers, and the requests whose slices its entries name.
///
/// The kernel consumes entries oldest first, and says of each one which it was. So as long as all
/// its completions have been taken, the newest `count` entries are those that it has not consumed.
#[derive(Debug)]
pub(super) struct Posted {
    provided: Provided,
    /// By place in the ring.
    requests: Box<[Option<Request>]>,
    count: u16,
    /// What the kernel writes before a datagram goes into that much of the headroom.
    head: usize,
}

impl Posted {
    /// The most entries a ring may have. More receives than that wait behind.
    pub(super) const MAX: usize = 32_768;

    pub(super) fn new(ring: &Ring, receives: usize, group: u16, head: usize) -> io::Result<Self> {
        let entries = receives.clamp(1, Self::MAX).next_power_of_two();
        let count = u16::try_from(entries).map_err(|_| io::ErrorKind::InvalidInput)?;
        let provided = Provided::in_group(ring, count, group)?;
        let requests = (0..entries).map(|_| None).collect();
        Ok(Self { provided, requests, count: 0, head })
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        usize::from(self.count) == self.requests.len()
    }

    /// The place in the ring of the entry so many before the next one.
    fn place(&self, before: u16) -> u16 {
        let mask = (self.requests.len() - 1) & usize::from(u16::MAX);
        self.provided.tail().wrapping_sub(before) & u16::try_from(mask).unwrap_or(u16::MAX)
    }

    /// What an entry names: the slice, and before it what the kernel has to say.
    fn room(&self, request: &Request) -> (*mut u8, usize) {
        // SAFETY: `head` is no more than the headroom, which lies before every slice and is its.
        let start = unsafe { request.slice.start().sub(self.head) };
        (start, request.slice.capacity() + self.head)
    }

    /// Posts a receive. There is room for it.
    #[inline(always)]
    pub(super) fn push(&mut self, request: Request) {
        debug_assert!(!self.is_full());
        let place = self.place(0);
        let (start, length) = self.room(&request);
        self.requests[usize::from(place)] = Some(request);
        self.provided.put(place, start, length);
        self.count += 1;
    }

    /// Takes the request whose entry the kernel has consumed.
    #[inline(always)]
    pub(super) fn take(&mut self, place: u32) -> Option<Request> {
        let request = self.requests.get_mut(place as usize)?.take()?;
        self.count -= 1;
        Some(request)
    }

    /// Takes the oldest request back, which the kernel has not consumed. No receive may be armed.
    pub(super) fn take_oldest(&mut self) -> Option<Request> {
        if self.is_empty() {
            return None;
        }
        let (oldest, newest) = (self.place(self.count), self.place(1));
        let taken = self.requests[usize::from(oldest)].take();
        if oldest != newest {
            // The newest takes its place. To move all of them would keep their order, and let
            // anybody who sends empty datagrams make us do so.
            let request = self.requests[usize::from(newest)].take();
            if let Some(request) = &request {
                let (start, length) = self.room(request);
                self.provided.replace(oldest, oldest, start, length);
            }
            self.requests[usize::from(oldest)] = request;
        }
        self.provided.take_back(1);
        self.count -= 1;
        taken
    }

    /// Takes all requests back that the kernel has not consumed, oldest first. No receive may be
    /// armed.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Request> {
        let places: Vec<_> = (1..=self.count).rev().map(|before| self.place(before)).collect();
        self.provided.take_back(self.count);
        self.count = 0;
        places.into_iter().filter_map(|place| self.requests[usize::from(place)].take())
    }
}
