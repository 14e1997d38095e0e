use crate::Failure;
use crate::candidate::Candidate;
use crate::load::exchange::{Heavy, Plan};
use crate::metric::{CPU_NS, ENTRIES, Metric, P50_US, P99_US, P999_US, PEAK_MIB, RATE, SWITCHES};
use crate::run::Bench;
use crate::scenario::{Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &BlockingRate;

/// The size of a message, in bytes.
const SIZE: usize = 64;

struct BlockingRate;

impl Scenario for BlockingRate {
    fn name(&self) -> &'static str {
        "blocking-rate"
    }

    fn place(&self) -> u32 {
        31
    }

    fn about(&self) -> &'static str {
        "what the others get while some handlers sleep: at the same rate for all"
    }

    fn definition(&self) -> &'static str {
        "
As in scenario `blocking`, one message in `one_in`, chosen at random, makes its handler sleep for
`ms` milliseconds, and the server is not told beforehand. But `rate` messages of 64 bytes are due
every second at fixed times, in turn on all connections, whatever the server does (an open loop). A
latency counts from when the message was due. Messages that are due and not answered at the end
count with their age. Latencies are those of the other messages only, a message that is due while
the one before it on its own connection sleeps included: have connections enough that this is rare.

10,000 messages a second, one in a hundred of which sleeps 10 ms, keep one thread asleep all the
time on average: half of what a server with two threads can sustain. With 15,000 it is three
quarters."
    }

    fn service(&self) -> &'static str {
        "block"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::rate(&[10_000, 5000, 15_000], &[10_000]),
            Parameter::connections(&[500], &[500]),
            Parameter::cpus(&[2], &[2]),
            Parameter::other("one_in", "one message in how many blocks", "1 in #", &[100], &[100]),
            Parameter::other(
                "ms",
                "milliseconds that it sleeps, at most 255",
                "# ms",
                &[10],
                &[10],
            ),
        ]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&P99_US, &P50_US, &P999_US, &RATE, &CPU_NS, &SWITCHES, &ENTRIES, &PEAK_MIB]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[("rate", "p99_us")]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let mut plan = Plan::new(point.get("cpus"), point.get("connections"), SIZE);
        plan.groups[0].rate = Some(point.get("rate") as u64);
        plan.groups[0].heavy =
            Some(Heavy { one_in: point.get("one_in") as u64, head: point.get("ms") as u16 });
        plan.window(bench, self, candidate)
    }
}
