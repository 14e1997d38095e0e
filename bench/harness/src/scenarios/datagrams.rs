use crate::Failure;
use crate::candidate::Candidate;
use crate::load::datagrams::{LOST, PER_NOTIFICATION, Plan, run};
use crate::metric::{CPU_NS, Metric, PEAK_MIB, RATE, SWITCHES};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Datagrams;

struct Datagrams;

impl Scenario for Datagrams {
    fn name(&self) -> &'static str {
        "datagrams"
    }

    fn place(&self) -> u32 {
        70
    }

    fn about(&self) -> &'static str {
        "UDP datagrams that are counted, by servers that learn of them in different ways"
    }

    fn definition(&self) -> &'static str {
        "
Server and generator share one CPU. The generator sends bursts of 256 datagrams of `size` bytes
over loopback, in one system call each, and yields the CPU after each of them. The server's threads
are scheduled as SCHED_BATCH, so that one that sleeps should not wake in the middle of a burst, and
every server is offered the same. On a machine with other work it happens all the same: in such a
window `switches/op` is 0.05 and more instead of 0.004 (one for each burst), and a server that
sleeps costs up to three times as much. Compare windows without that only. The server counts
datagrams and bytes, and does nothing else; all count with the same code, from sockets with the
same receive buffer (4 MiB, if net.core.rmem_max allows it). One operation is one datagram. After
the warm-up, when nothing waits any more, a small datagram restarts the server's clocks, and
another one stops them. CPU time is the server's, by its own clock of the whole process: also what
it spends on looking in vain. One that counts more than was sent in the window, or other bytes, is
a failed row.

With `coalesce` 1 the sender gives 32 datagrams at a time to the system as one (UDP_SEGMENT), and
servers that can ask for them to stay together (UDP_GRO): wharf's, recvmmsg and quinn-udp, which
always asks. wharf:blocking, tokio and compio have no call of their own that says where each of them
ends, and get them one by one.

wharf's servers are the designs of the example `datagrams`, one thread each, or two where the name
ends in `many`; `:epoll` is registered I/O by plain calls, as where io_uring is refused. recvmmsg
takes up to 64 at a time, quinn-udp up to 32, by tokio's readiness. tokio and compio receive as
their documents teach, compio with a multishot receive into its pool."
    }

    fn service(&self) -> &'static str {
        "datagrams"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::size(&[64, 1024], &[64]),
            Parameter::other(
                "coalesce",
                "1: datagrams come together, where the server can ask for that",
                "coalesce #",
                &[0, 1],
                &[0],
            ),
        ]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&CPU_NS, &RATE, &PER_NOTIFICATION, &LOST, &SWITCHES, &PEAK_MIB]
    }

    fn crossed(&self) -> bool {
        true
    }

    fn baseline(&self) -> Option<&'static str> {
        Some("recvmmsg")
    }

    fn needs(&self, _point: &Point) -> Needs {
        Needs { cpus: 1, descriptors: 0 }
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        let coalesce = point.get("coalesce") != 0;
        // A blocking receive does not tell where datagrams end that came together.
        let refused = coalesce && candidate.name.ends_with(":blocking");
        let plan = Plan {
            size: point.get("size"),
            together: coalesce,
            coalesce: coalesce && !refused,
            yields: true,
            server: &bench.cpus[..1],
            generator: &bench.cpus[..1],
        };
        plan.window(bench, self, candidate)
    }

    fn load(&self, job: &str) -> Result<String, Failure> {
        run(job)
    }
}
