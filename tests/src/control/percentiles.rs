//! How times are spread.

use anyhow::{Context as _, Result};

/// How times are spread, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    /// Half of them.
    pub p50: f64,
    /// All but one in a hundred.
    pub p99: f64,
    /// All but one in a thousand.
    pub p999: f64,
    /// All.
    pub max: f64,
}

impl Percentiles {
    /// The percentiles of times.
    ///
    /// # Errors
    ///
    /// There are none.
    pub fn of(mut times: Vec<f64>) -> Result<Self> {
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1).context("nothing was measured")?;
        let at = |thousandth: usize| {
            let index = (times.len() * thousandth).div_ceil(1_000);
            let index = index.saturating_sub(1).min(last);
            times.get(index).copied().unwrap_or_default()
        };
        Ok(Self {
            p50: at(500),
            p99: at(990),
            p999: at(999),
            max: at(1_000),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_slowest() {
        let of = |times: Vec<f64>| Percentiles::of(times).unwrap();
        let expected = |p50, p99, p999, max| Percentiles {
            p50,
            p99,
            p999,
            max,
        };
        let thousand = of((1..=1_000).rev().map(f64::from).collect());
        assert_eq!(thousand, expected(500.0, 990.0, 999.0, 1_000.0));
        assert_eq!(of(vec![3.0, 1.0, 2.0]), expected(2.0, 3.0, 3.0, 3.0));
        assert!(Percentiles::of(Vec::new()).is_err());
    }
}
