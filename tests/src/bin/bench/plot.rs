//! A report as a picture (SVG): a bar to each median, a dot for each sample, a scale for each unit.

use std::fmt::Write as _;

use crate::figure::{Figure, State};
use crate::report::Report;

const ROW: f64 = 22.0;
const HEADING: f64 = 36.0;
/// Where bars begin and end, and how wide the picture is.
const BARS: f64 = 470.0;
const BARS_END: f64 = 860.0;
const WIDTH: f64 = 960.0;

/// The picture of `report`; with a `baseline`, a line where its medians are.
pub(crate) fn svg(report: &Report, baseline: Option<&Report>) -> String {
    let mut units: Vec<&str> = Vec::new();
    for figure in &report.figures {
        if !units.contains(&figure.unit.as_str()) {
            units.push(&figure.unit);
        }
    }
    let mut body = String::new();
    let mut y = 0.0;
    for unit in units {
        y += HEADING;
        text(&mut body, 12.0, y - 10.0, "start", "heading", unit);
        let figures = report.figures.iter().filter(|figure| figure.unit == unit);
        let medians = |figure: &Figure| baseline.and_then(|baseline| baseline.median_of(figure));
        let largest = figures
            .clone()
            .flat_map(|figure| [figure.spread()[2], medians(figure).unwrap_or(0.0)])
            .filter(|value| value.is_finite())
            .fold(f64::MIN_POSITIVE, f64::max);
        for figure in figures {
            row(&mut body, figure, y, largest, medians(figure));
            y += ROW;
        }
    }
    let height = y + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<style>.heading{{font-weight:bold;font-size:14px}}.cold{{fill:#4477aa}}.warm{{fill:#ddaa33}}\
         .fork{{fill:#228833}}.sample{{fill:#222;fill-opacity:.55}}.baseline{{stroke:#cc3311;stroke-width:2}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}{body}</svg>\n",
        legend(baseline.is_some())
    )
}

fn row(body: &mut String, figure: &Figure, y: f64, largest: f64, baseline: Option<f64>) {
    let [_, median, _] = figure.spread();
    if !median.is_finite() {
        return;
    }
    let at = |value: f64| BARS + (BARS_END - BARS) * (value / largest).clamp(0.0, 1.0);
    let middle = y + ROW / 2.0;
    text(body, BARS - 8.0, middle + 4.0, "end", "name", &figure.name);
    let _ = writeln!(
        body,
        "<rect class=\"{}\" x=\"{BARS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
        figure.state.name(),
        y + 4.0,
        at(median) - BARS,
        ROW - 8.0
    );
    for sample in &figure.samples {
        let _ = writeln!(
            body,
            "<circle class=\"sample\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2.5\"/>",
            at(*sample)
        );
    }
    if let Some(baseline) = baseline {
        let x = at(baseline);
        let (top, bottom) = (y + 2.0, y + ROW - 2.0);
        let _ = writeln!(
            body,
            "<line class=\"baseline\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
        );
    }
    text(body, BARS_END + 8.0, middle + 4.0, "start", "value", &short(median));
}

fn legend(has_baseline: bool) -> String {
    let mut body = String::new();
    let mut x = BARS;
    for state in [State::Cold, State::Warm, State::Fork] {
        let _ = writeln!(
            body,
            "<rect class=\"{}\" x=\"{x}\" y=\"12\" width=\"12\" height=\"12\"/>",
            state.name()
        );
        text(&mut body, x + 16.0, 22.0, "start", "value", state.name());
        x += 64.0;
    }
    if has_baseline {
        let _ = writeln!(
            body,
            "<line class=\"baseline\" x1=\"{x}\" y1=\"11\" x2=\"{x}\" y2=\"25\"/>"
        );
        text(&mut body, x + 8.0, 22.0, "start", "value", "baseline");
    }
    body
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, class: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        body,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>"
    );
}

/// A number with the digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn report(figures: Vec<Figure>) -> Report {
        Report {
            host: Value::Null,
            figures,
        }
    }

    #[test]
    fn every_sample_has_a_dot_within_the_picture() {
        let mut figure = Figure::cold("a < b & c", "ms");
        [1.0, 2.0, 4.0].iter().for_each(|sample| figure.add(*sample));
        let picture = svg(&report(vec![figure]), None);
        assert_eq!(picture.matches("<circle").count(), 3);
        assert!(picture.contains(&format!("cx=\"{BARS_END:.1}\"")));
        assert!(picture.contains("a &lt; b &amp; c"));
        assert!(!picture.contains("baseline\" x1"));
    }

    #[test]
    fn a_baseline_beyond_all_samples_still_fits() {
        let figure = |sample| {
            let mut figure = Figure::fork("f", "KiB");
            figure.add(sample);
            vec![figure]
        };
        let picture = svg(&report(figure(1.0)), Some(&report(figure(4.0))));
        assert!(picture.contains(&format!("x1=\"{BARS_END:.1}\"")));
    }

    #[test]
    fn a_figure_without_samples_is_no_row() {
        let picture = svg(&report(vec![Figure::warm("f", "ms")]), None);
        assert!(!picture.contains("NaN"));
    }
}
