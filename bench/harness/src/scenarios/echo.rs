use crate::Failure;
use crate::candidate::Candidate;
use crate::load::exchange::Plan;
use crate::metric::{
    BUSIEST, CPU_NS, ENTRIES, Metric, P50_US, P99_US, P999_US, PEAK_MIB, RATE, SWITCHES,
};
use crate::run::Bench;
use crate::scenario::{Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Echo;

struct Echo;

impl Scenario for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn place(&self) -> u32 {
        10
    }

    fn about(&self) -> &'static str {
        "what a message costs that comes and goes back"
    }

    fn definition(&self) -> &'static str {
        "
Every connection keeps `depth` messages of `size` bytes under way, and sends the next one when an
echo is complete (a closed loop: a server that is slow is also sent less). The server sends back
whatever arrives. One operation is one message and its echo. Latency is from when a batch of
messages is built until the batch of completions with the echo is taken.

With 1 CPU, server and generator share it, and the minimum of the CPU time is the figure to trust.
With 2 it is the median, and much of it is how well server and generator happen to share them."
    }

    fn service(&self) -> &'static str {
        "echo"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::size(&[64, 1024, 16_384], &[64]),
            Parameter::connections(&[50, 1, 1000], &[50]),
            Parameter::depth(&[1, 16], &[1]),
            Parameter::cpus(&[1, 2], &[1]),
        ]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&CPU_NS, &RATE, &P50_US, &P99_US, &P999_US, &SWITCHES, &ENTRIES, &PEAK_MIB, &BUSIEST]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("size", "cpu_ns"),
            ("connections", "cpu_ns"),
            ("depth", "cpu_ns"),
            ("cpus", "rate"),
            ("cpus", "cpu_ns"),
        ]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let mut plan = Plan::new(point.get("cpus"), point.get("connections"), point.get("size"));
        plan.groups[0].depth = point.get("depth");
        plan.window(bench, self, candidate)
    }
}
