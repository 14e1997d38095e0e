//! One thread of the load: a port of its own, and the connections it drives.
//!
//! It is built to be cheaper than a server: packets are taken in batches, a batch's sends go to
//! the kernel together, and the clock is read once per batch. A latency therefore includes what
//! the batch took that the message went out with.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use wharf::{Buf, Builder, Op, Packet, Port, Stream, Wait};

use super::{
    pattern::{Blocks, Content},
    peer::Peer,
    tally::Tally,
};
use crate::cli::Load;

/// How many connects may be in flight.
const CONNECTS_MAX: usize = 256;
/// How long a connect may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How many packets are taken at once.
const BATCH: usize = 64;
/// The longest wait: after it, it looks whether it has been told to stop.
const TICK: Duration = Duration::from_millis(50);
/// How many bytes the pool of a thread has at most.
const POOL_BYTES_MAX: usize = 64 << 20;
/// The largest piece that is sent at once.
const PIECE_MAX: usize = 64 << 10;
/// How many idle buffers for pieces are kept.
const SPARES_MAX: usize = 256;

static ZEROS: [u8; PIECE_MAX] = [0; PIECE_MAX];

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Told to stop, by a signal.
    pub(super) stop: std::sync::Arc<AtomicBool>,
    /// All have connected.
    pub(super) ready: Barrier,
    /// Connections that stand.
    pub(super) connected: AtomicU64,
    /// Threads that have ended.
    pub(super) ended: AtomicU64,
}

/// What one thread shows to the one that draws the progress.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Progress {
    pub(super) requests: AtomicU64,
}

pub(super) struct Generator<'a> {
    options: &'a Load,
    target: SocketAddr,
    shared: &'a Shared,
    progress: &'a Progress,
    port: Port<usize>,
    peers: Vec<Peer>,
    /// The peers by their ranks.
    ranked: Vec<usize>,
    alive: usize,
    /// Messages that are due and have not come back, on connections that stand.
    pending: u64,
    stopping: bool,
    epoch: Instant,
    depth: u64,
    /// Messages differ, so each piece is made.
    made: bool,
    spares: Vec<Vec<u8>>,
    scratch: Vec<u8>,
    tally: Tally,
}

/// When messages are due in an open loop.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    begin: u64,
    /// Messages per second of all threads, times this thread's connections.
    rate: u128,
    /// Connections of all threads.
    connections: u128,
    /// This thread's connections.
    own: u64,
}

impl Schedule {
    /// When the thread's message of that number is due.
    fn at(&self, number: u64) -> u64 {
        let after = u128::from(number) * 1_000_000_000 * self.connections / self.rate;
        self.begin.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }

    /// When a connection's message of that number is due.
    fn of(&self, peer: &Peer, message: u64) -> u64 {
        self.at(message * self.own + peer.rank)
    }
}

impl<'a> Generator<'a> {
    /// A generator for the connections with these numbers.
    pub(super) fn new(
        options: &'a Load,
        target: SocketAddr,
        numbers: std::ops::Range<usize>,
        shared: &'a Shared,
        progress: &'a Progress,
    ) -> wharf::Result<Self> {
        let piece = options.size.next_power_of_two().clamp(2 << 10, PIECE_MAX);
        // A buffer for every connection, so that echoes that are there are never kept waiting.
        let pool = numbers.len().clamp(4 * BATCH, POOL_BYTES_MAX / piece);
        let port =
            Builder::new().driver(options.driver).concurrency(1).pool(pool, piece).build()?;
        let peers = numbers.map(|number| Peer::new(content(options, number as u64))).collect();
        Ok(Self {
            options,
            target,
            shared,
            progress,
            port,
            peers,
            ranked: Vec::new(),
            alive: 0,
            pending: 0,
            stopping: false,
            epoch: Instant::now(),
            depth: options.depth as u64,
            made: options.verify || options.block_every.is_some(),
            spares: Vec::new(),
            scratch: Vec::new(),
            tally: Tally::new(),
        })
    }

    /// Connects, drives the load, and says what it has measured.
    pub(super) fn run(mut self) -> Tally {
        let connected = self.connect();
        if let Err(error) = connected {
            self.tally.fail(1, &error.to_string());
        }
        self.rank();
        self.shared.connected.fetch_add(self.alive as u64, Ordering::SeqCst);
        self.shared.ready.wait();
        if self.alive > 0
            && let Err(error) = self.drive()
        {
            self.tally.fail(1, &error.to_string());
        }
        log::debug!("{:?}", self.port.stats());
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
        self.tally
    }

    /// Numbers the connections that stand.
    fn rank(&mut self) {
        for (index, peer) in self.peers.iter_mut().enumerate() {
            if peer.stream.is_some() {
                peer.rank = self.ranked.len() as u64;
                self.ranked.push(index);
            }
        }
        self.alive = self.ranked.len();
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    // ---- Connecting ---------------------------------------------------------------------

    fn connect(&mut self) -> wharf::Result<()> {
        let mut packets = Vec::with_capacity(BATCH);
        let (mut next, mut open) = (0, 0);
        while !self.shared.stop.load(Ordering::Relaxed) {
            // Where the first ones fail, so will the others.
            let hopeless = self.tally.connected == 0 && self.tally.errors >= CONNECTS_MAX as u64;
            while next < self.peers.len() && open < CONNECTS_MAX && !hopeless {
                match self.start_connect(next) {
                    Ok(()) => open += 1,
                    Err(error) => self.tally.fail(1, &format!("connect: {error}")),
                }
                next += 1;
            }
            if open == 0 {
                break;
            }
            match self.port.wait_many(&mut packets, BATCH, Some(TICK)) {
                Wait::Packet(_) | Wait::TimedOut => {}
                Wait::Closed => break,
                Wait::Broken(error) => return Err(error),
            }
            for packet in packets.drain(..) {
                let Op::Connect { stream } = packet.op else { continue };
                open -= 1;
                match packet.result.and_then(|_| stream.recv_each()) {
                    Ok(()) => {
                        let peer = *stream.key();
                        self.peers[peer].stream = Some(stream);
                        self.tally.connected += 1;
                    }
                    Err(error) => self.tally.fail(1, &format!("connect: {error}")),
                }
            }
        }
        Ok(())
    }

    fn start_connect(&mut self, peer: usize) -> wharf::Result<()> {
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
        socket.set_tcp_nodelay(true)?;
        let stream = self.port.associate(socket, peer)?;
        stream.start().deadline(CONNECT_PATIENCE).connect(self.target)?;
        Ok(())
    }

    // ---- Driving ------------------------------------------------------------------------

    fn drive(&mut self) -> wharf::Result<()> {
        let begin = self.now();
        let span = u64::try_from(self.options.seconds.as_nanos()).unwrap_or(u64::MAX);
        let mut end = begin.saturating_add(span);
        let mut next = 0;
        let schedule = self.options.rate.map(|rate| Schedule {
            begin,
            rate: u128::from(rate) * self.alive as u128,
            connections: self.shared.connected.load(Ordering::SeqCst).max(1).into(),
            own: self.alive as u64,
        });
        if schedule.is_none() {
            self.begin_closed_loop(begin);
        }
        let mut packets = Vec::with_capacity(BATCH);
        let patience = u64::try_from(self.options.patience.as_nanos()).unwrap_or(u64::MAX);
        // When the last message was sent at the latest, or the last echo came.
        let mut done = begin;
        loop {
            let now = self.now();
            if !self.stopping {
                let cut_short = self.shared.stop.load(Ordering::Relaxed);
                if let Some(schedule) = &schedule {
                    self.make_due(schedule, &mut next, now.min(end));
                }
                if now >= end || cut_short {
                    self.stop();
                    done = now;
                    end = now.saturating_add(patience);
                }
            }
            if self.alive == 0 || self.stopping && (self.pending == 0 || now >= end) {
                break;
            }
            let mut wake = end;
            if let Some(schedule) = schedule.as_ref().filter(|_| !self.stopping) {
                wake = wake.min(schedule.at(next));
            }
            let timeout = TICK.min(Duration::from_nanos(wake.saturating_sub(now)));
            match self.port.wait_many(&mut packets, BATCH, Some(timeout)) {
                Wait::Packet(_) | Wait::TimedOut => {}
                Wait::Closed => break,
                Wait::Broken(error) => return Err(error),
            }
            let now = self.now();
            let before = (self.tally.requests, self.tally.bytes);
            for packet in packets.drain(..) {
                self.handle(packet, now, schedule.as_ref());
            }
            if self.stopping && self.tally.bytes > before.1 {
                end = now.saturating_add(patience);
            }
            if self.tally.requests > before.0 {
                done = now;
                self.progress.requests.store(self.tally.requests, Ordering::Relaxed);
            }
        }
        let missing = self.pending;
        self.tally.fail(missing, "no echo, and nothing else for --patience seconds, after the end");
        self.tally.span = Duration::from_nanos(done - begin);
        Ok(())
    }

    fn begin_closed_loop(&mut self, now: u64) {
        for rank in 0..self.ranked.len() {
            let index = self.ranked[rank];
            let peer = &mut self.peers[index];
            peer.due = self.depth;
            peer.since.extend(std::iter::repeat_n(now, self.options.depth));
            self.pending += self.depth;
            self.pump(index);
        }
    }

    /// Makes all messages due whose time has come.
    fn make_due(&mut self, schedule: &Schedule, next: &mut u64, now: u64) {
        while schedule.at(*next) <= now {
            // The remainder is less than the number of connections.
            let rank = usize::try_from(*next % schedule.own).unwrap_or(0);
            let index = self.ranked[rank];
            *next += 1;
            if self.peers[index].stream.is_some() {
                self.peers[index].due += 1;
                self.pending += 1;
                self.pump(index);
            }
        }
    }

    /// Sends no new message from now on.
    fn stop(&mut self) {
        self.stopping = true;
        for peer in self.peers.iter_mut().filter(|peer| peer.stream.is_some()) {
            let withdrawn = peer.withdraw();
            self.pending -= withdrawn;
            if self.options.rate.is_some() {
                self.tally.unsent += withdrawn;
            }
        }
    }

    /// Sends what may be sent on a connection, a piece at a time.
    fn pump(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let Some(stream) = peer.stream.as_ref().filter(|_| !peer.sending) else { return };
        let sendable = peer.sendable(self.depth);
        if sendable == 0 {
            return;
        }
        let length = usize::try_from(sendable).unwrap_or(PIECE_MAX).min(PIECE_MAX);
        let piece = if self.made {
            let mut piece = self.spares.pop().unwrap_or_default();
            piece.resize(length, 0);
            peer.content.fill(peer.sent, &mut piece);
            Buf::from(piece)
        } else {
            Buf::from(&ZEROS[..length])
        };
        match stream.send(piece) {
            Ok(()) => {
                peer.sent += length as u64;
                peer.sending = true;
            }
            Err(refused) => self.lose(index, &refused.error.to_string()),
        }
    }

    fn handle(&mut self, packet: Packet<usize>, now: u64, schedule: Option<&Schedule>) {
        match packet.op {
            Op::Send { stream, buf } => {
                let Some(index) = self.index(&stream) else { return };
                if self.made && self.spares.len() < SPARES_MAX {
                    self.spares.push(buf.into_vec());
                }
                self.peers[index].sending = false;
                match packet.result {
                    Ok(_) => self.pump(index),
                    Err(error) => self.lose(index, &format!("send: {error}")),
                }
            }
            Op::Recv { stream, buf } => {
                let Some(index) = self.index(&stream) else { return };
                if !buf.is_empty() {
                    self.echoed(index, &buf, now, schedule);
                    self.pump(index);
                }
                match packet.result {
                    Ok(0) => self.lose(index, "the server closed the connection"),
                    Ok(_) => {}
                    Err(error) => self.lose(index, &format!("receive: {error}")),
                }
            }
            _ => {}
        }
    }

    /// Which connection it is, unless it is lost.
    fn index(&self, stream: &Stream<usize>) -> Option<usize> {
        Some(*stream.key()).filter(|index| self.peers[*index].stream.is_some())
    }

    fn echoed(&mut self, index: usize, part: &[u8], now: u64, schedule: Option<&Schedule>) {
        let peer = &mut self.peers[index];
        self.tally.bytes += part.len() as u64;
        if self.options.verify {
            let position = peer.received;
            self.tally.mismatches += peer.content.differences(position, part, &mut self.scratch);
        }
        let before = peer.completed();
        peer.received += part.len() as u64;
        if peer.received > peer.sent {
            peer.received = peer.sent;
            self.lose(index, "the server sent more than it got");
            return;
        }
        let after = peer.completed();
        self.pending -= after - before;
        for message in before..after {
            let since = match schedule {
                Some(schedule) => schedule.of(peer, message),
                None => peer.since.pop_front().unwrap_or(now),
            };
            self.tally.echo(now.saturating_sub(since), peer.content.is_block(message));
        }
        if schedule.is_none() && !self.stopping {
            peer.due += after - before;
            self.pending += after - before;
            peer.since.extend((before..after).map(|_| now));
        }
    }

    /// Gives a connection up. Every message that has not come back is an error; while messages
    /// are being sent, so is the loss of an idle connection.
    fn lose(&mut self, index: usize, reason: &str) {
        let peer = &mut self.peers[index];
        let Some(stream) = peer.stream.take() else { return };
        stream.close();
        self.alive -= 1;
        let pending = mem::take(&mut peer.due).saturating_sub(peer.completed());
        self.pending -= pending;
        self.tally.fail(pending.max(u64::from(!self.stopping)), reason);
    }
}

fn content(options: &Load, number: u64) -> Content {
    let blocks = options.block_every.zip(options.block_ms).map(|(every, ms)| Blocks {
        every,
        ms,
        // Spread out, so that not all connections block at once.
        first: (every - 1 + number * 7919) % every,
    });
    let seed = options.verify.then(|| number.wrapping_mul(0xd134_2543_de82_ef95));
    Content { size: options.size as u64, seed, blocks }
}
