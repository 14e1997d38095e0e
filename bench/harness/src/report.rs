//! From windows to figures: medians with their spread, what may be ranked, tables and JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All of them, in the order of the rounds.
    pub values: Vec<f64>,
}

impl Spread {
    /// Nothing without values.
    #[must_use]
    pub fn of(values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = sorted[sorted.len() / 2];
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(upper, sorted[sorted.len() / 2 - 1])
        } else {
            upper
        };
        Some(Self { median, min, max, values })
    }

    /// Whether the two ranges are apart enough to say which one is lower: they have at most half of
    /// the narrower one in common.
    #[must_use]
    pub fn ranks_against(&self, other: &Self) -> bool {
        let common = self.max.min(other.max) - self.min.max(other.min);
        let narrower = (self.max - self.min).min(other.max - other.min);
        if common < 0.0 { true } else { common < narrower / 2.0 }
    }
}

/// How a candidate compares with the baseline.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Comparison {
    /// The candidate's median by the baseline's.
    pub ratio: f64,
    /// Whether the spread allows to say which one is lower.
    pub ranked: bool,
}

impl Comparison {
    /// Compares a candidate's figure with the baseline's.
    #[must_use]
    pub fn of(candidate: &Spread, baseline: &Spread) -> Option<Self> {
        let ratio = candidate.median / baseline.median;
        ratio.is_finite().then(|| Self { ratio, ranked: candidate.ranks_against(baseline) })
    }
}

/// A table for people. The first column is to the left, the others to the right.
#[must_use]
pub fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| row.len() == head.len()).map(|row| &row[column]);
        cells.chain([&head[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..head.len()).map(width).collect();
    widths[0] = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0).max(widths[0]);
    let mut text = String::new();
    for row in std::iter::once(head).chain(rows.iter().map(Vec::as_slice)) {
        let mut line = format!("  {:<1$}", row[0], widths[0]);
        if let [_, note] = row {
            // A row with one cell has no figures, but something to say.
            let _ = write!(line, "  {note}");
        } else {
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                let _ = write!(line, "  {cell:>width$}");
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A number with thousands set apart.
#[must_use]
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < -0.5 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Spread {
        Spread::of(values.to_vec()).expect("not empty")
    }

    #[test]
    fn median_is_in_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Spread::of(Vec::new()).is_none());
    }

    #[test]
    fn ranges_that_overlap_widely_are_not_ranked() {
        let base = spread(&[10.0, 20.0]);
        assert!(base.ranks_against(&spread(&[30.0, 40.0])));
        assert!(base.ranks_against(&spread(&[18.0, 40.0])));
        assert!(!base.ranks_against(&spread(&[12.0, 40.0])));
        assert!(!base.ranks_against(&spread(&[12.0, 13.0])));
        assert!(!base.ranks_against(&spread(&[15.0])));
        assert!(base.ranks_against(&spread(&[9.0])));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0.0), "0");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(-12.0), "-12");
    }

    #[test]
    fn columns_line_up() {
        let cells = |row: &[&str]| row.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let text = table(
            &cells(&["server", "ns"]),
            &[cells(&["a", "10"]), cells(&["longer", "5"]), cells(&["b", "failed: not built"])],
        );
        assert_eq!(text, "  server  ns\n  a       10\n  longer   5\n  b       failed: not built\n");
    }
}
