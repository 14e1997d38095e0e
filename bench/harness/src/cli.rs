//! The command line.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use serde::Serialize;

use crate::candidate::Places;
use crate::child::Stop;
use crate::load::Block;
use crate::measure::raise_descriptor_limit;
use crate::scenario::{Bench, Method, Outcome, Scenario, Setup};
use crate::{Failure, helper};

const USAGE: &str = "\
usage: wharf-bench-harness [SCENARIO...] [OPTION...]

Scenarios: echo, blocking, idle. All of them when none is named.

  --rounds N              windows per candidate (5; for idle at most 2)
  --window MS             length of a window (700)
  --warm-up MS            exchange before the window (200)
  --sizes B[,B...]        message sizes for echo (64)
  --connections N[,N...]  connections for echo (50,1000)
  --cpus N[,N...]         CPUs that server and generator share, for echo (1,2)
  --idle N                connections for idle (19000)
  --candidates A[,B...]   only these (all: wharf, and every rival)
  --baseline NAME         whom the others are compared with (uring)
  --wharf PATH            the program with wharf's servers
  --wharf-workers N       threads of wharf, of which few run at the same time (32)
  --rivals DIR            where the programs rival-* are (beside this one)
  --quick                 2 rounds of 200 ms, 50 connections, 1,000 idle ones
  --json FILE             write everything that was counted

Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted.
";

/// Where idle connections stop when the system allows no more descriptors than these.
const DESCRIPTORS_SPARE: u64 = 200;

struct Options {
    scenarios: Vec<Scenario>,
    method: Method,
    candidates: Option<Vec<String>>,
    places: Places,
    json: Option<PathBuf>,
}

/// Everything, for programs to read.
#[derive(Serialize)]
struct Report<'a> {
    machine: Machine,
    method: &'a Method,
    outcomes: &'a [Outcome],
}

#[derive(Serialize)]
struct Machine {
    cpu: Option<String>,
    cpus: usize,
    kernel: Option<String>,
    /// The compiler of the harness; the rivals are built with the same.
    rustc: &'static str,
    commit: Option<String>,
    unix_time: u64,
}

/// The whole program.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if let [name, rest @ ..] = &args[..]
        && let Some(code) = helper(&name.to_string_lossy(), rest)
    {
        return code;
    }
    if args.iter().any(|it| it == "--help" || it == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(Failure(reason)) => {
            eprintln!("{reason}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match bench(options) {
        Ok(code) => code,
        Err(Failure(reason)) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(args: Vec<OsString>) -> Result<Self, Failure> {
        let mut this = Self {
            scenarios: Vec::new(),
            method: Method {
                rounds: 5,
                window_ms: 700,
                warm_up_ms: 200,
                sizes: vec![64],
                connections: vec![50, 1000],
                cpus: vec![1, 2],
                blocking_connections: 50,
                block: Block { one_in: 100, ms: 10 },
                idle_connections: 19_000,
                wharf_workers: 32,
                baseline: "uring".to_owned(),
            },
            candidates: None,
            places: Places::find()?,
            json: None,
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let arg = arg.to_string_lossy().into_owned();
            if let Some(scenario) = Scenario::ALL.into_iter().find(|it| it.name() == arg) {
                this.scenarios.push(scenario);
                continue;
            }
            if arg == "--quick" {
                this.method.rounds = 2;
                this.method.window_ms = 200;
                this.method.warm_up_ms = 100;
                this.method.connections = vec![50];
                this.method.idle_connections = 1000;
                continue;
            }
            if !arg.starts_with("--") {
                return Err(Failure(format!("no such scenario: {arg}")));
            }
            let value = args.next().ok_or_else(|| Failure(format!("{arg} needs a value")))?;
            this.set(&arg, value)?;
        }
        if this.scenarios.is_empty() {
            this.scenarios = Scenario::ALL.to_vec();
        }
        Ok(this)
    }

    fn set(&mut self, flag: &str, value: OsString) -> Result<(), Failure> {
        let text = value.to_string_lossy().into_owned();
        let number = || -> Result<usize, Failure> {
            let number = text.parse().ok().filter(|&it| it > 0);
            number.ok_or_else(|| Failure(format!("{flag}: not a positive number: {text}")))
        };
        let numbers = || -> Result<Vec<usize>, Failure> {
            let numbers = text.split(',').map(|it| it.parse().ok().filter(|&it| it > 0));
            let numbers: Option<_> = numbers.collect();
            numbers.ok_or_else(|| Failure(format!("{flag}: not positive numbers: {text}")))
        };
        match flag {
            "--rounds" => self.method.rounds = number()?,
            "--window" => self.method.window_ms = number()? as u64,
            "--warm-up" => self.method.warm_up_ms = number()? as u64,
            "--sizes" => self.method.sizes = numbers()?,
            "--connections" => self.method.connections = numbers()?,
            "--cpus" => self.method.cpus = numbers()?,
            "--idle" => self.method.idle_connections = number()?,
            "--wharf-workers" => self.method.wharf_workers = number()?,
            "--candidates" => {
                self.candidates = Some(text.split(',').map(str::to_owned).collect());
            }
            "--baseline" => self.method.baseline = text,
            "--wharf" => self.places.wharf = value.into(),
            "--rivals" => self.places.rivals = value.into(),
            "--json" => self.json = Some(value.into()),
            _ => return Err(Failure(format!("no such option: {flag}"))),
        }
        Ok(())
    }
}

fn bench(options: Options) -> Result<ExitCode, Failure> {
    let Options { scenarios, mut method, candidates: wanted, places, json } = options;
    let stop = Stop::watch()?;
    let descriptors = raise_descriptor_limit()?;
    let idle_max = usize::try_from(descriptors.saturating_sub(DESCRIPTORS_SPARE))?;
    if scenarios.contains(&Scenario::Idle) && method.idle_connections > idle_max {
        eprintln!("{idle_max} idle connections: the system allows {descriptors} descriptors");
        method.idle_connections = idle_max;
    }
    let mut candidates = places.candidates(method.wharf_workers);
    if let Some(wanted) = wanted {
        let known: Vec<_> = candidates.iter().map(|it| it.name.clone()).collect();
        if let Some(unknown) = wanted.iter().find(|it| !known.contains(it)) {
            let known = known.join(", ");
            return Err(Failure(format!("no candidate is called {unknown}; there are {known}")));
        }
        candidates.retain(|it| wanted.contains(&it.name));
    }

    let mut bench = Bench { method, places, candidates, stop };
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        if scenario == Scenario::Idle {
            // Memory does not depend on how busy the machine is.
            bench.method.rounds = bench.method.rounds.min(2);
        }
        for setup in Setup::all(scenario, &bench.method) {
            if bench.stop.asked() {
                break;
            }
            let outcome = bench.measure(setup)?;
            println!("{}", outcome.text(&bench.method.baseline));
            outcomes.push(outcome);
        }
    }
    if let Some(path) = json {
        let report =
            Report { machine: Machine::look(), method: &bench.method, outcomes: &outcomes };
        fs::write(&path, serde_json::to_string_pretty(&report)?)
            .map_err(|error| Failure(format!("{}: {error}", path.display())))?;
    }
    let failed = outcomes.iter().flat_map(|it| &it.rows).any(|row| row.failure.is_some());
    Ok(if bench.stop.asked() {
        ExitCode::from(130)
    } else if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Machine {
    fn look() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok();
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            cpu,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel.map(|it| it.trim().to_owned()),
            rustc: env!("BENCH_RUSTC"),
            commit: commit
                .and_then(|output| String::from_utf8(output.stdout).ok())
                .map(|it| it.trim().to_owned())
                .filter(|it| !it.is_empty()),
            unix_time: unix_time.map_or(0, |it| it.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        Options::parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn everything_is_measured_unless_told() {
        let options = parse("").expect("valid");
        assert_eq!(options.scenarios, Scenario::ALL);
        assert_eq!(parse("idle echo").expect("valid").scenarios.len(), 2);
    }

    #[test]
    fn later_options_win_over_quick() {
        let options = parse("--quick --rounds 3 --connections 1,2").expect("valid");
        assert_eq!(options.method.rounds, 3);
        assert_eq!(options.method.connections, [1, 2]);
        assert_eq!(options.method.window_ms, 200);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["ehco", "--rounds", "--rounds 0", "--sizes 64,x", "--fast 1"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
