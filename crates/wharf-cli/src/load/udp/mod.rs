//! `wharf load udp`: numbered datagrams, and what became of them.

mod generator;
mod report;
mod window;

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::Context;

use self::{generator::Generator, report::Report};
use super::{PROGRESS_TICK, progress_bar, stop_flag};
use crate::{
    cli::LoadUdp,
    output::{self, grouped},
};

/// Puts load on a server. False: it went wrong, and that has been said.
pub(crate) fn run(options: &LoadUdp) -> anyhow::Result<bool> {
    let target = resolve(&options.target)?;
    let stop = stop_flag()?;
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let generator = Generator::new(options, target, &stop, &sent)
        .context("cannot make a socket on a completion port")?;
    let tally = thread::scope(|scope| {
        scope.spawn(|| show_progress(options, &sent, &over));
        let tally = generator.run();
        over.store(true, Ordering::Relaxed);
        tally
    })?;
    let report = Report::new(options, &tally);
    if options.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    let complaint = report.complaint();
    if let Some(complaint) = &complaint {
        output::note(&format!("wharf: {complaint}"));
    }
    Ok(complaint.is_none())
}

fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses =
        target.to_socket_addrs().with_context(|| format!("cannot find {target}"))?;
    addresses.next().with_context(|| format!("{target} has no address"))
}

/// Draws the progress on a terminal, until the load is over.
fn show_progress(options: &LoadUdp, sent: &AtomicU64, over: &AtomicBool) {
    let Some(bar) = progress_bar(options.seconds) else { return };
    while !over.load(Ordering::Relaxed) {
        thread::sleep(PROGRESS_TICK);
        bar.set_position(u64::try_from(bar.elapsed().as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!("{} datagrams", grouped(sent.load(Ordering::Relaxed))));
    }
    bar.finish_and_clear();
}
