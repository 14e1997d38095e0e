use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bench_bufring::{Completion, Ring};
use hdrhistogram::Histogram;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Failure;
use crate::candidate::Candidate;
use crate::load::{LATENCY_MAX, Meter, Metered, recorded};
use crate::metric::{
    BUSIEST, CPU_NS, ENTRIES, Metric, P50_US, P99_US, P999_US, PEAK_MIB, RATE, SWITCHES,
};
use crate::run::Bench;
use crate::scenario::{Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Churn;

/// The size of the one message, in bytes.
const SIZE: usize = 64;

/// From how many addresses connections come, in turn. A port of one of them is used again only when
/// it has long been forgotten.
const SOURCES: u64 = 200;

struct Churn;

#[derive(Serialize, Deserialize)]
struct Job {
    target: SocketAddr,
    server: u32,
    connections: usize,
    warm_up_ms: u64,
    window_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Churned {
    completed: u64,
    /// Since the server was started.
    ever: u64,
    latencies: Vec<(u64, u64)>,
    metered: Metered,
}

impl Scenario for Churn {
    fn name(&self) -> &'static str {
        "churn"
    }

    fn place(&self) -> u32 {
        25
    }

    fn about(&self) -> &'static str {
        "connections that come, exchange one message, and go"
    }

    fn definition(&self) -> &'static str {
        "
`connections` at a time: connect, send 64 bytes, wait for the echo, close the sending direction,
wait until the server has closed the connection too; then the next one begins (a closed loop). One
operation is one connection. Latency is from the connect until the echo is complete. Connections
come from 200 addresses within 127.0.0.0/8, in turn, so that there are always ports."
    }

    fn service(&self) -> &'static str {
        "echo"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::connections(&[50], &[50]), Parameter::cpus(&[1, 2], &[1])]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&CPU_NS, &RATE, &P50_US, &P99_US, &P999_US, &SWITCHES, &ENTRIES, &PEAK_MIB, &BUSIEST]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[("cpus", "rate")]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let cpus = point.get("cpus");
        let mut server = bench.serve(candidate, cpus, None, SIZE)?;
        let job = Job {
            target: server.addr,
            server: server.running.id(),
            connections: point.get("connections"),
            warm_up_ms: bench.method.warm_up_ms,
            window_ms: bench.method.window_ms,
        };
        let answer = bench.generate(self, &mut server, &bench.cpus[..cpus], &job)?;
        let churned: Churned = serde_json::from_str(&answer)?;
        if churned.completed == 0 {
            return Err(Failure("no connection within the window".to_owned()));
        }
        let mut sample = churned.metered.sample(churned.completed);
        sample.put_entries(server.end(), churned.ever);
        sample.put_latencies(churned.latencies);
        Ok(sample)
    }

    fn load(&self, job: &str) -> Result<String, Failure> {
        let job: Job = serde_json::from_str(job)?;
        let warm_up = Duration::from_millis(job.warm_up_ms);
        let window = Duration::from_millis(job.window_ms);
        let churned = Generator::new(&job)?.churn(warm_up, window)?;
        Ok(serde_json::to_string(&churned)?)
    }
}

/// A place for one connection after the other.
struct Slot {
    message: Box<[u8; SIZE]>,
    stream: Option<TcpStream>,
    begin: Instant,
    received: usize,
}

struct Generator {
    // First, so that it is dropped first: it may still be sending messages of the slots.
    ring: Ring,
    slots: Vec<Slot>,
    job: Job,
    begun: u64,
    completed: u64,
    latency: Histogram<u64>,
}

/// A mark's lowest bit tells sends, which only complete when they fail, from receives.
const SEND: u64 = 1;

impl Generator {
    fn new(job: &Job) -> Result<Self, Failure> {
        let begin = Instant::now();
        let slot = |_| Slot { message: Box::new([0; SIZE]), stream: None, begin, received: 0 };
        Ok(Self {
            ring: Ring::new(1024, 512, u32::try_from(SIZE)?)?,
            slots: (0..job.connections).map(slot).collect(),
            job: Job { ..*job },
            begun: 0,
            completed: 0,
            latency: Histogram::new_with_bounds(1, LATENCY_MAX, 3)?,
        })
    }

    fn churn(mut self, warm_up: Duration, window: Duration) -> Result<Churned, Failure> {
        let start = Instant::now();
        for index in 0..self.slots.len() {
            self.begin(index)?;
        }
        let mut completions = Vec::new();
        self.turn_until(start + warm_up, &mut completions)?;
        let before = self.completed;
        self.latency.reset();
        let meter = Meter::start(self.job.server)?;
        self.turn_until(Instant::now() + window, &mut completions)?;
        let metered = meter.stop()?;
        Ok(Churned {
            completed: self.completed - before,
            ever: self.completed,
            latencies: recorded(&self.latency),
            metered,
        })
    }

    fn turn_until(
        &mut self,
        deadline: Instant,
        completions: &mut Vec<Completion>,
    ) -> Result<(), Failure> {
        while Instant::now() < deadline {
            self.ring.wait(None, completions)?;
            for completion in completions.drain(..) {
                self.complete(completion)?;
            }
        }
        Ok(())
    }

    /// Connects, and sends the message.
    fn begin(&mut self, index: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        slot.begin = Instant::now();
        slot.received = 0;
        // The echo of another connection is then a wrong one.
        slot.message[..8].copy_from_slice(&self.begun.to_le_bytes());
        let stream = connect(self.job.target, self.begun)?;
        self.begun += 1;
        let fd = stream.as_raw_fd();
        slot.stream = Some(stream);
        self.ring.receive(fd, mark(index, 0))?;
        // SAFETY: the message is in a box of its own, which is freed with the slots, after the
        // ring. It changes only here, when all of it has come back and the connection is over.
        unsafe { self.ring.send(fd, &*slot.message, mark(index, SEND), true)? };
        Ok(())
    }

    fn complete(&mut self, completion: Completion) -> Result<(), Failure> {
        let index = usize::try_from(completion.mark >> 1)?;
        let failed = |result: i32| {
            let reason = io::Error::from_raw_os_error(-result);
            Err(Failure(format!("a connection of slot {index}: {reason}")))
        };
        if completion.mark & SEND != 0 {
            return failed(completion.result);
        }
        let slot = &mut self.slots[index];
        let Some(stream) = &slot.stream else {
            return Err(Failure("a completion of a connection that is over".to_owned()));
        };
        let mut over = false;
        match completion.buffer {
            Some(taken) if !taken.is_empty() => {
                let piece = self.ring.bytes(&taken);
                if slot.message.get(slot.received..slot.received + piece.len()) != Some(piece) {
                    return Err(Failure("a wrong echo".to_owned()));
                }
                slot.received += piece.len();
                self.ring.give_back(taken);
                if slot.received == SIZE {
                    let nanoseconds = slot.begin.elapsed().as_nanos();
                    self.latency.saturating_record(u64::try_from(nanoseconds)?);
                    stream.shutdown(Shutdown::Write)?;
                }
            }
            taken => {
                if let Some(taken) = taken {
                    self.ring.give_back(taken);
                }
                match completion.result {
                    0 if slot.received == SIZE => over = true,
                    0 => return Err(Failure("closed by the server before the echo".to_owned())),
                    result if result == -libc::ENOBUFS => {}
                    result => return failed(result),
                }
            }
        }
        if over {
            slot.stream = None;
            self.completed += 1;
            self.begin(index)
        } else {
            if !completion.more {
                self.ring.receive(stream.as_raw_fd(), mark(index, 0))?;
            }
            Ok(())
        }
    }
}

/// Connects from one of several addresses.
fn connect(target: SocketAddr, number: u64) -> Result<TcpStream, Failure> {
    let failed = |error: io::Error| Failure(format!("connection {number} to {target}: {error}"));
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed)?;
    if target.ip() == Ipv4Addr::LOCALHOST {
        let host = u8::try_from(number % SOURCES).expect("less than 256") + 1;
        let source = SocketAddr::from(([127, 0, 1, host], 0));
        // Connecting chooses the port: one that is free for this target.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&source.into()).map_err(failed)?;
    }
    socket.connect(&target.into()).map_err(failed)?;
    socket.set_tcp_nodelay(true).map_err(failed)?;
    Ok(socket.into())
}

fn mark(index: usize, kind: u64) -> u64 {
    (index as u64) << 1 | kind
}
