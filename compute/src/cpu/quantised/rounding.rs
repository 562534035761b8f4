//! Rounding rows of activations to 8 bits, 32 numbers to a scale, with a second digit for the groups
//! with the largest scales.
#![allow(unsafe_code)]

use crate::bytes::Bytes;
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::simd::reduce::reduce;
use crate::simd::{LANES, Simd};
use crate::strips::GROUP;

/// How a row of activations lies: digits of groups, the second ones after the first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) groups: usize,
    pub(super) finer: usize,
}

impl Layout {
    /// Of rows of `cols` columns, whole groups of 32. One group in sixteen has a second digit.
    pub fn new(cols: usize) -> Layout {
        let groups = cols / GROUP;
        Layout { groups, finer: groups.div_ceil(16) }
    }

    /// Digits of groups.
    pub(super) fn digits(self) -> usize {
        self.groups + self.finer
    }

    /// Codes of a row: 32 a digit.
    pub fn codes(self) -> usize {
        self.digits() * GROUP
    }

    /// Numbers of a row: for each digit its scale, then for each its scale times the sum of its codes, then
    /// that of its first half, then that of its second, then the same three sums alone, negative, as words, and then
    /// the groups that have a second digit, ascending, as words.
    pub fn numbers(self) -> usize {
        self.finer_at() + self.finer
    }

    /// Where the groups that have a second digit are among a row's numbers.
    pub(super) fn finer_at(self) -> usize {
        self.digits() * 7
    }

    /// Where the scaled sum of codes of digit `d` is among a row's numbers, or that of its half `i` of two.
    #[inline(always)]
    pub(super) fn sum_at(self, scales: usize, d: usize, i: usize) -> usize {
        d + self.digits() * if scales == 1 { 1 } else { 2 + i }
    }

    /// Where the same sum alone is, negative.
    #[inline(always)]
    pub(super) fn less_at(self, scales: usize, d: usize, i: usize) -> usize {
        self.sum_at(scales, d, i) + self.digits() * 3
    }
}

/// Groups whose largest number is below are rounded to zeros.
const TINY: f32 = 1e-36;

/// Rounds rows `[rows, cols]` to 8 bits: `codes` and `numbers` have [`Layout::codes`] and
/// [`Layout::numbers`] a row. The code of the largest of a group is ±127.
///
/// # Panics
/// If rows are not whole groups, or lengths don't agree.
pub fn quantise(cpu: &Cpu, x: &[f32], cols: usize, codes: &mut [u8], numbers: &mut [f32]) {
    assert!(cols.is_multiple_of(GROUP) && x.len().is_multiple_of(cols.max(1)));
    let layout = Layout::new(cols);
    let rows = x.len() / cols.max(1);
    assert!(codes.len() == rows * layout.codes() && numbers.len() == rows * layout.numbers());
    let (codes, numbers) = (Parts::new(codes), Parts::new(numbers));
    let grain = (4096 / cols.max(1)).max(1);
    cpu.pool.split(rows, grain, |range| {
        for r in range {
            let part = |of: usize| r * of..(r + 1) * of;
            // SAFETY: rows are disjoint.
            let (codes, numbers) =
                unsafe { (codes.part(part(layout.codes())), numbers.part(part(layout.numbers()))) };
            let mut row = Row { layout, x: &x[part(cols)], codes, numbers };
            crate::dispatch!(cpu.isa, quantise_row(row: &mut Row<'_> = &mut row));
        }
    });
}

/// A row on its way to codes.
struct Row<'a> {
    layout: Layout,
    x: &'a [f32],
    codes: &'a mut [u8],
    numbers: &'a mut [f32],
}

#[inline(always)]
unsafe fn quantise_row<S: Bytes>(row: &mut Row<'_>) {
    let layout = row.layout;
    let mut g = 0;
    // SAFETY: the instruction set is the caller's promise, here and below.
    unsafe {
        while g + LANES <= layout.groups {
            row.round_groups::<S>(g);
            g += LANES;
        }
        while g < layout.groups {
            row.round::<S>(load::<S>(row.x, g), g);
            g += 1;
        }
    }
    let (numbers, largest) = row.numbers.split_at_mut(layout.finer_at());
    loudest(&numbers[..layout.groups], largest);
    for i in 0..layout.finer {
        let g = row.numbers[layout.finer_at() + i].to_bits() as usize;
        // SAFETY: as before.
        unsafe {
            let rest = row.rest::<S>(g);
            row.round::<S>(rest, layout.groups + i);
        }
    }
}

/// Group `g` of a row.
#[inline(always)]
unsafe fn load<S: Simd>(x: &[f32], g: usize) -> [S::F; 2] {
    let x = &x[g * GROUP..(g + 1) * GROUP];
    // SAFETY: a group is two vectors; the instruction set is the caller's promise.
    unsafe { [S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES))] }
}

/// The largest absolute values, lane by lane.
#[inline(always)]
unsafe fn largest<S: Simd>(x: [S::F; 2]) -> S::F {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let (most, least) = (S::max(x[0], x[1]), S::min(x[0], x[1]));
        S::max(most, S::sub(S::splat(0.0), least))
    }
}

/// The groups with the largest scales, as many as there is room for, in ascending order.
fn loudest(scales: &[f32], largest: &mut [f32]) {
    let room = largest.len();
    // Of the quietest of them, once there is no room.
    let mut least = f32::NEG_INFINITY;
    for (g, &scale) in scales.iter().enumerate() {
        let known = g.min(room);
        if known == room && scale <= least {
            continue;
        }
        let scale_of = |place: &f32| scales[place.to_bits() as usize];
        let quieter = largest[..known].iter().rev().take_while(|l| scale_of(l) < scale);
        let place = known - quieter.count();
        if place < room {
            largest[place..room.min(known + 1)].rotate_right(1);
            largest[place] = f32::from_bits(g as u32);
        }
        if let Some(last) = largest.last().filter(|_| known + 1 >= room) {
            least = scale_of(last);
        }
    }
    largest.sort_unstable_by_key(|g| g.to_bits());
}

impl Row<'_> {
    /// Rounds 16 groups from `g` to their first digits, as [`Row::round`] does one.
    #[inline(always)]
    unsafe fn round_groups<S: Bytes>(&mut self, g: usize) {
        let digits = self.layout.digits();
        let x = self.x[g * GROUP..][..LANES * GROUP].as_ptr();
        let codes = self.codes[g * GROUP..][..LANES * GROUP].as_mut_ptr();
        let numbers = self.numbers[..7 * digits].as_mut_ptr();
        // SAFETY: the groups have a place each; the instruction set is the caller's promise.
        unsafe {
            // Lane i for group i.
            let mut most = [S::splat(0.0); LANES];
            for (i, most) in most.iter_mut().enumerate() {
                let x = x.add(i * GROUP);
                *most = largest::<S>([S::load(x), S::load(x.add(LANES))]);
            }
            let most = reduce::<S, false>(most);
            let (zero, full) = (S::splat(0.0), S::splat(127.0));
            let inverse = S::select(S::lt(S::splat(TINY), most), S::div(full, most), zero);
            let inverse = S::to_array(inverse);
            let mut halves = [zero; 2];
            for (h, half) in halves.iter_mut().enumerate() {
                let mut rounded = [zero; LANES];
                for (i, rounded) in rounded.iter_mut().enumerate() {
                    let at = i * GROUP + h * LANES;
                    *rounded = S::round(S::mul(S::load(x.add(at)), S::splat(inverse[i])));
                    S::store_codes(codes.add(at), *rounded);
                }
                *half = reduce::<S, true>(rounded);
            }
            let sum = S::add(halves[0], halves[1]);
            let good = S::lt(sum, S::splat(f32::INFINITY));
            let scale = S::select(good, S::div(most, full), S::splat(f32::NAN));
            S::store(numbers.add(g), scale);
            for (i, sum) in [sum, halves[0], halves[1]].into_iter().enumerate() {
                S::store(numbers.add((1 + i) * digits + g), S::mul(scale, sum));
                let less = S::f32_to_words(S::sub(zero, sum));
                S::store_bytes(numbers.add((4 + i) * digits + g).cast(), less);
            }
        }
    }

    /// Rounds a group to digit `d`.
    #[inline(always)]
    unsafe fn round<S: Bytes>(&mut self, x: [S::F; 2], d: usize) {
        let digits = self.layout.digits();
        // SAFETY: 32 codes have a place; the instruction set is the caller's promise.
        unsafe {
            let (codes, most) = rounded::<S>(x);
            let to = self.codes[d * GROUP..(d + 1) * GROUP].as_mut_ptr();
            S::store_codes(to, codes[0]);
            S::store_codes(to.add(LANES), codes[1]);
            let halves = [S::sum(codes[0]), S::sum(codes[1])];
            let sum = halves[0] + halves[1];
            // What is no number is not hidden by rounding: then the sum is none.
            let scale = if sum.is_nan() { f32::NAN } else { most / 127.0 };
            self.numbers[d] = scale;
            for (i, sum) in [sum, halves[0], halves[1]].into_iter().enumerate() {
                self.numbers[(1 + i) * digits + d] = scale * sum;
                self.numbers[(4 + i) * digits + d] = f32::from_bits(-(sum as i32) as u32);
            }
        }
    }

    /// What the first digit of group `g` left over.
    #[inline(always)]
    unsafe fn rest<S: Simd>(&self, g: usize) -> [S::F; 2] {
        // SAFETY: the instruction set is the caller's promise.
        unsafe {
            let (x, down) = (load::<S>(self.x, g), S::splat(-self.numbers[g]));
            let (codes, _) = rounded::<S>(x);
            [S::fma(codes[0], down, x[0]), S::fma(codes[1], down, x[1])]
        }
    }
}

/// The codes of a group, not yet bytes, and its largest absolute value.
#[inline(always)]
unsafe fn rounded<S: Simd>(x: [S::F; 2]) -> ([S::F; 2], f32) {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let most = S::max_lane(largest::<S>(x));
        // Smaller ones have no inverse; they are nothing beside any other number.
        let inverse = S::splat(if most > TINY { 127.0 / most } else { 0.0 });
        ([S::round(S::mul(x[0], inverse)), S::round(S::mul(x[1], inverse))], most)
    }
}
