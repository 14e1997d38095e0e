//! Random reads of a file with a bare io_uring per thread, and nothing that is not needed: the
//! limit.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use io_uring::{IoUring, opcode, types};
use rival_common::reads::{self, BLOCK, Options, Work, block};

fn main() -> io::Result<()> {
    reads::main("io-uring", &[("read", read), ("read-direct", read)])
}

fn read(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|number| scope.spawn(move || run(options, work, number)))
            .collect();
        let panicked = |_| Err(io::Error::other("a thread panicked"));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
    })
}

fn run(options: &Options, work: &Work, number: usize) -> io::Result<()> {
    let file = options.open()?;
    let fd = types::Fd(file.as_raw_fd());
    let each = (options.depth / options.threads).max(1);
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(u32::try_from(each.next_power_of_two()).map_err(io::Error::other)?)?;
    let mut positions = work.positions(number);
    let mut slots: Vec<_> = (0..each).map(|_| (block(), 0)).collect();
    let mut ready: Vec<usize> = (0..each).collect();
    while work.goes_on() {
        for slot in ready.drain(..) {
            let (buffer, position) = &mut slots[slot];
            *position = positions.draw();
            let entry = opcode::Read::new(fd, buffer.as_mut_ptr(), BLOCK as u32)
                .offset(*position)
                .build()
                .user_data(slot as u64);
            // SAFETY: the buffer is never freed, and not looked at until its completion.
            unsafe { ring.submission().push(&entry).map_err(io::Error::other)? };
        }
        ring.submit_and_wait(1)?;
        for done in ring.completion() {
            let slot = usize::try_from(done.user_data()).map_err(io::Error::other)?;
            let length = usize::try_from(done.result())
                .map_err(|_| io::Error::from_raw_os_error(-done.result()))?;
            let (buffer, position) = &slots[slot];
            work.done(*position, &buffer[..length]);
            ready.push(slot);
        }
    }
    Ok(())
}
