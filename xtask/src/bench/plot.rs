//! Two plots as SVG: bars, and lines over two logarithmic axes.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 250.0;
const ROW: f64 = 26.0;

/// Horizontal bars on a logarithmic axis, each with its label and its value as text.
pub fn bars(title: &str, rows: &[(String, f64, String)]) -> String {
    let height = 50.0 + ROW * rows.len() as f64;
    let mut svg = open(title, height);
    let positive = || rows.iter().map(|row| row.1).filter(|value| *value > 0.0);
    let least = positive().fold(f64::INFINITY, f64::min) / 2.0;
    let most = positive().fold(least * 2.0, f64::max);
    for (index, (label, value, text)) in rows.iter().enumerate() {
        let y = 40.0 + ROW * index as f64;
        let part = if *value > least {
            (value / least).ln() / (most / least).ln()
        } else {
            0.0
        };
        let length = part * (WIDTH - LEFT - 110.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{length:.0}\" height=\"18\" fill=\"{}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\">{}</text>",
            LEFT - 8.0,
            y + 14.0,
            escape(label),
            if label.contains("bpftrace") {
                "#b5651d"
            } else {
                "#2f6f9f"
            },
            LEFT + length + 8.0,
            y + 14.0,
            escape(text)
        );
    }
    svg + "</svg>\n"
}

/// One line through points, both axes logarithmic.
pub fn line(title: &str, x_axis: &str, y_axis: &str, points: &[(f64, f64)]) -> String {
    let height = 320.0;
    let mut svg = open(title, height);
    let range = |values: &dyn Fn(&(f64, f64)) -> f64| {
        let least = points.iter().map(values).fold(f64::INFINITY, f64::min);
        let most = points.iter().map(values).fold(0.0, f64::max);
        (least.log10().floor(), most.log10().ceil())
    };
    let (x_range, y_range) = (range(&|point| point.0), range(&|point| point.1));
    let place = |value: f64, (low, high): (f64, f64)| (value.log10() - low) / (high - low).max(1.0);
    let x = |value: f64| 80.0 + place(value, x_range) * (WIDTH - 120.0);
    let y = |value: f64| height - 50.0 - place(value, y_range) * (height - 100.0);
    for (range, vertical) in [(x_range, true), (y_range, false)] {
        let mut exponent = range.0;
        while exponent <= range.1 {
            let value = 10f64.powf(exponent);
            let (from, to, label) = if vertical {
                (
                    (x(value), y(10f64.powf(y_range.0))),
                    (x(value), y(10f64.powf(y_range.1))),
                    (x(value), height - 32.0),
                )
            } else {
                (
                    (x(10f64.powf(x_range.0)), y(value)),
                    (x(10f64.powf(x_range.1)), y(value)),
                    (40.0, y(value) + 4.0),
                )
            };
            let _ = writeln!(
                svg,
                "<line x1=\"{:.0}\" y1=\"{:.0}\" x2=\"{:.0}\" y2=\"{:.0}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{value}</text>",
                from.0, from.1, to.0, to.1, label.0, label.1
            );
            exponent += 1.0;
        }
    }
    let path: Vec<String> = (points.iter())
        .map(|point| format!("{:.0},{:.0}", x(point.0), y(point.1)))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#2f6f9f\" stroke-width=\"2\"/>\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>\
         <text x=\"16\" y=\"36\">{}</text>",
        path.join(" "),
        WIDTH / 2.0,
        height - 10.0,
        escape(x_axis),
        escape(y_axis)
    );
    svg + "</svg>\n"
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
