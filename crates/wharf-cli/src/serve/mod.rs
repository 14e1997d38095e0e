//! `wharf serve`.
//!
//! The workers handle packets, see [`service`], for files [`files`] and for datagrams
//! [`datagram`], each kind of them on a port of its own, see [`ports`]; beside them one thread
//! looks after signals, the drain, and peers that say or read nothing, see [`supervisor`].

mod datagram;
mod files;
mod http;
mod ports;
mod service;
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
use wharf::Listener;

use self::{
    datagram::Endpoint,
    files::Files,
    service::{Key, Server, Totals},
    site::Site,
    supervisor::{Supervisor, Verdict},
};
use crate::{
    cli::{Serve, datagrams::Kind},
    output::{self, bytes, count, grouped},
    system::{self, Ending},
};

/// Serves until it is told to stop.
pub(crate) fn run(options: &Serve) -> anyhow::Result<()> {
    system::raise_descriptors();
    // Before anything says that we are ready: from then on a signal means a drain.
    let ending = Ending::new().map_err(wharf::Error::from).context("cannot handle signals")?;

    let site = options.files.as_ref().map(|folder| {
        Site::new(folder).with_context(|| format!("cannot serve {}", folder.display()))
    });
    let site = site.transpose()?;
    let groups = ports::make(options)?;
    let totals = Arc::new(Totals::default());
    let listeners = listen(options, &groups, &totals)?;
    let endpoints = Endpoint::all(options, &groups)?;
    for listener in &listeners {
        output::line(&format!("listening tcp {}", listener.local_addr()?))?;
    }
    for endpoint in &endpoints {
        output::line(&format!("listening {}", endpoint.place()?))?;
    }

    let begin = Instant::now();
    let idle = site.is_some().then_some(options.idle);
    let files = site.map(|site| Files::new(site, totals.clone(), options.idle));
    // All of them have the same.
    let driver = groups.first().map_or(options.driver, |group| group.port.driver());
    let server = Server::new(options.service, options.size, files, totals.clone(), driver);
    let supervisor = Supervisor {
        groups: &groups,
        listeners,
        endpoints: &endpoints,
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
        let serve = |group: &ports::Group| {
            let served = group.run(|packet| server.handle(packet));
            // Where one has ended, all do: of its own accord, none does.
            groups.iter().for_each(|group| group.port.close());
            served
        };
        let running: Vec<_> =
            groups.iter().map(|group| scope.spawn(move || serve(group))).collect();
        let mut served = Ok(());
        for thread in running {
            let ended = thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a port panicked")));
            served = served.and(ended);
        }
        end_of_signals.close();
        (served, supervisor.join())
    });
    let ports: Vec<_> = groups.iter().map(ports::Group::report).collect();
    let datagrams = endpoints.iter().map(Endpoint::report).collect::<anyhow::Result<Vec<_>>>()?;
    // Ends the connections that are left, which then count as cut.
    drop((endpoints, groups));
    served?;
    let verdict = verdict.map_err(|_| anyhow::anyhow!("the supervisor panicked"))?;

    let summary = Summary::new(&totals, ports, datagrams, begin);
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

fn listen(
    options: &Serve,
    groups: &[ports::Group],
    totals: &Totals,
) -> anyhow::Result<Vec<Listener<Key>>> {
    let Some(port) = ports::of(groups, Kind::Tcp) else { return Ok(Vec::new()) };
    let mut listeners = Vec::with_capacity(options.tcp.len());
    for address in &options.tcp {
        let found: Vec<_> =
            address.to_socket_addrs().with_context(|| format!("cannot find {address}"))?.collect();
        let listener = port
            .listen(&*found, Key::Listener)
            .with_context(|| format!("cannot listen on {address}"))?;
        if options.files.is_some() && system::LIMITS_SENDS {
            // Connections have it from their listener: one that takes nothing ends.
            system::limit_sends(&SockRef::from(&listener), options.idle)
                .context("cannot limit how long a client takes")?;
        }
        totals.listening();
        listener.accept().with_context(|| format!("cannot accept on {address}"))?;
        listeners.push(listener);
    }
    Ok(listeners)
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
    ports: Vec<ports::Report>,
    datagrams: Vec<datagram::Report>,
}

#[derive(Debug, Serialize)]
struct Connections {
    accepted: u64,
    finished: u64,
    failed: u64,
    cut: u64,
}

impl Summary {
    fn new(
        totals: &Totals,
        ports: Vec<ports::Report>,
        datagrams: Vec<datagram::Report>,
        begin: Instant,
    ) -> Self {
        let ended = totals.ended();
        let sum = |counter: fn(&ports::Report) -> u64| ports.iter().map(counter).sum();
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
            concurrency: ports.iter().map(|port| port.concurrency).sum(),
            packets: sum(|port| port.packets),
            stolen: sum(|port| port.stolen),
            hand_overs: sum(|port| port.hand_overs),
            blocks_noticed: sum(|port| port.blocks_noticed),
            kernel_entries: sum(|port| port.kernel_entries),
            buffers_exhausted: sum(|port| port.buffers_exhausted),
            ports,
            datagrams,
        }
    }

    fn note(&self) {
        for socket in &self.datagrams {
            output::note(&socket.line());
        }
        if self.ports.iter().any(|port| port.kinds.contains(&Kind::Tcp)) {
            self.note_connections();
        }
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

    fn note_connections(&self) {
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
    }
}
