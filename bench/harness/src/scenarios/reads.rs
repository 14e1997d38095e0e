use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::Failure;
use crate::candidate::{Candidate, Start};
use crate::measure::{machine_cpu_ns, machine_cpus};
use crate::metric::{CPU_NS, Metric, RATE};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Reads;

/// Bytes of the file, and of a read.
const LENGTH: u64 = 256 << 20;
const BLOCK: usize = 4096;

/// How long a program may take beyond the time that it reads.
const SLACK: Duration = Duration::from_secs(20);

struct Reads;

/// What a program says at its end.
#[derive(Deserialize)]
struct Read {
    reads: u64,
    nanos: u64,
    cpu_ns: u64,
}

impl Scenario for Reads {
    fn name(&self) -> &'static str {
        "reads"
    }

    fn place(&self) -> u32 {
        80
    }

    fn about(&self) -> &'static str {
        "random reads of a file that the page cache has, many in flight"
    }

    fn definition(&self) -> &'static str {
        "
Blocks of 4 KiB of a file of 256 MiB, at random places, `depth` of them in flight at any time. The
file is in the page cache: all of it is read before each window. It lies in the folder for temporary
files and is kept for the next run. Each block begins with its own position, which is checked for
every read.

There is no generator: the program that reads has the CPUs for itself, with a thread on each, and
counts its own CPU time, io_uring's kernel threads included. One operation is one read."
    }

    fn service(&self) -> &'static str {
        "read"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![depth(&[32, 1, 8, 128]), Parameter::cpus(&[1, 2], &[1])]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&CPU_NS, &RATE]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[("depth", "cpu_ns")]
    }

    fn needs(&self, point: &Point) -> Needs {
        needs(point)
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        window(bench, point, candidate)
    }
}

/// How many reads are in flight.
pub(super) const fn depth(full: &'static [u64]) -> Parameter {
    Parameter::other("depth", "reads in flight", "depth #", full, &[32])
}

/// A program may open the file anew for each read in flight.
pub(super) fn needs(point: &Point) -> Needs {
    Needs { cpus: point.get("cpus"), descriptors: point.get("depth") }
}

pub(super) fn window(
    bench: &Bench,
    point: &Point,
    candidate: &Candidate,
) -> Result<Sample, Failure> {
    let path = file()?;
    // Whatever was thrown out of the page cache meanwhile.
    io::copy(&mut File::open(&path)?, &mut io::sink())?;
    let cpus = point.get("cpus");
    let start = Start { cpus: &bench.cpus[..cpus], wharf_workers: cpus, size: BLOCK };
    let (warm_up, window) = (bench.method.warm_up_ms, bench.method.window_ms);
    let options = [
        ("--file", path.display().to_string()),
        ("--depth", point.get("depth").to_string()),
        ("--warm-up", warm_up.to_string()),
        ("--window", window.to_string()),
    ];
    let options: Vec<_> = options.iter().flat_map(|(name, value)| [*name, value]).collect();
    let machine_before = machine_cpu_ns();
    let mut running = candidate.start(&bench.places, start, &options, &bench.stop)?;
    let line = running.line(SLACK + Duration::from_millis(warm_up + window))?;
    let machine = machine_before.zip(machine_cpu_ns());
    let read: Read = serde_json::from_str(&line)?;
    if read.reads == 0 {
        return Err(Failure("nothing was read".to_owned()));
    }
    let mut sample = Sample::default();
    sample.put(&CPU_NS, read.cpu_ns as f64 / read.reads as f64);
    sample.put(&RATE, read.reads as f64 * 1e9 / read.nanos as f64);
    sample.others = machine.zip(machine_cpus()).map(|((before, after), cpus)| {
        // Its own CPU time is known for the window only; that of the warm-up counts as alike.
        let seconds = warm_up as f64 / 1e3 + read.nanos as f64 / 1e9;
        let own = read.cpu_ns as f64 / read.nanos as f64 * seconds;
        let used = after.saturating_sub(before) as f64 / 1e9;
        (used - own).max(0.0) / (seconds * cpus as f64)
    });
    Ok(sample)
}

/// The file to read, which is made when it is not there.
fn file() -> Result<PathBuf, Failure> {
    let path = std::env::temp_dir().join("wharf-bench-reads");
    if std::fs::metadata(&path).map_or(0, |it| it.len()) != LENGTH {
        make(&path)?;
    }
    Ok(path)
}

fn make(path: &Path) -> Result<(), Failure> {
    let unfinished = path.with_extension("part");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    let mut block = [0; BLOCK];
    for position in (0..LENGTH).step_by(BLOCK) {
        block[..8].copy_from_slice(&position.to_le_bytes());
        file.write_all(&block)?;
    }
    let file = file.into_inner().map_err(|error| Failure(error.to_string()))?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)?;
    Ok(())
}
