//! Sixteen f32 lanes, on every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set by
//! [`dispatch!`](crate::dispatch). Every operation here is exactly rounded (add, multiply, fused
//! multiply-add, divide, square root, conversions) or exact, so a kernel gives the same bits on
//! all of them. The one exception is [`Simd::dot_bf16`], which the hardware rounds in its own way.
//!
//! This module and the kernels built on it are the only places with vector intrinsics.
#![allow(unsafe_code, clippy::missing_safety_doc)] // safety is stated once, for the trait

#[cfg(target_arch = "aarch64")]
mod neon;
pub mod reduce;

use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::each;
#[cfg(target_arch = "aarch64")]
pub use neon::{Arm, Neon, NeonDot, NeonI8mm};

/// What the running CPU can do, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with products of bytes (AVX-VNNI): what CPUs without AVX-512 have by now.
    Avx2Vnni,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with products of BF16 and of bytes (VNNI).
    Avx512Bf16,
    /// AArch64's NEON.
    Neon,
    /// NEON with dot products of bytes (FEAT_DotProd).
    NeonDot,
    /// And with products of matrices of bytes (FEAT_I8MM).
    NeonI8mm,
}

impl Isa {
    /// Every instruction set, worst first.
    pub const ALL: [Isa; 8] = [
        Isa::Portable,
        Isa::Avx2,
        Isa::Avx2Vnni,
        Isa::Avx512,
        Isa::Avx512Bf16,
        Isa::Neon,
        Isa::NeonDot,
        Isa::NeonI8mm,
    ];

    /// The name that `HOMEGROWN_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx2Vnni => "avx2vnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
            Isa::NeonI8mm => "neoni8mm",
        }
    }

    /// Whether this CPU can run it.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "aarch64")]
        use std::arch::is_aarch64_feature_detected as has;
        #[cfg(target_arch = "x86_64")]
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Vnni => has!("avxvnni") && Isa::Avx2.available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                let avx512 =
                    has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
                avx512 && Isa::Avx2.available()
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => has!("avx512bf16") && has!("avx512vnni") && Isa::Avx512.available(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => has!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => has!("dotprod") && Isa::Neon.available(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => has!("i8mm") && Isa::NeonDot.available(),
            _ => false,
        }
    }

    /// The best one available, or what the environment variable `HOMEGROWN_ISA` names.
    ///
    /// # Panics
    /// If `HOMEGROWN_ISA` names none that this CPU has: it is a switch for tests, and a silent
    /// fallback would test the wrong thing.
    pub fn detect() -> Isa {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| match std::env::var("HOMEGROWN_ISA") {
            Ok(name) => Isa::ALL
                .into_iter()
                .find(|isa| isa.name() == name && isa.available())
                .unwrap_or_else(|| {
                    let have: Vec<_> =
                        Isa::ALL.into_iter().filter(|i| i.available()).map(Isa::name).collect();
                    panic!("HOMEGROWN_ISA={name}: this CPU has {}", have.join(", "))
                }),
            Err(_) => Isa::ALL.into_iter().rev().find(|i| i.available()).unwrap_or(Isa::Portable),
        })
    }
}

/// Lanes of a vector: 16 on every path, so that reductions have one order.
pub const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// # Safety
/// Every method may only be called on a CPU that has the instruction set (which
/// [`dispatch!`](crate::dispatch) makes sure of); those that take pointers read or write exactly
/// the documented elements, which must be valid.
pub unsafe trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Lanes set where a comparison held.
    type Mask: Copy;
    /// Rows of an accumulator tile one vector wide times [`Self::TILE_VECTORS`] that fit the
    /// registers.
    const TILE_ROWS: usize;
    /// Vectors (of 16 lanes) in a row of an accumulator tile.
    const TILE_VECTORS: usize;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// Reads 16 f32, unaligned.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Reads `n <= 16` f32; the other lanes are 0.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F;
    /// Writes 16 f32, unaligned.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Writes the first `n <= 16` lanes.
    unsafe fn store_n(p: *mut f32, v: Self::F, n: usize);
    /// `a + b`
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Square root.
    unsafe fn sqrt(a: Self::F) -> Self::F;
    /// The larger; `b` where either is NaN (as `vmaxps`).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where either is NaN (as `vminps`).
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `a * 2^n` for integer-valued `n` with `-126 <= n <= 127`.
    unsafe fn scale2(a: Self::F, n: Self::F) -> Self::F;
    /// `a < b`; false for NaN.
    unsafe fn lt(a: Self::F, b: Self::F) -> Self::Mask;
    /// Lane by lane `if m { a } else { b }`.
    unsafe fn select(m: Self::Mask, a: Self::F, b: Self::F) -> Self::F;
    /// Reads 16 bf16 and widens.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Rounds to bf16 (nearest, ties to even; NaN stays NaN) and writes 16.
    unsafe fn store_bf16(p: *mut u16, v: Self::F);
    /// Rounds to bf16 as [`Self::store_bf16`]; a lane holds the pair, even element low, for
    /// [`Self::dot_bf16`].
    unsafe fn pair_bf16(even: Self::F, odd: Self::F) -> Self::F;
    /// Reads 16 bf16 of two rows as such pairs.
    #[inline(always)]
    unsafe fn load_pairs(even: *const u16, odd: *const u16) -> Self::F {
        // SAFETY: the caller gives 16 readable bf16 of each; rounding what was one changes nothing.
        unsafe { Self::pair_bf16(Self::load_bf16(even), Self::load_bf16(odd)) }
    }
    /// Rows become columns: lane `j` of vector `i` moves to lane `i` of vector `j`.
    unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES];
    /// Reads one pair of bf16 into all lanes (as 32 bits a lane, for [`Self::dot_bf16`]).
    unsafe fn splat_pair(p: *const u16) -> Self::F;
    /// The even elements of such pairs, and the odd ones, widened.
    unsafe fn widen_pairs(v: Self::F) -> [Self::F; 2];
    /// Per lane, over pairs of bf16: `acc + a.0 * b.0 + a.1 * b.1` in the hardware's rounding
    /// (elsewhere two fused multiply-adds, even element first).
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the instruction set is the caller's promise.
        unsafe {
            let ([a0, a1], [b0, b1]) = (Self::widen_pairs(a), Self::widen_pairs(b));
            Self::fma(a1, b1, Self::fma(a0, b0, acc))
        }
    }

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(v: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the array holds 16 f32; the instruction set is the caller's promise.
        unsafe { Self::store(out.as_mut_ptr(), v) };
        out
    }
    /// Sum of the lanes in a fixed tree: halves are added (8, 4, 2, 1).
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        // SAFETY: as for to_array.
        let mut a = unsafe { Self::to_array(v) };
        let mut n = LANES / 2;
        while n > 0 {
            for i in 0..n {
                a[i] += a[i + n];
            }
            n /= 2;
        }
        a[0]
    }
    /// Largest lane; any where one is NaN.
    #[inline(always)]
    unsafe fn max_lane(v: Self::F) -> f32 {
        // SAFETY: as for to_array.
        unsafe { Self::to_array(v) }.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Elements `i..i + 16` of `n`; lanes past the end are 0.
///
/// # Safety
/// `p` points to `n` readable f32 and `i < n`; as for [`Simd`].
#[inline(always)]
pub unsafe fn at<S: Simd>(p: *const f32, i: usize, n: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if i + LANES <= n { S::load(p.add(i)) } else { S::load_n(p.add(i), n - i) } }
}

/// Writes elements `i..i + 16` of `n`; lanes past the end are dropped.
///
/// # Safety
/// `p` points to `n` writable f32 and `i < n`; as for [`Simd`].
#[inline(always)]
pub unsafe fn put<S: Simd>(p: *mut f32, i: usize, n: usize, v: S::F) {
    // SAFETY: the caller's promise.
    unsafe { if i + LANES <= n { S::store(p.add(i), v) } else { S::store_n(p.add(i), v, n - i) } }
}

/// Where a line is asked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The nearest.
    First,
    /// The one after it, so that what is in use stays in the first.
    Second,
    /// The nearest, to be written to.
    Written,
}

/// Asks for the cache line of an address, which need not be valid.
#[inline(always)]
pub fn prefetch(p: *const u8, into: Cache) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match into {
            Cache::First => _mm_prefetch::<_MM_HINT_T0>(p.cast()),
            Cache::Second => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
            Cache::Written => _mm_prefetch::<_MM_HINT_ET0>(p.cast()),
        }
    }
    #[cfg(target_arch = "aarch64")]
    macro_rules! prfm {
        ($hint:literal) => {
            // SAFETY: a hint; every AArch64 has it.
            unsafe {
                std::arch::asm!(
                    concat!("prfm ", $hint, ", [{p}]"),
                    p = in(reg) p.addr(),
                    options(nomem, nostack, preserves_flags)
                )
            }
        };
    }
    #[cfg(target_arch = "aarch64")]
    match into {
        Cache::First => prfm!("pldl1keep"),
        Cache::Second => prfm!("pldl2keep"),
        Cache::Written => prfm!("pstl1keep"),
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (p, into);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Portable;

// SAFETY: plain Rust runs anywhere; pointers are the caller's promise.
unsafe impl Simd for Portable {
    type F = [f32; LANES];
    type Mask = [bool; LANES];
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller gives 16 readable f32.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
        // SAFETY: the caller gives n readable f32.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller gives 16 writable f32.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::F, n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller gives n writable f32.
            unsafe { *p.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::F) -> Self::F {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::F, n: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn lt(a: Self::F, b: Self::F) -> Self::Mask {
        std::array::from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    unsafe fn select(m: Self::Mask, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller gives 16 readable bf16.
        std::array::from_fn(|i| f32::from_bits(u32::from(unsafe { *p.add(i) }) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller gives 16 writable bf16.
            unsafe { *p.add(i) = half::bf16::from_f32(x).to_bits() }
        }
    }
    #[inline(always)]
    unsafe fn pair_bf16(even: Self::F, odd: Self::F) -> Self::F {
        let bits = |x: f32| u32::from(half::bf16::from_f32(x).to_bits());
        std::array::from_fn(|i| f32::from_bits(bits(odd[i]) << 16 | bits(even[i])))
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const u16) -> Self::F {
        // SAFETY: the caller gives two readable bf16.
        [f32::from_bits(unsafe { p.cast::<u32>().read_unaligned() }); LANES]
    }
    #[inline(always)]
    unsafe fn widen_pairs(v: Self::F) -> [Self::F; 2] {
        let low = v.map(|x| f32::from_bits(x.to_bits() << 16));
        [low, v.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Simd};
    use std::arch::x86_64::*;

    /// AVX2 and FMA, and AVX-VNNI if that is there: a vector is two halves.
    #[derive(Clone, Copy)]
    pub struct Avx2<const VNNI: bool>;

    macro_rules! both {
        ($f:ident, $($v:expr),+) => { both!(@ $f, ($($v),+)) };
        (@ $f:ident, ($a:expr)) => { [$f($a[0]), $f($a[1])] };
        (@ $f:ident, ($a:expr, $b:expr)) => { [$f($a[0], $b[0]), $f($a[1], $b[1])] };
        (@ $f:ident, ($a:expr, $b:expr, $c:expr)) => {
            [$f($a[0], $b[0], $c[0]), $f($a[1], $b[1], $c[1])]
        };
    }

    // SAFETY: of the impl and of every block in it: AVX2 and FMA are the caller's promise, and so are pointers.
    unsafe impl<const VNNI: bool> Simd for Avx2<VNNI> {
        type F = [__m256; 2];
        type Mask = [__m256; 2];
        const TILE_ROWS: usize = 6;
        const TILE_VECTORS: usize = 1;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::F {
            // SAFETY: see the impl.
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::F {
            // SAFETY: see the impl.
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
        }
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
            let mut a = [0.0f32; LANES];
            // SAFETY: see the impl.
            unsafe {
                std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n);
                Self::load(a.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::F) {
            // SAFETY: see the impl.
            unsafe {
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: Self::F, n: usize) {
            let mut a = [0.0f32; LANES];
            // SAFETY: see the impl.
            unsafe {
                Self::store(a.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(a.as_ptr(), p, n);
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_add_ps, a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_sub_ps, a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_mul_ps, a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_div_ps, a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_fmadd_ps, a, b, c) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_sqrt_ps, a) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_max_ps, a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_min_ps, a, b) }
        }
        #[inline(always)]
        unsafe fn sum(v: Self::F) -> f32 {
            // SAFETY: see the impl.
            unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
        }
        #[inline(always)]
        unsafe fn max_lane(v: Self::F) -> f32 {
            // SAFETY: see the impl.
            unsafe { max8(_mm256_max_ps(v[0], v[1])) }
        }
        #[inline(always)]
        unsafe fn round(a: Self::F) -> Self::F {
            const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            // SAFETY: see the impl.
            unsafe { [_mm256_round_ps::<MODE>(a[0]), _mm256_round_ps::<MODE>(a[1])] }
        }
        #[inline(always)]
        unsafe fn scale2(a: Self::F, n: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe {
                let power = |n: __m256| {
                    let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
                };
                [_mm256_mul_ps(a[0], power(n[0])), _mm256_mul_ps(a[1], power(n[1]))]
            }
        }
        #[inline(always)]
        unsafe fn lt(a: Self::F, b: Self::F) -> Self::Mask {
            // SAFETY: see the impl.
            unsafe {
                [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])]
            }
        }
        #[inline(always)]
        unsafe fn select(m: Self::Mask, a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(_mm256_blendv_ps, b, a, m) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::F {
            // SAFETY: see the impl.
            unsafe {
                let widen = |p: *const u16| {
                    let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
                };
                [widen(p), widen(p.add(8))]
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, v: Self::F) {
            // SAFETY: see the impl.
            unsafe {
                let [a, b] = both!(rounded_half, v);
                let packed =
                    _mm256_packus_epi32(_mm256_srli_epi32::<16>(a), _mm256_srli_epi32::<16>(b));
                _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
            }
        }
        #[inline(always)]
        unsafe fn pair_bf16(even: Self::F, odd: Self::F) -> Self::F {
            // SAFETY: see the impl.
            unsafe { both!(pair_halves, even, odd) }
        }
        #[inline(always)]
        unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES] {
            let mut out = rows;
            for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let mut quarter = [rows[0][0]; 8];
                for (r, v) in quarter.iter_mut().enumerate() {
                    *v = rows[i * 8 + r][j];
                }
                // SAFETY: see the impl.
                let quarter = unsafe { transpose8(quarter) };
                for (c, v) in quarter.iter().enumerate() {
                    out[j * 8 + c][i] = *v;
                }
            }
            out
        }
        #[inline(always)]
        unsafe fn splat_pair(p: *const u16) -> Self::F {
            // SAFETY: see the impl.
            unsafe { Self::splat(p.cast::<f32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn widen_pairs(v: Self::F) -> [Self::F; 2] {
            // SAFETY: see the impl.
            unsafe {
                let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
                let low = |v: __m256| {
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v)))
                };
                [v.map(low), v.map(|v| _mm256_and_ps(v, mask))]
            }
        }
    }

    /// f32 rounded to bf16, in the upper half of each lane (the lower half is arbitrary).
    #[inline(always)]
    unsafe fn rounded_half(v: __m256) -> __m256i {
        // SAFETY: AVX2 is the caller's promise.
        unsafe {
            // Add half of the last kept place, less one when that place is even; a NaN is kept
            // quiet instead.
            let x = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
            let r = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x0040_0000));
            _mm256_blendv_epi8(r, quiet, nan)
        }
    }

    /// Pairs of bf16 from f32.
    #[inline(always)]
    unsafe fn pair_halves(even: __m256, odd: __m256) -> __m256 {
        // SAFETY: AVX2 is the caller's promise.
        unsafe {
            let low = _mm256_srli_epi32::<16>(rounded_half(even));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(low, rounded_half(odd)))
        }
    }

    /// Eight by eight: pairs, then pairs of pairs within a half, then halves.
    #[inline(always)]
    unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: AVX2 is the caller's promise.
        unsafe {
            let mut two = r;
            for i in (0..8).step_by(2) {
                two[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                two[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
            }
            let mut four = two;
            for i in [0, 4] {
                for j in 0..2 {
                    let (a, b) = (_mm256_castps_pd(two[i + j]), _mm256_castps_pd(two[i + j + 2]));
                    four[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    four[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            let mut out = four;
            for j in 0..4 {
                out[j] = _mm256_permute2f128_ps::<0x20>(four[j], four[j + 4]);
                out[j + 4] = _mm256_permute2f128_ps::<0x31>(four[j], four[j + 4]);
            }
            out
        }
    }

    /// The rest of [`Simd::sum`]'s tree.
    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: AVX is the caller's promise.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn max8(v: __m256) -> f32 {
        // SAFETY: AVX is the caller's promise.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    macro_rules! avx512 {
        ($(#[$doc:meta])* $name:ident $(, $($dot:tt)*)?) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub struct $name;

            // SAFETY: of the impl and of every block in it: the instruction set is the caller's promise, and so
            // are pointers.
            unsafe impl Simd for $name {
                type F = __m512;
                type Mask = __mmask16;
                const TILE_ROWS: usize = 14;
                const TILE_VECTORS: usize = 2;

                #[inline(always)]
                unsafe fn splat(x: f32) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_set1_ps(x) }
                }
                #[inline(always)]
                unsafe fn load(p: *const f32) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_loadu_ps(p) }
                }
                #[inline(always)]
                unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
                    // SAFETY: see the impl; masked lanes are not read.
                    unsafe { _mm512_maskz_loadu_ps(first(n), p) }
                }
                #[inline(always)]
                unsafe fn store(p: *mut f32, v: Self::F) {
                    // SAFETY: see the impl.
                    unsafe { _mm512_storeu_ps(p, v) }
                }
                #[inline(always)]
                unsafe fn store_n(p: *mut f32, v: Self::F, n: usize) {
                    // SAFETY: see the impl; masked lanes are not written.
                    unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
                }
                #[inline(always)]
                unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_add_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_sub_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_mul_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_div_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_fmadd_ps(a, b, c) }
                }
                #[inline(always)]
                unsafe fn sqrt(a: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_sqrt_ps(a) }
                }
                #[inline(always)]
                unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_max_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_min_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn sum(v: Self::F) -> f32 {
                    // SAFETY: see the impl.
                    unsafe {
                        let high = _mm512_extractf32x8_ps::<1>(v);
                        sum8(_mm256_add_ps(_mm512_castps512_ps256(v), high))
                    }
                }
                #[inline(always)]
                unsafe fn max_lane(v: Self::F) -> f32 {
                    // SAFETY: see the impl.
                    unsafe {
                        let high = _mm512_extractf32x8_ps::<1>(v);
                        max8(_mm256_max_ps(_mm512_castps512_ps256(v), high))
                    }
                }
                #[inline(always)]
                unsafe fn round(a: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
                }
                #[inline(always)]
                unsafe fn scale2(a: Self::F, n: Self::F) -> Self::F {
                    // Multiplies by the power, as elsewhere (vscalefps differs on denormals).
                    // SAFETY: see the impl.
                    unsafe {
                        let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                        _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e)))
                    }
                }
                #[inline(always)]
                unsafe fn lt(a: Self::F, b: Self::F) -> Self::Mask {
                    // SAFETY: see the impl.
                    unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
                }
                #[inline(always)]
                unsafe fn select(m: Self::Mask, a: Self::F, b: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_mask_blend_ps(m, b, a) }
                }
                #[inline(always)]
                unsafe fn load_bf16(p: *const u16) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe {
                        let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
                    }
                }
                #[inline(always)]
                unsafe fn store_bf16(p: *mut u16, v: Self::F) {
                    // SAFETY: see the impl.
                    unsafe {
                        let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(v)));
                        _mm256_storeu_si256(p.cast(), narrow);
                    }
                }
                #[inline(always)]
                unsafe fn pair_bf16(even: Self::F, odd: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe {
                        let low = _mm512_srli_epi32::<16>(rounded(even));
                        let pair = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, rounded(odd));
                        _mm512_castsi512_ps(pair)
                    }
                }
                #[inline(always)]
                unsafe fn load_pairs(even: *const u16, odd: *const u16) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe {
                        let words = |p: *const u16| {
                            _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))
                        };
                        let odd = _mm512_slli_epi32::<16>(words(odd));
                        _mm512_castsi512_ps(_mm512_or_si512(words(even), odd))
                    }
                }
                #[inline(always)]
                unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES] {
                    // SAFETY: see the impl.
                    unsafe { transpose16(rows) }
                }
                #[inline(always)]
                unsafe fn splat_pair(p: *const u16) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_set1_ps(p.cast::<f32>().read_unaligned()) }
                }
                #[inline(always)]
                unsafe fn widen_pairs(v: Self::F) -> [Self::F; 2] {
                    // SAFETY: see the impl.
                    unsafe {
                        let v = _mm512_castps_si512(v);
                        let high = _mm512_and_si512(v, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                        [_mm512_slli_epi32::<16>(v), high].map(|v| _mm512_castsi512_ps(v))
                    }
                }
                $($($dot)*)?
            }
        };
    }

    /// As [`rounded_half`].
    #[inline(always)]
    unsafe fn rounded(v: __m512) -> __m512i {
        // SAFETY: AVX-512F is the caller's promise.
        unsafe {
            let x = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
            let r = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_or_si512(x, _mm512_set1_epi32(0x0040_0000));
            _mm512_mask_blend_epi32(nan, r, quiet)
        }
    }

    /// As [`transpose8`], with quarters in place of halves.
    #[inline(always)]
    unsafe fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
        // SAFETY: AVX-512F is the caller's promise.
        unsafe {
            let mut two = r;
            for i in (0..16).step_by(2) {
                two[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
                two[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
            }
            let mut four = two;
            for i in (0..16).step_by(4) {
                for j in 0..2 {
                    let (a, b) = (_mm512_castps_pd(two[i + j]), _mm512_castps_pd(two[i + j + 2]));
                    four[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    four[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            let mut out = four;
            for j in 0..4 {
                // Quarters 0 and 2, then 1 and 3, of eight rows.
                let (a, b) = (four[j], four[j + 4]);
                let (c, d) = (four[j + 8], four[j + 12]);
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
                out[j] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
                out[j + 4] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
                out[j + 8] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
                out[j + 12] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
            }
            out
        }
    }

    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    avx512!(
        /// AVX-512 F, BW, DQ, VL.
        Avx512);
    avx512!(
    /// AVX-512 with BF16 products.
    Avx512Bf16,
    #[inline(always)]
    unsafe fn dot_bf16(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl; both types are 512 plain bits.
        unsafe {
            let [a, b] = [a, b].map(|v| std::mem::transmute::<__m512, __m512bh>(v));
            _mm512_dpbf16_ps(acc, a, b)
        }
    });
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16};

/// Calls a kernel compiled for an instruction set.
///
/// `dispatch!(isa, kernel(p: *mut f32 = pointer, n: usize = len) -> f32)`, where `kernel` is an
/// `#[inline(always)] unsafe fn kernel<S: Simd>(p: *mut f32, n: usize) -> f32`. The kernel and
/// whatever it calls must be `#[inline(always)]`, so that it is compiled for the instruction set.
/// It panics if the CPU lacks `isa`; what else the kernel asks for is the caller's promise.
#[macro_export]
macro_rules! dispatch {
    ($isa:expr, $kernel:ident ( $($arg:ident : $ty:ty = $value:expr),* $(,)? ) $(-> $ret:ty)?) => {{
        let isa: $crate::simd::Isa = $isa;
        assert!(isa.available(), "this CPU does not have {}", isa.name());
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx512bf16($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the instruction set is enabled here; the rest is the caller's promise.
            unsafe { $kernel::<$crate::simd::Avx512Bf16>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::simd::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::simd::Avx2<false>>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx2vnni($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::simd::Avx2<true>>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn neondot($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::simd::NeonDot>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod,i8mm")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn neoni8mm($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::simd::NeonI8mm>($($arg),*) }
        }
        $(let $arg: $ty = $value;)*
        // SAFETY: the CPU has the instruction set (asserted); pointers are the caller's promise.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512Bf16 => avx512bf16($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 => avx512($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => avx2($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2Vnni => avx2vnni($($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Isa::NeonDot => neondot($($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Isa::NeonI8mm => neoni8mm($($arg),*),
                // No function of its own: what is compiled for AArch64 is compiled for NEON.
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Isa::Neon => $kernel::<$crate::simd::Neon>($($arg),*),
                _ => $kernel::<$crate::simd::Portable>($($arg),*),
            }
        }
    }};
}

#[cfg(test)]
mod tests;
