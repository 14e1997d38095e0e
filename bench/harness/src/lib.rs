//! Runs wharf and its rivals side by side, and says what each of them costs.
//!
//! Every server is a process of its own, and so is the load generator: what each of them uses can
//! then be told apart. The harness starts them anew for every window, one candidate after the
//! other, so that a quiet or a busy minute of the machine falls on all of them alike.
//!
//! The parts, from the outside in: [`cli`] reads the command line; [`run`] goes through scenarios,
//! rounds and candidates, one run at a time ([`lock`]); [`scenario`] says what a scenario is, and
//! each file in `scenarios` is one; [`candidate`] knows how a server is started; [`child`] and
//! [`launch`] see to it that no process is left behind; [`load`] is the generator; [`measure`]
//! reads clocks and counters; [`stats`] makes medians of samples and says what may be ranked;
//! [`report`] is what comes of it, as a table and as JSON.

pub mod candidate;
pub mod child;
pub mod cli;
pub mod launch;
pub mod load;
pub mod lock;
pub mod make;
pub mod measure;
pub mod metric;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stats;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

pub use cli::run;

/// Why something could not be measured, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Runs one of the harness's helpers, which are started by the harness itself.
fn helper(name: &str, args: &[OsString]) -> Option<ExitCode> {
    let outcome = match name {
        "launch" => launch::run(args),
        "load" => load::run(args),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    })
}
