use crate::Failure;
use crate::candidate::Candidate;
use crate::load::exchange::{Group, Plan};
use crate::metric::{Metric, P50_US, P99_US, P999_US, PEAK_MIB};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Sender;

/// The size of a small message, in bytes.
const SMALL: usize = 64;

/// Small messages per second, on all connections together.
const SMALL_RATE: u64 = 5000;

/// How many big messages are under way.
const DEPTH: usize = 4;

static BIG_MIB: Metric =
    Metric::more("big_mib", "big MiB/s", "what the big sender got back per second");

static COST: Metric = Metric::less(
    "cpu_us_mib",
    "CPU us/MiB",
    "CPU time of the server, for all connections, by what the big sender got back",
);

struct Sender;

impl Scenario for Sender {
    fn name(&self) -> &'static str {
        "sender"
    }

    fn place(&self) -> u32 {
        50
    }

    fn about(&self) -> &'static str {
        "one connection that sends as much as it can, and others with little"
    }

    fn definition(&self) -> &'static str {
        "
One connection keeps four messages of `big` bytes under way, and sends the next one when an echo is
complete. `connections` others have 5,000 messages of 64 bytes a second between them, due at fixed
times in turn on all of them (an open loop), and their latencies count from then. The server sends
back whatever arrives. Latencies are those of the small messages: does a connection that has always
something to be served keep the others waiting? How much came back to the big sender has a column of
its own."
    }

    fn service(&self) -> &'static str {
        "echo"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::other("big", "bytes in a big message", "# B", &[262_144], &[262_144]),
            Parameter::connections(&[50], &[50]),
            Parameter::cpus(&[2, 1], &[2]),
        ]
    }

    fn needs(&self, point: &Point) -> Needs {
        Needs { cpus: point.get("cpus"), descriptors: point.get("connections") + 1 }
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&P99_US, &P50_US, &P999_US, &BIG_MIB, &COST, &PEAK_MIB]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let mut plan = Plan::new(point.get("cpus"), point.get("connections"), SMALL);
        plan.groups[0].rate = Some(SMALL_RATE);
        plan.groups.push(Group {
            connections: 1,
            size: point.get("big"),
            depth: DEPTH,
            rate: None,
            head: 0,
            heavy: None,
        });
        let (exchanged, entries) = plan.measure(bench, self, candidate)?;
        let bytes = exchanged.groups[1].requests as f64 * point.get("big") as f64;
        let mib = bytes / 1024.0 / 1024.0;
        let rate = mib / exchanged.metered.seconds;
        let cost = exchanged.metered.server.cpu_ns as f64 / 1e3 / mib;
        let mut sample = exchanged.sample(entries);
        sample.put(&BIG_MIB, rate);
        sample.put(&COST, cost);
        Ok(sample)
    }
}
