//! Datagrams to a server that only counts them: bursts of a fixed number, between two signals.

use std::fs;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg, setsockopt};
use serde::{Deserialize, Serialize};

use super::{Meter, Metered};
use crate::Failure;
use crate::candidate::{Candidate, Start};
use crate::metric::{CPU_NS, Metric, RATE};
use crate::run::Bench;
use crate::scenario::{Sample, Scenario};

/// How many datagrams are sent at once.
pub const BURST: usize = 256;

/// How many of them are one message to the system where they may come together.
pub const TOGETHER: usize = 32;

/// How long a server may take for what is left of the warm-up, and to see that it is the end.
const END_MAX: Duration = Duration::from_secs(5);

/// Datagrams per notification.
pub static PER_NOTIFICATION: Metric = Metric::more(
    "per_notification",
    "per notification",
    "datagrams whenever the server learned that there are some: by a packet, an event, a look that \
     found something, or a call that returned",
)
.digits(1);

/// Those that were lost.
pub static LOST: Metric = Metric::less(
    "lost",
    "lost %",
    "datagrams that the system threw away because the server's queue was full",
)
.digits(1);

/// What is sent, and where everybody is.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The size of a datagram, in bytes.
    pub size: usize,
    /// Whether several of them are one message to the system.
    pub together: bool,
    /// The server is told that it may be given several at once.
    pub coalesce: bool,
    /// After each burst, let the server have the CPU.
    pub yields: bool,
    /// The server's CPU.
    pub server: &'a [usize],
    /// The generator's CPU.
    pub generator: &'a [usize],
}

#[derive(Serialize, Deserialize)]
struct Job {
    target: SocketAddr,
    server: u32,
    size: usize,
    together: usize,
    yields: bool,
    warm_up_ms: u64,
    window_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Sent {
    datagrams: u64,
    metered: Metered,
}

/// What a server says at the end.
#[derive(Deserialize)]
struct Counted {
    datagrams: u64,
    bytes: u64,
    notifications: u64,
    seconds: f64,
    cpu_ns: u64,
}

impl Plan<'_> {
    /// Measures a window of a server.
    pub fn window(
        self,
        bench: &Bench,
        scenario: &dyn Scenario,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let more: &[&str] = if self.coalesce { &["--coalesce"] } else { &[] };
        let start = Start { cpus: self.server, wharf_workers: 1, size: self.size };
        let mut server = candidate.serve(&bench.places, start, more, &bench.stop)?;
        let job = Job {
            target: server.addr,
            server: server.running.id(),
            size: self.size,
            together: if self.together { TOGETHER } else { 1 },
            yields: self.yields,
            warm_up_ms: bench.method.warm_up_ms,
            window_ms: bench.method.window_ms,
        };
        let sent = bench.generate(scenario, &mut server, self.generator, &job)?;
        let sent: Sent = serde_json::from_str(&sent)?;
        let counted: Counted = serde_json::from_str(&server.running.line(END_MAX)?)?;
        if counted.datagrams == 0 {
            return Err(Failure("no datagram within the window".to_owned()));
        }
        if counted.datagrams > sent.datagrams
            || counted.bytes != counted.datagrams * self.size as u64
        {
            return Err(Failure(format!(
                "wrong: {} datagrams of {} bytes were sent, and {} with {} bytes counted",
                sent.datagrams, self.size, counted.datagrams, counted.bytes
            )));
        }
        let datagrams = counted.datagrams as f64;
        let mut sample = sent.metered.sample(counted.datagrams);
        // By the server's own clocks: they are read at the first and the last datagram.
        sample.put(&CPU_NS, counted.cpu_ns as f64 / datagrams);
        sample.put(&RATE, datagrams / counted.seconds);
        sample.put(&PER_NOTIFICATION, datagrams / counted.notifications as f64);
        sample.put(&LOST, 100.0 * (1.0 - datagrams / sent.datagrams as f64));
        Ok(sample)
    }
}

/// The generator.
pub fn run(job: &str) -> Result<String, Failure> {
    let job: Job = serde_json::from_str(job)?;
    let mut sender = Sender::new(&job)?;
    sender.send_for(Duration::from_millis(job.warm_up_ms))?;
    sender.drained()?;
    if job.yields {
        whole_bursts(job.server)?;
    }
    let meter = Meter::start(job.server)?;
    sender.socket.send(b"begin")?;
    let datagrams = sender.send_for(Duration::from_millis(job.window_ms))?;
    let metered = meter.stop()?;
    sender.end()?;
    Ok(serde_json::to_string(&Sent { datagrams, metered })?)
}

/// Has the threads of a server wait for the CPU until the generator gives it up, as far as the
/// scheduler goes along. Otherwise those that sleep are woken in the middle of bursts, and bursts
/// are what the scheduler makes of them.
fn whole_bursts(server: u32) -> Result<(), Failure> {
    for thread in fs::read_dir(format!("/proc/{server}/task"))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        let usual = libc::sched_param { sched_priority: 0 };
        // SAFETY: the call reads the parameters, and changes nothing but how a thread is scheduled.
        if unsafe { libc::sched_setscheduler(thread, libc::SCHED_BATCH, &raw const usual) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    Ok(())
}

struct Sender {
    socket: UdpSocket,
    message: Vec<u8>,
    headers: MultiHeaders<()>,
    messages: usize,
    yields: bool,
}

impl Sender {
    fn new(job: &Job) -> Result<Self, Failure> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(job.target)?;
        if job.together > 1 {
            setsockopt(&socket, UdpGsoSegment, &i32::try_from(job.size)?)?;
        }
        let messages = BURST / job.together;
        Ok(Self {
            socket,
            message: vec![1; job.size * job.together],
            headers: MultiHeaders::preallocate(messages, None),
            messages,
            yields: job.yields,
        })
    }

    /// Sends bursts for so long. Returns how many datagrams these were.
    fn send_for(&mut self, time: Duration) -> Result<u64, Failure> {
        let begin = Instant::now();
        let mut bursts = 0;
        while begin.elapsed() < time {
            self.burst()?;
            bursts += 1;
            if self.yields {
                thread::yield_now();
            }
        }
        Ok(bursts * BURST as u64)
    }

    fn burst(&mut self) -> Result<(), Failure> {
        let mut left = self.messages;
        while left > 0 {
            let slices = vec![[IoSlice::new(&self.message)]; left];
            let nowhere: Vec<Option<()>> = vec![None; left];
            let descriptor = self.socket.as_raw_fd();
            let flags = MsgFlags::empty();
            match sendmmsg(descriptor, &mut self.headers, &slices, nowhere, [], flags) {
                Ok(sent) => left -= sent.count(),
                Err(Errno::ECONNREFUSED) => {
                    return Err(Failure("the server takes no datagrams any more".to_owned()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until the server has taken what was sent.
    fn drained(&self) -> Result<(), Failure> {
        let port = format!(":{:04X}", self.socket.peer_addr()?.port());
        let begin = Instant::now();
        while begin.elapsed() < END_MAX {
            let table = fs::read_to_string("/proc/net/udp")?;
            // NUMBER: LOCAL REMOTE STATE SENDING:WAITING ...
            let waiting = table.lines().find_map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                fields.get(1)?.ends_with(&port).then(|| fields.get(4)?.split_once(':'))?
            });
            if waiting.is_some_and(|(_, bytes)| bytes == "00000000") {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(Failure("the server does not take all datagrams".to_owned()))
    }

    /// Tells the server that it is over, until nobody is there. Its queue may be full at first.
    fn end(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        while begin.elapsed() < END_MAX {
            match self.socket.send(b"end") {
                Ok(_) => thread::sleep(Duration::from_millis(1)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure("the server does not see the end".to_owned()))
    }
}
