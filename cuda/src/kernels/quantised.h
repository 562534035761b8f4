// Matrices of quantised weights as products read them, and what all types of them share.
//
// A matrix [n, k] lies in units: tiles of 16 rows, and in each one after the other 64 columns, or
// the 256 of a block of the K types. A unit is as large as the blocks that it is made of: codes, 64
// columns after the other, such that lanes of a warp find their parts of the fragments of mma_bf16
// side by side, and behind them the numbers (scales and the like), row by row. What fills up the
// last tile and unit is zeros.
//
// A fragment is 16 columns of a tile. A lane with g = lane / 4 and t = lane % 4 has columns 4t to
// 4t + 3 of rows g and g + 8; of these four, the first two are the product's "2t.." and the last
// two its "2t + 8..". That is another order of the columns, and the same for both operands.
//
// Codes become bf16 without loss: 128 + code is 0x4300 | code, for codes of up to seven bits.

template <class T>
DEVICE T at(const uint8_t* from) {
  return *reinterpret_cast<const T*>(from);
}

DEVICE uint32_t both(uint32_t half) { return half | half << 16; }
DEVICE uint32_t shift(uint32_t x, int left) { return left < 0 ? x >> -left : x << left; }

// (x & mask) | more, in one instruction, which the compiler doesn't see where both are constants.
DEVICE uint32_t and_or(uint32_t x, uint32_t mask, uint32_t more) {
#ifdef EMULATED
  return (x & mask) | more;
#else
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(more));
  return y;
#endif
}

// Both halves of `a` plus those of `b`, as bf16.
DEVICE uint32_t add_bf16(uint32_t a, uint32_t b) {
#ifdef EMULATED
  return pack_bf16(__uint_as_float(a << 16) + __uint_as_float(b << 16),
                   __uint_as_float(a & 0xffff0000u) + __uint_as_float(b & 0xffff0000u));
#else
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
#endif
}

// 2^23 + byte i of a word.
DEVICE float byte_above(uint32_t word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i));
}

// ---- Codes of 64 columns of a tile.

// Four bits, and `HIGH` (0, 1 or 2) more in a plane behind them. Of fragment f, register r's codes
// are at bits 4r and 4r + 16 of word f of a lane; their high bits at HIGH * i and 16 further with i
// = 4f + r, counted on from word to word.
template <int HIGH>
struct Nibbles {
  static constexpr uint32_t BYTES = 512 + 128 * HIGH;
  static constexpr int EACH = HIGH > 0 ? 16 / HIGH : 1;  // registers in a word of high bits

  uint32_t low[4], high[HIGH > 0 ? HIGH : 1];

  DEVICE void load(const uint8_t* codes, uint32_t lane) {
    uint4 v = at<uint4>(codes + lane * 16);
    low[0] = v.x, low[1] = v.y, low[2] = v.z, low[3] = v.w;
    if constexpr (HIGH == 1) {
      high[0] = at<uint32_t>(codes + 512 + lane * 4);
    } else if constexpr (HIGH == 2) {
      uint2 u = at<uint2>(codes + 512 + lane * 8);
      high[0] = u.x, high[1] = u.y;
    }
  }

  // Fragment f, each code more by 128.
  DEVICE void fragment(int f, uint32_t (&a)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      a[r] = and_or(low[f] >> (4 * r), both(15), both(0x4300));
      if constexpr (HIGH > 0) {
        int i = 4 * f + r;
        uint32_t above = shift(high[i / EACH], 4 - HIGH * (i % EACH));
        a[r] = and_or(above, both(HIGH == 1 ? 0x10 : 0x30), a[r]);
      }
    }
  }

  static DEVICE float code(const uint8_t* codes, uint32_t row, uint32_t column) {
    uint32_t lane = row % 8 * 4 + column % 16 / 4, f = column / 16;
    uint32_t r = row / 8 + column % 4 / 2 * 2, upper = 16 * (column % 2);
    uint32_t code = at<uint32_t>(codes + lane * 16 + f * 4) >> (4 * r + upper) & 15;
    if constexpr (HIGH > 0) {
      uint32_t i = 4 * f + r, word = at<uint32_t>(codes + 512 + (lane * HIGH + i / EACH) * 4);
      code |= (word >> (HIGH * (i % EACH) + upper) & ((1 << HIGH) - 1)) << 4;
    }
    return float(code);
  }
};

// Eight bits with a sign. Words 2f and 2f + 1 of a lane are rows g and g + 8 of fragment f, the
// first four words of all lanes before the others. Columns 4t and 4t + 1 are bytes 0 and 2, the
// other two bytes 1 and 3.
struct Bytes {
  static constexpr uint32_t BYTES = 1024;

  uint32_t words[8];

  DEVICE void load(const uint8_t* codes, uint32_t lane) {
    uint4 v = at<uint4>(codes + lane * 16), u = at<uint4>(codes + 512 + lane * 16);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    words[4] = u.x, words[5] = u.y, words[6] = u.z, words[7] = u.w;
  }

  // Fragment f. Seven bits give 128 more; from that goes 128, or with the sign 256: 0x4300 or
  // 0x4380.
  DEVICE void fragment(int f, uint32_t (&a)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      uint32_t v = words[2 * f + r % 2] >> (8 * (r / 2));
      a[r] = add_bf16(and_or(v, both(0x7f), both(0x4300)), and_or(v, both(0x80), both(0xc300)));
    }
  }

  static DEVICE float code(const uint8_t* codes, uint32_t row, uint32_t column) {
    uint32_t lane = row % 8 * 4 + column % 16 / 4, word = column / 16 * 2 + row / 8;
    uint32_t place = column % 4 / 2 + column % 2 * 2;
    return float(at<int8_t>(codes + (word / 4 * 32 + lane) * 16 + word % 4 * 4 + place));
  }
};

// ---- Numbers of a row of a unit: its element is scale * code + least. `weight` is -1/128 of a
// least.

// A scale for 32 columns, f16.
struct Scales {
  static constexpr int GROUP = 32;
  static constexpr uint32_t BYTES = 4;
  static constexpr bool LEAST = false;

  uint32_t d;

  DEVICE void load(const uint8_t* numbers, uint32_t row) { d = at<uint32_t>(numbers + 4 * row); }
  DEVICE float scale(int group) const { return from_f16(uint16_t(group ? d >> 16 : d)); }
};

// A scale and a least for 32 columns, f16.
struct Affine {
  static constexpr int GROUP = 32;
  static constexpr uint32_t BYTES = 8;
  static constexpr bool LEAST = true;

  uint2 dm;

  DEVICE void load(const uint8_t* numbers, uint32_t row) { dm = at<uint2>(numbers + 8 * row); }
  DEVICE float scale(int group) const { return from_f16(uint16_t(group ? dm.y : dm.x)); }
  DEVICE float least(int group) const { return from_f16(uint16_t((group ? dm.y : dm.x) >> 16)); }
  DEVICE float weight(int group) const { return least(group) * (-1.0f / 128); }
};

// Of Q4_K and Q5_K: f16 d and least d, then scales and leasts of 32 columns, six bits each: bytes 0
// to 3 have four scales below two bits of four more, bytes 4 to 7 leasts so, bytes 8 to 11 the
// lower four bits of both.
struct Super {
  static constexpr int GROUP = 32;
  static constexpr uint32_t BYTES = 16;
  static constexpr bool LEAST = true;

  float d, m;
  uint32_t scales[2], leasts[2];

  DEVICE void load(const uint8_t* numbers, uint32_t row) {
    uint4 v = at<uint4>(numbers + 16 * row);
    d = from_f16(uint16_t(v.x)), m = from_f16(uint16_t(v.x >> 16));
    scales[0] = v.y & 0x3f3f3f3fu, scales[1] = (v.w & 0x0f0f0f0fu) | (v.y >> 2 & 0x30303030u);
    leasts[0] = v.z & 0x3f3f3f3fu, leasts[1] = (v.w >> 4 & 0x0f0f0f0fu) | (v.z >> 2 & 0x30303030u);
  }
  // factor * byte, which is exact: as a product with 2^23 + byte less one with 2^23.
  static DEVICE float times(float factor, const uint32_t (&bytes)[2], int group) {
    float byte = byte_above(group < 4 ? bytes[0] : bytes[1], group % 4);
    return fmaf(factor, byte, factor * -8388608.0f);
  }
  DEVICE float scale(int group) const { return times(d, scales, group); }
  DEVICE float least(int group) const { return times(-m, leasts, group); }
  DEVICE float weight(int group) const { return times(m * (1.0f / 128), leasts, group); }
};

// Of Q6_K: scales of 16 columns, eight bits with a sign, and behind those of all rows a factor
// each, f16.
struct Signed {
  static constexpr int GROUP = 16;
  static constexpr uint32_t BYTES = 18;
  static constexpr bool LEAST = false;

  float d;
  uint4 scales;  // each more by 128

  DEVICE void load(const uint8_t* numbers, uint32_t row) {
    scales = at<uint4>(numbers + 16 * row), d = from_f16(at<uint16_t>(numbers + 256 + 2 * row));
    scales.x ^= 0x80808080u, scales.y ^= 0x80808080u;
    scales.z ^= 0x80808080u, scales.w ^= 0x80808080u;
  }
  DEVICE float scale(int group) const {
    uint32_t word = group < 4 ? scales.x : group < 8 ? scales.y : group < 12 ? scales.z : scales.w;
    return d * (byte_above(word, group % 4) - 8388736.0f);
  }
};

// ---- Types. `STEP` units of one are asked for at a time.

// Codes with numbers, `PARTS` times 64 columns; CENTRE is the code that is 0.
template <class Codes_, int PARTS_, class Numbers_, int CENTRE>
struct Quantised {
  using Codes = Codes_;
  using Numbers = Numbers_;
  static constexpr bool PLAIN = false;
  static constexpr int PARTS = PARTS_;
  static constexpr int STEP = PARTS > 1 ? 1 : 2;
  static constexpr uint32_t CODES = PARTS * Codes::BYTES, BYTES = CODES + 16 * Numbers::BYTES;

  Codes codes;

  DEVICE void load(const uint8_t* part, uint32_t lane) { codes.load(part, lane); }

  // Codes around 0, or more by 128 where there is a least.
  DEVICE void fragment(int f, uint32_t (&a)[4]) const {
    codes.fragment(f, a);
    if constexpr (CENTRE > 0) {
#pragma unroll
      for (int r = 0; r < 4; r++) a[r] = add_bf16(a[r], both(0xc300 | CENTRE));
    }
  }

  // Four elements of a row of a unit from `column` on, a multiple of 4.
  static DEVICE void four(const uint8_t* unit, uint32_t row, uint32_t column, float (&y)[4]) {
    Numbers mine;
    mine.load(unit + CODES, row);
    int group = int(column / Numbers::GROUP);
    const uint8_t* part = unit + column / 64 * Codes::BYTES;
    for (uint32_t i = 0; i < 4; i++) {
      float code = Codes::code(part, row, column % 64 + i) - float(CENTRE);
      if constexpr (Numbers::LEAST) y[i] = fmaf(mine.scale(group), code, mine.least(group));
      else y[i] = mine.scale(group) * code;
    }
  }
};

// Numbers of `BITS` bits as they are. Each is the sum of `DIGITS` bf16, without loss unless one of
// them is too small for bf16. A lane's eight numbers of a fragment lie side by side, register by
// register.
template <int BITS, int DIGITS_, bool HALF>
struct Plain {
  static constexpr bool PLAIN = true;
  static constexpr int PARTS = 1;
  static constexpr int STEP = 1;
  static constexpr int DIGITS = DIGITS_;
  static constexpr int WORDS = BITS / 16;  // of 16 bytes, a fragment
  static constexpr uint32_t BYTES = 64 * 16 * BITS / 8;

  uint4 words[4 * WORDS];

  DEVICE void load(const uint8_t* unit, uint32_t lane) {
#pragma unroll
    for (int i = 0; i < 4 * WORDS; i++) words[i] = at<uint4>(unit + (i * 32 + lane) * 16);
  }

  static DEVICE float widen(uint16_t bits) { return HALF ? from_f16(bits) : from_bf16(bits); }

  // Fragment f by its digits, the most significant first.
  DEVICE void fragment(int f, uint32_t (&a)[DIGITS][4]) const {
    if constexpr (DIGITS == 1) {
      a[0][0] = words[f].x, a[0][1] = words[f].y, a[0][2] = words[f].z, a[0][3] = words[f].w;
    } else {
      float rest[8];
      if constexpr (BITS == 16) {
        uint32_t pairs[4] = {words[f].x, words[f].y, words[f].z, words[f].w};
#pragma unroll
        for (int i = 0; i < 8; i++) rest[i] = widen(uint16_t(pairs[i / 2] >> (16 * (i % 2))));
      } else {
        uint4 v = words[2 * f], u = words[2 * f + 1];
        uint32_t bits[8] = {v.x, v.y, v.z, v.w, u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 8; i++) rest[i] = __uint_as_float(bits[i]);
      }
#pragma unroll
      for (int digit = 0; digit < DIGITS; digit++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
          a[digit][r] = pack_bf16(rest[2 * r], rest[2 * r + 1]);
          rest[2 * r] -= __uint_as_float(a[digit][r] << 16);
          rest[2 * r + 1] -= __uint_as_float(a[digit][r] & 0xffff0000u);
        }
      }
    }
  }

  static DEVICE void four(const uint8_t* unit, uint32_t row, uint32_t column, float (&y)[4]) {
    uint32_t lane = row % 8 * 4 + column % 16 / 4, f = column / 16;
    for (uint32_t i = 0; i < 4; i++) {
      uint32_t place = 2 * (row / 8 + i / 2 * 2) + i % 2;
      if constexpr (BITS == 16) {
        y[i] = widen(at<uint16_t>(unit + (f * 32 + lane) * 16 + place * 2));
      } else {
        y[i] = at<float>(unit + ((2 * f + place / 4) * 32 + lane) * 16 + place % 4 * 4);
      }
    }
  }
};

using Q4_0 = Quantised<Nibbles<0>, 1, Scales, 8>;
using Q4_1 = Quantised<Nibbles<0>, 1, Affine, 0>;
using Q5_0 = Quantised<Nibbles<1>, 1, Scales, 16>;
using Q5_1 = Quantised<Nibbles<1>, 1, Affine, 0>;
using Q8_0 = Quantised<Bytes, 1, Scales, 0>;
using Q4_K = Quantised<Nibbles<0>, 4, Super, 0>;
using Q5_K = Quantised<Nibbles<1>, 4, Super, 0>;
using Q6_K = Quantised<Nibbles<2>, 4, Signed, 32>;
using F16 = Plain<16, 2, true>;
using BF16 = Plain<16, 1, false>;
using F32 = Plain<32, 3, false>;
