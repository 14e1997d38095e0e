//! Datagrams: how their sockets are made, what is done with what comes, and what is counted.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use wharf::{Buf, Envelope, Interface, Op, OpId, Port, Received, Result, UdpSocket};

use super::{
    ports,
    service::{Key, work},
};
use crate::{
    cli::{
        Serve, Service,
        datagrams::{Group, Kind},
    },
    output::{self, grouped},
};

/// How long a receive that failed pauses before the next.
const RECEIVE_PAUSE: Duration = Duration::from_millis(10);
/// Among how many counters the workers are dealt out.
const SHARDS: usize = 16;

/// A socket, as long as it is served.
#[derive(Debug)]
pub(super) struct Endpoint {
    kind: Kind,
    socket: UdpSocket<Key>,
    counters: Arc<Counters>,
    receive: OpId,
}

/// What is known of a socket, and counted by all workers that serve it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    shards: [Shard; SHARDS],
    /// No receive is started any more.
    over: AtomicBool,
}

/// What some of the workers have counted: on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    packets: AtomicU64,
    datagrams: AtomicU64,
    bytes: AtomicU64,
    truncated: AtomicU64,
    answering: AtomicU64,
    answered: AtomicU64,
    unanswered: AtomicU64,
}

/// What became of a socket's datagrams, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    kind: Kind,
    address: SocketAddr,
    /// Receives that brought something: with --coalesce, several datagrams each.
    packets: u64,
    datagrams: u64,
    bytes: u64,
    truncated: u64,
    /// Sends of answers that the system took, of as many datagrams as had come together.
    answered: u64,
    unanswered: u64,
    /// Datagrams that the system threw away, for want of room or because they were damaged.
    dropped: Option<u32>,
}

impl Report {
    /// In a line.
    pub(super) fn line(&self) -> String {
        let mut text = format!(
            "{} {}: {}, {}",
            self.kind.name(),
            self.address,
            output::count(self.datagrams, "datagram"),
            output::bytes(self.bytes)
        );
        for (number, what) in [
            (self.answered, "answered"),
            (self.unanswered, "not answered"),
            (self.truncated, "truncated"),
            (self.dropped.unwrap_or(0).into(), "lost in the system's buffer"),
        ] {
            if number > 0 {
                text += &format!(", {} {what}", grouped(number));
            }
        }
        text
    }
}

impl Counters {
    fn shard(&self) -> &Shard {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        }
        &self.shards[OWN.with(|own| *own)]
    }

    fn sum(&self, counter: fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).sum()
    }

    fn came(&self, received: &Received, buf: &[u8]) {
        let shard = self.shard();
        let datagrams = received.datagrams(buf).len() as u64;
        shard.packets.fetch_add(1, Ordering::Relaxed);
        shard.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        shard.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if received.is_truncated(buf.len()) {
            shard.truncated.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Endpoint {
    fn new(
        kind: Kind,
        options: &Serve,
        make: impl FnOnce(Key) -> anyhow::Result<UdpSocket<Key>>,
    ) -> anyhow::Result<Self> {
        let counters = Arc::new(Counters::default());
        let socket = make(Key::Socket(counters.clone()))?;
        if let Some(bytes) = options.datagrams.receive_buffer {
            let given = socket.set_recv_buffer(bytes)?;
            if given < bytes {
                log::warn!("the system gives a buffer of {given} bytes (net.core.rmem_max)");
            }
        }
        if options.service != Service::Discard {
            // To answer from where the question went.
            socket.set_packet_info(true)?;
        }
        if options.datagrams.coalesce {
            socket.set_coalescing(true).context("--coalesce")?;
        }
        let receive = socket.start().recv_each()?;
        Ok(Self { kind, socket, counters, receive })
    }

    /// Makes all that are asked for.
    pub(super) fn all(options: &Serve, groups: &[ports::Group]) -> anyhow::Result<Vec<Self>> {
        let asked = &options.datagrams;
        let mut all = Vec::new();
        for (kind, addresses) in [(Kind::Udp, &asked.udp), (Kind::Broadcast, &asked.broadcast)] {
            let Some(port) = ports::of(groups, kind) else { continue };
            for address in addresses {
                all.push(Self::bind(kind, address, port, options)?);
            }
        }
        if let Some(port) = ports::of(groups, Kind::Multicast) {
            for group in &asked.multicast {
                all.push(Self::join(group, port, options)?);
            }
        }
        Ok(all)
    }

    /// Of which kind it is, and where.
    pub(super) fn place(&self) -> anyhow::Result<String> {
        Ok(format!("{} {}", self.kind.name(), self.socket.local_addr()?))
    }

    /// One socket for plain datagrams, or for broadcasts.
    fn bind(kind: Kind, address: &str, port: &Port<Key>, options: &Serve) -> anyhow::Result<Self> {
        let found: Vec<_> =
            address.to_socket_addrs().with_context(|| format!("cannot find {address}"))?.collect();
        let make = |key| match kind {
            Kind::Broadcast => bind_broadcast(port, &found, key),
            _ => Ok(port.bind_udp(&*found, key)?),
        };
        Self::new(kind, options, make)
            .with_context(|| format!("cannot receive {} on {address}", kind.name()))
    }

    /// One that has joined a group.
    fn join(group: &Group, port: &Port<Key>, options: &Serve) -> anyhow::Result<Self> {
        let interface = group.interface.as_deref().map_or(Ok(Interface::ANY), |name| {
            name.parse().map(Interface::from_index).or_else(|_| Interface::named(name))
        });
        let make = |key| Ok(port.bind_multicast(group.address, interface?, key)?);
        Self::new(Kind::Multicast, options, make)
            .with_context(|| format!("cannot join {}", group.address))
    }

    /// Receives no more.
    pub(super) fn stop(&self) {
        self.counters.over.store(true, Ordering::SeqCst);
        self.socket.cancel(self.receive);
    }

    /// Whether every answer that was begun has been sent.
    pub(super) fn is_quiet(&self) -> bool {
        // In this order: what is answered has been begun.
        let done = self.counters.sum(|shard| &shard.answered)
            + self.counters.sum(|shard| &shard.unanswered);
        self.counters.sum(|shard| &shard.answering) <= done
    }

    pub(super) fn report(&self) -> anyhow::Result<Report> {
        let sum = |counter| self.counters.sum(counter);
        Ok(Report {
            kind: self.kind,
            address: self.socket.local_addr()?,
            packets: sum(|shard| &shard.packets),
            datagrams: sum(|shard| &shard.datagrams),
            bytes: sum(|shard| &shard.bytes),
            truncated: sum(|shard| &shard.truncated),
            answered: sum(|shard| &shard.answered),
            unanswered: sum(|shard| &shard.unanswered),
            dropped: self.socket.dropped().ok(),
        })
    }
}

/// Several programs may receive one broadcast.
fn bind_broadcast(
    port: &Port<Key>,
    addresses: &[SocketAddr],
    key: Key,
) -> anyhow::Result<UdpSocket<Key>> {
    let address = addresses.iter().find(|address| address.is_ipv4());
    let address = address.context("only IPv4 has broadcasts: join a group (--multicast)")?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&(*address).into()).map_err(wharf::Error::from)?;
    let socket = port.associate_udp(socket, key)?;
    ensure!(!address.ip().is_multicast(), "this is a group: --multicast joins it");
    Ok(socket)
}

/// Handles an operation on a socket for datagrams.
pub(super) fn handle(service: Service, op: Op<Key>, result: Result<usize>) -> Result<()> {
    match op {
        Op::RecvFrom { socket, buf, received } => {
            self::received(service, &socket, buf, received, result)?;
        }
        Op::SendTo { socket, .. } => sent(&socket, result),
        _ => {}
    }
    Ok(())
}

/// Handles what a receive has brought. Without anything it has ended.
fn received(
    service: Service,
    socket: &UdpSocket<Key>,
    buf: Buf,
    received: Option<Received>,
    result: Result<usize>,
) -> Result<()> {
    let Key::Socket(counters) = socket.key() else { return Ok(()) };
    let Some(received) = received else { return go_on(socket, counters, result) };
    counters.came(&received, &buf);
    match service {
        Service::Discard => return Ok(()),
        Service::Echo => {}
        Service::Block => {
            let milliseconds = buf.first().copied().unwrap_or(0);
            if milliseconds > 0 {
                thread::sleep(Duration::from_millis(milliseconds.into()));
            }
        }
        Service::Work => {
            let head = buf.first_chunk().copied().unwrap_or_default();
            work(Duration::from_micros(u16::from_le_bytes(head).into()));
        }
    }
    // As many datagrams as came.
    let segment = match received.segment_size() {
        size if size < buf.len() => u16::try_from(size).unwrap_or(0),
        _ => 0,
    };
    let shard = counters.shard();
    shard.answering.fetch_add(1, Ordering::Relaxed);
    if let Err(refused) = socket.send_to(buf, Envelope::reply(&received).segments(segment)) {
        // More answers wait already than may: this one is lost, as datagrams may be.
        shard.unanswered.fetch_add(1, Ordering::Relaxed);
        log::debug!("an answer is not sent: {}", refused.error);
    }
    Ok(())
}

/// A receive has failed: the next one may not.
fn go_on(socket: &UdpSocket<Key>, counters: &Counters, result: Result<usize>) -> Result<()> {
    let Err(error) = result else { return Ok(()) };
    if error.is_cancelled() || error.is_closed() || counters.over.load(Ordering::SeqCst) {
        return Ok(());
    }
    log::warn!("a receive failed: {error}");
    thread::sleep(RECEIVE_PAUSE);
    socket.recv_each()
}

/// An answer has been sent, or could not be.
fn sent(socket: &UdpSocket<Key>, result: Result<usize>) {
    let Key::Socket(counters) = socket.key() else { return };
    let shard = counters.shard();
    match result {
        Ok(_) => shard.answered.fetch_add(1, Ordering::Relaxed),
        Err(error) => {
            log::debug!("an answer is not sent: {error}");
            shard.unanswered.fetch_add(1, Ordering::Relaxed)
        }
    };
}
