//! All sockets of a queue, and their completions.

use std::{
    collections::VecDeque,
    fmt,
    os::windows::io::{AsHandle, AsSocket},
    sync::Arc,
};

use super::{call::Call, socket::Socket};
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
    pub(super) telling: Telling,
    /// A notification is outstanding.
    pub(super) wanted: bool,
    /// The lookout is in the port, or has what came out of it.
    pub(super) looking: bool,
    /// It is to end.
    pub(super) stop: bool,
}

/// What all sockets use.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) done: VecDeque<Completion>,
    /// Calls that are over, for the next ones.
    pub(super) spare: Vec<Box<Call>>,
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
    pub(super) fn new(telling: Telling) -> Self {
        Self {
            sockets: Vec::new(),
            desk: Desk::default(),
            telling,
            wanted: false,
            looking: false,
            stop: false,
        }
    }

    pub(super) fn open(
        &mut self,
        port: &CompletionPort,
        index: u16,
        socket: OwnedSocket,
        traits: Traits,
    ) -> Opened {
        let socket = Socket::new(port, index, socket, traits)?;
        let at = usize::from(index);
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        debug_assert!(self.sockets[at].is_none(), "the number is in use");
        self.sockets[at] = Some(Box::new(socket));
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
            self.sockets[usize::from(index)] = None;
        }
        self.tell(before);
    }

    pub(super) fn receive(&mut self, index: u16, request: Request) {
        self.with(index, |socket, desk| socket.receive(request, desk));
    }

    pub(super) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        self.with(index, |socket, desk| socket.send(request, route, deferred, desk));
    }

    pub(super) fn commit(&mut self, index: u16) {
        self.with(index, Socket::commit);
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
