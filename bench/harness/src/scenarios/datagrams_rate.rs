use crate::Failure;
use crate::candidate::Candidate;
use crate::load::datagrams::{LOST, PER_NOTIFICATION, Plan, run};
use crate::metric::{CPU_NS, Metric, PEAK_MIB, RATE};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &DatagramsRate;

struct DatagramsRate;

impl Scenario for DatagramsRate {
    fn name(&self) -> &'static str {
        "datagrams-rate"
    }

    fn place(&self) -> u32 {
        71
    }

    fn about(&self) -> &'static str {
        "how many UDP datagrams a second a server counts that is offered too many"
    }

    fn definition(&self) -> &'static str {
        "
The server has a CPU of its own, and the generator another one: it sends datagrams of `size` bytes
over loopback as fast as it can, 32 at a time as one message (UDP_SEGMENT), and does not wait for
anything. What is counted, and how, is as in scenario `datagrams`. `rio-polled` is registered I/O in
its fastest design, `rio-polled-coalesced` the same with datagrams that stay together (UDP_GRO), and
`port` the classic completion port: one thread, and a packet for each datagram. The ratio of their
rates is only that of the servers where `lost` says that each of them was offered more than it could
take; one that loses nothing was as fast as the generator, and may be faster."
    }

    fn service(&self) -> &'static str {
        "datagrams-rate"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::size(&[64, 1024], &[64])]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&RATE, &LOST, &CPU_NS, &PER_NOTIFICATION, &PEAK_MIB]
    }

    fn baseline(&self) -> Option<&'static str> {
        Some("wharf:port")
    }

    fn needs(&self, _point: &Point) -> Needs {
        Needs { cpus: 2, descriptors: 0 }
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let plan = Plan {
            size: point.get("size"),
            together: true,
            // It is in the candidate's own arguments.
            coalesce: false,
            yields: false,
            server: &bench.cpus[..1],
            generator: &bench.cpus[1..2],
        };
        plan.window(bench, self, candidate)
    }

    fn load(&self, job: &str) -> Result<String, Failure> {
        run(job)
    }
}
