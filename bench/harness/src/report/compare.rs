//! Two reports, side by side: for one's own changes.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{Outcome, Report};
use crate::Failure;
use crate::metric::{Better, Metric};
use crate::stats::Spread;

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// What makes the two hard to compare.
    pub warnings: Vec<String>,
    /// What both have measured.
    pub differences: Vec<Difference>,
    /// What only one of them has.
    pub unmatched: Vec<String>,
}

/// One figure in both.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Scenario and parameters.
    pub title: String,
    /// The candidate.
    pub name: String,
    /// What was counted.
    pub metric: Metric,
    /// In the first report.
    pub before: Spread,
    /// In the second one.
    pub after: Spread,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is better, by more than the noise.
    Better,
    /// It is worse, by more than the noise.
    Worse,
    /// The difference is inside the noise.
    Noise,
    /// The machine was too noisy to say.
    Unknown,
}

impl Comparison {
    /// Compares what both have measured: by all metrics, or by those that candidates are compared
    /// by.
    pub fn of(before: &Report, after: &Report, all: bool) -> Result<Self, Failure> {
        let mut differences = Vec::new();
        let mut unmatched = Vec::new();
        for one in &before.outcomes {
            let Some(other) = after.outcomes.iter().find(|it| same(it, one)) else {
                unmatched.push(format!("{}: in the first report only", one.title));
                continue;
            };
            for row in &one.rows {
                let Some(found) = other.rows.iter().find(|it| it.name == row.name) else {
                    unmatched.push(format!("{}, {}: in the first only", one.title, row.name));
                    continue;
                };
                let metrics = one.metrics.iter().take(if all { usize::MAX } else { 1 });
                for metric in metrics {
                    let figures =
                        row.figures.get(&*metric.key).zip(found.figures.get(&*metric.key));
                    let Some((before, after)) = figures else { continue };
                    let noisy = one.unranked.is_some() || other.unranked.is_some();
                    differences.push(Difference {
                        title: one.title.clone(),
                        name: row.name.clone(),
                        metric: metric.clone(),
                        before: before.clone(),
                        after: after.clone(),
                        verdict: Verdict::of(metric, before, after, noisy),
                    });
                }
            }
        }
        for other in &after.outcomes {
            if !before.outcomes.iter().any(|it| same(it, other)) {
                unmatched.push(format!("{}: in the second report only", other.title));
            }
        }
        if differences.is_empty() {
            return Err(Failure("the two reports have measured nothing in common".to_owned()));
        }
        Ok(Self { warnings: warnings(before, after), differences, unmatched })
    }

    /// For people to read.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for warning in &self.warnings {
            text += &format!("careful: {warning}\n");
        }
        for these in self.differences.chunk_by(|one, other| one.title == other.title) {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(["server", "", "before", "min - max", "after", "min - max", "", ""]);
            for it in these {
                let metric = &it.metric;
                let range =
                    |it: &Spread| format!("{} - {}", metric.show(it.min), metric.show(it.max));
                let cells = [
                    it.name.clone(),
                    metric.title.clone().into_owned(),
                    metric.show(it.before.median),
                    range(&it.before),
                    metric.show(it.after.median),
                    range(&it.after),
                    it.change(),
                    it.verdict.text().to_owned(),
                ];
                table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
                    let left = matches!(column, 0 | 1 | 7);
                    let side = if left { CellAlignment::Left } else { CellAlignment::Right };
                    Cell::new(text).set_alignment(side)
                }));
            }
            text += &format!("\n{}\n", these[0].title);
            for line in table.to_string().lines() {
                text += line.trim_end();
                text.push('\n');
            }
        }
        if !self.unmatched.is_empty() {
            text += "\nNot compared:\n";
        }
        for it in &self.unmatched {
            text += &format!("  {it}\n");
        }
        text
    }
}

impl Difference {
    fn change(&self) -> String {
        let change = (self.after.median / self.before.median - 1.0) * 100.0;
        if change.is_finite() { format!("{change:+.1} %") } else { String::new() }
    }
}

impl Verdict {
    fn of(metric: &Metric, before: &Spread, after: &Spread, noisy: bool) -> Self {
        if !after.ranks_against(before) || after.median == before.median {
            return Self::Noise;
        }
        let less = after.median < before.median;
        match noisy {
            true => Self::Unknown,
            false if less == (metric.better == Better::Less) => Self::Better,
            false => Self::Worse,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Noise => "inside the noise",
            Self::Unknown => "the machine was too noisy to say",
        }
    }
}

/// Whether two tables are about the same.
fn same(one: &Outcome, other: &Outcome) -> bool {
    one.scenario == other.scenario && one.point == other.point
}

/// Differences that have nothing to do with what was changed.
fn warnings(before: &Report, after: &Report) -> Vec<String> {
    let (one, other) = (&before.machine, &after.machine);
    let mut warnings = Vec::new();
    let mut differ = |what: &str, before: &str, after: &str| {
        if before != after {
            warnings.push(format!("{what}: {before} before, {after} after"));
        }
    };
    let unknown = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".to_owned());
    differ("different processors", &unknown(&one.cpu), &unknown(&other.cpu));
    differ("different numbers of CPUs", &one.cpus.to_string(), &other.cpus.to_string());
    differ("different kernels", &unknown(&one.kernel), &unknown(&other.kernel));
    differ("different compilers", &one.rustc, &other.rustc);
    let windows = |it: &Report| {
        let method = &it.method;
        format!("{} ms after {} ms of warm-up", method.window_ms, method.warm_up_ms)
    };
    differ("different windows", &windows(before), &windows(after));
    for (name, version) in &before.versions {
        if let Some(other) = after.versions.get(name) {
            differ(&format!("different versions of {name}"), version, other);
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{CPU_NS, RATE};

    #[test]
    fn a_difference_is_told_from_noise() {
        let spread = |values: &[f64]| Spread::of(values.to_vec()).expect("not empty");
        let before = spread(&[10.0, 11.0, 12.0]);
        let less = spread(&[7.0, 8.0, 9.0]);
        assert_eq!(Verdict::of(&CPU_NS, &before, &less, false), Verdict::Better);
        assert_eq!(Verdict::of(&RATE, &before, &less, false), Verdict::Worse);
        assert_eq!(Verdict::of(&RATE, &before, &less, true), Verdict::Unknown);
        let near = spread(&[10.5, 11.5, 12.5]);
        assert_eq!(Verdict::of(&CPU_NS, &before, &near, false), Verdict::Noise);
        assert_eq!(Verdict::of(&CPU_NS, &before, &before, false), Verdict::Noise);
    }
}
