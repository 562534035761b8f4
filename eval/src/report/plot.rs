//! Line plots as SVG, in two themes.
//!
//! plotters draws in the light theme's colours; [`css`] repaints the same elements for the dark
//! one, so a plot follows the page. plotters rounds to whole units, hence [`FINE`] units a pixel.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Write as _;
use std::ops::Range;

use crate::Error;

/// Units of the drawing in a pixel of the page.
const FINE: u32 = 8;
/// Size of a plot, pixels at its natural size.
const SIZE: (u32, u32) = (460, 266);
/// Size of the text, pixels; plotters writes it smaller by a quarter.
const TEXT: f64 = 14.5;
/// A curve is drawn with at most this many points.
const POINTS: usize = 240;

const INK: RGBColor = RGBColor(0x5B, 0x61, 0x6B);
const GRID: RGBColor = RGBColor(0xE7, 0xE5, 0xE0);

/// The colour of a curve and of its entry in the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// The curve the plot is about.
    First,
    /// A second curve.
    Second,
    /// Lines for comparison.
    Quiet,
}

impl Tone {
    /// Class of the legend's key, as in the style sheet.
    pub fn class(self) -> &'static str {
        match self {
            Tone::First => "first",
            Tone::Second => "second",
            Tone::Quiet => "quiet",
        }
    }

    fn colour(self) -> RGBColor {
        match self {
            Tone::First => RGBColor(0x2A, 0x78, 0x7A),
            Tone::Second => RGBColor(0xC2, 0x5B, 0x3A),
            Tone::Quiet => RGBColor(0x8A, 0x6D, 0x9E),
        }
    }
}

/// One curve: points in the order of x; points that are not finite are left out.
pub struct Curve {
    /// What the legend calls it; empty for a plot with one curve.
    pub name: &'static str,
    /// Its colour.
    pub tone: Tone,
    /// (x, y).
    pub points: Vec<(f64, f64)>,
}

/// A horizontal line with its name, to compare with.
pub struct Level {
    /// Written beside the line.
    pub name: String,
    /// Where it lies.
    pub y: f64,
}

/// A plot of curves over a common x axis.
pub struct Plot {
    /// What is plotted, with its unit: the caption.
    pub title: &'static str,
    /// The x axis's name.
    pub x_name: &'static str,
    /// The curves; the first with points decides that there is a plot at all.
    pub curves: Vec<Curve>,
    /// Lines to compare with.
    pub levels: Vec<Level>,
    /// Whether y is spaced by its logarithm (values of 0 and below are left out).
    pub logarithmic: bool,
    /// Whether y starts at 0.
    pub from_zero: bool,
    /// Writes a tick of the x axis.
    pub x_label: fn(f64) -> String,
    /// Writes a tick of the y axis.
    pub y_label: fn(f64) -> String,
}

impl Plot {
    /// The SVG element, or `None` where there are fewer than two points to draw.
    ///
    /// # Errors
    /// [`Error::Render`] if the drawing fails.
    pub fn svg(&self) -> Result<Option<String>, Error> {
        let usable = |&(x, y): &(f64, f64)| {
            x.is_finite() && y.is_finite() && !(self.logarithmic && y <= 0.0)
        };
        let curves: Vec<(Tone, Vec<(f64, f64)>)> = self
            .curves
            .iter()
            .map(|c| (c.tone, c.points.iter().copied().filter(usable).collect::<Vec<_>>()))
            .filter(|(_, points)| points.len() > 1)
            .collect();
        let mut levels: Vec<&Level> = self.levels.iter().filter(|l| usable(&(0.0, l.y))).collect();
        levels.sort_by(|a, b| b.y.total_cmp(&a.y));
        let xs = || curves.iter().flat_map(|(_, points)| points.iter().map(|p| p.0));
        let ys = || curves.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
        if xs().next().is_none() {
            return Ok(None);
        }
        let (first, last) = span(xs());
        // A run that begins at step 1 begins at 0 for the eye.
        let first = if first > 0.0 && first < last * 0.05 { 0.0 } else { first };
        let x_axis = Axis::linear((first, last), 5, Ends::Data);
        let y_span = span(ys().chain(levels.iter().map(|l| l.y)));
        let y_axis = match self.logarithmic {
            true => Axis::logarithmic(y_span, 5),
            false if self.from_zero => Axis::linear(y_span, 5, Ends::Zero),
            false => Axis::linear(y_span, 5, Ends::Ticks),
        };
        let curves = curves
            .into_iter()
            .map(|(tone, points)| (tone, thinned(&points, POINTS)))
            .collect::<Vec<_>>();
        self.draw(&x_axis, &y_axis, &curves, &levels)
            .map(Some)
            .map_err(|error| Error::Render(format!("plot {:?}: {error}", self.title)))
    }

    fn draw(
        &self,
        x_axis: &Axis,
        y_axis: &Axis,
        curves: &[(Tone, Vec<(f64, f64)>)],
        levels: &[&Level],
    ) -> Result<String, Box<dyn std::error::Error>> {
        let fine = |pixels: f64| (pixels * f64::from(FINE)) as i32;
        let ink = |pixels: f64| ("sans-serif", fine(pixels)).into_font().color(&INK);
        let mut svg = String::new();
        {
            let size = (SIZE.0 * FINE, SIZE.1 * FINE);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let mut chart = ChartBuilder::on(&area)
                .margin(fine(6.0))
                .margin_top(fine(14.0))
                .margin_right(fine(18.0))
                .x_label_area_size(fine(40.0))
                .y_label_area_size(fine(44.0))
                .build_cartesian_2d(x_axis.clone(), y_axis.clone())?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .bold_line_style(GRID.stroke_width(FINE))
                .light_line_style(TRANSPARENT)
                .axis_style(TRANSPARENT)
                .set_all_tick_mark_size(fine(5.0))
                .x_label_formatter(&|x| (self.x_label)(*x))
                .y_label_formatter(&|y| (self.y_label)(y_axis.value(*y)))
                .x_label_style(ink(TEXT))
                .y_label_style(ink(TEXT))
                .x_desc(self.x_name)
                .axis_desc_style(ink(TEXT))
                .draw()?;
            let last = x_axis.range.end;
            for (i, level) in levels.iter().enumerate() {
                let y = y_axis.place(level.y);
                let line = Tone::Quiet.colour().stroke_width(FINE);
                chart.draw_series(std::iter::once(PathElement::new(
                    vec![(x_axis.range.start, y), (last, y)],
                    line,
                )))?;
                let style = ("sans-serif", fine(TEXT)).into_font().color(&Tone::Quiet.colour());
                // The highest is named above its line, the next below: two may lie close.
                let side = if i == 0 { VPos::Bottom } else { VPos::Top };
                let style = style.pos(Pos::new(HPos::Right, side));
                chart.draw_series(std::iter::once(Text::new(
                    level.name.clone(),
                    (last, y),
                    style,
                )))?;
            }
            for (tone, points) in curves {
                let points = points.iter().map(|&(x, y)| (x, y_axis.place(y)));
                let line = tone.colour().stroke_width(FINE * 2);
                chart.draw_series(LineSeries::new(points, line))?;
            }
            area.present()?;
        }
        // The page decides how large the plot is shown; readers of the screen get the title.
        let natural = format!("width=\"{}\" height=\"{}\"", SIZE.0 * FINE, SIZE.1 * FINE);
        Ok(svg.replacen(
            &natural,
            &format!("class=\"plot\" role=\"img\" aria-label=\"{}\"", self.title),
            1,
        ))
    }
}

/// The style rules that repaint plots in the dark theme.
pub fn css() -> String {
    let mut rules = String::new();
    for (colour, variable) in [
        (INK, "--soft"),
        (GRID, "--line"),
        (Tone::First.colour(), "--first"),
        (Tone::Second.colour(), "--second"),
        (Tone::Quiet.colour(), "--quiet"),
    ] {
        let hex = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
        for property in ["fill", "stroke"] {
            let _ = writeln!(rules, ".plot [{property}=\"{hex}\"]{{{property}:var({variable})}}");
        }
    }
    rules
}

/// An axis: its range and ticks, in places (which are logarithms on a logarithmic axis).
#[derive(Clone, Debug)]
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
    logarithmic: bool,
}

/// Where a linear axis begins and ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// With the data.
    Data,
    /// At the ticks around the data.
    Ticks,
    /// At 0 and the tick above the data.
    Zero,
}

impl Axis {
    /// Ticks at multiples of 1, 2 or 5 times a power of ten, about `wanted` of them.
    fn linear((low, high): (f64, f64), wanted: usize, ends: Ends) -> Axis {
        let low = if ends == Ends::Zero { low.min(0.0) } else { low };
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
        let rough = (high - low) / wanted as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = match rough / power {
            r if r < 1.5 => power,
            r if r < 3.5 => 2.0 * power,
            r if r < 7.5 => 5.0 * power,
            _ => 10.0 * power,
        };
        let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
        let ticks: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
        let range = match ends {
            Ends::Data => low..high,
            Ends::Ticks | Ends::Zero => first as f64 * step..last as f64 * step,
        };
        Axis { range, ticks, logarithmic: false }
    }

    /// Ticks at round numbers, as many as `wanted` and two more at most while there is a choice.
    fn logarithmic((low, high): (f64, f64), wanted: usize) -> Axis {
        let (low, high) = if high > low * 1.1 { (low, high) } else { (low / 1.5, high * 1.5) };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let at = |factors: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|d| factors.iter().map(move |f| f * 10f64.powi(d)));
            all.filter(|t| (low * 0.8..=high * 1.25).contains(t)).collect()
        };
        let finest = [&[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0][..], &[1.0, 2.0, 5.0]];
        let ticks = finest.map(at).into_iter().find(|ticks| ticks.len() <= wanted + 2);
        let ticks = ticks.unwrap_or_else(|| at(&[1.0]));
        let range = (low / 1.08).ln()..(high * 1.08).ln();
        Axis { range, ticks: ticks.iter().map(|t| t.ln()).collect(), logarithmic: true }
    }

    /// Whether a place lies on the axis (up to rounding).
    fn holds(&self, place: f64) -> bool {
        let slack = (self.range.end - self.range.start) * 1e-9;
        (self.range.start - slack..=self.range.end + slack).contains(&place)
    }

    /// Where a value lies.
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.ln() } else { value }
    }

    /// The value at a place.
    fn value(&self, place: f64) -> f64 {
        if self.logarithmic { place.exp() } else { place }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        // plotters asks for the bold points and then for the light ones between: no light ones.
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().copied().filter(|t| self.holds(*t)).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// At most `limit` points, each the mean of a run of neighbours.
fn thinned(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64)> {
    let mean = |run: &[(f64, f64)]| {
        let n = run.len() as f64;
        (run.iter().map(|p| p.0).sum::<f64>() / n, run.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(points.len().div_ceil(limit).max(1)).map(mean).collect()
}
