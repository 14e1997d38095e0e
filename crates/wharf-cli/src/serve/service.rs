//! The services: what is done with a packet.
//!
//! A connection has one operation in flight at a time: a receive, then an exchange, which sends
//! what came and is the next receive. So a peer that does not read makes the server hold one buffer
//! and read no more from it, and what is known about a connection is written by one worker at a
//! time, without locks or counters that workers share.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use wharf::{Buf, Driver, Incoming, Listener, Op, Packet, Result, Stream};

use super::{
    datagram::{self, Counters},
    files::{Exchange, Files, Then},
};
use crate::{cli::Service, system};

/// How many connections have a buffer of their own, all ports taken together. It is received into,
/// sent from, and received into again, which is a twentieth of an echo cheaper than one of the
/// pool. More than that share the pool, in which a connection that waits holds nothing: so memory
/// stays bounded.
const OWN_BUFFERS: usize = 1024;
/// Bytes in one: as many as in one of the pool.
const OWN_BUFFER: usize = 8 << 10;

/// How long an accept that failed pauses before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// The completion key.
#[derive(Debug)]
pub(super) enum Key {
    Listener,
    Connection(Connection),
    /// A socket for datagrams.
    Socket(Arc<Counters>),
}

/// What is known about a connection.
#[derive(Debug)]
pub(super) struct Connection {
    received: AtomicU64,
    sent: AtomicU64,
    fate: AtomicU8,
    /// It has a buffer of its own.
    owns_buffer: bool,
    /// What is being sent lies in memory of its own, and not in a buffer of the pool.
    moved: AtomicBool,
    /// Bytes received and sent when the supervisor last looked.
    seen: AtomicU64,
    /// The supervisor has asked for the end.
    ending: AtomicBool,
    /// Requests and answers, if it is files that are served.
    exchange: Option<Box<Exchange>>,
    totals: Arc<Totals>,
}

/// How a connection ended. Nobody sets `Cut`: it is what those are that were not let finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Fate {
    Cut,
    Finished,
    Failed,
}

impl Connection {
    fn new(totals: Arc<Totals>, exchange: Option<Box<Exchange>>, owns_buffer: bool) -> Self {
        totals.accepted.fetch_add(1, Ordering::Relaxed);
        Self {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            fate: AtomicU8::new(Fate::Cut as u8),
            owns_buffer,
            moved: AtomicBool::new(owns_buffer),
            seen: AtomicU64::new(u64::MAX),
            ending: AtomicBool::new(false),
            exchange,
            totals,
        }
    }

    fn end(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Relaxed);
    }

    /// Whether something that was received has not been sent yet, or not answered.
    pub(super) fn owes(&self, stream: &Stream<Key>) -> bool {
        match &self.exchange {
            Some(exchange) => exchange.owes(),
            None => stream.pending().sends > 0,
        }
    }

    /// Whether it holds a buffer of the pool.
    pub(super) fn holds_buffer(&self, stream: &Stream<Key>) -> bool {
        self.owes(stream) && !self.moved.load(Ordering::Relaxed)
    }

    /// Everything that was received has been sent.
    pub(super) fn has_sent_all(&self) {
        self.sent.store(self.received.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether nothing has moved since this was last asked. For the supervisor alone.
    pub(super) fn quiet(&self) -> bool {
        let moved =
            self.received.load(Ordering::Relaxed).wrapping_add(self.sent.load(Ordering::Relaxed));
        self.seen.swap(moved, Ordering::Relaxed) == moved
    }

    /// Whether its peer has not asked for anything for so long. It is to be closed then, and has
    /// finished.
    pub(super) fn expires(&self, idle: Duration) -> bool {
        let expires = self.exchange.as_ref().is_some_and(|exchange| exchange.is_idle_for(idle));
        if expires {
            self.end(Fate::Finished);
        }
        expires
    }

    /// Says that the end will be asked for. False: it has been.
    pub(super) fn set_ending(&self) -> bool {
        !self.ending.swap(true, Ordering::Relaxed)
    }
}

/// Uses the CPU for so long. While the thread waits for a CPU, nothing is done: the work is the
/// same on a busy machine.
pub(super) fn work(time: Duration) {
    if time.is_zero() {
        return;
    }
    let end = system::thread_time() + time;
    while system::thread_time() < end {
        std::hint::spin_loop();
    }
}

/// Adds to a counter that one thread at a time writes.
fn add(counter: &AtomicU64, bytes: usize) {
    counter.store(counter.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
}

/// Counts the connection among those that have ended.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.owns_buffer {
            self.totals.own_buffers.fetch_sub(1, Ordering::Relaxed);
        }
        let mut ended = self.totals.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.received += *self.received.get_mut();
        ended.sent += *self.sent.get_mut();
        match *self.fate.get_mut() {
            fate if fate == Fate::Finished as u8 => ended.finished += 1,
            fate if fate == Fate::Failed as u8 => ended.failed += 1,
            _ => ended.cut += 1,
        }
    }
}

/// Sums over connections, touched when one begins or ends.
#[derive(Debug, Default)]
pub(super) struct Totals {
    accepted: AtomicU64,
    listeners: AtomicUsize,
    /// Connections that have a buffer of their own.
    own_buffers: AtomicUsize,
    draining: AtomicBool,
    requests: AtomicU64,
    ended: Mutex<Ended>,
}

/// Sums over the connections that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) finished: u64,
    pub(super) failed: u64,
    pub(super) cut: u64,
}

impl Totals {
    /// One more listener accepts.
    pub(super) fn listening(&self) {
        self.listeners.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on, an accept that ends has ended for good.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests for files so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self) -> Ended {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody accepts any more, and every connection has ended.
    pub(super) fn all_done(&self) -> bool {
        // In this order: a listener ends after the last connection it accepted was counted.
        if self.listeners.load(Ordering::Acquire) > 0 {
            return false;
        }
        let Ended { finished, failed, cut, .. } = self.ended();
        self.accepted() == finished + failed + cut
    }
}

/// Handles a packet of a connection on which files are served.
fn serve_file(files: &Files, op: Op<Key>, bytes: usize, result: Result<usize>) -> Result<()> {
    let stream = match &op {
        Op::Recv { stream, .. } | Op::Send { stream, .. } | Op::Transmit { stream, .. } => {
            stream.clone()
        }
        _ => return Ok(()),
    };
    let Key::Connection(connection) = stream.key() else { return Ok(()) };
    let Some(exchange) = &connection.exchange else { return Ok(()) };
    let then = if let Op::Recv { buf, .. } = op {
        add(&connection.received, bytes);
        files.received(&stream, exchange, buf, result)
    } else {
        add(&connection.sent, bytes);
        files.sent(&stream, exchange, result)
    };
    match then {
        Ok(Then::GoesOn) => {}
        Ok(Then::Ended) => connection.end(Fate::Finished),
        // Closed by us: its fate is known.
        Err(error) if error.is_closed() || error.is_cancelled() => return Err(error),
        Err(error) => {
            connection.end(Fate::Failed);
            return Err(error);
        }
    }
    Ok(())
}

/// Gives a buffer up for one that the pool will give.
fn shared(buf: Buf) -> Buf {
    drop(buf);
    Buf::pooled()
}

/// Handles the packets of all connections and sockets.
#[derive(Debug)]
pub(super) struct Server {
    service: Service,
    size: usize,
    /// Instead of the service.
    files: Option<Files>,
    totals: Arc<Totals>,
    /// How many connections may have a buffer of their own.
    own_buffers: usize,
}

impl Server {
    pub(super) fn new(
        service: Service,
        size: usize,
        files: Option<Files>,
        totals: Arc<Totals>,
        driver: Driver,
    ) -> Self {
        // On epoll, the pool's is the one that was used last, and still in the processor's cache.
        let own_buffers = if driver == Driver::Epoll { 0 } else { OWN_BUFFERS };
        Self { service, size, files, totals, own_buffers }
    }

    /// Handles a packet. An error has ended its connection.
    pub(super) fn handle(&self, packet: Packet<Key>) -> Result<()> {
        let Packet { op, result, bytes, more, .. } = packet;
        if let Some(files) = &self.files
            && matches!(op, Op::Recv { .. } | Op::Send { .. } | Op::Transmit { .. })
        {
            return serve_file(files, op, bytes, result);
        }
        let (stream, outcome) = match op {
            Op::Recv { stream, buf } => {
                let outcome = self.received(&stream, buf, bytes, result);
                (stream, outcome)
            }
            Op::Send { stream, buf } => {
                let outcome = self.sent(&stream, buf, bytes, result);
                (stream, outcome)
            }
            Op::Accept { listener, incoming, .. } => {
                return self.accepted(&listener, incoming, result.map(drop), more);
            }
            other => return datagram::handle(self.service, other, result),
        };
        if let (Err(error), Key::Connection(connection)) = (&outcome, stream.key())
            && !error.is_closed()
        {
            connection.end(Fate::Failed);
        }
        outcome
    }

    fn accepted(
        &self,
        listener: &Listener<Key>,
        incoming: Option<Incoming<Key>>,
        result: Result<()>,
        more: bool,
    ) -> Result<()> {
        let mut outcome = Ok(());
        if let Some(incoming) = incoming {
            let exchange = self.files.is_some().then(|| Box::new(Exchange::new()));
            let owns_buffer = self.lends_buffer();
            let connection = Connection::new(self.totals.clone(), exchange, owns_buffer);
            outcome = incoming.associate(Key::Connection(connection)).and_then(|stream| {
                let buf = match self.service {
                    _ if self.files.is_some() => return Ok(stream.recv(Buf::pooled())?),
                    Service::Echo | Service::Discard if owns_buffer => {
                        Buf::with_capacity(OWN_BUFFER)
                    }
                    Service::Echo | Service::Discard => Buf::pooled(),
                    Service::Block | Service::Work => Buf::with_capacity(self.size),
                };
                self.receive(&stream, buf)
            });
        }
        if !more {
            if self.totals.draining.load(Ordering::SeqCst) {
                self.totals.listeners.fetch_sub(1, Ordering::Release);
                return outcome;
            }
            if let Err(error) = result {
                log::warn!("an accept failed: {error}");
                thread::sleep(ACCEPT_PAUSE);
            }
            if let Err(error) = listener.accept() {
                // A drain began in between, and has closed the listener.
                self.totals.listeners.fetch_sub(1, Ordering::Release);
                log::debug!("accepting is over: {error}");
            }
        }
        outcome
    }

    /// Whether another connection may have a buffer of its own, which it has then.
    fn lends_buffer(&self) -> bool {
        if self.files.is_some() || !matches!(self.service, Service::Echo | Service::Discard) {
            return false;
        }
        let lent = &self.totals.own_buffers;
        let lends = lent.fetch_add(1, Ordering::Relaxed) < self.own_buffers;
        if !lends {
            lent.fetch_sub(1, Ordering::Relaxed);
        }
        lends
    }

    /// Starts the next receive. `buf` is the connection's own buffer, or stands for the pool's.
    fn receive(&self, stream: &Stream<Key>, buf: Buf) -> Result<()> {
        match self.service {
            Service::Echo | Service::Discard => stream.recv(buf)?,
            Service::Block | Service::Work => stream.recv_exact(buf, self.size)?,
        }
        Ok(())
    }

    fn received(
        &self,
        stream: &Stream<Key>,
        buf: Buf,
        bytes: usize,
        result: Result<usize>,
    ) -> Result<()> {
        let Key::Connection(connection) = stream.key() else { return Ok(()) };
        if self.service != Service::Discard {
            connection.has_sent_all();
        }
        add(&connection.received, bytes);
        match result {
            Ok(0) => {
                connection.end(Fate::Finished);
                return Ok(());
            }
            Ok(_) => {}
            // It was the send before it that the supervisor meant; see `sent`.
            Err(error) if error.is_cancelled() => return self.receive(stream, buf),
            Err(error) => return Err(error),
        }
        match self.service {
            Service::Echo => self.send(stream, buf)?,
            Service::Discard => {
                // What was the pool's is so again before the next receive asks for a buffer.
                let next = if connection.owns_buffer { buf } else { shared(buf) };
                self.receive(stream, next)?;
            }
            Service::Block | Service::Work if bytes < self.size => {
                // The peer, or the drain, has ended it in the middle of a message.
                if !connection.ending.load(Ordering::Relaxed) {
                    log::debug!("a connection ended {bytes} bytes into a message");
                    connection.end(Fate::Failed);
                }
            }
            Service::Block => {
                let milliseconds = buf[0];
                if milliseconds > 0 {
                    thread::sleep(Duration::from_millis(milliseconds.into()));
                }
                self.send(stream, buf)?;
            }
            Service::Work => {
                let head = buf.first_chunk().copied().unwrap_or_default();
                work(Duration::from_micros(u16::from_le_bytes(head).into()));
                self.send(stream, buf)?;
            }
        }
        Ok(())
    }

    /// Starts to send an answer, and to receive what comes next.
    fn send(&self, stream: &Stream<Key>, buf: Buf) -> Result<()> {
        match self.service {
            Service::Block | Service::Work => stream.exchange_exact(buf, self.size)?,
            _ => stream.exchange(buf)?,
        }
        Ok(())
    }

    /// A send has failed, or the one of a rest is over.
    fn sent(
        &self,
        stream: &Stream<Key>,
        buf: Buf,
        bytes: usize,
        result: Result<usize>,
    ) -> Result<()> {
        let Key::Connection(connection) = stream.key() else { return Ok(()) };
        add(&connection.sent, bytes);
        match result {
            // The rest of a connection that shares the pool.
            Ok(_) => {
                connection.moved.store(false, Ordering::Relaxed);
                self.receive(stream, shared(buf))
            }
            // The peer does not read, and others need the pool's buffers: the rest waits in
            // memory of its own. On a closed connection the send is refused.
            Err(error) if error.is_cancelled() && bytes < buf.len() => {
                let rest = buf[bytes..].to_vec();
                drop(buf);
                connection.moved.store(true, Ordering::Relaxed);
                Ok(stream.send(rest)?)
            }
            Err(error) => Err(error),
        }
    }
}
