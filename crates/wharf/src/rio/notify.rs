//! How the owner of a completion queue learns that there is something in it.

#[cfg(windows)]
use std::marker::PhantomData;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(windows)]
use std::os::windows::io::{AsHandle, BorrowedHandle};

use super::{
    CompletionQueue,
    engine::{Armed, Engine, Setup},
};
#[cfg(windows)]
use crate::block::Block;
use crate::{
    block::Payload,
    driver::{Choice, Driver},
    error::{Error, ErrorKind, Refused, Result},
    port::{Port, PortShared},
    raw,
    sync::lock,
    sys::{BorrowedFile, OwnedFile, signal},
};

/// The notification of a queue that is polled: none.
#[derive(Debug)]
#[non_exhaustive]
pub struct Polled;

/// The notification of a queue that signals an event: a descriptor that can be polled, on Windows
/// an event object. See [`CompletionQueue::event`].
#[derive(Debug)]
#[doc(alias = "RIO_EVENT_COMPLETION")]
pub struct Event {
    event: Arc<OwnedFile>,
}

/// The notification of a queue that posts a packet to a port. See [`CompletionQueue::through`].
#[doc(alias = "RIO_IOCP_COMPLETION")]
pub struct Through<K: 'static, M: 'static> {
    port: Arc<PortShared<K, M>>,
    notifier: Arc<raw::Notifier>,
}

impl Event {
    fn signal(&self) -> BorrowedFile<'_> {
        // Unix and Windows have different names for this.
        cfg_select! {
            windows => { self.event.as_handle() }
            _ => { self.event.as_fd() }
        }
    }
}

impl<K, M> fmt::Debug for Through<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Through").field("port", &self.port).finish_non_exhaustive()
    }
}

const NOTIFY: &str = "notify";

fn outstanding() -> Error {
    Error::of(ErrorKind::Busy, NOTIFY)
        .with_remedy("a notification is outstanding: wait for it before asking for the next")
}

impl CompletionQueue {
    /// Makes a queue that is polled, with room for so many completions.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the capacity is 0 or more than 134,217,728; what the system says if it
    /// lacks memory or descriptors.
    #[doc(alias = "RIOCreateCompletionQueue")]
    pub fn polled(capacity: usize) -> Result<Self> {
        Builder::new(capacity).polled()
    }
}

impl CompletionQueue<Event> {
    /// Makes a queue that signals an event, with room for so many completions.
    ///
    /// ```
    /// use std::time::Duration;
    /// use wharf::rio::{CompletionQueue, Quota, Region};
    ///
    /// let region = Region::new(16, 2048)?;
    /// let mut queue = CompletionQueue::event(16)?;
    /// let socket = queue.udp("127.0.0.1:0", Quota { receives: 16, sends: 0 })?;
    /// for slice in region.slices() {
    ///     queue.receive(socket, slice)?;
    /// }
    /// # let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
    /// # client.send_to(b"hello", queue.local_addr(socket)?)?;
    /// queue.notify()?;
    /// if queue.wait(Some(Duration::from_secs(10)))? {
    ///     while let Some(done) = queue.dequeue()? {
    ///         println!("{} bytes", done.bytes()?);
    ///         queue.receive(socket, done.slice)?;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`CompletionQueue::polled`].
    #[doc(alias = "RIOCreateCompletionQueue")]
    pub fn event(capacity: usize) -> Result<Self> {
        Builder::new(capacity).event()
    }

    /// Asks for the event to be signalled once, when there is a completion that notifies: at once
    /// if there is one already. The event is reset first.
    ///
    /// # Errors
    ///
    /// `Busy` while a notification is outstanding: it has been asked for, and has not happened;
    /// where plain calls carry the queue, what the system says if it has no thread for it.
    #[doc(alias = "RIONotify")]
    #[doc(alias = "WSAEALREADY")]
    pub fn notify(&mut self) -> Result<()> {
        self.check_process(NOTIFY)?;
        match self.engine.arm().map_err(|error| Error::from_io(&error, NOTIFY))? {
            Armed::Already => Err(outstanding()),
            Armed::Later => Ok(()),
            Armed::Now => signal::raise(self.notification.signal())
                .map_err(|error| Error::from_io(&error, NOTIFY)),
        }
    }

    /// Waits until the event is signalled, at most for so long. True: it is.
    ///
    /// To wait for other things at the same time, poll the descriptor (`AsFd`): it is readable
    /// while the event is signalled. Nobody needs to read from it. On Windows it is an event object
    /// (`AsHandle`), for WaitForMultipleObjects and the like.
    ///
    /// # Errors
    ///
    /// `Forked` in a child of the process that made the queue; what the system says.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        const ACTION: &str = "wait";
        self.check_process(ACTION)?;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let event = self.notification.signal();
        self.engine.wait(event, deadline).map_err(|error| Error::from_io(&error, ACTION))
    }
}

/// The event: readable while it is signalled.
#[cfg(unix)]
impl AsFd for CompletionQueue<Event> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notification.event.as_fd()
    }
}

/// The event object.
#[cfg(windows)]
impl AsHandle for CompletionQueue<Event> {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.notification.event.as_handle()
    }
}

impl<K, M> CompletionQueue<Through<K, M>>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    /// Makes a queue that posts a packet to a port, with room for so many completions.
    ///
    /// It does not keep the port open.
    ///
    /// # Errors
    ///
    /// As for [`CompletionQueue::polled`], and `Closed` if the port is closed.
    #[doc(alias = "RIOCreateCompletionQueue")]
    pub fn through(port: &Port<K, M>, capacity: usize) -> Result<Self> {
        Builder::new(capacity).through(port)
    }

    /// Asks for this value to be posted to the port once, when there is a completion that
    /// notifies: at once if there is one already. A worker takes it as
    /// [`Op::Posted`](crate::Op::Posted).
    ///
    /// Called by a worker, what has to be watched for is submitted with the worker's next wait, as
    /// everything that it starts. When the queue is dropped, the packet of a notification that is
    /// outstanding comes with the error that it was cancelled.
    ///
    /// # Errors
    ///
    /// `Busy` while a notification is outstanding: it has been asked for, and has not happened;
    /// `Closed` if the port is closed; where plain calls carry the queue, what the system says if
    /// it has no thread for it. The value comes back.
    #[doc(alias = "RIONotify")]
    #[doc(alias = "WSAEALREADY")]
    pub fn notify(&mut self, value: M) -> Result<(), Refused<M>> {
        match self.check_process(NOTIFY) {
            Ok(()) => self.ask(value),
            Err(error) => Err(Refused { error, value }),
        }
    }

    #[cfg(target_os = "linux")]
    fn ask(&mut self, value: M) -> Result<(), Refused<M>> {
        let armed = self.engine.arm().map_err(|error| Error::from_io(&error, NOTIFY));
        let Through { port, notifier } = &self.notification;
        match armed {
            Ok(Armed::Now) => port.post(value),
            Ok(Armed::Later) => port.post_when_readable(notifier, value).inspect_err(|_| {
                self.engine.disarm();
            }),
            Ok(Armed::Already) => Err(Refused { error: outstanding(), value }),
            Err(error) => Err(Refused { error, value }),
        }
    }

    #[cfg(windows)]
    fn ask(&mut self, value: M) -> Result<(), Refused<M>> {
        let Through { port, notifier } = &self.notification;
        let promised = port.promise(notifier, value)?;
        let error = match self.engine.arm() {
            Ok(Armed::Now) => {
                notifier.ring();
                return Ok(());
            }
            // Nothing was promised before: what is outstanding is for the packet of this one.
            Ok(Armed::Already | Armed::Later) => return Ok(()),
            Err(error) => Error::from_io(&error, NOTIFY),
        };
        match promised.take_back() {
            Some(value) => Err(Refused { error, value }),
            // It is gone with the port, which has been closed.
            None => Ok(()),
        }
    }
}

impl<K: 'static, M: 'static> Drop for Through<K, M> {
    fn drop(&mut self) {
        // What is outstanding comes out of the port, cancelled.
        self.notifier.close();
    }
}

/// Builds a completion queue that is not like those of [`CompletionQueue::polled`] and the like.
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    capacity: usize,
    driver: Driver,
}

impl Builder {
    /// A queue with room for so many completions.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self { capacity, driver: Driver::Auto }
    }

    /// What carries the queue. [`Driver::Auto`]: io_uring, or where that is refused or older than
    /// Linux 6.0, plain calls (recvmmsg and the like) and epoll, which [`Driver::Epoll`] asks for;
    /// on Windows the system's own Registered I/O, [`Driver::Rio`], or overlapped calls,
    /// [`Driver::Iocp`].
    /// [`CompletionQueue::driver`] says what it has become, and [`CompletionQueue::fallback`] why.
    #[must_use]
    pub const fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    fn setup(self, notifies: bool) -> Setup {
        let Self { capacity, driver } = self;
        Setup {
            capacity,
            notifies,
            #[cfg(windows)]
            notifier: None,
            driver,
        }
    }

    fn engine(setup: Setup) -> Result<(Engine, Choice)> {
        CompletionQueue::<()>::check_capacity(setup.capacity)?;
        let (engine, choice) = Engine::new(setup)?;
        choice.announce();
        Ok((engine, choice))
    }

    /// Makes a queue that is polled: [`CompletionQueue::polled`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn polled(self) -> Result<CompletionQueue> {
        Ok(CompletionQueue::of(Self::engine(self.setup(false))?, self.capacity, Polled))
    }

    /// Makes a queue that signals an event: [`CompletionQueue::event`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn event(self) -> Result<CompletionQueue<Event>> {
        let (mut engine, choice) = Self::engine(self.setup(true))?;
        let event = engine.event().map_err(|error| Error::from_io(&error, "make an event"))?;
        Ok(CompletionQueue::of((engine, choice), self.capacity, Event { event }))
    }

    /// Makes a queue that posts a packet to a port: [`CompletionQueue::through`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn through<K, M>(self, port: &Port<K, M>) -> Result<CompletionQueue<Through<K, M>>>
    where
        K: Send + Sync + 'static,
        M: Send + 'static,
    {
        let port = port.shared().clone();
        let (made, notifier) = self.notifying(&port.raw)?;
        let mut notifiers = lock(&port.notifiers);
        notifiers.retain(|other| other.strong_count() > 0);
        notifiers.push(Arc::downgrade(&notifier));
        drop(notifiers);
        Ok(CompletionQueue::of(made, self.capacity, Through { port, notifier }))
    }

    /// An engine, and what it has for a port when it notifies.
    #[cfg(target_os = "linux")]
    fn notifying(self, port: &raw::Port) -> Result<((Engine, Choice), Arc<raw::Notifier>)> {
        let (mut engine, choice) = Self::engine(self.setup(true))?;
        let sign = engine.sign().map_err(|error| Error::from_io(&error, "make a queue's sign"))?;
        let notifier = Arc::new(port.associate(sign, 0).map_err(Error::from)?);
        Ok(((engine, choice), notifier))
    }

    #[cfg(windows)]
    fn notifying(self, port: &raw::Port) -> Result<((Engine, Choice), Arc<raw::Notifier>)> {
        if port.is_closed() {
            return Err(Error::of(ErrorKind::Closed, "associate"));
        }
        let notifier = Arc::new(raw::Notifier::new(port));
        let setup = Setup { notifier: Some(notifier.clone()), ..self.setup(true) };
        Ok((Self::engine(setup)?, notifier))
    }
}

#[cfg(target_os = "linux")]
impl<K, M> PortShared<K, M> {
    /// The port is closed: nothing is posted any more.
    pub(crate) fn disappoint(&self, notifier: &raw::Notifier) {
        notifier.close();
    }

    /// Posts a value when a handle becomes readable.
    fn post_when_readable(&self, handle: &Arc<raw::Handle>, value: M) -> Result<(), Refused<M>> {
        let block = self.take_block();
        // SAFETY: the block is ours alone until it is started.
        let fields = unsafe { &mut *block };
        fields.payload = Payload::Notified(handle.clone());
        fields.context = Some(value);
        fields.operation.prepare(raw::Request::Readable, None, false);
        // SAFETY: the block stays where it is, untouched, until its completion; it keeps the
        // handle, and the request points to nothing.
        match unsafe { handle.start(block.cast()) } {
            Ok(()) => Ok(()),
            Err(error) => {
                // SAFETY: it was not started, so it is ours still.
                let fields = unsafe { &mut *block };
                let value = fields.context.take();
                fields.payload = Payload::Idle;
                // SAFETY: as above, and taken from this port.
                unsafe { self.put_block(block) };
                let Some(value) = value else { unreachable!("put in above") };
                Err(Refused { error, value })
            }
        }
    }
}

/// A block for a packet that is promised.
#[cfg(windows)]
struct Promised<'a, K: 'static, M: 'static> {
    notifier: &'a raw::Notifier,
    block: PhantomData<Block<K, M>>,
}

#[cfg(windows)]
impl<K, M> Promised<'_, K, M> {
    /// The value, unless somebody else has the packet already.
    fn take_back(self) -> Option<M> {
        let block = self.notifier.take_back().cast::<Block<K, M>>();
        if block.is_null() {
            return None;
        }
        // SAFETY: what this notifier has was promised by `promise`, for a port of this type: it is
        // a block, a box of its own, which nobody else has any more.
        unsafe { Box::from_raw(block) }.context.take()
    }
}

#[cfg(windows)]
impl<K, M> PortShared<K, M> {
    /// Promises to post a value.
    fn promise<'a>(
        &self,
        notifier: &'a raw::Notifier,
        value: M,
    ) -> Result<Promised<'a, K, M>, Refused<M>> {
        let block = self.take_block();
        // SAFETY: the block is ours alone until it is promised.
        let fields = unsafe { &mut *block };
        fields.payload = Payload::Posted;
        fields.context = Some(value);
        if !notifier.promise(block.cast()) {
            // SAFETY: it was not promised, so it is ours still; a block is a box of its own.
            let mut block = unsafe { Box::from_raw(block) };
            let Some(value) = block.context.take() else { unreachable!("put in above") };
            return Err(Refused { error: outstanding(), value });
        }
        let promised = || Promised { notifier, block: PhantomData };
        // Who closes a port takes what is promised once it is closed: he has done so, or we do.
        if self.raw.is_closed()
            && let Some(value) = promised().take_back()
        {
            return Err(Refused { error: Error::of(ErrorKind::Closed, NOTIFY), value });
        }
        Ok(promised())
    }

    /// The port is closed: nothing is posted any more.
    pub(crate) fn disappoint(&self, notifier: &raw::Notifier) {
        let promised = Promised::<K, M> { notifier, block: PhantomData };
        drop(promised.take_back());
    }
}
