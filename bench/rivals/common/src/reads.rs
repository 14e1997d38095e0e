//! Random reads of a file: what is the same for everybody. Where to read, what is counted, and
//! whether the right bytes came. How the reads are made is each rival's own business.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::exit;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::ClockId;

use crate::version;

/// Bytes of a read.
pub const BLOCK: usize = 4096;

/// What is to be read, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file.
    pub file: PathBuf,
    /// How many reads are in flight at any time.
    pub depth: usize,
    /// How many threads there are to be.
    pub threads: usize,
    /// Whether to read past the page cache.
    pub direct: bool,
    warm_up: Duration,
    window: Duration,
}

/// A way to read: opens the file and reads for as long as [`Work::goes_on`].
pub type Reader = fn(&Options, &Arc<Work>) -> io::Result<()>;

/// What all readers of a program share.
#[derive(Debug)]
pub struct Work {
    blocks: u64,
    reads: AtomicU64,
    stop: AtomicBool,
}

impl Work {
    /// Counts a read, and checks what it has brought. Each block of the file begins with its own
    /// position. Wrong bytes end the program.
    pub fn done(&self, position: u64, block: &[u8]) {
        let found = block.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if block.len() != BLOCK || found != Some(position) {
            eprintln!("read {} bytes at {position}, which say {found:?}", block.len());
            exit(1);
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there is more to read.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Where to read. Each reader has a number of its own.
    #[must_use]
    pub fn positions(&self, reader: usize) -> Positions {
        Positions {
            state: (reader as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            blocks: self.blocks,
        }
    }
}

/// Positions of blocks, at random.
#[derive(Debug)]
pub struct Positions {
    state: u64,
    blocks: u64,
}

impl Positions {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        number % self.blocks * BLOCK as u64
    }
}

/// Memory for a block, where direct I/O can use it. It stays until the program ends.
#[must_use]
pub fn block() -> &'static mut [u8] {
    #[repr(align(4096))]
    struct Aligned([u8; BLOCK]);
    &mut Box::leak(Box::new(Aligned([0; BLOCK]))).0
}

impl Options {
    /// Opens the file with the standard library.
    pub fn open(&self) -> io::Result<File> {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).custom_flags(flags).open(&self.file)
    }
}

/// The whole program: reads the command line, reads the file for so long, and says what that took.
/// `readers` are the services that it offers: `read`, `read-direct`, each perhaps with `:DESIGN`.
pub fn main(package: &str, readers: &[(&str, Reader)]) -> io::Result<()> {
    let mut options = Options {
        file: PathBuf::new(),
        depth: 32,
        threads: 1,
        direct: false,
        warm_up: Duration::from_millis(200),
        window: Duration::from_millis(700),
    };
    let mut reader = None;
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--describe" {
            let services: Vec<_> = readers.iter().map(|(service, _)| service).collect();
            // Of the standard library there is nothing to say.
            let version = version(package).map(|it| format!("{package} {it}"));
            let version = version.as_deref().unwrap_or(package);
            println!("{{\"version\":\"{version}\",\"services\":{services:?}}}");
            return Ok(());
        }
        let value = args.next().unwrap_or_else(|| wrong(&flag));
        match flag.as_str() {
            "--service" => {
                reader = readers.iter().find(|(service, _)| *service == value);
                options.direct = value.starts_with("read-direct");
            }
            "--file" => options.file = PathBuf::from(&value),
            "--depth" => options.depth = number(&flag, &value),
            "--threads" => options.threads = number(&flag, &value),
            "--warm-up" => options.warm_up = Duration::from_millis(number(&flag, &value)),
            "--window" => options.window = Duration::from_millis(number(&flag, &value)),
            // What all rivals are told, and what is of no use here.
            "--tcp" | "--size" => {}
            _ => wrong(&flag),
        }
    }
    let (_, reader) = reader.unwrap_or_else(|| wrong("--service"));
    measure(*reader, options)
}

fn number<T: FromStr>(flag: &str, value: &str) -> T {
    value.parse().unwrap_or_else(|_| wrong(flag))
}

fn wrong(flag: &str) -> ! {
    eprintln!("{flag}: cannot understand it");
    exit(2);
}

fn measure(reader: Reader, options: Options) -> io::Result<()> {
    let (warm_up, window) = (options.warm_up, options.window);
    let work = Arc::new(Work {
        blocks: (std::fs::metadata(&options.file)?.len() / BLOCK as u64).max(1),
        reads: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let reading = thread::spawn({
        let work = Arc::clone(&work);
        move || {
            if let Err(error) = reader(&options, &work) {
                eprintln!("{error}");
                exit(1);
            }
        }
    });
    let used = || {
        let used = ClockId::CLOCK_PROCESS_CPUTIME_ID.now();
        (work.reads.load(Ordering::Relaxed), Duration::from(used.expect("every kernel has it")))
    };
    thread::sleep(warm_up);
    let begin = Instant::now();
    let (reads_before, cpu_before) = used();
    thread::sleep(window);
    let (reads, cpu) = used();
    let nanos = begin.elapsed().as_nanos();
    let (reads, cpu_ns) = (reads - reads_before, (cpu - cpu_before).as_nanos());
    println!("{{\"reads\":{reads},\"nanos\":{nanos},\"cpu_ns\":{cpu_ns}}}");
    work.stop.store(true, Ordering::Relaxed);
    reading.join().map_err(|_| io::Error::other("a reader panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_all_over_the_file() {
        let work = Work { blocks: 4, reads: AtomicU64::new(0), stop: AtomicBool::new(false) };
        let mut positions = work.positions(0);
        let mut seen: Vec<_> = (0..100).map(|_| positions.draw()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 4096, 8192, 12288]);
        work.done(8192, &[&8192_u64.to_le_bytes()[..], &[0; BLOCK - 8]].concat());
        assert_eq!(work.reads.load(Ordering::Relaxed), 1);
    }
}
