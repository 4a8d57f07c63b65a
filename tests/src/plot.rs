//! Plots of what was measured, as SVG whose text stays text.
//!
//! ```text
//! Bars         one number each of several things, beside its target    [name |=====  72.3 (≤ 80)]
//! StackedBars  what the number is made of
//! Lines        how it grows with flows or services, against targets
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

mod axis;
mod bars;
mod canvas;
mod lines;

pub use axis::{Axis, Scale};
pub use bars::{Bar, Bars, Stack, StackedBars};
pub use lines::{Line, Lines, Series};

/// Where plots go, below the workspace.
const DIRECTORY: &str = "target/bench";

/// A picture of results.
pub trait Plot {
    /// The picture, as the text of an SVG file.
    ///
    /// # Errors
    ///
    /// There is nothing to show, or a value its axis cannot show.
    fn svg(&self) -> Result<String>;

    /// Writes the picture to `target/bench/NAME.svg` and returns where that is.
    ///
    /// # Errors
    ///
    /// As [`Plot::svg`], or the file cannot be written.
    fn write(&self, name: &str) -> Result<PathBuf> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directory = tests.parent().unwrap_or(tests).join(DIRECTORY);
        let path = directory.join(name).with_extension("svg");
        let svg = self.svg().with_context(|| format!("draw {name}"))?;
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        fs::write(&path, svg).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Target;

    fn axis(label: &str, scale: Scale) -> Axis {
        Axis {
            label: label.to_owned(),
            scale,
        }
    }

    fn bars(scale: Scale) -> Bars {
        let bar = |name: &str, value, target| Bar {
            name: name.to_owned(),
            value,
            target,
        };
        Bars {
            title: "Time per packet".to_owned(),
            axis: axis("ns per packet, net", scale),
            bars: vec![
                bar("not ours", 51.5, Some(Target::AtMost(60.0))),
                bar("dnat, forward, 1 flow", 76.2, Some(Target::AtMost(80.0))),
                bar(
                    "dnat, forward, 65,536 flows",
                    412.0,
                    Some(Target::AtMost(380.0)),
                ),
                bar("new flow, IPv6, source ranges, 1,024 flows", 871.0, None),
            ],
        }
    }

    fn stacked() -> StackedBars {
        let stack = |name: &str, values: &[f64], target| Stack {
            name: name.to_owned(),
            values: values.to_vec(),
            target,
        };
        StackedBars {
            title: "What a packet's time goes into".to_owned(),
            axis: "ns per packet".to_owned(),
            parts: ["null", "parse", "look up", "rewrite & <redirect>"]
                .map(str::to_owned)
                .to_vec(),
            bars: vec![
                stack("not ours", &[48.0, 12.0, 18.0, 0.0], None),
                stack(
                    "1 flow",
                    &[48.0, 12.0, 31.0, 28.5],
                    Some(Target::AtMost(128.0)),
                ),
                stack(
                    "65,536 flows",
                    &[48.0, 12.0, 260.0, 30.0],
                    Some(Target::AtMost(428.0)),
                ),
            ],
        }
    }

    fn lines() -> Lines {
        let flows = [1.0, 1_024.0, 65_536.0, 1_048_576.0];
        let series = |name: &str, line| Series {
            name: name.to_owned(),
            line,
        };
        let over = |values: [f64; 4]| std::iter::zip(flows, values).collect();
        let target = vec![(1.0, 80.0), (1_024.0, 120.0), (65_536.0, 380.0)];
        Lines {
            title: "Time per packet against the number of flows".to_owned(),
            x: axis("flows", Scale::Logarithmic),
            y: axis("ns per packet, net", Scale::Linear),
            series: vec![
                series("dnat", Line::Measured(over([71.0, 102.0, 355.0, 480.0]))),
                series(
                    "full-nat",
                    Line::Measured(over([74.0, 110.0, 391.0, 512.0])),
                ),
                series("IPv6", Line::Measured(over([79.0, 119.0, 402.0, 540.0]))),
                series("target", Line::Target(target)),
            ],
        }
    }

    /// The texts of a picture, in the order they are drawn.
    fn texts(svg: &str) -> Vec<&str> {
        svg.split("<text")
            .skip(1)
            .filter_map(|rest| rest.split_once('>')?.1.split("</text>").next())
            .map(str::trim)
            .collect()
    }

    #[test]
    fn bars_say_what_they_show() {
        let svg = bars(Scale::Linear).svg().unwrap();
        let texts = texts(&svg);
        for text in [
            "Time per packet",
            "ns per packet, net",
            "new flow, IPv6, source ranges, 1,024 flows",
            "51.5 (≤ 60)",
            "412 (≤ 380)",
            "871",
            "misses its target",
        ] {
            assert!(texts.contains(&text), "{text} is not in {texts:?}");
        }
    }

    #[test]
    fn a_legend_names_only_what_is_there() {
        let mut bars = bars(Scale::Logarithmic);
        bars.bars.remove(2);
        let svg = bars.svg().unwrap();
        assert!(texts(&svg).contains(&"target"));
        assert!(!texts(&svg).contains(&"misses its target"));
        bars.bars.drain(..2);
        let svg = bars.svg().unwrap();
        assert!(!texts(&svg).contains(&"target"));
    }

    #[test]
    fn stacked_bars_name_their_parts_and_show_their_sum() {
        let svg = stacked().svg().unwrap();
        let texts = texts(&svg);
        for text in [
            "null",
            "look up",
            "rewrite &amp; &lt;redirect&gt;",
            "78.0",
            "120 (≤ 128)",
        ] {
            assert!(texts.contains(&text), "{text} is not in {texts:?}");
        }
    }

    #[test]
    fn parts_that_cannot_be_stacked_are_refused() {
        let mut missing = stacked();
        missing.parts.pop();
        let error = missing.svg().unwrap_err().to_string();
        assert_eq!(error, "not ours has 4 parts, not 3");
        let mut below = stacked();
        below.bars.first_mut().unwrap().values = vec![48.0, -1.0, 0.0, 0.0];
        let error = below.svg().unwrap_err().to_string();
        assert_eq!(error, "a part of not ours is -1");
    }

    #[test]
    fn lines_have_a_tick_at_each_number_chosen() {
        let svg = lines().svg().unwrap();
        let texts = texts(&svg);
        for text in [
            "flows",
            "1",
            "1,024",
            "65,536",
            "1,048,576",
            "full-nat",
            "target",
        ] {
            assert!(texts.contains(&text), "{text} is not in {texts:?}");
        }
    }

    #[test]
    fn an_empty_picture_is_an_error() {
        let mut bars = bars(Scale::Linear);
        bars.bars.clear();
        assert!(bars.svg().is_err());
        let mut lines = lines();
        lines.series.clear();
        assert!(lines.svg().is_err());
    }
}
