//! Wharf itself, for what its program has no command for: random reads of a file.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::thread;

use rival_common::reads::{self, BLOCK, Options, Work};
use wharf::{Buf, Builder, Op, OpenOptions, Port, Wait};

fn main() -> io::Result<()> {
    // For design `epoll`, the environment chooses the driver.
    reads::main(
        "wharf",
        &[("read", read), ("read:epoll", read), ("read-direct", read), ("read-direct:epoll", read)],
    )
}

fn read(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    // The context of a read is its position.
    let port: Port<(), u64> = Builder::new().concurrency(options.threads).build()?;
    let how = OpenOptions::new().read(true).direct(options.direct);
    let file = port.open(&options.file, how, ())?;
    let mut positions = work.positions(0);
    for _ in 0..options.depth {
        let position = positions.draw();
        file.start().context(position).read_at(Buf::aligned(BLOCK, BLOCK), position)?;
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (1..=options.threads)
            .map(|number| {
                let port = &port;
                scope.spawn(move || worker(port, work, number))
            })
            .collect();
        let panicked = |_| Err(io::Error::other("a worker panicked"));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(panicked))
    })
}

fn worker(port: &Port<(), u64>, work: &Work, number: usize) -> io::Result<()> {
    let mut positions = work.positions(number);
    while work.goes_on() {
        let packet = match port.wait() {
            Wait::Packet(packet) => packet,
            Wait::Broken(error) => return Err(error.into()),
            _ => break,
        };
        packet.result?;
        let (Some(position), Op::Read { file, buf }) = (packet.context, packet.op) else {
            continue;
        };
        work.done(position, &buf);
        let position = positions.draw();
        file.start().context(position).read_at(buf, position)?;
    }
    Ok(())
}
