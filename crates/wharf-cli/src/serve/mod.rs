//! `wharf serve`.
//!
//! The workers handle packets, see [`service`] and, for files, [`files`]; beside them one thread
//! looks after signals, the drain, and peers that say or read nothing, see [`supervisor`].

mod files;
mod http;
mod service;
#[cfg_attr(windows, path = "site_windows.rs")]
mod site;
mod supervisor;

use std::{
    net::ToSocketAddrs,
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use anyhow::Context;
use serde::Serialize;
use socket2::SockRef;
use wharf::{Builder, Port, Stats};

use self::{
    files::Files,
    service::{Key, Server, Totals},
    site::Site,
    supervisor::{Supervisor, Verdict},
};
use crate::{
    cli::{Serve, Service},
    output::{self, bytes, count, grouped},
    system::{self, Ending},
};

/// How many workers the service block has at least: most of them sleep.
const BLOCK_WORKERS_MIN: usize = 16;

/// The size of the pools' buffers.
const BUFFER_BYTES: usize = 8 << 10;

/// Serves until it is told to stop.
pub(crate) fn run(options: &Serve) -> anyhow::Result<()> {
    system::raise_descriptors();
    // Before anything says that we are ready: from then on a signal means a drain.
    let ending = Ending::new().context("cannot handle signals")?;

    let site = options.files.as_ref().map(|folder| {
        Site::new(folder).with_context(|| format!("cannot serve {}", folder.display()))
    });
    let site = site.transpose()?;
    let port: Port<Key> = Builder::new()
        .driver(options.driver)
        .concurrency(options.concurrency)
        .pool(options.buffers, BUFFER_BYTES)
        .build()
        .context("cannot make a completion port (wharf doctor says more)")?;
    let totals = Arc::new(Totals::default());
    let mut listeners = Vec::with_capacity(options.tcp.len());
    for address in &options.tcp {
        let found: Vec<_> =
            address.to_socket_addrs().with_context(|| format!("cannot find {address}"))?.collect();
        let listener = port
            .listen(&*found, Key::Listener)
            .with_context(|| format!("cannot listen on {address}"))?;
        if site.is_some() {
            // Connections have it from their listener: one that takes nothing ends.
            system::limit_sends(&SockRef::from(&listener), options.idle)
                .context("cannot limit how long a client takes")?;
        }
        totals.listening();
        listener.accept().with_context(|| format!("cannot accept on {address}"))?;
        listeners.push(listener);
    }
    for listener in &listeners {
        output::line(&format!("listening tcp {}", listener.local_addr()?))?;
    }

    let begin = Instant::now();
    let idle = site.is_some().then_some(options.idle);
    let files = site.map(|site| Files::new(site, totals.clone()));
    let server = Server::new(options.service, options.size, files, totals.clone());
    let workers = workers(options, port.stats().concurrency);
    let supervisor = Supervisor {
        port: &port,
        listeners,
        totals: &totals,
        service: options.service,
        idle,
        patience: options.drain,
    };
    let end_of_signals = ending.handle();
    let (told, tell) = mpsc::channel();
    let (served, verdict) = thread::scope(|scope| {
        scope.spawn(move || ending.tell(&told));
        let supervisor = scope.spawn(move || supervisor.run(&tell));
        let served = port.workers(workers).run(|packet| server.handle(packet));
        end_of_signals.close();
        (served, supervisor.join())
    });
    let stats = port.stats();
    // Ends the connections that are left, which then count as cut.
    drop(port);
    served.context("the port broke")?;
    let verdict = verdict.map_err(|_| anyhow::anyhow!("the supervisor panicked"))?;

    let summary = Summary::new(&totals, &stats, begin);
    if let Some(verdict) = verdict {
        output::note(&drained(&verdict, &summary));
    }
    if options.json {
        output::json(&summary)?;
    } else {
        summary.note();
    }
    Ok(())
}

fn workers(options: &Serve, concurrency: usize) -> usize {
    let least = if options.service == Service::Block { BLOCK_WORKERS_MIN } else { 1 };
    options.workers.unwrap_or_else(|| (2 * concurrency).max(least))
}

/// Says how a drain went.
fn drained(verdict: &Verdict, summary: &Summary) -> String {
    let connections = &summary.connections;
    let finished = connections.finished - verdict.finished_before;
    let failed = connections.failed - verdict.failed_before;
    let mut text = format!("drained: {} finished", count(finished, "connection"));
    if failed > 0 {
        text += &format!(", {} failed", grouped(failed));
    }
    text += &format!(", {} cut", grouped(connections.cut));
    if connections.cut > 0 {
        text += if verdict.hurried { " at the second signal" } else { " after --drain seconds" };
    }
    text
}

/// What was done, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Summary {
    seconds: f64,
    connections: Connections,
    /// For files.
    requests: u64,
    bytes_received: u64,
    bytes_sent: u64,
    concurrency: usize,
    packets: u64,
    stolen: u64,
    hand_overs: u64,
    blocks_noticed: u64,
    kernel_entries: u64,
    buffers_exhausted: u64,
}

#[derive(Debug, Serialize)]
struct Connections {
    accepted: u64,
    finished: u64,
    failed: u64,
    cut: u64,
}

impl Summary {
    fn new(totals: &Totals, stats: &Stats, begin: Instant) -> Self {
        let ended = totals.ended();
        Self {
            seconds: begin.elapsed().as_secs_f64(),
            connections: Connections {
                accepted: totals.accepted(),
                finished: ended.finished,
                failed: ended.failed,
                cut: ended.cut,
            },
            requests: totals.requests(),
            bytes_received: ended.received,
            bytes_sent: ended.sent,
            concurrency: stats.concurrency,
            packets: stats.packets,
            stolen: stats.stolen,
            hand_overs: stats.hand_overs,
            blocks_noticed: stats.blocks_noticed,
            kernel_entries: stats.kernel_entries,
            buffers_exhausted: stats.buffers_exhausted,
        }
    }

    fn note(&self) {
        let Connections { accepted, finished, failed, cut } = self.connections;
        output::note(&format!(
            "served {} in {:.1} s: {} finished, {} failed, {} cut",
            count(accepted, "connection"),
            self.seconds,
            grouped(finished),
            grouped(failed),
            grouped(cut),
        ));
        output::note(&format!(
            "received {}, sent {}",
            bytes(self.bytes_received),
            bytes(self.bytes_sent)
        ));
        output::note(&format!(
            "{}, {} stolen; {}; {}; {}; {}",
            count(self.packets, "packet"),
            grouped(self.stolen),
            count(self.hand_overs, "hand-over"),
            count(self.blocks_noticed, "block") + " noticed",
            grouped(self.kernel_entries) + " kernel entries",
            count(self.buffers_exhausted, "wait") + " for a buffer",
        ));
    }
}
