//! What every rival server has in common: the command line, the listening socket and the line that
//! says that it is ready. How connections are served is each rival's own business.

#![forbid(unsafe_code)]

mod deal;
mod loops;
pub mod reads;

/// How servers of datagrams are tuned, and how they count: wharf's own file, the same for all.
#[path = "../../../../crates/wharf/examples/datagrams/servers/count.rs"]
pub mod count;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::exit;
use std::time::Duration;

use nix::time::ClockId;
use socket2::{Domain, Protocol, Socket, Type};

use count::Counter;
pub use deal::deal;
pub use loops::{Inbox, run_loops};

/// The read buffer that each rival uses, in bytes. The same everywhere, so that large messages cost
/// everybody the same number of reads; it is also the size that monoio's and compio's documents
/// use.
pub const BUFFER: usize = 8192;

/// The length of every listen queue. Long enough for a thousand connections made in one go.
const BACKLOG: i32 = 4096;

/// What a server does with what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Send every byte back.
    Echo,
    /// Messages of a fixed size: do what the handler does with each, then send it back.
    Messages {
        /// The size of a message, in bytes.
        size: usize,
        /// What to do with it.
        handler: Handler,
    },
}

/// What is done with a message before it is sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Sleep for as many milliseconds as the first byte says, without telling anybody.
    Block,
    /// Use as many microseconds of CPU time as the first two bytes say, the least significant one
    /// first.
    Work,
}

impl Handler {
    /// Does it.
    pub fn handle(self, message: &[u8]) {
        match self {
            Self::Block => {
                let milliseconds = message.first().copied().unwrap_or(0);
                if milliseconds != 0 {
                    std::thread::sleep(Duration::from_millis(milliseconds.into()));
                }
            }
            Self::Work => {
                let bytes = message.first_chunk().copied().unwrap_or([0; 2]);
                work(Duration::from_micros(u16::from_le_bytes(bytes).into()));
            }
        }
    }
}

/// Uses the CPU for so long. Time in which the thread waits for a CPU does not count, so that the
/// work is the same however busy the machine is.
fn work(time: Duration) {
    if time.is_zero() {
        return;
    }
    let used = || {
        let used = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
        Duration::from(used.expect("every kernel has this clock"))
    };
    let end = used() + time;
    while used() < end {
        std::hint::spin_loop();
    }
}

/// The command line of a rival.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where to listen; port 0 means any.
    pub tcp: SocketAddr,
    /// How many threads serve connections.
    pub threads: usize,
    /// What to do with what arrives.
    pub service: Service,
}

/// What a rival is asked to be.
#[derive(Debug)]
pub enum Task {
    /// A server of connections.
    Streams(Options),
    /// A server that counts datagrams.
    Datagrams(Box<Datagrams>),
}

/// Counting datagrams, with one thread.
#[derive(Debug)]
pub struct Datagrams {
    listen: SocketAddr,
    /// What counts.
    pub counter: Counter,
}

/// The services that every rival with streams offers.
const STREAMS: &[&str] = &["echo", "block", "work"];

/// The service of those who count datagrams.
const DATAGRAMS: &str = "datagrams";

impl Options {
    /// Reads the command line of a rival that serves connections only. For `--describe`, says what
    /// the rival is built on (the version of `package` in the lock file) and which services it
    /// offers. Exits with code 2 when the command line is wrong.
    pub fn parse(package: &str) -> Self {
        match Task::parse_for(package, STREAMS) {
            Task::Streams(options) => options,
            Task::Datagrams(_) => unreachable!("it is not offered"),
        }
    }
}

impl Datagrams {
    /// The same as [`Options::parse`], for a rival that counts datagrams only.
    pub fn parse(package: &str) -> Self {
        match Task::parse_for(package, &[DATAGRAMS]) {
            Task::Datagrams(datagrams) => *datagrams,
            Task::Streams(_) => unreachable!("it is not offered"),
        }
    }

    /// The socket, in blocking mode, when everybody knows where it is.
    pub fn bind(&self) -> io::Result<UdpSocket> {
        let socket = count::bind(self.listen)?;
        say(&format!("listening udp {}", socket.local_addr()?))?;
        Ok(socket)
    }

    /// Says what was counted.
    pub fn report(&self) -> io::Result<()> {
        say(&self.counter.report().json())
    }
}

impl Task {
    /// The same as [`Options::parse`], for a rival that does both.
    pub fn parse(package: &str) -> Self {
        Self::parse_for(package, &[STREAMS, &[DATAGRAMS]].concat())
    }

    fn parse_for(package: &str, services: &[&str]) -> Self {
        match Self::read(package, services, std::env::args().skip(1)) {
            Ok(task) => task,
            Err(problem) => {
                eprintln!("{problem}");
                eprintln!(
                    "usage: --tcp ADDR --threads N --service {} [--size BYTES] [--coalesce] | \
                     --describe",
                    services.join("|")
                );
                exit(2);
            }
        }
    }

    fn read(
        package: &str,
        services: &[&str],
        args: impl Iterator<Item = String>,
    ) -> Result<Self, String> {
        let mut tcp = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut threads = 1;
        let mut handler = None;
        let mut datagrams = services == [DATAGRAMS];
        let mut coalesce = false;
        let mut size = 64;
        let mut args = args;
        while let Some(flag) = args.next() {
            if flag == "--describe" {
                let version = version(package).unwrap_or("unknown");
                println!("{{\"version\":\"{package} {version}\",\"services\":{services:?}}}");
                exit(0);
            }
            if flag == "--coalesce" {
                coalesce = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let wrong = |_| format!("{flag}: cannot understand {value:?}");
            match flag.as_str() {
                "--tcp" => {
                    tcp = value.parse().map_err(|_| format!("--tcp: not an address: {value:?}"))?;
                }
                "--threads" => threads = value.parse().map_err(wrong)?,
                "--size" => size = value.parse().map_err(wrong)?,
                "--service" if services.contains(&&*value) => {
                    datagrams = value == DATAGRAMS;
                    handler = match &*value {
                        "block" => Some(Handler::Block),
                        "work" => Some(Handler::Work),
                        _ => None,
                    };
                }
                _ => return Err(format!("unknown option: {flag} {value}")),
            }
        }
        if threads == 0 || size == 0 {
            return Err("--threads and --size must be at least 1".to_owned());
        }
        if datagrams {
            // Others have no threads to choose: only one takes datagrams from a socket.
            let options = count::Options { threads: 1, coalesce, work: Duration::ZERO, numbers: 0 };
            return Ok(Self::Datagrams(Box::new(Datagrams {
                listen: tcp,
                counter: Counter::new(options),
            })));
        }
        let service = match handler {
            None => Service::Echo,
            Some(handler) => Service::Messages { size, handler },
        };
        Ok(Self::Streams(Options { tcp, threads, service }))
    }
}

/// The version of `package` that this workspace is locked to.
fn version(package: &str) -> Option<&'static str> {
    let lock = include_str!("../../../Cargo.lock");
    let name = format!("name = \"{package}\"\n");
    // Where there are several, the older ones come first, and are somebody else's.
    let found = lock.rsplit("[[package]]\n").find(|entry| entry.starts_with(&name))?;
    found.lines().nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}

/// A listening socket, in blocking mode.
///
/// With `shared`, several sockets may listen on the same port and the kernel deals connections out
/// among them.
pub fn listen(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Tells whoever started this server that it takes connections at `addr`.
pub fn ready(addr: SocketAddr) -> io::Result<()> {
    say(&format!("listening tcp {addr}"))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(services: &[&str], line: &str) -> Result<Task, String> {
        Task::read("tokio", services, line.split_whitespace().map(str::to_owned))
    }

    fn read(line: &str) -> Result<Options, String> {
        match task(STREAMS, line)? {
            Task::Streams(options) => Ok(options),
            Task::Datagrams(_) => Err("a server of datagrams".to_owned()),
        }
    }

    #[test]
    fn datagrams_are_for_those_who_offer_them() {
        let line = "--tcp 127.0.0.1:7000 --threads 1 --service datagrams --size 64 --coalesce";
        assert!(read(line).is_err());
        for services in [&["echo", DATAGRAMS][..], &[DATAGRAMS]] {
            let Ok(Task::Datagrams(found)) = task(services, line) else { panic!("{services:?}") };
            assert_eq!(found.listen.port(), 7000);
            assert!(found.counter.options().coalesce);
        }
        assert!(task(&[DATAGRAMS], "--service echo").is_err());
    }

    #[test]
    fn reads_every_option() {
        let options =
            read("--tcp 127.0.0.1:7000 --threads 3 --service block --size 100").expect("valid");
        assert_eq!(options.tcp.port(), 7000);
        assert_eq!(options.threads, 3);
        assert_eq!(options.service, Service::Messages { size: 100, handler: Handler::Block });
    }

    #[test]
    fn work_takes_time() {
        let used = || Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("a clock"));
        let before = used();
        Handler::Work.handle(&[0xe8, 0x03, 9, 9]);
        assert!(used() - before >= Duration::from_micros(1000));
    }

    #[test]
    fn refuses_nonsense() {
        assert!(read("--threads").is_err());
        assert!(read("--threads 0").is_err());
        assert!(read("--service ehco").is_err());
        assert!(read("--tcp here").is_err());
    }

    #[test]
    fn finds_a_locked_version() {
        assert!(version("tokio").is_some_and(|found| found.starts_with("1.")));
        assert!(version("no-such-package").is_none());
    }
}
