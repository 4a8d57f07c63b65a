//! Durations as people write them in Kubernetes objects and in the configuration: Go's form, such as
//! `1h30m` or `1.5s`, and days.

use std::time::Duration;

/// Parses what Go's `time.ParseDuration` (go/src/time/format.go) takes, but for a sign: numbers with
/// units `ns`, `us`, `µs`, `ms`, `s`, `m`, `h`, or a bare `0`. Days, `d`, are ours.
///
/// # Errors
///
/// What is wrong with the text, as the rest of a sentence about the field.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || format!("`{text}` is not a duration such as `90s` or `2h15m`");
    let long = || format!("`{text}` is longer than 292 years");
    let mut rest = text;
    let mut total = 0_u64;
    if text.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after, |c| !c.is_ascii_digit() && c != '.');
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(wrong());
        }
        let unit = nanoseconds(unit).ok_or_else(wrong)?;
        let whole = if whole.is_empty() { "0" } else { whole };
        let whole = whole.parse::<u64>().map_err(|_too_long| long())?;
        total = whole
            .checked_mul(unit)
            .and_then(|part| part.checked_add(part_of(unit, fraction)))
            .and_then(|part| part.checked_add(total))
            .filter(|total| i64::try_from(*total).is_ok())
            .ok_or_else(long)?;
        rest = after;
    }
    Ok(Duration::from_nanos(total))
}

/// The longest beginning whose characters all are of a kind, and what follows.
fn split(text: &str, is_of_kind: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !is_of_kind(c)).unwrap_or(text.len());
    text.split_at(end)
}

const fn nanoseconds(unit: &str) -> Option<u64> {
    Some(match unit.as_bytes() {
        b"ns" => 1,
        // The micro sign and the Greek letter.
        b"us" | b"\xc2\xb5s" | b"\xce\xbcs" => 1_000,
        b"ms" => 1_000_000,
        b"s" => 1_000_000_000,
        b"m" => 60_000_000_000,
        b"h" => 3_600_000_000_000,
        b"d" => 86_400_000_000_000,
        _ => return None,
    })
}

/// A decimal fraction of a unit, cut to nanoseconds.
fn part_of(unit: u64, fraction: &str) -> u64 {
    let mut part = 0;
    let mut place = unit;
    for digit in fraction.bytes().map(|byte| u64::from(byte - b'0')) {
        part += digit * place / 10;
        place /= 10;
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let milliseconds = |text| parse_duration(text).map(|d| d.as_millis());
        for (name, text, expected) in [
            ("minutes", "30m", Some(1_800_000)),
            ("hours and minutes", "1h30m", Some(5_400_000)),
            ("as Go prints it", "1h0m0s", Some(3_600_000)),
            ("a fraction", "1.5h", Some(5_400_000)),
            ("only a fraction", ".5s", Some(500)),
            ("no fraction after the point", "2.s", Some(2_000)),
            ("milliseconds", "250ms", Some(250)),
            ("microseconds", "3000us", Some(3)),
            ("micro sign", "3000µs", Some(3)),
            ("Greek letter", "3000μs", Some(3)),
            ("nanoseconds", "1000000ns", Some(1)),
            ("units in any order, also twice", "1s1h1s", Some(3_602_000)),
            ("nothing", "0", Some(0)),
            ("nothing with a unit", "0s", Some(0)),
            ("nothing twice", "0h0s", Some(0)),
            ("the longest", "2562047h47m16s", Some(9_223_372_036_000)),
            ("empty", "", None),
            ("no unit", "30", None),
            ("no number", "m", None),
            ("only a point", ".s", None),
            ("two points", "1.2.3s", None),
            ("days", "1d", Some(86_400_000)),
            ("unknown unit", "1w", None),
            ("a space", "1h 30m", None),
            ("a sign", "-1h", None),
            ("capital", "1H", None),
            ("a word", "forever", None),
            ("too long", "2562048h", None),
            ("far too long", "99999999999999999999s", None),
            (
                "a number too long for its unit",
                "9223372036854775807h",
                None,
            ),
        ] {
            assert_eq!(milliseconds(text).ok(), expected, "{name}: {text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |text| parse_duration(text).err().unwrap_or_default();
        assert_eq!(
            message("1w"),
            "`1w` is not a duration such as `90s` or `2h15m`"
        );
        assert_eq!(message("3000000h"), "`3000000h` is longer than 292 years");
    }
}
