//! The text of a page of a PDF file: glyphs with their places (ISO 32000-1, 9.4), then lines.

use std::collections::HashMap;
use std::rc::Rc;

use hayro_syntax::content::UntypedIter;
use hayro_syntax::object::{Dict, Name, Object, Stream};
use hayro_syntax::page::Resources;

use super::pdf_font::Font;

/// Glyphs of a page that are looked at.
const GLYPHS: usize = 1 << 20;
/// Operators of a page that are looked at.
const OPERATORS: usize = 1 << 24;
/// Forms in forms.
const FORMS: usize = 8;
/// A gap of so many sizes is a space, and of so many the next column of a table.
const SPACE: f64 = 0.17;
const COLUMN: f64 = 2.0;

/// `x' = a x + c y + e`, `y' = b x + d y + f`.
#[derive(Clone, Copy)]
struct Matrix([f64; 6]);

impl Matrix {
    const IDENTITY: Matrix = Matrix([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);

    /// First this, then `next`.
    fn then(self, next: Matrix) -> Matrix {
        let ([a, b, c, d, e, f], [m, n, o, p, q, r]) = (self.0, next.0);
        Matrix([
            a * m + b * o,
            a * n + b * p,
            c * m + d * o,
            c * n + d * p,
            e * m + f * o + q,
            e * n + f * p + r,
        ])
    }

    fn moved(x: f64, y: f64) -> Matrix {
        Matrix([1.0, 0.0, 0.0, 1.0, x, y])
    }
}

/// A line of text on a page.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its text.
    pub text: String,
    /// Where it begins and ends along its direction, and its baseline across it, in points.
    pub start: f64,
    /// See `start`.
    pub end: f64,
    /// See `start`.
    pub base: f64,
    /// Size of its type, in points.
    pub size: f64,
    /// Direction, radians.
    pub angle: f64,
}

/// State of the text, kept by `q` and restored by `Q`.
#[derive(Clone)]
struct State {
    ctm: Matrix,
    font: Option<Rc<Font>>,
    size: f64,
    char_space: f64,
    word_space: f64,
    scale: f64,
    leading: f64,
    rise: f64,
}

/// Reads pages; fonts are shared between them.
#[derive(Default)]
pub struct Pages {
    fonts: HashMap<(u32, i32), Rc<Font>>,
    operators: usize,
    glyphs: usize,
    /// Lines of the page.
    pub lines: Vec<Line>,
    /// Glyphs of which the text isn't known.
    pub unknown: u64,
}

type Decoded<'d> = &'d dyn Fn(&Stream<'_>) -> Option<Vec<u8>>;

impl Pages {
    /// The lines of a page.
    pub fn read(
        &mut self,
        content: &[u8],
        resources: &Resources<'_>,
        decoded: Decoded<'_>,
    ) -> Vec<Line> {
        (self.operators, self.glyphs) = (0, 0);
        let state = State {
            ctm: Matrix::IDENTITY,
            font: None,
            size: 1.0,
            char_space: 0.0,
            word_space: 0.0,
            scale: 1.0,
            leading: 0.0,
            rise: 0.0,
        };
        self.content(content, resources, state, decoded, 0);
        std::mem::take(&mut self.lines)
    }

    fn content(
        &mut self,
        content: &[u8],
        resources: &Resources<'_>,
        mut state: State,
        decoded: Decoded<'_>,
        depth: usize,
    ) {
        let mut operators = UntypedIter::new(content);
        let mut stack = Vec::new();
        let (mut text, mut line) = (Matrix::IDENTITY, Matrix::IDENTITY);
        while let Some(instruction) = operators.next() {
            self.operators += 1;
            if self.operators > OPERATORS || self.glyphs > GLYPHS {
                return;
            }
            let operands: Vec<&Object<'_>> = instruction.operands().collect();
            let number = |i: usize| match operands.get(i) {
                Some(Object::Number(n)) => n.as_f64(),
                _ => 0.0,
            };
            let name = || match operands.first() {
                Some(Object::Name(name)) => Some(name),
                _ => None,
            };
            let matrix = || Matrix([0, 1, 2, 3, 4, 5].map(number));
            let next_line = |line: Matrix, x: f64, y: f64| Matrix::moved(x, y).then(line);
            let operator: &[u8] = instruction.operator;
            match operator {
                b"q" if stack.len() < 256 => stack.push(state.clone()),
                b"Q" => state = stack.pop().unwrap_or(state),
                b"cm" => state.ctm = matrix().then(state.ctm),
                b"BT" => (text, line) = (Matrix::IDENTITY, Matrix::IDENTITY),
                b"Tc" => state.char_space = number(0),
                b"Tw" => state.word_space = number(0),
                b"Tz" => state.scale = number(0) / 100.0,
                b"TL" => state.leading = number(0),
                b"Ts" => state.rise = number(0),
                b"Tf" => {
                    state.size = number(1);
                    state.font = name().and_then(|n| self.font(resources, n, decoded));
                }
                b"Td" | b"TD" => {
                    if operator == b"TD" {
                        state.leading = -number(1);
                    }
                    line = next_line(line, number(0), number(1));
                    text = line;
                }
                b"Tm" => (text, line) = (matrix(), matrix()),
                b"T*" => {
                    line = next_line(line, 0.0, -state.leading);
                    text = line;
                }
                b"Tj" | b"'" | b"\"" => {
                    if operator == b"\"" {
                        (state.word_space, state.char_space) = (number(0), number(1));
                    }
                    if operator != b"Tj" {
                        line = next_line(line, 0.0, -state.leading);
                        text = line;
                    }
                    if let Some(Object::String(string)) = operands.last() {
                        text = self.show(string.as_bytes(), &state, text);
                    }
                }
                b"TJ" => {
                    if let Some(Object::Array(array)) = operands.first() {
                        for item in array.iter::<Object<'_>>() {
                            match item {
                                Object::String(s) => text = self.show(s.as_bytes(), &state, text),
                                Object::Number(n) => {
                                    let x = -n.as_f64() / 1000.0 * state.size * state.scale;
                                    text = Matrix::moved(x, 0.0).then(text);
                                }
                                _ => {}
                            }
                        }
                    }
                }
                b"Do" if depth < FORMS => {
                    let Some(form) = name().and_then(|n| resources.get_x_object(n)) else {
                        continue;
                    };
                    let dict = form.dict();
                    if dict.get::<Name<'_>>("Subtype").is_none_or(|n| n.as_str() != "Form") {
                        continue;
                    }
                    let own = dict.get::<Dict<'_>>("Resources").map(Resources::new);
                    let mut inner = state.clone();
                    if let Some(m) = dict.get::<[f64; 6]>("Matrix") {
                        inner.ctm = Matrix(m).then(inner.ctm);
                    }
                    if let Some(content) = decoded(&form) {
                        let resources = own.as_ref().unwrap_or(resources);
                        self.content(&content, resources, inner, decoded, depth + 1);
                    }
                }
                _ => {}
            }
        }
    }

    fn font(
        &mut self,
        resources: &Resources<'_>,
        name: &Name<'_>,
        decoded: Decoded<'_>,
    ) -> Option<Rc<Font>> {
        let id = resources.fonts.get_ref(name).map(|r| (r.obj_number, r.gen_number));
        if let Some(font) = id.and_then(|id| self.fonts.get(&id)) {
            return Some(font.clone());
        }
        let font = Rc::new(Font::new(&resources.get_font(name)?, decoded));
        if let Some(id) = id {
            self.fonts.insert(id, font.clone());
        }
        Some(font)
    }

    /// Shows a string; returns where the text goes on.
    fn show(&mut self, string: &[u8], state: &State, mut text: Matrix) -> Matrix {
        let Some(font) = state.font.clone() else { return text };
        for glyph in font.glyphs(string) {
            self.glyphs += 1;
            let word = if glyph.space { state.word_space } else { 0.0 };
            let advance = (glyph.width * state.size + state.char_space + word) * state.scale;
            let at = Matrix::moved(0.0, state.rise).then(text).then(state.ctm).0;
            text = Matrix::moved(advance, 0.0).then(text);
            match &glyph.text {
                Some(t) => {
                    let width = glyph.width * state.size * state.scale * at[0].hypot(at[1]);
                    let size = (state.size * at[2].hypot(at[3])).abs();
                    self.place(t, at, width, size);
                }
                None => self.unknown += 1,
            }
        }
        text
    }

    /// Adds a glyph to the line that it continues, or begins one.
    fn place(&mut self, text: &str, at: [f64; 6], width: f64, size: f64) {
        if !(size.is_finite() && width.is_finite() && size > 0.0) {
            return;
        }
        let angle = at[1].atan2(at[0]);
        let (sin, cos) = angle.sin_cos();
        let (along, across) = (at[4] * cos + at[5] * sin, at[5] * cos - at[4] * sin);
        let blank = text.chars().all(char::is_whitespace);
        if let Some(line) = self.lines.last_mut() {
            let em = line.size.max(size);
            let gap = along - line.end;
            let same = (line.angle - angle).abs() < 0.02 && (line.base - across).abs() < em * 0.45;
            // The same glyph again, a little to the side, is how some make bold type.
            if same && line.text.ends_with(text) && (gap + width).abs() < em * 0.12 && !blank {
                return;
            }
            if same && gap > -em * 0.6 {
                let spaced = line.text.ends_with(char::is_whitespace);
                if gap > em * COLUMN && !blank {
                    line.text.truncate(line.text.trim_end().len());
                    line.text += " | ";
                } else if gap > em * SPACE && !blank && !spaced {
                    line.text.push(' ');
                }
                if !blank {
                    line.text += text;
                    line.end = along + width;
                } else if gap.abs() <= em * COLUMN {
                    if !spaced {
                        line.text.push(' ');
                    }
                    line.end = along + width;
                }
                return;
            }
        }
        if !blank {
            let (start, end) = (along, along + width);
            self.lines.push(Line { text: text.to_string(), start, end, base: across, size, angle });
        }
    }
}
