//! What can be counted, and how it is shown.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::stats::grouped;

/// Something that is counted. Reports carry these with them, so that they can be read without the
/// harness that made them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// What it is called in samples and in JSON.
    pub key: Cow<'static, str>,
    /// The head of its column.
    pub title: Cow<'static, str>,
    /// What it says, in a sentence.
    pub about: Cow<'static, str>,
    /// Which is the better one.
    pub better: Better,
    /// How many digits behind the point are shown.
    pub digits: usize,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The smaller.
    Less,
    /// The larger.
    More,
}

impl Metric {
    /// A metric of which less is better.
    #[must_use]
    pub const fn less(key: &'static str, title: &'static str, about: &'static str) -> Self {
        Self::new(key, title, about, Better::Less)
    }

    /// A metric of which more is better.
    #[must_use]
    pub const fn more(key: &'static str, title: &'static str, about: &'static str) -> Self {
        Self::new(key, title, about, Better::More)
    }

    const fn new(
        key: &'static str,
        title: &'static str,
        about: &'static str,
        better: Better,
    ) -> Self {
        Self {
            key: Cow::Borrowed(key),
            title: Cow::Borrowed(title),
            about: Cow::Borrowed(about),
            better,
            digits: 0,
        }
    }

    /// Shows so many digits behind the point.
    #[must_use]
    pub const fn digits(mut self, digits: usize) -> Self {
        self.digits = digits;
        self
    }

    /// A value as people read it.
    #[must_use]
    pub fn show(&self, value: f64) -> String {
        if self.digits == 0 { grouped(value) } else { format!("{value:.*}", self.digits) }
    }
}

/// CPU time of the server per operation.
pub static CPU_NS: Metric = Metric::less(
    "cpu_ns",
    "CPU ns/op",
    "CPU time of the server's process within the window, io_uring's kernel threads included, by \
     the operations completed in it",
);

/// Operations per second.
pub static RATE: Metric = Metric::more("rate", "ops/s", "operations completed per second");

/// The median latency.
pub static P50_US: Metric = Metric::less("p50_us", "p50 us", "half of the latencies are shorter");

/// The latency that one in a hundred exceeds.
pub static P99_US: Metric = Metric::less("p99_us", "p99 us", "one latency in a hundred is longer");

/// The latency that one in a thousand exceeds.
pub static P999_US: Metric =
    Metric::less("p999_us", "p99.9 us", "one latency in a thousand is longer");

/// Context switches of the server per operation.
pub static SWITCHES: Metric = Metric::less(
    "switches",
    "switches/op",
    "context switches of the server's threads, wanted and unwanted, by operation",
)
.digits(3);

/// Kernel entries of the server per operation.
pub static ENTRIES: Metric = Metric::less(
    "entries",
    "entries/op",
    "system calls for I/O by operation, over the server's whole life, for servers that count them \
     themselves (the kernel does not)",
)
.digits(3);

/// The most resident memory the server ever had.
pub static PEAK_MIB: Metric = Metric::less(
    "peak_mib",
    "peak MiB",
    "the most resident memory that the server has had so far (VmHWM)",
)
.digits(1);

/// How evenly the server's threads share the work.
pub static BUSIEST: Metric = Metric::less(
    "busiest",
    "busiest %",
    "the busiest thread's part of the server's CPU time; with two threads, 50 is an even spread",
);
