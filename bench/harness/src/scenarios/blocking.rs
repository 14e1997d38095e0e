use crate::Failure;
use crate::candidate::Candidate;
use crate::load::exchange::{Heavy, Plan};
use crate::metric::{CPU_NS, ENTRIES, Metric, P50_US, P99_US, P999_US, PEAK_MIB, RATE, SWITCHES};
use crate::run::Bench;
use crate::scenario::{Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Blocking;

/// The size of a message, in bytes.
const SIZE: usize = 64;

struct Blocking;

impl Scenario for Blocking {
    fn name(&self) -> &'static str {
        "blocking"
    }

    fn place(&self) -> u32 {
        30
    }

    fn about(&self) -> &'static str {
        "what the others get while some handlers sleep: as fast as it goes"
    }

    fn definition(&self) -> &'static str {
        "
Every connection keeps one message of 64 bytes under way (a closed loop). One message in `one_in`,
chosen at random, makes its handler sleep for `ms` milliseconds before it sends the message back.
The server is not told beforehand, and the thread really sleeps. One operation is one message and
its echo; latencies are those of the other messages only.

As the choice is random, two sleeps may follow one another on the same thread. With 25 connections
to a thread, that happens in more than one turn of a hundred: the 99th percentile of a server with a
fixed thread per connection is two sleeps, not one.

In a closed loop a server that lets requests wait is also sent fewer of them. Scenario
`blocking-rate` has the same rate for all."
    }

    fn service(&self) -> &'static str {
        "block"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::connections(&[50], &[50]), Parameter::cpus(&[2], &[2]), one_in(), ms()]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&RATE, &P50_US, &P99_US, &P999_US, &CPU_NS, &SWITCHES, &ENTRIES, &PEAK_MIB]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let mut plan = Plan::new(point.get("cpus"), point.get("connections"), SIZE);
        plan.groups[0].heavy =
            Some(Heavy { one_in: point.get("one_in") as u64, head: point.get("ms") as u16 });
        plan.window(bench, self, candidate)
    }
}

fn one_in() -> Parameter {
    Parameter::other("one_in", "one message in how many blocks", "1 in # blocks", &[100], &[100])
}

fn ms() -> Parameter {
    Parameter::other("ms", "milliseconds that it sleeps, at most 255", "# ms", &[10], &[10])
}
