//! One connection of the load: what may be sent on it, and which echoes are to come.

use std::collections::VecDeque;

use wharf::Stream;

use super::pattern::Content;

/// A connection, counted in messages and bytes since its beginning.
#[derive(Debug)]
pub(super) struct Peer {
    /// None once it is lost.
    pub(super) stream: Option<Stream<usize>>,
    /// Its number among the thread's connections that stood at the beginning.
    pub(super) rank: u64,
    pub(super) content: Content,
    /// Messages that may be sent, from the first on.
    pub(super) due: u64,
    /// Bytes that have been given to the port.
    pub(super) sent: u64,
    /// A send is in flight: there is one at a time.
    pub(super) sending: bool,
    /// Bytes that have come back.
    pub(super) received: u64,
    /// In a closed loop: when each message that has not come back was due.
    pub(super) since: VecDeque<u64>,
}

impl Peer {
    pub(super) fn new(content: Content) -> Self {
        Self {
            stream: None,
            rank: 0,
            content,
            due: 0,
            sent: 0,
            sending: false,
            received: 0,
            since: VecDeque::new(),
        }
    }

    /// Messages that have come back in full.
    pub(super) fn completed(&self) -> u64 {
        self.received / self.content.size
    }

    /// The bytes that may be sent now, with so many messages in flight.
    pub(super) fn sendable(&self, depth: u64) -> u64 {
        let messages = self.due.min(self.completed() + depth);
        (messages * self.content.size).saturating_sub(self.sent)
    }

    /// Takes back the messages of which nothing has been sent. Returns how many there were.
    pub(super) fn withdraw(&mut self) -> u64 {
        let begun = self.sent.div_ceil(self.content.size);
        let withdrawn = self.due - begun;
        self.due = begun;
        withdrawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_bounds_what_is_in_flight() {
        let mut peer = Peer::new(Content { size: 10, seed: None, blocks: None });
        assert_eq!(peer.sendable(4), 0);
        peer.due = 9;
        assert_eq!(peer.sendable(4), 40);
        peer.sent = 40;
        assert_eq!(peer.sendable(4), 0);
        peer.received = 19;
        assert_eq!((peer.sendable(4), peer.completed()), (10, 1));
    }

    #[test]
    fn a_message_that_has_begun_is_not_withdrawn() {
        let mut peer = Peer::new(Content { size: 10, seed: None, blocks: None });
        peer.due = 5;
        peer.sent = 21;
        assert_eq!(peer.withdraw(), 2);
        assert_eq!(peer.due, 3);
        assert_eq!(peer.sendable(4), 9, "the rest of it");
    }
}
