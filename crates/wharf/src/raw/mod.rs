//! The raw layer: pointer in, the same pointer out, with bytes and status.
//!
//! It is what the safe handles stand on, and what a C interface will stand on. An operation is a
//! header at a fixed address that the caller owns and may extend; the port neither allocates nor
//! frees it. Everything that makes this safe (who owns the buffer, what happens when a handle or
//! the port goes) is the business of the layer above: most programs want [`crate::Port`].
//!
//! ```
//! use std::{net::{TcpListener, TcpStream}, io::Write, time::Duration};
//! use wharf::{raw, Wait};
//!
//! // An operation of our own: the header first, then whatever we like.
//! #[repr(C)]
//! struct Read {
//!     header: raw::Operation,
//!     buffer: [u8; 16],
//! }
//!
//! let port = raw::Port::new(1)?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut client = TcpStream::connect(listener.local_addr()?)?;
//! let socket = port.associate(listener.accept()?.0.into(), 7).map_err(|refused| refused.error)?;
//!
//! let read = Box::into_raw(Box::new(Read {
//!     header: raw::Operation::new(raw::Request::Readable),
//!     buffer: [0; 16],
//! }));
//! // SAFETY: the operation, its buffer and the handle stay until the completion below.
//! unsafe {
//!     let buffer = (&raw mut (*read).buffer).cast();
//!     (*read).header =
//!         raw::Operation::new(raw::Request::Receive { buffer, length: 16, exact: false });
//!     socket.start(read.cast())?;
//! }
//! client.write_all(b"hello")?;
//!
//! let Wait::Packet(done) = port.wait(Some(Duration::from_secs(10))) else { panic!() };
//! assert_eq!((done.key, done.bytes, done.operation), (7, 5, read.cast()));
//! // SAFETY: the completion has given the operation back.
//! let read = unsafe { Box::from_raw(read) };
//! assert_eq!(&read.buffer[..5], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod datagram;
pub(crate) mod handle;
pub(crate) mod operation;
pub(crate) mod port;
cfg_select! {
    windows => {
        mod bell;
        mod kernel;
        use self::kernel as dispatch;
        /// What posts a packet when something happens.
        pub(crate) use self::bell::Bell as Notifier;
    }
    _ => {
        /// What posts a packet when something happens.
        pub(crate) use self::handle::Handle as Notifier;
        mod effort;
        mod lanes;
        mod repose;
        pub(crate) mod schedule;
        mod watch;
        use self::lanes as dispatch;
    }
}

use std::{sync::Arc, time::Duration};

use self::port::{Setup, Shared, deadline, left};
pub use self::{
    datagram::{Datagram, Told},
    handle::{Handle, Started},
    operation::{Gather, Operation, Request},
};
pub use crate::sys::{Message, OwnedDescriptor, Slice, Transmission};
use crate::{
    buf::Pooled,
    driver::Driver,
    error::{Error, Refused},
    stats::Stats,
    sys::{Kind, OwnedSocket},
};

/// What a wait on a port gave. A failed operation's packet, a time-out, a closed port and a broken
/// port are four different things here.
#[derive(Debug)]
#[must_use = "a packet that is not looked at is lost"]
#[expect(clippy::exhaustive_enums, reason = "these are all there are; a match should say so")]
pub enum Wait<P> {
    /// A packet: of an operation that succeeded, of one that failed, or posted.
    Packet(P),
    /// The time is over and nothing came.
    #[doc(alias = "WAIT_TIMEOUT")]
    TimedOut,
    /// The port was closed.
    #[doc(alias = "ERROR_ABANDONED_WAIT_0")]
    Closed,
    /// The port cannot be waited on: what the kernel says.
    Broken(Error),
}

impl<P> Wait<P> {
    /// The packet, if there is one.
    pub fn packet(self) -> Option<P> {
        match self {
            Self::Packet(packet) => Some(packet),
            _ => None,
        }
    }
}

/// A packet: what became of an operation, or what was posted.
#[derive(Debug)]
#[non_exhaustive]
#[doc(alias = "OVERLAPPED_ENTRY")]
pub struct Completion {
    /// The key of the handle, or the posted one.
    pub key: usize,
    /// The operation, which is its owner's again unless `more` is set; or what was posted.
    pub operation: *mut Operation,
    /// The bytes that were moved, also by an operation that then failed; or the posted number.
    pub bytes: usize,
    /// 0, or the error as a negative errno.
    pub status: i32,
    /// More completions of this operation are to come: it is still in flight.
    pub more: bool,
    /// The connection an accept has produced.
    pub accepted: Option<OwnedSocket>,
    /// The pooled buffer that holds the data of a pooled receive.
    pub buffer: Option<Pooled>,
    /// What else there is to say of a datagram.
    pub told: Option<Told>,
    pub(crate) silent: bool,
    /// The handle lets no other packet out until this one is released.
    pub(crate) serial: bool,
}

// SAFETY: the operation pointer is opaque here; whoever follows it promised to at `start`.
unsafe impl Send for Completion {}

impl Completion {
    pub(crate) fn posted(bytes: usize, key: usize, operation: *mut Operation) -> Self {
        Self {
            key,
            operation,
            bytes,
            status: 0,
            more: false,
            accepted: None,
            buffer: None,
            told: None,
            silent: false,
            serial: false,
        }
    }

    /// The number of bytes, or the error.
    ///
    /// # Errors
    ///
    /// What the operation failed with.
    pub fn result(&self) -> Result<usize, Error> {
        if self.status == 0 {
            Ok(self.bytes)
        } else {
            Err(Error::from_status(self.status, "operation"))
        }
    }
}

/// Where the next completion is put. It is large, and goes through many hands.
pub(crate) struct Taking<'a> {
    pub(crate) completion: Completion,
    /// Called for an operation that goes on after the completion it has just given, at the last
    /// moment at which its memory is surely there.
    retain: &'a dyn Fn(*mut Operation),
}

impl<'a> Taking<'a> {
    pub(crate) fn new(retain: &'a dyn Fn(*mut Operation)) -> Self {
        Self { completion: Completion::posted(0, 0, std::ptr::null_mut()), retain }
    }
}

/// A completion port without types or owners.
#[derive(Clone, Debug)]
#[doc(alias = "CreateIoCompletionPort")]
pub struct Port {
    shared: Arc<Shared>,
}

impl Port {
    /// A port on which at most `concurrency` workers run at once; 0: as many as there are
    /// processors for this process.
    ///
    /// # Errors
    ///
    /// Where io_uring is refused or memory for it is short; the error names the remedy.
    pub fn new(concurrency: usize) -> Result<Self, Error> {
        crate::Builder::new().concurrency(concurrency).build_raw()
    }

    pub(crate) fn with(setup: Setup) -> Result<Self, Error> {
        Ok(Self { shared: Shared::new(setup)? })
    }

    /// Associates a descriptor with this port under a key. Clears its O_NONBLOCK flag on io_uring,
    /// where it would make the kernel fail operations that have to wait; sets it on epoll.
    ///
    /// # Errors
    ///
    /// `Associated` if the socket belongs to a port already, through this descriptor or a
    /// duplicate of it; `Closed` if the port is closed. The descriptor comes back with the error.
    pub fn associate(
        &self,
        fd: OwnedDescriptor,
        key: usize,
    ) -> Result<Handle, Refused<OwnedDescriptor>> {
        self.associate_if(fd, key, |_| Ok(()))
    }

    /// The same for descriptors of some kinds.
    pub(crate) fn associate_if(
        &self,
        fd: OwnedDescriptor,
        key: usize,
        will_do: fn(Kind) -> Result<(), Error>,
    ) -> Result<Handle, Refused<OwnedDescriptor>> {
        match self.shared.adopt(&fd, will_do) {
            Ok((identity, registration)) => {
                Ok(Handle::new(fd, identity, registration, key, self.shared.clone()))
            }
            Err(error) => Err(Refused { error, value: fd }),
        }
    }

    /// Waits for one completion; see [`crate::Port::wait`].
    #[doc(alias = "GetQueuedCompletionStatus")]
    pub fn wait(&self, timeout: Option<Duration>) -> Wait<Completion> {
        let deadline = deadline(timeout);
        let mut timeout = timeout;
        let mut taking = Taking::new(&|_| {});
        loop {
            return match self.shared.wait(timeout, &mut taking) {
                Wait::Packet(()) if taking.completion.silent => {
                    timeout = left(deadline).or(timeout);
                    continue;
                }
                Wait::Packet(()) => Wait::Packet(taking.completion),
                Wait::TimedOut => Wait::TimedOut,
                Wait::Closed => Wait::Closed,
                Wait::Broken(error) => Wait::Broken(error),
            };
        }
    }

    /// The same with silent completions.
    pub(crate) fn take(&self, timeout: Option<Duration>, taking: &mut Taking<'_>) -> Wait<()> {
        self.shared.wait(timeout, taking)
    }

    /// Takes another completion if one is there and this thread still has its place.
    pub(crate) fn take_more(&self, taking: &mut Taking<'_>) -> bool {
        self.shared.take_more(taking)
    }

    /// Where idle operations are kept.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Posts a packet: three values that come out of a wait as they are. The operation's header
    /// is not touched.
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull` (the builder's limit on posted packets) or `OutOfMemory`: nothing was
    /// posted then.
    #[doc(alias = "PostQueuedCompletionStatus")]
    pub fn post(&self, bytes: usize, key: usize, operation: *mut Operation) -> Result<(), Error> {
        self.shared.post(bytes, key, operation)
    }

    /// Runs something that may block while another worker has this one's place.
    pub fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        self.shared.blocking(work)
    }

    /// Closes: every wait returns [`Wait::Closed`], and nothing more can be started. A wait that
    /// has begun before may still take a completion, also of what is cancelled afterwards.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether [`Self::close`] has been called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed()
    }

    /// After [`Self::close`]: shows the completions of what is queued and in flight, waiting for
    /// the kernel at most for `patience`. Returns how many operations the kernel still holds:
    /// their memory must never be freed.
    pub fn drain(&self, patience: Duration, sink: &mut dyn FnMut(&mut Completion)) -> u64 {
        self.shared.drain(patience, sink)
    }

    /// See [`crate::Port::driver`].
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.shared.choice.driver
    }

    /// See [`crate::Port::fallback`].
    #[must_use]
    pub fn fallback(&self) -> Option<Error> {
        self.shared.choice.refused
    }

    /// What the port counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}
