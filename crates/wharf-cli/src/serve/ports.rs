//! The completion ports: one for each kind of what is served, side by side, or one for all.

use anyhow::Context;
use serde::Serialize;
use wharf::{Builder, Packet, Port};

use super::service::Key;
use crate::{
    cli::{Serve, Service, datagrams::Kind},
    system,
};

/// How many workers the service block has at least: most of them sleep.
const BLOCK_WORKERS_MIN: usize = 16;
/// The size of the pools' buffers.
const BUFFER_BYTES: usize = 8 << 10;

/// A port, with its workers.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) port: Port<Key>,
    kinds: Vec<Kind>,
    workers: usize,
    /// The processors its workers run on; None: on all.
    cpus: Option<Vec<usize>>,
}

/// What a port has done, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) kinds: Vec<Kind>,
    pub(super) concurrency: usize,
    workers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<Vec<usize>>,
    pub(super) packets: u64,
    pub(super) stolen: u64,
    pub(super) hand_overs: u64,
    pub(super) blocks_noticed: u64,
    pub(super) kernel_entries: u64,
    pub(super) buffers_exhausted: u64,
}

/// Makes the ports for what is served.
pub(super) fn make(options: &Serve) -> anyhow::Result<Vec<Group>> {
    let groups = options.datagrams.groups(!options.tcp.is_empty())?;
    groups.into_iter().map(|kinds| Group::new(options, kinds)).collect()
}

impl Group {
    fn new(options: &Serve, kinds: Vec<Kind>) -> anyhow::Result<Self> {
        let tuning = options.datagrams.tuning(&kinds);
        if let Some(cpus) = &tuning.cpus {
            system::check_processors(cpus)?;
        }
        let concurrency = match tuning.concurrency.unwrap_or(options.concurrency) {
            0 => tuning.cpus.as_ref().map_or(0, Vec::len),
            concurrency => concurrency,
        };
        let port: Port<Key> = Builder::new()
            .driver(options.driver)
            .concurrency(concurrency)
            .pool(options.buffers, BUFFER_BYTES)
            .build()
            .context("cannot make a completion port (wharf doctor says more)")?;
        let workers = tuning.workers.or(options.workers).unwrap_or_else(|| {
            let least = if options.service == Service::Block { BLOCK_WORKERS_MIN } else { 1 };
            (2 * port.stats().concurrency).max(least)
        });
        Ok(Self { port, kinds, workers, cpus: tuning.cpus })
    }

    /// Runs the workers until the port is closed.
    pub(super) fn run(
        &self,
        handler: impl Fn(Packet<Key>) -> wharf::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        if let Some(cpus) = &self.cpus {
            // The workers inherit it from this thread, which starts them.
            system::run_on(cpus).context("cannot choose the processors")?;
        }
        self.port.workers(self.workers).run(handler).context("the port broke")
    }

    pub(super) fn report(&self) -> Report {
        let stats = self.port.stats();
        Report {
            kinds: self.kinds.clone(),
            concurrency: stats.concurrency,
            workers: self.workers,
            cpus: self.cpus.clone(),
            packets: stats.packets,
            stolen: stats.stolen,
            hand_overs: stats.hand_overs,
            blocks_noticed: stats.blocks_noticed,
            kernel_entries: stats.kernel_entries,
            buffers_exhausted: stats.buffers_exhausted,
        }
    }
}

/// The port that serves a kind.
pub(super) fn of(groups: &[Group], kind: Kind) -> Option<&Port<Key>> {
    groups.iter().find(|group| group.kinds.contains(&kind)).map(|group| &group.port)
}
