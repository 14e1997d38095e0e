//! An operation about to be started, whatever kind of handle it is for.
//!
//! What can be started on a kind of handle stands with that kind.

use std::{fmt, time::Duration};

use crate::block::Extras;

/// An operation about to be started, with more to say about it than the plain form does. Its
/// methods give the operation's id, for [`Stream::cancel`](crate::Stream::cancel).
///
/// ```
/// use std::{net::TcpListener, time::Duration};
/// use wharf::{Buf, Port, Wait};
///
/// let port = Port::<(), &'static str>::new(1)?;
/// let peer = TcpListener::bind("127.0.0.1:0")?;
/// let stream = port.connect(peer.local_addr()?, ())?;
/// let Wait::Packet(connected) = port.wait() else { panic!() };
/// connected.result?;
///
/// let greeting = stream.start().context("greeting").deadline(Duration::from_secs(5));
/// let id = greeting.recv(Buf::pooled())?;
/// assert!(stream.cancel(id));
/// let Wait::Packet(cancelled) = port.wait() else { panic!() };
/// assert!(cancelled.result.unwrap_err().is_cancelled());
/// assert_eq!(cancelled.context, Some("greeting"));
/// # Ok::<(), wharf::Error>(())
/// ```
#[must_use = "nothing is started yet"]
pub struct Start<'a, H, M> {
    pub(crate) handle: &'a H,
    pub(crate) extras: Extras<M>,
}

impl<H: fmt::Debug, M> fmt::Debug for Start<'_, H, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("handle", self.handle).finish_non_exhaustive()
    }
}

impl<'a, H, M> Start<'a, H, M> {
    pub(crate) fn of(handle: &'a H) -> Self {
        Self { handle, extras: Extras::default() }
    }

    /// Gives the operation a value that comes back with its (last) packet.
    pub fn context(mut self, context: M) -> Self {
        self.extras.context = Some(context);
        self
    }

    /// Gives the operation no packet: nobody hears of its end, and its buffer is dropped then.
    #[doc(alias = "hEvent")]
    pub fn silent(mut self) -> Self {
        self.extras.silent = true;
        self
    }

    /// Limits how long the operation may take, counted from when it reaches the kernel, not while
    /// it stands behind another. It then fails with `TimedOut`.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.extras.deadline = Some(deadline);
        self
    }
}
