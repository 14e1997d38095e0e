//! What does the work of a completion queue.
//!
//! An engine is owned by its completion queue and used through `&mut`: it needs no lock. It keeps
//! every request with its slice from [`Engine::receive`] or [`Engine::send`] until it hands the
//! completion out in [`Engine::pop`], and nobody else can name the slice in between. Quotas,
//! handles and arguments are checked above it.
//!
//! Two engines of Linux do the same, chosen when a completion queue is made: `uring`, and `poll`,
//! for where io_uring is refused or too old. The one of Windows is `windows`: by Registered I/O
//! of its own where that is, and by overlapped calls.

cfg_select! {
    windows => {
        mod windows;
    }
    _ => {
        mod poll;
        mod uring;
    }
}

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use super::{
    completion::{Completion, Direction},
    head::Head,
    queue::RequestQueue,
    region::Slice,
};
#[cfg(windows)]
use crate::raw::Notifier;
use crate::{
    driver::{Choice, Driver},
    error::Error,
    sys::{self, BorrowedFile, BorrowedSocket, OwnedFile, OwnedSocket},
};

/// A request in an engine's hands.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) slice: Slice,
    pub(super) context: u64,
    pub(super) flags: Flags,
}

/// How a request is to be treated. A word, because requests move often, and a few bytes on their
/// own move badly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(u32);

impl Flags {
    const QUIET: u32 = 1;
    const WHOLE: u32 = 2;

    pub(super) fn quiet(self) -> Self {
        Self(self.0 | Self::QUIET)
    }

    pub(super) fn whole(self) -> Self {
        Self(self.0 | Self::WHOLE)
    }

    /// Its completion does not trigger a notification.
    #[inline]
    pub(super) fn is_quiet(self) -> bool {
        self.0 & Self::QUIET != 0
    }

    /// A receive on a stream that completes when its slice is full.
    #[inline]
    pub(super) fn is_whole(self) -> bool {
        self.0 & Self::WHOLE != 0
    }
}

/// How a datagram is to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Route {
    pub(super) to: Option<SocketAddr>,
    pub(super) from: Option<IpAddr>,
    pub(super) segment: Option<u16>,
}

#[cfg(target_os = "linux")]
impl Route {
    /// Writes the control messages that say so. Returns how many bytes that were.
    fn write(&self, room: &mut [u8]) -> usize {
        let mut writer = sys::control::Writer::new(room);
        let segment = self.segment.map(|it| (libc::SOL_UDP, libc::UDP_SEGMENT, it.to_ne_bytes()));
        let fits = segment.is_none_or(|(level, kind, data)| writer.put(level, kind, &data));
        let fits = fits
            && match self.from {
                // The interface is the system's choice; the address, and none for the header.
                Some(IpAddr::V4(from)) => {
                    let mut info = [0; size_of::<libc::in_pktinfo>()];
                    info[4..8].copy_from_slice(&from.octets());
                    writer.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
                }
                Some(IpAddr::V6(from)) => {
                    let mut info = [0; size_of::<libc::in6_pktinfo>()];
                    info[..16].copy_from_slice(&from.octets());
                    writer.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
                }
                None => true,
            };
        debug_assert!(fits, "the room is for all of it");
        writer.used()
    }
}

/// What a socket is, and what is wanted of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) stream: bool,
    pub(super) v6: bool,
    pub(super) addresses: bool,
    pub(super) local_addresses: bool,
    pub(super) coalesce: bool,
    /// How many receives may be outstanding.
    pub(super) receives: usize,
    /// How many sends.
    #[cfg_attr(not(windows), expect(dead_code, reason = "they need no room of their own"))]
    pub(super) sends: usize,
}

/// How an engine is to be made.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// How many completions may be outstanding.
    pub(super) capacity: usize,
    /// Whether notifications will be asked for.
    pub(super) notifies: bool,
    /// What is told of them. None: an event is.
    #[cfg(windows)]
    pub(super) notifier: Option<Arc<Notifier>>,
    pub(super) driver: Driver,
}

/// One of the engines.
#[derive(Debug)]
pub(super) enum Engine {
    #[cfg(target_os = "linux")]
    Uring(Box<uring::Engine>),
    #[cfg(target_os = "linux")]
    Poll(Box<poll::Engine>),
    #[cfg(windows)]
    Windows(Box<windows::Engine>),
}

/// Hands a call on to the engine.
macro_rules! engine {
    ($self:ident, $engine:ident => $call:expr) => {
        match $self {
            #[cfg(target_os = "linux")]
            Engine::Uring($engine) => $call,
            #[cfg(target_os = "linux")]
            Engine::Poll($engine) => $call,
            #[cfg(windows)]
            Engine::Windows($engine) => $call,
        }
    };
}

impl Engine {
    /// Makes the best one that is to be had, and says which one that is and why.
    #[cfg(windows)]
    pub(super) fn new(setup: Setup) -> Result<(Self, Choice), Error> {
        let wanted = setup.driver.wanted()?;
        let functions = sys::rio::Functions::get();
        let (functions, refused) = match (wanted, functions) {
            (Driver::Auto, Some(_)) | (Driver::Rio, Some(_)) => (functions, None),
            (Driver::Auto, None) => (None, Some(no_functions())),
            (Driver::Rio, None) => return Err(no_functions()),
            (Driver::Iocp, _) => (None, None),
            (other, _) => return Err(other.elsewhere()),
        };
        let engine = windows::Engine::new(setup, functions);
        let engine = engine.map_err(|error| Error::from_io(&error, "make a completion queue"))?;
        let driver = if functions.is_some() { Driver::Rio } else { Driver::Iocp };
        Ok((Self::Windows(Box::new(engine)), Choice { driver, refused }))
    }

    /// Makes the best one that is to be had, and says which one that is and why.
    #[cfg(target_os = "linux")]
    pub(super) fn new(setup: Setup) -> Result<(Self, Choice), Error> {
        let refused = match setup.driver.wanted()? {
            Driver::Epoll => None,
            other @ (Driver::Iocp | Driver::Rio) => return Err(other.elsewhere()),
            wanted => match uring::Engine::new(setup.clone()) {
                Ok(engine) => {
                    let choice = Choice { driver: Driver::Uring, refused: None };
                    return Ok((Self::Uring(Box::new(engine)), choice));
                }
                Err(error) if wanted == Driver::Auto && sys::uring::is_refusal(&error) => {
                    Some(refusal(&error))
                }
                Err(error) => return Err(refusal(&error)),
            },
        };
        let engine = poll::Engine::new(setup);
        let engine = engine.map_err(|error| Error::from_io(&error, "make a completion queue"))?;
        Ok((Self::Poll(Box::new(engine)), Choice { driver: Driver::Epoll, refused }))
    }

    /// Takes a socket under a number that is not in use.
    pub(super) fn open(&mut self, index: u16, socket: OwnedSocket, traits: Traits) -> Opened {
        engine!(self, engine => engine.open(index, socket, traits))
    }

    /// Looks at the socket of this number.
    pub(super) fn with_socket<T>(
        &self,
        index: u16,
        look: impl FnOnce(BorrowedSocket<'_>) -> T,
    ) -> Option<T> {
        engine!(self, engine => engine.with_socket(index, look))
    }

    /// Starts a receive. Every receive that is started completes.
    #[inline(always)]
    pub(super) fn receive(&mut self, index: u16, slice: Slice, context: u64, flags: Flags) {
        // Words that stay in registers: a request would be moved through memory.
        engine!(self, engine => engine.receive(index, slice, context, flags));
    }

    /// Starts a send, at once or when it is committed. Every send that is started completes.
    #[inline]
    pub(super) fn send(&mut self, index: u16, request: Request, route: Route, deferred: bool) {
        engine!(self, engine => engine.send(index, request, route, deferred));
    }

    /// Starts what was deferred.
    pub(super) fn commit(&mut self, index: u16) -> io::Result<()> {
        engine!(self, engine => engine.commit(index))
    }

    /// The next completion, if it is of the usual kind: a receive with more to come. Dealt with in
    /// place, so that it reaches the program without being moved through memory several times.
    #[inline(always)]
    pub(super) fn pop_usual(&mut self) -> Option<Completion> {
        engine!(self, engine => engine.pop_usual())
    }

    /// The next completion that is there. Its socket has no name yet.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        engine!(self, engine => engine.pop())
    }

    /// Looks whether there is more, and brings on its way what waits for that. Cheap where there
    /// is nothing to do.
    #[inline]
    pub(super) fn look(&mut self) -> io::Result<()> {
        engine!(self, engine => engine.look())
    }

    /// An event that is signalled each time that [`Self::arm`] says so.
    pub(super) fn event(&mut self) -> io::Result<Arc<OwnedFile>> {
        engine!(self, engine => engine.event())
    }

    /// Waits until the event is signalled, at most until then. True: it is.
    pub(super) fn wait(
        &mut self,
        event: BorrowedFile<'_>,
        deadline: Option<Instant>,
    ) -> io::Result<bool> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Poll(engine) => engine.wait(deadline),
            _ => sys::signal::wait(event, deadline),
        }
    }

    /// Instead of an event: a descriptor that becomes readable each time that [`Self::arm`] says
    /// so.
    #[cfg(target_os = "linux")]
    pub(super) fn sign(&mut self) -> io::Result<OwnedFile> {
        engine!(self, engine => engine.sign())
    }

    /// Forgets that [`Self::arm`] was called.
    #[cfg(target_os = "linux")]
    pub(super) fn disarm(&mut self) {
        engine!(self, engine => engine.disarm());
    }

    /// Resets the event, and asks for it to be signalled, once, when there is a completion that
    /// notifies.
    pub(super) fn arm(&mut self) -> io::Result<Armed> {
        engine!(self, engine => engine.arm())
    }

    /// Whether this process is a child of the one that made the engine.
    #[inline]
    pub(super) fn in_child(&self) -> bool {
        engine!(self, engine => engine.in_child())
    }

    /// Ends a socket: everything outstanding completes, what was not done yet as cancelled.
    pub(super) fn close(&mut self, index: u16) {
        engine!(self, engine => engine.close(index));
    }
}

/// What became of asking for a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Armed {
    /// One is outstanding.
    Already,
    /// There is a completion that notifies. The event has not been signalled, and will not be.
    Now,
    /// The event will be signalled.
    Later,
}

/// Why overlapped calls do the work.
#[cfg(windows)]
fn no_functions() -> Error {
    let remedy = "Windows 8 and Windows Server 2012 have it, and Wine has not; overlapped calls do \
                  its work";
    Error::of(crate::error::ErrorKind::Unsupported, "Registered I/O").with_remedy(remedy)
}

/// What keeps io_uring from being used, and what to do about it.
#[cfg(target_os = "linux")]
fn refusal(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::Unsupported if error.raw_os_error().is_none() => {
            Error::from_io(error, "registered I/O on io_uring").with_remedy(uring::FLOOR)
        }
        _ => sys::uring::refusal(error),
    }
}

/// A socket that was taken, or is given back.
pub(super) type Opened = Result<(), (io::Error, OwnedSocket)>;

impl Completion {
    /// A completion as an engine sees it. The status is 0 or a negative error code.
    #[inline(always)]
    fn of(index: u16, direction: Direction, request: Request, status: i32, bytes: usize) -> Self {
        let Request { slice, context, flags } = request;
        Self {
            socket: RequestQueue::unnamed(index),
            direction,
            slice,
            context,
            status,
            // No slice has more.
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            whole: 0,
            head: Head::NONE,
            flags,
        }
    }
}
