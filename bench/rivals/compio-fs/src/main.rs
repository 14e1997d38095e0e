//! Random reads of a file with compio: a runtime per thread, and a task per read in flight.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::thread;

use compio::BufResult;
use compio::driver::ProactorBuilder;
use compio::fs::OpenOptions;
use compio::io::AsyncReadAt;
use compio::runtime::{RuntimeBuilder, spawn};
use rival_common::reads::{self, Options, Work, block};

fn main() -> io::Result<()> {
    reads::main("compio", &[("read", read), ("read-direct", read)])
}

fn read(options: &Options, work: &Arc<Work>) -> io::Result<()> {
    let threads: Vec<_> = (0..options.threads)
        .map(|number| {
            let (options, work) = (options.clone(), Arc::clone(work));
            thread::spawn(move || run(&options, &work, number))
        })
        .collect();
    let panicked = |_| Err(io::Error::other("a runtime panicked"));
    threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
}

fn run(options: &Options, work: &Arc<Work>, number: usize) -> io::Result<()> {
    let mut proactor = ProactorBuilder::new();
    proactor.single_issuer(true).coop_taskrun(true).taskrun_flag(true);
    RuntimeBuilder::new().with_proactor(proactor).build()?.block_on(async {
        let mut how = OpenOptions::new();
        how.read(true);
        if options.direct {
            how.custom_flags(libc::O_DIRECT);
        }
        let file = how.open(&options.file).await?;
        let each = options.depth / options.threads;
        let tasks: Vec<_> = (0..each)
            .map(|task| {
                let (file, work) = (file.clone(), Arc::clone(work));
                spawn(async move {
                    let mut positions = work.positions(number * each + task);
                    let mut buffer = block();
                    while work.goes_on() {
                        let position = positions.draw();
                        let BufResult(read, filled) = file.read_at(buffer, position).await;
                        work.done(position, &filled[..read?]);
                        buffer = filled;
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await.map_err(|_| io::Error::other("a task panicked"))??;
        }
        Ok(())
    })
}
