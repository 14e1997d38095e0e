//! Sends datagrams, and takes back what comes.
//!
//! One thread with a port of its own. Packets are taken in batches, and a batch's datagrams go to
//! the system together: with GSO as one send.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use wharf::{Builder, Envelope, ErrorKind, Op, Packet, Port, Result, UdpSocket, Wait};

use super::window::{Seen, Window};
use crate::{cli::LoadUdp, load::tally::latencies};

/// Sends in flight at most.
const SENDS_MAX: usize = 16;
/// Datagrams of one send at most.
const SEGMENTS_MAX: usize = 64;
/// Bytes of one send at most.
const BYTES_MAX: usize = 65_507;
/// How long it waits for what is still on the way when the time is over.
const PATIENCE: Duration = Duration::from_millis(500);
/// After how long without an answer, in a closed loop, those on the way are taken for lost.
const LOST_AFTER: Duration = Duration::from_millis(200);
/// How many packets are taken at once.
const BATCH: usize = 64;
/// The longest wait: after it, it looks whether it has been told to stop.
const TICK: Duration = Duration::from_millis(50);
/// What the system is asked for, so that a burst of answers does not get lost here.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What was counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) duplicates: u64,
    /// Came back after one with a greater number.
    pub(super) reordered: u64,
    /// Came back too late to be told from duplicates, or were never sent.
    pub(super) unknown: u64,
    /// Were due, and could not be sent in time.
    pub(super) unsent: u64,
    pub(super) errors: u64,
    /// What the first error was.
    pub(super) reason: Option<String>,
    /// ICMP messages that nobody listens there, and the like.
    pub(super) refused: u64,
    /// From the first send to the end of the time.
    pub(super) span: Duration,
    /// Answers that the system threw away before we took them.
    pub(super) dropped: u64,
    pub(super) latencies: Histogram<u64>,
}

pub(super) struct Generator<'a> {
    options: &'a LoadUdp,
    stop: &'a AtomicBool,
    progress: &'a AtomicU64,
    port: Port<()>,
    socket: UdpSocket<()>,
    envelope: Envelope,
    /// Datagrams in one send at most.
    burst: usize,
    sending: usize,
    spares: Vec<Vec<u8>>,
    epoch: Instant,
    window: Window,
    highest: u64,
    /// Taken for lost, in a closed loop.
    written_off: u64,
    last_answer: u64,
    tally: Tally,
}

impl<'a> Generator<'a> {
    pub(super) fn new(
        options: &'a LoadUdp,
        target: SocketAddr,
        stop: &'a AtomicBool,
        progress: &'a AtomicU64,
    ) -> Result<Self> {
        let port = Builder::new().concurrency(1).build()?;
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket: UdpSocket<()> = port.bind_udp(any, ())?;
        socket.set_broadcast(target.is_ipv4())?;
        socket.set_recv_buffer(RECEIVE_BUFFER)?;
        // Where the system can; otherwise they come one by one.
        let _ = socket.set_coalescing(true);
        socket.recv_each()?;
        if let Err(error) = socket.recv_errors()
            && error.kind() != ErrorKind::Unsupported
        {
            return Err(error);
        }
        let burst = if options.gso { SEGMENTS_MAX.min(BYTES_MAX / options.size).max(1) } else { 1 };
        let segment = if burst > 1 { u16::try_from(options.size).unwrap_or(0) } else { 0 };
        Ok(Self {
            options,
            stop,
            progress,
            port,
            socket,
            envelope: Envelope::to(target).segments(segment),
            burst,
            sending: 0,
            spares: Vec::new(),
            epoch: Instant::now(),
            window: Window::new(),
            highest: 0,
            written_off: 0,
            last_answer: 0,
            tally: Tally {
                sent: 0,
                received: 0,
                duplicates: 0,
                reordered: 0,
                unknown: 0,
                unsent: 0,
                errors: 0,
                reason: None,
                refused: 0,
                span: Duration::ZERO,
                dropped: 0,
                latencies: latencies(),
            },
        })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    pub(super) fn run(mut self) -> Result<Tally> {
        let begin = self.now();
        let end = begin.saturating_add(nanoseconds(self.options.seconds));
        self.last_answer = begin;
        let mut packets = Vec::with_capacity(BATCH);
        let mut ended = None;
        loop {
            let now = self.now();
            match ended {
                None if now >= end || self.stop.load(Ordering::Relaxed) => {
                    ended = Some(now);
                    self.tally.span = Duration::from_nanos(now.min(end) - begin);
                    if let Some(rate) = self.options.rate {
                        let due = due(now.min(end) - begin, rate);
                        self.tally.unsent = due.saturating_sub(self.window.sent());
                    }
                }
                None => self.pump(begin, now),
                Some(at) => {
                    let answered = self.options.one_way || self.outstanding() == 0;
                    let patience = now < at.saturating_add(nanoseconds(PATIENCE));
                    if !patience || (self.sending == 0 && answered) {
                        break;
                    }
                }
            }
            let timeout = self.until_next(begin, now, end, ended.is_some());
            match self.port.wait_many(&mut packets, BATCH, Some(timeout)) {
                Wait::Packet(_) | Wait::TimedOut => {}
                Wait::Closed => break,
                Wait::Broken(error) => return Err(error),
            }
            let now = self.now();
            for packet in packets.drain(..) {
                self.handle(packet, now)?;
            }
        }
        self.tally.dropped = self.socket.dropped().unwrap_or(0).into();
        Ok(self.tally)
    }

    /// How long to wait for packets at most.
    fn until_next(&self, begin: u64, now: u64, end: u64, ended: bool) -> Duration {
        let mut wake = now.saturating_add(nanoseconds(TICK));
        if !ended {
            wake = wake.min(end);
            if let Some(rate) = self.options.rate
                && self.sending < SENDS_MAX
            {
                wake = wake.min(begin.saturating_add(due_at(self.window.sent(), rate)));
            }
        }
        Duration::from_nanos(wake.saturating_sub(now))
    }

    /// Those that are on the way, as far as one can know.
    fn outstanding(&self) -> u64 {
        self.window.sent().saturating_sub(self.tally.received + self.written_off)
    }

    /// Sends what may be sent now.
    fn pump(&mut self, begin: u64, now: u64) {
        while self.sending < SENDS_MAX {
            let sent = self.window.sent();
            let may = match self.options.rate {
                Some(rate) => due(now - begin, rate).saturating_sub(sent),
                None if self.options.one_way => self.burst as u64,
                None => {
                    if now.saturating_sub(self.last_answer) > nanoseconds(LOST_AFTER) {
                        self.written_off += self.outstanding();
                        self.last_answer = now;
                    }
                    (self.options.depth as u64).saturating_sub(self.outstanding())
                }
            };
            let count = usize::try_from(may).unwrap_or(usize::MAX).min(self.burst);
            if count == 0 {
                break;
            }
            self.send(count, begin, now);
        }
        self.progress.store(self.window.sent(), Ordering::Relaxed);
    }

    fn send(&mut self, count: usize, begin: u64, now: u64) {
        let size = self.options.size;
        let mut buffer = self.spares.pop().unwrap_or_default();
        buffer.resize(count * size, 0);
        for datagram in buffer.chunks_exact_mut(size) {
            let number = self.window.number();
            let since = match self.options.rate {
                Some(rate) => begin.saturating_add(due_at(number, rate)),
                None => now,
            };
            datagram[..8].copy_from_slice(&number.to_le_bytes());
            datagram[8..16].copy_from_slice(&since.to_le_bytes());
        }
        match self.socket.send_to(buffer, self.envelope) {
            Ok(()) => self.sending += 1,
            Err(refused) => self.fail(refused.error),
        }
    }

    fn fail(&mut self, error: wharf::Error) {
        self.tally.errors += 1;
        self.tally.reason.get_or_insert_with(|| error.to_string());
    }

    fn handle(&mut self, packet: Packet<()>, now: u64) -> Result<()> {
        let Packet { op, result, bytes, .. } = packet;
        match op {
            Op::SendTo { buf, .. } => {
                self.sending -= 1;
                self.tally.sent += (bytes / self.options.size) as u64;
                if let Err(error) = result {
                    self.fail(error);
                }
                self.spares.push(buf.into_vec());
            }
            Op::RecvFrom { buf, received: Some(received), .. } => {
                for datagram in received.datagrams(&buf) {
                    self.came(datagram, now);
                }
            }
            Op::RecvFrom { .. } => {
                result?;
            }
            Op::Icmp { error: Some(error), .. } => {
                self.tally.refused += 1;
                self.tally.reason.get_or_insert_with(|| error.error.to_string());
            }
            _ => {}
        }
        Ok(())
    }

    fn came(&mut self, datagram: &[u8], now: u64) {
        let field = |at: usize| datagram.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
        let (Some(number), Some(since), true) =
            (field(0), field(8), datagram.len() == self.options.size)
        else {
            self.tally.unknown += 1;
            return;
        };
        match self.window.note(number) {
            Seen::Again => self.tally.duplicates += 1,
            Seen::Unknown => self.tally.unknown += 1,
            Seen::First => {
                self.tally.received += 1;
                self.last_answer = now;
                if number < self.highest {
                    self.tally.reordered += 1;
                }
                self.highest = self.highest.max(number);
                self.tally.latencies.saturating_record(now.saturating_sub(since).max(1));
            }
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How many datagrams are due after so many nanoseconds: the first one at once.
fn due(after: u64, rate: u64) -> u64 {
    let due = u128::from(after) * u128::from(rate) / 1_000_000_000 + 1;
    u64::try_from(due).unwrap_or(u64::MAX)
}

/// After how many nanoseconds the datagram of this number is due.
fn due_at(number: u64, rate: u64) -> u64 {
    let at = (u128::from(number) * 1_000_000_000).div_ceil(u128::from(rate));
    u64::try_from(at).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_due_at_its_time() {
        for rate in [1, 3, 7_777, 1_000_000, 1_000_000_000] {
            for number in [0, 1, 2, 1000, 123_457] {
                let at = due_at(number, rate);
                assert!(due(at, rate) > number, "{number} at {rate}");
                assert!(at == 0 || due(at - 1, rate) <= number, "{number} at {rate}");
            }
        }
    }
}
