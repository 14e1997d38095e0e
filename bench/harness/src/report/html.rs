//! The page: everything that a report has, in one file that needs no other.

use std::collections::BTreeMap;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot::{self, Axis, Bar, Line, Scale};
use super::{Outcome, Report, Row, text};
use crate::candidate::WHARF;
use crate::metric::Metric;

/// Metrics that have bars of their own, besides the one that candidates are compared by.
const BARS: [&str; 2] = ["rate", "cpu_ns"];

const STYLE: &str = "
:root{color-scheme:light dark;--ground:#fff;--card:#f6f7f9}
@media(prefers-color-scheme:dark){:root{--ground:#14171b;--card:#1c2127}}
body{background:var(--ground);color:var(--text);font:16px/1.5 system-ui,sans-serif;margin:0 auto;
  max-width:1340px;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .25rem}
h2{border-top:1px solid var(--grid);font-size:1.35rem;margin:2.5rem 0 .5rem;padding-top:1.5rem}
h3{font-size:1.05rem;margin:1.75rem 0 .5rem}
p{margin:.4rem 0;max-width:75ch}
a{color:inherit}
code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:var(--card);border-radius:6px;overflow-x:auto;padding:.6rem .8rem;
  white-space:pre-wrap}
.quiet{color:var(--quiet)}
.warn{border-left:4px solid var(--s4);padding-left:.7rem}
.plots{display:flex;flex-wrap:wrap;gap:1rem 2rem;align-items:flex-start}
.plots svg{height:auto;max-width:100%}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;margin:.5rem 0}
th,td{padding:.2rem .7rem .2rem 0;text-align:right;white-space:nowrap}
th{color:var(--quiet);font-weight:500}
td{border-top:1px solid var(--grid)}
th.left,td.left{text-align:left}
tr.ours td{font-weight:600}
td.note{color:var(--quiet);text-align:left;white-space:normal}
summary{cursor:pointer;color:var(--quiet)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:1rem 0}
";

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let colours = Colours::of(report);
    let mut scenarios: Vec<(&str, Vec<&Outcome>)> = Vec::new();
    for outcome in &report.outcomes {
        match scenarios.iter_mut().find(|(name, _)| *name == outcome.scenario) {
            Some((_, outcomes)) => outcomes.push(outcome),
            None => scenarios.push((&outcome.scenario, vec![outcome])),
        }
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "wharf bench" }
                style { (PreEscaped(plot::style())) (PreEscaped(STYLE)) }
            }
            body {
                h1 { "wharf and its rivals, side by side" }
                (head(report))
                nav { @for (name, _) in &scenarios { a href=(format!("#{name}")) { (name) } } }
                @for (name, outcomes) in &scenarios { (section(name, outcomes, &colours, report)) }
                (method(report))
            }
        }
    };
    page.into_string()
}

/// Each plot, by a name for its file.
#[must_use]
pub fn plots(report: &Report) -> Vec<(String, String)> {
    let colours = Colours::of(report);
    let mut plots = Vec::new();
    let mut seen = BTreeMap::new();
    for outcome in &report.outcomes {
        let number: &mut usize = seen.entry(&outcome.scenario).or_default();
        *number += 1;
        for (what, svg) in of_outcome(outcome, &colours) {
            let svg = plot::standalone(&outcome.title, &svg);
            plots.push((format!("{}-{number}-{what}", outcome.scenario), svg));
        }
    }
    for scenario in seen.keys() {
        let outcomes: Vec<_> =
            report.outcomes.iter().filter(|it| it.scenario == **scenario).collect();
        for (what, svg) in against(&outcomes, &colours) {
            plots.push((format!("{scenario}-{what}"), plot::standalone(scenario, &svg)));
        }
    }
    plots
}

/// The same colour for a candidate everywhere on the page; the first is our own.
struct Colours<'a>(Vec<&'a str>);

impl<'a> Colours<'a> {
    fn of(report: &'a Report) -> Self {
        let mut names: Vec<&str> =
            report.outcomes.iter().flat_map(|it| &it.rows).map(|it| &*it.name).collect();
        names.sort_by_key(|it| (*it != WHARF, *it));
        names.dedup();
        Self(names)
    }

    fn number(&self, name: &str) -> usize {
        self.0.iter().position(|it| *it == name).unwrap_or(0)
    }
}

fn head(report: &Report) -> Markup {
    let machine = &report.machine;
    let commit = machine.commit.as_deref().unwrap_or("unknown");
    html! {
        p.quiet {
            (machine.cpu.as_deref().unwrap_or("a processor of unknown kind"))
            ", " (machine.cpus) " CPUs · Linux " (machine.kernel.as_deref().unwrap_or("unknown"))
            " · " (machine.rustc) " · wharf at " (commit) " · " (date(machine.unix_time)) " UTC"
        }
        @if report.interrupted {
            p.warn { "This run was ended before everything was measured." }
        }
        p {
            "Medians of " (report.method.rounds) " windows of "
            @if report.method.seconds_max.is_some() { "at most " }
            (report.method.window_ms)
            " ms per candidate, taken in turns; thin lines go from the smallest to the largest. "
            "Compare within a plot: the same machine may be several times slower tomorrow."
        }
    }
}

fn section(name: &str, outcomes: &[&Outcome], colours: &Colours<'_>, report: &Report) -> Markup {
    let against = against(outcomes, colours);
    html! {
        h2 id=(name) { (name) }
        @if let Some(scenario) = report.scenarios.get(name) {
            p { (scenario.about) "." }
            details {
                summary { "What exactly is measured" }
                @for paragraph in scenario.definition.split("\n\n") { p { (code(paragraph)) } }
                @if let Some(outcome) = outcomes.first() {
                    p { "Counted:" }
                    ul {
                        @for metric in &outcome.metrics {
                            li { b { (metric.title) } ": " (metric.about) }
                        }
                    }
                }
            }
        }
        @if !against.is_empty() {
            div.plots { @for (_, svg) in &against { (PreEscaped(svg)) } }
        }
        @for outcome in outcomes {
            h3 { (outcome.title) }
            @if let Some(reason) = &outcome.unranked {
                p.warn { "Too noisy to rank: " (reason) "." }
            }
            div.plots {
                @for (_, svg) in of_outcome(outcome, colours) { (PreEscaped(svg)) }
            }
            details open[outcomes.len() == 1] {
                summary { "All figures, and the command that repeats them" }
                (table(outcome))
                pre { (outcome.command) (options(report)) }
            }
        }
    }
}

/// Text in which `this` is code.
fn code(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// The bars, and the curve of latencies, of one table.
fn of_outcome(outcome: &Outcome, colours: &Colours<'_>) -> Vec<(String, String)> {
    let headline = outcome.headline();
    let others = BARS.iter().filter(|key| **key != headline.key);
    let others = others.filter_map(|key| outcome.metrics.iter().find(|it| it.key == *key));
    let mut plots: Vec<_> = std::iter::once(headline)
        .chain(others)
        .filter_map(|metric| {
            let svg = bars(outcome, metric, colours)?;
            Some((metric.key.clone().into_owned(), svg))
        })
        .collect();
    plots.extend(curve(outcome, colours).map(|svg| ("latency".to_owned(), svg)));
    plots
}

fn bars(outcome: &Outcome, metric: &Metric, colours: &Colours<'_>) -> Option<String> {
    let bars: Vec<_> = text::sorted(outcome, metric)
        .into_iter()
        .filter_map(|row| {
            let spread = row.figures.get(&*metric.key)?;
            let colour = colours.number(&row.name);
            Some(Bar { name: &row.name, colour, spread, label: metric.show(spread.median) })
        })
        .collect();
    let title = format!("{} {}", metric.title, text::bar_title(metric));
    (!bars.is_empty()).then(|| plot::bars(&title, &bars))
}

fn curve(outcome: &Outcome, colours: &Colours<'_>) -> Option<String> {
    let lines: Vec<_> = outcome
        .rows
        .iter()
        .filter(|row| !row.latencies.is_empty())
        .map(|row| Line {
            name: &row.name,
            colour: colours.number(&row.name),
            // The last one is the longest latency ever: it would lie infinitely far to the right.
            points: row
                .latencies
                .iter()
                .filter(|(part, _)| *part < 1.0)
                .map(|(part, latency)| (*part, [*latency; 3]))
                .collect(),
            marks: false,
        })
        .collect();
    let axis = |title: &str, scale| Axis { title: title.to_owned(), scale, ticks: Vec::new() };
    let x = axis("of all are not longer", Scale::Nines);
    let y = axis("us", Scale::Log);
    (!lines.is_empty()).then(|| plot::lines("Latency", &x, &y, &lines))
}

/// A plot for each pair of a parameter and a metric that the scenario names, if there are tables
/// that differ in the parameter only.
fn against(outcomes: &[&Outcome], colours: &Colours<'_>) -> Vec<(String, String)> {
    let Some(base) = outcomes.first() else { return Vec::new() };
    let plot = |(parameter, key): &(String, String)| {
        let metric = base.metrics.iter().find(|it| it.key == *key)?;
        let others = |it: &Outcome| {
            let mut point = it.point.clone();
            point.remove(parameter);
            point
        };
        let mut along: Vec<_> = outcomes
            .iter()
            .filter(|it| others(it) == others(base))
            .filter_map(|it| Some((*it.point.get(parameter)? as f64, *it)))
            .collect();
        along.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let (least, most) = (along.first()?.0, along.last()?.0);
        let names: Vec<_> = base.rows.iter().map(|it| &*it.name).collect();
        let points = |name: &str| -> Vec<_> {
            let row = |it: &'_ Outcome| it.rows.iter().position(|row| row.name == name);
            along
                .iter()
                .filter_map(|(value, it)| {
                    let spread = it.rows[row(it)?].figures.get(&**key)?;
                    Some((*value, [spread.min, spread.median, spread.max]))
                })
                .collect()
        };
        let lines: Vec<_> = names
            .into_iter()
            .map(|name| Line {
                name,
                colour: colours.number(name),
                points: points(name),
                marks: true,
            })
            .filter(|it| it.points.len() > 1)
            .collect();
        if lines.is_empty() {
            return None;
        }
        let scale = if most > least * 20.0 { Scale::Log } else { Scale::Linear };
        let ticks = along.iter().map(|(value, _)| *value).collect();
        let x = Axis { title: parameter.clone(), scale, ticks };
        let y = Axis { title: metric.title.to_string(), scale: Scale::Linear, ticks: Vec::new() };
        let fixed: Vec<_> =
            others(base).iter().map(|(name, value)| format!("{name} {value}")).collect();
        let title = format!("{} by {parameter} ({})", metric.title, fixed.join(", "));
        Some((format!("{key}-by-{parameter}"), plot::lines(&title, &x, &y, &lines)))
    };
    base.plots.iter().filter_map(plot).collect()
}

fn table(outcome: &Outcome) -> Markup {
    let metrics: Vec<_> = outcome.metrics.iter().filter(|it| text::counted(outcome, it)).collect();
    let cell = |row: &Row, metric: &Metric| {
        let Some(spread) = row.figures.get(&*metric.key) else { return html! { td {} } };
        let range = format!("{} - {}", metric.show(spread.min), metric.show(spread.max));
        html! { td title=(range) { (metric.show(spread.median)) } }
    };
    html! {
        div.wide {
            table {
                tr {
                    th {}
                    th.left { "server" }
                    @for metric in &metrics { th title=(metric.about) { (metric.title) } }
                }
                @for row in text::sorted(outcome, outcome.headline()) {
                    tr.ours[row.name == WHARF] {
                        td { (text::place(outcome, row)) }
                        td.left { (row.name) }
                        @if row.figures.is_empty() {
                            td.note colspan=(metrics.len()) {
                                (row.failure.as_deref().unwrap_or("not measured"))
                            }
                        } @else {
                            @for metric in &metrics { (cell(row, metric)) }
                        }
                    }
                    @if let (Some(failure), false) = (&row.failure, row.figures.is_empty()) {
                        tr {
                            td {}
                            td.note colspan=(metrics.len() + 1) { "then failed: " (failure) }
                        }
                    }
                }
            }
        }
        p.quiet { (text::noise(outcome)) }
    }
}

/// What has to be added to a command so that it measures in the same way.
fn options(report: &Report) -> String {
    let method = &report.method;
    format!(
        " --rounds {} --window {} --warm-up {} --wharf-workers {}",
        method.rounds, method.window_ms, method.warm_up_ms, method.wharf_workers
    )
}

fn method(report: &Report) -> Markup {
    html! {
        h2 id="method" { "Method and versions" }
        p {
            "Server and load generator are processes of their own, on the same CPUs. Each window "
            "has a new server and new connections, and " (report.method.warm_up_ms) " ms of "
            "warm-up that do not count. Candidates take turns (A B C, B C A, ...), so that a busy "
            "moment of the machine falls on all of them. CPU time is the kernel's clock of the "
            "server's process, io_uring's kernel threads included. Where a rate is set, messages "
            "are due at fixed times and latency counts from then. Those that cannot be told apart "
            "share a place (=); when the machine was too noisy, nobody has one (?)."
        }
        table {
            @for (name, version) in &report.versions {
                tr { td.left { (name) } td.left { (version) } }
            }
        }
    }
}

/// Seconds since 1970 as a date and a time.
fn date(unix_time: u64) -> String {
    let time = i64::try_from(unix_time).ok().and_then(|it| Timestamp::from_second(it).ok());
    time.unwrap_or_default().strftime("%F %H:%M").to_string()
}
