//! What the command line says about datagrams: nothing, where they are not served yet.

use clap::Args;
use serde::Serialize;

/// Nothing.
#[derive(Args, Debug)]
pub(crate) struct Datagrams {}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Tcp,
}

/// How a kind is served.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) workers: Option<usize>,
    pub(crate) concurrency: Option<usize>,
    /// The processors on which its workers run. None: on all.
    pub(crate) cpus: Option<Vec<usize>>,
}

impl Datagrams {
    /// Which kinds share a port.
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "elsewhere there is more")]
    pub(crate) fn groups(&self, _tcp: bool) -> anyhow::Result<Vec<Vec<Kind>>> {
        Ok(vec![vec![Kind::Tcp]])
    }

    /// What is different for a port.
    #[expect(clippy::unused_self, reason = "elsewhere there is more")]
    pub(crate) fn tuning(&self, _kinds: &[Kind]) -> Tuning {
        Tuning { workers: None, concurrency: None, cpus: None }
    }
}
