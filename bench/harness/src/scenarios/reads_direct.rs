use super::reads;
use crate::Failure;
use crate::candidate::Candidate;
use crate::metric::{CPU_NS, Metric, RATE};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &ReadsDirect;

struct ReadsDirect;

impl Scenario for ReadsDirect {
    fn name(&self) -> &'static str {
        "reads-direct"
    }

    fn place(&self) -> u32 {
        81
    }

    fn about(&self) -> &'static str {
        "random reads of a file past the page cache, many in flight"
    }

    fn definition(&self) -> &'static str {
        "
As scenario `reads`, but with O_DIRECT: every read goes to the disk, or to whatever the machine has
in its place. Most of the CPU time is the kernel's, and reads per second are the disk's affair as
soon as enough are in flight. tokio takes part with `spawn_blocking` only: its `fs::File` reads into
memory of its own, which is not aligned."
    }

    fn service(&self) -> &'static str {
        "read-direct"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![reads::depth(&[32, 1, 8, 128]), Parameter::cpus(&[1, 2], &[1])]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&CPU_NS, &RATE]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[("depth", "rate"), ("depth", "cpu_ns")]
    }

    fn needs(&self, point: &Point) -> Needs {
        reads::needs(point)
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        reads::window(bench, point, candidate)
    }
}
