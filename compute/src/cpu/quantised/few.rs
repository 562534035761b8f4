//! Few rows by quantised weights, where reading the weights sets the pace: a group goes from memory
//! through registers into the sums, while what comes next is on its way.
#![allow(unsafe_code)]

use super::Layout;
use crate::Isa;
use crate::bytes::{BYTES, Bytes};
use crate::cpu::rows::Parts;
use crate::cpu::{Cpu, next};
use crate::simd::{Cache, LANES, prefetch};
use crate::strips::{STEPS, Sink, Strips, dots, ready, start};

/// Most rows: as many as have their sums in registers beside a group.
pub(super) fn rows(isa: Isa) -> usize {
    if isa == Isa::Avx512Bf16 { 8 } else { 4 }
}

/// Bytes between what is asked for and what is computed: some hundred nanoseconds' worth. More than two cells of any type, as
/// groups of a large one read it out of order.
const AHEAD: usize = 8192;
/// Weights of a task at least.
const TASK: usize = 1 << 16;

/// As [`product`](super::product), whose lengths are checked.
pub(super) fn product(
    cpu: &Cpu,
    codes: &[u8],
    numbers: &[f32],
    w: &Strips,
    c: &mut [f32],
    more: bool,
) {
    let (n, k) = (w.rows(), w.cols());
    let strips = n.div_ceil(LANES);
    let rows = c.len() / n.max(1);
    let tasks = (n * k / TASK).clamp(1, cpu.pool.threads() * 4).min(strips);
    let c = Parts::new(c);
    next::announce(cpu, w);
    cpu.pool.run(tasks, |task| {
        // SAFETY: tasks write disjoint columns of c, inside of it.
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let strips = task * strips / tasks..(task + 1) * strips / tasks;
        let area = Area { rows, codes, numbers, w, strips, c, more };
        crate::dispatch!(cpu.isa, multiply_strips(area: &Area<'_> = &area));
    });
}

/// What a task computes.
struct Area<'a> {
    rows: usize,
    codes: &'a [u8],
    numbers: &'a [f32],
    w: &'a Strips,
    strips: std::ops::Range<usize>,
    c: *mut f32,
    more: bool,
}

#[inline(always)]
unsafe fn multiply_strips<S: Bytes>(area: &Area<'_>) {
    for strip in area.strips.clone() {
        let mut row = 0;
        while row < area.rows {
            // SAFETY: the caller's promise.
            unsafe {
                row += match area.rows - row {
                    1 => multiply::<S, 1>(area, strip, row),
                    2 | 3 => multiply::<S, 2>(area, strip, row),
                    // Only where so many come: see `rows`.
                    8.. if const { S::UNSIGNED && S::TILE_VECTORS > 1 } => {
                        multiply::<S, 8>(area, strip, row)
                    }
                    _ => multiply::<S, 4>(area, strip, row),
                };
            }
        }
    }
}

/// `R` rows by a strip; gives `R`.
#[inline(always)]
unsafe fn multiply<S: Bytes, const R: usize>(area: &Area<'_>, strip: usize, row: usize) -> usize {
    let (w, n, k) = (area.w, area.w.rows(), area.w.cols());
    let layout = Layout::new(k);
    let columns = (n - strip * LANES).min(LANES);
    let c = area.c.wrapping_add(row * n + strip * LANES);
    let (mut codes, mut numbers) = ([std::ptr::null(); R], [std::ptr::null(); R]);
    for r in 0..R {
        codes[r] = area.codes[(row + r) * layout.codes()..].as_ptr();
        numbers[r] = area.numbers[(row + r) * layout.numbers()..].as_ptr();
    }
    // SAFETY: the strip's cells are whole, rows have codes and numbers for each group, and the
    // columns are inside of c.
    unsafe {
        let cells = w.cells(strip);
        let mut sums = Sums::<S, R> {
            codes,
            numbers,
            layout,
            second: [layout.groups; R],
            louder: [usize::MAX; R],
            ahead: cells.as_ptr().wrapping_add(AHEAD),
            group: 0,
            sums: [S::splat(0.0); R],
            seconds: [S::splat(0.0); R],
        };
        (0..R).for_each(|r| sums.find_louder(r));
        if area.more {
            for (r, sum) in sums.sums.iter_mut().enumerate() {
                *sum = S::load_n(c.add(r * n), columns);
            }
        }
        ready::<S, _>(w.kind(), cells.as_ptr(), k / w.cell(), &mut sums);
        for (r, (sum, second)) in sums.sums.into_iter().zip(sums.seconds).enumerate() {
            S::store_n(c.add(r * n), S::add(sum, second), columns);
        }
    }
    R
}

/// Rows of activations, and their sums with 16 rows of weights.
struct Sums<S: Bytes, const R: usize> {
    codes: [*const u8; R],
    numbers: [*const f32; R],
    layout: Layout,
    /// The next second digit, and the group that has it.
    second: [usize; R],
    louder: [usize; R],
    /// What to ask for at the next group, and bytes of a group.
    ahead: *const u8,
    group: usize,
    /// The chains, and the second ones.
    sums: [S::F; R],
    seconds: [S::F; R],
}

impl<S: Bytes, const R: usize> Sink<S> for Sums<S, R> {
    // Where products of bytes are one instruction, making codes sets the pace.
    const WRITTEN_OUT: bool = S::UNSIGNED;

    #[inline(always)]
    fn of(&mut self, group: usize) {
        self.group = group;
    }

    #[inline(always)]
    unsafe fn put<const N: usize, const BITS: u32>(
        &mut self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    ) {
        for line in (0..self.group).step_by(BYTES) {
            prefetch(self.ahead.wrapping_add(line), Cache::First);
        }
        self.ahead = self.ahead.wrapping_add(self.group);
        // SAFETY: the caller's promise.
        unsafe {
            for r in 0..R {
                let sum = self.add::<N, BITS>(r, g, &codes, &scales, &leasts, self.sums[r]);
                self.sums[r] = S::by_now(sum);
            }
            for r in 0..R {
                if self.louder[r] == g {
                    let (second, sum) = (self.second[r], self.seconds[r]);
                    self.seconds[r] = self.add::<N, BITS>(r, second, &codes, &scales, &leasts, sum);
                    self.second[r] = second + 1;
                    self.find_louder(r);
                }
            }
        }
    }
}

impl<S: Bytes, const R: usize> Sums<S, R> {
    /// Which group has row `r`'s next second digit.
    #[inline(always)]
    unsafe fn find_louder(&mut self, r: usize) {
        let i = self.second[r] - self.layout.groups;
        self.louder[r] = if i < self.layout.finer {
            // SAFETY: the row has so many.
            unsafe { (*self.numbers[r].add(self.layout.finer_at() + i)).to_bits() as usize }
        } else {
            usize::MAX
        };
    }

    /// A chain with digit `d` of row `r` added to it.
    #[inline(always)]
    unsafe fn add<const N: usize, const BITS: u32>(
        &self,
        r: usize,
        d: usize,
        codes: &[S::B; STEPS],
        scales: &[S::F; N],
        leasts: &Option<[S::F; N]>,
        mut sum: S::F,
    ) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0..N {
                let part = &codes[i * STEPS / N..(i + 1) * STEPS / N];
                let x = self.codes[r].add((d * STEPS + i * STEPS / N) * 4);
                let less = self.numbers[r].add(self.layout.less_at(N, d, i));
                let from = match leasts {
                    Some(_) => start::<S, BITS, true>(less),
                    None => start::<S, BITS, false>(less),
                };
                let dot = dots::<S, N, BITS>(from, part, x);
                let scale = S::mul(scales[i], S::splat(*self.numbers[r].add(d)));
                sum = S::fma(S::words_to_f32(dot), scale, sum);
                if let Some(leasts) = leasts {
                    let x = S::splat(*self.numbers[r].add(self.layout.sum_at(N, d, i)));
                    sum = S::fma(leasts[i], x, sum);
                }
            }
            sum
        }
    }
}
