//! All sockets of a queue, and their completions.

use std::{
    collections::VecDeque,
    fmt, io,
    os::windows::io::{AsHandle, AsSocket},
    sync::Arc,
};

use super::{
    call::Call,
    registered::{Done, KEY, Registered},
    socket::Socket,
};
use crate::{
    raw::Notifier,
    rio::{
        completion::Completion,
        engine::{Opened, Request, Route, Traits},
    },
    sys::{BorrowedSocket, CompletionPort, OwnedFile, OwnedSocket, PortEntry, signal},
};

pub(super) struct State {
    sockets: Vec<Option<Box<Socket>>>,
    desk: Desk,
    /// Room for what is over.
    outcomes: Vec<Done>,
    pub(super) telling: Telling,
    /// A notification is outstanding.
    pub(super) wanted: bool,
    /// The lookout is in the port, or has what came out of it.
    pub(super) looking: bool,
    /// It is to end.
    pub(super) stop: bool,
}

/// What all sockets use.
pub(super) struct Desk {
    pub(super) done: VecDeque<Completion>,
    /// Calls that are over, for the next ones.
    pub(super) spare: Vec<Box<Call>>,
    /// The system's own Registered I/O, where it has that.
    pub(super) registered: Option<Registered>,
    /// Sockets with receives there that have not begun.
    pub(super) idle: Vec<u16>,
    /// Where packets come.
    pub(super) port: Arc<CompletionPort>,
}

/// Who is told of completions.
pub(super) enum Telling {
    Nobody,
    Event(Arc<OwnedFile>),
    Notifier(Arc<Notifier>),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("done", &self.desk.done.len()).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(
        port: Arc<CompletionPort>,
        registered: Option<Registered>,
        telling: Telling,
    ) -> Self {
        let (done, spare, idle) = (VecDeque::new(), Vec::new(), Vec::new());
        Self {
            sockets: Vec::new(),
            desk: Desk { done, spare, registered, idle, port },
            outcomes: Vec::new(),
            telling,
            wanted: false,
            looking: false,
            stop: false,
        }
    }

    pub(super) fn open(
        &mut self,
        index: u16,
        socket: OwnedSocket,
        traits: Traits,
    ) -> Opened {
        let socket = Socket::new(&mut self.desk, index, socket, traits)?;
        let at = usize::from(index);
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        debug_assert!(self.sockets[at].is_none(), "the number is in use");
        self.sockets[at] = Some(Box::new(socket));
        // It may be the first with which the system's own is used.
        if self.wanted
            && let Err(error) = self.expect()
        {
            log::error!("a notification may not be made: {error}");
        }
        Ok(())
    }

    pub(super) fn socket(&self, index: u16) -> Option<BorrowedSocket<'_>> {
        Some(self.sockets.get(usize::from(index))?.as_ref()?.socket.as_ref()?.as_socket())
    }

    /// Works with a socket, and tells of what that has completed.
    fn with(&mut self, index: u16, work: impl FnOnce(&mut Socket, &mut Desk)) {
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(index)) else { return };
        let before = self.desk.done.len();
        work(socket, &mut self.desk);
        if socket.is_over() {
            socket.let_go(&mut self.desk);
            self.sockets[usize::from(index)] = None;
        }
        self.tell(before);
        if self.wanted {
            self.begin();
        }
    }

    pub(super) fn receive(&mut self, index: u16, request: Request) {
        self.with(index, |socket, desk| socket.receive(request, desk));
    }

    pub(super) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        self.with(index, |socket, desk| socket.send(request, route, deferred, desk));
    }

    pub(super) fn commit(&mut self, index: u16) -> io::Result<()> {
        let mut result = Ok(());
        self.with(index, |socket, desk| result = socket.commit(desk));
        self.begin();
        result
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.desk.done.pop_front()
    }

    /// Works on a packet.
    ///
    /// # Safety
    ///
    /// It has come out of the port of this state's sockets, and is worked on once.
    pub(super) unsafe fn complete(&mut self, packet: PortEntry) {
        if packet.key == KEY {
            // If it was about what somebody else has taken, there will be another packet.
            let taken = self.take_registered();
            let taken = if self.wanted { taken.and_then(|()| self.expect()) } else { taken };
            if let Err(error) = taken {
                log::error!("a notification may not be made: {error}");
            }
            return;
        }
        let call = packet.pointer.cast::<Call>();
        if call.is_null() {
            // It has woken somebody.
            return;
        }
        // SAFETY: a packet with a pointer is that of a call on one of our sockets, by which the
        // kernel gives back the box that it was given.
        let call = unsafe { Box::from_raw(call) };
        self.with(call.index, |socket, desk| {
            let bytes = usize::try_from(packet.bytes).unwrap_or(0);
            socket.over(call, packet.status, bytes, desk);
        });
    }

    /// Lets receives begin that were started with the system's own Registered I/O.
    fn begin(&mut self) {
        while let Some(index) = self.desk.idle.pop() {
            if let Some(Some(socket)) = self.sockets.get_mut(usize::from(index)) {
                socket.begin_receives(&mut self.desk);
            }
        }
    }

    /// Takes what the system's own Registered I/O has completed, all of it.
    pub(super) fn take_registered(&mut self) -> io::Result<()> {
        if self.desk.registered.is_none() {
            return Ok(());
        }
        self.begin();
        loop {
            let mut done = std::mem::take(&mut self.outcomes);
            let Some(registered) = &mut self.desk.registered else { return Ok(()) };
            let more = registered.dequeue(&mut done);
            for done in done.drain(..) {
                let index = done.pending.index;
                self.with(index, |socket, desk| socket.over_registered(done, desk));
            }
            self.outcomes = done;
            if !more? {
                return Ok(());
            }
        }
    }

    /// Has a packet come when the system's own Registered I/O has something to tell of.
    pub(super) fn expect(&mut self) -> io::Result<()> {
        self.begin();
        self.desk.registered.as_ref().map_or(Ok(()), Registered::notify)
    }

    // ---- Notifying --------------------------------------------------------------------------

    /// Whether there is a completion that notifies.
    pub(super) fn notifies(&self) -> bool {
        self.desk.done.iter().any(|done| !done.flags.is_quiet())
    }

    /// Makes the notification that is outstanding, if one of the completions since `before` is to
    /// be told of.
    fn tell(&mut self, before: usize) {
        if !self.wanted || self.desk.done.range(before..).all(|done| done.flags.is_quiet()) {
            return;
        }
        self.wanted = false;
        match &self.telling {
            Telling::Nobody => {}
            Telling::Event(event) => {
                if let Err(error) = signal::raise(event.as_handle()) {
                    log::error!("a notification could not be made: {error}");
                }
            }
            Telling::Notifier(notifier) => notifier.ring(),
        }
    }

    // ---- Closing ----------------------------------------------------------------------------

    /// How many calls the kernel has.
    pub(super) fn calls(&self) -> usize {
        self.sockets.iter().flatten().map(|socket| socket.calls).sum()
    }

    /// Ends a socket. It is over when the kernel has let go of it.
    pub(super) fn close(&mut self, index: u16) {
        self.with(index, Socket::close);
    }

    pub(super) fn is_closing(&self, index: u16) -> bool {
        matches!(self.sockets.get(usize::from(index)), Some(Some(_)))
    }

    pub(super) fn close_all(&mut self) {
        for index in 0..self.sockets.len() {
            self.close(u16::try_from(index).unwrap_or(u16::MAX));
        }
    }
}
