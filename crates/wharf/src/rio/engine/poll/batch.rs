//! What recvmmsg and sendmmsg are given.

use std::{collections::VecDeque, io, os::fd::RawFd, ptr};

use super::{super::Route, Head, Request};
use crate::sys::udp::control::{ADDRESS_ROOM, write_address};

/// How many datagrams one call moves at most.
pub(super) const BATCH: usize = 64;

/// Room for the control messages of a send.
const CONTROL_ROOM: usize = 96;

fn empty_part() -> libc::iovec {
    libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: plain integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// The headers of the oldest receives of a socket.
///
/// They are filled in once for each receive, however many calls it takes until a datagram comes:
/// `headers[next..filled]` belong to the socket's first receives, in order.
pub(super) struct Window {
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    next: usize,
    filled: usize,
    head: Head,
}

// SAFETY: the pointers lead from `headers` into `parts`, which is owned beside it, and to slices of
// receives that the same socket owns. They are followed only in `receive`.
unsafe impl Send for Window {}

/// What came into a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    /// How long the datagram is, fitting or not.
    pub(super) length: u32,
    /// How long its address and its control messages are, in the headroom.
    pub(super) name: u32,
    pub(super) control: u32,
}

impl Window {
    pub(super) fn new(receives: usize, head: Head) -> Self {
        let room = receives.clamp(1, BATCH);
        let mut parts: Box<[_]> = (0..room).map(|_| empty_part()).collect();
        let headers = parts.iter_mut().map(|part| {
            let mut header = empty_header();
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header
        });
        let headers = headers.collect();
        Self { headers, parts, next: 0, filled: 0, head }
    }

    /// Receives as many datagrams as there are, up to the end of the window, into the first
    /// receives. What came is told by [`Self::pass`], one by one.
    pub(super) fn receive(&mut self, fd: RawFd, receives: &VecDeque<Request>) -> io::Result<usize> {
        if self.next == self.filled {
            (self.next, self.filled) = (0, 0);
        }
        let behind = self.filled - self.next;
        for request in receives.range(behind.min(receives.len())..) {
            if self.filled == self.headers.len() {
                break;
            }
            self.fill(self.filled, request);
            self.filled += 1;
        }
        let headers = &mut self.headers[self.next..self.filled];
        let count = u32::try_from(headers.len()).unwrap_or(0);
        // MSG_TRUNC: the length of the datagram, not of what fits.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: each header leads to its part and, by `fill`, to the slice of a receive that the
        // caller owns: its bytes, and the headroom before them, which is its, too. Nobody else
        // looks at a slice that a receive has, and the kernel does only during the call.
        let come =
            unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, flags as _, ptr::null_mut()) };
        usize::try_from(come).map_err(|_| io::Error::last_os_error())
    }

    fn fill(&mut self, at: usize, request: &Request) {
        let slice = &request.slice;
        self.parts[at] = libc::iovec { iov_base: slice.start().cast(), iov_len: slice.capacity() };
        if self.head != Head::NONE {
            let header = &mut self.headers[at].msg_hdr;
            let [name, control] = self.head.places(slice);
            header.msg_name = name.cast();
            header.msg_namelen = u32::try_from(self.head.name()).unwrap_or(0);
            header.msg_control = control.cast();
            header.msg_controllen = self.head.control() as _;
        }
    }

    /// Passes over the first receive, which has a datagram or has been given up.
    #[inline(always)]
    pub(super) fn pass(&mut self) -> Arrived {
        let header = &self.headers[self.next];
        self.next += 1;
        Arrived {
            length: header.msg_len,
            name: header.msg_hdr.msg_namelen,
            control: u32::try_from(header.msg_hdr.msg_controllen).unwrap_or(0),
        }
    }
}

/// What a call to sendmmsg reads.
pub(super) struct Sending {
    headers: Box<[libc::mmsghdr]>,
    rooms: Box<[Room]>,
}

struct Room {
    part: libc::iovec,
    name: [u8; ADDRESS_ROOM],
    control: Aligned,
}

/// Control messages begin where words do.
#[repr(C, align(8))]
struct Aligned([u8; CONTROL_ROOM]);

// SAFETY: the pointers are followed only in `send`, which has filled them in before.
unsafe impl Send for Sending {}

impl Sending {
    pub(super) fn new() -> Self {
        let room = |_| Room {
            part: empty_part(),
            name: [0; ADDRESS_ROOM],
            control: Aligned([0; CONTROL_ROOM]),
        };
        let rooms = (0..BATCH).map(room).collect();
        Self { headers: (0..BATCH).map(|_| empty_header()).collect(), rooms }
    }

    /// Sends the first of these datagrams, as many as the kernel takes. Returns how many.
    pub(super) fn send<'a>(
        &mut self,
        fd: RawFd,
        datagrams: impl Iterator<Item = &'a (Request, Route)>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for ((request, route), (header, room)) in
            datagrams.zip(self.headers.iter_mut().zip(&mut self.rooms))
        {
            let slice = &request.slice;
            room.part = libc::iovec { iov_base: slice.start().cast(), iov_len: slice.len() };
            let control = route.write(&mut room.control.0);
            let name = route.to.map_or(0, |to| write_address(to, &mut room.name));
            let header = &mut header.msg_hdr;
            header.msg_iov = &raw mut room.part;
            header.msg_iovlen = 1;
            header.msg_name =
                if name == 0 { ptr::null_mut() } else { room.name.as_mut_ptr().cast() };
            header.msg_namelen = u32::try_from(name).unwrap_or(0);
            header.msg_control =
                if control == 0 { ptr::null_mut() } else { room.control.0.as_mut_ptr().cast() };
            header.msg_controllen = control as _;
            count += 1;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first `count` headers have just been filled in: they lead to rooms of ours
        // and to slices that the caller's requests own, and the kernel reads them only during the
        // call.
        let sent = unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), count, flags as _) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}
