//! The command line.

pub(crate) mod datagrams;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use wharf::Driver;

use self::datagrams::Datagrams;
pub(crate) use self::datagrams::LoadUdp;

/// The largest message, in bytes.
const SIZE_MAX: usize = 1 << 20;
/// The longest time that can be asked for, in seconds.
const SECONDS_MAX: f64 = 1e6;

#[derive(Debug, Parser)]
#[command(
    name = "wharf",
    version,
    about = "Servers and tools on I/O completion ports",
    after_help = "Examples:
  wharf doctor                                 what this machine offers
  wharf serve --tcp 127.0.0.1:7000             an echo server
  wharf load tcp 127.0.0.1:7000 --verify       ten seconds of load on it, every byte compared
  wharf copy disk.img backup.img --verify      a file copied, and compared
  wharf bench --quick                          wharf and its rivals, side by side

Exit codes: 0 done, 1 failed, 2 wrong usage. WHARF_LOG=debug says more about what goes on."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(Serve),
    /// Put load on a server and measure it
    Load {
        #[command(subcommand)]
        protocol: Protocol,
    },
    Copy(Copy),
    /// Measure wharf and its rivals side by side, from a checkout of wharf's sources
    // What follows is for the program that this one hands over to, `--help` included.
    #[command(disable_help_flag = true)]
    Bench {
        /// Scenarios and options, or `compare`; --help tells
        #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    Doctor(Doctor),
}

/// Serve connections and datagrams, on completion ports
#[derive(Args, Debug)]
#[command(group = datagrams::places())]
#[command(after_help = "Examples:
  wharf serve --tcp 127.0.0.1:7000
  wharf serve --tcp 0.0.0.0:7000 --tcp [::]:7001 --workers 16
  wharf serve --tcp 127.0.0.1:0 --service block --size 64 --json
  wharf serve --tcp 127.0.0.1:8080 --files public

When it is ready it prints a line per listener, `listening tcp 127.0.0.1:7000`; with port 0 the
system chooses the port. Datagrams are counted; what the system had to throw away is told at the
end.

SIGTERM or SIGINT drains: nothing more is accepted, and connections are served until their peers
close them, or are closed once they have been quiet for a moment with nothing left to send. What
is left after --drain seconds is cut, and so is everything at a second signal. The exit code is 0
(1 if the server could not start).")]
pub(crate) struct Serve {
    /// Where to listen for connections; may be given more than once
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) tcp: Vec<String>,

    #[command(flatten)]
    pub(crate) datagrams: Datagrams,

    /// Serve the files below a folder over HTTP/1.1, and nothing beyond it
    #[arg(long, value_name = "DIR", conflicts_with = "service", requires = "tcp")]
    pub(crate) files: Option<PathBuf>,

    /// With --files: how long a client may take to ask for something, or to take what it gets
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds_to_run)]
    pub(crate) idle: Duration,

    /// What to do with what comes
    #[arg(long, value_enum, default_value_t = Service::Echo)]
    pub(crate) service: Service,

    /// Bytes in a message of the services block and work, at most 1M
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = size)]
    pub(crate) size: usize,

    /// Worker threads [default: twice the concurrency value; for block, at least 16]
    #[arg(long, value_name = "N", value_parser = number(1, 10_000))]
    pub(crate) workers: Option<usize>,

    /// How many workers may run at once; 0: as many as there are processors
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = number(0, 1024))]
    pub(crate) concurrency: usize,

    /// What carries the port: the best that this machine allows (or what WHARF_DRIVER says), or a
    /// certain one
    #[arg(long, value_name = "DRIVER", default_value = "auto", value_parser = driver())]
    pub(crate) driver: Driver,

    /// Buffers of 8 KiB for each worker that may run: only so many connections at once have data
    /// that was received and not handled, or not sent on
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = number(1, 32_768))]
    pub(crate) buffers: usize,

    /// How long a drain may take
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) drain: Duration,

    /// Print the summary at the end as JSON, as the last line on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    /// Send back what comes
    Echo,
    /// Throw away what comes
    Discard,
    /// Sleep for as many milliseconds as a message's first byte says, then send the message back
    Block,
    /// Use the CPU for as many microseconds as a message's first two bytes say, least significant
    /// first, then send the message back
    Work,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Protocol {
    Tcp(Load),
    Udp(LoadUdp),
}

/// Exchange messages with an echo server over TCP
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  wharf load tcp 127.0.0.1:7000 --connections 50 --size 64 --seconds 3 --verify
  wharf load tcp 127.0.0.1:7000 --connections 1000 --rate 20000 --json
  wharf load tcp 127.0.0.1:7000 --connections 50 --block-every 100 --block-ms 10

Every connection keeps --depth messages in flight, and sends the next one when an echo is complete
(a closed loop). With --rate, messages are due at fixed times whatever the server does (an open
loop), and a latency counts from when the message was due: a server that stalls cannot hide it.
A message that must wait for the one before it on its own connection counts that wait too: give
enough connections, or a larger --depth.

When the time is over no new message is sent, and echoes are waited for as long as bytes come;
what is missing after --patience seconds without one counts as errors. (Many large messages can
use up the memory that the system has for TCP, which then stalls for many seconds.) The exit code
is 1 if there was an error or a mismatch, or nothing was done.")]
pub(crate) struct Load {
    /// The server
    #[arg(value_name = "TARGET", value_parser = address)]
    pub(crate) target: String,

    /// How many connections
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = number(1, 60_000))]
    pub(crate) connections: usize,

    /// Bytes in a message, at most 1M
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = size)]
    pub(crate) size: usize,

    /// Messages in flight on each connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number(1, 65_536))]
    pub(crate) depth: usize,

    /// For how long
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds_to_run)]
    pub(crate) seconds: Duration,

    /// How long nothing at all may come, when the time is over, before what is missing is an error
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) patience: Duration,

    /// Messages per second, over all connections [default: as many as the server answers]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) rate: Option<u64>,

    /// Send different bytes on every connection, and compare every echoed byte
    #[arg(long)]
    pub(crate) verify: bool,

    /// For the service block: let one message in N make the handler sleep
    #[arg(long, value_name = "N", requires = "block_ms",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) block_every: Option<u64>,

    /// For how many milliseconds it sleeps
    #[arg(long, value_name = "MS", requires = "block_every",
          value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) block_ms: Option<u8>,

    /// Threads, among which the connections are dealt out; each has a port of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number(1, 1024))]
    pub(crate) threads: usize,

    /// What carries the ports of the generator
    #[arg(long, value_name = "DRIVER", default_value = "auto", value_parser = driver())]
    pub(crate) driver: Driver,

    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say what wharf has here: driver, kernel features, and limits that are in the way
#[derive(Args, Debug)]
#[command(after_help = "The exit code is 1 if no port can be made here.")]
pub(crate) struct Doctor {
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Copy a file, with many reads and writes in flight
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  wharf copy disk.img backup.img
  wharf copy disk.img /mnt/backup/ --direct --verify
  wharf copy large.bin copy.bin --depth 32 --block 1M --json

Holes, permissions and times are kept (on Windows, holes become zeros). The copy is written beside
its destination and gets its name when it is whole; if anything fails, or at Ctrl-C, it is removed,
and what had the name before is as it was. The exit code is 1 then.")]
pub(crate) struct Copy {
    /// The file to copy
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,

    /// Its copy, or the folder for it
    #[arg(value_name = "DST")]
    pub(crate) destination: PathBuf,

    /// Blocks in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = number(1, 1024))]
    pub(crate) depth: usize,

    /// Bytes in a block, at most 1M; rounded up to what the disk wants
    #[arg(long, value_name = "BYTES", default_value = "256K", value_parser = size)]
    pub(crate) block: usize,

    /// Past the system's page cache
    #[arg(long)]
    pub(crate) direct: bool,

    /// Read both files again and compare them
    #[arg(long)]
    pub(crate) verify: bool,

    /// See to it that the copy is on the disk before it gets its name
    #[arg(long)]
    pub(crate) sync: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn driver() -> impl TypedValueParser<Value = Driver> {
    let names = [Driver::Auto, Driver::Uring, Driver::Epoll].map(Driver::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

fn address(text: &str) -> Result<String, String> {
    let wrong = || "give a host and a port, like 127.0.0.1:7000 or [::1]:7000".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let open = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || open || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

fn number(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("give a number from {least} to {most}")),
    }
}

fn size(text: &str) -> Result<usize, String> {
    bytes(text)
        .filter(|size| (1..=SIZE_MAX).contains(size))
        .ok_or_else(|| "give a number of bytes from 1 to 1M, like 64, 64K or 1M".to_owned())
}

fn bytes(text: &str) -> Option<usize> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("give a number of seconds from 0 to {SECONDS_MAX}")),
    }
}

fn seconds_to_run(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("give a time that is not over at once".to_owned()),
        seconds => Ok(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:7000", "[::1]:0", "localhost:65535"] {
            assert_eq!(address(good).as_deref(), Ok(good));
        }
        for bad in ["7000", ":7000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:70", ""] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("1"), Ok(1));
        assert_eq!(size("64K"), Ok(65_536));
        assert_eq!(size("1m"), Ok(1_048_576));
        for bad in ["0", "2M", "1048577", "", "K", "-1", "1.5", "18446744073709551615M"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_finite() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for bad in ["-1", "NaN", "inf", "1e9", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert!(seconds_to_run("0").is_err());
    }
}
