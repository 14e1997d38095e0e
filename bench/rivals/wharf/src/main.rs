//! Wharf itself, for what its program has no command for: random reads of a file.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::thread;

use rival_common::reads::{self, BLOCK, Options, Work};
use wharf::rio::Region;
use wharf::{Buf, Builder, File, Op, OpenOptions, Packet, Port, Wait};

fn main() -> io::Result<()> {
    // For design `epoll`, the environment chooses the driver.
    reads::main(
        "wharf",
        &[
            ("read", read),
            ("read:epoll", read),
            ("read:registered", read_registered),
            ("read-direct", read),
            ("read-direct:epoll", read),
            ("read-direct:registered", read_registered),
        ],
    )
}

/// Makes memory to read into, for so many reads.
type Memory = fn(usize) -> wharf::Result<Vec<Buf>>;

fn read(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    read_into(options, work, |share| Ok((0..share).map(|_| Buf::aligned(BLOCK, BLOCK)).collect()))
}

fn read_registered(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    read_into(options, work, |share| {
        Ok(Region::aligned(share, BLOCK, BLOCK)?.slices().map(Buf::from).collect())
    })
}

fn read_into(options: &Options, work: &Arc<Work>, memory: Memory) -> io::Result<()> {
    // The context of a read is its position.
    let port: Port<(), u64> = Builder::new().concurrency(options.threads).build()?;
    let how = OpenOptions::new().read(true).direct(options.direct);
    let share = (options.depth / options.threads).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|number| {
                let file = port.open(&options.file, how.clone(), ());
                let port = &port;
                scope.spawn(move || worker(port, file?, || memory(share), work, number))
            })
            .collect();
        let panicked = |_| Err(io::Error::other("a worker panicked"));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(panicked))
    })
}

/// Starts its share of the reads, and each that is over anew.
fn worker(
    port: &Port<(), u64>,
    file: File<(), u64>,
    memory: impl Fn() -> wharf::Result<Vec<Buf>>,
    work: &Work,
    number: usize,
) -> io::Result<()> {
    let mut positions = work.positions(number);
    let start =
        |file: &File<(), u64>, buf, position| file.start().context(position).read_at(buf, position);
    // What is started from a packet belongs to the worker that has it.
    port.post(0).map_err(|refused| refused.error)?;
    while work.goes_on() {
        match port.wait() {
            Wait::Packet(Packet { op: Op::Read { file, buf }, result, context, .. }) => {
                result?;
                work.done(context.unwrap_or(u64::MAX), &buf);
                start(&file, buf, positions.draw())?;
            }
            Wait::Packet(Packet { op: Op::Posted(_), .. }) => {
                for buf in memory()? {
                    start(&file, buf, positions.draw())?;
                }
            }
            Wait::Broken(error) => return Err(error.into()),
            _ => break,
        }
    }
    Ok(())
}
