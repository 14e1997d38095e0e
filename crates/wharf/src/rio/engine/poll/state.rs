//! All sockets of a queue, their completions, and whose turn it is.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::{
    super::Route,
    Armed, Completion, Opened, Request, Traits,
    batch::Sending,
    socket::{Came, Socket},
};
use crate::sys::{epoll::Poller, signal};

/// With so many sockets, each is asked itself; with more, epoll is asked which have something. It
/// costs a little with each datagram, whoever pays for that.
const FEW: usize = 8;
/// After so many looks at sockets that have something, epoll is asked about the others.
const LOOKS: u32 = 16;

pub(super) struct State {
    sockets: Vec<Option<Box<Socket>>>,
    open: usize,
    /// Sockets of which a call may do something.
    attention: VecDeque<u16>,
    done: VecDeque<Completion>,
    /// The first receives of this socket, so many, have datagrams that are not in `done`. Taken
    /// from there by who dequeues, they are moved once less.
    current: u16,
    fresh: usize,
    poller: Option<Arc<Poller>>,
    looks: u32,
    sending: Option<Box<Sending>>,
    event: Option<Arc<OwnedFd>>,
    /// A notification is outstanding.
    pub(super) wanted: bool,
    /// It is made by whoever has asked for it just now.
    asking: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("open", &self.open).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(poller: Option<Arc<Poller>>, event: Option<Arc<OwnedFd>>) -> Self {
        Self {
            sockets: Vec::new(),
            open: 0,
            attention: VecDeque::new(),
            done: VecDeque::new(),
            current: 0,
            fresh: 0,
            poller,
            looks: 0,
            sending: None,
            event,
            wanted: false,
            asking: false,
        }
    }

    pub(super) fn open(&mut self, index: u16, fd: OwnedFd, traits: Traits) -> Opened {
        let socket = Socket::new(index, fd, traits);
        let registered = match &self.poller {
            Some(poller) => socket.register(poller),
            None if self.open >= FEW => self.begin_polling().and_then(|()| {
                let poller = self.poller.as_ref();
                poller.map_or(Ok(()), |poller| socket.register(poller))
            }),
            None => Ok(()),
        };
        if let Err(error) = registered {
            return Err((error, socket.fd));
        }
        let at = usize::from(index);
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        debug_assert!(self.sockets[at].is_none(), "the number is in use");
        self.sockets[at] = Some(Box::new(socket));
        self.open += 1;
        Ok(())
    }

    /// From now on epoll says which sockets have something.
    fn begin_polling(&mut self) -> io::Result<()> {
        let poller = Poller::new()?;
        for socket in self.sockets.iter().flatten() {
            socket.register(&poller)?;
        }
        self.poller = Some(Arc::new(poller));
        Ok(())
    }

    pub(super) fn socket(&self, index: u16) -> Option<BorrowedFd<'_>> {
        Some(self.sockets.get(usize::from(index))?.as_ref()?.fd.as_fd())
    }

    #[inline(always)]
    fn get(&mut self, index: u16) -> Option<&mut Socket> {
        self.sockets.get_mut(usize::from(index))?.as_deref_mut()
    }

    // ---- Starting ---------------------------------------------------------------------------

    #[inline(always)]
    pub(super) fn receive(&mut self, index: u16, request: Request) {
        let Some(socket) = self.sockets.get_mut(usize::from(index)) else { return };
        let Some(socket) = socket.as_deref_mut() else { return };
        socket.receives.push_back(request);
        if !socket.is_noted() {
            self.note(index);
        }
    }

    /// A socket may have something to do.
    #[inline(never)]
    fn note(&mut self, index: u16) {
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(index)) else { return };
        if let Some(poller) = &self.poller
            && let Err(error) = socket.listen(poller)
        {
            log::warn!("a socket cannot be watched: {error}");
        }
        if socket.can_work() && !std::mem::replace(&mut socket.noted, true) {
            self.attention.push_back(index);
        }
    }

    pub(super) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        let Some(socket) = self.get(index) else { return };
        socket.add_send(request, route, deferred);
        if !deferred {
            self.flush(index);
        }
    }

    pub(super) fn commit(&mut self, index: u16) {
        if let Some(socket) = self.get(index) {
            socket.begin();
            self.flush(index);
        }
    }

    fn flush(&mut self, index: u16) {
        let before = self.done.len();
        let sending = self.sending.get_or_insert_with(|| Box::new(Sending::new()));
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(index)) else { return };
        if let Err(error) = socket.send(sending, self.poller.as_deref(), &mut self.done) {
            log::warn!("a socket cannot be watched: {error}");
        }
        self.tell(before);
        self.note(index);
    }

    // ---- Completing -------------------------------------------------------------------------

    /// The next completion, if it is a datagram that has just come.
    #[inline(always)]
    pub(super) fn pop_fresh(&mut self) -> Option<Completion> {
        if self.fresh == 0 || !self.done.is_empty() {
            return None;
        }
        self.fresh -= 1;
        self.sockets.get_mut(usize::from(self.current))?.as_deref_mut()?.received()
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.done.pop_front().or_else(|| self.pop_fresh())
    }

    /// Moves what has just come to the other completions.
    fn stash(&mut self) {
        while self.fresh > 0 {
            self.fresh -= 1;
            let current = self.sockets.get_mut(usize::from(self.current));
            self.done.extend(current.and_then(|it| it.as_deref_mut()?.received()));
        }
    }

    /// Looks whether there is more, until there is something.
    pub(super) fn look(&mut self) -> io::Result<()> {
        if self.wanted {
            self.work_while_wanted();
            return Ok(());
        }
        self.looks = self.looks.wrapping_add(1);
        if self.attention.is_empty() || self.looks.is_multiple_of(LOOKS) {
            self.ask()?;
        }
        for _ in 0..self.attention.len() {
            if !self.serve_next() || self.fresh > 0 || !self.done.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Asks epoll which sockets have something. True: some.
    fn ask(&mut self) -> io::Result<bool> {
        let Some(poller) = self.poller.clone() else { return Ok(false) };
        let found = poller.wait(Some(Duration::ZERO), |token, _| {
            let index = u16::try_from(token).unwrap_or(u16::MAX);
            let wanted = self.wanted;
            let Some(socket) = self.get(index) else { return };
            socket.is_ready();
            if wanted {
                socket.deafen(&poller);
            }
            if socket.can_work() && !std::mem::replace(&mut socket.noted, true) {
                self.attention.push_back(index);
            }
        })?;
        Ok(found > 0)
    }

    /// Makes a socket's calls whose turn it is. False: there is none.
    fn serve_next(&mut self) -> bool {
        let Some(index) = self.attention.pop_front() else { return false };
        self.stash();
        let before = self.done.len();
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(index)) else { return true };
        let polled = self.poller.is_some();
        if !polled {
            // Nobody says when it is.
            socket.is_ready();
        }
        let came = socket.receive(&mut self.done);
        let sending = self.sending.get_or_insert_with(|| Box::new(Sending::new()));
        if let Err(error) = socket.send(sending, self.poller.as_deref(), &mut self.done) {
            log::warn!("a socket cannot be watched: {error}");
        }
        if !polled {
            socket.is_ready();
        }
        socket.noted = socket.can_work();
        if socket.noted {
            self.attention.push_back(index);
        }
        if let Came::Datagrams(count) = came {
            (self.current, self.fresh) = (index, count);
            // Later ones of the same socket may not overtake them.
            if self.wanted || self.done.len() > before {
                self.stash();
            }
        }
        self.tell(before);
        true
    }

    // ---- Notifying --------------------------------------------------------------------------

    /// Makes the notification that is outstanding, if one of the completions since `before` is to
    /// be told of.
    fn tell(&mut self, before: usize) {
        if self.wanted && self.done.range(before..).any(|done| !done.flags.is_quiet()) {
            self.wanted = false;
            let event = self.event.as_ref().filter(|_| !self.asking);
            if let Some(Err(error)) = event.map(|event| signal::raise(event.as_fd())) {
                log::error!("a notification could not be made: {error}");
            }
        }
    }

    /// Does what can be done, until the notification that is outstanding has been made.
    pub(super) fn work_while_wanted(&mut self) {
        while self.wanted {
            if !self.serve_next() {
                match self.ask() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return log::warn!("a queue cannot look: {error}"),
                }
            }
        }
    }

    pub(super) fn arm(&mut self) -> io::Result<Armed> {
        if self.wanted {
            return Ok(Armed::Already);
        }
        if let Some(event) = &self.event {
            signal::reset(event.as_fd());
        }
        self.stash();
        if self.done.iter().any(|done| !done.flags.is_quiet()) {
            return Ok(Armed::Now);
        }
        (self.wanted, self.asking) = (true, true);
        self.work_while_wanted();
        self.asking = false;
        Ok(if self.wanted { Armed::Later } else { Armed::Now })
    }

    // ---- Closing ----------------------------------------------------------------------------

    pub(super) fn close(&mut self, index: u16) {
        self.stash();
        let before = self.done.len();
        let socket = self.sockets.get_mut(usize::from(index)).and_then(Option::take);
        let Some(socket) = socket else { return };
        self.open -= 1;
        if let Some(poller) = &self.poller {
            // A duplicate of it would stay there.
            let _ = poller.remove(socket.fd.as_raw_fd());
        }
        socket.cancel(&mut self.done);
        self.tell(before);
    }
}
