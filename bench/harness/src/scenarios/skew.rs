use crate::Failure;
use crate::candidate::Candidate;
use crate::load::exchange::{Group, Plan};
use crate::load::quantile_us;
use crate::metric::{
    BUSIEST, CPU_NS, ENTRIES, Metric, P50_US, P99_US, P999_US, PEAK_MIB, RATE, SWITCHES,
};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Skew;

/// The size of a message, in bytes.
const SIZE: usize = 64;

/// The connections that are not hot.
const COLD: usize = 60;

/// Messages per second on all of those together.
const COLD_RATE: u64 = 2000;

static HOT_RATE: Metric =
    Metric::more("hot_rate", "hot/s", "messages of the hot connections completed per second");

static HOT_P99_US: Metric =
    Metric::less("hot_p99_us", "hot p99 us", "one latency in a hundred of the hot ones is longer");

struct Skew;

impl Scenario for Skew {
    fn name(&self) -> &'static str {
        "skew"
    }

    fn place(&self) -> u32 {
        40
    }

    fn about(&self) -> &'static str {
        "a few connections with much to compute, and many with little"
    }

    fn definition(&self) -> &'static str {
        "
60 cold connections have 2,000 messages of 64 bytes a second between them; a handler needs next to
nothing for one. `hot` hot connections have `rate` messages a second between them, each of which
makes its handler use the CPU for `work` microseconds, whatever the machine does meanwhile. All
messages are due at fixed times (an open loop), and latencies count from then. Which of the
connections are hot is random, and the same for every candidate of a round: in some rounds a server
that deals connections out to its threads has more hot ones on one thread than on another.

Latencies are those of the cold messages; the hot ones have a column of their own. With 2,000 times
400 us, the hot connections need four fifths of one CPU."
    }

    fn service(&self) -> &'static str {
        "work"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::other("hot", "hot connections", "# hot", &[4], &[4]),
            Parameter::rate(&[2000, 3000], &[2000]),
            Parameter::other("work", "microseconds of CPU per hot message", "# us", &[400], &[400]),
            Parameter::cpus(&[2], &[2]),
        ]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![
            &P99_US,
            &P50_US,
            &P999_US,
            &HOT_P99_US,
            &HOT_RATE,
            &RATE,
            &CPU_NS,
            &SWITCHES,
            &ENTRIES,
            &PEAK_MIB,
            &BUSIEST,
        ]
    }

    fn needs(&self, point: &Point) -> Needs {
        Needs { cpus: point.get("cpus"), descriptors: point.get("hot") + COLD }
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let mut plan = Plan::new(point.get("cpus"), COLD, SIZE);
        plan.groups[0].rate = Some(COLD_RATE);
        plan.groups.push(Group {
            connections: point.get("hot"),
            size: SIZE,
            depth: 1,
            rate: Some(point.get("rate") as u64),
            head: point.get("work") as u16,
            heavy: None,
        });
        let (exchanged, entries) = plan.measure(bench, self, candidate)?;
        let hot = &exchanged.groups[1];
        let hot_rate = hot.requests as f64 / exchanged.metered.seconds;
        let hot_p99 = quantile_us(&hot.latencies, 0.99);
        let mut sample = exchanged.sample(entries);
        sample.put(&HOT_RATE, hot_rate);
        if let Some(latency) = hot_p99 {
            sample.put(&HOT_P99_US, latency);
        }
        Ok(sample)
    }
}
