//! A run: scenarios, points, rounds, candidates.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::Failure;
use crate::candidate::{Candidate, Places, Program, Server, Start};
use crate::child::{Running, Stop};
use crate::launch;
use crate::load::LATENCY_MAX;
use crate::measure::calibrate;
use crate::report::{Definition, Method, Outcome, Report, Row};
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};
use crate::stats::{Spread, grouped};

/// Descriptors that a process needs besides those of its connections.
const DESCRIPTORS_SPARE: u64 = 200;

/// Where the curves of latencies have points: the part that does not exceed them.
const QUANTILES: [f64; 20] = [
    0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995,
    0.999, 0.9995, 0.9999, 1.0,
];

/// What every window needs.
#[derive(Debug)]
pub struct Bench {
    /// How to measure.
    pub method: Method,
    /// Where the programs are.
    pub places: Places,
    /// The CPUs that may be used, as the system numbers them.
    pub cpus: Vec<usize>,
    /// How many descriptors a process may have.
    pub descriptors: u64,
    /// Whether to stop.
    pub stop: Stop,
    /// How the time is kept that the run may take.
    pace: Pace,
    /// The round, so that what is random in it is the same for every candidate.
    round: u64,
}

/// A scenario at one point, with those who take part.
struct Step<'a> {
    scenario: &'static dyn Scenario,
    point: Point,
    candidates: &'a [Candidate],
    rounds: usize,
}

/// What to run.
pub struct Work {
    /// A scenario.
    pub scenario: &'static dyn Scenario,
    /// Its points.
    pub points: Vec<Point>,
    /// Who takes part.
    pub candidates: Vec<Candidate>,
}

impl Work {
    /// A scenario with the chosen values of its parameters, and those programs that can take part.
    pub fn new(
        scenario: &'static dyn Scenario,
        chosen: impl Fn(&Parameter) -> Vec<u64>,
        programs: &[Program],
    ) -> Self {
        let parameters = scenario.parameters();
        Self {
            scenario,
            points: match scenario.crossed() {
                true => Point::grid(&parameters, chosen),
                false => Point::star(&parameters, chosen),
            },
            candidates: programs.iter().flat_map(|it| it.candidates(scenario.service())).collect(),
        }
    }
}

impl Bench {
    /// Everything that windows need.
    pub fn new(method: Method, places: Places, stop: Stop) -> Result<Self, Failure> {
        Ok(Self {
            pace: Pace::new(&method),
            method,
            places,
            cpus: crate::measure::own_cpus()?,
            descriptors: crate::measure::raise_descriptor_limit()?,
            stop,
            round: 0,
        })
    }

    /// Does the work, tells after each table what there is so far, and returns all there is, also
    /// when it was told to stop.
    pub fn run(&mut self, work: &[Work], mut tell: impl FnMut(&Report)) -> Result<Report, Failure> {
        let mut report = Report::new(self.method.clone());
        for candidate in work.iter().flat_map(|it| &it.candidates) {
            if let Some(version) = &candidate.version {
                report.versions.insert(candidate.name.clone(), version.clone());
            }
        }
        for scenario in work.iter().map(|it| it.scenario) {
            let about = scenario.about().to_owned();
            let definition = scenario.definition().trim().to_owned();
            report.scenarios.insert(scenario.name().to_owned(), Definition { about, definition });
        }
        let steps: Vec<_> = work
            .iter()
            .flat_map(|work| {
                work.points.iter().map(|point| Step {
                    scenario: work.scenario,
                    point: point.clone(),
                    candidates: &work.candidates,
                    rounds: self.method.rounds.min(work.scenario.rounds_max()),
                })
            })
            .collect();
        let windows: usize = steps.iter().map(|it| it.rounds * it.candidates.len()).sum();
        let progress = progress(windows);
        // Until everything is done.
        report.interrupted = true;
        for step in &steps {
            if self.stop.asked() {
                break;
            }
            let outcome = self.step(step, &progress)?;
            report.outcomes.push(outcome);
            progress.suspend(|| tell(&report));
        }
        progress.finish_and_clear();
        report.interrupted = self.stop.asked();
        Ok(report)
    }

    /// Measures a scenario at one point.
    fn step(&mut self, step: &Step<'_>, progress: &ProgressBar) -> Result<Outcome, Failure> {
        let Step { scenario, point, candidates, rounds } = step;
        let title = format!("{}: {}", scenario.name(), point.title());
        let missing = self.missing(scenario.needs(point));
        let mut rows: Vec<_> = candidates
            .iter()
            .map(|candidate| Row {
                name: candidate.name.clone(),
                failure: candidate.failure.as_ref().or(missing.as_ref()).map(ToString::to_string),
                figures: Default::default(),
                rank: None,
                latencies: Vec::new(),
            })
            .collect();
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); rows.len()];
        let mut calibration = Vec::new();
        for round in 0..*rounds {
            if rows.iter().all(|it| it.failure.is_some()) || self.stop.asked() {
                progress.inc(rows.len() as u64);
                continue;
            }
            self.round = round as u64;
            calibration.push(calibrate()?);
            for turn in 0..rows.len() {
                // Another one begins in each round, so that nobody always follows the same one.
                let index = (round + turn) % rows.len();
                let row = &mut rows[index];
                if row.failure.is_none() && !self.stop.asked() && self.pace.goes_on(round) {
                    let round = round + 1;
                    progress.set_message(format!("{title}, round {round}/{rounds}: {}", row.name));
                    let left = progress.length().unwrap_or(0).saturating_sub(progress.position());
                    self.pace.fit(&mut self.method, left);
                    match scenario.window(self, point, &candidates[index]) {
                        Ok(sample) => samples[index].push(sample),
                        Err(_) if self.stop.asked() => {}
                        Err(reason) => row.failure = Some(reason.to_string()),
                    }
                }
                progress.inc(1);
            }
        }
        let others = samples.iter().flatten().filter_map(|it| it.others).collect();
        let metrics = scenario.metrics();
        for (row, samples) in rows.iter_mut().zip(&samples) {
            for metric in &metrics {
                let values = samples.iter().filter_map(|it| it.get(metric)).collect();
                if let Some(spread) = Spread::of(values) {
                    row.figures.insert(metric.key.clone().into_owned(), spread);
                }
            }
            row.latencies = curve(samples);
        }
        let mut outcome = Outcome {
            scenario: scenario.name().to_owned(),
            title,
            point: point.values().into_iter().map(|(it, value)| (it.to_owned(), value)).collect(),
            command: format!("wharf bench {} {}", scenario.name(), point.options()),
            metrics: metrics.into_iter().cloned().collect(),
            baseline: scenario.baseline().map(str::to_owned),
            plots: scenario
                .plots()
                .iter()
                .map(|(parameter, metric)| ((*parameter).to_owned(), (*metric).to_owned()))
                .collect(),
            rows,
            calibration,
            others: Spread::of(others),
            unranked: None,
        };
        outcome.rank();
        Ok(outcome)
    }

    /// Why a scenario cannot run here.
    fn missing(&self, needs: Needs) -> Option<Failure> {
        let Needs { cpus, descriptors } = needs;
        if cpus > self.cpus.len() {
            let have = self.cpus.len();
            return Some(Failure(format!(
                "it needs {cpus} CPUs, and only {have} may be used here"
            )));
        }
        let descriptors = descriptors as u64 + DESCRIPTORS_SPARE;
        (descriptors > self.descriptors).then(|| {
            Failure(format!(
                "it needs {} descriptors, and a process may have {} here; raise the hard limit \
                 (ulimit -Hn), or ask for fewer connections",
                grouped(descriptors as f64),
                grouped(self.descriptors as f64)
            ))
        })
    }

    /// What is random in a window should depend on this only.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.round
    }

    /// Starts a server on the first so many CPUs.
    pub fn serve(
        &self,
        candidate: &Candidate,
        cpus: usize,
        wharf_workers: Option<usize>,
        size: usize,
    ) -> Result<Server, Failure> {
        let start = Start {
            cpus: &self.cpus[..cpus],
            wharf_workers: wharf_workers.unwrap_or(self.method.wharf_workers),
            size,
        };
        candidate.serve(&self.places, start, &[], &self.stop)
    }

    /// Runs the load generator of a scenario on those CPUs, and returns what it answers.
    pub fn generate(
        &self,
        scenario: &dyn Scenario,
        server: &mut Server,
        cpus: &[usize],
        job: &impl Serialize,
    ) -> Result<String, Failure> {
        // Beyond the time that it should take: for connecting, and for a machine that is busy.
        const SLACK: Duration = Duration::from_secs(20);
        let harness = &self.places.harness;
        let mut command = launch::command(harness, cpus, harness);
        command.arg("load").arg(scenario.name()).arg(serde_json::to_string(job)?);
        let mut generator = Running::start(command, &self.stop)?;
        let Method { warm_up_ms, window_ms, .. } = self.method;
        let outcome = generator.line(SLACK + Duration::from_millis(warm_up_ms + window_ms));
        outcome.map_err(|reason| match server.running.death() {
            Some(last) => Failure(format!("the server ended: {last}")),
            None => reason,
        })
    }
}

/// Keeps a run within its time: windows become shorter when there are many, or when the machine is
/// slow, and when the time is over each candidate gets one more window per table.
#[derive(Debug)]
struct Pace {
    begin: Instant,
    limit: Option<Duration>,
    window_ms: u64,
    warm_up_ms: u64,
    /// Windows so far.
    done: u32,
    /// How long they, with their warm-up, should have taken.
    planned: Duration,
}

impl Pace {
    /// The shortest window that says anything, in milliseconds.
    const WINDOW_MIN: u64 = 40;

    fn new(method: &Method) -> Self {
        Self {
            begin: Instant::now(),
            limit: method.seconds_max.map(Duration::from_secs),
            window_ms: method.window_ms,
            warm_up_ms: method.warm_up_ms,
            done: 0,
            planned: Duration::ZERO,
        }
    }

    /// Whether there is time for another window of this round.
    fn goes_on(&self, round: usize) -> bool {
        round == 0 || self.limit.is_none_or(|limit| self.begin.elapsed() < limit)
    }

    /// Chooses the length of the next window, when so many are left with it.
    fn fit(&mut self, method: &mut Method, left: u64) {
        if let Some(limit) = self.limit {
            let elapsed = self.begin.elapsed();
            // What a window takes besides: to start a server, to connect, to end.
            let beside = elapsed.saturating_sub(self.planned) / self.done.max(1);
            let share = limit.saturating_sub(elapsed) / u32::try_from(left.max(1)).unwrap_or(1);
            let share = u64::try_from(share.saturating_sub(beside).as_millis()).unwrap_or(0);
            let usual = (self.window_ms + self.warm_up_ms).max(1);
            let window = share.min(usual) * self.window_ms / usual;
            method.window_ms = window.clamp(Self::WINDOW_MIN.min(self.window_ms), self.window_ms);
            method.warm_up_ms = method.window_ms * self.warm_up_ms / self.window_ms.max(1);
        }
        self.done += 1;
        self.planned += Duration::from_millis(method.window_ms + method.warm_up_ms);
    }
}

fn progress(windows: usize) -> ProgressBar {
    let bar = ProgressBar::new(windows as u64);
    let style = ProgressStyle::with_template("{wide_msg} {bar:20} {pos}/{len}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The latencies of all windows together.
fn curve(samples: &[Sample]) -> Vec<(f64, f64)> {
    let mut histogram =
        Histogram::<u64>::new_with_bounds(1, LATENCY_MAX, 3).expect("three digits are possible");
    for (nanoseconds, count) in samples.iter().flat_map(|it| &it.latencies) {
        histogram.saturating_record_n(*nanoseconds, *count);
    }
    if histogram.is_empty() {
        return Vec::new();
    }
    QUANTILES.map(|it| (it, histogram.value_at_quantile(it) as f64 / 1e3)).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_within_its_time() {
        let mut method = Method {
            rounds: 3,
            window_ms: 200,
            warm_up_ms: 100,
            seconds_max: Some(60),
            wharf_workers: 1,
            baseline: String::new(),
        };
        let mut pace = Pace::new(&method);
        // 100 windows of 300 ms take 30 s.
        pace.fit(&mut method, 100);
        assert_eq!((method.window_ms, method.warm_up_ms), (200, 100));
        // 400 of them would take 120 s.
        pace.fit(&mut method, 400);
        assert!((90..=100).contains(&method.window_ms), "{}", method.window_ms);
        assert_eq!(method.warm_up_ms, method.window_ms / 2);
        pace.fit(&mut method, 1_000_000);
        assert_eq!(method.window_ms, Pace::WINDOW_MIN);
        assert!(pace.goes_on(2));
        pace.limit = Some(Duration::ZERO);
        assert!(pace.goes_on(0) && !pace.goes_on(1));
        // Without a limit, nothing is shortened.
        method.seconds_max = None;
        method.window_ms = 700;
        let mut pace = Pace::new(&method);
        pace.fit(&mut method, 1_000_000);
        assert_eq!(method.window_ms, 700);
    }

    #[test]
    fn a_curve_is_of_all_windows() {
        let sample = |latencies: &[(u64, u64)]| Sample {
            latencies: latencies.to_vec(),
            ..Sample::default()
        };
        let curve = curve(&[sample(&[(1000, 90)]), sample(&[(50_000, 10)])]);
        let at = |quantile: f64| {
            curve.iter().find(|(it, _)| *it == quantile).map(|(_, value)| value.round())
        };
        assert_eq!(at(0.5), Some(1.0));
        assert_eq!(at(0.95), Some(50.0));
        assert!(super::curve(&[]).is_empty());
    }
}
