//! The drivers of Linux behind one type.

use std::{io, sync::Arc, time::Duration};

pub(crate) use super::uring::{Provided, is_transient, refusal};
use super::{Event, Popped, Step, pool::Pool, uring};
use crate::raw::{Operation, port::Setup};

/// One running slot of a port. See the page of [`crate::sys`] for the contract.
#[derive(Debug)]
pub(crate) enum Lane {
    Uring(uring::Lane),
}

/// Hands a call on to the driver.
macro_rules! driver {
    ($self:ident, $lane:ident => $call:expr) => {
        match $self {
            Lane::Uring($lane) => $call,
        }
    };
}

impl Lane {
    /// Makes the lanes of a port, all alike. The setup that comes back says what they have.
    pub(crate) fn make(count: usize, setup: Setup) -> io::Result<(Vec<Self>, Setup)> {
        let (lanes, setup) = uring::Lane::make(count, setup)?;
        Ok((lanes.into_iter().map(Self::Uring).collect(), setup))
    }

    /// The buffers that receives in this lane take.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        driver!(self, lane => lane.pool())
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

    /// Wakes who waits in this lane, once, when there is something to take from another.
    pub(crate) fn attend(&self, number: u16, other: &Self) -> io::Result<()> {
        match (self, other) {
            (Self::Uring(lane), Self::Uring(other)) => lane.attend(number, other),
        }
    }

    /// Lets the system begin what has been started here and finish what it can, without waiting.
    pub(crate) fn submit(&self) -> io::Result<()> {
        driver!(self, lane => lane.submit())
    }

    /// The same, and waits until there is something to take. `TimedOut`: nothing came.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        driver!(self, lane => lane.wait(timeout))
    }

    /// Wakes whoever waits in this lane, from any thread.
    pub(crate) fn wake(&self) -> io::Result<()> {
        driver!(self, lane => lane.wake())
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
