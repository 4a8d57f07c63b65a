//! Bars from left to right, so that long names stay readable; each with its value at its end.

use std::iter;

use anyhow::{Context as _, Result, ensure};
use plotters::{
    prelude::{ChartBuilder, RGBColor, Rectangle, Text},
    style::{Color as _, text_anchor::HPos},
};

use super::{
    Axis, Plot,
    axis::{Ruler, Scale, Slots},
    canvas::{self, Area, Entry, GAP, GRID, INK, MISSED, Mark, TEXT, picture, text, width},
};
use crate::figure::{Target, number};

/// One number each of several things.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// Above the picture.
    pub title: String,
    /// What the bars measure.
    pub axis: Axis,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// A bar of [`Bars`].
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Left of it.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// What it should be: a dashed line across the bar.
    pub target: Option<Target>,
}

/// What each of several numbers is made of. Its axis is linear: the parts add up.
#[derive(Clone, Debug, PartialEq)]
pub struct StackedBars {
    /// Above the picture.
    pub title: String,
    /// What the bars measure, and the unit.
    pub axis: String,
    /// Names of the parts, from left to right.
    pub parts: Vec<String>,
    /// From top to bottom.
    pub bars: Vec<Stack>,
}

/// A bar of [`StackedBars`].
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Left of it.
    pub name: String,
    /// The length of each part, in the order of [`StackedBars::parts`]; none is below zero.
    pub values: Vec<f64>,
    /// What their sum should be: a dashed line across the bar.
    pub target: Option<Target>,
}

/// Pixels from one bar to the next.
const SLOT: i32 = 30;
/// Pixels between a slot's edge and its bar.
const EDGE: u32 = 5;
/// Pixels the axis takes, with its numbers and label.
const AXIS: i32 = 52;
/// Pixels of the text in a part of a bar.
const SMALL: i32 = 12;
/// Pixels the longest bar may have.
const LENGTH: i32 = 560;

impl Plot for Bars {
    fn svg(&self) -> Result<String> {
        let colour = |bar: &Bar| match bar.target {
            Some(target) if !target.is_met(bar.value) => MISSED,
            _ => canvas::colour(0),
        };
        let rows: Vec<_> = self
            .bars
            .iter()
            .map(|bar| Row {
                name: &bar.name,
                parts: vec![(bar.value, colour(bar))],
                target: bar.target,
            })
            .collect();
        let entry = |name: &str, mark| Entry {
            name: name.to_owned(),
            mark,
        };
        let mut legend = Vec::new();
        if rows.iter().any(|row| row.target.is_some()) {
            legend.push(entry("measured", Mark::Bar(canvas::colour(0))));
            if rows.iter().any(Row::misses) {
                legend.push(entry("misses its target", Mark::Bar(MISSED)));
            }
            legend.push(entry("target", Mark::Dashes(INK)));
        }
        svg(&self.title, &self.axis, &rows, &legend)
    }
}

impl Plot for StackedBars {
    fn svg(&self) -> Result<String> {
        let mut rows = Vec::new();
        for bar in &self.bars {
            ensure!(
                bar.values.len() == self.parts.len(),
                "{} has {} parts, not {}",
                bar.name,
                bar.values.len(),
                self.parts.len()
            );
            if let Some(value) = bar.values.iter().find(|value| **value < 0.0) {
                // The parts after it would cover it.
                anyhow::bail!("a part of {} is {value}", bar.name);
            }
            let colours = (0..).map(canvas::colour);
            rows.push(Row {
                name: &bar.name,
                parts: bar.values.iter().copied().zip(colours).collect(),
                target: bar.target,
            });
        }
        let mut legend: Vec<_> = iter::zip(&self.parts, 0..)
            .map(|(name, index)| Entry {
                name: name.clone(),
                mark: Mark::Bar(canvas::colour(index)),
            })
            .collect();
        if rows.iter().any(|row| row.target.is_some()) {
            legend.push(Entry {
                name: "target".to_owned(),
                mark: Mark::Dashes(INK),
            });
        }
        let axis = Axis {
            label: self.axis.clone(),
            scale: Scale::Linear,
        };
        svg(&self.title, &axis, &rows, &legend)
    }
}

/// A bar of either kind.
struct Row<'a> {
    name: &'a str,
    /// Lengths and colours, from left to right.
    parts: Vec<(f64, RGBColor)>,
    target: Option<Target>,
}

impl Row<'_> {
    fn value(&self) -> f64 {
        self.parts.iter().map(|(value, _)| value).sum()
    }

    fn misses(&self) -> bool {
        self.target
            .is_some_and(|target| !target.is_met(self.value()))
    }

    /// What is written at the end of the bar.
    fn label(&self) -> String {
        let value = number(self.value());
        match self.target {
            Some(target) => format!("{value} ({target})"),
            None => value,
        }
    }
}

fn svg(title: &str, axis: &Axis, rows: &[Row<'_>], legend: &[Entry]) -> Result<String> {
    let bounds = rows.iter().filter_map(|row| row.target.map(Target::bound));
    let values = rows.iter().map(Row::value).chain(bounds);
    let ruler = Ruler::around(axis.scale, values)?;
    let longest = |texts: &mut dyn Iterator<Item = i32>| texts.max().unwrap_or(0) + GAP;
    let names = longest(&mut rows.iter().map(|row| width(row.name, TEXT)));
    let labels = longest(&mut rows.iter().map(|row| width(&row.label(), TEXT)));
    let count = i32::try_from(rows.len()).context("too many bars")?;
    let size = (names + LENGTH + labels, count * SLOT + AXIS);
    picture(title, size, legend, |area| {
        draw(area, &axis.label, rows, &ruler, (names, labels))
    })
}

/// Draws names of `margins.0` pixels, the bars, and room for `margins.1` pixels behind the longest.
fn draw(
    area: &Area<'_>,
    label: &str,
    rows: &[Row<'_>],
    ruler: &Ruler,
    margins: (i32, i32),
) -> Result<()> {
    let names = rows.iter().map(|row| row.name.to_owned()).collect();
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(AXIS)
        .y_label_area_size(margins.0)
        .margin_right(margins.1)
        .build_cartesian_2d(ruler.clone(), Slots::of(names))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_label_style(text(TEXT, &INK, HPos::Center))
        .x_desc(label)
        .y_label_style(text(TEXT, &INK, HPos::Right))
        .axis_desc_style(text(TEXT, &INK, HPos::Center))
        .draw()?;
    for (row, slot) in iter::zip(rows, 0_u32..) {
        let (top, bottom) = (f64::from(slot), f64::from(slot) + 1.0);
        let middle = top + 0.5;
        let mut start = ruler.base();
        let mut sum = 0.0;
        for (value, colour) in &row.parts {
            sum += value;
            let mut bar = Rectangle::new([(start, top), (sum, bottom)], colour.filled());
            bar.set_margin(EDGE, EDGE, 0, 0);
            chart.draw_series(iter::once(bar))?;
            let label = number(*value);
            let [left, right] = [start, sum].map(|end| chart.backend_coord(&(end, middle)).0);
            if row.parts.len() > 1 && width(&label, SMALL) + GAP / 2 <= right - left {
                let at = (start.midpoint(sum), middle);
                let style = text(SMALL, canvas::ink_on(*colour), HPos::Center);
                chart.draw_series(iter::once(Text::new(label, at, style)))?;
            }
            start = sum;
        }
        let label = row.label();
        let (mut x, y) = chart.backend_coord(&(sum.max(ruler.base()), middle));
        if let Some(target) = row.target {
            let bound = target.bound();
            let line = canvas::dashes([(bound, top), (bound, bottom)], INK);
            chart.draw_series(iter::once(line))?;
            let line = chart.backend_coord(&(bound, middle)).0;
            x = beside(x, line, width(&label, TEXT));
        }
        // In pixels of the whole picture, as `backend_coord` gives them.
        let origin = area.get_base_pixel();
        let at = (x + GAP / 2 - origin.0, y - origin.1);
        area.draw(&Text::new(label, at, text(TEXT, &INK, HPos::Left)))?;
    }
    Ok(())
}

/// Where a label of `width` pixels begins: at the bar's end, or behind the line that would cross it.
fn beside(end: i32, line: i32, width: i32) -> i32 {
    if (end..end + width + GAP).contains(&line) {
        line
    } else {
        end
    }
}
