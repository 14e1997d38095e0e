//! Registered I/O on Windows: by the system's own, for sockets that were made for it, where the
//! system has it ([`registered`]); otherwise by overlapped calls, which are WSARecv and its like
//! for each datagram, and for streams one at a time in each direction. Both have their packets
//! posted to a completion port of the queue's own.
//!
//! # Who may touch a slice
//!
//! | | Whose it is |
//! |---|---|
//! | it is with a call that was accepted | the kernel's, until the call's packet has come |
//! | it waits for its turn (streams; what is deferred), or stands among the completions | ours |
//!
//! A call that was accepted is a box whose pointer the kernel has: nothing else leads to it, so
//! that it, and the slice of a datagram in it, can only stay where it is until the packet gives it
//! back. What a call of a stream reads or writes are the first slices in the socket's queue, which
//! leave it only after the packet. An engine that is dropped cancels all calls and waits for their
//! packets. Those that do not come (for five seconds) keep what they use for ever.
//!
//! A request of the system's own Registered I/O stays with its slice in [`registered::Registered`]
//! from before it is started until its completion is dequeued, and a region is deregistered when
//! all its slices have come back.
//!
//! # Who takes packets
//!
//! They have to be worked on in the order in which they come, so that one takes them at a time:
//! who owns the queue, under the lock; or, while a notification is outstanding, the *lookout*, a
//! thread of the queue's own, which starts when a notification is first waited for, and waits in
//! the port without the lock ([`State::looking`]).

mod call;
mod registered;
mod socket;
mod state;

use std::{
    fmt, io,
    os::windows::io::AsHandle,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use self::{
    registered::Registered,
    state::{State, Telling},
};
use super::{Armed, Flags, Opened, Request, Route, Setup, Traits};
use crate::{
    rio::{completion::Completion, region::Slice},
    sync::lock,
    sys::{
        BorrowedSocket, CompletionPort, OwnedFile, OwnedSocket, PORT_BATCH, PortEntry,
        rio::Functions, signal,
    },
};

/// How long the kernel may take to let go of what it was asked to cancel.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one look waits for packets that are sure to come.
const PAUSE: Duration = Duration::from_millis(10);

/// See the module's page.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    /// From the first notification on that could not be made at once.
    lookout: Option<JoinHandle<()>>,
}

/// What the engine shares with its lookout.
struct Shared {
    port: Arc<CompletionPort>,
    state: Mutex<State>,
    /// The lookout has something to do, or has done something.
    turn: Condvar,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lookout = self.lookout.is_some();
        f.debug_struct("Engine").field("lookout", &lookout).finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(setup: Setup, functions: Option<&'static Functions>) -> io::Result<Self> {
        let telling = match setup.notifier {
            _ if !setup.notifies => Telling::Nobody,
            Some(notifier) => Telling::Notifier(notifier),
            None => Telling::Event(Arc::new(signal::new()?)),
        };
        // At most its owner and its lookout take packets.
        let port = Arc::new(CompletionPort::new(2)?);
        let registered = functions.map(|it| Registered::new(it, setup.notifies));
        let state = Mutex::new(State::new(port.clone(), registered, telling));
        let shared = Arc::new(Shared { port, state, turn: Condvar::new() });
        Ok(Self { shared, lookout: None })
    }

    pub(crate) fn open(&mut self, index: u16, socket: OwnedSocket, traits: Traits) -> Opened {
        lock(&self.shared.state).open(index, socket, traits)
    }

    pub(crate) fn with_socket<T>(
        &self,
        index: u16,
        look: impl FnOnce(BorrowedSocket<'_>) -> T,
    ) -> Option<T> {
        lock(&self.shared.state).socket(index).map(look)
    }

    #[expect(clippy::unused_self, reason = "elsewhere there is fork")]
    pub(crate) fn in_child(&self) -> bool {
        false
    }

    pub(crate) fn receive(&mut self, index: u16, slice: Slice, context: u64, flags: Flags) {
        lock(&self.shared.state).receive(index, Request { slice, context, flags });
    }

    pub(crate) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        lock(&self.shared.state).send(index, request, route, deferred);
    }

    pub(crate) fn commit(&mut self, index: u16) -> io::Result<()> {
        lock(&self.shared.state).commit(index)
    }

    #[expect(clippy::unused_self, reason = "elsewhere there are some that cost less")]
    pub(crate) fn pop_usual(&mut self) -> Option<Completion> {
        None
    }

    pub(crate) fn pop(&mut self) -> Option<Completion> {
        lock(&self.shared.state).pop()
    }

    pub(crate) fn look(&mut self) -> io::Result<()> {
        let mut state = lock(&self.shared.state);
        state.take_registered()?;
        // Otherwise the lookout does it.
        if !(state.wanted && state.looking) {
            let mut state = self.shared.relieve(state)?;
            self.shared.take(&mut state, Duration::ZERO)?;
        }
        Ok(())
    }

    // ---- Notifying --------------------------------------------------------------------------

    pub(crate) fn event(&self) -> io::Result<Arc<OwnedFile>> {
        match &lock(&self.shared.state).telling {
            Telling::Event(event) => Ok(event.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub(crate) fn arm(&mut self) -> io::Result<Armed> {
        let state = lock(&self.shared.state);
        if state.wanted {
            return Ok(Armed::Already);
        }
        if let Telling::Event(event) = &state.telling {
            signal::reset(event.as_handle());
        }
        let mut state = self.shared.relieve(state)?;
        state.take_registered()?;
        while self.shared.take(&mut state, Duration::ZERO)? == PORT_BATCH {}
        if state.notifies() {
            return Ok(Armed::Now);
        }
        if self.lookout.is_none() {
            let shared = self.shared.clone();
            let lookout = thread::Builder::new().name("wharf rio".to_owned());
            self.lookout = Some(lookout.spawn(move || shared.look_out())?);
        }
        state.expect()?;
        state.wanted = true;
        self.shared.turn.notify_all();
        Ok(Armed::Later)
    }

    // ---- Closing ----------------------------------------------------------------------------

    /// Waits until the kernel has let go of everything, so that all is complete afterwards.
    pub(crate) fn close(&mut self, index: u16) {
        let mut state = lock(&self.shared.state);
        state.close(index);
        self.shared.settle(state, |state| !state.is_closing(index));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.wanted = false;
        state.stop = true;
        let woken = !state.looking || self.shared.wake().is_ok();
        drop(state);
        self.shared.turn.notify_all();
        if let Some(lookout) = self.lookout.take()
            && woken
        {
            let _ = lookout.join();
        }
        let mut state = lock(&self.shared.state);
        state.close_all();
        let left = self.shared.settle(state, |state| state.calls() == 0);
        if left > 0 {
            log::error!("the kernel still holds {left} requests: their memory is leaked");
            std::mem::forget(self.shared.clone());
        }
    }
}

impl Shared {
    /// Takes the packets that come in time and works on them. Returns how many.
    fn take(&self, state: &mut State, timeout: Duration) -> io::Result<usize> {
        debug_assert!(!state.looking, "one takes packets at a time");
        // SAFETY: each packet comes out of the port once, and out of this one only for calls of
        // this state.
        self.port.wait(PORT_BATCH, Some(timeout), |packet| unsafe { state.complete(packet) })
    }

    /// Has the lookout wake up.
    fn wake(&self) -> io::Result<()> {
        self.port.post(0, 0, std::ptr::null_mut::<u8>())
    }

    /// Waits until the lookout has left the port, if no notification is outstanding.
    fn relieve<'a>(&self, mut state: MutexGuard<'a, State>) -> io::Result<MutexGuard<'a, State>> {
        if state.looking {
            self.wake()?;
        }
        while state.looking {
            debug_assert!(!state.wanted, "it would not leave");
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state)
    }

    /// Waits for what the kernel was asked to cancel, until `over` says that it is over, or for too
    /// long. Returns how many calls the kernel has then.
    fn settle(&self, mut state: MutexGuard<'_, State>, over: impl Fn(&State) -> bool) -> usize {
        let deadline = Instant::now() + PATIENCE;
        while !over(&state) && Instant::now() < deadline {
            if let Err(error) = state.take_registered() {
                log::error!("a queue cannot take completions: {error}");
                break;
            }
            if over(&state) {
                break;
            }
            if state.looking {
                // The lookout takes what comes, or is about to leave.
                let waited = self.turn.wait_timeout(state, PAUSE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else if let Err(error) = self.take(&mut state, PAUSE) {
                log::error!("a queue cannot take packets: {error}");
                break;
            }
        }
        state.calls()
    }

    /// What the lookout does.
    fn look_out(&self) {
        let mut state = lock(&self.state);
        loop {
            while !(state.wanted || state.stop) {
                state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            state.looking = true;
            drop(state);
            let mut packets = Vec::<PortEntry>::with_capacity(PORT_BATCH);
            let taken = self.port.wait(PORT_BATCH, None, |packet| packets.push(packet));
            state = lock(&self.state);
            for packet in packets {
                // SAFETY: as in `take`.
                unsafe { state.complete(packet) };
            }
            state.looking = false;
            self.turn.notify_all();
            if let Err(error) = taken {
                log::error!("notifications will not be made any more: {error}");
                return;
            }
        }
    }
}
