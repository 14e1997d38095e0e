//! From windows to figures: medians with their spread, and what may be ranked.

use serde::{Deserialize, Serialize};

use crate::metric::Better;

/// One figure over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// Where each one stands: 1, and one more for each that is better by more than the noise. Several
/// can have the same place. Those without a figure have none.
#[must_use]
pub fn ranks(figures: &[Option<&Spread>], better: Better) -> Vec<Option<usize>> {
    let beats = |one: &Spread, other: &Spread| {
        let ahead = match better {
            Better::Less => one.median < other.median,
            Better::More => one.median > other.median,
        };
        ahead && one.ranks_against(other)
    };
    let place = |own: &Spread| 1 + figures.iter().flatten().filter(|it| beats(it, own)).count();
    figures.iter().map(|own| own.map(place)).collect()
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
    fn those_within_the_noise_share_a_place() {
        let figures = [
            Some(spread(&[10.0, 11.0])),
            None,
            Some(spread(&[10.5, 10.9])),
            Some(spread(&[20.0, 21.0])),
        ];
        let figures: Vec<_> = figures.iter().map(Option::as_ref).collect();
        assert_eq!(ranks(&figures, Better::Less), [Some(1), None, Some(1), Some(3)]);
        assert_eq!(ranks(&figures, Better::More), [Some(2), None, Some(2), Some(1)]);
    }
}
