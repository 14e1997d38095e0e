//! The drivers of Linux behind one type.

mod alarm;

use std::{
    io,
    sync::{
        Arc,
        atomic::Ordering,
    },
    time::Duration,
};

pub(crate) use self::alarm::{Alarm, Bell};
pub(crate) use super::uring::{Piece, Provided, is_transient, probe::probe, refusal};
use super::{
    Event, Kind, OwnedDescriptor, Popped, RawDescriptor, Step, epoll,
    pool::Pool,
    transmit::{self, Chunks},
    udp, uring,
};
use crate::{
    driver::{Choice, Driver},
    error::Error,
    raw::{Operation, port::Setup},
};

/// One running slot of a port. See the page of [`crate::sys`] for the contract. On cache lines of
/// its own: those of a port lie one after the other, and are used by different processors.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) enum Lane {
    Uring(uring::Lane),
    Epoll(epoll::Lane),
}

/// What a driver knows of a handle's descriptor.
#[derive(Debug)]
pub(crate) enum Registration {
    Uring(uring::Registration),
    Epoll(epoll::Registration),
}

impl Registration {
    pub(crate) fn uring(&self) -> &uring::Registration {
        match self {
            Self::Uring(registration) => registration,
            Self::Epoll(_) => unreachable!("the handles of a port are alike"),
        }
    }

    pub(crate) fn epoll(&self) -> &epoll::Registration {
        match self {
            Self::Epoll(registration) => registration,
            Self::Uring(_) => unreachable!("the handles of a port are alike"),
        }
    }

    /// Whether the driver makes calls itself, and might as well do so at once.
    #[inline]
    pub(crate) fn tries_first(&self) -> bool {
        matches!(self, Self::Epoll(_))
    }

    /// For a branch of a file's handle, which needs nothing of its own.
    pub(crate) fn of_branch(&self) -> Self {
        match self {
            Self::Uring(_) => Self::Uring(uring::Registration::new()),
            Self::Epoll(_) => Self::Epoll(epoll::Registration::default()),
        }
    }

    /// Which lane knows of it.
    pub(crate) fn lane(&self) -> u16 {
        match self {
            Self::Uring(registration) => registration.lane(),
            Self::Epoll(_) => 0,
        }
    }

    /// Sees to it that a call which waits for room in the socket, whatever was found out before,
    /// does not do so for long.
    pub(crate) fn hurry(&self, socket: RawDescriptor) -> bool {
        match self {
            // It is non-blocking.
            Self::Epoll(_) => true,
            Self::Uring(uring::Registration { hurries, .. }) => {
                let already = hurries.load(Ordering::Relaxed);
                if !already && transmit::never_waits_long(socket) {
                    hurries.store(true, Ordering::Relaxed);
                }
                already || hurries.load(Ordering::Relaxed)
            }
        }
    }
}

/// What the drivers keep in the header of an operation.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) epoll: epoll::Header,
    /// The deadline as io_uring reads it, at a fixed address.
    pub(crate) deadline: [i64; 2],
    /// How long it pauses before it is tried again, likewise.
    pub(crate) pause: [i64; 2],
    /// Of a read or a write, what a ring may know its buffer by: the piece of its region, which
    /// lives as long as the operation is in flight; null if it is no slice of one. Of all else,
    /// what an earlier operation has left.
    pub(crate) piece: *const Piece,
}

impl Header {
    pub(crate) const NEW: Self = Self {
        epoll: epoll::Header::NEW,
        deadline: [0; 2],
        pause: [0; 2],
        piece: std::ptr::null(),
    };

    /// Lets the deadline count anew.
    pub(crate) fn restart_clock(&mut self) {
        self.deadline = [0; 2];
        self.epoll.due = 0;
    }
}

/// Hands a call on to the driver.
macro_rules! driver {
    ($self:ident, $lane:ident => $call:expr) => {
        match $self {
            Lane::Uring($lane) => $call,
            Lane::Epoll($lane) => $call,
        }
    };
}

impl Lane {
    /// Makes the lanes of a port, all alike. The choice that comes back says of what driver.
    pub(crate) fn make(count: usize, setup: &Setup) -> Result<(Vec<Self>, Choice), Error> {
        let chunks = Chunks::new().map_err(|error| Error::from_io(&error, "port"))?;
        let refused = match setup.driver.wanted()? {
            Driver::Epoll => None,
            other @ (Driver::Iocp | Driver::Rio) => return Err(other.elsewhere()),
            wanted => match uring::Lane::make(count, setup, &chunks) {
                Ok(lanes) => {
                    let lanes = lanes.into_iter().map(Self::Uring).collect();
                    return Ok((lanes, Choice { driver: Driver::Uring, refused: None }));
                }
                Err(error) if wanted == Driver::Auto && uring::is_refusal(&error) => {
                    Some(refusal(&error))
                }
                Err(error) => return Err(refusal(&error)),
            },
        };
        let lanes = epoll::Lane::make(count, setup, &chunks);
        let lanes = lanes.map_err(|error| Error::from_io(&error, "epoll"))?;
        let lanes = lanes.into_iter().map(Self::Epoll).collect();
        Ok((lanes, Choice { driver: Driver::Epoll, refused }))
    }

    /// Those buffers that an operation takes, or has taken: the lane's, for datagrams or for all
    /// else, or the port's for transmissions.
    pub(crate) fn pool_of(&self, operation: &Operation) -> &Arc<Pool> {
        let [pool, datagrams, ..] = self.pools();
        if operation.request.is_datagram() {
            return datagrams;
        }
        self.chunks().pool_of(operation).unwrap_or(pool)
    }

    /// All from which operations in this lane take buffers.
    pub(crate) fn pools(&self) -> [&Arc<Pool>; 4] {
        let [small, large] = self.chunks().pools();
        driver!(self, lane => [lane.pool(), lane.datagrams(), small, large])
    }

    fn chunks(&self) -> &Chunks {
        driver!(self, lane => lane.chunks())
    }

    /// How many operations have been started here that the system does not know of yet.
    pub(crate) fn unsubmitted(&self) -> u32 {
        driver!(self, lane => lane.unsubmitted())
    }

    /// How much there is to take. Cheap.
    #[inline]
    pub(crate) fn ready(&self) -> u32 {
        driver!(self, lane => lane.ready())
    }

    /// How many operations have something to take here: neither wake-ups nor what only belongs to
    /// deadlines and cancellations counts.
    pub(crate) fn requests_ready(&self) -> usize {
        driver!(self, lane => lane.requests_ready())
    }

    /// How often the kernel was entered for the lane: to submit, to wait and to wake. What is
    /// called for one operation is counted by its handle's port.
    pub(crate) fn entries(&self) -> u64 {
        driver!(self, lane => lane.entries())
    }

    /// Takes the oldest event.
    #[inline]
    pub(crate) fn pop(&self) -> Option<Popped> {
        driver!(self, lane => lane.pop())
    }

    /// Takes wake-ups out of the way that nobody needs any more.
    pub(crate) fn clear_wakes(&self) {
        driver!(self, lane => lane.clear_wakes());
    }

    /// Takes the oldest event if it is an `Attend`.
    pub(crate) fn pop_attend(&self) -> Option<u16> {
        driver!(self, lane => lane.pop_attend())
    }

    /// Before a worker waits in this lane: it is to be woken, once, when there is something to take
    /// from another lane that nobody waits in. `asked`: it has been asked for, and has not come.
    pub(crate) fn attend(&self, number: u16, other: &Self, asked: bool) -> io::Result<()> {
        match (self, other) {
            (Self::Uring(_), Self::Uring(_)) if asked => Ok(()),
            (Self::Uring(lane), Self::Uring(other)) => lane.attend(number, other),
            (Self::Epoll(lane), Self::Epoll(other)) => lane.attend(number, other, asked),
            _ => unreachable!("the lanes of a port are alike"),
        }
    }

    /// How long it is until something is due here, if this lane's clock needs somebody to wait.
    pub(crate) fn until_due(&self) -> Option<Duration> {
        match self {
            Self::Uring(_) => None,
            Self::Epoll(lane) => lane.until_due(),
        }
    }

    /// Brings `ready` up to date, for somebody who watches the lane from outside.
    pub(crate) fn glance(&self) {
        if let Self::Epoll(lane) = self
            && let Err(error) = lane.submit()
        {
            log::error!("epoll_wait: {error}");
        }
    }

    /// Whether the system itself wakes who waits in the lane, when what another thread has started
    /// there is over. Otherwise `must_rouse` tells whether that thread must.
    pub(crate) fn rouses(&self) -> bool {
        matches!(self, Self::Uring(_))
    }

    /// See [`Self::rouses`].
    pub(crate) fn must_rouse(&self) -> bool {
        match self {
            Self::Uring(_) => false,
            Self::Epoll(lane) => lane.must_rouse(),
        }
    }

    /// Takes the descriptor of a handle in.
    pub(crate) fn register(
        &self,
        descriptor: &OwnedDescriptor,
        kind: Kind,
    ) -> Result<Registration, Error> {
        match self {
            Self::Uring(_) => {
                // It would make the kernel fail operations that have to wait.
                super::set_nonblocking(super::raw(descriptor), false);
                Ok(Registration::Uring(uring::Registration::new()))
            }
            Self::Epoll(lane) => lane
                .register(descriptor, kind)
                .map(Registration::Epoll)
                .map_err(|error| Error::from_io(&error, "associate")),
        }
    }

    /// Lets the descriptor of a handle go that is about to be closed.
    pub(crate) fn unregister(&self, registration: &Registration) {
        match self {
            Self::Uring(lane) => lane.unregister(registration.uring()),
            Self::Epoll(lane) => lane.unregister(registration.epoll()),
        }
    }

    /// Lets the system begin what has been started here and finish what it can, without waiting.
    pub(crate) fn submit(&self) -> io::Result<()> {
        driver!(self, lane => lane.submit())
    }

    /// The same, and waits until there is something to take. `TimedOut`: nothing came.
    /// `attending`: [`Self::attend`] was called for other lanes.
    pub(crate) fn wait(&self, timeout: Option<Duration>, attending: bool) -> io::Result<()> {
        match self {
            Self::Uring(lane) => lane.wait(timeout),
            Self::Epoll(lane) => lane.wait(timeout, attending),
        }
    }

    /// Wakes whoever waits in this lane, from any thread.
    pub(crate) fn wake(&self) -> io::Result<()> {
        driver!(self, lane => lane.wake())
    }

    /// Tries to do the next step of an operation on a socket for datagrams without waiting, before
    /// it is pushed. None: it has to be.
    ///
    /// # Safety
    ///
    /// As for [`Self::push`].
    pub(crate) unsafe fn attempt(&self, op: &mut Operation) -> Option<Step> {
        // SAFETY: the caller's promise.
        unsafe { udp::attempt(op, self.pool_of(op)) }
    }

    /// Begins the next step of an operation.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, its handle's lock is held, and its pointers are good.
    #[inline]
    pub(crate) unsafe fn push(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise.
        driver!(self, lane => unsafe { lane.push(operation) })
    }

    /// Asks for what `push` began last for an operation of this lane to be cancelled. It may come
    /// too late.
    ///
    /// # Safety
    ///
    /// `operation` is in flight, submitted to this lane, and its handle's lock is held.
    pub(crate) unsafe fn push_cancel(&self, operation: *mut Operation) -> io::Result<()> {
        // SAFETY: the caller's promise.
        driver!(self, lane => unsafe { lane.push_cancel(operation) })
    }

    /// Works out what an event means for its operation.
    ///
    /// # Safety
    ///
    /// The event came from this lane and has not been digested before, and the lock of its
    /// operation's handle is held.
    #[inline]
    pub(crate) unsafe fn digest(&self, event: Event) -> Step {
        // SAFETY: the caller's promise.
        driver!(self, lane => unsafe { lane.digest(event) })
    }
}
