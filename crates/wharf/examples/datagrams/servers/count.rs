//! What all servers of datagrams have in common: how they are tuned, and how they count. The rivals
//! in `bench/` count with this file, too.

use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

// ---- Tuning -------------------------------------------------------------------------------------

/// Bytes of datagrams, overhead included, that may wait in the system. It gives less if less is
/// allowed (net.core.rmem_max).
pub const RECEIVE_BUFFER: usize = 4 << 20;
/// How many receives are outstanding where they cost little.
pub const OUTSTANDING: usize = 512;
/// How many are outstanding of those that each have room for coalesced datagrams.
pub const OUTSTANDING_COALESCED: usize = 16;
/// How many receives a thread has outstanding at a completion port.
pub const OUTSTANDING_PER_THREAD: usize = 16;
/// How many completions (or datagrams) are taken at once, at most.
pub const BATCH: usize = 64;
/// Room for one datagram, in bytes: more than fits into a packet of Ethernet.
pub const ROOM: usize = 2048;
/// Room for datagrams that the system has put together.
pub const ROOM_COALESCED: usize = 65_535;

/// A datagram with fewer bytes is a signal.
pub const SIGNAL_BELOW: usize = 16;
/// The signal that starts the clock anew: what came before was to warm up. Any other ends the run.
pub const BEGIN: &[u8] = b"begin";

/// What can be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many threads serve.
    pub threads: usize,
    /// Several datagrams may come at once.
    pub coalesce: bool,
    /// CPU time to spend on each datagram.
    pub work: Duration,
    /// How many numbers there are for datagrams. 0: they are not looked at.
    pub numbers: usize,
}

impl Options {
    /// Room for each receive, in bytes.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.coalesce { ROOM_COALESCED } else { ROOM }
    }

    /// How many receives to have outstanding where they cost little.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        if self.coalesce { OUTSTANDING_COALESCED } else { OUTSTANDING }
    }
}

/// The socket of every server, in blocking mode.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

// ---- Counting -----------------------------------------------------------------------------------

/// Counts datagrams between the first (or [`BEGIN`]) and the end.
#[derive(Debug)]
pub struct Counter {
    options: Options,
    shards: Vec<Shard>,
    next: AtomicUsize,
    /// A bit for each number that has come.
    seen: Vec<AtomicU64>,
    begun: AtomicBool,
    clock: Mutex<(Option<Reading>, Option<Reading>)>,
}

/// What one thread has counted. Nobody else writes to it, and it is on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    notifications: AtomicU64,
    twice: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    datagrams: u64,
    bytes: u64,
    notifications: u64,
    twice: u64,
}

/// The clocks and the counts at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu: Duration,
    counts: Counts,
}

/// What has come of a run.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    counts: Counts,
    time: Duration,
    cpu: Duration,
}

impl Counter {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            shards: (0..options.threads).map(|_| Shard::default()).collect(),
            next: AtomicUsize::new(0),
            seen: (0..options.numbers.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            begun: AtomicBool::new(false),
            clock: Mutex::default(),
        }
    }

    /// What was chosen.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The part of one of the threads. There are as many as the options say, and no more.
    #[must_use]
    pub fn thread(&self) -> Tally<'_> {
        let own = self.next.fetch_add(1, Relaxed);
        Tally { counter: self, shard: &self.shards[own] }
    }

    /// What has come, when all threads are done.
    #[must_use]
    pub fn report(&self) -> Report {
        let (begin, end) = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.read();
        let end = end.unwrap_or(now);
        let begin = begin.unwrap_or(end);
        Report {
            // Other threads may have been working on some when the last one came.
            counts: now.counts.since(&begin.counts),
            time: end.at - begin.at,
            cpu: end.cpu - begin.cpu,
        }
    }

    fn read(&self) -> Reading {
        let sum = |count: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| count(shard).load(Relaxed)).sum()
        };
        let counts = Counts {
            datagrams: sum(|shard| &shard.datagrams),
            bytes: sum(|shard| &shard.bytes),
            notifications: sum(|shard| &shard.notifications),
            twice: sum(|shard| &shard.twice),
        };
        Reading { at: Instant::now(), cpu: cpu_time(Whose::Process), counts }
    }

    /// The first datagram, or a signal. Returns whether to go on.
    #[cold]
    fn seldom(&self, datagram: &[u8]) -> bool {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let (begin, end) = &mut *clock;
        if datagram.len() >= SIGNAL_BELOW {
            if begin.is_none() {
                *begin = Some(self.read());
                self.begun.store(true, Relaxed);
            }
        } else if datagram == BEGIN {
            *begin = Some(self.read());
            self.begun.store(true, Relaxed);
        } else if end.is_none() {
            *end = Some(self.read());
        }
        end.is_none()
    }

    /// Notes that a number has come. Returns whether it had before.
    fn again(&self, datagram: &[u8]) -> bool {
        let number = datagram.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let bit = 1 << (number % 64);
        let word = usize::try_from(number / 64).ok().and_then(|word| self.seen.get(word));
        // What was never sent has come too often, too.
        word.is_none_or(|word| word.fetch_or(bit, Relaxed) & bit != 0)
    }
}

/// A thread's part in counting.
#[derive(Debug)]
pub struct Tally<'a> {
    counter: &'a Counter,
    shard: &'a Shard,
}

impl Tally<'_> {
    /// The thread has learned that there is something: by a packet, an event, a look, or a system
    /// call that has returned.
    #[inline]
    pub fn notified(&self) {
        add(&self.shard.notifications, 1);
    }

    /// Counts a datagram, and works on it. Returns whether to go on.
    #[inline(always)]
    #[must_use]
    pub fn datagram(&self, datagram: &[u8]) -> bool {
        if datagram.len() < SIGNAL_BELOW {
            return self.counter.seldom(datagram);
        }
        if !self.counter.begun.load(Relaxed) && !self.counter.seldom(datagram) {
            return false;
        }
        add(&self.shard.datagrams, 1);
        add(&self.shard.bytes, datagram.len() as u64);
        if !self.counter.seen.is_empty() && self.counter.again(datagram) {
            add(&self.shard.twice, 1);
        }
        if !self.counter.options.work.is_zero() {
            work(self.counter.options.work);
        }
        true
    }
}

/// Adds to what nobody else writes to.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed) + more, Relaxed);
}

/// Uses the CPU for so long: what a program would do with a datagram.
#[inline(never)]
fn work(time: Duration) {
    let end = cpu_time(Whose::Thread) + time;
    while cpu_time(Whose::Thread) < end {
        std::hint::spin_loop();
    }
}

/// Whose CPU time.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Process,
    Thread,
}

#[cfg(unix)]
fn cpu_time(whose: Whose) -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let clock = match whose {
        Whose::Process => ClockId::ProcessCPUTime,
        Whose::Thread => ClockId::ThreadCPUTime,
    };
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// As Windows counts it: by its ticks, so that a thread may work for longer than it should.
#[cfg(windows)]
fn cpu_time(whose: Whose) -> Duration {
    use windows_sys::Win32::{
        Foundation::FILETIME,
        System::Threading::{GetCurrentProcess, GetCurrentThread, GetProcessTimes, GetThreadTimes},
    };
    let [mut begun, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    let [begun, ended] = [&raw mut begun, &raw mut ended];
    // SAFETY: handles of our own, and the times live across the calls.
    unsafe {
        match whose {
            Whose::Process => {
                let own = GetCurrentProcess();
                GetProcessTimes(own, begun, ended, &raw mut kernel, &raw mut user)
            }
            Whose::Thread => {
                let own = GetCurrentThread();
                GetThreadTimes(own, begun, ended, &raw mut kernel, &raw mut user)
            }
        }
    };
    let ticks =
        |time: FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    Duration::from_nanos(100 * (ticks(kernel) + ticks(user)))
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        Self {
            datagrams: self.datagrams - before.datagrams,
            bytes: self.bytes - before.bytes,
            notifications: self.notifications - before.notifications,
            twice: self.twice - before.twice,
        }
    }
}

impl Report {
    /// For programs to read.
    #[must_use]
    pub fn json(&self) -> String {
        let Counts { datagrams, bytes, notifications, twice } = self.counts;
        format!(
            "{{\"datagrams\":{datagrams},\"bytes\":{bytes},\"notifications\":{notifications},\
             \"twice\":{twice},\"seconds\":{},\"cpu_ns\":{}}}",
            self.time.as_secs_f64(),
            self.cpu.as_nanos()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { datagrams, bytes, notifications, twice } = self.counts;
        let count = datagrams as f64;
        writeln!(f, "{datagrams} datagrams, {bytes} bytes, in {:.3} s", self.time.as_secs_f64())?;
        writeln!(f, "{:.0} datagrams a second", count / self.time.as_secs_f64())?;
        writeln!(f, "{:.0} ns of CPU time each", self.cpu.as_nanos() as f64 / count)?;
        write!(f, "{:.1} for each of {notifications} notifications", count / notifications as f64)?;
        if twice > 0 {
            write!(f, "\n{twice} came more than once")?;
        }
        Ok(())
    }
}
