//! The way back: rows of f32 to blocks.
//!
//! Plain types round. Q8_0, Q4_0 and Q5_1 take the scale that puts the largest element on the last
//! code, as ggml's reference does, bit for bit. The K types and Q5_0, which stands in for them, and
//! Q4_0 where importance is told, search for the scales with the least weighted square of the error:
//! from a grid of scales, each with its codes and then, for these codes, the best scale (least
//! squares).
//!
//! Everything is plain arithmetic of f32 in a fixed order: the same bytes on every machine.

use half::{bf16, f16};
use thiserror::Error;

use super::BlockType::{self, *};
use super::SUPER;

/// A value that a type can't hold.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("element {at} is {value}, which {kind} can't hold", kind = kind.name())]
pub struct Unfit {
    /// Which element.
    pub at: usize,
    /// What it is.
    pub value: f32,
    /// The type.
    pub kind: BlockType,
}

/// Elements that are computed with side by side.
const LANES: usize = 8;
/// Adding and subtracting it rounds to the nearest whole number (of two, the even one), for numbers
/// of fewer than 22 bits.
const ROUND: f32 = 12_582_912.0;

fn round(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

impl BlockType {
    /// The types that [`BlockType::narrow`] makes.
    pub const NARROW: [BlockType; 10] = [F32, F16, BF16, Q4_0, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K];

    /// Narrows whole blocks. `importance`: how much the error of each element counts (more than 0 is
    /// not asked for); plain types, Q8_0 and Q5_1 don't look at it.
    ///
    /// # Errors
    /// An element that is no number, or too large for the type.
    ///
    /// # Panics
    /// If `from` and `to` are not the same number of whole blocks, `importance` is of another length,
    /// or the type is not of [`BlockType::NARROW`].
    pub fn narrow(
        self,
        from: &[f32],
        importance: Option<&[f32]>,
        to: &mut [u8],
    ) -> Result<(), Unfit> {
        let (bytes, elements) = (self.bytes(), self.elements());
        assert!(
            to.len().is_multiple_of(bytes) && to.len() / bytes * elements == from.len(),
            "{} elements for {} bytes of {}",
            from.len(),
            to.len(),
            self.name()
        );
        assert!(importance.is_none_or(|w| w.len() == from.len()), "an importance an element");
        if let Some(at) = from.iter().position(|x| !x.is_finite()) {
            return Err(Unfit { at, value: from[at], kind: self });
        }
        let blocks = from.chunks_exact(elements).zip(to.chunks_exact_mut(bytes));
        for (i, (x, b)) in blocks.enumerate() {
            let weights = importance.map(|w| &w[i * elements..(i + 1) * elements]);
            let fits = match self {
                F32 => {
                    b.copy_from_slice(&x[0].to_le_bytes());
                    true
                }
                F16 => put_half(b, 0, x[0]).is_some(),
                BF16 => {
                    let y = bf16::from_f32(x[0]);
                    b.copy_from_slice(&y.to_le_bytes());
                    y.is_finite()
                }
                Q8_0 => q8_0(x, b),
                Q4_0 => match weights {
                    None => q4_0(x, b),
                    Some(w) => q4_0_searched(x, w, b),
                },
                Q5_0 => q5_0(x, weights, b),
                Q5_1 => q5_1(x, b),
                Q4_K => q4_k(x, weights, b),
                Q5_K => q5_k(x, weights, b),
                Q6_K => q6_k(x, weights, b),
                other => panic!("nothing is made {}", other.name()),
            };
            if !fits {
                // Scales follow from the largest element.
                let at = largest(x);
                return Err(Unfit { at: i * elements + at, value: x[at], kind: self });
            }
        }
        Ok(())
    }
}

/// The element of the largest magnitude, the first of several.
fn largest(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i].abs() > x[best].abs() { i } else { best })
}

/// Writes a number of 16 bits and tells what it became; `None` if it is too large.
fn put_half(b: &mut [u8], at: usize, x: f32) -> Option<f32> {
    let half = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.is_finite().then(|| half.to_f32())
}

fn q8_0(x: &[f32], b: &mut [u8]) -> bool {
    let d = x[largest(x)].abs() / 127.0;
    let inverse = inverse(d);
    // Away from 0 at halves, as the reference.
    b[2..].iter_mut().zip(x).for_each(|(b, x)| *b = (x * inverse).round() as i8 as u8);
    put_half(b, 0, d).is_some()
}

fn q4_0(x: &[f32], b: &mut [u8]) -> bool {
    let d = x[largest(x)] / -8.0;
    let inverse = inverse(d);
    let code = |x: f32| (x * inverse + 8.5).min(15.0) as u8;
    put_nibbles(&std::array::from_fn(|i| code(x[i])), &mut b[2..]);
    put_half(b, 0, d).is_some()
}

fn q5_1(x: &[f32], b: &mut [u8]) -> bool {
    let low = x.iter().fold(f32::INFINITY, |m, x| m.min(*x));
    let d = (x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x)) - low) / 31.0;
    let inverse = inverse(d);
    let code = |x: f32| ((x - low) * inverse + 0.5).min(31.0) as u8;
    put_fifths(&std::array::from_fn(|i| code(x[i])), &mut b[4..]);
    put_half(b, 0, d).and(put_half(b, 2, low)).is_some()
}

fn q4_0_searched(x: &[f32], w: &[f32], b: &mut [u8]) -> bool {
    let Some(d) = put_half(b, 0, symmetric(x, &weigh::<32>(x, Some(w), 32), 8.0)) else {
        return false;
    };
    put_nibbles(&symmetric_codes::<32>(x, d, 8.0), &mut b[2..]);
    true
}

fn q5_0(x: &[f32], importance: Option<&[f32]>, b: &mut [u8]) -> bool {
    let Some(d) = put_half(b, 0, symmetric(x, &weigh::<32>(x, importance, 32), 16.0)) else {
        return false;
    };
    put_fifths(&symmetric_codes::<32>(x, d, 16.0), &mut b[2..]);
    true
}

/// 32 codes of four bits, the first 16 in the low halves.
fn put_nibbles(codes: &[u8; 32], b: &mut [u8]) {
    b[..16].iter_mut().enumerate().for_each(|(i, b)| *b = codes[i] & 15 | codes[i + 16] << 4);
}

/// 32 codes of five bits: the fifth ones in a word, then the others.
fn put_fifths(codes: &[u8; 32], b: &mut [u8]) {
    let high = (0..32).fold(0u32, |word, i| word | u32::from(codes[i] >> 4) << i);
    b[..4].copy_from_slice(&high.to_le_bytes());
    put_nibbles(codes, &mut b[4..]);
}

/// How much each element's error counts, of parts of some elements that share a scale. Large elements
/// count more than small ones: they are seldom, and without importance this is what is known.
fn weigh<const N: usize>(x: &[f32], importance: Option<&[f32]>, part: usize) -> [f32; N] {
    let mut w = [0.0; N];
    for (w, x) in w.chunks_exact_mut(part).zip(x.chunks_exact(part)) {
        let squares: f32 = x.iter().map(|x| x * x).sum();
        let typical = (squares / part as f32).sqrt();
        w.iter_mut().zip(x).for_each(|(w, x)| *w = typical + x.abs());
    }
    if let Some(importance) = importance {
        // What was never used must not count for nothing.
        let least = importance.iter().sum::<f32>() / N as f32 * 1e-3;
        w.iter_mut().zip(importance).for_each(|(w, i)| *w *= i.max(least));
    }
    // Only proportions matter.
    let most = w.iter().fold(f32::MIN_POSITIVE, |m, w| m.max(*w));
    w.map(|w| w / most)
}

/// Sums over lanes in a fixed order.
#[derive(Clone, Copy)]
struct Sums([f32; LANES]);

impl Sums {
    const ZERO: Sums = Sums([0.0; LANES]);

    fn total(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}

/// The scale `d` whose codes `-levels ..= levels - 1` have the least weighted squared error; 0 if all
/// is 0. Elements must be finite, weights at most 1.
fn symmetric(x: &[f32], w: &[f32], levels: f32) -> f32 {
    let extreme = x[largest(x)];
    if extreme == 0.0 || !(1.0 / extreme).is_finite() {
        return 0.0;
    }
    let (mut best, mut scale) = (0.0, extreme / -levels);
    // The largest element on the last code, and a little on either side of it.
    for step in -10..=6 {
        let inverse = -(levels + step as f32 * 0.125) / extreme;
        let (mut xq, mut qq) = (Sums::ZERO, Sums::ZERO);
        for (x, w) in x.chunks_exact(LANES).zip(w.chunks_exact(LANES)) {
            for l in 0..LANES {
                let q = round(x[l] * inverse).clamp(-levels, levels - 1.0);
                xq.0[l] += w[l] * (x[l] * inverse) * q;
                qq.0[l] += w[l] * q * q;
            }
        }
        // With the best scale for these codes the error is less by this. (Elements are taken in units of
        // the scale, so that nothing overflows.)
        let (xq, qq) = (xq.total(), qq.total());
        let (units, gain) = (xq / qq, xq * xq / qq / (inverse * inverse));
        if qq > 0.0 && gain > best {
            (best, scale) = (gain, units / inverse);
        }
    }
    scale
}

/// Codes of elements for a scale, from 0 on.
fn symmetric_codes<const N: usize>(x: &[f32], d: f32, levels: f32) -> [u8; N] {
    let inverse = inverse(d);
    std::array::from_fn(|i| (round((x[i] * inverse).clamp(-levels, levels - 1.0)) + levels) as u8)
}

fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// `x = scale·q - least` with codes `q` from 0 to some level; both numbers at least 0.
#[derive(Clone, Copy, Default)]
struct Line {
    scale: f32,
    least: f32,
}

impl Line {
    fn code(self, inverse: f32, levels: f32, x: f32) -> f32 {
        round(((x + self.least) * inverse).clamp(0.0, levels))
    }

    /// The weighted squared error.
    fn error(self, x: &[f32], w: &[f32], levels: f32) -> f32 {
        let inverse = inverse(self.scale);
        let mut sums = Sums::ZERO;
        for (x, w) in x.chunks_exact(LANES).zip(w.chunks_exact(LANES)) {
            for l in 0..LANES {
                let q = self.code(inverse, levels, x[l]);
                let off = self.scale * q - self.least - x[l];
                sums.0[l] += w[l] * off * off;
            }
        }
        sums.total()
    }

    /// The best line for the codes that this one gives, and its error.
    fn refit(self, x: &[f32], w: &[f32], levels: f32) -> Line {
        let inverse = inverse(self.scale);
        let [mut ws, mut wx, mut wq, mut wqq, mut wqx] = [Sums::ZERO; 5];
        for (x, w) in x.chunks_exact(LANES).zip(w.chunks_exact(LANES)) {
            for l in 0..LANES {
                let q = self.code(inverse, levels, x[l]);
                ws.0[l] += w[l];
                wx.0[l] += w[l] * x[l];
                wq.0[l] += w[l] * q;
                wqq.0[l] += w[l] * q * q;
                wqx.0[l] += w[l] * q * x[l];
            }
        }
        let [ws, wx, wq, wqq, wqx] = [ws, wx, wq, wqq, wqx].map(|s| f64::from(s.total()));
        let (mut scale, mut least) = (0.0, 0.0);
        let determinant = ws * wqq - wq * wq;
        if determinant > 1e-9 * ws * wqq {
            scale = (ws * wqx - wq * wx) / determinant;
            least = (wq * wqx - wqq * wx) / determinant;
        }
        if !(scale > 0.0 && least >= 0.0) && wqq > 0.0 {
            (scale, least) = ((wqx / wqq).max(0.0), 0.0);
        }
        Line { scale: scale as f32, least: least as f32 }
    }
}

/// The best line for 32 elements.
fn line(x: &[f32], w: &[f32], levels: f32) -> Line {
    let low = x.iter().fold(0.0f32, |m, x| m.min(*x));
    let high = x.iter().fold(low, |m, x| m.max(*x));
    let range = high - low;
    if !(range > 0.0 && (levels / range).is_finite()) {
        return Line { scale: 0.0, least: -low };
    }
    let start = Line { scale: range / levels, least: -low };
    let (mut best, mut error) = (start, start.error(x, w, levels));
    for step in -6..=10 {
        let tried = Line { scale: range / (levels + step as f32 * 0.125), least: -low };
        let fitted = tried.refit(x, w, levels);
        let fitted = fitted.refit(x, w, levels);
        let off = fitted.error(x, w, levels);
        if off < error {
            (best, error) = (fitted, off);
        }
    }
    best
}

/// A block of lines: 8 of 32 elements whose numbers are multiples, of six bits, of two scales.
struct Lines {
    d: f32,
    dmin: f32,
    scales: [u8; 8],
    leasts: [u8; 8],
}

impl Lines {
    fn line(&self, j: usize) -> Line {
        Line {
            scale: self.d * f32::from(self.scales[j]),
            least: self.dmin * f32::from(self.leasts[j]),
        }
    }

    /// `None` if they are too large for the format.
    fn of(x: &[f32], w: &[f32], levels: f32) -> Option<Lines> {
        let parts = || x.chunks_exact(32).zip(w.chunks_exact(32));
        let mut wanted = [Line::default(); 8];
        wanted.iter_mut().zip(parts()).for_each(|(line_of, (x, w))| *line_of = line(x, w, levels));
        let most = |number: fn(&Line) -> f32| wanted.iter().map(number).fold(0.0, f32::max) / 63.0;
        let (d, dmin) = (to_half(most(|l| l.scale))?, to_half(most(|l| l.least))?);
        let mut lines = Lines { d, dmin, scales: [0; 8], leasts: [0; 8] };
        lines.choose(&wanted, x, w, levels);
        let error = lines.error(x, w, levels);
        // With the multiples fixed, the two scales can be better.
        if let Some((d, dmin)) = lines.refit(x, w, levels) {
            let mut tried = Lines { d, dmin, ..lines };
            tried.choose(&wanted, x, w, levels);
            if tried.error(x, w, levels) < error {
                lines = tried;
            }
        }
        Some(lines)
    }

    /// The multiples nearest to what is wanted, or beside them, whatever is best.
    fn choose(&mut self, wanted: &[Line; 8], x: &[f32], w: &[f32], levels: f32) {
        let multiple = |x: f32, d: f32| round((x * inverse(d)).clamp(0.0, 63.0)) as i32;
        for (j, (x, w)) in x.chunks_exact(32).zip(w.chunks_exact(32)).enumerate() {
            let scale = multiple(wanted[j].scale, self.d);
            let least = multiple(wanted[j].least, self.dmin);
            let mut best = f32::INFINITY;
            for (s, m) in
                (scale - 1..=scale + 1).flat_map(|s| (least - 1..=least + 1).map(move |m| (s, m)))
            {
                if !(0..64).contains(&s) || !(0..64).contains(&m) {
                    continue;
                }
                let line = Line { scale: self.d * s as f32, least: self.dmin * m as f32 };
                let error = line.error(x, w, levels);
                if error < best {
                    (best, self.scales[j], self.leasts[j]) = (error, s as u8, m as u8);
                }
            }
        }
    }

    fn error(&self, x: &[f32], w: &[f32], levels: f32) -> f32 {
        let parts = x.chunks_exact(32).zip(w.chunks_exact(32)).enumerate();
        parts.map(|(j, (x, w))| self.line(j).error(x, w, levels)).sum()
    }

    /// The two scales that are best for the codes that these give.
    fn refit(&self, x: &[f32], w: &[f32], levels: f32) -> Option<(f32, f32)> {
        // x = d·a - dmin·b with a = scale·q, b = least.
        let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0f64; 5];
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            let line = self.line(i / 32);
            let q = line.code(inverse(line.scale), levels, *x);
            let a = f64::from(self.scales[i / 32]) * f64::from(q);
            let b = -f64::from(self.leasts[i / 32]);
            let (x, w) = (f64::from(*x), f64::from(*w));
            aa += w * a * a;
            ab += w * a * b;
            bb += w * b * b;
            ax += w * a * x;
            bx += w * b * x;
        }
        let determinant = aa * bb - ab * ab;
        let (d, dmin) = if determinant > 1e-9 * aa * bb {
            ((bb * ax - ab * bx) / determinant, (aa * bx - ab * ax) / determinant)
        } else if aa > 0.0 {
            (ax / aa, 0.0)
        } else {
            return None;
        };
        (d >= 0.0 && dmin >= 0.0).then_some(())?;
        Some((to_half(d as f32)?, to_half(dmin as f32)?))
    }

    /// The twelve bytes of scales and leasts, and the code of each element.
    fn put(&self, x: &[f32], levels: f32, b: &mut [u8]) -> [u8; SUPER] {
        b[0..2].copy_from_slice(&f16::from_f32(self.d).to_le_bytes());
        b[2..4].copy_from_slice(&f16::from_f32(self.dmin).to_le_bytes());
        let packed = &mut b[4..16];
        for i in 0..4 {
            let (late_scale, late_least) = (self.scales[i + 4], self.leasts[i + 4]);
            packed[i] = self.scales[i] | late_scale >> 4 << 6;
            packed[i + 4] = self.leasts[i] | late_least >> 4 << 6;
            packed[i + 8] = late_scale & 15 | late_least << 4;
        }
        let lines: [Line; 8] = std::array::from_fn(|j| self.line(j));
        std::array::from_fn(|i| {
            let line = lines[i / 32];
            line.code(inverse(line.scale), levels, x[i]) as u8
        })
    }
}

/// What it becomes in 16 bits; `None` if it is too large.
fn to_half(x: f32) -> Option<f32> {
    let half = f16::from_f32(x);
    half.is_finite().then(|| half.to_f32())
}

fn q4_k(x: &[f32], importance: Option<&[f32]>, b: &mut [u8]) -> bool {
    let Some(lines) = Lines::of(x, &weigh::<SUPER>(x, importance, 32), 15.0) else { return false };
    let codes = lines.put(x, 15.0, b);
    put_four_bits(&codes, &mut b[16..144]);
    true
}

fn q5_k(x: &[f32], importance: Option<&[f32]>, b: &mut [u8]) -> bool {
    let Some(lines) = Lines::of(x, &weigh::<SUPER>(x, importance, 32), 31.0) else { return false };
    let codes = lines.put(x, 31.0, b);
    b[16..48].fill(0);
    codes.iter().enumerate().for_each(|(i, q)| b[16 + i % 32] |= q >> 4 << (i / 32));
    put_four_bits(&codes, &mut b[48..176]);
    true
}

/// 256 codes, the low four bits of each: 64 share 32 bytes, low halves first.
fn put_four_bits(codes: &[u8; SUPER], b: &mut [u8]) {
    for (codes, b) in codes.chunks_exact(64).zip(b.chunks_exact_mut(32)) {
        b.iter_mut().enumerate().for_each(|(i, b)| *b = codes[i] & 15 | codes[i + 32] << 4);
    }
}

fn q6_k(x: &[f32], importance: Option<&[f32]>, b: &mut [u8]) -> bool {
    const PART: usize = 16;
    let parts = |j: usize| j * PART..(j + 1) * PART;
    let w = weigh::<SUPER>(x, importance, PART);
    let wanted: [f32; SUPER / PART] =
        std::array::from_fn(|j| symmetric(&x[parts(j)], &w[parts(j)], 32.0));
    let Some(d) = put_half(b, 208, wanted[largest(&wanted)] / -128.0) else { return false };
    let mut codes = [0; SUPER];
    for j in 0..SUPER / PART {
        let (x, w) = (&x[parts(j)], &w[parts(j)]);
        let near = round((wanted[j] * inverse(d)).clamp(-128.0, 127.0)) as i32;
        let mut best = f32::INFINITY;
        for scale in (near - 1..=near + 1).filter(|s| (-128..128).contains(s)) {
            let scaled = d * scale as f32;
            let tried = symmetric_codes::<PART>(x, scaled, 32.0);
            let off = |i: usize| scaled * (f32::from(tried[i]) - 32.0) - x[i];
            let error: f32 = (0..PART).map(|i| w[i] * off(i) * off(i)).sum();
            if error < best {
                best = error;
                b[192 + j] = scale as i8 as u8;
                codes[parts(j)].copy_from_slice(&tried);
            }
        }
    }
    for half in 0..2 {
        for i in 0..64 {
            let q = |at: usize| codes[half * 128 + at];
            b[half * 64 + i] = q(i) & 15 | q(i + 64) << 4;
        }
        for i in 0..32 {
            let q = |at: usize| codes[half * 128 + at] >> 4;
            b[128 + half * 32 + i] = q(i) | q(i + 32) << 2 | q(i + 64) << 4 | q(i + 96) << 6;
        }
    }
    true
}

#[cfg(test)]
mod tests;
