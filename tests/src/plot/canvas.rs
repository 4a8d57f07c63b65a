//! The sheet: a white picture with a title, a place for the data and a legend beside it.

use anyhow::Result;
use plotters::{
    coord::Shift,
    element::DashedPathElement,
    prelude::{
        DrawingArea, IntoDrawingArea as _, PathElement, RGBColor, Rectangle, SVGBackend, Text,
        WHITE,
    },
    style::{
        Color as _, IntoTextStyle as _, ShapeStyle, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

/// A part of the picture, in pixels.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colours that those who see no red or no green can tell apart, in the order they are used.
pub(super) const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(110, 110, 110),
    RGBColor(240, 228, 66),
];
/// A value that misses its target.
pub(super) const MISSED: RGBColor = RGBColor(213, 94, 0);
/// Text, and the lines of targets.
pub(super) const INK: RGBColor = RGBColor(30, 30, 30);
/// Lines behind the data.
pub(super) const GRID: RGBColor = RGBColor(221, 221, 221);

/// Pixels of ordinary text.
pub(super) const TEXT: i32 = 14;
const TITLE: i32 = 19;
/// Around the picture and between its parts.
pub(super) const GAP: i32 = 14;
/// From one line of text to the next.
const LINE: i32 = 24;
/// The picture of a legend's entry.
const SAMPLE: i32 = 26;
/// Dash and space between two, of the lines of targets.
pub(super) const DASH: (i32, i32) = (7, 5);
const FAMILY: &str = "sans-serif";

/// An entry of the legend.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) mark: Mark,
}

/// How the legend shows an entry.
pub(super) enum Mark {
    /// The colour of bars.
    Bar(RGBColor),
    /// A line of what was measured.
    Line(RGBColor),
    /// A line of a target.
    Dashes(RGBColor),
}

/// The colour of the `index`th series.
pub(super) fn colour(index: usize) -> RGBColor {
    COLOURS.into_iter().cycle().nth(index).unwrap_or(INK)
}

/// The colour of text that is read on another.
pub(super) fn ink_on(RGBColor(red, green, blue): RGBColor) -> &'static RGBColor {
    // As bright as each looks: BT.601.
    let brightness = u32::from(red) * 299 + u32::from(green) * 587 + u32::from(blue) * 114;
    if brightness > 130_000 { &INK } else { &WHITE }
}

/// The style of text, as the picture's own pixels.
pub(super) fn text(pixels: i32, colour: &RGBColor, across: HPos) -> TextStyle<'_> {
    // The back end divides sizes by this.
    const BACKEND: f64 = 1.24;
    (FAMILY, f64::from(pixels) * BACKEND)
        .into_text_style(&(0, 0))
        .color(colour)
        .pos(Pos::new(across, VPos::Center))
}

/// About how many pixels wide a text is: fonts differ, and none is asked.
pub(super) fn width(text: &str, pixels: i32) -> i32 {
    let characters = i32::try_from(text.chars().count()).unwrap_or(i32::MAX / 100);
    characters * pixels * 3 / 5
}

/// Draws a picture of `inner` pixels for the data, and returns it as SVG.
///
/// # Errors
///
/// `draw` fails.
pub(super) fn picture(
    title: &str,
    inner: (i32, i32),
    legend: &[Entry],
    draw: impl FnOnce(&Area<'_>) -> Result<()>,
) -> Result<String> {
    let names = legend.iter().map(|entry| width(&entry.name, TEXT));
    let beside = names.max().map_or(0, |longest| SAMPLE + 2 * GAP + longest);
    let above = 2 * GAP + TITLE;
    let lines = i32::try_from(legend.len()).unwrap_or(i32::MAX / LINE);
    let size = (
        (GAP + inner.0 + beside + GAP).max(width(title, TITLE) + 2 * GAP),
        above + inner.1.max(lines * LINE) + GAP,
    );
    let mut svg = String::new();
    {
        let sheet =
            SVGBackend::with_string(&mut svg, (size.0.unsigned_abs(), size.1.unsigned_abs()))
                .into_drawing_area();
        sheet.fill(&WHITE)?;
        let style = text(TITLE, &INK, HPos::Left);
        sheet.draw(&Text::new(title, (GAP, GAP + TITLE / 2), style))?;
        let data = sheet.clone().shrink((GAP, above), inner);
        draw(&data)?;
        let mut at = (GAP + inner.0 + GAP, above + LINE / 2);
        for entry in legend {
            draw_entry(&sheet, entry, at)?;
            at.1 += LINE;
        }
        sheet.present()?;
    }
    Ok(svg)
}

fn draw_entry(sheet: &Area<'_>, entry: &Entry, (x, y): (i32, i32)) -> Result<()> {
    let ends = [(x, y), (x + SAMPLE, y)];
    match entry.mark {
        Mark::Bar(colour) => {
            let corners = [(x, y - TEXT / 2), (x + SAMPLE, y + TEXT / 2)];
            sheet.draw(&Rectangle::new(corners, colour.filled()))?;
        }
        Mark::Line(colour) => sheet.draw(&PathElement::new(ends, measured(colour)))?,
        Mark::Dashes(colour) => sheet.draw(&dashes(ends, colour))?,
    }
    let style = text(TEXT, &INK, HPos::Left);
    sheet.draw(&Text::new(
        entry.name.as_str(),
        (x + SAMPLE + GAP / 2, y),
        style,
    ))?;
    Ok(())
}

/// The stroke of a line of what was measured.
pub(super) fn measured(colour: RGBColor) -> ShapeStyle {
    colour.stroke_width(2)
}

/// A line of a target.
pub(super) fn dashes<P: Clone, const N: usize>(
    points: [P; N],
    colour: RGBColor,
) -> DashedPathElement<std::array::IntoIter<P, N>, i32> {
    DashedPathElement::new(points, DASH.0, DASH.1, colour.stroke_width(2))
}
