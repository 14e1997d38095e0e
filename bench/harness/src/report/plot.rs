//! Plots, as SVG. Colours are names that a style sheet gives a meaning to, for light and for dark
//! pages; [`standalone`] adds one to a plot that is to be a file of its own.

use std::error::Error;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::stats::Spread;

/// The style sheet's names and their values: on light pages, and on dark ones. The last ones are
/// for candidates: the first of them is our own.
pub const COLOURS: &[(&str, &str, &str)] = &[
    ("text", "#1b1f24", "#e6e9ed"),
    ("quiet", "#5f6873", "#9aa4b0"),
    ("grid", "#dfe3e8", "#343a42"),
    ("s0", "#d1341f", "#ff6b52"),
    ("s1", "#1f6fb2", "#5eb0ef"),
    ("s2", "#1a8754", "#4cc38a"),
    ("s3", "#8e4ec6", "#bf7af0"),
    ("s4", "#b8860b", "#e2b93b"),
    ("s5", "#0d8fa3", "#3fc8dc"),
    ("s6", "#b3478c", "#ef77bd"),
    ("s7", "#6b5b3e", "#c2ab7d"),
    ("s8", "#5b7a12", "#a3c94a"),
    ("s9", "#5562c4", "#98a3ff"),
];

/// What the series are of [`COLOURS`].
const SERIES: usize = 3;

const TEXT: RGBColor = named(0);
const QUIET: RGBColor = named(1);
const GRID: RGBColor = named(2);

/// The height of a line of text, in pixels.
const LINE: i32 = 15;

/// A colour that stands for a name until [`with_names`].
const fn named(index: u8) -> RGBColor {
    RGBColor(10, 11, index)
}

fn series(index: usize) -> RGBColor {
    // Our own colour is nobody else's, however many there are.
    let others = COLOURS.len() - SERIES - 1;
    let index = if index == 0 { 0 } else { 1 + (index - 1) % others };
    named(u8::try_from(SERIES + index).expect("there are few colours"))
}

fn with_names(mut svg: String) -> String {
    for (index, (name, ..)) in COLOURS.iter().enumerate() {
        svg = svg.replace(&format!("#0A0B{index:02X}"), &format!("var(--{name})"));
    }
    svg
}

/// The style sheet that says what the colours are.
#[must_use]
pub fn style() -> String {
    let list = |values: fn(&(&str, &str, &str)) -> String| -> String {
        COLOURS.iter().map(values).collect()
    };
    let light = list(|(name, light, _)| format!("--{name}:{light};"));
    let dark = list(|(name, _, dark)| format!("--{name}:{dark};"));
    format!(
        ":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\
         svg text{{font-family:system-ui,sans-serif}}"
    )
}

/// A plot as a file of its own: with a heading, as it has no page around it, and on a ground that
/// is as light or dark as the reader likes it.
#[must_use]
pub fn standalone(heading: &str, svg: &str) -> String {
    const TOP: u32 = 28;
    let size = |name: &str| -> Option<u32> {
        let (_, after) = svg.split_once(&format!(" {name}=\""))?;
        after.split_once('"')?.0.parse().ok()
    };
    let letters = u32::try_from(heading.chars().count()).unwrap_or(0);
    // Wide enough for the heading too.
    let width = size("width").unwrap_or(0).max(letters * 8);
    let height = size("height").unwrap_or(0) + TOP;
    let ground = "svg{background:#fff}@media(prefers-color-scheme:dark){svg{background:#14171b}}";
    let heading = escaped(heading);
    let inside = svg.replacen("<svg ", &format!("<svg y=\"{TOP}\" "), 1);
    let style = style();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\"><style>{style}{ground}</style>\
         <text y=\"18\" font-size=\"13\" font-weight=\"600\" fill=\"var(--text)\">{heading}</text>\
         {inside}</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar<'a> {
    /// Whose it is.
    pub name: &'a str,
    /// Its colour's number.
    pub colour: usize,
    /// Its length, and how far it spreads.
    pub spread: &'a Spread,
    /// Its length in words.
    pub label: String,
}

/// Bars from left to right, with a line from the smallest to the largest value.
#[must_use]
pub fn bars(title: &str, bars: &[Bar<'_>]) -> String {
    const WIDTH: i32 = 370;
    const ROW: i32 = 24;
    const TOP: i32 = 30;
    let letters = |text: &str| i32::try_from(text.chars().count()).unwrap_or(0);
    let left = bars.iter().map(|it| letters(it.name)).max().unwrap_or(0) * 7 + 14;
    let right = bars.iter().map(|it| letters(&it.label)).max().unwrap_or(0) * 7 + 16;
    let room = f64::from((WIDTH - left - right).max(60));
    let longest = bars.iter().map(|it| it.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| left + (value.max(0.0) / longest * room).round() as i32;
    let height = TOP + ROW * i32::try_from(bars.len()).unwrap_or(0) + 6;
    draw(title, WIDTH, height, |root| {
        root.draw(&Text::new(title.to_owned(), (0, 4), text(14, TEXT, HPos::Left, VPos::Top)))?;
        for (index, bar) in (0..).zip(bars) {
            let top = TOP + ROW * index;
            let middle = top + ROW / 2;
            let colour = series(bar.colour);
            root.draw(&Text::new(
                bar.name.to_owned(),
                (left - 8, middle),
                text(13, TEXT, HPos::Right, VPos::Center),
            ))?;
            let box_ = [(left, top + 4), (at(bar.spread.median).max(left + 1), top + ROW - 4)];
            root.draw(&Rectangle::new(box_, colour.mix(0.75).filled()))?;
            let (min, max) = (at(bar.spread.min), at(bar.spread.max));
            root.draw(&PathElement::new(vec![(min, middle), (max, middle)], TEXT))?;
            for end in [min, max] {
                root.draw(&PathElement::new(vec![(end, middle - 4), (end, middle + 4)], TEXT))?;
            }
            let label = text(13, QUIET, HPos::Left, VPos::Center);
            let end = max.max(at(bar.spread.median)) + 6;
            root.draw(&Text::new(bar.label.clone(), (end, middle), label))?;
        }
        Ok(())
    })
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By their magnitude.
    Log,
    /// Parts of a whole, the more apart the closer they are to all: 0.9, 0.99, 0.999.
    Nines,
}

/// What an axis says.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it is.
    pub title: String,
    /// How values lie on it.
    pub scale: Scale,
    /// Where it has ticks; chosen by itself when there are none.
    pub ticks: Vec<f64>,
}

/// One line: points with x, and y with its spread.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Whose it is.
    pub name: &'a str,
    /// Its colour's number.
    pub colour: usize,
    /// Left to right: x, the smallest y, y, and the largest.
    pub points: Vec<(f64, [f64; 3])>,
    /// Whether points are marked.
    pub marks: bool,
}

/// Lines, each with its name at its right end.
#[must_use]
pub fn lines(title: &str, x: &Axis, y: &Axis, lines: &[Line<'_>]) -> String {
    const SIZE: (i32, i32) = (500, 320);
    let xs: Vec<f64> = lines.iter().flat_map(|it| &it.points).map(|(x, _)| *x).collect();
    let ys: Vec<f64> = lines.iter().flat_map(|it| &it.points).flat_map(|(_, y)| *y).collect();
    let (Some(x_range), Some(y_range)) = (x.range(&xs), y.range(&ys)) else {
        return String::new();
    };
    draw(title, SIZE.0, SIZE.1, |root| {
        root.draw(&Text::new(title.to_owned(), (0, 4), text(14, TEXT, HPos::Left, VPos::Top)))?;
        let mut chart = ChartBuilder::on(root)
            .margin_top(32)
            .margin_right(86)
            .margin_bottom(4)
            .x_label_area_size(40)
            .y_label_area_size(62)
            .build_cartesian_2d(
                Places { range: x_range, keys: x.keys(x_range, &xs) },
                Places { range: y_range, keys: y.keys(y_range, &ys) },
            )?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(QUIET)
            .label_style(("sans-serif", 12).into_font().color(&QUIET))
            .axis_desc_style(("sans-serif", 12).into_font().color(&TEXT))
            .x_label_formatter(&|at| x.show(*at))
            .y_label_formatter(&|at| y.show(*at))
            .x_desc(x.title.clone())
            .y_desc(y.title.clone())
            .draw()?;
        let mut ends = Vec::new();
        for line in lines {
            let colour = series(line.colour);
            let at = |(along, up): &(f64, [f64; 3])| (x.place(*along), y.place(up[1]));
            let width = if line.colour == 0 { 3 } else { 2 };
            let style = colour.stroke_width(width);
            chart.draw_series(LineSeries::new(line.points.iter().map(at), style))?;
            if line.marks {
                let marks = line.points.iter().map(|it| Circle::new(at(it), 3, colour.filled()));
                chart.draw_series(marks)?;
                let spreads = line.points.iter().map(|(along, [min, _, max])| {
                    let along = x.place(*along);
                    PathElement::new(vec![(along, y.place(*min)), (along, y.place(*max))], colour)
                });
                chart.draw_series(spreads)?;
            }
            if let Some(last) = line.points.last() {
                let (along, up) = chart.backend_coord(&at(last));
                ends.push((up, along, line));
            }
        }
        // Names that would lie upon each other move down, and all of them up if there is no room.
        ends.sort_by_key(|(up, ..)| *up);
        let mut next = 34;
        let mut places: Vec<i32> = ends
            .iter()
            .map(|(up, ..)| {
                let place = next.max(*up);
                next = place + LINE;
                place
            })
            .collect();
        let mut below = SIZE.1 - 52;
        for place in places.iter_mut().rev() {
            *place = (*place).min(below);
            below = *place - LINE;
        }
        for ((_, along, line), place) in ends.iter().zip(places) {
            let style = text(12, series(line.colour), HPos::Left, VPos::Center);
            root.draw(&Text::new(line.name.to_owned(), (along + 8, place), style))?;
        }
        Ok(())
    })
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - value).max(f64::MIN_POSITIVE).log10(),
        }
    }

    /// From where to where it goes.
    fn range(&self, values: &[f64]) -> Option<(f64, f64)> {
        let all = values.iter().chain(&self.ticks).filter(|it| it.is_finite());
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for place in all.map(|it| self.place(*it)) {
            least = least.min(place);
            most = most.max(place);
        }
        match self.scale {
            _ if least > most => None,
            Scale::Linear => Some((0.0, if most > 0.0 { most * 1.05 } else { 1.0 })),
            Scale::Nines => Some((0.0, most)),
            Scale::Log if least == most => Some((least - 0.5, most + 0.5)),
            Scale::Log => Some((least - 0.05, most + 0.05)),
        }
    }

    /// Where its ticks lie.
    fn keys(&self, (from, to): (f64, f64), values: &[f64]) -> Vec<f64> {
        if !self.ticks.is_empty() {
            return self.ticks.iter().map(|it| self.place(*it)).collect();
        }
        match self.scale {
            Scale::Linear => {
                let step = step(to - from);
                (0..).map(|it| f64::from(it) * step).take_while(|it| *it <= to).collect()
            }
            Scale::Nines => (0..).map(f64::from).take_while(|it| *it <= to + 1e-9).collect(),
            Scale::Log => {
                let decades = (from.floor() as i32)..=(to.ceil() as i32);
                let parts: &[f64] = if to - from > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let all = decades
                    .flat_map(|decade| parts.iter().map(move |it| f64::from(decade) + it.log10()));
                let inside: Vec<_> = all.filter(|it| (from..=to).contains(it)).collect();
                if inside.len() > 1 {
                    inside
                } else {
                    values.iter().map(|it| self.place(*it)).collect()
                }
            }
        }
    }

    /// A place on it, in words.
    fn show(&self, place: f64) -> String {
        match self.scale {
            Scale::Linear => short(place),
            Scale::Log => short(10_f64.powf(place)),
            Scale::Nines => {
                let percent = 100.0 - 100.0 * 10_f64.powf(-place);
                let digits = (place.round() as usize).saturating_sub(2);
                format!("{percent:.digits$} %")
            }
        }
    }
}

/// An axis as plotters wants it.
struct Places {
    range: (f64, f64),
    keys: Vec<f64>,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (value - self.range.0) / (self.range.1 - self.range.0);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.keys.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.0..self.range.1
    }
}

/// The distance of ticks on an axis of that length: some 5 of them, at round values.
fn step(length: f64) -> f64 {
    let raw = length / 5.0;
    let decade = 10_f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|it| it * decade).find(|it| *it >= raw).unwrap_or(raw)
}

/// A number with a thousand as k and a million as M.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        it if it >= 1e6 => (value / 1e6, "M"),
        it if it >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if value.fract().abs() < 0.005 { 0 } else { 1 };
    format!("{value:.digits$}{unit}")
}

fn text(size: i32, colour: RGBColor, along: HPos, up: VPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(along, up))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(
    title: &str,
    width: i32,
    height: i32,
    paint: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn Error>>,
) -> String {
    let mut svg = String::new();
    let size = (u32::try_from(width).unwrap_or(1), u32::try_from(height).unwrap_or(1));
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        // Text can only fail to be written to a file.
        paint(&root).and_then(|()| Ok(root.present()?)).expect("a string takes everything");
    }
    // For those who do not see it.
    let title = escaped(title);
    with_names(svg).replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{title}\" "), 1)
}
