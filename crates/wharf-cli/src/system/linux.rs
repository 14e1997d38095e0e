//! What the program asks of Linux.

use std::{
    fs, io,
    sync::{Arc, atomic::AtomicBool, mpsc::Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    system::uname,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
    iterator::{Handle, Signals},
};

use socket2::SockRef;

use crate::{doctor::Limit, output};

pub(crate) const NAME: &str = "Linux";

/// The listeners' backlog, as the library asks for it.
const BACKLOG: u64 = 4096;
/// Fewer descriptors than this are few for a server.
const DESCRIPTORS_FEW: u64 = 4096;

/// Which release of the system this is.
pub(crate) fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}

/// What else the system tells about why there may be no port.
pub(crate) fn refusal_hint() -> &'static str {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.strip_prefix("Seccomp:").map(str::trim) == Some("2")) {
        return " (a seccomp filter is at work here: this is probably a container)";
    }
    ""
}

/// The processor time that this thread has used.
pub(crate) fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Whether this process may run on these processors.
pub(crate) fn check_processors(processors: &[usize]) -> anyhow::Result<()> {
    let ours = sched_getaffinity(None).context("cannot tell which processors are ours")?;
    match processors.iter().find(|processor| !ours.is_set(**processor)) {
        Some(other) => bail!("processor {other} is not one of ours"),
        None => Ok(()),
    }
}

/// From now on this thread, and those that it starts, run on these processors only.
pub(crate) fn run_on(processors: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    Ok(sched_setaffinity(None, &set)?)
}

/// Whether the system can end connections whose peers take nothing: see [`limit_sends`].
pub(crate) const LIMITS_SENDS: bool = true;

/// Lets the connections of a listener end when what is sent is not taken for so long.
pub(crate) fn limit_sends(listener: &SockRef<'_>, patience: Duration) -> io::Result<()> {
    listener.set_tcp_user_timeout(Some(patience))
}

/// The wish of a person or the system that this program ends.
#[derive(Debug)]
pub(crate) struct Ending(Signals);

impl Ending {
    /// From here on such a wish is noted, and ends nothing by itself.
    pub(crate) fn new() -> io::Result<Self> {
        Signals::new([SIGINT, SIGTERM]).map(Self)
    }

    /// Ends `tell`.
    pub(crate) fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// Passes on each wish, until nobody wants to know.
    pub(crate) fn tell(mut self, to: &Sender<()>) {
        for _ in self.0.forever() {
            if to.send(()).is_err() {
                break;
            }
        }
    }
}

/// Sets `stop` at every wish that this program ends.
pub(crate) fn stop(stop: Arc<AtomicBool>) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, stop.clone())?;
    }
    Ok(())
}

/// Sets `stop` at the first wish that this program ends; at the second it does.
pub(crate) fn stop_first(stop: Arc<AtomicBool>) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(())
}

/// Raises the soft limit on descriptors to the hard one, and returns what it is then. `None`: no
/// limit.
pub(crate) fn raise_descriptors() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::warn!("the limit on descriptors stays as it is: {error}");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// What may be short.
pub(crate) fn limits() -> Vec<Limit> {
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
