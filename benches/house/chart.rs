//! Curves as an SVG: small multiples, both axes logarithmic.
//!
//! It may not know what was measured.

use std::fmt::Write;

/// One small picture.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) curves: Vec<Curve>,
}

pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// How many there are, and nanoseconds.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Two panels beside each other, with what stands around each plot.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 350.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 116.0;

/// Colours that differ by lightness too, on white and on black; and dashes, for whoever sees none.
const STYLE: &str = "
  text { font: 12px system-ui, sans-serif; }
  .title { font-weight: 600; font-size: 14px; }
  .grid, .curve { fill: none; }
  .curve { stroke-width: 2; }
  .c1 { stroke-dasharray: 7 3; } .c2 { stroke-dasharray: 2 3; } .c3 { stroke-dasharray: 9 3 2 3; }
  .c4 { stroke-dasharray: 1 3; }
  .paper { fill: #ffffff; } text { fill: #1f2328; } .grid { stroke: #d1d9e0; }
  .c0 { stroke: #0550ae; } .c1 { stroke: #bc4c00; } .c2 { stroke: #116329; } .c3 { stroke: #8250df; } .c4 { stroke: #57606a; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } text { fill: #e6edf3; } .grid { stroke: #3d444d; }
    .c0 { stroke: #79c0ff; } .c1 { stroke: #ffa657; } .c2 { stroke: #56d364; } .c3 { stroke: #d2a8ff; } .c4 { stroke: #9198a1; }
  }
";

/// The powers of ten around some values.
struct Axis {
    low: i32,
    high: i32,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (least, greatest) = values.fold((f64::INFINITY, 1.0_f64), |(least, greatest), it| {
            (least.min(it), greatest.max(it))
        });
        let low = least.max(1.0).log10().floor() as i32;
        let high = greatest.log10().ceil() as i32;
        Self {
            low,
            high: high.max(low + 1),
        }
    }

    fn powers(&self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10_f64.powi(power))
    }

    /// How far along the axis `value` is, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let along = value.max(1.0).log10() - f64::from(self.low);
        along / f64::from(self.high - self.low)
    }
}

/// The panels, two in a row; all have the same scale of time.
pub(crate) fn svg(panels: &[Panel]) -> String {
    let curves = panels.iter().flat_map(|panel| &panel.curves);
    let times = Axis::around(curves.flat_map(|curve| curve.points.iter().map(|(_, time)| *time)));
    let (width, height) = (WIDTH * 2.0, HEIGHT * panels.len().div_ceil(2) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"How the time that is added grows\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        let (left, top) = (WIDTH * (at % 2) as f64, HEIGHT * (at / 2) as f64);
        let _ = writeln!(svg, "<g transform=\"translate({left} {top})\">");
        draw(&mut svg, panel, &times);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, panel: &Panel, times: &Axis) {
    let points = panel.curves.iter().flat_map(|curve| &curve.points);
    let sizes = Axis::around(points.map(|(size, _)| *size));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |size| LEFT + sizes.at(size) * (right - LEFT);
    let y = |time| bottom - times.at(time) * (bottom - TOP);
    text(svg, (LEFT, TOP - 16.0), "start", panel.title, "title");
    for power in sizes.powers() {
        let x = x(power);
        line(svg, (x, TOP), (x, bottom));
        text(svg, (x, bottom + 16.0), "middle", &count(power), "");
    }
    for power in times.powers() {
        let y = y(power);
        line(svg, (LEFT, y), (right, y));
        text(svg, (LEFT - 6.0, y + 4.0), "end", &time(power), "");
    }
    let middle = (LEFT + right) / 2.0;
    text(svg, (middle, bottom + 34.0), "middle", panel.unit, "");
    for (at, curve) in panel.curves.iter().enumerate() {
        let points = curve.points.iter();
        let points = points.map(|(size, time)| format!("{:.1},{:.1}", x(*size), y(*time)));
        let points = points.collect::<Vec<_>>().join(" ");
        let _ = writeln!(svg, "<polyline class=\"curve c{at}\" points=\"{points}\"/>");
        // The legend: two in a row.
        let left = LEFT + (at % 2) as f64 * 200.0;
        let y = bottom + 56.0 + (at / 2) as f64 * 20.0;
        let _ = writeln!(
            svg,
            "<path class=\"curve c{at}\" d=\"M{left} {}h28\"/>",
            y - 4.0
        );
        text(svg, (left + 36.0, y), "start", curve.name, "");
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x, y), (to_x, to_y)) = (from, to);
    let _ = writeln!(
        svg,
        "<path class=\"grid\" d=\"M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}\"/>"
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str, class: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn count(power: f64) -> String {
    if power < 1e3 {
        format!("{power}")
    } else {
        format!("{},000", power / 1e3)
    }
}

fn time(power: f64) -> String {
    if power < 1e3 {
        format!("{power} ns")
    } else if power < 1e6 {
        format!("{} µs", power / 1e3)
    } else {
        format!("{} ms", power / 1e6)
    }
}
