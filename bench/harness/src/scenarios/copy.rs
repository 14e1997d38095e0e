use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::Failure;
use crate::candidate::{Candidate, Start};
use crate::load::{random, seeded};
use crate::measure::{children_cpu_ns, machine_cpu_ns, machine_cpus};
use crate::metric::Metric;
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Copy;

const MIB: u64 = 1 << 20;

/// How long a copy may take.
const PATIENCE: Duration = Duration::from_secs(300);

static MILLIS: Metric =
    Metric::less("ms", "ms", "from the start of the program until its end").digits(1);
static CPU_MS: Metric = Metric::less("cpu_ms", "CPU ms", "CPU time of the program").digits(1);
static RATE_MIB: Metric = Metric::more("mib", "MiB/s", "the size of the file by the time taken");

struct Copy;

impl Scenario for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn place(&self) -> u32 {
        90
    }

    fn about(&self) -> &'static str {
        "a file copied by wharf copy, cp and dd"
    }

    fn definition(&self) -> &'static str {
        "
A file of `size` MiB without holes is copied within the folder for temporary files: by `wharf copy`,
by `cp -p` and by `dd bs=1M`. The source is in the page cache: all of it is read before each window.
The copy is a new file, and removed before the next window, so that nobody pays for another's copy.

With `sync` 0 nobody waits for the disk: what is measured is the way from the page cache to the page
cache. With `sync` 1 everybody does: `wharf copy --sync`, `dd conv=fsync`, and for cp, which has no
option for it, `cp -p` and then `sync COPY`. wharf writes to another name and renames, and keeps
permissions and times, as `cp -p` does; dd does neither.

One operation is one copy, which is compared with the source afterwards. Time and CPU time are those
of the whole program, its start and io_uring's kernel threads included; not those of the kernel's
threads that write to the disk later."
    }

    fn service(&self) -> &'static str {
        "copy"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            // More, and a machine with 16 GiB makes programs wait for the disk while they write.
            Parameter::other("size", "MiB in the file", "# MiB", &[2048], &[256]),
            Parameter::other("sync", "1: until it is on the disk", "sync #", &[0, 1], &[0]),
        ]
    }

    fn needs(&self, _: &Point) -> Needs {
        Needs { cpus: 1, descriptors: 0 }
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&MILLIS, &RATE_MIB, &CPU_MS]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let length = point.get("size") as u64 * MIB;
        let folder = std::env::temp_dir();
        let copy = Copied(folder.join(format!("wharf-bench-copied-{}", std::process::id())));
        let source = source(&folder, length)?;
        room(&folder, length)?;
        // Whatever was thrown out of the page cache meanwhile.
        io::copy(&mut File::open(&source)?, &mut io::sink())?;

        let text = |path: &Path| path.display().to_string();
        let (from, to) = (text(&source), text(&copy.0));
        let mut arguments = vec![&*from, &*to];
        if point.get("sync") != 0 {
            arguments.push("--sync");
        }
        let start = Start { cpus: &bench.cpus, wharf_workers: 1, size: 64 };
        let (cpu_before, machine_before) = (children_cpu_ns()?, machine_cpu_ns());
        let begin = Instant::now();
        let mut running = candidate.start(&bench.places, start, &arguments, &bench.stop)?;
        running.finish(PATIENCE)?;
        let seconds = begin.elapsed().as_secs_f64();
        let (cpu, machine) =
            (children_cpu_ns()? - cpu_before, machine_before.zip(machine_cpu_ns()));
        compare(&source, &copy.0)?;

        let mut sample = Sample::default();
        sample.put(&MILLIS, seconds * 1e3);
        sample.put(&CPU_MS, cpu as f64 / 1e6);
        sample.put(&RATE_MIB, length as f64 / MIB as f64 / seconds);
        sample.others = machine.zip(machine_cpus()).map(|((before, after), cpus)| {
            let others = after.saturating_sub(before).saturating_sub(cpu);
            others as f64 / 1e9 / (seconds * cpus as f64)
        });
        Ok(sample)
    }
}

/// The copy, which is gone when it has been looked at.
struct Copied(PathBuf);

impl Drop for Copied {
    fn drop(&mut self) {
        // A copy that failed may not be there.
        fs::remove_file(&self.0).ok();
    }
}

/// The file to copy, which is made when it is not there, and kept for the next run.
fn source(folder: &Path, length: u64) -> Result<PathBuf, Failure> {
    let path = folder.join("wharf-bench-copy");
    if fs::metadata(&path).is_ok_and(|it| it.len() == length) {
        return Ok(path);
    }
    fs::remove_file(&path).ok();
    room(folder, 2 * length)?;
    let unfinished = Copied(path.with_extension("part"));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished.0)?);
    let mut state = seeded(length);
    for _ in (0..length).step_by(8) {
        file.write_all(&random(&mut state).to_le_bytes())?;
    }
    let file = file.into_inner().map_err(|error| Failure(error.to_string()))?;
    file.sync_all()?;
    fs::rename(&unfinished.0, &path)?;
    Ok(path)
}

/// Says so when there is no room for so much.
fn room(folder: &Path, bytes: u64) -> Result<(), Failure> {
    let found = statvfs(folder)?;
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    if free < bytes {
        return Err(Failure(format!(
            "{} MiB are needed in {}, and {} are free; name another folder with TMPDIR, or a \
             smaller file with --set copy.size=MIB",
            bytes / MIB,
            folder.display(),
            free / MIB
        )));
    }
    Ok(())
}

fn compare(source: &Path, copy: &Path) -> Result<(), Failure> {
    const PIECE: usize = 1 << 20;
    let (mut source, mut copy) = (File::open(source)?, File::open(copy)?);
    if source.metadata()?.len() != copy.metadata()?.len() {
        return Err(Failure("the copy has another length than the source".to_owned()));
    }
    let (mut one, mut other) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let count = source.read(&mut one)?;
        copy.read_exact(&mut other[..count])?;
        if one[..count] != other[..count] {
            return Err(Failure("the copy differs from the source".to_owned()));
        }
        if count == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_differs_is_found() {
        let name = |part: &str| {
            let file = format!("wharf-bench-compare-{}-{part}", std::process::id());
            Copied(std::env::temp_dir().join(file))
        };
        let (one, other) = (name("one"), name("other"));
        let mut bytes = vec![7; 3 << 20];
        fs::write(&one.0, &bytes).expect("a file");
        fs::write(&other.0, &bytes).expect("a file");
        assert_eq!(compare(&one.0, &other.0), Ok(()));
        *bytes.last_mut().expect("some") ^= 1;
        fs::write(&other.0, &bytes).expect("a file");
        assert!(compare(&one.0, &other.0).is_err());
        fs::write(&other.0, &bytes[1..]).expect("a file");
        assert!(compare(&one.0, &other.0).is_err());
    }

    #[test]
    fn too_little_room_is_said() {
        let folder = std::env::temp_dir();
        assert_eq!(room(&folder, 1), Ok(()));
        let said = room(&folder, u64::MAX).expect_err("nobody has that much");
        assert!(said.0.contains("TMPDIR"), "{said}");
    }
}
