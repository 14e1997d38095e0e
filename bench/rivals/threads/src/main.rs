//! Random reads of a file with nothing but threads that call pread: one for each read in flight,
//! and, for comparison, only as many as there are processors, with a read in flight each.

#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use rival_common::reads::{self, Options, Work, block};

fn main() -> io::Result<()> {
    reads::main(
        "pread",
        &[
            ("read", deep),
            ("read:depth-1", shallow),
            ("read-direct", deep),
            ("read-direct:depth-1", shallow),
        ],
    )
}

fn deep(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    read(options, work, options.depth)
}

fn shallow(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    read(options, work, options.threads)
}

fn read(options: &Options, work: &Arc<Work>, threads: usize) -> io::Result<()> {
    let file = options.open()?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|number| {
                let file = &file;
                scope.spawn(move || {
                    let mut positions = work.positions(number);
                    let buffer = block();
                    while work.goes_on() {
                        let position = positions.draw();
                        file.read_exact_at(buffer, position)?;
                        work.done(position, buffer);
                    }
                    Ok(())
                })
            })
            .collect();
        let panicked = |_| Err(io::Error::other("a thread panicked"));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
    })
}
