//! What a benchmark found: a number with a unit and, where one was set, a target.

use std::{
    fmt::{self, Display, Formatter},
    fs::File,
    io::BufWriter,
    path::Path,
};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeStruct as _},
};

/// What a value should be, in the unit of its figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Less is better.
    AtMost(f64),
    /// More is better.
    AtLeast(f64),
}

impl Target {
    /// True if `value` is good enough.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    /// The last value that is good enough.
    pub fn bound(self) -> f64 {
        let (Self::AtMost(bound) | Self::AtLeast(bound)) = self;
        bound
    }
}

impl Display for Target {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let sign = match self {
            Self::AtMost(_) => '≤',
            Self::AtLeast(_) => '≥',
        };
        write!(formatter, "{sign} {}", round(self.bound()))
    }
}

/// One result.
///
/// As JSON an object of `name`, `value` and `unit`; with a target also of `target`, its bound, and
/// `met`.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured, of what, under which conditions.
    pub name: String,
    /// In `unit`.
    pub value: f64,
    /// As it is written behind the number: `ns`, `Mpps`, `B`; empty for a ratio.
    pub unit: &'static str,
    /// What it should be.
    pub target: Option<Target>,
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.value.is_finite() {
            // It would become `null`, which reads as not measured.
            return Err(S::Error::custom(format!(
                "{} is {} {}",
                self.name, self.value, self.unit
            )));
        }
        let fields = if self.target.is_some() { 5 } else { 3 };
        let mut object = serializer.serialize_struct("Figure", fields)?;
        object.serialize_field("name", &self.name)?;
        object.serialize_field("value", &self.value)?;
        object.serialize_field("unit", self.unit)?;
        if let Some(target) = self.target {
            object.serialize_field("target", &target.bound())?;
            object.serialize_field("met", &target.is_met(self.value))?;
        }
        object.end()
    }
}

/// Writes rows as a JSON array.
///
/// # Errors
///
/// The file cannot be written, or a figure is no number.
pub fn write_json<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    serde_json::to_writer_pretty(BufWriter::new(file), rows)
        .with_context(|| format!("write {}", path.display()))
}

/// Prints the figures as a table, each beside its target.
#[expect(clippy::print_stdout, reason = "the result of a benchmark")]
pub fn print(figures: &[Figure]) {
    println!("{}", table(figures));
}

fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for figure in figures {
        let (target, met) = match figure.target {
            None => (String::new(), ""),
            Some(target) if target.is_met(figure.value) => (target.to_string(), "met"),
            Some(target) => (target.to_string(), "NOT MET"),
        };
        table.add_row([
            figure.name.as_str(),
            &number(figure.value),
            figure.unit,
            &target,
            met,
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if let Some(values) = table.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// A number for people: three significant digits, or all before the point.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size < 1e-9 => 9,
        size if size < 1.0 => leading_zeros(size) + 3,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    grouped(&format!("{value:.decimals$}"))
}

/// As [`number`], without zeros at the end of a fraction: for what was chosen, not measured.
pub(crate) fn round(value: f64) -> String {
    let number = number(value);
    if number.contains('.') {
        let digits = number.trim_end_matches('0');
        digits.trim_end_matches('.').to_owned()
    } else {
        number
    }
}

/// Zeros between the point and the first other digit of a number below 1.
fn leading_zeros(mut size: f64) -> usize {
    let mut zeros = 0;
    while size < 0.1 {
        size *= 10.0;
        zeros += 1;
    }
    zeros
}

/// With a comma between groups of three digits before the point.
fn grouped(number: &str) -> String {
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let (sign, digits) = match whole.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", whole),
    };
    let mut grouped = sign.to_owned();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Figure, Target, number, round, table, write_json};

    fn figure(name: &str, value: f64, target: Option<Target>) -> Figure {
        Figure {
            name: name.to_owned(),
            value,
            unit: "ns",
            target,
        }
    }

    #[test]
    fn a_bound_itself_is_good_enough() {
        for (target, value, expected) in [
            (Target::AtMost(80.0), 79.0, true),
            (Target::AtMost(80.0), 80.0, true),
            (Target::AtMost(80.0), 80.1, false),
            (Target::AtLeast(2.0), 2.0, true),
            (Target::AtLeast(2.0), 1.9, false),
            (Target::AtMost(80.0), f64::NAN, false),
            (Target::AtLeast(2.0), f64::NAN, false),
        ] {
            assert_eq!(target.is_met(value), expected, "{value} of {target}");
        }
    }

    #[test]
    fn numbers_for_people() {
        for (value, measured, chosen) in [
            (0.0, "0", "0"),
            (-0.25, "-0.250", "-0.25"),
            (0.012_34, "0.0123", "0.0123"),
            (0.1, "0.100", "0.1"),
            (0.999_9, "1.000", "1"),
            (1.0, "1.00", "1"),
            (2.5, "2.50", "2.5"),
            (64.25, "64.2", "64.2"),
            (20.0, "20.0", "20"),
            (100.0, "100", "100"),
            (999.6, "1,000", "1,000"),
            (65_536.0, "65,536", "65,536"),
            (-1_048_576.0, "-1,048,576", "-1,048,576"),
            (1e-12, "0.000000000", "0"),
        ] {
            assert_eq!(number(value), measured);
            assert_eq!(round(value), chosen);
        }
    }

    #[test]
    fn a_figure_as_json() {
        let plain = serde_json::to_value(figure("pass", 51.5, None)).unwrap();
        assert_eq!(plain, json!({"name": "pass", "value": 51.5, "unit": "ns"}));
        let missed = figure("pass", 61.5, Some(Target::AtMost(60.0)));
        assert_eq!(
            serde_json::to_value(missed).unwrap(),
            json!({"name": "pass", "value": 61.5, "unit": "ns", "target": 60.0, "met": false})
        );
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let error = serde_json::to_value(figure("pass", f64::NAN, None)).unwrap_err();
        assert_eq!(error.to_string(), "pass is NaN ns");
    }

    #[test]
    fn a_file_of_figures() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("figures.json");
        write_json(&path, &[figure("a", 1.0, None), figure("b", 2.0, None)]).unwrap();
        let rows: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(rows.len(), 2);
        let nowhere = directory.path().join("none/figures.json");
        let error = write_json::<Figure>(&nowhere, &[]).unwrap_err();
        assert!(error.to_string().contains("none/figures.json"), "{error}");
    }

    #[test]
    fn a_table_is_aligned_whatever_is_in_it() {
        let figures = [
            figure("not ours", 51.5, Some(Target::AtMost(60.0))),
            figure("a longer name", 1_234.0, Some(Target::AtLeast(2_000.0))),
            figure("free", 0.5, None),
        ];
        let lines = [
            "not ours        51.5  ns  ≤ 60     met",
            "a longer name  1,234  ns  ≥ 2,000  NOT MET",
            "free           0.500  ns",
        ];
        assert_eq!(table(&figures), lines.join("\n"));
    }
}
