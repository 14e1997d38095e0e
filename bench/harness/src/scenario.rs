//! What is measured: the scenarios, their rounds, and what their windows come to.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::candidate::{Candidate, Places, Server, Service};
use crate::child::{Running, Stop};
use crate::launch;
use crate::load::{Block, Exchanged, Idled, Job, Kind};
use crate::measure::{Calibration, calibrate};
use crate::report::{Comparison, Spread, grouped, table};

/// The size of a small message, in bytes.
const SMALL: usize = 64;

/// The part of all CPUs that others may use, in the median window, before the figures lose their
/// worth.
const OTHERS_MAX: f64 = 0.15;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// CPU time per echo.
    Echo,
    /// Latency of the others while some handlers block.
    Blocking,
    /// Memory per idle connection.
    Idle,
}

impl Scenario {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 3] = [Self::Echo, Self::Blocking, Self::Idle];

    /// What it is called on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Blocking => "blocking",
            Self::Idle => "idle",
        }
    }
}

/// How to measure.
#[derive(Clone, Debug, Serialize)]
pub struct Method {
    /// How often each candidate gets a window.
    pub rounds: usize,
    /// How long a window is, in milliseconds.
    pub window_ms: u64,
    /// How long the exchange goes on before the window, in milliseconds.
    pub warm_up_ms: u64,
    /// The sizes of messages for `echo`, in bytes.
    pub sizes: Vec<usize>,
    /// The numbers of connections for `echo`.
    pub connections: Vec<usize>,
    /// The sets of CPUs for `echo`, as they are counted.
    pub cpus: Vec<usize>,
    /// The number of connections for `blocking`.
    pub blocking_connections: usize,
    /// One message in how many blocks in `blocking`, and for how long.
    pub block: Block,
    /// The number of connections for `idle`.
    pub idle_connections: usize,
    /// The threads of wharf, most of which do not run at the same time.
    pub wharf_workers: usize,
    /// With whom the others are compared.
    pub baseline: String,
}

/// One table: a scenario with everything settled.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// What is measured.
    pub scenario: Scenario,
    /// The CPUs that server and generator share. The server runs as many threads.
    pub cpus: Vec<usize>,
    /// How many connections there are.
    pub connections: usize,
    /// The size of a message, in bytes.
    pub size: usize,
}

impl Setup {
    /// All setups of a scenario.
    #[must_use]
    pub fn all(scenario: Scenario, method: &Method) -> Vec<Self> {
        let one = |cpus: usize, connections, size| Self {
            scenario,
            cpus: (0..cpus).collect(),
            connections,
            size,
        };
        match scenario {
            Scenario::Echo => {
                let mut setups = Vec::new();
                for &size in &method.sizes {
                    for &connections in &method.connections {
                        setups.extend(method.cpus.iter().map(|&cpus| one(cpus, connections, size)));
                    }
                }
                setups
            }
            Scenario::Blocking => vec![one(2, method.blocking_connections, SMALL)],
            Scenario::Idle => vec![one(2, method.idle_connections, SMALL)],
        }
    }

    fn title(&self, block: Block) -> String {
        let Self { size, connections, .. } = self;
        let connections = grouped(*connections as f64);
        let cpus = match self.cpus.len() {
            1 => "1 CPU".to_owned(),
            count => format!("{count} CPUs"),
        };
        match self.scenario {
            Scenario::Echo => format!("echo: {size} B, {connections} connections, {cpus}"),
            Scenario::Blocking => format!(
                "blocking: {size} B, {connections} connections, {cpus}, 1 in {} sleeps {} ms",
                block.one_in, block.ms
            ),
            Scenario::Idle => format!("idle: {connections} connections"),
        }
    }
}

/// What came of one setup.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was measured.
    pub setup: Setup,
    /// In words.
    pub title: String,
    /// By candidate.
    pub rows: Vec<Row>,
    /// How the machine was, round by round.
    pub calibration: Vec<Calibration>,
    /// The part of all CPUs that others used during the windows, from 0 to 1.
    pub others_share: Option<Spread>,
}

/// What came of one candidate.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The candidate.
    pub name: String,
    /// What it is built on.
    pub version: Option<String>,
    /// Why there are no figures, or no more of them.
    pub failure: Option<String>,
    /// The figures, if there are any.
    pub figures: Option<Figures>,
    /// The one that counts, compared with the baseline's.
    pub comparison: Option<Comparison>,
    /// What they were made of.
    pub windows: Vec<Window>,
}

/// What was counted in one window.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Window {
    /// While messages were exchanged.
    Exchanged(Exchanged),
    /// While nothing happened.
    Idled(Idled),
}

/// What a candidate's windows come to.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Figures {
    /// For messages.
    Exchange {
        /// CPU time of the server per request, in nanoseconds.
        cpu_ns: Spread,
        /// Requests of all kinds per second.
        rate: Spread,
        /// Latency that half of the requests stay below, in microseconds; those that block not
        /// counted.
        p50_us: Spread,
        /// And 99 in 100.
        p99_us: Spread,
        /// And 999 in 1000.
        p999_us: Spread,
        /// The part of the CPU time of the server that its busiest thread used.
        busiest_share: Option<Spread>,
    },
    /// For idle connections.
    Idle {
        /// Resident memory per connection.
        bytes: Spread,
        /// Resident memory without any.
        before: Spread,
    },
}

impl Figures {
    fn of(windows: &[Window], connections: usize) -> Option<Self> {
        let idled: Vec<_> = windows
            .iter()
            .filter_map(|it| if let Window::Idled(it) = it { Some(it) } else { None })
            .collect();
        if !idled.is_empty() {
            let grown = |it: &&Idled| (it.after as f64 - it.before as f64) / connections as f64;
            return Some(Self::Idle {
                bytes: Spread::of(idled.iter().map(grown).collect())?,
                before: Spread::of(idled.iter().map(|it| it.before as f64).collect())?,
            });
        }
        let exchanged: Vec<_> = windows
            .iter()
            .filter_map(|it| if let Window::Exchanged(it) = it { Some(it) } else { None })
            .collect();
        let spread = |value: fn(&Exchanged) -> f64| {
            Spread::of(exchanged.iter().map(|&it| value(it)).collect())
        };
        Some(Self::Exchange {
            cpu_ns: spread(|it| it.server_cpu_ns as f64 / it.requests as f64)?,
            rate: spread(|it| it.requests as f64 / it.seconds)?,
            p50_us: spread(|it| it.latency_us.p50)?,
            p99_us: spread(|it| it.latency_us.p99)?,
            p999_us: spread(|it| it.latency_us.p999)?,
            busiest_share: Spread::of(exchanged.iter().filter_map(|it| it.busiest_share).collect()),
        })
    }

    /// The figure by which candidates are compared; less is better.
    fn headline(&self, scenario: Scenario) -> &Spread {
        match self {
            Self::Idle { bytes, .. } => bytes,
            Self::Exchange { p99_us, .. } if scenario == Scenario::Blocking => p99_us,
            Self::Exchange { cpu_ns, .. } => cpu_ns,
        }
    }
}

/// The machinery that every setup needs.
#[derive(Debug)]
pub struct Bench {
    /// How to measure.
    pub method: Method,
    /// Where the programs are.
    pub places: Places,
    /// Whom to measure.
    pub candidates: Vec<Candidate>,
    /// Whether to stop.
    pub stop: Stop,
}

impl Bench {
    /// Measures one setup. When the user wants to stop, with what there is so far.
    pub fn measure(&self, setup: Setup) -> Result<Outcome, Failure> {
        let title = setup.title(self.method.block);
        let mut rows: Vec<Row> = self
            .candidates
            .iter()
            .map(|candidate| Row {
                name: candidate.name.clone(),
                version: candidate.version(&self.places, &self.stop),
                failure: None,
                figures: None,
                comparison: None,
                windows: Vec::new(),
            })
            .collect();
        let mut calibration = Vec::new();
        for round in 0..self.method.rounds {
            calibration.push(calibrate()?);
            for turn in 0..rows.len() {
                // Another one begins in each round, so that nobody always follows the same one.
                let index = (round + turn) % rows.len();
                let row = &mut rows[index];
                if row.failure.is_some() || self.stop.asked() {
                    continue;
                }
                self.progress(&format!(
                    "{title}: round {} of {}, {}",
                    round + 1,
                    self.method.rounds,
                    row.name
                ));
                match self.window(&setup, &self.candidates[index]) {
                    Ok(window) => row.windows.push(window),
                    Err(_) if self.stop.asked() => {}
                    Err(Failure(reason)) => row.failure = Some(reason),
                }
            }
        }
        self.progress("");

        for row in &mut rows {
            row.figures = Figures::of(&row.windows, setup.connections);
        }
        let headline =
            |row: &Row| row.figures.as_ref().map(|it| it.headline(setup.scenario).clone());
        let baseline = rows.iter().find(|row| row.name == self.method.baseline);
        if let Some(baseline) = baseline.and_then(headline) {
            for row in &mut rows {
                row.comparison = headline(row).and_then(|own| Comparison::of(&own, &baseline));
            }
        }
        let others_share =
            Spread::of(rows.iter().flat_map(|row| &row.windows).filter_map(others).collect());
        Ok(Outcome { setup, title, rows, calibration, others_share })
    }

    fn window(&self, setup: &Setup, candidate: &Candidate) -> Result<Window, Failure> {
        let Method { warm_up_ms, window_ms, .. } = self.method;
        let (service, block) = match setup.scenario {
            Scenario::Blocking => (Service::Block, Some(self.method.block)),
            Scenario::Echo | Scenario::Idle => (Service::Echo, None),
        };
        let kind = match setup.scenario {
            Scenario::Idle => Kind::Idle,
            Scenario::Echo | Scenario::Blocking => Kind::Exchange { warm_up_ms, window_ms, block },
        };
        let mut server =
            candidate.start(&self.places, &setup.cpus, service, setup.size, &self.stop)?;
        let job = Job {
            target: server.addr,
            server: server.running.id(),
            connections: setup.connections,
            size: setup.size,
            kind,
        };
        let answer = self.generate(&job, &setup.cpus, &mut server)?;
        match job.kind {
            Kind::Idle => Ok(Window::Idled(serde_json::from_str(&answer)?)),
            Kind::Exchange { .. } => {
                let window: Exchanged = serde_json::from_str(&answer)?;
                if window.mismatches > 0 {
                    return Err(Failure(format!("{} wrong echoes", window.mismatches)));
                }
                if window.requests == 0 {
                    return Err(Failure("no echo within the window".to_owned()));
                }
                Ok(Window::Exchanged(window))
            }
        }
    }

    /// Runs the load generator, and returns what it answers.
    fn generate(&self, job: &Job, cpus: &[usize], server: &mut Server) -> Result<String, Failure> {
        // Beyond the time that it should take: for connecting, and for a machine that is busy.
        const SLACK: Duration = Duration::from_secs(20);
        let mut command = launch::command(&self.places.harness, cpus, &self.places.harness);
        command.arg("load").arg(serde_json::to_string(job)?);
        let mut generator = Running::start(command, &self.stop)?;
        let Method { warm_up_ms, window_ms, .. } = self.method;
        let outcome = generator.line(SLACK + Duration::from_millis(warm_up_ms + window_ms));
        outcome.map_err(|Failure(reason)| match server.running.death() {
            Some(Failure(last)) => Failure(format!("the server ended: {last}")),
            None => Failure(reason),
        })
    }

    /// Says on a terminal what is going on. Each line overwrites the last one.
    fn progress(&self, line: &str) {
        let mut stderr = std::io::stderr();
        if stderr.is_terminal() {
            // It is for convenience only.
            write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush()).ok();
        }
    }
}

/// The part of all CPUs that neither server nor generator used.
fn others(window: &Window) -> Option<f64> {
    let Window::Exchanged(window) = window else { return None };
    let cpus = std::thread::available_parallelism().ok()?.get();
    Some(window.others_cpu_ns? as f64 / 1e9 / window.seconds / cpus as f64)
}

impl Outcome {
    /// For people to read.
    #[must_use]
    pub fn text(&self, baseline: &str) -> String {
        let mut head: Vec<String> = match self.setup.scenario {
            Scenario::Echo => vec!["CPU ns/echo", "min", "max", "echoes/s", "p50 us", "p99 us"],
            Scenario::Blocking => {
                vec!["p50 us", "p99 us", "min", "max", "p99.9 us", "requests/s", "CPU ns/request"]
            }
            Scenario::Idle => vec!["bytes each", "min", "max", "MiB before"],
        }
        .into_iter()
        .map(str::to_owned)
        .collect();
        head.insert(0, "server".to_owned());
        if self.setup.scenario != Scenario::Idle && self.setup.cpus.len() > 1 {
            head.push("busiest".to_owned());
        }
        if self.shows_kernel() {
            head.push("over kernel".to_owned());
        }
        head.push(format!("by {baseline}"));
        let busiest = head.iter().any(|it| it == "busiest");
        let rows: Vec<_> = self.rows.iter().map(|row| self.cells(row, busiest, baseline)).collect();
        format!("{}\n{}{}", self.title, table(&head, &rows), self.noise())
    }

    fn cells(&self, row: &Row, busiest: bool, baseline: &str) -> Vec<String> {
        let mut cells = vec![row.name.clone()];
        if let Some(reason) = &row.failure {
            cells.push(format!("failed: {reason}"));
            return cells;
        }
        let whole = |value: f64| grouped(value);
        match &row.figures {
            None => cells.push("not measured".to_owned()),
            Some(Figures::Idle { bytes, before }) => {
                cells.extend([bytes.median, bytes.min, bytes.max].map(whole));
                cells.push(format!("{:.1}", before.median / 1024.0 / 1024.0));
            }
            Some(Figures::Exchange { cpu_ns, rate, p50_us, p99_us, p999_us, busiest_share }) => {
                if self.setup.scenario == Scenario::Blocking {
                    cells.extend([p50_us.median, p99_us.median, p99_us.min, p99_us.max].map(whole));
                    cells.extend([p999_us.median, rate.median, cpu_ns.median].map(whole));
                } else {
                    cells.extend([cpu_ns.median, cpu_ns.min, cpu_ns.max].map(whole));
                    cells.extend([rate.median, p50_us.median, p99_us.median].map(whole));
                }
                if let Some(kernel) = self.kernel_ns().filter(|_| self.shows_kernel()) {
                    cells.push(whole(cpu_ns.min - kernel.min));
                }
                if busiest {
                    let share = busiest_share.as_ref().map(|it| it.median * 100.0);
                    cells.push(share.map_or_else(|| "?".to_owned(), |it| format!("{it:.0} %")));
                }
            }
        }
        if row.figures.is_some() {
            cells.push(match row.comparison {
                None => "-".to_owned(),
                Some(Comparison { ratio, .. }) if row.name == baseline => format!("{ratio:.2}"),
                Some(Comparison { ratio, ranked: true }) => format!("{ratio:.2}"),
                Some(Comparison { ratio, ranked: false }) => {
                    format!("{ratio:.2}, too noisy to rank")
                }
            });
        }
        cells
    }

    fn kernel_ns(&self) -> Option<Spread> {
        Spread::of(self.calibration.iter().map(|it| it.kernel_ns as f64).collect())
    }

    /// Whether the kernel's own part can be told from the server's: it was measured for small
    /// messages, and on one CPU.
    fn shows_kernel(&self) -> bool {
        let Setup { scenario, cpus, size, .. } = &self.setup;
        *scenario == Scenario::Echo && cpus.len() == 1 && *size == SMALL
    }

    /// How quiet the machine was.
    fn noise(&self) -> String {
        let milliseconds = |it: &Calibration| it.cpu_ns as f64 / 1e6;
        let stretch = |it: &Calibration| it.wall_ns as f64 / it.cpu_ns as f64;
        let cpu = Spread::of(self.calibration.iter().map(milliseconds).collect());
        let wall = Spread::of(self.calibration.iter().map(stretch).collect());
        let kernel = self.kernel_ns();
        let Some(((cpu, wall), kernel)) = cpu.zip(wall).zip(kernel) else { return String::new() };
        let mut text = format!(
            "  machine: the same work took {:.1} to {:.1} ms of CPU, and up to {:.2} times that on \
             the clock; the kernel alone at least {:.0} ns per send and recv",
            cpu.min, cpu.max, wall.max, kernel.min
        );
        if let Some(others) = &self.others_share {
            text += &format!(
                "; others used {:.0} % of the CPUs, at most {:.0} %",
                others.median * 100.0,
                others.max * 100.0
            );
        }
        text.push('\n');
        if self.others_share.as_ref().is_some_and(|it| it.median > OTHERS_MAX) {
            text += "  others were too busy: do not rank anybody by this table\n";
        }
        text
    }
}
