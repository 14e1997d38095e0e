//! Random reads of a file with tokio: with its `fs::File`, and with one file and `spawn_blocking`.
//! Past the page cache with the latter only: `fs::File` reads into memory of its own, which is not
//! aligned.

#![forbid(unsafe_code)]

use std::io::{self, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rival_common::reads::{self, Options, Work, block};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, spawn_blocking};

fn main() -> io::Result<()> {
    reads::main(
        "tokio",
        &[
            ("read", files),
            ("read:spawn-blocking", spawned),
            ("read-direct:spawn-blocking", spawned),
        ],
    )
}

fn runtime(options: &Options) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(options.threads).build()
}

/// A task per read in flight. Each has a file of its own, because a file has one position.
fn files(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    runtime(options)?.block_on(async {
        let mut tasks = Vec::new();
        for number in 0..options.depth {
            let mut file = File::from_std(options.open()?);
            let work = Arc::clone(work);
            tasks.push(tokio::spawn(async move {
                let mut positions = work.positions(number);
                let buffer = block();
                while work.goes_on() {
                    let position = positions.draw();
                    file.seek(SeekFrom::Start(position)).await?;
                    file.read_exact(buffer).await?;
                    work.done(position, buffer);
                }
                Ok(())
            }));
        }
        all(tasks).await
    })
}

/// A task per read in flight, and one file for all, which is read with positions on tokio's threads
/// for what blocks.
fn spawned(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    let file = Arc::new(options.open()?);
    runtime(options)?.block_on(async {
        let mut tasks = Vec::new();
        for number in 0..options.depth {
            let (file, work) = (Arc::clone(&file), Arc::clone(work));
            tasks.push(tokio::spawn(async move {
                let mut positions = work.positions(number);
                let mut buffer = block();
                while work.goes_on() {
                    let (position, file) = (positions.draw(), Arc::clone(&file));
                    let read = move || file.read_exact_at(buffer, position).map(|()| buffer);
                    buffer = spawn_blocking(read).await??;
                    work.done(position, buffer);
                }
                Ok(())
            }));
        }
        all(tasks).await
    })
}

async fn all(tasks: Vec<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    for task in tasks {
        task.await??;
    }
    Ok(())
}
