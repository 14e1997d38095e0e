//! `load`: the load generator, a process of its own. What it does is the scenario's affair; most of
//! them exchange messages, see [`exchange`].

pub mod connect;
pub mod datagrams;
pub mod exchange;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Instant;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::measure::{Usage, machine_cpu_ns, machine_cpus, own_cpu_ns};
use crate::metric::{BUSIEST, CPU_NS, ENTRIES, P50_US, P99_US, P999_US, PEAK_MIB, RATE, SWITCHES};
use crate::scenario::Sample;
use crate::{Failure, scenario};

/// The longest latency that is told apart from others, in nanoseconds.
pub const LATENCY_MAX: u64 = 60_000_000_000;

/// `load SCENARIO JOB`, with the job as JSON; the answer too, in one line.
pub fn run(args: &[OsString]) -> Result<(), Failure> {
    let [name, job] = args else {
        return Err(Failure("load: started by the harness only".to_owned()));
    };
    let name = name.to_string_lossy();
    let scenario =
        scenario::find(&name).ok_or_else(|| Failure(format!("load: no scenario {name}")))?;
    let answer = scenario.load(&job.to_string_lossy())?;
    writeln!(io::stdout(), "{answer}")?;
    Ok(())
}

/// Reads the clocks at both ends of a window.
#[derive(Debug)]
pub struct Meter {
    server: u32,
    machine: Option<u64>,
    own_before: u64,
    server_before: Usage,
    begin: Instant,
}

/// What a window has cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metered {
    /// How long it was.
    pub seconds: f64,
    /// What the server has used.
    pub server: Usage,
    /// CPU time of everybody but server and generator (with children that have ended), by the time
    /// that all CPUs had: from 0 to 1.
    pub others: Option<f64>,
}

impl Meter {
    /// Begins a window, in the generator. `server` is the server's process.
    pub fn start(server: u32) -> Result<Self, Failure> {
        Ok(Self {
            server,
            machine: machine_cpu_ns(),
            own_before: own_cpu_ns()?,
            server_before: Usage::of(server)?,
            begin: Instant::now(),
        })
    }

    /// Ends it.
    pub fn stop(self) -> Result<Metered, Failure> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let server = Usage::of(self.server)?.since(&self.server_before);
        let own = own_cpu_ns()?.saturating_sub(self.own_before);
        let others = self.machine.zip(machine_cpu_ns()).and_then(|(before, after)| {
            let used = after.saturating_sub(before).saturating_sub(server.cpu_ns + own);
            Some(used as f64 / 1e9 / seconds / machine_cpus()? as f64)
        });
        Ok(Metered { seconds, server, others })
    }
}

impl Metered {
    /// The usual figures, of a window with so many operations.
    #[must_use]
    pub fn sample(&self, operations: u64) -> Sample {
        let operations = operations as f64;
        let mut sample = Sample { others: self.others, ..Sample::default() };
        sample.put(&CPU_NS, self.server.cpu_ns as f64 / operations);
        sample.put(&RATE, operations / self.seconds);
        sample.put(&SWITCHES, self.server.switches as f64 / operations);
        sample.put(&PEAK_MIB, self.server.peak_bytes as f64 / 1024.0 / 1024.0);
        if let Some(share) = self.server.busiest_share {
            sample.put(&BUSIEST, share * 100.0);
        }
        sample
    }
}

impl Sample {
    /// Adds latencies, and the usual percentiles.
    pub fn put_latencies(&mut self, latencies: Vec<(u64, u64)>) {
        for (metric, part) in [(&P50_US, 0.5), (&P99_US, 0.99), (&P999_US, 0.999)] {
            if let Some(value) = quantile_us(&latencies, part) {
                self.put(metric, value);
            }
        }
        self.latencies = latencies;
    }

    /// Adds how often the server entered the kernel, if it knows, for the operations of all its
    /// life.
    pub fn put_entries(&mut self, entries: Option<u64>, operations: u64) {
        if let Some(entries) = entries {
            self.put(&ENTRIES, entries as f64 / operations as f64);
        }
    }
}

/// What a histogram has recorded: values, and how many there were, in ascending order.
#[must_use]
pub fn recorded(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())).collect()
}

/// The latency, in microseconds, that so many (from 0 to 1) do not exceed.
#[must_use]
pub fn quantile_us(latencies: &[(u64, u64)], part: f64) -> Option<f64> {
    let total: u64 = latencies.iter().map(|(_, count)| count).sum();
    let wanted = (total as f64 * part).ceil() as u64;
    let mut seen = 0;
    let found = latencies.iter().find(|(_, count)| {
        seen += count;
        seen >= wanted.max(1)
    });
    found.map(|(nanoseconds, _)| *nanoseconds as f64 / 1e3)
}

/// A step of xorshift. Neither state nor result are ever 0.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A state for [`random`] that differs in many bits from those of other seeds.
#[must_use]
pub fn seeded(seed: u64) -> u64 {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..4 {
        random(&mut state);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_all_that_was_recorded() {
        let latencies = [(1_000, 98), (2_000, 1), (9_000, 1)];
        assert_eq!(quantile_us(&latencies, 0.5), Some(1.0));
        assert_eq!(quantile_us(&latencies, 0.99), Some(2.0));
        assert_eq!(quantile_us(&latencies, 1.0), Some(9.0));
        assert_eq!(quantile_us(&[], 0.5), None);
    }
}
