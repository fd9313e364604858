//! Several named curves in one picture, as PNG and as SVG.
//!
//! In: [`Curves`] (title, axis labels, series of points) → out: picture files (stage 14). The loss pictures of a run and
//! the comparison of runs are drawn here and nowhere else.
//!
//! PNG text is drawn with the subset font in `fonts/` (no system font is needed); the picture is drawn
//! three times as large and averaged down, which smooths lines and letters alike. SVG text names
//! `sans-serif` and is set by the viewer.

use crate::atomic;
use crate::error::{Result, RunError};
use plotters::prelude::*;
use plotters::style::register_font;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Size of a picture in pixels.
const SIZE: (u32, u32) = (960, 600);
/// Sub-pixels per pixel and direction in a PNG.
const OVERSAMPLING: u32 = 3;
/// How far above its place plotters sets text drawn with ab_glyph, as a share of the font size: it takes half the size
/// for the height of the baseline, where this font's digits need 0.716.
const TEXT_RISE: f64 = 0.216;
/// A series of at most so many points also shows the points.
const MARKED_POINTS: usize = 24;

/// Eight colours that people with colour-blindness tell apart: Okabe and Ito's, the yellow darkened for white paper,
/// with matplotlib's blue first, which is the colour of LLaMA-Factory's loss curve.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xc8, 0x96, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x70, 0x70, 0x70),
    RGBColor(0x00, 0x00, 0x00),
];
const TEXT: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xe6, 0xe6, 0xe6);

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points in drawing order; one that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
    /// Which of the colours (counted modulo their number).
    pub colour: usize,
    /// Faint, for raw values behind a smoothed curve of the same colour.
    pub is_faint: bool,
}

/// A picture: named curves over common axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Curves {
    /// Above the picture.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// Drawn in order, later ones on top.
    pub series: Vec<Series>,
}

/// The ranges of the axes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    x: (f64, f64),
    y: (f64, f64),
}

impl Curves {
    /// Writes `<stem>.png` and `<stem>.svg`.
    ///
    /// # Errors
    /// [`RunError::Drawing`] when there is no finite point, or any I/O error, with the path.
    pub fn save(&self, stem: &Path) -> Result<()> {
        let with_ending = |ending: &str| {
            let mut path = stem.as_os_str().to_owned();
            path.push(ending);
            PathBuf::from(path)
        };
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |reason: String| RunError::Drawing { path, reason }
        };
        let png = with_ending(".png");
        atomic::write(&png, &self.to_png().map_err(failed(&png))?)?;
        let svg = with_ending(".svg");
        atomic::write(&svg, self.to_svg().map_err(failed(&svg))?.as_bytes())
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// The reason in words: no finite point, or the drawing library refuses.
    pub fn to_png(&self) -> std::result::Result<Vec<u8>, String> {
        let (width, height) = (SIZE.0 * OVERSAMPLING, SIZE.1 * OVERSAMPLING);
        let mut pixels = vec![0; (width * height * 3) as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
            self.draw(&area, OVERSAMPLING, TEXT_RISE)?;
            area.present().map_err(|e| e.to_string())?;
        }
        encode_png(&average_down(&pixels))
    }

    /// The picture as an SVG file.
    ///
    /// # Errors
    /// As [`to_png`](Curves::to_png).
    pub fn to_svg(&self) -> std::result::Result<String, String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            self.draw(&area, 1, 0.0)?;
            area.present().map_err(|e| e.to_string())?;
        }
        Ok(text)
    }

    /// Draws on any backend whose pixels are `scale` times as fine as [`SIZE`] and whose text lies too high by
    /// `text_rise` font sizes.
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, plotters::coord::Shift>,
        scale: u32,
        text_rise: f64,
    ) -> std::result::Result<(), String> {
        register_fonts();
        let window = self.window().ok_or("there is no finite value to draw")?;
        let say = |e: DrawingAreaErrorKind<DB::ErrorType>| e.to_string();
        let font = |size: u32| ("sans-serif", (size * scale) as i32).into_font().color(&TEXT);
        let rise = |size: u32| (f64::from(size * scale) * text_rise).round() as i32;
        area.fill(&WHITE).map_err(say)?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, font(20))
            .margin(14 * scale)
            .x_label_area_size(48 * scale)
            .y_label_area_size(72 * scale)
            .build_cartesian_2d(window.x.0..window.x.1, window.y.0..window.y.1)
            .map_err(say)?;
        let (x_decimals, y_decimals) = (decimals(window.x), decimals(window.y));
        chart
            .configure_mesh()
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .axis_desc_style(font(16))
            .label_style(font(14))
            .y_label_offset(rise(14))
            .x_labels(10)
            .y_labels(8)
            .max_light_lines(0)
            .bold_line_style(GRID.stroke_width(scale))
            .axis_style(TEXT.stroke_width(scale))
            .set_all_tick_mark_size(4 * scale as i32)
            .x_label_formatter(&|x| label(*x, x_decimals))
            .y_label_formatter(&|y| label(*y, y_decimals))
            .draw()
            .map_err(say)?;
        for series in &self.series {
            let style = style(series, scale);
            for line in unbroken(&series.points) {
                chart.draw_series(LineSeries::new(line.iter().copied(), style)).map_err(say)?;
                if line.len() == 1 || series.points.len() <= MARKED_POINTS {
                    let dot = |&point| Circle::new(point, 3 * scale, style.filled());
                    chart.draw_series(line.iter().map(dot)).map_err(say)?;
                }
            }
            // An empty series carries the legend, so that a line broken into pieces has one entry.
            let rise = rise(15);
            let sample =
                move |(x, y)| PathElement::new([(x, y - rise), (x + 22 * scale as i32, y - rise)], style);
            chart
                .draw_series(LineSeries::new(std::iter::empty(), style))
                .map_err(say)?
                .label(&series.name)
                .legend(sample);
        }
        if self.series.len() > 1 {
            chart
                .configure_series_labels()
                .position(self.emptiest_corner(window))
                .legend_area_size(30 * scale)
                .margin(12 * scale)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID.stroke_width(scale))
                .label_font(font(15))
                .draw()
                .map_err(say)?;
        }
        Ok(())
    }

    /// The ranges that hold every finite point, with a little air above and below.
    fn window(&self) -> Option<Window> {
        let mut points = self.series.iter().flat_map(|s| &s.points).filter(is_finite).peekable();
        points.peek()?;
        let empty = (f64::INFINITY, f64::NEG_INFINITY);
        let widen = |range: (f64, f64), value: f64| (range.0.min(value), range.1.max(value));
        let (x, y) = points.fold((empty, empty), |(x, y), point| (widen(x, point.0), widen(y, point.1)));
        Some(Window { x: padded(x, 0.01), y: padded(y, 0.06) })
    }

    /// The corner in which the legend hides the fewest points.
    fn emptiest_corner(&self, window: Window) -> SeriesLabelPosition {
        let share = |value: f64, range: (f64, f64)| (value - range.0) / (range.1 - range.0);
        let mut hidden = [0; 4];
        for point in self.series.iter().flat_map(|s| &s.points).filter(is_finite) {
            let (x, y) = (share(point.0, window.x), share(point.1, window.y));
            let corners =
                [x > 0.65 && y > 0.7, x > 0.65 && y < 0.3, x < 0.35 && y > 0.7, x < 0.35 && y < 0.3];
            for (count, is_inside) in hidden.iter_mut().zip(corners) {
                *count += usize::from(is_inside);
            }
        }
        let least = (0..4).min_by_key(|&corner| hidden[corner]).unwrap_or(0);
        match least {
            0 => SeriesLabelPosition::UpperRight,
            1 => SeriesLabelPosition::LowerRight,
            2 => SeriesLabelPosition::UpperLeft,
            _ => SeriesLabelPosition::LowerLeft,
        }
    }
}

fn register_fonts() {
    static FONT: &[u8] = include_bytes!("../fonts/DejaVuSans-latin.ttf");
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let registered = register_font("sans-serif", FontStyle::Normal, FONT);
        debug_assert!(registered.is_ok(), "the font in fonts/ is a valid TrueType file");
    });
}

fn style(series: &Series, scale: u32) -> ShapeStyle {
    let colour = COLOURS[series.colour % COLOURS.len()];
    if series.is_faint {
        colour.mix(0.45).stroke_width(scale * 3 / 2)
    } else {
        colour.mix(1.0).stroke_width(2 * scale)
    }
}

fn is_finite(point: &&(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

/// The runs of finite points.
fn unbroken(points: &[(f64, f64)]) -> impl Iterator<Item = &[(f64, f64)]> {
    points.split(|point| !is_finite(&point)).filter(|line| !line.is_empty())
}

/// A range widened by `share` on both sides; one of no width is widened to have some.
fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let width = high - low;
    let air = if width > 0.0 { width * share } else { low.abs().max(1.0) * 0.05 };
    (low - air, high + air)
}

/// Decimals that tell about ten ticks of a range apart.
fn decimals((low, high): (f64, f64)) -> usize {
    (-((high - low) / 10.0).log10()).ceil().clamp(0.0, 12.0) as usize
}

fn label(value: f64, decimals: usize) -> String {
    let is_exponent = decimals > 6 || value.abs() >= 1e7;
    let text = if is_exponent { format!("{value:.2e}") } else { format!("{value:.decimals$}") };
    // `-0.0` is what rounding leaves of a tick at zero.
    if text.trim_start_matches(['-', '0', '.']).is_empty() {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

/// Means over squares of [`OVERSAMPLING`] pixels, three channels.
fn average_down(pixels: &[u8]) -> Vec<u8> {
    let (width, height, n) = (SIZE.0 as usize, SIZE.1 as usize, OVERSAMPLING as usize);
    let mut small = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let mut sum = 0;
                for dy in 0..n {
                    let row = (y * n + dy) * width * n;
                    sum += (0..n).map(|dx| u32::from(pixels[(row + x * n + dx) * 3 + channel])).sum::<u32>();
                }
                small.push((sum / (n * n) as u32) as u8);
            }
        }
    }
    small
}

fn encode_png(pixels: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Best);
    encoder.set_filter(png::FilterType::NoFilter); // A third of the size of the other filters: large even areas.
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(pixels).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves(points: Vec<(f64, f64)>) -> Curves {
        let series = vec![
            Series { name: "original".into(), points: points.clone(), colour: 0, is_faint: true },
            Series { name: "smoothed <b>".into(), points, colour: 0, is_faint: false },
        ];
        Curves { title: "training loss".into(), x_label: "step".into(), y_label: "loss".into(), series }
    }

    fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(png).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    fn dark_pixels(pixels: &[u8], rows: std::ops::Range<usize>) -> usize {
        let row = SIZE.0 as usize * 3;
        pixels[rows.start * row..rows.end * row].chunks(3).filter(|p| p.iter().all(|&c| c < 120)).count()
    }

    #[test]
    fn a_png_has_the_size_the_curve_and_readable_text() {
        let png = curves((1..100).map(|i| (f64::from(i), 3.0 / f64::from(i))).collect()).to_png().unwrap();
        let (width, height, pixels) = decode(&png);
        assert_eq!((width, height), SIZE);
        let blue = pixels.chunks(3).filter(|p| p[2] > 150 && p[0] < 80).count();
        assert!(blue > 500, "{blue} pixels of the curve");
        // The title is in the first 50 rows, above the axes: without a font there would be nothing.
        assert!(dark_pixels(&pixels, 0..50) > 100);
    }

    #[test]
    fn an_svg_has_the_title_the_labels_and_escaped_names() {
        let svg = curves(vec![(0.0, 1.0), (1.0, 2.0)]).to_svg().unwrap();
        for text in ["training loss", "step", "original", "smoothed &lt;b&gt;"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn one_point_is_drawn_as_a_dot() {
        let (_, _, pixels) = decode(&curves(vec![(5.0, 1.0)]).to_png().unwrap());
        let blue = pixels.chunks(3).filter(|p| p[2] > 150 && p[0] < 80).count();
        assert!(blue > 10, "{blue}");
    }

    #[test]
    fn a_value_that_is_not_finite_interrupts_the_line() {
        let points = [(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, f64::INFINITY)];
        let lines: Vec<_> = unbroken(&points).collect();
        assert_eq!(lines, [&points[0..2], &points[3..4]]);
    }

    #[test]
    fn nothing_to_draw_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = curves(vec![(1.0, f64::NAN)]).save(&folder.path().join("training_loss")).unwrap_err();
        assert!(error.to_string().contains("training_loss.png"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_legend_goes_where_the_curve_is_not() {
        let falling = curves((0..50).map(|i| (f64::from(i), (-f64::from(i) / 8.0).exp())).collect());
        assert_eq!(falling.emptiest_corner(falling.window().unwrap()), SeriesLabelPosition::UpperRight);
        let rising = curves((0..50).map(|i| (f64::from(i), -(-f64::from(i) / 8.0).exp())).collect());
        assert_eq!(rising.emptiest_corner(rising.window().unwrap()), SeriesLabelPosition::LowerRight);
    }

    #[test]
    fn ticks_have_the_decimals_that_tell_them_apart() {
        assert_eq!(label(2.5, decimals((0.0, 5.0))), "2.5");
        assert_eq!(label(1500.0, decimals((0.0, 9000.0))), "1500");
        assert_eq!(label(0.0015, decimals((0.001, 0.002))), "0.0015");
        assert_eq!(label(-0.0, 1), "0.0");
        assert_eq!(label(-0.5, 1), "-0.5");
    }
}
