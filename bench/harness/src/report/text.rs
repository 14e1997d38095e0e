//! Tables for a terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use super::{Outcome, Row};
use crate::metric::{Better, Metric};
use crate::stats::Spread;

/// The length of the longest bar, in characters.
const BAR: usize = 16;

/// A table, with a bar for each candidate.
#[must_use]
pub fn table(outcome: &Outcome, baseline: &str) -> String {
    let metrics: Vec<_> = outcome.metrics.iter().filter(|it| counted(outcome, it)).collect();
    let headline = outcome.headline();
    let longest = outcome.rows.iter().filter_map(|it| it.figures.get(&*headline.key));
    let longest = longest.map(|it| it.median).fold(0.0, f64::max);
    let row = |name: &str| outcome.rows.iter().find(|it| it.name == name);
    let baseline = row(baseline).or_else(|| row(outcome.baseline.as_deref()?));
    let baseline = baseline.and_then(|it| Some((&it.name, it.figures.get(&*headline.key)?)));

    let mut head = vec![String::new(), "server".to_owned(), bar_title(headline)];
    for (index, metric) in metrics.iter().enumerate() {
        head.push(metric.title.clone().into_owned());
        if index == 0 {
            head.push("min - max".to_owned());
            head.extend(baseline.map(|(name, _)| format!("by {name}")));
        }
    }
    let mut table = Table::new();
    // Lines are not broken: who has a narrow window can scroll, or ask for JSON.
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(&head);
    let mut notes = Vec::new();
    for row in sorted(outcome, headline) {
        if let Some(reason) = &row.failure {
            notes.push(format!("   {}: failed: {reason}", row.name));
        }
        let Some(figure) = row.figures.get(&*headline.key) else { continue };
        let mut cells = vec![place(outcome, row), row.name.clone(), bar(figure.median / longest)];
        for (index, metric) in metrics.iter().enumerate() {
            let spread = row.figures.get(&*metric.key);
            cells.push(spread.map_or_else(String::new, |it| metric.show(it.median)));
            if index == 0 {
                cells.push(format!("{} - {}", metric.show(figure.min), metric.show(figure.max)));
                cells.extend(baseline.map(|(name, base)| compared(row, figure, name, base)));
            }
        }
        table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
            let left = matches!(column, 1 | 2);
            let side = if left { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(side)
        }));
    }
    let mut text = format!("{}\n", outcome.title);
    if table.row_count() > 0 {
        // The presets leave blanks at the ends of lines.
        for line in table.to_string().lines() {
            text += line.trim_end();
            text.push('\n');
        }
    }
    for note in notes {
        text += &note;
        text.push('\n');
    }
    for line in noise(outcome).lines() {
        text += &format!("   {line}\n");
    }
    if let Some(reason) = &outcome.unranked {
        text += &format!("   too noisy to rank: {reason}\n");
    }
    text
}

/// Best first by a metric, and by place if it is the one that places are given by. Those without a
/// figure are last, in the order in which they took part.
pub(super) fn sorted<'a>(outcome: &'a Outcome, metric: &Metric) -> Vec<&'a Row> {
    let placed = metric.key == outcome.headline().key;
    let worth = |row: &Row| match (row.figures.get(&*metric.key), metric.better) {
        (None, _) => f64::INFINITY,
        (Some(it), Better::Less) => it.median,
        (Some(it), Better::More) => -it.median,
    };
    let place = |row: &Row| row.rank.filter(|_| placed).unwrap_or(usize::MAX);
    let mut rows: Vec<_> = outcome.rows.iter().collect();
    rows.sort_by(|one, other| {
        place(one).cmp(&place(other)).then_with(|| worth(one).total_cmp(&worth(other)))
    });
    rows.sort_by_key(|it| !it.figures.contains_key(&*metric.key));
    rows
}

/// Whether anybody has a figure of it.
pub(super) fn counted(outcome: &Outcome, metric: &Metric) -> bool {
    outcome.rows.iter().any(|it| it.figures.contains_key(&*metric.key))
}

pub(super) fn bar_title(metric: &Metric) -> String {
    let better = match metric.better {
        Better::Less => "shorter",
        Better::More => "longer",
    };
    format!("({better} is better)")
}

fn bar(part: f64) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (part.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

pub(super) fn place(outcome: &Outcome, row: &Row) -> String {
    let Some(rank) = row.rank else { return "?".to_owned() };
    let shared = outcome.rows.iter().filter(|it| it.rank == Some(rank)).count() > 1;
    format!("{}{rank}.", if shared { "=" } else { "" })
}

fn compared(row: &Row, figure: &Spread, name: &String, base: &Spread) -> String {
    let ratio = figure.median / base.median;
    if row.name != *name && !figure.ranks_against(base) {
        return format!("~{ratio:.2}");
    }
    format!("{ratio:.2}")
}

/// How quiet the machine was.
pub(super) fn noise(outcome: &Outcome) -> String {
    let work = outcome.calibration.iter().map(|it| it.cpu_ns as f64 / 1e6);
    let stretch = outcome.calibration.iter().map(|it| it.wall_ns as f64 / it.cpu_ns as f64);
    let (Some(work), Some(stretch)) = (Spread::of(work.collect()), Spread::of(stretch.collect()))
    else {
        return String::new();
    };
    let mut text = format!(
        "machine: the same work took {:.1} to {:.1} ms of CPU, and up to {:.2} times that on the \
         clock",
        work.min, work.max, stretch.max
    );
    let kernel = outcome.calibration.iter().map(|it| it.kernel_ns as f64);
    if let Some(kernel) = Spread::of(kernel.collect()) {
        text += &format!("; the kernel alone, a send and a recv: {:.0} ns", kernel.median);
    }
    if let Some(others) = &outcome.others {
        text += &format!("; others used {:.0} % of the CPUs", others.median * 100.0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::CPU_NS;

    /// One who fails in nearly every window is not placed, and takes nobody's place.
    #[test]
    fn few_windows_are_no_place() {
        let row = |name: &str, values: &[f64]| Row {
            name: name.to_owned(),
            failure: None,
            figures: Spread::of(values.to_vec())
                .map(|it| (CPU_NS.key.to_string(), it))
                .into_iter()
                .collect(),
            rank: None,
            latencies: Vec::new(),
        };
        let rows = vec![
            row("failing", &[1.0]),
            row("slow", &[20.0, 21.0, 22.0]),
            row("fast", &[10.0, 11.0, 12.0]),
        ];
        let mut outcome = Outcome {
            scenario: "echo".to_owned(),
            title: "echo".to_owned(),
            point: [].into(),
            command: String::new(),
            metrics: vec![CPU_NS.clone()],
            baseline: None,
            plots: Vec::new(),
            rows,
            calibration: Vec::new(),
            others: None,
            unranked: None,
        };
        outcome.rank();
        let rows = sorted(&outcome, &CPU_NS);
        let places: Vec<_> = rows.iter().map(|it| (&*it.name, place(&outcome, it))).collect();
        let expected = [("fast", "1."), ("slow", "2."), ("failing", "?")];
        assert_eq!(places, expected.map(|(name, place)| (name, place.to_owned())));
        assert_eq!(outcome.unranked, None);
    }

    #[test]
    fn bars_have_eighths() {
        assert_eq!(bar(1.0).chars().count(), BAR);
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(0.5 / 8.0 / BAR as f64 + 1.0 / BAR as f64), "█▏");
        assert_eq!(bar(f64::NAN), "");
    }
}
