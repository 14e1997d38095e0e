//! What a scenario is: its written definition, its parameters, what is counted, and how one window
//! of it is measured.

use std::collections::BTreeMap;

use crate::Failure;
use crate::candidate::Candidate;
use crate::load;
use crate::metric::Metric;
use crate::run::Bench;
use crate::stats::grouped;

include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));

/// One way to put servers to work. Each file in `scenarios` has one, called `SCENARIO`.
pub trait Scenario: Sync {
    /// What it is called on the command line.
    fn name(&self) -> &'static str;

    /// Where it stands among the others; scenarios run in this order.
    fn place(&self) -> u32;

    /// What it is about, in one line.
    fn about(&self) -> &'static str;

    /// What is sent, by how many, and what is counted: the definition that figures refer to.
    fn definition(&self) -> &'static str;

    /// What a server must offer to take part. Candidates say which services they have.
    fn service(&self) -> &'static str;

    /// What can be varied.
    fn parameters(&self) -> Vec<Parameter>;

    /// What is counted. The first is what candidates are compared by; the order is that of the
    /// columns.
    fn metrics(&self) -> Vec<&'static Metric>;

    /// The parameter and the metric of each plot that shows how one depends on the other.
    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Whether every value of each parameter is measured with every value of the others, and not
    /// only with the base of the others.
    fn crossed(&self) -> bool {
        false
    }

    /// Whom the others are compared with where the one that the user names does not take part.
    fn baseline(&self) -> Option<&'static str> {
        None
    }

    /// How many CPUs and descriptors it takes. Said before anything is started.
    fn needs(&self, point: &Point) -> Needs {
        Needs { cpus: point.get("cpus"), descriptors: point.get("connections") }
    }

    /// The most rounds that make sense.
    fn rounds_max(&self) -> usize {
        usize::MAX
    }

    /// Measures one window of one candidate.
    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure>;

    /// What the generator does, in a process of its own, with the job that `window` gave it. The
    /// answer goes back to `window`.
    fn load(&self, job: &str) -> Result<String, Failure> {
        load::exchange::run(job)
    }
}

/// What a scenario takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// CPUs.
    pub cpus: usize,
    /// Descriptors in one process, besides a few.
    pub descriptors: usize,
}

/// All scenarios, in the order in which they run.
#[must_use]
pub fn all() -> Vec<&'static dyn Scenario> {
    let mut all = FILES.to_vec();
    all.sort_by_key(|it| it.place());
    all
}

/// The scenario of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static dyn Scenario> {
    FILES.iter().copied().find(|it| it.name() == name)
}

/// Something that can be varied.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// How a value is written, with `#` for the value: for 1, and for others.
    pub label: (&'static str, &'static str),
    /// The values that are measured unless told otherwise.
    pub full: &'static [u64],
    /// And those of a quick run.
    pub quick: &'static [u64],
}

impl Parameter {
    /// CPUs.
    #[must_use]
    pub const fn cpus(full: &'static [u64], quick: &'static [u64]) -> Self {
        Self {
            name: "cpus",
            about: "CPUs that server and generator share; the server has as many threads",
            label: ("# CPU", "# CPUs"),
            full,
            quick,
        }
    }

    /// Connections.
    #[must_use]
    pub const fn connections(full: &'static [u64], quick: &'static [u64]) -> Self {
        Self {
            name: "connections",
            about: "connections",
            label: ("# connection", "# connections"),
            full,
            quick,
        }
    }

    /// The size of a message.
    #[must_use]
    pub const fn size(full: &'static [u64], quick: &'static [u64]) -> Self {
        Self { name: "size", about: "bytes in a message", label: ("# B", "# B"), full, quick }
    }

    /// Messages under way on a connection.
    #[must_use]
    pub const fn depth(full: &'static [u64], quick: &'static [u64]) -> Self {
        Self {
            name: "depth",
            about: "messages under way on each connection",
            label: ("depth #", "depth #"),
            full,
            quick,
        }
    }

    /// Messages per second.
    #[must_use]
    pub const fn rate(full: &'static [u64], quick: &'static [u64]) -> Self {
        Self {
            name: "rate",
            about: "messages per second over all connections, whatever the server does",
            label: ("#/s", "#/s"),
            full,
            quick,
        }
    }

    /// Something else.
    #[must_use]
    pub const fn other(
        name: &'static str,
        about: &'static str,
        label: &'static str,
        full: &'static [u64],
        quick: &'static [u64],
    ) -> Self {
        Self { name, about, label: (label, label), full, quick }
    }

    fn show(&self, value: u64) -> String {
        let label = if value == 1 { self.label.0 } else { self.label.1 };
        label.replace('#', &grouped(value as f64))
    }
}

/// A value for each parameter of a scenario.
#[derive(Clone, Debug)]
pub struct Point(Vec<(Parameter, u64)>);

impl Point {
    /// The points to measure: the first value of every parameter, and then each other value of each
    /// parameter, with the first of all the others. `chosen` gives the values.
    #[must_use]
    pub fn star(parameters: &[Parameter], chosen: impl Fn(&Parameter) -> Vec<u64>) -> Vec<Self> {
        let values: Vec<_> = parameters.iter().map(|it| (it.clone(), chosen(it))).collect();
        let first: Vec<_> = values.iter().map(|(it, values)| (it.clone(), values[0])).collect();
        let mut points = vec![Self(first.clone())];
        for (index, (_, values)) in values.iter().enumerate() {
            for &value in &values[1..] {
                let mut point = first.clone();
                point[index].1 = value;
                points.push(Self(point));
            }
        }
        points
    }

    /// Every value of each parameter with every value of the others, those of the last parameter
    /// slowest.
    #[must_use]
    pub fn grid(parameters: &[Parameter], chosen: impl Fn(&Parameter) -> Vec<u64>) -> Vec<Self> {
        let mut points = vec![Self(Vec::new())];
        for parameter in parameters {
            let values = chosen(parameter);
            let with = |value: &u64| {
                let add = |point: &Self| {
                    let mut point = point.clone();
                    point.0.push((parameter.clone(), *value));
                    point
                };
                points.iter().map(add).collect::<Vec<_>>()
            };
            points = values.iter().flat_map(with).collect();
        }
        points
    }

    /// The value of a parameter.
    ///
    /// # Panics
    ///
    /// When the scenario has none of that name: a mistake in the scenario.
    #[must_use]
    pub fn get(&self, name: &str) -> usize {
        let found = self.0.iter().find(|(it, _)| it.name == name);
        let (_, value) = found.unwrap_or_else(|| panic!("the scenario has no parameter {name}"));
        usize::try_from(*value).expect("a 64-bit machine")
    }

    /// In words.
    #[must_use]
    pub fn title(&self) -> String {
        let parts: Vec<_> = self.0.iter().map(|(it, value)| it.show(*value)).collect();
        parts.join(", ")
    }

    /// The options that choose this point on the command line.
    #[must_use]
    pub fn options(&self) -> String {
        let parts: Vec<_> =
            self.0.iter().map(|(it, value)| format!("--set {}={value}", it.name)).collect();
        parts.join(" ")
    }

    /// The names and values.
    #[must_use]
    pub fn values(&self) -> Vec<(&'static str, u64)> {
        self.0.iter().map(|(it, value)| (it.name, *value)).collect()
    }
}

/// What was counted in one window.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// By the keys of metrics.
    pub figures: BTreeMap<String, f64>,
    /// The latencies, as nanoseconds and how many there were.
    pub latencies: Vec<(u64, u64)>,
    /// CPU time of everybody else, by the time that all CPUs had: from 0 to 1.
    pub others: Option<f64>,
}

impl Sample {
    /// Adds a figure. One that is no number (a share of nothing) is left out.
    pub fn put(&mut self, metric: &Metric, value: f64) {
        if value.is_finite() {
            self.figures.insert(metric.key.clone().into_owned(), value);
        }
    }

    /// A figure, if there is one.
    #[must_use]
    pub fn get(&self, metric: &Metric) -> Option<f64> {
        self.figures.get(&*metric.key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_varies_one_parameter_at_a_time() {
        let parameters = [Parameter::size(&[64, 1024], &[64]), Parameter::cpus(&[1, 2], &[1])];
        let points = Point::star(&parameters, |it| it.full.to_vec());
        let titles: Vec<_> = points.iter().map(Point::title).collect();
        assert_eq!(titles, ["64 B, 1 CPU", "1,024 B, 1 CPU", "64 B, 2 CPUs"]);
        assert_eq!(points[1].get("size"), 1024);
        assert_eq!(points[2].options(), "--set size=64 --set cpus=2");
    }

    #[test]
    fn a_grid_has_all_combinations() {
        let parameters = [Parameter::size(&[64, 1024], &[64]), Parameter::cpus(&[1, 2], &[1])];
        let points = Point::grid(&parameters, |it| it.full.to_vec());
        let titles: Vec<_> = points.iter().map(Point::title).collect();
        assert_eq!(titles, ["64 B, 1 CPU", "1,024 B, 1 CPU", "64 B, 2 CPUs", "1,024 B, 2 CPUs"]);
    }

    #[test]
    fn scenarios_are_well_formed() {
        let all = all();
        assert!(!all.is_empty());
        for scenario in &all {
            let name = scenario.name();
            assert!(find(name).is_some_and(|it| it.place() == scenario.place()), "{name}");
            assert_eq!(all.iter().filter(|it| it.place() == scenario.place()).count(), 1, "{name}");
            assert!(!scenario.metrics().is_empty(), "{name}");
            let parameters = scenario.parameters();
            for parameter in &parameters {
                assert!(!parameter.full.is_empty() && !parameter.quick.is_empty(), "{name}");
            }
            for (parameter, metric) in scenario.plots() {
                assert!(parameters.iter().any(|it| it.name == *parameter), "{name} {parameter}");
                assert!(scenario.metrics().iter().any(|it| it.key == *metric), "{name} {metric}");
            }
            // What needs() asks of the point must be there.
            for point in Point::star(&parameters, |it| it.full.to_vec()) {
                let _ = scenario.needs(&point);
            }
        }
    }
}
