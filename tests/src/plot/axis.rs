//! Where a value stands on an axis, and which values are written beside it.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use plotters::coord::ranged1d::{
    KeyPointHint, KeyPointWeight, NoDefaultFormatting, Ranged, ValueFormatter,
};

use crate::figure::round;

/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scale {
    /// Equal differences are equally far apart. Begins at zero, or below.
    Linear,
    /// Equal ratios are equally far apart. Values must be above zero.
    Logarithmic,
}

/// What an axis shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Axis {
    /// What is measured along it, and the unit: `flows`, `ns per packet`.
    pub label: String,
    /// How its values are spread.
    pub scale: Scale,
}

/// Steps between two ticks of a linear axis, by powers of ten.
const STEPS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];
/// As many steps are wanted at most.
const WANTED: f64 = 8.0;
/// Ticks are at least this part of the axis apart.
const APART: f64 = 0.07;

/// An axis made for values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ruler {
    scale: Scale,
    range: Range<f64>,
    pub(super) ticks: Vec<f64>,
}

impl Scale {
    /// Where a value is on a linear picture.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log10(),
        }
    }

    /// What is at a place.
    fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            Self::Logarithmic => 10_f64.powf(place),
        }
    }
}

impl Ruler {
    /// An axis from one round value to another, so that all values are between them.
    ///
    /// # Errors
    ///
    /// There are no values, or one the scale cannot show.
    pub(super) fn around(scale: Scale, values: impl IntoIterator<Item = f64>) -> Result<Self> {
        let (low, high) = extent(scale, values)?;
        Ok(match scale {
            Scale::Linear => Self::linear(low.min(0.0), high.max(0.0)),
            Scale::Logarithmic => Self::decades(low.log10().floor(), high.log10().ceil()),
        })
    }

    /// An axis from the least value to the greatest, with ticks at the values themselves as far as there
    /// is room: for what was chosen, as numbers of flows are.
    ///
    /// # Errors
    ///
    /// As [`Ruler::around`].
    pub(super) fn at(scale: Scale, mut values: Vec<f64>) -> Result<Self> {
        let (low, high) = extent(scale, values.iter().copied())?;
        let (low, high) = (scale.place(low), scale.place(high));
        // A margin, so that no mark lies on the frame.
        let margin = if high > low { (high - low) * 0.04 } else { 0.5 };
        let (start, end) = (low - margin, high + margin);
        values.sort_by(f64::total_cmp);
        let mut ticks: Vec<f64> = Vec::new();
        for value in values {
            let far = |last: &f64| scale.place(value) - scale.place(*last) >= (end - start) * APART;
            if ticks.last().is_none_or(far) {
                ticks.push(value);
            }
        }
        Ok(Self {
            scale,
            range: scale.value(start)..scale.value(end),
            ticks,
        })
    }

    fn linear(low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        let rough = (high - low) / WANTED;
        let power = 10_f64.powf(rough.log10().floor());
        let step = STEPS
            .into_iter()
            .map(|step| step * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (low / step).floor();
        let last = (high / step).ceil();
        Self {
            scale: Scale::Linear,
            range: first * step..last * step,
            ticks: every(first, last).map(|count| count * step).collect(),
        }
    }

    /// From one power of ten to another, by their exponents.
    fn decades(first: f64, last: f64) -> Self {
        let last = last.max(first + 1.0);
        let steps: &[f64] = if last - first > 3.0 {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let range = 10_f64.powf(first)..10_f64.powf(last);
        let ticks = every(first, last)
            .flat_map(|exponent| steps.iter().map(move |step| step * 10_f64.powf(exponent)))
            .filter(|tick| *tick <= range.end)
            .collect();
        Self {
            scale: Scale::Logarithmic,
            range,
            ticks,
        }
    }

    /// Where bars begin: zero, or the edge where zero is not on the axis.
    pub(super) fn base(&self) -> f64 {
        match self.scale {
            Scale::Linear => 0.0,
            Scale::Logarithmic => self.range.start,
        }
    }

    /// How much of the axis is before a value.
    fn share(&self, value: f64) -> f64 {
        let [start, end, value] =
            [self.range.start, self.range.end, value].map(|value| self.scale.place(value));
        (value - start) / (end - start)
    }
}

impl Ranged for Ruler {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        between(limit, self.share(*value))
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        ticks(&self.ticks, &hint)
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Ruler {
    fn format(value: &f64) -> String {
        round(*value)
    }
}

/// Names one below the other, each in the middle of its slot: that of the first is from 0 to 1.
#[derive(Clone)]
pub(super) struct Slots {
    names: Vec<String>,
    /// The middle of each slot.
    middles: Vec<f64>,
}

impl Slots {
    pub(super) fn of(names: Vec<String>) -> Self {
        let middles = (0_u32..).zip(&names).map(|(slot, _)| f64::from(slot) + 0.5);
        Self {
            middles: middles.collect(),
            names,
        }
    }

    fn end(&self) -> f64 {
        self.middles.last().map_or(1.0, |middle| middle + 0.5)
    }
}

impl Ranged for Slots {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        // Upwards is where numbers grow, but names are read downwards.
        between(limit, 1.0 - value / self.end())
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        ticks(&self.middles, &hint)
    }

    fn range(&self) -> Range<f64> {
        0.0..self.end()
    }
}

impl ValueFormatter<f64> for Slots {
    fn format_ext(&self, value: &f64) -> String {
        let is_here = |middle: &f64| (middle - value).abs() < 0.5;
        let slot = self.middles.iter().position(is_here);
        slot.and_then(|slot| self.names.get(slot))
            .cloned()
            .unwrap_or_default()
    }
}

/// The pixel `share` of the way from one to the other.
#[expect(clippy::cast_possible_truncation, reason = "a picture has few pixels")]
fn between((from, to): (i32, i32), share: f64) -> i32 {
    from + (f64::from(to - from) * share).round() as i32
}

/// The lines of a grid: there are none between ticks.
fn ticks(ticks: &[f64], hint: &impl KeyPointHint) -> Vec<f64> {
    match hint.weight() {
        KeyPointWeight::Bold => ticks.to_vec(),
        KeyPointWeight::Any => Vec::new(),
    }
}

/// Whole numbers from one to another, both included.
fn every(first: f64, last: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(first), |number| Some(number + 1.0))
        .take_while(move |number| *number <= last)
}

/// The least and the greatest value.
fn extent(scale: Scale, values: impl IntoIterator<Item = f64>) -> Result<(f64, f64)> {
    let mut extent = None;
    for value in values {
        ensure!(value.is_finite(), "{value} cannot be shown");
        ensure!(
            scale == Scale::Linear || value > 0.0,
            "{value} cannot be shown on a logarithmic axis"
        );
        let (low, high) = extent.unwrap_or((value, value));
        extent = Some((value.min(low), value.max(high)));
    }
    extent.context("there is nothing to show")
}

#[cfg(test)]
mod tests {
    use plotters::coord::ranged1d::{Ranged as _, ValueFormatter as _};

    use super::{Ruler, Scale, Slots};

    fn labels(ruler: &Ruler) -> Vec<String> {
        ruler.ticks.iter().map(Ruler::format).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_ends_at_a_tick() {
        for (values, expected) in [
            (
                &[72.3, 380.0][..],
                &["0", "50", "100", "150", "200", "250", "300", "350", "400"][..],
            ),
            (&[0.31, 1.8], &["0", "0.5", "1", "1.5", "2"]),
            (
                &[-0.4, 7.0],
                &["-1", "0", "1", "2", "3", "4", "5", "6", "7"],
            ),
            (&[0.0], &["0", "0.2", "0.4", "0.6", "0.8", "1"]),
            (
                &[80_000.0],
                &[
                    "0", "10,000", "20,000", "30,000", "40,000", "50,000", "60,000", "70,000",
                    "80,000",
                ],
            ),
        ] {
            let ruler = Ruler::around(Scale::Linear, values.iter().copied()).unwrap();
            assert_eq!(labels(&ruler), expected, "{values:?}");
            assert_eq!(ruler.ticks.first(), Some(&ruler.range.start), "{values:?}");
            assert_eq!(ruler.ticks.last(), Some(&ruler.range.end), "{values:?}");
            for value in values {
                assert!(ruler.range.start <= *value && *value <= ruler.range.end);
            }
        }
    }

    #[test]
    fn a_logarithmic_axis_ends_at_powers_of_ten() {
        for (values, expected) in [
            (
                &[0.05, 335.0][..],
                &["0.01", "0.1", "1", "10", "100", "1,000"][..],
            ),
            (&[3.0, 40.0], &["1", "2", "5", "10", "20", "50", "100"]),
            (&[10.0], &["10", "20", "50", "100"]),
        ] {
            let ruler = Ruler::around(Scale::Logarithmic, values.iter().copied()).unwrap();
            assert_eq!(labels(&ruler), expected, "{values:?}");
            assert_eq!(ruler.map(&ruler.base(), (0, 100)), 0);
        }
    }

    #[test]
    fn ticks_at_the_values_themselves() {
        let flows = vec![1.0, 1_024.0, 65_536.0, 1_048_576.0];
        let ruler = Ruler::at(Scale::Logarithmic, flows).unwrap();
        assert_eq!(labels(&ruler), ["1", "1,024", "65,536", "1,048,576"]);
        assert!(ruler.range.start < 1.0);
        assert!(1_048_576.0 < ruler.range.end);
        // Of two too near each other the first.
        let near = vec![1_024.0, 1.0, 1_000.0, 1.0, 100_000.0];
        let near = Ruler::at(Scale::Logarithmic, near).unwrap();
        assert_eq!(labels(&near), ["1", "1,000", "100,000"]);
        let one = Ruler::at(Scale::Linear, vec![7.0]).unwrap();
        assert_eq!(labels(&one), ["7"]);
        assert_eq!(one.range, 6.5..7.5);
    }

    #[test]
    fn values_and_their_pixels() {
        let linear = Ruler::around(Scale::Linear, [100.0]).unwrap();
        let logarithmic = Ruler::around(Scale::Logarithmic, [1.0, 10_000.0]).unwrap();
        let slots = Slots::of(vec!["first".to_owned(), "second".to_owned()]);
        for (pixel, expected) in [
            (linear.map(&0.0, (10, 210)), 10),
            (linear.map(&25.0, (10, 210)), 60),
            (linear.map(&100.0, (10, 210)), 210),
            (linear.map(&25.0, (210, 10)), 160),
            (logarithmic.map(&1.0, (0, 400)), 0),
            (logarithmic.map(&100.0, (0, 400)), 200),
            (logarithmic.map(&10_000.0, (0, 400)), 400),
            // The first name is on top.
            (slots.map(&0.5, (100, 0)), 25),
            (slots.map(&1.5, (100, 0)), 75),
        ] {
            assert_eq!(pixel, expected);
        }
        assert_eq!(slots.format_ext(&0.5), "first");
        assert_eq!(slots.format_ext(&1.5), "second");
    }

    #[test]
    fn what_cannot_be_shown_is_named() {
        for (scale, values, expected) in [
            (Scale::Linear, &[][..], "nothing to show"),
            (Scale::Linear, &[1.0, f64::NAN], "NaN cannot be shown"),
            (
                Scale::Logarithmic,
                &[1.0, 0.0],
                "0 cannot be shown on a logarithmic",
            ),
            (
                Scale::Logarithmic,
                &[-1.0],
                "-1 cannot be shown on a logarithmic",
            ),
        ] {
            for ruler in [Ruler::around, Ruler::at] {
                let error = ruler(scale, values.to_vec()).unwrap_err();
                assert!(error.to_string().contains(expected), "{error}");
            }
        }
    }
}
