//! `load`: the load generator. One thread with one io_uring, built to be cheaper than any server:
//! all the sends of a turn, and the wait for the echoes, are one system call.
//!
//! It is a closed loop: every connection has one message under way, and sends the next when the
//! echo of the last one is complete. Every echo is compared with what was sent.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bench_bufring::{Completion, Ring};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Failure;
use crate::measure::{
    busiest_share, cpu_ns, machine_cpu_ns, settled_resident_bytes, thread_cpu_ns,
};

/// How many connections have the same source address. Well below the number of ports that the
/// system gives out by itself.
const CONNECTIONS_PER_SOURCE: usize = 8000;

/// The largest piece that is received at once, in bytes.
const PIECE_MAX: usize = 16 * 1024;

/// A message up to this size is compared byte by byte, and of a piece of a larger one the two ends.
const COMPARE_MAX: usize = 4096;

/// The longest latency that is told apart from others, in nanoseconds.
const LATENCY_MAX: u64 = 60_000_000_000;

/// What the generator is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The server.
    pub target: SocketAddr,
    /// The server's process, whose CPU time or memory is measured.
    pub server: u32,
    /// How many connections.
    pub connections: usize,
    /// The size of a message, in bytes.
    pub size: usize,
    /// What to do on them.
    pub kind: Kind,
}

/// What to do on the connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Exchange messages for a while.
    Exchange {
        /// For how long before anything is counted, in milliseconds.
        warm_up_ms: u64,
        /// For how long while everything is counted, in milliseconds.
        window_ms: u64,
        /// For how many milliseconds some messages make the handler sleep.
        block: Option<Block>,
    },
    /// Exchange one message on each, then leave them alone.
    Idle,
}

/// Messages that make the handler sleep.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Block {
    /// One message in how many.
    pub one_in: u64,
    /// For how long, in milliseconds.
    pub ms: u8,
}

/// What was counted while messages were exchanged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchanged {
    /// Complete and correct echoes.
    pub requests: u64,
    /// Those of them for which the handler slept.
    pub blocking: u64,
    /// Echoes that were not what was sent.
    pub mismatches: u64,
    /// How long the window really was.
    pub seconds: f64,
    /// CPU time of the server within it.
    pub server_cpu_ns: u64,
    /// CPU time of the generator within it.
    pub generator_cpu_ns: u64,
    /// CPU time of everybody else on this machine within it, and what its host took away; to 10 ms.
    pub others_cpu_ns: Option<u64>,
    /// The part of the server's CPU time that its busiest thread used.
    pub busiest_share: Option<f64>,
    /// The latencies of those requests for which the handler did not sleep, in microseconds.
    pub latency_us: Latency,
}

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Half are shorter.
    pub p50: f64,
    /// One in a hundred is longer.
    pub p99: f64,
    /// One in a thousand is longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// What idle connections cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Idled {
    /// The server's resident memory before there were any, in bytes.
    pub before: u64,
    /// And with all of them open.
    pub after: u64,
}

/// `load JOB`, with the job as JSON; the answer too, in one line.
pub fn run(args: &[OsString]) -> Result<(), Failure> {
    let [job] = args else {
        return Err(Failure("load: started by the harness only".to_owned()));
    };
    let job: Job = serde_json::from_str(&job.to_string_lossy())?;
    let answer = match job.kind {
        Kind::Exchange { warm_up_ms, window_ms, block } => {
            let warm_up = Duration::from_millis(warm_up_ms);
            let window = Duration::from_millis(window_ms);
            serde_json::to_string(&Generator::new(&job, block)?.exchange(warm_up, window)?)?
        }
        Kind::Idle => serde_json::to_string(&idle(&job)?)?,
    };
    writeln!(io::stdout(), "{answer}")?;
    Ok(())
}

/// Connects from one of several source addresses, as a single one does not have enough ports.
///
/// Closing is abrupt (it resets the connection): ten thousand ports would otherwise be out of use
/// for a minute after every window.
fn connect(target: SocketAddr, number: usize) -> Result<TcpStream, Failure> {
    let failed = |error: io::Error| Failure(format!("connection {number} to {target}: {error}"));
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed)?;
    if target.ip() == Ipv4Addr::LOCALHOST {
        let source = u8::try_from(1 + number / CONNECTIONS_PER_SOURCE)?;
        let source = SocketAddr::from(([127, 0, 0, source], 0));
        socket.bind(&source.into()).map_err(failed)?;
    }
    socket.connect(&target.into()).map_err(failed)?;
    socket.set_tcp_nodelay(true).map_err(failed)?;
    socket.set_linger(Some(Duration::ZERO)).map_err(failed)?;
    Ok(socket.into())
}

fn idle(job: &Job) -> Result<Idled, Failure> {
    let before = settled_resident_bytes(job.server)?;
    let mut echo = vec![0; job.size];
    let connections = (0..job.connections)
        .map(|number| {
            let mut stream = connect(job.target, number)?;
            // The echo shows that the server has taken the connection, and the server has then done
            // for it whatever it does on the first message.
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let message = message(number, job.size);
            stream.write_all(&message)?;
            stream
                .read_exact(&mut echo)
                .map_err(|error| Failure(format!("no echo on connection {number}: {error}")))?;
            if *message == *echo { Ok(stream) } else { Err(Failure("a wrong echo".to_owned())) }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let after = settled_resident_bytes(job.server)?;
    drop(connections);
    Ok(Idled { before, after })
}

/// A message that no other connection sends. The first byte is 0: the handler is not to sleep.
fn message(connection: usize, size: usize) -> Box<[u8]> {
    let mut state = connection as u64 + 1;
    let mut message: Box<[u8]> = (0..size).map(|_| (random(&mut state) >> 32) as u8).collect();
    message[0] = 0;
    message
}

/// A step of xorshift. Neither state nor result are ever 0.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

struct Connection {
    stream: TcpStream,
    message: Box<[u8]>,
    /// How much of the echo is there.
    received: usize,
    /// How much of the echo was wrong.
    wrong: bool,
    /// How many messages were sent.
    sequence: u64,
    /// When the message was sent.
    sent: Instant,
}

struct Generator {
    // First, so that it is dropped first: it may still be sending the messages of the connections.
    ring: Ring,
    connections: Vec<Connection>,
    server: u32,
    block: Option<Block>,
    random: u64,
    requests: u64,
    blocking: u64,
    mismatches: u64,
    latency: Histogram<u64>,
}

/// A mark's lowest bit tells sends, which only complete when they fail, from receives.
const SEND: u64 = 1;

impl Generator {
    fn new(job: &Job, block: Option<Block>) -> Result<Self, Failure> {
        // As many buffers as echoes may arrive in one turn, so that no receive ends for want of
        // them.
        let buffers = job.connections.next_power_of_two().clamp(256, 4096);
        let ring = Ring::new(
            4096,
            u16::try_from(buffers)?,
            u32::try_from(job.size.next_multiple_of(64).min(PIECE_MAX))?,
        )?;
        let now = Instant::now();
        let connections = (0..job.connections)
            .map(|number| {
                Ok(Connection {
                    stream: connect(job.target, number)?,
                    message: message(number, job.size),
                    received: 0,
                    wrong: false,
                    sequence: 0,
                    sent: now,
                })
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self {
            ring,
            connections,
            server: job.server,
            block,
            random: 0x9e37_79b9_7f4a_7c15,
            requests: 0,
            blocking: 0,
            mismatches: 0,
            latency: Histogram::new_with_bounds(1, LATENCY_MAX, 3)?,
        })
    }

    fn exchange(mut self, warm_up: Duration, window: Duration) -> Result<Exchanged, Failure> {
        let start = Instant::now();
        for index in 0..self.connections.len() {
            self.ring.receive(self.connections[index].stream.as_raw_fd(), mark(index, 0))?;
            self.send(index, start)?;
        }
        let mut completions = Vec::new();
        self.turn_until(start + warm_up, &mut completions)?;

        self.requests = 0;
        self.blocking = 0;
        self.mismatches = 0;
        self.latency.reset();
        let threads = thread_cpu_ns(self.server);
        let machine = machine_cpu_ns();
        let own = cpu_ns(std::process::id())?;
        let server = cpu_ns(self.server)?;
        let begin = Instant::now();
        let end = self.turn_until(begin + window, &mut completions)?;
        let server_cpu_ns = cpu_ns(self.server)? - server;
        let generator_cpu_ns = cpu_ns(std::process::id())? - own;
        let others_cpu_ns = machine.zip(machine_cpu_ns()).map(|(before, after)| {
            after.saturating_sub(before).saturating_sub(server_cpu_ns + generator_cpu_ns)
        });

        let percentile = |p| self.latency.value_at_quantile(p) as f64 / 1e3;
        Ok(Exchanged {
            requests: self.requests,
            blocking: self.blocking,
            mismatches: self.mismatches,
            seconds: (end - begin).as_secs_f64(),
            server_cpu_ns,
            generator_cpu_ns,
            others_cpu_ns,
            busiest_share: busiest_share(&threads, &thread_cpu_ns(self.server)),
            latency_us: Latency {
                p50: percentile(0.5),
                p99: percentile(0.99),
                p999: percentile(0.999),
                max: self.latency.max() as f64 / 1e3,
            },
        })
    }

    /// Goes on until the deadline has passed. Says when that was noticed.
    fn turn_until(
        &mut self,
        deadline: Instant,
        completions: &mut Vec<Completion>,
    ) -> Result<Instant, Failure> {
        loop {
            self.ring.wait(1, completions)?;
            // One look at the clock for the whole batch, for what ends and for what begins.
            let now = Instant::now();
            for completion in completions.drain(..) {
                self.complete(completion, now)?;
            }
            if now >= deadline {
                return Ok(now);
            }
        }
    }

    fn complete(&mut self, completion: Completion, now: Instant) -> Result<(), Failure> {
        let index = usize::try_from(completion.mark >> 1)?;
        let failed = |result: i32| {
            let reason = match result {
                0 => "closed by the server".to_owned(),
                error => io::Error::from_raw_os_error(-error).to_string(),
            };
            Err(Failure(format!("connection {index}: {reason}")))
        };
        if completion.mark & SEND != 0 {
            return failed(completion.result.min(0));
        }
        if let Some(taken) = completion.buffer {
            if taken.is_empty() {
                return failed(0);
            }
            let connection = &mut self.connections[index];
            connection.accept(self.ring.bytes(&taken));
            let complete = connection.received >= connection.message.len();
            self.ring.give_back(taken);
            if complete {
                self.count(index, now);
                self.send(index, now)?;
            }
        } else if completion.result != -libc::ENOBUFS {
            return failed(completion.result);
        }
        if !completion.more {
            let fd = self.connections[index].stream.as_raw_fd();
            self.ring.receive(fd, mark(index, 0))?;
        }
        Ok(())
    }

    fn count(&mut self, index: usize, now: Instant) {
        let connection = &mut self.connections[index];
        if std::mem::take(&mut connection.wrong) {
            self.mismatches += 1;
            return;
        }
        self.requests += 1;
        if connection.message[0] == 0 {
            let nanoseconds = (now - connection.sent).as_nanos();
            self.latency.saturating_record(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        } else {
            self.blocking += 1;
        }
    }

    fn send(&mut self, index: usize, now: Instant) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        connection.received = 0;
        connection.sent = now;
        connection.sequence += 1;
        connection.message[0] = match self.block {
            Some(block) if random(&mut self.random).is_multiple_of(block.one_in) => block.ms,
            _ => 0,
        };
        // The echo of an earlier message is then a wrong one.
        if let Some(bytes) = connection.message.get_mut(1..9) {
            bytes.copy_from_slice(&connection.sequence.to_le_bytes());
        }
        // SAFETY: the message is in a box of its own, which is freed with the connections, after
        // the ring. It changes only in this function, which is called when all of it has come back.
        unsafe {
            self.ring.send(
                connection.stream.as_raw_fd(),
                &connection.message,
                mark(index, SEND),
                true,
            )?;
        }
        Ok(())
    }
}

impl Connection {
    /// Takes the next piece of an echo, and compares it.
    fn accept(&mut self, piece: &[u8]) {
        let expected = self.message.get(self.received..self.received + piece.len());
        self.received += piece.len();
        self.wrong |= !expected.is_some_and(|expected| same(piece, expected));
    }
}

/// Whether two pieces of the same length are, as far as it is cheap to tell, the same.
fn same(one: &[u8], other: &[u8]) -> bool {
    const END: usize = 64;
    if one.len() <= COMPARE_MAX {
        return one == other;
    }
    let tail = one.len() - END;
    one[..END] == other[..END] && one[tail..] == other[tail..]
}

fn mark(index: usize, kind: u64) -> u64 {
    (index as u64) << 1 | kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_and_do_not_block() {
        assert_ne!(message(0, 64), message(1, 64));
        assert_eq!(message(3, 64)[0], 0);
        assert_eq!(message(3, 1).len(), 1);
    }

    #[test]
    fn both_ends_of_a_large_piece_are_compared() {
        let sent = vec![7; COMPARE_MAX + 1];
        assert!(same(&sent, &sent));
        for wrong in [0, COMPARE_MAX] {
            let mut received = sent.clone();
            received[wrong] = 8;
            assert!(!same(&received, &sent));
        }
    }
}
