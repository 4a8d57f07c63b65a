//! Rows as a table for people or as JSON for programs, both with the names of the row's fields.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets};
use serde::Serialize;
use serde_json::Value;

/// The form of a command's answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Output {
    /// Aligned columns without borders.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// Rows of one type, whichever it is.
pub trait Sheet {
    /// Writes the rows.
    ///
    /// # Errors
    ///
    /// If `writer` fails.
    fn write(&self, output: Output, writer: &mut dyn Write) -> io::Result<()>;

    /// True if there is no row.
    fn is_empty(&self) -> bool;
}

impl<T: Serialize> Sheet for Vec<T> {
    fn write(&self, output: Output, writer: &mut dyn Write) -> io::Result<()> {
        match output {
            Output::Table => table(self, writer),
            Output::Json => json(self, writer),
        }
    }

    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}

/// Writes a value as an indented JSON document with a final newline.
///
/// # Errors
///
/// If `writer` fails.
pub fn json<T: Serialize + ?Sized>(value: &T, writer: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *writer, value)?;
    writeln!(writer)
}

/// Rows laid out at once: a whole table of flows would take a gigabyte.
const CHUNK: usize = 512;

/// Writes structs as a table: one column per field, named like the field. No row, no text.
///
/// # Errors
///
/// If `writer` fails.
pub fn table<T: Serialize>(rows: &[T], writer: &mut dyn Write) -> io::Result<()> {
    let columns = columns(rows)?;
    let header = columns.iter().map(|column| column.title.as_str());
    let mut header = Some(header.collect::<Vec<_>>());
    for chunk in rows.chunks(CHUNK) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if let Some(header) = header.take() {
            table.set_header(header);
        }
        for row in chunk {
            table.add_row(fields(row)?.values().map(text));
        }
        for (column, drawn) in columns.iter().zip(table.column_iter_mut()) {
            drawn.set_padding((0, 2));
            drawn.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(column.width)));
            if column.is_number {
                drawn.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(writer, "{}", table.trim_fmt())?;
    }
    Ok(())
}

/// A column, as wide as its widest cell and two more.
struct Column {
    title: String,
    width: u16,
    is_number: bool,
}

fn columns<T: Serialize>(rows: &[T]) -> io::Result<Vec<Column>> {
    let mut columns = Vec::new();
    let width = |text: &str| u16::try_from(text.chars().count() + 2).unwrap_or(u16::MAX);
    for row in rows {
        let fields = fields(row)?;
        if columns.is_empty() {
            columns.extend(fields.keys().map(|key| {
                let title = title(key);
                Column {
                    width: width(&title),
                    title,
                    is_number: true,
                }
            }));
        }
        for (column, value) in columns.iter_mut().zip(fields.values()) {
            column.width = column.width.max(width(&text(value)));
            column.is_number &= value.is_number() || value.is_null();
        }
    }
    Ok(columns)
}

fn fields<T: Serialize>(row: &T) -> io::Result<serde_json::Map<String, Value>> {
    match serde_json::to_value(row)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(io::Error::other("a row is not a struct")),
    }
}

/// `newFlows` → `NEW FLOWS`.
fn title(key: &str) -> String {
    let mut title = String::with_capacity(key.len() + 2);
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            title.push(' ');
        }
        title.push(c.to_ascii_uppercase());
    }
    title
}

/// A value on one line: `-` for nothing, a list by commas.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(number) if value.is_f64() => format!("{number:.1}"),
            _ => number.to_string(),
        },
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(_) => value.to_string(),
    }
}

/// Test support: the text of a sheet.
#[cfg(test)]
pub(crate) fn text_of(sheet: &dyn Sheet, output: Output) -> String {
    let mut bytes = Vec::new();
    sheet
        .write(output, &mut bytes)
        .expect("a Vec takes every byte");
    String::from_utf8(bytes).expect("the sheet is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Row {
        name: &'static str,
        new_flows: u64,
        share_percent: f64,
        flags: Vec<&'static str>,
        snat: Option<&'static str>,
    }

    fn rows() -> Vec<Row> {
        vec![
            Row {
                name: "a",
                new_flows: 12_345,
                share_percent: 33.333,
                flags: vec!["LIVE", "LOCAL"],
                snat: None,
            },
            Row {
                name: "longer",
                new_flows: 7,
                share_percent: 0.0,
                flags: vec![],
                snat: Some("x"),
            },
        ]
    }

    #[test]
    fn a_table_aligns_its_columns() {
        insta::assert_snapshot!(text_of(&rows(), Output::Table), @r#"
        NAME    NEW FLOWS  SHARE PERCENT  FLAGS       SNAT
        a           12345           33.3  LIVE,LOCAL  -
        longer          7            0.0  -           x
        "#);
    }

    #[test]
    fn chunks_of_a_long_table_are_aligned() {
        let mut rows: Vec<Row> = (0..CHUNK * 2)
            .flat_map(|_| rows().into_iter().take(1))
            .collect();
        rows.extend(self::rows());
        let text = text_of(&rows, Output::Table);
        assert_eq!(text.lines().count(), 1 + rows.len());
        let (short, long) = (text.lines().nth(1), text.lines().last());
        let flags = |line: Option<&str>, flags| line.and_then(|line| line.find(flags));
        assert_eq!(flags(short, "LIVE"), flags(long, "-"), "{short:?} {long:?}");
    }

    #[test]
    fn json_has_the_same_names() {
        insta::assert_snapshot!(text_of(&rows(), Output::Json), @r#"
        [
          {
            "name": "a",
            "newFlows": 12345,
            "sharePercent": 33.333,
            "flags": [
              "LIVE",
              "LOCAL"
            ],
            "snat": null
          },
          {
            "name": "longer",
            "newFlows": 7,
            "sharePercent": 0.0,
            "flags": [],
            "snat": "x"
          }
        ]
        "#);
    }

    #[test]
    fn no_row_is_no_table_and_an_empty_list() {
        assert_eq!(text_of(&Vec::<Row>::new(), Output::Table), "");
        assert_eq!(text_of(&Vec::<Row>::new(), Output::Json), "[]\n");
    }
}
