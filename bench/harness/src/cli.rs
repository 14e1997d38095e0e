//! The command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::candidate::{Places, Program, WHARF};
use crate::child::Stop;
use crate::lock::Lock;
use crate::report::compare::Comparison;
use crate::report::{Method, Report, check_writable, text};
use crate::run::{Bench, Work};
use crate::scenario::{Parameter, Scenario};
use crate::{Failure, helper, scenario};

/// How long a quick run takes at most, about: it must end within two minutes.
const QUICK_SECONDS: u64 = 95;

/// Puts wharf and its rivals to the same work, side by side, and says what each of them costs.
#[derive(Debug, Parser)]
#[command(name = "wharf bench", bin_name = "wharf bench", disable_version_flag = true)]
#[command(args_conflicts_with_subcommands = true, args_override_self = true)]
#[command(after_help = "Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted.")]
struct Options {
    #[command(subcommand)]
    other: Option<Other>,

    /// What to measure [default: everything; --list tells]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,

    /// A run of less than two minutes: three rounds of short windows, the most telling points only
    #[arg(long)]
    quick: bool,

    /// Write everything that was counted; after every table, so that little is lost
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Other values for a parameter, in all scenarios that have it or in one; the first one is the
    /// base, and each other one is measured with the base of the other parameters
    #[arg(long = "set", value_name = "[SCENARIO.]NAME=N[,N...]")]
    set: Vec<Choice>,

    /// Windows per candidate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Length of a window
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=600_000))]
    window: Option<u64>,

    /// Exchange before the window
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=600_000))]
    warm_up: Option<u64>,

    /// Only these, by the name of the program [default: wharf, and every rival]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    candidates: Vec<String>,

    /// Whom the others are compared with
    #[arg(long, value_name = "NAME", default_value = "wharf")]
    baseline: String,

    /// Threads of wharf, of which only as many run at once as there are CPUs
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    wharf_workers: u32,

    /// The program with wharf's servers, instead of building it
    #[arg(long, value_name = "PATH")]
    wharf: Option<PathBuf>,

    /// Where the programs rival-* are, instead of building them
    #[arg(long, value_name = "DIR")]
    rivals: Option<PathBuf>,

    /// Build nothing, and take what is there
    #[arg(long)]
    no_build: bool,

    /// When another run goes on, wait for its end
    #[arg(long)]
    wait: bool,

    /// The lock that keeps two runs apart
    #[arg(long, value_name = "FILE", hide = true)]
    lock: Option<PathBuf>,

    /// Say what there is to measure, and who takes part
    #[arg(long)]
    list: bool,

    /// Print the definition of a scenario
    #[arg(long, value_name = "SCENARIO")]
    explain: Option<String>,
}

/// What can be done besides measuring.
#[derive(Debug, Subcommand)]
enum Other {
    /// Say what has changed from one report to another, and what is inside the noise
    Compare {
        /// The JSON file of a run
        #[arg(value_name = "A.json")]
        before: PathBuf,

        /// And of a later one
        #[arg(value_name = "B.json")]
        after: PathBuf,

        /// All that was counted, not only what candidates are compared by
        #[arg(long)]
        all: bool,

        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a report again, or make a page or plots of it
    Report {
        /// The JSON file of a run
        #[arg(value_name = "FILE.json")]
        file: PathBuf,

        /// Write a page with plots
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,

        /// Write each plot as a file of this folder
        #[arg(long, value_name = "FOLDER")]
        plots: Option<PathBuf>,
    },
}

/// Values for a parameter.
#[derive(Clone, Debug)]
struct Choice {
    scenario: Option<String>,
    name: String,
    values: Vec<u64>,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write it like size=64,1024 or echo.size=64".to_owned();
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        let (scenario, name) = match name.split_once('.') {
            Some((scenario, name)) => (Some(scenario.to_owned()), name.to_owned()),
            None => (None, name.to_owned()),
        };
        let values = values.split(',').map(|it| it.parse().ok());
        let values = values.collect::<Option<Vec<u64>>>().ok_or_else(wrong)?;
        Ok(Self { scenario, name, values })
    }
}

/// The whole program.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if let [_, name, rest @ ..] = &args[..]
        && let Some(code) = helper(&name.to_string_lossy(), rest)
    {
        return code;
    }
    let options = Options::parse_from(args);
    let outcome = match &options.other {
        Some(other) => other.run().map_err(|reason| (1, reason)),
        None => match options.check() {
            Ok(scenarios) => options.run(&scenarios).map_err(|reason| (1, reason)),
            Err(reason) => Err((2, reason)),
        },
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, reason)) => {
            eprintln!("wharf bench: {reason}");
            ExitCode::from(code)
        }
    }
}

impl Other {
    fn run(&self) -> Result<u8, Failure> {
        match self {
            Self::Compare { before, after, all, json } => {
                let (before, after) = (Report::read(before)?, Report::read(after)?);
                let comparison = Comparison::of(&before, &after, *all)?;
                if *json {
                    println!("{}", serde_json::to_string_pretty(&comparison)?);
                } else {
                    print!("{}", comparison.text());
                }
            }
            Self::Report { file, html, plots } => {
                let report = Report::read(file)?;
                if let Some(html) = html {
                    report.write_page(html)?;
                }
                if let Some(plots) = plots {
                    report.write_plots(plots)?;
                }
                if html.is_none() && plots.is_none() {
                    for outcome in &report.outcomes {
                        println!("{}", text::table(outcome, &report.method.baseline));
                    }
                }
            }
        }
        Ok(0)
    }
}

impl Options {
    /// The scenarios to run. Refuses names that nothing has.
    fn check(&self) -> Result<Vec<&'static dyn Scenario>, Failure> {
        let find = |name: &String| {
            scenario::find(name).ok_or_else(|| {
                let known: Vec<_> = scenario::all().iter().map(|it| it.name()).collect();
                Failure(format!("no scenario is called {name}; there are {}", known.join(", ")))
            })
        };
        let mut chosen = self.scenarios.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        self.explain.as_ref().map(find).transpose()?;
        if chosen.is_empty() {
            chosen = scenario::all();
        }
        for choice in &self.set {
            choice.scenario.as_ref().map(find).transpose()?;
            if !chosen.iter().any(|scenario| {
                scenario.parameters().iter().any(|it| choice.applies(*scenario, it))
            }) {
                let name = &choice.name;
                return Err(Failure(format!(
                    "--set: none of the scenarios to run has a parameter {name}; --explain \
                     SCENARIO tells which there are"
                )));
            }
            // Nothing makes sense only where it is one of the usual values.
            let nothing = |scenario: &&dyn Scenario| {
                let parameters = scenario.parameters();
                let mut chosen = parameters.iter().filter(|it| choice.applies(*scenario, it));
                choice.values.contains(&0) && chosen.any(|it| !it.full.contains(&0))
            };
            if let Some(scenario) = chosen.iter().find(|it| nothing(it)) {
                let (name, scenario) = (&choice.name, scenario.name());
                return Err(Failure(format!("--set: {name} of {scenario} cannot be 0")));
            }
        }
        chosen.sort_by_key(|it| it.place());
        chosen.dedup_by_key(|it| it.place());
        Ok(chosen)
    }

    fn run(&self, scenarios: &[&'static dyn Scenario]) -> Result<u8, Failure> {
        let stop = Stop::watch()?;
        let mut places = Places::find()?;
        let programs = self.programs(&mut places, &stop)?;
        if let Some(scenario) = self.explain.as_deref().and_then(scenario::find) {
            println!("{}", explain(scenario, &programs));
            return Ok(0);
        }
        if self.list {
            println!("{}", list(&programs));
            return Ok(0);
        }

        for path in self.json.iter().chain(&self.html) {
            check_writable(path)?;
        }
        let path = self.lock.clone().unwrap_or_else(Lock::path);
        let _lock = Lock::take(&path, self.wait, &stop)?;
        let mut bench = Bench::new(self.method(), places, stop)?;
        let work: Vec<_> = scenarios
            .iter()
            .map(|scenario| Work::new(*scenario, |it| self.values(*scenario, it), &programs))
            .collect();
        let mut unwritten = None;
        let report = bench.run(&work, |report| {
            if let Some(outcome) = report.outcomes.last() {
                println!("{}", text::table(outcome, &report.method.baseline));
            }
            if let Some(path) = &self.json {
                // Perhaps it works the next time. The last one is the one that counts.
                unwritten = report.write(path).err();
            }
        })?;
        if let Some(path) = &self.json {
            unwritten = report.write(path).err();
        }
        let unwritten =
            self.html.as_ref().and_then(|path| report.write_page(path).err()).or(unwritten);
        if let Some(failure) = unwritten {
            return Err(failure);
        }
        Ok(match (report.interrupted, report.complete()) {
            (true, _) => 130,
            (false, false) => 1,
            (false, true) => 0,
        })
    }

    /// Builds those programs that are wanted, and asks what they offer.
    fn programs(&self, places: &mut Places, stop: &Stop) -> Result<Vec<Program>, Failure> {
        let sources = places.sources.clone();
        if let Some(rivals) = &self.rivals {
            places.rivals.clone_from(rivals);
            places.sources = None;
        }
        let mut known = places.rivals();
        known.insert(0, WHARF.to_owned());
        if let Some(unknown) = self.candidates.iter().find(|it| !known.contains(it)) {
            let known = known.join(", ");
            return Err(Failure(format!("no candidate is called {unknown}; there are {known}")));
        }
        let wanted =
            |name: &str| self.candidates.is_empty() || self.candidates.iter().any(|it| it == name);

        let mut failed = BTreeMap::new();
        // Definitions can be read without waiting for a compiler.
        let built = self.no_build || self.list || self.explain.is_some();
        if let Some(sources) = sources.filter(|_| !built) {
            if self.rivals.is_none() {
                failed = sources.build(&places.rivals, wanted, stop);
            }
            if self.wharf.is_none() && wanted(WHARF) {
                match sources.wharf() {
                    Ok(wharf) => places.wharf = wharf,
                    Err(failure) => drop(failed.insert(WHARF.to_owned(), failure)),
                }
            }
        }
        if let Some(wharf) = &self.wharf {
            places.wharf.clone_from(wharf);
        }
        if stop.asked() {
            return Err(Failure("interrupted".to_owned()));
        }
        Ok(places.programs(&failed, wanted, stop))
    }

    fn method(&self) -> Method {
        let (rounds, window_ms, warm_up_ms) =
            if self.quick { (3, 200, 100) } else { (5, 700, 200) };
        Method {
            rounds: self.rounds.map_or(rounds, |it| it as usize),
            window_ms: self.window.unwrap_or(window_ms),
            warm_up_ms: self.warm_up.unwrap_or(warm_up_ms),
            seconds_max: self.quick.then_some(QUICK_SECONDS),
            wharf_workers: self.wharf_workers as usize,
            baseline: self.baseline.clone(),
        }
    }

    /// The values of a parameter that are to be measured.
    fn values(&self, scenario: &dyn Scenario, parameter: &Parameter) -> Vec<u64> {
        let usual = if self.quick { parameter.quick } else { parameter.full };
        // The last one wins.
        let choice = self.set.iter().rev().find(|it| it.applies(scenario, parameter));
        choice.map_or_else(|| usual.to_vec(), |it| it.values.clone())
    }
}

impl Choice {
    fn applies(&self, scenario: &dyn Scenario, parameter: &Parameter) -> bool {
        self.name == parameter.name && self.scenario.as_ref().is_none_or(|it| it == scenario.name())
    }
}

fn list(programs: &[Program]) -> String {
    let mut text = "Scenarios (--explain SCENARIO says what each one is):\n".to_owned();
    for scenario in scenario::all() {
        text += &format!("  {:<14} {}\n", scenario.name(), scenario.about());
    }
    text += "\nWho takes part:\n";
    for program in programs {
        let what = match (&program.failure, &program.version) {
            (Some(failure), _) => failure.to_string(),
            (None, version) => {
                let version = version.as_deref().unwrap_or("of an unknown version");
                format!("{version}: {}", program.services.join(", "))
            }
        };
        text += &format!("  {:<14} {what}\n", program.name);
    }
    text.trim_end().to_owned()
}

fn explain(scenario: &dyn Scenario, programs: &[Program]) -> String {
    let mut text = format!("{}: {}\n\n", scenario.name(), scenario.about());
    text += scenario.definition().trim();
    text += "\n\nParameters, with their values in a full run and in a quick one:\n";
    for it in scenario.parameters() {
        text += &format!(
            "  {:<12} {}: {} | {}\n",
            it.name,
            it.about,
            values(it.full),
            values(it.quick)
        );
    }
    text += "\nCounted, the first being what candidates are compared by:\n";
    for metric in scenario.metrics() {
        text += &format!("  {:<12} {}\n", metric.title, metric.about);
    }
    let candidates: Vec<_> = programs
        .iter()
        .flat_map(|it| it.candidates(scenario.service()))
        .map(|it| it.name)
        .collect();
    text += &format!(
        "\nTaking part, as they offer the service {}: {}",
        scenario.service(),
        candidates.join(", ")
    );
    text
}

fn values(values: &[u64]) -> String {
    let values: Vec<_> = values.iter().map(u64::to_string).collect();
    values.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn everything_is_measured_unless_told() {
        let all = parse("bench").expect("valid").check().expect("valid");
        assert_eq!(all.len(), scenario::all().len());
        let two = parse("bench idle echo idle").expect("valid").check().expect("valid");
        assert_eq!(two.iter().map(|it| it.name()).collect::<Vec<_>>(), ["echo", "idle"]);
    }

    #[test]
    fn values_can_be_set_for_all_scenarios_or_one() {
        let options = parse("bench --quick --set size=1,2 --set echo.size=3").expect("valid");
        let size = Parameter::size(&[64], &[65]);
        let echo = scenario::find("echo").expect("it is there");
        let idle = scenario::find("idle").expect("it is there");
        assert_eq!(options.values(echo, &size), [3]);
        assert_eq!(options.values(idle, &size), [1, 2]);
        let cpus = Parameter::cpus(&[1, 2], &[1]);
        assert_eq!(options.values(echo, &cpus), [1]);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--rounds", "--rounds 0", "--set size", "--set size=64,x", "--set size=-1"] {
            assert!(parse(&format!("bench {line}")).is_err(), "{line}");
        }
        for line in [
            "ehco",
            "--set echo.speed=1",
            "idle --set depth=2",
            "echo --set size=0",
            "--explain nothing",
        ] {
            assert!(parse(&format!("bench {line}")).expect("valid").check().is_err(), "{line}");
        }
    }
}
