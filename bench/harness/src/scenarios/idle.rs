use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::candidate::Candidate;
use crate::load::connect::connect;
use crate::measure::settled_resident_bytes;
use crate::metric::Metric;
use crate::run::Bench;
use crate::scenario::{Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Idle;

/// The size of the one message, in bytes.
const SIZE: usize = 64;

static EACH: Metric =
    Metric::less("bytes", "bytes each", "how much the server's memory has grown, by connection");

static BEFORE: Metric =
    Metric::less("before_mib", "MiB before", "the server's memory without any connection")
        .digits(1);

static AFTER: Metric =
    Metric::less("after_mib", "MiB after", "the server's memory with all of them").digits(1);

struct Idle;

#[derive(Serialize, Deserialize)]
struct Job {
    target: SocketAddr,
    server: u32,
    connections: usize,
}

/// Resident memory of the server, in bytes.
#[derive(Serialize, Deserialize)]
struct Memory {
    before: u64,
    after: u64,
}

impl Scenario for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn place(&self) -> u32 {
        20
    }

    fn about(&self) -> &'static str {
        "what a connection costs on which nothing happens"
    }

    fn definition(&self) -> &'static str {
        "
`connections` connections, from several source addresses within 127.0.0.0/8, as one does not have
enough ports. Each echoes one message of 64 bytes and is then left alone. Counted is how much the
server's resident memory (VmRSS) has grown. What the kernel keeps for a socket is not in it, and is
the same for all.

Memory does not depend on how busy the machine is: there are at most three rounds."
    }

    fn service(&self) -> &'static str {
        "echo"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::connections(&[19_000, 1000, 5000, 10_000], &[1000]),
            Parameter::cpus(&[2], &[2]),
        ]
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&EACH, &BEFORE, &AFTER]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[("connections", "after_mib")]
    }

    fn rounds_max(&self) -> usize {
        3
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        const MIB: f64 = 1024.0 * 1024.0;
        let connections = point.get("connections");
        let cpus = point.get("cpus");
        let mut server = bench.serve(candidate, cpus, None, SIZE)?;
        let job = Job { target: server.addr, server: server.running.id(), connections };
        let answer = bench.generate(self, &mut server, &bench.cpus[..cpus], &job)?;
        let Memory { before, after } = serde_json::from_str(&answer)?;
        let mut sample = Sample::default();
        sample.put(&EACH, (after as f64 - before as f64) / connections as f64);
        sample.put(&BEFORE, before as f64 / MIB);
        sample.put(&AFTER, after as f64 / MIB);
        Ok(sample)
    }

    fn load(&self, job: &str) -> Result<String, Failure> {
        let job: Job = serde_json::from_str(job)?;
        let before = settled_resident_bytes(job.server)?;
        let mut echo = [0; SIZE];
        let connections = (0..job.connections)
            .map(|number| {
                let mut stream = connect(job.target, number)?;
                // The echo shows that the server has taken the connection, and the server has then
                // done for it whatever it does on the first message.
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let message = [number as u8; SIZE];
                stream.write_all(&message)?;
                stream
                    .read_exact(&mut echo)
                    .map_err(|error| Failure(format!("no echo on connection {number}: {error}")))?;
                if message == echo { Ok(stream) } else { Err(Failure("a wrong echo".to_owned())) }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let after = settled_resident_bytes(job.server)?;
        drop(connections);
        Ok(serde_json::to_string(&Memory { before, after })?)
    }
}
