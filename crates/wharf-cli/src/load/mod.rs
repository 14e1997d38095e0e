//! `wharf load`: a load generator that stands on the library itself.

mod generator;
mod pattern;
mod peer;
mod tally;
pub(crate) mod udp;

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    generator::{Generator, Progress, Shared},
    tally::Tally,
};
use crate::{
    cli::Load,
    output::{self, grouped},
    system,
};

/// Descriptors a thread needs beside those of its connections, with some to spare.
const DESCRIPTORS_BESIDE: u64 = 32;
/// How long a connect may take that finds out which of a name's addresses answers.
const TRIAL_PATIENCE: Duration = Duration::from_secs(3);
/// How often the progress is drawn.
const PROGRESS_TICK: Duration = Duration::from_millis(200);

/// Puts load on a server. False: it went wrong, and that has been said.
pub(crate) fn run(options: &Load) -> anyhow::Result<bool> {
    let descriptors = system::raise_descriptors();
    let needed = options.connections as u64 + options.threads as u64 * DESCRIPTORS_BESIDE;
    if let Some(descriptors) = descriptors.filter(|descriptors| *descriptors < needed) {
        bail!(
            "{} connections need {needed} descriptors, and this process may have {descriptors}; \
             raise RLIMIT_NOFILE (ulimit -n), or ask for fewer connections",
            options.connections
        );
    }
    let target = resolve(&options.target)?;

    let stop = stop_flag()?;
    let threads = options.threads.min(options.connections);
    let shared = Shared {
        stop,
        ready: Barrier::new(threads),
        connected: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    };
    let progress: Vec<_> = (0..threads).map(|_| Progress::default()).collect();
    let mut generators = Vec::with_capacity(threads);
    for (number, progress) in progress.iter().enumerate() {
        let share = |number| number * options.connections / threads;
        let connections = share(number)..share(number + 1);
        let generator = Generator::new(options, target, connections, &shared, progress)
            .context("cannot make a completion port (wharf doctor says more)")?;
        generators.push(generator);
    }
    let total = thread::scope(|scope| {
        let running: Vec<_> =
            generators.into_iter().map(|generator| scope.spawn(|| generator.run())).collect();
        show_progress(options, &shared, &progress);
        let mut total = Tally::new();
        for thread in running {
            match thread.join() {
                Ok(tally) => total.add(&tally),
                Err(_) => total.fail(1, "a thread of the load panicked"),
            }
        }
        total
    });

    let report = total.report(options);
    if options.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    if !report.good() {
        output::note(&format!("wharf: {}", report.complaint()));
    }
    Ok(report.good())
}

/// The first signal ends the load early, with its result; the second ends the program.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    system::stop_first(stop.clone())
        .map_err(wharf::Error::from)
        .context("cannot handle signals")?;
    Ok(stop)
}

/// A bar on the terminal, for so long a time. None: there is no terminal.
fn progress_bar(time: Duration) -> Option<ProgressBar> {
    let bar = ProgressBar::new(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if bar.is_hidden() {
        return None;
    }
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    Some(bar)
}

/// Finds an address of the target; if it has several, one that answers.
fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    let context = || format!("cannot find {target}");
    let addresses: Vec<_> = target.to_socket_addrs().with_context(context)?.collect();
    let answers = |address: &&SocketAddr| {
        addresses.len() == 1 || TcpStream::connect_timeout(address, TRIAL_PATIENCE).is_ok()
    };
    let chosen = addresses.iter().find(answers).or_else(|| addresses.first());
    chosen.copied().with_context(|| format!("{target} has no address"))
}

/// Draws the progress on a terminal, until the threads have ended.
fn show_progress(options: &Load, shared: &Shared, progress: &[Progress]) {
    let Some(bar) = progress_bar(options.seconds) else { return };
    bar.set_message("connecting");
    let mut begin = None;
    while shared.ended.load(Ordering::SeqCst) < progress.len() as u64 {
        thread::sleep(PROGRESS_TICK);
        let requests = progress.iter().map(|one| one.requests.load(Ordering::Relaxed)).sum::<u64>();
        if requests > 0 {
            let begin = *begin.get_or_insert_with(Instant::now);
            bar.set_position(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
            bar.set_message(format!("{} messages", grouped(requests)));
        }
    }
    bar.finish_and_clear();
}
