//! How the result is told.

use serde::Serialize;

use super::generator::Tally;
use crate::{
    cli::LoadUdp,
    load::tally::Latency,
    output::{self, bytes, count, grouped},
};

/// The result of a load, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    target: String,
    size: usize,
    gso: bool,
    one_way: bool,
    seconds: f64,
    /// Datagrams that the system took.
    sent: u64,
    /// Those that came back; each counts once.
    received: u64,
    /// Those that did not; none if nothing was expected.
    lost: u64,
    duplicates: u64,
    reordered: u64,
    unknown: u64,
    /// Answers, among the lost, that came and found no room in this machine's buffer.
    dropped: u64,
    /// Datagrams that were due and could not be sent in time.
    unsent: u64,
    /// Sends that failed.
    errors: u64,
    /// ICMP messages about datagrams that were sent.
    refused: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Datagrams sent in a second.
    rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_asked: Option<u64>,
    latency_us: Latency,
}

impl Report {
    pub(super) fn new(options: &LoadUdp, tally: &Tally) -> Self {
        let seconds = tally.span.as_secs_f64();
        let lost = if options.one_way { 0 } else { tally.sent.saturating_sub(tally.received) };
        Self {
            target: options.target.clone(),
            size: options.size,
            gso: options.gso,
            one_way: options.one_way,
            seconds,
            sent: tally.sent,
            received: tally.received,
            lost,
            duplicates: tally.duplicates,
            reordered: tally.reordered,
            unknown: tally.unknown,
            dropped: tally.dropped,
            unsent: tally.unsent,
            errors: tally.errors,
            refused: tally.refused,
            reason: tally.reason.clone(),
            rate: if seconds > 0.0 { tally.sent as f64 / seconds } else { 0.0 },
            rate_asked: options.rate,
            latency_us: Latency::of(&tally.latencies),
        }
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        let line = |name: &str, text: String| output::line(&format!("{name:<12} {text}"));
        let size = bytes(self.size as u64);
        line(
            "sent",
            format!(
                "{} of {size} to {} in {:.2} s",
                count(self.sent, "datagram"),
                self.target,
                self.seconds
            ),
        )?;
        let mut rate = format!("{:.0} datagrams/s", self.rate);
        if let Some(asked) = self.rate_asked {
            rate += &format!(" of {} asked for", grouped(asked));
        }
        line("rate", rate)?;
        if !self.one_way {
            line("received", grouped(self.received))?;
            let part = if self.sent > 0 { self.lost as f64 / self.sent as f64 } else { 0.0 };
            line("lost", format!("{} ({:.3} %)", grouped(self.lost), part * 100.0))?;
            if self.latency_us.count > 0 {
                let due = if self.rate_asked.is_some() { ", from when it was due" } else { "" };
                line("latency", self.latency_us.line() + due)?;
            }
        }
        for (number, name, what) in [
            (self.dropped, "dropped", "here, for want of room: raise net.core.rmem_max"),
            (self.duplicates, "duplicates", ""),
            (self.reordered, "reordered", "came after one that was sent later"),
            (self.unknown, "unknown", "are not ours, or came very late"),
            (self.unsent, "not sent", "were due, and the system did not take them in time"),
            (self.refused, "ICMP", "messages about them"),
            (self.errors, "errors", "sends failed"),
        ] {
            if number > 0 {
                line(name, format!("{} {what}", grouped(number)).trim_end().to_owned())?;
            }
        }
        match &self.reason {
            Some(reason) => line("", format!("the first: {reason}")),
            None => Ok(()),
        }
    }

    /// In one line, why it failed. None: it has not.
    pub(super) fn complaint(&self) -> Option<String> {
        let why = self.reason.as_deref().unwrap_or("no reason known");
        if self.sent == 0 {
            return Some(format!("nothing was sent to {}: {why}", self.target));
        }
        (!self.one_way && self.received == 0)
            .then(|| format!("nothing came back from {}: {why}", self.target))
    }
}
