use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_timerslack;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::candidate::{Candidate, Start};
use crate::load::exchange::{self, Exchanged, Plan};
use crate::load::quantile_us;
use crate::metric::{Metric, P50_US, P99_US, P999_US, PEAK_MIB};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Flood;

/// The size of a message, and of a datagram, in bytes.
const SIZE: usize = 64;

/// How often datagrams are sent that have become due.
const TICK: Duration = Duration::from_millis(1);

/// How many of them at most, after a tick that came late.
const CATCH_UP_MAX: u64 = 512;

static QUIET_P99_US: Metric =
    Metric::less("quiet_p99_us", "quiet p99 us", "the same of the same server before the flood");

static RATIO: Metric = Metric::less(
    "ratio",
    "by quiet",
    "p99 in the flood, by that of the same server in the same window before it",
)
.digits(2);

static HANDLED: Metric = Metric::more(
    "handled",
    "datagrams/s",
    "datagrams of the flood that were handled per second; the system threw the others away",
);

struct Flood;

/// What the generator is told.
#[derive(Serialize, Deserialize)]
struct Job {
    messages: exchange::Job,
    messages_cpu: usize,
    datagrams: Datagrams,
}

/// What the flood is.
#[derive(Serialize, Deserialize)]
struct Datagrams {
    target: SocketAddr,
    rate: u64,
    work_us: u16,
    cpu: usize,
}

/// What the generator has counted.
#[derive(Serialize, Deserialize)]
struct Flooded {
    quiet: Exchanged,
    flooded: Exchanged,
    /// How long the flood was.
    seconds: f64,
    /// How many datagrams it had.
    sent: u64,
}

/// What the server says at the end.
#[derive(Deserialize)]
struct LastWords {
    datagrams: Vec<Handled>,
}

#[derive(Deserialize)]
struct Handled {
    datagrams: u64,
}

impl Scenario for Flood {
    fn name(&self) -> &'static str {
        "flood"
    }

    fn place(&self) -> u32 {
        72
    }

    fn about(&self) -> &'static str {
        "a steady echo over TCP while datagrams flood the same server: ports apart, and one port"
    }

    fn definition(&self) -> &'static str {
        "
One server, `wharf serve --tcp --udp`, and two CPUs. `rate` messages of 64 bytes are due every
second at fixed times, in turn on all TCP connections, whatever the server does (an open loop);
latencies count from then, and messages that are not answered at the end count with their age. A
window has two halves on the same server, each with a warm-up and connections of its own: first
nothing else comes (quiet), then `flood` datagrams a second do, each of which makes its handler
use the CPU for `work` microseconds and is echoed too. `by quiet` is the p99 of the second half by
that of the first.

40,000 times 50 us is what two CPUs can do and one cannot: those that do not fit into the socket's
buffer (the system's default size) are thrown away by the system. `datagrams/s` were handled.

`separate` has a port for TCP and one for UDP, each with a concurrency value of 1 and its workers on
one CPU: TCP on the first, UDP on the second (`--tune tcp:concurrency=1,cpus=0 --tune
udp:concurrency=1,cpus=1`). `one-port` has both on one port with a concurrency value of 2 and its
workers on both CPUs (`--one-port`). Either has 16 threads per port.

The thread that exchanges messages runs on the first CPU, and the one that sends datagrams, those
that are due once a millisecond, on the second: what the system does for a datagram on loopback it
does on the sender's CPU. So the flood takes nothing from the first CPU unless the server does
that. The generator has to wait for its CPU like the server, and what it waits is in the latencies;
on one port they did not become shorter when it had the highest priority."
    }

    fn service(&self) -> &'static str {
        "flood"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::other(
                "flood",
                "datagrams per second",
                "# datagrams/s",
                &[40_000, 10_000],
                &[40_000],
            ),
            Parameter::other("work", "microseconds of CPU per datagram", "# us", &[50], &[50]),
            Parameter::rate(&[5000], &[5000]),
            Parameter::connections(&[50], &[50]),
        ]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&P99_US, &QUIET_P99_US, &RATIO, &P50_US, &P999_US, &HANDLED, &PEAK_MIB]
    }

    fn baseline(&self) -> Option<&'static str> {
        Some("wharf:separate")
    }

    fn needs(&self, point: &Point) -> Needs {
        Needs { cpus: 2, descriptors: point.get("connections") }
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let (cpus, messages_cpu, flood_cpu) = (&bench.cpus[..2], bench.cpus[0], bench.cpus[1]);
        let start = Start { cpus, wharf_workers: bench.method.wharf_workers, size: SIZE };
        let tcp = format!("tcp:concurrency=1,cpus={messages_cpu}");
        let udp = format!("udp:concurrency=1,cpus={flood_cpu}");
        let ports: &[&str] = match candidate.name.ends_with(":one-port") {
            true => &["--one-port"],
            false => &["--tune", &tcp, "--tune", &udp],
        };
        let mut server = candidate.serve(&bench.places, start, ports, &bench.stop)?;
        let target = server.next_addr()?;
        let mut plan = Plan::new(cpus.len(), point.get("connections"), SIZE);
        plan.groups[0].rate = Some(point.get("rate") as u64);
        let job = Job {
            messages: plan.job(bench, &server),
            messages_cpu,
            datagrams: Datagrams {
                target,
                rate: point.get("flood") as u64,
                work_us: u16::try_from(point.get("work"))?,
                cpu: flood_cpu,
            },
        };
        let answer = bench.generate(self, &mut server, cpus, &job)?;
        let Flooded { quiet, flooded, seconds, sent } = serde_json::from_str(&answer)?;
        quiet.check()?;
        flooded.check()?;
        let last: Option<LastWords> = server.last_words();
        let last = last.ok_or_else(|| Failure("the server has no last words".to_owned()))?;
        let handled: u64 = last.datagrams.iter().map(|it| it.datagrams).sum();
        if handled == 0 || handled > sent {
            return Err(Failure(format!("{sent} datagrams were sent, and {handled} handled")));
        }
        let quiet = quiet.groups.first().and_then(|it| quantile_us(&it.latencies, 0.99));
        let mut sample = flooded.sample(None);
        sample.put(&HANDLED, handled as f64 / seconds);
        if let (Some(quiet), Some(p99)) = (quiet, sample.get(&P99_US)) {
            sample.put(&QUIET_P99_US, quiet);
            sample.put(&RATIO, p99 / quiet);
        }
        Ok(sample)
    }

    fn load(&self, job: &str) -> Result<String, Failure> {
        let Job { messages, messages_cpu, datagrams } = serde_json::from_str(job)?;
        run_on(messages_cpu)?;
        let quiet = exchange::exchange(messages.clone())?;
        let over = AtomicBool::new(false);
        let (flooded, flood) = thread::scope(|scope| {
            let flood = scope.spawn(|| datagrams.flood(&over));
            let flooded = exchange::exchange(messages);
            over.store(true, Ordering::Relaxed);
            (flooded, flood.join())
        });
        let (seconds, sent) = flood.map_err(|_| Failure("the flood panicked".to_owned()))??;
        Ok(serde_json::to_string(&Flooded { quiet, flooded: flooded?, seconds, sent })?)
    }
}

impl Datagrams {
    /// Sends until it is over. Returns for how long, and how many.
    fn flood(&self, over: &AtomicBool) -> Result<(f64, u64), Failure> {
        run_on(self.cpu)?;
        set_timerslack(1)?;
        // Nobody takes the answers: when this socket's buffer is full, the system drops them.
        let socket = UdpSocket::bind((self.target.ip(), 0))?;
        socket.connect(self.target)?;
        let mut message = [0; SIZE];
        message[..2].copy_from_slice(&self.work_us.to_le_bytes());
        let begin = Instant::now();
        let (mut due_before, mut sent) = (0, 0);
        while !over.load(Ordering::Relaxed) {
            let due = due(self.rate, begin.elapsed());
            for _ in 0..(due - due_before).min(CATCH_UP_MAX) {
                socket.send(&message)?;
                sent += 1;
            }
            due_before = due;
            thread::sleep(TICK);
        }
        Ok((begin.elapsed().as_secs_f64(), sent))
    }
}

/// How many are due after so much time.
fn due(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Keeps the calling thread on one CPU.
fn run_on(cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_due_by_the_clock() {
        assert_eq!(due(40_000, Duration::from_millis(1)), 40);
        assert_eq!(due(3, Duration::from_millis(999)), 2);
        assert_eq!(due(0, Duration::from_secs(1)), 0);
    }
}
