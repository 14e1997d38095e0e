//! Starting a request with more to say than its slice.

use std::net::{IpAddr, SocketAddr};

use super::{
    CompletionQueue, RequestQueue, Slice,
    engine::{Flags, Request, Route},
};
use crate::error::{Error, ErrorKind, Refused};

/// A request to be started, by [`CompletionQueue::start`].
#[derive(Debug)]
#[must_use = "nothing is started before `receive` or `send`"]
pub struct Start<'a, N> {
    pub(super) queue: &'a mut CompletionQueue<N>,
    pub(super) socket: RequestQueue,
    pub(super) context: u64,
    pub(super) flags: Flags,
    pub(super) route: Route,
    pub(super) deferred: bool,
}

/// The most datagrams that one send may be divided into: what every Linux since 4.18 can do.
const SEGMENTS_MAX: usize = 64;
/// The most bytes a datagram may have: what the lengths in its headers can say.
const DATAGRAM_MAX_4: usize = 65_507;
const DATAGRAM_MAX_6: usize = 65_527;

impl<N> Start<'_, N> {
    /// Gives the request a value that comes back with its completion.
    #[doc(alias = "RequestContext")]
    pub fn context(mut self, context: u64) -> Self {
        self.context = context;
        self
    }

    /// Lets the request begin at the next [`CompletionQueue::commit`], so that many begin with one
    /// system call. It counts against the quota at once, and may begin earlier.
    #[doc(alias = "RIO_MSG_DEFER")]
    pub fn deferred(mut self) -> Self {
        self.deferred = true;
        self
    }

    /// Lets the completion of this request not trigger a notification. It is dequeued as any other.
    #[doc(alias = "RIO_MSG_DONT_NOTIFY")]
    pub fn quiet(mut self) -> Self {
        self.flags = self.flags.quiet();
        self
    }

    /// Lets a receive on a stream complete when its slice is full; with less only at the end of the
    /// stream, or when it fails.
    #[doc(alias = "RIO_MSG_WAITALL")]
    pub fn wait_all(mut self) -> Self {
        self.flags = self.flags.whole();
        self
    }

    /// Sends a datagram to this address. Without, it goes where the socket is connected to.
    pub fn to(mut self, address: SocketAddr) -> Self {
        self.route.to = Some(address);
        self
    }

    /// Sends a datagram from this one of the machine's addresses: for an answer, the
    /// [`local_address`](super::Completion::local_address) that the question came to.
    pub fn from(mut self, address: IpAddr) -> Self {
        self.route.from = Some(address);
        self
    }

    /// Divides what is sent into datagrams of so many bytes (segmentation offload); the last may be
    /// shorter. At most 64, and together no more than one datagram can have.
    #[doc(alias = "UDP_SEGMENT")]
    #[doc(alias = "UDP_SEND_MSG_SIZE")]
    pub fn segments(mut self, bytes: u16) -> Self {
        self.route.segment = Some(bytes);
        self
    }

    /// Starts a receive into all of a slice.
    ///
    /// # Errors
    ///
    /// As for [`CompletionQueue::receive`], and `InvalidInput` where something was asked for that
    /// only sends or only streams can do. The slice comes back.
    #[doc(alias = "RIOReceive")]
    #[doc(alias = "RIOReceiveEx")]
    pub fn receive(self, slice: Slice) -> Result<(), Refused<Slice>> {
        const ACTION: &str = "receive";
        let Self { queue, socket, context, flags, route, .. } = self;
        let place = match queue.place(socket, super::Direction::Receive) {
            Ok(place) => place,
            Err(error) => return Err(Refused { error, value: slice }),
        };
        let wrong = match () {
            () if flags.is_whole() && !place.stream => "only a stream can fill a slice",
            () if route.is_some() => "addresses and segments are for sends",
            () => "",
        };
        if !wrong.is_empty() {
            let error = Error::of(ErrorKind::InvalidInput, ACTION).with_remedy(wrong);
            return Err(Refused { error, value: slice });
        }
        queue.start_receive(socket, slice, context, flags)
    }

    /// Starts a send of what a slice holds.
    ///
    /// # Errors
    ///
    /// As for [`CompletionQueue::send`], and `InvalidInput` where it could not be sent so: the
    /// error says why. The slice comes back.
    #[doc(alias = "RIOSend")]
    #[doc(alias = "RIOSendEx")]
    pub fn send(self, slice: Slice) -> Result<(), Refused<Slice>> {
        const ACTION: &str = "send";
        let Self { queue, socket, context, flags, mut route, deferred } = self;
        let place = match queue.place(socket, super::Direction::Send) {
            Ok(place) => place,
            Err(error) => return Err(Refused { error, value: slice }),
        };
        let most = if place.v6 { DATAGRAM_MAX_6 } else { DATAGRAM_MAX_4 };
        let divided = route.segment.map_or(1, |it| slice.len().div_ceil(usize::from(it.max(1))));
        let wrong = match () {
            () if flags.is_whole() => "a send always sends everything",
            () if place.stream && route.is_some() => "addresses and segments are for datagrams",
            () if place.stream => "",
            () if slice.len() > most => "a datagram has at most 65,507 bytes (IPv6: 65,527)",
            () if route.segment == Some(0) => "a segment has at least one byte",
            () if divided > SEGMENTS_MAX => "at most 64 segments go into one send",
            () if !route.fits(place.v6) => "an IPv4 socket sends from and to IPv4 addresses",
            () => "",
        };
        if !wrong.is_empty() {
            let error = Error::of(ErrorKind::InvalidInput, ACTION).with_remedy(wrong);
            return Err(Refused { error, value: slice });
        }
        queue.start_send(socket, Request { slice, context, flags }, route, deferred);
        Ok(())
    }
}

impl Route {
    fn is_some(&self) -> bool {
        self.to.is_some() || self.from.is_some() || self.segment.is_some()
    }

    /// Makes the addresses such as a socket of this family wants them. False: that cannot be done.
    fn fits(&mut self, v6: bool) -> bool {
        if !v6 {
            let v4 = self.to.is_none_or(|to| to.is_ipv4());
            return v4 && self.from.is_none_or(|from| from.is_ipv4());
        }
        // An IPv6 socket knows IPv4 addresses as mapped ones.
        let mapped = |ip| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
            IpAddr::V6(_) => ip,
        };
        self.from = self.from.map(mapped);
        if let Some(to @ SocketAddr::V4(_)) = self.to {
            self.to = Some((mapped(to.ip()), to.port()).into());
        }
        true
    }
}
