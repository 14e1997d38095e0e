//! What comes out of a lane.

use crate::raw::Operation;

/// What a worker takes from a lane about an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) operation: *mut Operation,
    pub(crate) of: Source,
    /// What the system said, in its own terms.
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// What of an operation an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Request,
    Deadline,
    Cancel,
}

/// What a worker takes from a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Popped {
    /// Something of an operation's.
    Event(Event),
    /// Nothing but a wake-up of whoever sleeps in the lane.
    Wake,
    /// The lane of this number, which nobody waits in, has something to take. (A word, as what the
    /// others begin with: halves would be put together anew for each event.)
    Attend(usize),
}
