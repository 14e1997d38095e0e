//! Datagrams: none are served here yet.

use serde::Serialize;

use wharf::{Op, Result};

use super::{ports, service::Key};
use crate::cli::{Serve, Service};

/// There is none.
#[derive(Debug)]
pub(super) enum Endpoint {}

/// What is counted of it.
#[derive(Debug)]
pub(super) enum Counters {}

/// What became of its datagrams.
#[derive(Debug, Serialize)]
pub(super) enum Report {}

impl Endpoint {
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere there are some")]
    pub(super) fn all(_options: &Serve, _groups: &[ports::Group]) -> anyhow::Result<Vec<Self>> {
        Ok(Vec::new())
    }

    pub(super) fn place(&self) -> anyhow::Result<String> {
        match *self {}
    }

    pub(super) fn stop(&self) {
        match *self {}
    }

    pub(super) fn is_quiet(&self) -> bool {
        match *self {}
    }

    pub(super) fn report(&self) -> anyhow::Result<Report> {
        match *self {}
    }
}

impl Report {
    pub(super) fn line(&self) -> String {
        match *self {}
    }
}

/// Nothing here is about datagrams.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere something may be")]
pub(super) fn handle(
    _service: Service,
    op: Op<Key>,
    _result: Result<usize>,
) -> Result<Option<Op<Key>>> {
    Ok(Some(op))
}
