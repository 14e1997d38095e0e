//! A socket's requests, and the calls that do them.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
};

use super::{
    super::Route,
    Completion, Direction, Head, Request, Traits,
    batch::{Arrived, BATCH, Sending, Window},
};
use crate::sys::{epoll::Poller, udp};

/// How many errors that earlier datagrams have left behind are passed over in one go.
const ERRORS: usize = 16;
/// How many slices of a stream one call fills at most.
const PARTS: usize = 16;

pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    index: u16,
    head: Head,
    pub(super) receives: VecDeque<Request>,
    /// Of datagrams. A stream has none.
    window: Option<Window>,
    /// How much of the first receive of a stream is filled.
    filled: usize,
    sends: VecDeque<(Request, Route)>,
    /// How many of them may begin: all before a commit.
    begun: usize,
    /// How much of the first send of a stream is sent.
    sent: usize,
    /// Whether there may be something to receive; whether it may take something to send.
    readable: bool,
    writable: bool,
    /// Nobody wants to know that it is readable.
    deaf: bool,
    /// It stands in `State::attention`.
    pub(super) noted: bool,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("receives", &self.receives.len())
            .field("sends", &self.sends.len())
            .finish_non_exhaustive()
    }
}

/// What a look at a socket's receives has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    Nothing,
    /// So many datagrams, into the first receives.
    Datagrams(usize),
    /// What stands in the queue of completions.
    Completions,
}

impl Socket {
    pub(super) fn new(index: u16, fd: OwnedFd, traits: Traits) -> Self {
        let head = Head::new(&traits);
        Self {
            fd,
            index,
            head,
            receives: VecDeque::new(),
            window: (!traits.stream).then(|| Window::new(traits.receives, head)),
            filled: 0,
            sends: VecDeque::new(),
            begun: 0,
            sent: 0,
            readable: true,
            writable: true,
            deaf: false,
            noted: false,
        }
    }

    // ---- Readiness --------------------------------------------------------------------------

    /// Whether a call may do something.
    #[inline(always)]
    pub(super) fn can_work(&self) -> bool {
        (self.readable && !self.receives.is_empty()) || (self.writable && self.begun > 0)
    }

    /// Whether a new receive has nothing to do but to be there.
    #[inline(always)]
    pub(super) fn is_noted(&self) -> bool {
        self.noted && !self.deaf
    }

    /// Takes note of what epoll says.
    pub(super) fn is_ready(&mut self) {
        (self.readable, self.writable) = (true, true);
    }

    /// Tells an epoll instance what to tell, by edges. That it can be written to is told only
    /// where somebody waits for that: for each datagram that leaves, it can.
    pub(super) fn register(&self, poller: &Poller) -> io::Result<()> {
        let mut interest = libc::EPOLLRDHUP | libc::EPOLLET;
        if !self.deaf {
            interest |= libc::EPOLLIN;
        }
        if !self.writable {
            interest |= libc::EPOLLOUT;
        }
        poller.arm(self.fd.as_raw_fd(), interest.cast_unsigned(), self.index.into())
    }

    /// Lets epoll be silent on what comes in while there is no receive for it: somebody who sleeps
    /// until something happens would be woken by each datagram.
    pub(super) fn deafen(&mut self, poller: &Poller) {
        if !self.deaf && self.receives.is_empty() {
            self.deaf = true;
            self.deaf = self.register(poller).is_ok();
        }
    }

    pub(super) fn listen(&mut self, poller: &Poller) -> io::Result<()> {
        if !std::mem::take(&mut self.deaf) {
            return Ok(());
        }
        self.readable = true;
        self.register(poller)
    }

    // ---- Receiving --------------------------------------------------------------------------

    /// Receives what there is.
    pub(super) fn receive(&mut self, done: &mut VecDeque<Completion>) -> Came {
        if !self.readable || self.receives.is_empty() {
            return Came::Nothing;
        }
        match self.window {
            Some(_) => self.receive_datagrams(done),
            None => self.receive_bytes(done),
        }
    }

    fn receive_datagrams(&mut self, done: &mut VecDeque<Completion>) -> Came {
        let Some(window) = &mut self.window else { return Came::Nothing };
        for _ in 0..ERRORS {
            let error = match window.receive(self.fd.as_raw_fd(), &self.receives) {
                Ok(count) => return Came::Datagrams(count),
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            match error {
                libc::EAGAIN => {
                    self.readable = false;
                    return Came::Nothing;
                }
                libc::EINTR => {}
                error if udp::is_of_an_earlier_send(error) => {}
                error => {
                    window.pass();
                    done.extend(self.end_first(-error));
                    return Came::Completions;
                }
            }
        }
        Came::Nothing
    }

    /// The first receive, into which a datagram has come.
    #[inline(always)]
    pub(super) fn received(&mut self) -> Option<Completion> {
        let mut request = self.receives.pop_front()?;
        let Arrived { length, name, control } = self.window.as_mut()?.pass();
        let bytes = (length as usize).min(request.slice.capacity());
        request.slice.set_received(bytes);
        if self.head != Head::NONE {
            self.head.write_lengths(&mut request.slice, [name, control, length]);
        }
        let mut done = Completion::of(self.index, Direction::Receive, request, 0, bytes);
        done.whole = length;
        done.head = self.head;
        Some(done)
    }

    fn receive_bytes(&mut self, done: &mut VecDeque<Completion>) -> Came {
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PARTS];
        let mut filled = self.filled;
        let mut count = 0;
        for (part, request) in parts.iter_mut().zip(&self.receives) {
            let slice = &request.slice;
            // SAFETY: no more of the first slice is filled than it has.
            let rest = unsafe { slice.start().add(filled) };
            *part = libc::iovec { iov_base: rest.cast(), iov_len: slice.capacity() - filled };
            (filled, count) = (0, count + 1);
        }
        let mut message = plain_message(&mut parts, count);
        // SAFETY: the parts are what is left of slices that our receives own, which nobody else
        // looks at, and the kernel does only during the call.
        let come =
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(mut bytes) = usize::try_from(come) else {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            match error {
                libc::EAGAIN => self.readable = false,
                libc::EINTR => {}
                error => {
                    self.end_all(-error, done);
                    return Came::Completions;
                }
            }
            return Came::Nothing;
        };
        if bytes == 0 {
            // The end, for all of them and for those to come.
            self.end_all(0, done);
            return Came::Completions;
        }
        while bytes > 0
            && let Some(first) = self.receives.front()
        {
            let part = bytes.min(first.slice.capacity() - self.filled);
            self.filled += part;
            bytes -= part;
            if first.flags.is_whole() && self.filled < first.slice.capacity() {
                break;
            }
            done.extend(self.end_first(0));
        }
        Came::Completions
    }

    /// Ends the first receive, which has got so much as it is filled.
    fn end_first(&mut self, status: i32) -> Option<Completion> {
        let mut request = self.receives.pop_front()?;
        let filled = std::mem::take(&mut self.filled);
        request.slice.set_received(filled);
        Some(Completion::of(self.index, Direction::Receive, request, status, filled))
    }

    fn end_all(&mut self, status: i32, done: &mut VecDeque<Completion>) {
        while let Some(ended) = self.end_first(status) {
            done.push_back(ended);
        }
    }

    // ---- Sending ----------------------------------------------------------------------------

    /// Adds a send. It may begin, and those before it, unless it is deferred.
    pub(super) fn add_send(&mut self, request: Request, route: Route, deferred: bool) {
        self.sends.push_back((request, route));
        if !deferred {
            self.begin();
        }
    }

    /// All sends may begin.
    pub(super) fn begin(&mut self) {
        self.begun = self.sends.len();
    }

    /// Sends what the kernel takes. Tells epoll, if there is one, when that is not everything.
    pub(super) fn send(
        &mut self,
        sending: &mut Sending,
        poller: Option<&Poller>,
        done: &mut VecDeque<Completion>,
    ) -> io::Result<()> {
        let before = self.writable;
        while self.writable && self.begun > 0 {
            match self.window {
                Some(_) => self.send_datagrams(sending, done),
                None => self.send_bytes(done),
            }
        }
        match poller {
            Some(poller) if before && !self.writable => self.register(poller),
            _ => Ok(()),
        }
    }

    fn send_datagrams(&mut self, sending: &mut Sending, done: &mut VecDeque<Completion>) {
        let first = self.sends.iter().take(self.begun.min(BATCH));
        match sending.send(self.fd.as_raw_fd(), first) {
            Ok(count) => {
                for _ in 0..count {
                    let bytes = self.sends.front().map_or(0, |(request, _)| request.slice.len());
                    done.extend(self.end_first_send(0, bytes));
                }
            }
            Err(error) => self.send_failed(&error, done),
        }
    }

    fn send_bytes(&mut self, done: &mut VecDeque<Completion>) {
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut sent = self.sent;
        let mut count = 0;
        for (part, (request, _)) in parts.iter_mut().zip(self.sends.iter().take(self.begun)) {
            // SAFETY: no more of the first slice is sent than it has.
            let rest = unsafe { request.slice.start().add(sent) };
            *part = libc::iovec { iov_base: rest.cast(), iov_len: request.slice.len() - sent };
            (sent, count) = (0, count + 1);
        }
        let message = plain_message(&mut parts, count);
        // SAFETY: the parts are what is left of slices that our sends own, and the kernel reads
        // them only during the call.
        let sent = unsafe {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            libc::sendmsg(self.fd.as_raw_fd(), &raw const message, flags)
        };
        let Ok(mut bytes) = usize::try_from(sent) else {
            return self.send_failed(&io::Error::last_os_error(), done);
        };
        for _ in 0..count {
            let Some((first, _)) = self.sends.front() else { return };
            let length = first.slice.len();
            let rest = length - self.sent;
            if bytes < rest {
                self.sent += bytes;
                return;
            }
            bytes -= rest;
            done.extend(self.end_first_send(0, length));
        }
    }

    fn send_failed(&mut self, error: &io::Error, done: &mut VecDeque<Completion>) {
        match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::EAGAIN => self.writable = false,
            libc::EINTR => {}
            error => done.extend(self.end_first_send(-error, self.sent)),
        }
    }

    fn end_first_send(&mut self, status: i32, bytes: usize) -> Option<Completion> {
        let (request, _) = self.sends.pop_front()?;
        self.begun = self.begun.saturating_sub(1);
        self.sent = 0;
        Some(Completion::of(self.index, Direction::Send, request, status, bytes))
    }

    /// Gives everything up that has not been done.
    pub(super) fn cancel(mut self, done: &mut VecDeque<Completion>) {
        self.end_all(-libc::ECANCELED, done);
        while let Some(ended) = self.end_first_send(-libc::ECANCELED, self.sent) {
            done.push_back(ended);
        }
    }
}

/// A message of these parts, without address and control messages.
fn plain_message(parts: &mut [libc::iovec], count: usize) -> libc::msghdr {
    // SAFETY: plain integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = count as _;
    message
}
