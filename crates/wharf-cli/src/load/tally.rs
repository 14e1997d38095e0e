//! What is measured, and how it is told.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    cli::Load,
    output::{self, bytes, count, grouped},
};

/// The longest latency that is told apart from longer ones: ten minutes, in nanoseconds.
const LATENCY_MAX: u64 = 600_000_000_000;
/// How many reasons of failures are kept.
const REASONS_MAX: usize = 8;

/// What one thread of the load has counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) bytes: u64,
    pub(super) mismatches: u64,
    pub(super) errors: u64,
    /// Connections that stood.
    pub(super) connected: u64,
    /// Messages that were due and could not be sent, because --depth were in flight.
    pub(super) unsent: u64,
    /// From the first send to the last echo, or to the end of the time.
    pub(super) span: Duration,
    /// What failed, how often.
    reasons: Vec<(String, u64)>,
    /// Latencies in nanoseconds, of messages that let the handler sleep, and of the others.
    plain: Histogram<u64>,
    blocked: Histogram<u64>,
}

/// Of latencies in nanoseconds.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3)
        .unwrap_or_else(|error| unreachable!("the bounds are constants that suit it: {error}"))
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            requests: 0,
            bytes: 0,
            mismatches: 0,
            errors: 0,
            connected: 0,
            unsent: 0,
            span: Duration::ZERO,
            reasons: Vec::new(),
            plain: latencies(),
            blocked: latencies(),
        }
    }

    /// Counts a message that has come back.
    pub(super) fn echo(&mut self, nanoseconds: u64, blocked: bool) {
        self.requests += 1;
        let histogram = if blocked { &mut self.blocked } else { &mut self.plain };
        histogram.saturating_record(nanoseconds);
    }

    /// Counts errors, with a reason.
    pub(super) fn fail(&mut self, errors: u64, reason: &str) {
        self.errors += errors;
        self.explain(errors, reason);
    }

    fn explain(&mut self, errors: u64, reason: &str) {
        if errors == 0 {
            return;
        }
        if let Some((_, count)) = self.reasons.iter_mut().find(|(known, _)| known == reason) {
            *count += errors;
        } else if self.reasons.len() < REASONS_MAX {
            self.reasons.push((reason.to_owned(), errors));
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.mismatches += other.mismatches;
        self.connected += other.connected;
        self.unsent += other.unsent;
        self.span = self.span.max(other.span);
        self.errors += other.errors;
        for (reason, errors) in &other.reasons {
            self.explain(*errors, reason);
        }
        for (sum, part) in [(&mut self.plain, &other.plain), (&mut self.blocked, &other.blocked)] {
            if let Err(error) = sum.add(part) {
                log::error!("latencies of a thread are lost: {error}");
            }
        }
    }

    pub(super) fn report(&self, options: &Load) -> Report {
        let seconds = self.span.as_secs_f64();
        Report {
            target: options.target.clone(),
            connections: options.connections,
            connected: self.connected,
            size: options.size,
            depth: options.depth,
            seconds,
            requests: self.requests,
            bytes: self.bytes,
            errors: self.errors,
            reasons: self
                .reasons
                .iter()
                .map(|(reason, count)| Reason { reason: reason.clone(), count: *count })
                .collect(),
            verified: options.verify,
            mismatches: self.mismatches,
            rate: if seconds > 0.0 { self.requests as f64 / seconds } else { 0.0 },
            rate_asked: options.rate,
            unsent: self.unsent,
            latency_us: Latency::of(&self.plain),
            latency_blocked_us: options.block_every.map(|_| Latency::of(&self.blocked)),
        }
    }
}

/// The result of a load, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    target: String,
    connections: usize,
    connected: u64,
    size: usize,
    depth: usize,
    seconds: f64,
    /// Messages that came back in full.
    requests: u64,
    /// Bytes that came back.
    bytes: u64,
    errors: u64,
    reasons: Vec<Reason>,
    verified: bool,
    /// Bytes that came back and were not those that were sent.
    mismatches: u64,
    rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_asked: Option<u64>,
    unsent: u64,
    latency_us: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_blocked_us: Option<Latency>,
}

#[derive(Debug, Serialize)]
struct Reason {
    reason: String,
    count: u64,
}

/// Latencies, in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let tenths = |nanoseconds: f64| (nanoseconds / 100.0).round() / 10.0;
        let at = |percent| tenths(histogram.value_at_percentile(percent) as f64);
        Self {
            count: histogram.len(),
            min: tenths(histogram.min() as f64),
            mean: tenths(histogram.mean()),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: tenths(histogram.max() as f64),
        }
    }

    pub(super) fn line(&self) -> String {
        format!(
            "p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1} us",
            self.p50, self.p90, self.p99, self.p999, self.max
        )
    }
}

impl Report {
    /// Whether everything went well.
    pub(super) fn good(&self) -> bool {
        self.requests > 0 && self.errors == 0 && self.mismatches == 0
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        let line = |name: &str, text: String| output::line(&format!("{name:<12} {text}"));
        let of = grouped(self.connections as u64);
        line("connections", format!("{} of {of} to {}", grouped(self.connected), self.target))?;
        line("messages", format!("{} in {:.2} s", grouped(self.requests), self.seconds))?;
        let mut rate = format!("{:.0} messages/s", self.rate);
        if let Some(asked) = self.rate_asked {
            rate += &format!(" of {} asked for", grouped(asked));
        }
        line("rate", rate)?;
        let volume = bytes(self.bytes);
        line("echoed", format!("{volume} in messages of {}", bytes(self.size as u64)))?;
        let due = if self.rate_asked.is_some() { ", from when it was due" } else { "" };
        if self.latency_us.count > 0 {
            line("latency", self.latency_us.line() + due)?;
        }
        if let Some(blocked) = self.latency_blocked_us.as_ref().filter(|it| it.count > 0) {
            line("  blocking", blocked.line() + due)?;
        }
        if self.unsent > 0 {
            let unsent = count(self.unsent, "message");
            line("not sent", format!("{unsent}: due, but --depth were in flight"))?;
        }
        let compared = match (self.verified, self.mismatches) {
            (false, _) => "not compared (--verify does)".to_owned(),
            (true, 0) => "all the same".to_owned(),
            (true, mismatches) => count(mismatches, "byte") + " DIFFERED",
        };
        line("bytes", compared)?;
        line("errors", grouped(self.errors))?;
        for Reason { reason, count } in &self.reasons {
            line("", format!("{} x {reason}", grouped(*count)))?;
        }
        Ok(())
    }

    /// In one line, why it failed.
    pub(super) fn complaint(&self) -> String {
        if self.connected == 0 {
            let why = self.reasons.first().map_or("no reason known", |it| it.reason.as_str());
            return format!("no connection to {} could be made: {why}", self.target);
        }
        if self.mismatches > 0 {
            return format!("{} came back wrong", count(self.mismatches, "byte"));
        }
        match self.reasons.first() {
            Some(Reason { reason, .. }) => {
                format!("{}; the first: {reason}", count(self.errors, "error"))
            }
            None => "no message came back".to_owned(),
        }
    }
}
