//! `wharf doctor`: what this machine offers, and what is in the way.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use rustix::{
    process::{Resource, getrlimit},
    system::uname,
    thread::sched_getaffinity,
};
use serde::Serialize;
use wharf::{Buf, Builder, Driver, Op, Port, Wait};

use crate::{cli::Doctor, output};

/// How long a step of the trial may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The listeners' backlog, as the library asks for it.
const BACKLOG: u64 = 4096;
/// Fewer descriptors than this are few for a server.
const DESCRIPTORS_FEW: u64 = 4096;

/// Looks, and prints. False: no port can be made.
pub(crate) fn run(options: &Doctor) -> anyhow::Result<bool> {
    let report = Report::new();
    if options.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    Ok(report.driver.is_some())
}

/// What was found, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    /// The driver that a port uses here, if one can be made.
    driver: Option<&'static str>,
    /// Why this driver, or why none.
    reason: String,
    kernel: String,
    /// The concurrency value of a port that asks for none.
    concurrency: Option<usize>,
    /// Empty where the kernel cannot be asked; the reason then says why.
    features: Vec<Feature>,
    limits: Vec<Limit>,
}

/// What the kernel may have, as [`wharf::probe`] found it.
#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
    /// The Linux release that brought it.
    since: &'static str,
    /// What it gives, and what is done without it.
    gives: &'static str,
}

impl From<wharf::Feature> for Feature {
    fn from(found: wharf::Feature) -> Self {
        let wharf::Feature { name, present, since, gives, .. } = found;
        Self { name, present, since, gives }
    }
}

#[derive(Debug, Serialize)]
struct Limit {
    name: &'static str,
    value: String,
    /// Nothing needs to be done about it.
    good: bool,
    /// What it means, or what to do about it.
    advice: String,
}

impl Limit {
    fn good(name: &'static str, value: String, meaning: &str) -> Self {
        Self { name, value, good: true, advice: meaning.to_owned() }
    }

    fn bad(name: &'static str, value: String, advice: &str) -> Self {
        Self { name, value, good: false, advice: advice.to_owned() }
    }
}

impl Report {
    fn new() -> Self {
        let kernel = uname().release().to_string_lossy().into_owned();
        let (driver, reason, concurrency) = match trial() {
            Ok(trial) => (Some(trial.driver), trial.reason, Some(trial.concurrency)),
            Err(reason) => (None, reason, None),
        };
        // Its error is the trial's, too, and stands in the reason.
        let features = wharf::probe().unwrap_or_default();
        Self {
            driver,
            reason,
            concurrency,
            features: features.into_iter().map(Feature::from).collect(),
            limits: limits(),
            kernel,
        }
    }

    fn print(&self) -> anyhow::Result<()> {
        let line = |name: &str, text: &str| output::line(&format!("{name:<12} {text}"));
        line("driver", &format!("{}: {}", self.driver.unwrap_or("none"), self.reason))?;
        line("kernel", &format!("Linux {}", self.kernel))?;
        if let Some(concurrency) = self.concurrency {
            line("concurrency", &format!("{concurrency}, for a port that asks for no other"))?;
        }
        if !self.features.is_empty() {
            output::line("\nFeatures")?;
        }
        for Feature { name, present, since, gives } in &self.features {
            let mark = if *present { "yes" } else { "NO" };
            output::line(&format!("  {mark:<4} {name} (Linux {since}): {gives}"))?;
        }
        output::line("\nLimits")?;
        for Limit { name, value, good, advice } in &self.limits {
            let mark = if *good { "ok" } else { "LOOK" };
            output::line(&format!("  {mark:<4} {name} = {value}: {advice}"))?;
        }
        Ok(())
    }
}

/// A port that was made, and moved some data.
struct Trial {
    driver: &'static str,
    reason: String,
    concurrency: usize,
}

/// Makes a port as a program would and moves some data through it.
fn trial() -> Result<Trial, String> {
    let port: Port<()> = match Builder::new().build() {
        Ok(port) => port,
        Err(error) => {
            return Err(match Builder::new().concurrency(1).build::<(), ()>() {
                Ok(_) => format!("only a port with concurrency 1 can be made: {error}"),
                Err(error) => refusal(&error),
            });
        }
    };
    round_trip(&port).map_err(|error| format!("a port was made, but does not work: {error}"))?;
    let works = "a port was made, and moved data over a TCP connection";
    let (driver, reason) = match (port.driver(), port.fallback()) {
        (Driver::Epoll, Some(refused)) => {
            ("epoll", format!("{}. On epoll {works}", refusal(&refused)))
        }
        (Driver::Epoll, None) => ("epoll", format!("WHARF_DRIVER asks for it; {works}")),
        (Driver::Uring, _) => ("io_uring", works.to_owned()),
        (driver, _) => (driver.name(), works.to_owned()),
    };
    Ok(Trial { driver, reason, concurrency: port.stats().concurrency })
}

/// Says why io_uring cannot be had, with what the system tells beside the error.
fn refusal(error: &wharf::Error) -> String {
    let mut text = error.to_string();
    let seccomp = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if seccomp.lines().any(|line| line.strip_prefix("Seccomp:").map(str::trim) == Some("2")) {
        text += " (a seccomp filter is at work here: this is probably a container)";
    }
    text
}

/// Sends a greeting through a connection of the port, to a thread that sends it back.
fn round_trip(port: &Port<()>) -> Result<(), String> {
    const GREETING: &[u8] = b"how do you do";
    let text = |error: std::io::Error| error.to_string();
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
    let address = peer.local_addr().map_err(text)?;
    let stream = port.connect(address, ()).map_err(|error| error.to_string())?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut greeting = [0; GREETING.len()];
            let (mut stream, _) = peer.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_exact(&mut greeting)?;
            stream.write_all(&greeting)
        });
        let exchange = || {
            stream.send(GREETING)?;
            stream.recv_exact(Buf::with_capacity(GREETING.len()), GREETING.len())?;
            loop {
                match port.wait_for(PATIENCE) {
                    Wait::Packet(packet) => {
                        packet.bytes()?;
                        if let Op::Recv { buf, .. } = packet.op {
                            return Ok(buf[..] == *GREETING);
                        }
                    }
                    Wait::Broken(error) => return Err(error),
                    Wait::TimedOut | Wait::Closed => return Ok(false),
                }
            }
        };
        let outcome = exchange();
        // Should ours never have stood, the thread still waits for a connection.
        drop(TcpStream::connect(address));
        match outcome {
            Ok(true) => Ok(()),
            Ok(false) => Err("what came back is not what was sent".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

// ---- Limits -------------------------------------------------------------------------------

fn limits() -> Vec<Limit> {
    let mut limits = vec![descriptors(), locked_memory()];
    limits.extend(uring_disabled());
    limits.extend(backlog());
    limits.extend(ports());
    limits.push(processors());
    limits
}

fn descriptors() -> Limit {
    let limit = getrlimit(Resource::Nofile);
    let value = format!("{} (hard: {})", or_unlimited(limit.current), or_unlimited(limit.maximum));
    let name = "RLIMIT_NOFILE";
    match (limit.current, limit.maximum) {
        (_, Some(hard)) if hard < DESCRIPTORS_FEW => Limit::bad(
            name,
            value,
            "every connection needs a descriptor: raise the hard limit (LimitNOFILE= in a systemd \
             unit, --ulimit nofile= for a container, /etc/security/limits.conf)",
        ),
        (Some(soft), hard) if hard.is_none_or(|hard| soft < hard) => Limit::good(
            name,
            value,
            "every connection needs one; wharf serve and wharf load raise the soft limit to the \
             hard one, other programs must (ulimit -n)",
        ),
        _ => Limit::good(name, value, "every connection needs one"),
    }
}

fn locked_memory() -> Limit {
    /// What the queues and buffers of a few running slots take.
    const ENOUGH: u64 = 1 << 20;
    let limit = getrlimit(Resource::Memlock);
    let value = match limit.current {
        Some(bytes) => format!("{} KiB", bytes >> 10),
        None => "unlimited".to_owned(),
    };
    let name = "RLIMIT_MEMLOCK";
    if limit.current.is_some_and(|bytes| bytes < ENOUGH) {
        return Limit::bad(
            name,
            value,
            "io_uring's queues count against it, except for root: raise it (ulimit -l, \
             LimitMEMLOCK= in a systemd unit), or ports get smaller queues, or none",
        );
    }
    Limit::good(name, value, "enough for the queues of a few running slots")
}

fn uring_disabled() -> Option<Limit> {
    let name = "kernel.io_uring_disabled";
    let value = read("/proc/sys/kernel/io_uring_disabled")?;
    Some(match value.as_str() {
        "0" => Limit::good(name, value, "everybody may use io_uring"),
        "1" => Limit::bad(
            name,
            value,
            "only processes with CAP_SYS_ADMIN or of the group kernel.io_uring_group may use \
             io_uring: join it, or sysctl kernel.io_uring_disabled=0",
        ),
        _ => Limit::bad(name, value, "nobody may use io_uring: sysctl kernel.io_uring_disabled=0"),
    })
}

fn backlog() -> Option<Limit> {
    let name = "net.core.somaxconn";
    let value = read("/proc/sys/net/core/somaxconn")?;
    let most = value.parse::<u64>().ok()?;
    Some(if most < BACKLOG {
        Limit::bad(
            name,
            value,
            "connections that come at once may be dropped before they are accepted: sysctl \
             net.core.somaxconn=4096",
        )
    } else {
        Limit::good(
            name,
            value,
            "so many connections may wait to be accepted (wharf asks for 4096)",
        )
    })
}

fn ports() -> Option<Limit> {
    let range = read("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ends = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    let most = output::grouped((last + 1).saturating_sub(first));
    let meaning = format!("at most {most} connections from here to one address");
    Some(Limit::good("net.ipv4.ip_local_port_range", format!("{first} {last}"), &meaning))
}

fn processors() -> Limit {
    let name = "processors";
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let online = fs::read_to_string("/proc/cpuinfo")
        .map(|text| text.lines().filter(|line| line.starts_with("processor")).count())
        .unwrap_or(0);
    let allowed = sched_getaffinity(None).map_or(0, |set| set.count());
    let mut value = format!("{usable} (of {online} online, affinity allows {allowed}");
    if let Some(quota) = read("/sys/fs/cgroup/cpu.max").filter(|quota| !quota.starts_with("max")) {
        value += &format!(", the control group's quota is {quota}");
    }
    value += ")";
    if usable == 1 {
        return Limit::bad(
            name,
            value,
            "one worker runs at a time; more need a wider affinity (taskset) or quota",
        );
    }
    Limit::good(name, value, "so many workers run at once, unless the port asks for another number")
}

fn or_unlimited(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
