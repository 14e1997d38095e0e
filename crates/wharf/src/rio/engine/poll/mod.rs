//! Registered I/O by plain calls: recvmmsg and sendmmsg for datagrams, recvmsg and sendmsg for
//! streams, none of which waits, and epoll to learn when to make them.
//!
//! The kernel knows a slice only during a call, so that nothing needs to be cancelled or waited
//! for. But nothing happens between calls either: a request is tried when it is started or
//! committed (a send) and when the queue is looked at.
//!
//! # Notifications
//!
//! A socket that is ready is no completion yet: the receive in front may be a quiet one, or want a
//! whole slice. So while a notification is outstanding somebody has to do the work: the *lookout*,
//! a thread of the queue's own, which starts when a notification is first waited for and sleeps
//! until a socket is ready. In [`Engine::wait`], who owns the queue does it instead.
//!
//! # Who has the state
//!
//! | | Where the state is |
//! |---|---|
//! | no notification is outstanding | with the engine: its calls need no lock |
//! | one is outstanding | in the hand-over, where the lookout may use it under the lock |
//! | one has been made | there still, until the engine's next call takes it back |
//!
//! A call of the engine's takes the state back first, and hands it over again at its end if the
//! notification is still outstanding.

mod batch;
mod socket;
mod state;

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Instant,
};

use self::state::State;
use super::{Armed, Direction, Flags, Head, Opened, Request, Route, Setup, Slice, Traits};
use crate::{
    rio::completion::Completion,
    sync::lock,
    sys::{
        ForkGuard,
        epoll::{LEVEL, ONCE, Poller},
        signal,
    },
};

/// See the module's page.
pub(crate) struct Engine {
    guard: ForkGuard,
    /// Ours, unless a notification is outstanding or has just been made.
    state: Option<Box<State>>,
    /// Where notifications may be asked for.
    watch: Option<Arc<Watch>>,
    /// From the first notification on that could not be made at once.
    lookout: Option<JoinHandle<()>>,
}

/// What the engine shares with its lookout.
struct Watch {
    handed_over: Mutex<Option<Box<State>>>,
    /// In which the state's sockets are.
    sockets: Arc<Poller>,
    /// In which that one is, once for each hand-over, and `stop`. The lookout waits here.
    outer: Poller,
    stop: OwnedFd,
    event: Arc<OwnedFd>,
}

/// What is told of in [`Watch::outer`].
const SOCKETS: u64 = 0;
const STOP: u64 = 1;

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lookout = self.lookout.is_some();
        f.debug_struct("Engine").field("lookout", &lookout).finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(setup: Setup) -> io::Result<Self> {
        let guard = ForkGuard::new()?;
        let (state, watch) = if setup.notifies {
            let (sockets, event) = (Arc::new(Poller::new()?), Arc::new(signal::new()?));
            let state = State::new(Some(sockets.clone()), Some(event.clone()));
            let (outer, stop) = (Poller::new()?, signal::new()?);
            outer.add(stop.as_raw_fd(), LEVEL, STOP)?;
            let handed_over = Mutex::new(None);
            (state, Some(Arc::new(Watch { handed_over, sockets, outer, stop, event })))
        } else {
            (State::new(None, None), None)
        };
        Ok(Self { guard, state: Some(Box::new(state)), watch, lookout: None })
    }

    /// Does something with the state, wherever it is. Not to be called in a child.
    fn with<T>(&mut self, work: impl FnOnce(&mut State) -> T) -> T {
        let Some(mut state) = self.state.take().or_else(|| self.watch.as_ref()?.take_back()) else {
            unreachable!("it is here or there")
        };
        let result = work(&mut state);
        match &self.watch {
            Some(watch) if state.wanted => watch.hand_over(state, self.lookout.is_some()),
            _ => self.state = Some(state),
        }
        result
    }

    pub(crate) fn open(&mut self, index: u16, fd: OwnedFd, traits: Traits) -> Opened {
        self.with(|state| state.open(index, fd, traits))
    }

    pub(crate) fn with_socket<T>(
        &self,
        index: u16,
        look: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Option<T> {
        if self.guard.in_child() {
            return None;
        }
        match (&self.state, &self.watch) {
            (Some(state), _) => state.socket(index).map(look),
            (None, Some(watch)) => lock(&watch.handed_over).as_ref()?.socket(index).map(look),
            (None, None) => None,
        }
    }

    pub(crate) fn in_child(&self) -> bool {
        self.guard.in_child()
    }

    #[inline(always)]
    pub(crate) fn receive(&mut self, index: u16, slice: Slice, context: u64, flags: Flags) {
        let request = Request { slice, context, flags };
        match &mut self.state {
            Some(state) => state.receive(index, request),
            None => self.receive_while_wanted(index, request),
        }
    }

    #[inline(never)]
    fn receive_while_wanted(&mut self, index: u16, request: Request) {
        self.with(|state| {
            state.receive(index, request);
            state.work_while_wanted();
        });
    }

    pub(crate) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        self.with(|state| {
            state.send(index, request, route, deferred);
            state.work_while_wanted();
        });
    }

    pub(crate) fn commit(&mut self, index: u16) -> io::Result<()> {
        self.with(|state| {
            state.commit(index);
            state.work_while_wanted();
        });
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn pop_usual(&mut self) -> Option<Completion> {
        let state = self.state.as_deref_mut()?;
        if self.guard.in_child() { None } else { state.pop_fresh() }
    }

    pub(crate) fn pop(&mut self) -> Option<Completion> {
        self.with(State::pop)
    }

    pub(crate) fn look(&mut self) -> io::Result<()> {
        self.with(State::look)
    }

    // ---- Notifying --------------------------------------------------------------------------

    pub(crate) fn event(&self) -> io::Result<Arc<OwnedFd>> {
        let watch = self.watch.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(watch.event.clone())
    }

    pub(crate) fn sign(&self) -> io::Result<OwnedFd> {
        self.event()?.try_clone()
    }

    /// Waits until the event is signalled, at most until then. True: it is.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        let Some(watch) = self.watch.clone() else { return Ok(false) };
        let lookout = self.lookout.is_some();
        self.with(|state| {
            if lookout && state.wanted {
                // One of us is enough. It is alerted when the state is handed over again.
                watch.relieve();
            }
            loop {
                state.work_while_wanted();
                let sockets = state.wanted.then(|| watch.sockets.as_fd());
                match signal::wait_with(watch.event.as_fd(), sockets, deadline)? {
                    signal::Waited::Other => {}
                    waited => return Ok(waited == signal::Waited::Event),
                }
            }
        })
    }

    pub(crate) fn arm(&mut self) -> io::Result<Armed> {
        let armed = self.with(State::arm)?;
        if armed == Armed::Later && self.lookout.is_none() {
            self.lookout = Some(self.start_lookout().inspect_err(|_| self.disarm())?);
        }
        Ok(armed)
    }

    /// It looks at what has been handed over, first of all.
    fn start_lookout(&self) -> io::Result<JoinHandle<()>> {
        let watch = self.watch.clone().ok_or(io::ErrorKind::InvalidInput)?;
        thread::Builder::new().name("wharf rio".to_owned()).spawn(move || watch.look_out())
    }

    pub(crate) fn disarm(&mut self) {
        self.with(|state| state.wanted = false);
    }

    pub(crate) fn close(&mut self, index: u16) {
        self.with(|state| state.close(index));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(lookout) = self.lookout.take() else { return };
        if self.guard.in_child() {
            // There is no such thread here, and what it shared may be locked for ever.
            std::mem::forget((lookout, self.watch.take()));
            return;
        }
        if let Some(watch) = &self.watch
            && signal::raise(watch.stop.as_fd()).is_ok()
        {
            let _ = lookout.join();
        }
    }
}

impl Watch {
    fn take_back(&self) -> Option<Box<State>> {
        lock(&self.handed_over).take()
    }

    fn hand_over(&self, state: Box<State>, to_lookout: bool) {
        *lock(&self.handed_over) = Some(state);
        if to_lookout {
            self.alert();
        }
    }

    /// Lets the lookout look when a socket is ready, also if it is already.
    fn alert(&self) {
        if let Err(error) = self.outer.arm(self.sockets.fd(), ONCE, SOCKETS) {
            log::error!("a notification may not be made: {error}");
        }
    }

    /// Lets the lookout sleep on.
    fn relieve(&self) {
        // Should that fail, it wakes up in vain.
        let _ = self.outer.arm(self.sockets.fd(), 0, SOCKETS);
    }

    /// What the lookout does.
    fn look_out(&self) {
        loop {
            if let Some(state) = &mut *lock(&self.handed_over) {
                state.work_while_wanted();
                if state.wanted {
                    self.alert();
                }
            }
            let mut over = false;
            if let Err(error) = self.outer.wait(None, |token, _| over |= token == STOP) {
                log::error!("notifications will not be made any more: {error}");
                return;
            }
            if over {
                return;
            }
        }
    }
}
