//! What the operating system does for a port.
//!
//! A **driver** turns operations, which are data ([`crate::raw::Request`]), into system calls, and
//! says what became of them. Its contract is the type [`Lane`]: a lane takes operations (`push`,
//! `push_cancel`), gives their events back to any thread that asks (`pop`), and says what an event
//! means (`digest`). A worker waits in it (`wait`), and any thread may wake that worker (`wake`) or
//! let the lane go on without it (`submit`). Calls that name an operation are made under the lock
//! of its handle, so a driver needs none for the operation's header.
//!
//! What every platform provides under the same names, one folder each:
//!
//! | Name | What it is |
//! |---|---|
//! | `Lane` | the driver, or an enum of several: chosen when a port is made, never per operation |
//! | `Header` | what the driver keeps in the header of an operation |
//! | `Slice` | an address and a length, as the system reads them |
//! | `Message` | bytes, an address, and what travels along, for Unix sockets |
//! | `DatagramHeader` | addresses and marks of a datagram of UDP |
//! | `udp` | what else UDP needs: options, and errors from the network |
//! | `Registration` | what it knows of a handle's descriptor |
//! | `Transmission` | a part of a file on its way to a socket |
//! | `MessageHeader` | what it keeps with the slices of a vectored send |
//! | `OwnedDescriptor`, `RawDescriptor` | a socket or a file |
//! | `OwnedSocket`, `OwnedFile`, `BorrowedSocket`, `BorrowedFile` | one of them, as the standard library has it |
//! | `Mapping` | memory for the buffers of a pool |
//! | `ForkGuard`, `thread_id` | which process this is, and which thread |
//! | `processor_time`, `processor_time_of_all`, `processor_delay`, `processors_idle` | how long a thread has run, and all have, and this one has waited to; how long processors had nothing to do; where there is a watch |
//! | `Identity` | what kind of thing a descriptor leads to, and which |
//! | `adopt`, `release` | a descriptor belongs to one port |
//! | `claim_address` | a listener has its address for itself |
//! | `pipe` | two ends of a pipe, one of them for a port |
//! | `file` | what files need beside their operations |
//! | `signal` | an event that can be waited for |
//! | `own`, `attempt` | a descriptor that the system has given; a request without waiting |
//! | `kind_of`, `CANCELLED`, `FAILED` | the system's error codes |

pub(crate) mod control;
pub(crate) mod pool;

cfg_select! {
    target_os = "linux" => {
        pub(crate) mod epoll;
        mod linux;
        mod unix;
        pub(crate) mod uring;
        pub(crate) use self::{linux::*, unix::*};
        pub use self::unix::{Message, OwnedDescriptor, Slice, Transmission};
    }
    windows => {
        mod windows;
        pub(crate) use self::windows::*;
        pub use self::windows::{Message, OwnedDescriptor, Slice, Transmission};
    }
    _ => {
        compile_error!("wharf has no driver for this system");
    }
}

/// What a descriptor leads to, as far as it matters for how operations are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Socket,
    /// A pipe, a terminal or whatever else is read from and written to without positions.
    Pipe,
    /// A file or a block device: it has positions.
    File,
    Directory,
}

/// A descriptor of one kind: a socket or a file. Where the system has one type for all, that.
pub(crate) trait Descriptor: Into<OwnedDescriptor> {
    /// Takes back what was made from one of this kind.
    fn back(descriptor: OwnedDescriptor) -> Self;
}

/// What came of trying a request without waiting.
#[derive(Debug)]
pub(crate) enum Tried {
    /// It is over, with so many bytes or an error.
    Over(std::io::Result<usize>),
    /// So many bytes are done; the rest, or all of it, has to be started.
    Left(usize),
}

impl Tried {
    /// So many bytes were moved, and so many are wanted.
    #[inline]
    pub(crate) fn of(done: usize, wanted: usize) -> Self {
        // Nothing is the end of a stream: there is no rest to wait for.
        if done >= wanted || done == 0 { Self::Over(Ok(done)) } else { Self::Left(done) }
    }
}

/// What has to be done with an operation after one of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More events of the same submission are to come.
    Pending,
    /// The operation is over; its outcome stands in its header.
    Finish,
    /// Submit it again: the rest of it, or all of it.
    Again,
    /// Submit it again once a pooled buffer is free.
    Starve,
    #[cfg_attr(windows, expect(dead_code, reason = "a cancellation is never too early there"))]
    /// Ask for the submission to be cancelled, again or for the first time: the system did not
    /// find it, or its deadline came loose from it.
    Cancel,
}
