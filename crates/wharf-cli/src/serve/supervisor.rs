//! Looks after the server from beside: signals, the drain, and peers that do not read.

use std::{
    net::Shutdown,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use wharf::{Listener, Stream};

use super::{
    datagram::Endpoint,
    ports::Group,
    service::{Connection, Key, Totals},
};
use crate::cli::Service;

/// How often it looks while the server serves.
const TICK: Duration = Duration::from_millis(200);
/// How often it looks whether a drain is done.
const DRAIN_TICK: Duration = Duration::from_millis(10);
/// How long a connection must have been quiet to be closed in a drain. What its peer has sent by
/// then has arrived, unless the network is slower than that.
const QUIET: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Supervisor<'a> {
    pub(super) groups: &'a [Group],
    pub(super) listeners: Vec<Listener<Key>>,
    pub(super) endpoints: &'a [Endpoint],
    pub(super) totals: &'a Totals,
    pub(super) service: Service,
    /// How long a client may take to ask for a file; none if none are served.
    pub(super) idle: Option<Duration>,
    /// How long a drain may take.
    pub(super) patience: Duration,
}

/// How a drain went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    /// Connections that had finished before it began.
    pub(super) finished_before: u64,
    /// And that had failed.
    pub(super) failed_before: u64,
    /// A second signal ended it.
    pub(super) hurried: bool,
}

impl Supervisor<'_> {
    /// Waits for a signal, drains, and closes the ports. Nothing is returned if they were closed by
    /// somebody else.
    pub(super) fn run(self, signals: &Receiver<()>) -> Option<Verdict> {
        loop {
            match signals.recv_timeout(TICK) {
                Ok(()) => return Some(self.drain(signals)),
                Err(RecvTimeoutError::Timeout) => self.look(false),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn drain(self, signals: &Receiver<()>) -> Verdict {
        let before = self.totals.ended();
        self.totals.drain();
        self.listeners.iter().for_each(Listener::close);
        self.endpoints.iter().for_each(Endpoint::stop);
        let deadline = Instant::now() + self.patience;
        let mut next_look = Instant::now();
        let mut hurried = false;
        while !hurried && !self.all_done() && Instant::now() < deadline {
            if Instant::now() >= next_look {
                next_look += QUIET;
                self.look(true);
            }
            hurried = signals.recv_timeout(DRAIN_TICK).is_ok();
        }
        // What is left is cut when the ports are dropped.
        let answers = self.service != Service::Discard && self.idle.is_none();
        self.each_connection(|stream, connection| {
            if answers && !connection.owes(stream) {
                connection.has_sent_all();
            }
        });
        self.groups.iter().for_each(|group| group.port.close());
        Verdict { finished_before: before.finished, failed_before: before.failed, hurried }
    }

    fn all_done(&self) -> bool {
        self.totals.all_done() && self.endpoints.iter().all(Endpoint::is_quiet)
    }

    /// Looks after the connections on which nothing has moved since the last look.
    ///
    /// Peers that do not read hold buffers of the pool: those are taken back when receives wait for
    /// one. A send that is cancelled goes on from its own memory.
    ///
    /// In a drain, connections that are owed nothing are ended. Only their receiving direction is
    /// shut down: data that has arrived all the same is received and served, and then the receive
    /// says that it was the last.
    fn look(&self, drains: bool) {
        if let (Some(idle), false) = (self.idle, drains) {
            self.each_connection(|stream, connection| {
                if connection.expires(idle) {
                    stream.close();
                }
            });
            return;
        }
        let echoes = self.service == Service::Echo && self.idle.is_none();
        let mut ports = self.groups.iter().map(|group| &group.port);
        let starving = echoes && ports.any(|port| port.stats().starving > 0);
        if !starving && !drains {
            return;
        }
        let discards = self.service == Service::Discard;
        self.each_connection(|stream, connection| {
            if !connection.quiet() {
                return;
            }
            if starving && connection.holds_buffer(stream) {
                stream.cancel_all();
            }
            if drains && (discards || !connection.owes(stream)) && connection.set_ending() {
                let asked = stream.start().silent().shutdown(Shutdown::Read);
                if let Err(error) = asked {
                    log::debug!("a quiet connection was not ended: {error}");
                }
            }
        });
    }

    fn each_connection(&self, mut visit: impl FnMut(&Stream<Key>, &Connection)) {
        for group in self.groups {
            group.port.each_stream(|stream| {
                if let Key::Connection(connection) = stream.key() {
                    visit(stream, connection);
                }
            });
        }
    }
}
