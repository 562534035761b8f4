//! Every operation against portable code, bit for bit, also where kernels seldom go.

use super::*;
use crate::bytes::{BYTES, Bytes};

/// Two vectors of numbers; the second has NaN, which must go
/// through what only chooses or rounds as it does elsewhere.
const NUMBERS: [[f32; LANES]; 2] = [
    [
        0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -3.5, 1e-40, -1e-45, 8388607.5, 3e9, -1e30, 127.0, -127.0,
        0.1, 1.0,
    ],
    [
        -0.0,
        0.0,
        f32::NAN,
        3.0,
        -1.5,
        2.5,
        f32::INFINITY,
        1e-39,
        1e-45,
        -7.25,
        3e9,
        f32::MIN,
        -0.3,
        1.003_906_3,
        1.011_718_8,
        f32::MAX,
    ],
];

/// Bits of all results, in an order of our own.
#[inline(always)]
unsafe fn operations<S: Bytes>(bytes: &[[u8; BYTES]; 2], out: &mut Vec<u32>) {
    // SAFETY: 16 numbers and 64 bytes are there; the instruction set is the caller's promise.
    unsafe {
        let [a, odd] = [S::load(NUMBERS[0].as_ptr()), S::load(NUMBERS[1].as_ptr())];
        let less = S::lt(a, odd);
        // Without NaN, whose bits arithmetic does not promise.
        let b = S::max(odd, S::splat(-1e9));
        let n = S::round(S::max(S::splat(-126.0), S::min(S::splat(127.0), a)));
        let root = S::sqrt(S::max(a, S::splat(0.0)));
        let quotient = S::div(a, S::max(b, S::splat(0.25)));
        for v in [
            b,
            S::max(a, odd),
            S::min(a, odd),
            S::select(less, a, odd),
            S::add(a, b),
            S::sub(a, b),
            S::mul(a, b),
            quotient,
            S::fma(a, S::splat(0.1), b),
            root,
            S::round(b),
            S::scale2(S::splat(1.7), n),
            S::scale2(S::splat(1e-30), n),
            S::pair_bf16(a, odd),
            S::pair_bf16(odd, a),
            // Exact in any rounding.
            S::dot_bf16(n, S::pair_bf16(n, S::splat(3.0)), S::pair_bf16(S::splat(2.0), n)),
            S::load_n(NUMBERS[0].as_ptr(), 5),
            S::splat(S::sum(quotient)),
            S::splat(S::max_lane(b)),
        ] {
            out.extend(S::to_array(v).map(f32::to_bits));
        }
        for v in S::transpose([a, b, n, odd, a, b, n, odd, a, b, n, odd, a, b, n, quotient]) {
            out.extend(S::to_array(v).map(f32::to_bits));
        }
        let mut halves = [0u16; LANES];
        S::store_bf16(halves.as_mut_ptr(), odd);
        out.extend(halves.map(u32::from));
        out.extend(S::to_array(S::splat_pair(halves[3..].as_ptr())).map(f32::to_bits));
        out.extend(S::to_array(S::load_bf16(halves.as_ptr())).map(f32::to_bits));
        let mut other = [0u16; LANES];
        S::store_bf16(other.as_mut_ptr(), a);
        let pairs = S::to_array(S::load_pairs(other.as_ptr(), halves.as_ptr())).map(f32::to_bits);
        out.extend(pairs);
        assert_eq!(pairs, S::to_array(S::pair_bf16(a, odd)).map(f32::to_bits));

        let [x, w] = [S::load_bytes(bytes[0].as_ptr()), S::load_bytes(bytes[1].as_ptr())];
        let least = S::splat_byte(0x81);
        let mut all = vec![
            S::or(x, w),
            S::sub_bytes(x, w),
            S::lift_words(x, 5),
            S::f32_to_words(S::words_to_f32(S::word_byte(x, 1))),
            S::bits(x, -3, 0xf8),
        ];
        for i in 0..8 {
            all.extend([
                S::bits(x, i, 255 >> i),
                S::word_bits(x, 4 * i, 63),
                S::word_byte(x, i / 2),
            ]);
        }
        all.push(S::lookup(&crate::blocks::IQ4, S::bits(x, 0, 15)));
        for x in [S::bits(x, 1, 127), S::sub_bytes(S::splat_byte(0), S::bits(x, 1, 127)), least] {
            // Bytes of the left operand that are the same signed and unsigned.
            all.push(S::dot(x, S::bits(w, 1, 127), x));
        }
        let mut shorts = [[0i16; 2 * LANES]; 2];
        for (shorts, bytes) in shorts.iter_mut().zip(bytes) {
            let (low, high) = shorts.split_at_mut(LANES);
            let v = S::mul(S::load_i8(bytes.as_ptr()), S::splat(255.5));
            S::store_shorts(low.as_mut_ptr(), v);
            S::store_shorts(high.as_mut_ptr(), S::splat(-12.5));
        }
        let [x, y] = shorts.map(|x| S::load_bytes(x.as_ptr().cast()));
        all.extend([x, S::dot_shorts(S::splat_byte(1), x, y), S::dot_shorts(y, x, x)]);
        for v in all {
            let mut words = [0u32; LANES];
            S::store_bytes(words.as_mut_ptr().cast(), v);
            out.extend(words);
        }
        for v in [S::words_to_f32(S::word_bits(x, 0, 0xff_ffff)), S::load_i8(bytes[0].as_ptr())] {
            out.extend(S::to_array(v).map(f32::to_bits));
        }
        out.extend(S::to_array(S::load_f16(bytes[0].as_ptr().cast())).map(f32::to_bits));
        let mut codes = [0u32; 4];
        S::store_codes(
            codes.as_mut_ptr().cast(),
            S::max(S::load_i8(bytes[1].as_ptr()), S::splat(-127.0)),
        );
        let codes: [u8; LANES] = std::mem::transmute(codes);
        out.extend(codes.map(u32::from));
    }
}

#[test]
fn every_operation_gives_the_bits_of_portable_code() {
    // All bytes that differ, and the least, beside the least and others; as f16 they are numbers.
    let bytes = [
        std::array::from_fn(|i| (i * 37 + 11) as u8 & if i % 2 == 1 { 0xbb } else { 0xff }),
        std::array::from_fn(|i| if i % 3 == 0 { 0x80 } else { (i * 91 + 5) as u8 }),
    ];
    let mut first = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut out = Vec::new();
        let (from, to) = (&bytes, &mut out);
        crate::dispatch!(
            isa,
            operations(bytes: &[[u8; BYTES]; 2] = from, out: &mut Vec<u32> = to)
        );
        if first.is_empty() {
            first.clone_from(&out);
        }
        for (i, (got, want)) in out.iter().zip(&first).enumerate() {
            assert_eq!(got, want, "{}: vector {}, lane {}", isa.name(), i / LANES, i % LANES);
        }
        assert_eq!(out.len(), first.len());
    }
}
