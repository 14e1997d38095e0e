//! `wharf copy`: a file copied with a window of overlapped reads and writes.
//!
//! What is written goes to a file beside the destination, which gets the destination's name when
//! all of it is there, and is removed otherwise.

cfg_select! {
    windows => {
        mod windows;
        use windows as platform;
    }
    _ => {
        mod linux;
        use linux as platform;
    }
}

use std::{
    fs::{self, File, FileTimes},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wharf::{Buf, Builder, Op, OpenOptions, Port, Wait};

use crate::{
    cli::Copy,
    output::{self, bytes},
    system,
};

/// How often it looks whether it is to stop.
const TICK: Duration = Duration::from_millis(100);
/// The alignment of buffers that need none.
const PAGE: usize = 4096;

/// Which file a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

type Handle = wharf::File<Side, Block>;

/// A piece of the file.
#[derive(Clone, Copy, Debug)]
struct Block {
    at: u64,
    length: usize,
}

/// What was done, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Summary {
    bytes: u64,
    /// Bytes that were read and written: not those of holes.
    copied: u64,
    seconds: f64,
    verified: bool,
}

/// Copies a file.
pub(crate) fn run(options: &Copy) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    system::stop(stop.clone()).map_err(wharf::Error::from).context("cannot handle signals")?;
    let begin = Instant::now();
    let source = &options.source;
    let destination = destination(source, &options.destination)?;
    let said = |path: &Path| format!("cannot read {}", path.display());
    // Looked at before it is opened: opening may wait (a FIFO), or be refused (on Windows, a
    // folder).
    let metadata = fs::metadata(source).with_context(|| said(source))?;
    ensure!(metadata.is_file(), "{} is no regular file", source.display());
    let original = File::open(source).with_context(|| said(source))?;
    let metadata = original.metadata().with_context(|| said(source))?;
    if let Ok(there) = fs::metadata(&destination) {
        let same = platform::are_same(source, &destination).with_context(|| said(source))?;
        ensure!(!same, "{} is the source itself", destination.display());
        ensure!(there.is_file(), "{} is there and no regular file", destination.display());
    }

    let temporary = Temporary::new(&destination)?;
    let port: Port<Side, Block> = Builder::new()
        .concurrency(1)
        .queue_limit(2 * u32::try_from(options.depth).unwrap_or(u32::MAX))
        .build()
        .context("cannot make a completion port (wharf doctor says more)")?;
    let copier = Copier::new(options, &port, &temporary.path, metadata.len(), stop)?;
    let blocks = data(&original, metadata.len(), copier.block).context("cannot find the holes")?;
    let copied = copier.copy(blocks).with_context(|| {
        format!("cannot copy {} to {}", source.display(), destination.display())
    })?;
    let writing = || format!("cannot write {}", destination.display());
    copier.finish().with_context(writing)?;
    if options.verify {
        copier.verify(metadata.len())?;
    }
    let (copy, bar) = copier.end();
    let times = FileTimes::new().set_accessed(metadata.accessed()?);
    copy.set_times(times.set_modified(metadata.modified()?)).with_context(writing)?;
    copy.set_permissions(platform::permissions(&metadata)).with_context(writing)?;
    if options.sync {
        copy.sync_all().with_context(writing)?;
    }
    drop(copy);
    temporary.become_it(&destination).with_context(writing)?;
    bar.finish_and_clear();

    let seconds = begin.elapsed().as_secs_f64();
    let summary = Summary { bytes: metadata.len(), copied, seconds, verified: options.verify };
    if options.json {
        return output::json(&summary);
    }
    let nanos = begin.elapsed().as_nanos().max(1);
    let rate = u128::from(copied) * 1_000_000_000 / nanos;
    output::note(&format!(
        "copied {} ({} of data) in {seconds:.2} s, {}/s{}",
        bytes(summary.bytes),
        bytes(copied),
        bytes(u64::try_from(rate).unwrap_or(u64::MAX)),
        if options.verify { ", verified" } else { "" },
    ));
    Ok(())
}

/// In a folder, the copy has the source's name.
fn destination(source: &Path, destination: &Path) -> anyhow::Result<PathBuf> {
    if !destination.is_dir() {
        return Ok(destination.to_owned());
    }
    let name = source.file_name().with_context(|| format!("{} has no name", source.display()))?;
    Ok(destination.join(name))
}

/// The file that is written, until it is whole.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn new(destination: &Path) -> anyhow::Result<Self> {
        let Some(name) = destination.file_name().filter(|name| platform::is_name(name)) else {
            bail!("{} is no name for a file", destination.display());
        };
        for number in 0..100 {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}-{number}.part", std::process::id()));
            let path = destination.with_file_name(hidden);
            // Nobody else reads what is not whole yet.
            let mut options = File::options();
            platform::make_private(&mut options);
            match options.write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot write {}", destination.display()));
                }
            }
        }
        bail!("cannot find a free name beside {}", destination.display());
    }

    /// Gives it the name it is for.
    fn become_it(self, destination: &Path) -> io::Result<()> {
        fs::rename(&self.path, destination)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// The pieces of a file that are no holes.
fn data(file: &File, length: u64, block: usize) -> io::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < length {
        let Some(Range { start: begin, end }) = platform::next_data(file, at, length)? else {
            break;
        };
        // Whole blocks, so that direct I/O finds everything aligned.
        let unit = block as u64;
        let first = blocks.last().map_or(0, |last: &Block| last.at + unit);
        let mut next = (begin / unit * unit).max(first);
        while next < end {
            let length = usize::try_from((length - next).min(unit)).unwrap_or(block);
            blocks.push(Block { at: next, length });
            next += unit;
        }
        at = end.max(at + 1);
    }
    Ok(blocks)
}

/// Reads and writes.
struct Copier<'a> {
    port: &'a Port<Side, Block>,
    source: Handle,
    destination: Handle,
    /// The destination without direct I/O: for its end, which need not be aligned.
    unaligned: Handle,
    /// The same, for what is no operation.
    plain: File,
    depth: usize,
    block: usize,
    alignment: usize,
    length: u64,
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl<'a> Copier<'a> {
    fn new(
        options: &Copy,
        port: &'a Port<Side, Block>,
        temporary: &Path,
        length: u64,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let both = OpenOptions::new().read(true).write(true);
        let open = |path: &Path, options: OpenOptions, side| {
            port.open(path, options, side)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        let to_read = OpenOptions::new().read(true).direct(options.direct);
        let source = open(&options.source, to_read, Side::Source)?;
        let destination = open(temporary, both.clone().direct(options.direct), Side::Destination)?;
        let unaligned = open(temporary, both, Side::Destination)?;
        let alignment = source.alignment()?.max(destination.alignment()?);
        let bar = ProgressBar::new(length);
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Ok(Self {
            port,
            source,
            destination,
            unaligned,
            plain: File::options().read(true).write(true).open(temporary)?,
            depth: options.depth,
            block: options.block.next_multiple_of(alignment.max(PAGE)),
            alignment,
            length,
            bar,
            stop,
        })
    }

    fn buffer(&self) -> Buf {
        Buf::aligned(self.block, self.alignment.max(PAGE))
    }

    /// The next packet, unless somebody wants it all to end.
    fn next(&self) -> anyhow::Result<wharf::Packet<Side, Block>> {
        loop {
            ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
            match self.port.wait_for(TICK) {
                Wait::Packet(packet) => return Ok(packet),
                Wait::TimedOut => {}
                Wait::Broken(error) => return Err(error.into()),
                Wait::Closed => bail!("the port was closed"),
            }
        }
    }

    fn read(&self, file: &Handle, block: Block, mut buf: Buf) -> anyhow::Result<()> {
        if buf.capacity() < block.length {
            buf = self.buffer();
        }
        file.start().context(block).read_at(buf, block.at)?;
        Ok(())
    }

    /// Copies some blocks. Returns how many bytes that were.
    fn copy(&self, blocks: Vec<Block>) -> anyhow::Result<u64> {
        self.bar.set_message("copying");
        let mut blocks = blocks.into_iter();
        let (mut in_flight, mut copied) = (0, 0);
        for block in blocks.by_ref().take(self.depth) {
            self.read(&self.source, block, self.buffer())?;
            in_flight += 1;
        }
        while in_flight > 0 {
            let packet = self.next()?;
            let Some(block) = packet.context else { continue };
            packet.result?;
            match packet.op {
                Op::Read { buf, .. } => {
                    ensure!(
                        buf.len() >= block.length,
                        "the source has become shorter while it was copied"
                    );
                    let mut buf = buf;
                    // What has been added to it since it was opened is left out.
                    buf.truncate(block.length);
                    let aligned = buf.len().is_multiple_of(self.alignment);
                    let file = if aligned { &self.destination } else { &self.unaligned };
                    file.start().context(block).write_at(buf, block.at)?;
                }
                Op::Write { buf, .. } => {
                    copied += block.length as u64;
                    self.bar.set_position(block.at + block.length as u64);
                    match blocks.next() {
                        Some(block) => self.read(&self.source, block, buf)?,
                        None => in_flight -= 1,
                    }
                }
                _ => {}
            }
        }
        Ok(copied)
    }

    /// Gives the copy its length: it may end with a hole.
    fn finish(&self) -> anyhow::Result<()> {
        self.unaligned.set_len(self.length)?;
        self.next()?.result?;
        Ok(())
    }

    /// Closes all that was written to, which may set times: what is left has written nothing.
    fn end(self) -> (File, ProgressBar) {
        (self.plain, self.bar)
    }

    /// Reads both files again and compares them.
    fn verify(&self, length: u64) -> anyhow::Result<()> {
        self.bar.set_message("verifying");
        // From the disk, as far as the system can be made to.
        self.unaligned.sync_data()?;
        self.next()?.result?;
        if let Err(error) = platform::forget(&self.plain) {
            log::debug!("the copy stays in memory: {error}");
        }
        let unit = self.block as u64;
        let mut blocks = (0..length.div_ceil(unit)).map(|number| {
            let at = number * unit;
            Block { at, length: usize::try_from((length - at).min(unit)).unwrap_or(self.block) }
        });
        // The halves that have come, each waiting for the other.
        let mut halves: Vec<(u64, Buf)> = Vec::new();
        let mut in_flight = 0;
        let begin = |block, one, other| {
            self.read(&self.source, block, one)?;
            self.read(&self.destination, block, other)
        };
        for block in blocks.by_ref().take(self.depth.div_ceil(2)) {
            begin(block, self.buffer(), self.buffer())?;
            in_flight += 1;
        }
        while in_flight > 0 {
            let packet = self.next()?;
            let Some(block) = packet.context else { continue };
            packet.result.context("cannot verify")?;
            let Op::Read { mut buf, .. } = packet.op else { continue };
            buf.truncate(block.length);
            let Some(place) = halves.iter().position(|(at, _)| *at == block.at) else {
                halves.push((block.at, buf));
                continue;
            };
            let (_, other) = halves.swap_remove(place);
            ensure!(
                *buf == *other && buf.len() == block.length,
                "the copy differs from the source within {} bytes from {}",
                block.length,
                block.at
            );
            self.bar.set_position(block.at + block.length as u64);
            match blocks.next() {
                Some(block) => begin(block, buf, other)?,
                None => in_flight -= 1,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    /// Would catch: data that is passed over, or a block that is copied twice.
    #[test]
    fn blocks_cover_the_data_once() {
        let path = std::env::temp_dir().join(format!("wharf-copy-test-{}", std::process::id()));
        let mut options = File::options();
        let mut file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        for at in [0_u64, 100_000, 1 << 20, (1 << 20) + 70_000, 5 << 20] {
            file.seek(io::SeekFrom::Start(at)).unwrap();
            file.write_all(b"data").unwrap();
        }
        let length = 9 << 20;
        file.set_len(length).unwrap();
        let blocks = data(&file, length, 65_536).unwrap();
        let _ = fs::remove_file(path);
        for at in [0, 100_000, 1 << 20, (1 << 20) + 70_000, 5 << 20] {
            let holding = blocks
                .iter()
                .filter(|block| (block.at..block.at + block.length as u64).contains(&at));
            assert_eq!(holding.count(), 1, "{at}");
        }
        assert!(blocks.windows(2).all(|pair| pair[0].at + 65_536 <= pair[1].at));
        assert!(blocks.last().is_some_and(|last| last.at + last.length as u64 <= length));
    }
}
