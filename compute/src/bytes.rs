//! Sixty-four bytes, or sixteen 32-bit words, beside the sixteen f32 of [`Simd`]: what quantised
//! weights and their products are made of. All operations are exact, so every instruction set
//! gives the same bits.
#![allow(unsafe_code, clippy::missing_safety_doc)] // safety is stated once, for the trait

#[cfg(target_arch = "aarch64")]
mod neon;

use crate::simd::{LANES, Portable, Simd};

/// Bytes of a vector: four a lane.
pub const BYTES: usize = 4 * LANES;

/// Vectors of bytes.
///
/// # Safety
/// As for [`Simd`].
pub unsafe trait Bytes: Simd {
    /// 64 bytes, or 16 words.
    type B: Copy;
    /// Whether the left operand of [`Self::dot`] is unsigned.
    const UNSIGNED: bool = false;
    /// Rows of a tile of products that add up by pairs, if there is [`Self::dot_pairs`]; where one sum does for a
    /// group, there is room for one more.
    const PAIRS: Option<usize> = None;
    /// Whether there are products of matrices: [`Self::dots`].
    const MATRICES: bool = false;
    /// Rows of a tile of int8 products, and its vectors of 16 columns.
    const BYTE_TILE: (usize, usize);

    /// Reads 64 bytes, unaligned.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// Writes 64 bytes, unaligned.
    unsafe fn store_bytes(p: *mut u8, v: Self::B);
    /// All bytes `x`.
    unsafe fn splat_byte(x: u8) -> Self::B;
    /// Four bytes to all lanes.
    unsafe fn splat_word(p: *const u8) -> Self::B;
    /// Bit by bit.
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Byte by byte `a - b`, wrapping.
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B;
    /// Byte by byte `v >> shift & mask`, or up where the shift is negative; the mask cuts off what comes from the byte
    /// beside it.
    unsafe fn bits(v: Self::B, shift: i32, mask: u8) -> Self::B;
    /// Byte by byte `table[v]`, `v < 16`.
    unsafe fn lookup(table: &[i8; 16], v: Self::B) -> Self::B;
    /// Word by word `v >> shift & mask`.
    unsafe fn word_bits(v: Self::B, shift: i32, mask: u32) -> Self::B;
    /// Word by word, byte `i` as a signed number.
    unsafe fn word_byte(v: Self::B, i: i32) -> Self::B;
    /// Word by word `v << shift`.
    unsafe fn lift_words(v: Self::B, shift: i32) -> Self::B;
    /// Signed words to f32; exact below 2^24.
    unsafe fn words_to_f32(v: Self::B) -> Self::F;
    /// Integers to signed words that hold them.
    unsafe fn f32_to_words(v: Self::F) -> Self::B;
    /// Writes 16 integers of at most 127 as signed bytes.
    unsafe fn store_codes(p: *mut u8, v: Self::F);
    /// Rounds (ties to even) and writes 16 numbers within ±32,767 as signed shorts.
    unsafe fn store_shorts(p: *mut i16, v: Self::F);
    /// Word by word, over its two signed shorts: `acc + sum of a b`, which is within 31 bits.
    unsafe fn dot_shorts(acc: Self::B, a: Self::B, b: Self::B) -> Self::B;
    /// `v`, computed by now: compilers else put off what leads to a sum until it is used, behind branches that it doesn't
    /// depend on, and keep all of its operands meanwhile. Where vectors are registers; elsewhere nothing.
    #[inline(always)]
    unsafe fn by_now(v: Self::F) -> Self::F {
        v
    }
    /// Reads 16 f16.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Reads 16 signed bytes.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// Word by word, over its four bytes: `acc + sum of w x`. `x` is signed and not -128; `w` is unsigned where it is
    /// [`Self::UNSIGNED`], and signed elsewhere.
    unsafe fn dot(acc: Self::B, w: Self::B, x: Self::B) -> Self::B;
    /// By pairs of bytes, in 16 bits: `acc + sum of w x`, where `w` is unsigned, `x` signed, and sums have room.
    unsafe fn dot_pairs(_acc: Self::B, _w: Self::B, _x: Self::B) -> Self::B {
        unreachable!("only where there are PAIRS")
    }
    /// Word by word: `acc` and the sums of two pairs.
    unsafe fn add_pairs(_acc: Self::B, _pairs: Self::B) -> Self::B {
        unreachable!("only where there are PAIRS")
    }
    /// Words of `a` and `b` in turns.
    unsafe fn interleave(_a: Self::B, _b: Self::B) -> [Self::B; 2] {
        unreachable!("only where there are MATRICES")
    }
    /// What [`Self::interleave`] did, undone.
    unsafe fn apart(_a: Self::B, _b: Self::B) -> [Self::B; 2] {
        unreachable!("only where there are MATRICES")
    }
    /// [`Self::dot`] step by step, by words of each of `R` rows `x`. `w` are as many vectors, an even number of them, each
    /// two [interleaved](Self::interleave).
    unsafe fn dots<const R: usize>(
        _acc: [Self::B; R],
        _w: *const u8,
        _x: [*const u8; R],
        _steps: usize,
    ) -> [Self::B; R] {
        unreachable!("only where there are MATRICES")
    }
}

/// The words of a vector.
#[inline(always)]
fn words(v: [u8; BYTES]) -> [u32; LANES] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]])
    })
}

#[inline(always)]
fn from_words(v: [u32; LANES]) -> [u8; BYTES] {
    std::array::from_fn(|i| v[i / 4].to_le_bytes()[i % 4])
}

// SAFETY: plain Rust runs anywhere; pointers are the caller's promise.
unsafe impl Bytes for Portable {
    type B = [u8; BYTES];
    const BYTE_TILE: (usize, usize) = (2, 1);

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: the caller gives 64 readable bytes.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        // SAFETY: the caller gives 64 writable bytes.
        unsafe { p.cast::<Self::B>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::B {
        [x; BYTES]
    }
    #[inline(always)]
    unsafe fn splat_word(p: *const u8) -> Self::B {
        // SAFETY: the caller gives four readable bytes.
        let word = unsafe { p.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|i| word[i % 4])
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn bits(v: Self::B, shift: i32, mask: u8) -> Self::B {
        v.map(|x| if shift < 0 { x << -shift } else { x >> shift } & mask)
    }
    #[inline(always)]
    unsafe fn lookup(table: &[i8; 16], v: Self::B) -> Self::B {
        v.map(|x| table[usize::from(x)] as u8)
    }
    #[inline(always)]
    unsafe fn word_bits(v: Self::B, shift: i32, mask: u32) -> Self::B {
        from_words(words(v).map(|x| x >> shift & mask))
    }
    #[inline(always)]
    unsafe fn word_byte(v: Self::B, i: i32) -> Self::B {
        from_words(words(v).map(|x| i32::from((x >> (8 * i)) as u8 as i8) as u32))
    }
    #[inline(always)]
    unsafe fn lift_words(v: Self::B, shift: i32) -> Self::B {
        from_words(words(v).map(|x| x << shift))
    }
    #[inline(always)]
    unsafe fn words_to_f32(v: Self::B) -> Self::F {
        words(v).map(|x| x as i32 as f32)
    }
    #[inline(always)]
    unsafe fn f32_to_words(v: Self::F) -> Self::B {
        from_words(v.map(|x| x as i32 as u32))
    }
    #[inline(always)]
    unsafe fn store_codes(p: *mut u8, v: Self::F) {
        // SAFETY: the caller gives 16 writable bytes.
        unsafe { p.cast::<[u8; LANES]>().write_unaligned(v.map(|x| x as i8 as u8)) }
    }
    #[inline(always)]
    unsafe fn store_shorts(p: *mut i16, v: Self::F) {
        // SAFETY: the caller gives 16 writable shorts.
        unsafe { p.cast::<[i16; LANES]>().write_unaligned(v.map(|x| x.round_ties_even() as i16)) }
    }
    #[inline(always)]
    unsafe fn dot_shorts(acc: Self::B, a: Self::B, b: Self::B) -> Self::B {
        let (acc, a, b) = (words(acc), words(a), words(b));
        let product = |a: u32, b: u32| i32::from(a as i16) * i32::from(b as i16);
        from_words(std::array::from_fn(|i| {
            let more = product(a[i], b[i]).wrapping_add(product(a[i] >> 16, b[i] >> 16));
            acc[i].wrapping_add(more as u32)
        }))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller gives 16 readable f16.
        std::array::from_fn(|i| half::f16::from_bits(unsafe { *p.add(i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: the caller gives 16 readable bytes.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) } as i8))
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::B, w: Self::B, x: Self::B) -> Self::B {
        let acc = words(acc);
        from_words(std::array::from_fn(|i| {
            let product = |j: usize| i32::from(x[4 * i + j] as i8) * i32::from(w[4 * i + j] as i8);
            (acc[i] as i32 + (0..4).map(product).sum::<i32>()) as u32
        }))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::Bytes;
    use crate::simd::{Avx2, Avx512, Avx512Bf16};

    /// Both halves; no closure, which would be compiled without the instruction set.
    macro_rules! each {
        ($v:ident, $f:ident($($arg:tt)*)) => {{
            let [a, b] = $v;
            [{ let $v = a; $f($($arg)*) }, { let $v = b; $f($($arg)*) }]
        }};
        ($v:ident, $f:ident::<$n:literal>($($arg:tt)*)) => {{
            let [a, b] = $v;
            [{ let $v = a; $f::<$n>($($arg)*) }, { let $v = b; $f::<$n>($($arg)*) }]
        }};
    }

    // SAFETY: of the impl and of every block in it: AVX2, FMA, F16C and, where it says so, AVX-VNNI are the
    // caller's promise, and so are pointers.
    unsafe impl<const VNNI: bool> Bytes for Avx2<VNNI> {
        type B = [__m256i; 2];
        const UNSIGNED: bool = VNNI;
        const PAIRS: Option<usize> = if VNNI { None } else { Some(2) };
        const BYTE_TILE: (usize, usize) = (if VNNI { 4 } else { 2 }, 1);

        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> Self::B {
            // SAFETY: see the impl.
            unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
        }
        #[inline(always)]
        unsafe fn store_bytes(p: *mut u8, v: Self::B) {
            // SAFETY: see the impl.
            unsafe {
                _mm256_storeu_si256(p.cast(), v[0]);
                _mm256_storeu_si256(p.add(32).cast(), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn splat_byte(x: u8) -> Self::B {
            // SAFETY: see the impl.
            unsafe { [_mm256_set1_epi8(x as i8); 2] }
        }
        #[inline(always)]
        unsafe fn splat_word(p: *const u8) -> Self::B {
            // SAFETY: see the impl.
            unsafe { [_mm256_set1_epi32(p.cast::<i32>().read_unaligned()); 2] }
        }
        #[inline(always)]
        unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe { [_mm256_sub_epi8(a[0], b[0]), _mm256_sub_epi8(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn bits(v: Self::B, shift: i32, mask: u8) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                let (n, mask) = (_mm_cvtsi32_si128(shift.abs()), _mm256_set1_epi8(mask as i8));
                if shift < 0 {
                    each!(v, _mm256_and_si256(_mm256_sll_epi16(v, n), mask))
                } else {
                    each!(v, _mm256_and_si256(_mm256_srl_epi16(v, n), mask))
                }
            }
        }
        #[inline(always)]
        unsafe fn lookup(table: &[i8; 16], v: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                each!(v, _mm256_shuffle_epi8(table, v))
            }
        }
        #[inline(always)]
        unsafe fn word_bits(v: Self::B, shift: i32, mask: u32) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                let (n, mask) = (_mm_cvtsi32_si128(shift), _mm256_set1_epi32(mask as i32));
                each!(v, _mm256_and_si256(_mm256_srl_epi32(v, n), mask))
            }
        }
        #[inline(always)]
        unsafe fn word_byte(v: Self::B, i: i32) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                let up = _mm_cvtsi32_si128(24 - 8 * i);
                each!(v, _mm256_srai_epi32::<24>(_mm256_sll_epi32(v, up)))
            }
        }
        #[inline(always)]
        unsafe fn lift_words(v: Self::B, shift: i32) -> Self::B {
            // SAFETY: see the impl.
            unsafe { each!(v, _mm256_sll_epi32(v, _mm_cvtsi32_si128(shift))) }
        }
        #[inline(always)]
        unsafe fn words_to_f32(v: Self::B) -> Self::F {
            // SAFETY: see the impl.
            unsafe { each!(v, _mm256_cvtepi32_ps(v)) }
        }
        #[inline(always)]
        unsafe fn f32_to_words(v: Self::F) -> Self::B {
            // SAFETY: see the impl.
            unsafe { each!(v, _mm256_cvtps_epi32(v)) }
        }
        #[inline(always)]
        unsafe fn store_codes(p: *mut u8, v: Self::F) {
            // SAFETY: see the impl.
            unsafe {
                let [a, b] = Self::f32_to_words(v);
                let words = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(a, b));
                let (low, high) =
                    (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high));
            }
        }
        #[inline(always)]
        unsafe fn store_shorts(p: *mut i16, v: Self::F) {
            // SAFETY: see the impl.
            unsafe {
                let [a, b] = Self::f32_to_words(v);
                let shorts = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(a, b));
                _mm256_storeu_si256(p.cast(), shorts);
            }
        }
        #[inline(always)]
        unsafe fn dot_shorts(acc: Self::B, a: Self::B, b: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                if VNNI {
                    return [
                        _mm256_dpwssd_avx_epi32(acc[0], a[0], b[0]),
                        _mm256_dpwssd_avx_epi32(acc[1], a[1], b[1]),
                    ];
                }
                [
                    _mm256_add_epi32(acc[0], _mm256_madd_epi16(a[0], b[0])),
                    _mm256_add_epi32(acc[1], _mm256_madd_epi16(a[1], b[1])),
                ]
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::F {
            // SAFETY: see the impl.
            unsafe {
                let (low, high) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast()));
                [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const u8) -> Self::F {
            // SAFETY: see the impl.
            unsafe {
                let (low, high) = (_mm_loadl_epi64(p.cast()), _mm_loadl_epi64(p.add(8).cast()));
                [
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
                ]
            }
        }
        /// Without VNNI pairs of products are added in 16 bits: 2 * 127 * 128 fits, as the left factor is made
        /// `|w|` and the right one takes its sign.
        #[inline(always)]
        unsafe fn dot(acc: Self::B, w: Self::B, x: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                if VNNI {
                    return [
                        _mm256_dpbusd_avx_epi32(acc[0], w[0], x[0]),
                        _mm256_dpbusd_avx_epi32(acc[1], w[1], x[1]),
                    ];
                }
                let pairs = [
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[0]), _mm256_sign_epi8(x[0], w[0])),
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[1]), _mm256_sign_epi8(x[1], w[1])),
                ];
                Self::add_pairs(acc, pairs)
            }
        }
        #[inline(always)]
        unsafe fn dot_pairs(acc: Self::B, w: Self::B, x: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                [
                    _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(w[0], x[0])),
                    _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(w[1], x[1])),
                ]
            }
        }
        #[inline(always)]
        unsafe fn add_pairs(acc: Self::B, pairs: Self::B) -> Self::B {
            // SAFETY: see the impl.
            unsafe {
                let ones = _mm256_set1_epi16(1);
                [
                    _mm256_add_epi32(acc[0], _mm256_madd_epi16(pairs[0], ones)),
                    _mm256_add_epi32(acc[1], _mm256_madd_epi16(pairs[1], ones)),
                ]
            }
        }
    }

    macro_rules! avx512 {
        ($name:ident, $unsigned:expr, $pairs:expr, $dot:expr, $dot_shorts:expr) => {
            // SAFETY: of the impl and of every block in it: the instruction set is the caller's promise, and so
            // are pointers.
            unsafe impl Bytes for $name {
                type B = __m512i;
                const UNSIGNED: bool = $unsigned;
                const PAIRS: Option<usize> = $pairs;
                const BYTE_TILE: (usize, usize) = (6, 2);

                #[inline(always)]
                unsafe fn load_bytes(p: *const u8) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_loadu_si512(p.cast()) }
                }
                #[inline(always)]
                unsafe fn store_bytes(p: *mut u8, v: Self::B) {
                    // SAFETY: see the impl.
                    unsafe { _mm512_storeu_si512(p.cast(), v) }
                }
                #[inline(always)]
                unsafe fn splat_byte(x: u8) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_set1_epi8(x as i8) }
                }
                #[inline(always)]
                unsafe fn splat_word(p: *const u8) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
                }
                #[inline(always)]
                unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_or_si512(a, b) }
                }
                #[inline(always)]
                unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_sub_epi8(a, b) }
                }
                #[inline(always)]
                unsafe fn bits(v: Self::B, shift: i32, mask: u8) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe {
                        let n = _mm_cvtsi32_si128(shift.abs());
                        let v =
                            if shift < 0 { _mm512_sll_epi16(v, n) } else { _mm512_srl_epi16(v, n) };
                        _mm512_and_si512(v, _mm512_set1_epi8(mask as i8))
                    }
                }
                #[inline(always)]
                unsafe fn lookup(table: &[i8; 16], v: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe {
                        let table = _mm_loadu_si128(table.as_ptr().cast());
                        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), v)
                    }
                }
                #[inline(always)]
                unsafe fn word_bits(v: Self::B, shift: i32, mask: u32) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe {
                        let shifted = _mm512_srl_epi32(v, _mm_cvtsi32_si128(shift));
                        _mm512_and_si512(shifted, _mm512_set1_epi32(mask as i32))
                    }
                }
                #[inline(always)]
                unsafe fn word_byte(v: Self::B, i: i32) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe {
                        let up = _mm_cvtsi32_si128(24 - 8 * i);
                        _mm512_srai_epi32::<24>(_mm512_sll_epi32(v, up))
                    }
                }
                #[inline(always)]
                unsafe fn lift_words(v: Self::B, shift: i32) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(shift)) }
                }
                #[inline(always)]
                unsafe fn words_to_f32(v: Self::B) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_cvtepi32_ps(v) }
                }
                #[inline(always)]
                unsafe fn f32_to_words(v: Self::F) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_cvtps_epi32(v) }
                }
                #[inline(always)]
                unsafe fn store_codes(p: *mut u8, v: Self::F) {
                    // SAFETY: see the impl.
                    unsafe {
                        let bytes = _mm512_cvtsepi32_epi8(Self::f32_to_words(v));
                        _mm_storeu_si128(p.cast(), bytes);
                    }
                }
                #[inline(always)]
                unsafe fn store_shorts(p: *mut i16, v: Self::F) {
                    // SAFETY: see the impl.
                    unsafe {
                        let shorts = _mm512_cvtepi32_epi16(Self::f32_to_words(v));
                        _mm256_storeu_si256(p.cast(), shorts);
                    }
                }
                #[inline(always)]
                unsafe fn dot_shorts(acc: Self::B, a: Self::B, b: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { $dot_shorts(acc, a, b) }
                }
                #[inline(always)]
                unsafe fn by_now(v: Self::F) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { by_now(v) }
                }
                #[inline(always)]
                unsafe fn load_f16(p: *const u16) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
                }
                #[inline(always)]
                unsafe fn load_i8(p: *const u8) -> Self::F {
                    // SAFETY: see the impl.
                    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
                }
                #[inline(always)]
                unsafe fn dot(acc: Self::B, w: Self::B, x: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { $dot(acc, w, x) }
                }
                #[inline(always)]
                unsafe fn dot_pairs(acc: Self::B, w: Self::B, x: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe { _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, x)) }
                }
                #[inline(always)]
                unsafe fn add_pairs(acc: Self::B, pairs: Self::B) -> Self::B {
                    // SAFETY: see the impl.
                    unsafe {
                        let words = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
                        _mm512_add_epi32(acc, words)
                    }
                }
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn by_now(mut v: __m512) -> __m512 {
        // SAFETY: no instruction.
        unsafe {
            asm!("/* {v} */", v = inout(zmm_reg) v, options(nomem, nostack, preserves_flags));
        }
        v
    }

    /// As AVX2's.
    #[inline(always)]
    unsafe fn dot_signs(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: AVX-512BW is the caller's promise.
        unsafe {
            let negative = _mm512_movepi8_mask(w);
            let signed = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed);
            _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn dot_vnni(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: AVX-512 VNNI is the caller's promise.
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }

    #[inline(always)]
    unsafe fn add_shorts(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: AVX-512BW is the caller's promise.
        unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn add_shorts_vnni(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: AVX-512 VNNI is the caller's promise.
        unsafe { _mm512_dpwssd_epi32(acc, a, b) }
    }

    avx512!(Avx512, false, Some(4), dot_signs, add_shorts);
    avx512!(Avx512Bf16, true, None, dot_vnni, add_shorts_vnni);
}
