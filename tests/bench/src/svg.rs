//! Small line charts as SVG: logarithmic axes where the numbers span decades.
//!
//! Trust: nobody sends it bytes.
//! Never: draw a point that was not measured.

use std::fmt::Write as _;

/// A line of a chart.
pub(crate) struct Series {
    /// Its name in the legend.
    pub(crate) name: String,
    /// Points from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart.
pub(crate) struct Chart {
    /// Above it.
    pub(crate) title: String,
    /// Below the horizontal axis, which is logarithmic.
    pub(crate) x: String,
    /// Beside the vertical axis.
    pub(crate) y: String,
    /// Whether the vertical axis is logarithmic.
    pub(crate) log_y: bool,
    /// The lines.
    pub(crate) series: Vec<Series>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 56.0;
const COLOURS: [&str; 4] = ["#1668b8", "#c4561e", "#3a8a3a", "#7a4fa3"];

impl Chart {
    /// The SVG document.
    pub(crate) fn svg(&self) -> String {
        let points =
            || self.series.iter().flat_map(|series| &series.points).filter(|(x, y)| *x > 0.0 && *y >= 0.0);
        let (mut x_low, mut x_high) = (f64::MAX, 1.0_f64);
        let (mut y_low, mut y_high) = (f64::MAX, 0.0_f64);
        for (x, y) in points() {
            x_low = x_low.min(*x);
            x_high = x_high.max(*x);
            y_high = y_high.max(*y);
            if *y > 0.0 {
                y_low = y_low.min(*y);
            }
        }
        let (y_low, y_high) = if self.log_y {
            (10_f64.powf(y_low.max(1e-6).log10().floor()), 10_f64.powf(y_high.max(1e-6).log10().ceil()))
        } else {
            (0.0, nice(y_high))
        };
        let span = (x_high / x_low).ln().max(1e-9);
        let at_x = |x: f64| LEFT + (WIDTH - LEFT - RIGHT) * (x / x_low).ln() / span;
        let at_y = |y: f64| {
            let share = if self.log_y {
                (y.max(y_low) / y_low).ln() / (y_high / y_low).ln().max(1e-9)
            } else {
                y / y_high
            };
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
        };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            escape(&self.title)
        );
        for tick in self.y_ticks(y_low, y_high) {
            let y = at_y(tick);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#dddddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(tick)
            );
        }
        let mut ticks: Vec<f64> = points().map(|(x, _)| *x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        for tick in ticks {
            let x = at_x(tick);
            let _ = writeln!(
                out,
                "<path d=\"M{x:.1} {:.1}v5\" stroke=\"#333333\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 20.0,
                short(tick)
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {TOP}V{:.1}H{:.1}\" fill=\"none\" stroke=\"#333333\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            WIDTH - RIGHT,
            f64::midpoint(LEFT, WIDTH - RIGHT),
            HEIGHT - 12.0,
            escape(&self.x),
            f64::midpoint(TOP, HEIGHT - BOTTOM),
            escape(&self.y)
        );
        let mut legend = LEFT;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let line: Vec<String> =
                series.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            );
            for (x, y) in &series.points {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                    at_x(*x),
                    at_y(*y)
                );
            }
            let _ = writeln!(
                out,
                "<path d=\"M{legend:.0} 34h18\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{:.0}\" y=\"38\">{}</text>",
                legend + 23.0,
                escape(&series.name)
            );
            #[allow(clippy::cast_precision_loss)]
            let width = series.name.len() as f64;
            legend += 40.0 + width * 7.5;
        }
        out.push_str("</svg>\n");
        out
    }

    fn y_ticks(&self, low: f64, high: f64) -> Vec<f64> {
        if self.log_y {
            let mut ticks = vec![low];
            while ticks.last().is_some_and(|last| *last < high * 0.99) {
                ticks.push(ticks.last().copied().unwrap_or(low) * 10.0);
            }
            ticks
        } else {
            (0..=5).map(|n| high * f64::from(n) / 5.0).collect()
        }
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

/// A number for an axis.
fn short(value: f64) -> String {
    let trim = |value: f64, unit: &str| {
        let text = format!("{value:.1}");
        format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
    };
    match value {
        v if v >= 1e6 => trim(v / 1e6, "M"),
        v if v >= 1e3 => trim(v / 1e3, "k"),
        v if v >= 0.1 || v == 0.0 => trim(v, ""),
        v => format!("{v:.3}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_axes() {
        assert_eq!([0.0, 0.5, 16.0, 1000.0, 1500.0, 1e6].map(short), ["0", "0.5", "16", "1k", "1.5k", "1M"]);
        assert!((nice(3.2) - 5.0).abs() < 1e-9 && (nice(180_000.0) - 200_000.0).abs() < 1e-6);
    }

    #[test]
    fn a_chart_is_well_formed() {
        let chart = Chart {
            title: "a < b".to_owned(),
            x: "x".to_owned(),
            y: "y".to_owned(),
            log_y: true,
            series: vec![Series { name: "s".to_owned(), points: vec![(1.0, 2.0), (1000.0, 40.0)] }],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
    }
}
