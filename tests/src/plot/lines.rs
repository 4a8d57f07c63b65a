//! Lines over a number that was chosen: flows, services.

use std::{iter, ops::Range};

use anyhow::Result;
use plotters::{
    coord::ranged1d::{Ranged as _, ValueFormatter as _},
    prelude::{ChartBuilder, Circle, LineSeries, RGBColor},
    series::DashedLineSeries,
    style::{Color as _, text_anchor::HPos},
};

use super::{
    Axis, Plot,
    axis::Ruler,
    canvas::{self, Area, DASH, Entry, GRID, INK, Mark, TEXT, measured, picture, text, width},
};

/// How a number grows with another.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines {
    /// Above the picture.
    pub title: String,
    /// What was chosen. Its ticks are at the values themselves.
    pub x: Axis,
    /// What was measured.
    pub y: Axis,
    /// In the order of the legend.
    pub series: Vec<Series>,
}

/// A line of [`Lines`].
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Its points.
    pub line: Line,
}

/// What a line shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// What was measured: a mark at each point (x, y).
    Measured(Vec<(f64, f64)>),
    /// What it should be at each point, dashed.
    Target(Vec<(f64, f64)>),
    /// What it should be everywhere, dashed.
    Level(f64),
}

/// Pixels of the data.
const SIZE: (i32, i32) = (640, 380);
/// Pixels the lower axis takes, with its numbers and label.
const BELOW: i32 = 52;
/// Pixels of a mark, from its middle.
const MARK: i32 = 4;

impl Plot for Lines {
    fn svg(&self) -> Result<String> {
        let points = || self.series.iter().flat_map(|series| series.line.points());
        let levels = self.series.iter().filter_map(|series| match series.line {
            Line::Level(level) => Some(level),
            _ => None,
        });
        let xs: Vec<_> = points().map(|(x, _)| *x).collect();
        let rulers = (
            Ruler::at(self.x.scale, xs)?,
            Ruler::around(self.y.scale, points().map(|(_, y)| *y).chain(levels))?,
        );
        let labels = rulers.1.ticks.iter().map(Ruler::format);
        let left = labels.map(|label| width(&label, TEXT)).max().unwrap_or(0) + 2 * TEXT + 12;
        let legend: Vec<_> = iter::zip(&self.series, self.colours())
            .map(|(series, colour)| Entry {
                name: series.name.clone(),
                mark: match series.line {
                    Line::Measured(_) => Mark::Line(colour),
                    Line::Target(_) | Line::Level(_) => Mark::Dashes(colour),
                },
            })
            .collect();
        let size = (left + SIZE.0, SIZE.1 + BELOW);
        picture(&self.title, size, &legend, |area| {
            self.draw(area, &rulers, left)
        })
    }
}

impl Lines {
    /// Each measured line has a colour of its own. So have targets, unless there is only one.
    fn colours(&self) -> Vec<RGBColor> {
        let measured = |series: &&Series| matches!(series.line, Line::Measured(_));
        let alone = self.series.iter().filter(measured).count() + 1 == self.series.len();
        let mut colours = (0..).map(canvas::colour);
        let colour = |series: &Series| match series.line {
            Line::Target(_) | Line::Level(_) if alone => INK,
            _ => colours.next().unwrap_or(INK),
        };
        self.series.iter().map(colour).collect()
    }

    fn draw(&self, area: &Area<'_>, (across, up): &(Ruler, Ruler), left: i32) -> Result<()> {
        let mut chart = ChartBuilder::on(area)
            .x_label_area_size(BELOW)
            .y_label_area_size(left)
            .margin_top(TEXT / 2)
            .build_cartesian_2d(across.clone(), up.clone())?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .axis_style(INK)
            .x_label_style(text(TEXT, &INK, HPos::Center))
            .x_desc(self.x.label.as_str())
            .y_label_style(text(TEXT, &INK, HPos::Right))
            .y_desc(self.y.label.as_str())
            .axis_desc_style(text(TEXT, &INK, HPos::Center))
            .draw()?;
        for (series, colour) in iter::zip(&self.series, self.colours()) {
            let points: Vec<_> = match &series.line {
                Line::Level(level) => {
                    let Range { start, end } = across.range();
                    vec![(start, *level), (end, *level)]
                }
                Line::Measured(points) | Line::Target(points) => points.clone(),
            };
            if let Line::Measured(_) = series.line {
                chart.draw_series(LineSeries::new(points.clone(), measured(colour)))?;
                let mark = |point| Circle::new(point, MARK, colour.filled());
                chart.draw_series(points.into_iter().map(mark))?;
            } else {
                let stroke = measured(colour);
                chart.draw_series(DashedLineSeries::new(points, DASH.0, DASH.1, stroke))?;
            }
        }
        Ok(())
    }
}

impl Line {
    fn points(&self) -> &[(f64, f64)] {
        match self {
            Self::Measured(points) | Self::Target(points) => points,
            Self::Level(_) => &[],
        }
    }
}
