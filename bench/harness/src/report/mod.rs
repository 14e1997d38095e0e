//! What comes of a run. A report knows everything that is needed to show it: the same tables can be
//! made of its JSON file, by other versions and on other machines.

pub mod compare;
pub mod html;
pub mod plot;
pub mod text;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::measure::Calibration;
use crate::metric::Metric;
use crate::stats::{Spread, ranks};

/// With fewer rounds than these, the spread says nothing.
const ROUNDS_MIN: usize = 3;

/// Changes when older reports cannot be read any more.
const FORMAT: u32 = 1;

/// The part of all CPUs that others may use, in the median window, before nobody is ranked.
const OTHERS_MAX: f64 = 0.15;

/// How much longer the slowest calibration may take than the fastest before nobody is ranked.
const CALIBRATION_MAX: f64 = 1.5;

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The version of what follows.
    pub format: u32,
    /// Where it ran.
    pub machine: Machine,
    /// How it was measured.
    pub method: Method,
    /// What each candidate is built on.
    pub versions: BTreeMap<String, String>,
    /// Whether it was ended before everything was measured.
    pub interrupted: bool,
    /// What the scenarios are, by their names.
    pub scenarios: BTreeMap<String, Definition>,
    /// The tables.
    pub outcomes: Vec<Outcome>,
}

/// What a scenario is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Definition {
    /// In one line.
    pub about: String,
    /// In full, in paragraphs.
    pub definition: String,
}

/// Where a run took place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The processor.
    pub cpu: Option<String>,
    /// How many of them we may use.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The compiler of the harness; the rivals are built with the same.
    pub rustc: String,
    /// The commit of the sources.
    pub commit: Option<String>,
    /// When.
    pub unix_time: u64,
}

/// How to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Method {
    /// How often each candidate gets a window.
    pub rounds: usize,
    /// How long a window is, in milliseconds.
    pub window_ms: u64,
    /// How long the exchange goes on before the window, in milliseconds.
    pub warm_up_ms: u64,
    /// How many seconds the whole run may take, about. Windows are shorter then than they would be,
    /// and in the end there are fewer rounds.
    pub seconds_max: Option<u64>,
    /// The threads of wharf, most of which do not run at the same time.
    pub wharf_workers: usize,
    /// With whom the others are compared.
    pub baseline: String,
}

/// One table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The scenario.
    pub scenario: String,
    /// Scenario and parameters, in words.
    pub title: String,
    /// The parameters.
    pub point: BTreeMap<String, u64>,
    /// The command that measures it again.
    pub command: String,
    /// What was counted. The first is what candidates are compared by.
    pub metrics: Vec<Metric>,
    /// Whom the others are compared with where the one that was asked for does not take part.
    #[serde(default)]
    pub baseline: Option<String>,
    /// The parameter and the metric of each plot of one by the other.
    pub plots: Vec<(String, String)>,
    /// The candidates.
    pub rows: Vec<Row>,
    /// How the machine was, round by round.
    pub calibration: Vec<Calibration>,
    /// CPU time of everybody else, by the time that all CPUs had: from 0 to 1.
    pub others: Option<Spread>,
    /// Why nobody is ranked, if so.
    pub unranked: Option<String>,
}

/// What came of one candidate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The candidate.
    pub name: String,
    /// Why there are no figures, or no more of them.
    pub failure: Option<String>,
    /// The figures, by the keys of metrics.
    pub figures: BTreeMap<String, Spread>,
    /// Its place by the first metric; those that cannot be told apart share one.
    pub rank: Option<usize>,
    /// The latencies of all windows together: the part that does not exceed it, and microseconds.
    pub latencies: Vec<(f64, f64)>,
}

impl Report {
    /// An empty one, about this machine.
    #[must_use]
    pub fn new(method: Method) -> Self {
        Self {
            format: FORMAT,
            machine: Machine::look(),
            method,
            versions: BTreeMap::new(),
            interrupted: false,
            scenarios: BTreeMap::new(),
            outcomes: Vec::new(),
        }
    }

    /// Reads one from its file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let named = |reason: String| Failure(format!("{}: {reason}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let report: Self = serde_json::from_str(&text)
            .map_err(|error| named(format!("not a report of this program: {error}")))?;
        if report.format != FORMAT {
            let found = report.format;
            return Err(named(format!("a report of format {found}; this program reads {FORMAT}")));
        }
        Ok(report)
    }

    /// Writes it to a file, all at once: whoever reads it sees an older one or all of this.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        replace(path, &serde_json::to_string_pretty(self)?)
    }

    /// Writes it as a page.
    pub fn write_page(&self, path: &Path) -> Result<(), Failure> {
        replace(path, &html::page(self))
    }

    /// Writes its plots, each as a file of a folder.
    pub fn write_plots(&self, folder: &Path) -> Result<(), Failure> {
        let named = |error| Failure(format!("{}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(named)?;
        for (name, svg) in html::plots(self) {
            replace(&folder.join(format!("{name}.svg")), &svg)?;
        }
        Ok(())
    }

    /// Whether everything that was asked for was measured.
    #[must_use]
    pub fn complete(&self) -> bool {
        let failed = self.outcomes.iter().flat_map(|it| &it.rows).any(|it| it.failure.is_some());
        !self.interrupted && !failed
    }
}

/// Writes a file, or what it points to, in place of an older one.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let named = |error| Failure(format!("{}: {error}", path.display()));
    // A pipe or a terminal cannot be replaced, only written to.
    if path.exists() && !path.is_file() {
        return fs::write(path, text).map_err(named);
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(|error| {
        // Half a file is of no use; if it cannot be removed either, there is nothing more to do.
        fs::remove_file(&new).ok();
        named(error)
    })
}

/// Fails when a file cannot be written to that will be, later. Leaves it as it is.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    let existed = path.exists();
    let opened = fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| Failure(format!("{}: {error}", path.display())))?;
    if !existed {
        fs::remove_file(path)?;
    }
    Ok(())
}

impl Outcome {
    /// The metric that candidates are compared by.
    #[must_use]
    pub fn headline(&self) -> &Metric {
        &self.metrics[0]
    }

    /// How many windows the one has that has the most.
    fn rounds_most(&self) -> usize {
        let figures = self.rows.iter().filter_map(|it| it.figures.get(&*self.headline().key));
        figures.map(|it| it.values.len()).max().unwrap_or(0)
    }

    /// Gives everybody a place, unless the machine was too noisy for that. Who has failed so often
    /// that hardly a window is left has none.
    pub fn rank(&mut self) {
        let slowest = Spread::of(self.calibration.iter().map(|it| it.cpu_ns as f64).collect());
        self.unranked = if let Some(others) =
            self.others.as_ref().filter(|it| it.median > OTHERS_MAX)
        {
            let share = others.median * 100.0;
            Some(format!("others used {share:.0} % of the machine's CPUs meanwhile"))
        } else if let Some(work) = slowest.filter(|it| it.max > it.min * CALIBRATION_MAX) {
            let ratio = work.max / work.min;
            Some(format!("the same work took up to {ratio:.1} times as long as at other moments"))
        } else if self.rounds_most() < ROUNDS_MIN {
            Some(format!("fewer than {ROUNDS_MIN} rounds say nothing about the spread"))
        } else {
            None
        };
        let headline = self.headline().clone();
        let enough = |it: &&Spread| it.values.len() >= ROUNDS_MIN;
        let figures = self.rows.iter().map(|it| it.figures.get(&*headline.key).filter(enough));
        let figures: Vec<_> = figures.collect();
        let ranks = ranks(&figures, headline.better);
        for (row, rank) in self.rows.iter_mut().zip(ranks) {
            row.rank = rank.filter(|_| self.unranked.is_none());
        }
    }
}

impl Machine {
    fn look() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let commit = Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .ok();
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            cpu,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel.map(|it| it.trim().to_owned()),
            rustc: env!("BENCH_RUSTC").to_owned(),
            commit: commit
                .and_then(|output| String::from_utf8(output.stdout).ok())
                .map(|it| it.trim().to_owned())
                .filter(|it| !it.is_empty()),
            unix_time: unix_time.map_or(0, |it| it.as_secs()),
        }
    }
}
