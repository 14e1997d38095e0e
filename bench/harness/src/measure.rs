//! Clocks and counters of this machine and its processes.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::Failure;

/// The CPU time that a process has used, in nanoseconds, with all its threads, also those that have
/// ended, and io_uring's kernel threads on its behalf.
///
/// The kernel keeps a clock per process that says exactly this. `/proc/PID/stat` counts in
/// hundredths of a second, and `/proc/PID/schedstat` is about the first thread only.
pub fn cpu_ns(process: u32) -> Result<u64, Failure> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(process)?))?;
    nanoseconds(clock)
}

fn nanoseconds(clock: ClockId) -> Result<u64, Failure> {
    Ok(u64::try_from(Duration::from(clock_gettime(clock)?).as_nanos())?)
}

/// The CPU time that this process's children have used that have ended, in nanoseconds.
pub fn children_cpu_ns() -> Result<u64, Failure> {
    let children = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = [children.user_time(), children.system_time()]
        .iter()
        .map(|it| it.tv_sec() * 1_000_000 + it.tv_usec())
        .sum::<i64>();
    Ok(u64::try_from(microseconds)? * 1000)
}

/// And with what this process has used itself.
pub fn own_cpu_ns() -> Result<u64, Failure> {
    Ok(cpu_ns(std::process::id())? + children_cpu_ns()?)
}

/// A process and those that it has started, and so on.
fn family(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|it| it.parse::<u32>().ok()));
        }
        next += 1;
    }
    found
}

/// What a process has used since it was started, and the processes that it has started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Context switches, wanted and unwanted, of those threads that live at the reading.
    pub switches: u64,
    /// The most resident memory that it has had, in bytes.
    pub peak_bytes: u64,
    /// The busiest thread's part of the CPU time, from 0 to 1: of a difference only, and when the
    /// kernel tells.
    pub busiest_share: Option<f64>,
    #[serde(skip)]
    threads: HashMap<String, Thread>,
}

/// What a thread has used since it was started.
#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    cpu_ns: u64,
    switches: u64,
}

impl Usage {
    /// What a process has used so far, with those of its children that are there.
    pub fn of(process: u32) -> Result<Self, Failure> {
        let family = family(process);
        let threads: HashMap<_, _> = family.iter().flat_map(|&it| threads(it)).collect();
        // A child may be gone in this moment, but not the process itself.
        let of_children = |what: fn(u32) -> Result<u64, Failure>| {
            family[1..].iter().map(move |&it| what(it).unwrap_or_default()).sum::<u64>()
        };
        let peak = |process| status(process, "VmHWM");
        Ok(Self {
            switches: threads.values().map(|it| it.switches).sum(),
            peak_bytes: peak(process)? + of_children(peak),
            busiest_share: None,
            threads,
            // Last, as it is what figures are made of: nothing of the others is in it.
            cpu_ns: of_children(cpu_ns) + cpu_ns(process)?,
        })
    }

    /// What it has used since an earlier reading.
    #[must_use]
    pub fn since(self, before: &Self) -> Self {
        // Thread by thread: the counts of one that has ended are gone, and no loss of the others.
        let used: Vec<Thread> = self
            .threads
            .iter()
            .map(|(id, now)| {
                let before = before.threads.get(id).copied().unwrap_or_default();
                Thread {
                    cpu_ns: now.cpu_ns.saturating_sub(before.cpu_ns),
                    switches: now.switches.saturating_sub(before.switches),
                }
            })
            .collect();
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            switches: used.iter().map(|it| it.switches).sum(),
            peak_bytes: self.peak_bytes,
            busiest_share: busiest_share(&used),
            threads: HashMap::new(),
        }
    }
}

/// The living threads of a process. What the kernel does not tell is zero.
fn threads(process: u32) -> HashMap<String, Thread> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return HashMap::new() };
    tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let file = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let cpu_ns = file("schedstat").split_whitespace().next().and_then(|it| it.parse().ok());
            let status = file("status");
            // Wanted ones and, as "nonvoluntary_ctxt_switches:", unwanted ones.
            let switches = status
                .lines()
                .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
                .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
                .sum();
            let used = Thread { cpu_ns: cpu_ns.unwrap_or_default(), switches };
            Some((task.file_name().into_string().ok()?, used))
        })
        .collect()
}

/// The part of the threads' CPU time that the busiest of them has used, from 0 to 1.
fn busiest_share(used: &[Thread]) -> Option<f64> {
    let total: u64 = used.iter().map(|it| it.cpu_ns).sum();
    let most = used.iter().map(|it| it.cpu_ns).max()?;
    (total > 0).then(|| most as f64 / total as f64)
}

/// The CPU time that the whole machine has used or had taken away, in nanoseconds, to about 10 ms.
#[must_use]
pub fn machine_cpu_ns() -> Option<u64> {
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let counts: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|it| it.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; the guests' time is within user and nice.
    let [user, nice, system, _, _, irq, softirq, steal, ..] = counts[..] else { return None };
    Some((user + nice + system + irq + softirq + steal) * TICK_NS)
}

/// How many CPUs the machine has, whether or not we may use them.
#[must_use]
pub fn machine_cpus() -> Option<usize> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let cpus = stat.lines().filter(|line| {
        line.strip_prefix("cpu").is_some_and(|it| it.starts_with(|it: char| it.is_ascii_digit()))
    });
    Some(cpus.count()).filter(|&it| it > 0)
}

/// The CPUs that we may use, as the system numbers them.
pub fn own_cpus() -> Result<Vec<usize>, Failure> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// The resident memory of a process, in bytes.
pub fn resident_bytes(process: u32) -> Result<u64, Failure> {
    status(process, "VmRSS")
}

/// An amount of memory in the status of a process, in bytes.
fn status(process: u32, name: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = |line: &str| {
        line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()
    };
    status
        .lines()
        .find_map(value)
        .map(|kibibytes: u64| kibibytes * 1024)
        .ok_or_else(|| Failure(format!("no {name} in /proc/{process}/status")))
}

/// The resident memory of a process once it no longer changes.
pub fn settled_resident_bytes(process: u32) -> Result<u64, Failure> {
    const PAUSE: Duration = Duration::from_millis(50);
    const PAUSES_MAX: usize = 20;
    let mut last = resident_bytes(process)?;
    for _ in 0..PAUSES_MAX {
        std::thread::sleep(PAUSE);
        let now = resident_bytes(process)?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// Lets this process and its children have as many descriptors as the system allows. Says how many.
pub fn raise_descriptor_limit() -> Result<u64, Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// How long the machine took for a piece of work that is always the same.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Calibration {
    /// CPU time. It grows when the CPU is slowed down, or shared with a neighbour outside of what
    /// this machine can see.
    pub cpu_ns: u64,
    /// Time on the clock. What it has beyond the CPU time, others have used.
    pub wall_ns: u64,
    /// What the kernel alone takes for an echo: CPU time of one send and one recv of 64 B over TCP
    /// on loopback, on one CPU. No server can be cheaper by much.
    pub kernel_ns: u64,
}

/// Does a piece of work that needs nothing but the CPU.
pub fn calibrate() -> Result<Calibration, Failure> {
    const STEPS: u32 = 10_000_000;
    let thread = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let (cpu, wall) = (nanoseconds(thread)?, Instant::now());
    let mut state = 1_u64;
    for _ in 0..STEPS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    black_box(state);
    let wall_ns = u64::try_from(wall.elapsed().as_nanos())?;
    Ok(Calibration { cpu_ns: nanoseconds(thread)? - cpu, wall_ns, kernel_ns: kernel_ns()? })
}

fn kernel_ns() -> Result<u64, Failure> {
    const EXCHANGES: u64 = 2000;
    let thread = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut message = [0; 64];
    let begin = nanoseconds(thread)?;
    for _ in 0..EXCHANGES {
        client.write_all(&message)?;
        server.read_exact(&mut message)?;
        server.write_all(&message)?;
        client.read_exact(&mut message)?;
    }
    Ok((nanoseconds(thread)? - begin) / (2 * EXCHANGES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_ended_threads_counts() {
        let own = std::process::id();
        let before = cpu_ns(own).expect("our own clock");
        let used = std::thread::spawn(|| calibrate().expect("clocks").cpu_ns);
        let used = used.join().expect("it does not panic");
        let after = cpu_ns(own).expect("our own clock");
        assert!(after - before >= used, "{before} {after} {used}");
    }

    #[test]
    fn what_a_child_uses_counts() {
        use std::process::{Command, Stdio};
        let own = std::process::id();
        let mut loops = Command::new("sh");
        loops.args(["-c", "echo ready; while :; do :; done"]).stdout(Stdio::piped());
        let mut child = loops.spawn().expect("a shell");
        child.stdout.take().expect("piped").read_exact(&mut [0; 5]).expect("it is ready");
        let (before, ended_before) = (Usage::of(own).expect("ours"), own_cpu_ns().expect("ours"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while cpu_ns(child.id()).expect("our child") < 30_000_000 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(family(own).contains(&child.id()));
        let used = Usage::of(own).expect("ours").since(&before);
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert!(used.cpu_ns >= 20_000_000, "{}", used.cpu_ns);
        assert!(own_cpu_ns().expect("ours") - ended_before >= 20_000_000);
    }

    fn usage(threads: &[(&str, u64, u64)]) -> Usage {
        let thread =
            |&(id, cpu_ns, switches): &(&str, _, _)| (id.to_owned(), Thread { cpu_ns, switches });
        Usage { threads: threads.iter().map(thread).collect(), ..Usage::default() }
    }

    #[test]
    fn the_busiest_share_counts_new_threads() {
        let used = usage(&[("1", 20, 0), ("2", 30, 0)]).since(&usage(&[("1", 10, 0)]));
        assert_eq!(used.busiest_share, Some(0.75));
        assert_eq!(usage(&[]).since(&usage(&[])).busiest_share, None);
    }

    #[test]
    fn threads_that_end_do_not_hide_the_switches_of_others() {
        let used = usage(&[("1", 0, 12)]).since(&usage(&[("1", 0, 5), ("2", 0, 100)]));
        assert_eq!(used.switches, 7);
    }

    #[test]
    fn a_thread_that_sleeps_has_switched() {
        let own = std::process::id();
        let before = Usage::of(own).expect("our own status");
        std::thread::sleep(Duration::from_millis(2));
        let used = Usage::of(own).expect("our own status").since(&before);
        assert!(used.switches >= 1);
        assert!(used.peak_bytes >= resident_bytes(own).expect("our own status") / 2);
    }

    #[test]
    fn own_memory_is_plausible() {
        let bytes = resident_bytes(std::process::id()).expect("our own status");
        assert!((100_000..10_000_000_000).contains(&bytes));
    }
}
