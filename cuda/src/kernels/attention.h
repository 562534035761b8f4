// What the kernels of attention share: tiles of 16-bit numbers in shared memory, their products on the
// tensor cores, which keys a query sees, and the online softmax (Milakov & Gimelshein 2018; Dao 2023).
//
// HEAD_DIM is a head's size rounded up to one that there is code for. A tile's rows are as long, zeros
// from head_dim on, and a padding makes them an odd number of 16-byte pieces, so that the eight rows of a
// matrix lie in different banks.

const float LOG2_E = 1.4426950408889634f;
const float LN_2 = 0.6931471805599453f;
const int PITCH = HEAD_DIM + 8;
static_assert(HEAD_DIM % 16 == 0, "whole steps of a product");

// Numbers of 16 bits that products take.
struct Bf16 {
  static DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bf16(d, a, b); }
};

struct F16 {
  static DEVICE uint32_t pack(float low, float high) { return pack_f16(low, high); }
  static DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_f16(d, a, b); }
};

// exp2_fast without the instructions that it has for results below 2^-126: 0 here.
DEVICE float exp2_flushed(float x) {
#ifdef EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Calls f(c[m][n][i], m, n, i) for all of them.
template <int M, int N, class F>
DEVICE void each(float (&c)[M][N][4], F f) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) f(c[m][n][i], m, n, i);
}

template <int M, int N>
DEVICE void clear(float (&c)[M][N][4]) {
  each(c, [](float& x, int, int, int) { x = 0.0f; });
}

// M * 16 rows of a tile as the left side of products; in registers if KEPT.
template <int M, bool KEPT>
struct Left {
  const uint16_t* at;
  uint32_t kept[KEPT ? HEAD_DIM / 16 : 1][M][4];

  DEVICE explicit Left(const uint16_t* tile) : at(tile + lane_index() % 16 * PITCH + lane_index() / 16 * 8) {
    if constexpr (KEPT) {
#pragma unroll
      for (int k = 0; k < HEAD_DIM / 16; k++)
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(kept[k][m], at + m * 16 * PITCH + k * 16);
    }
  }

  DEVICE void step(uint32_t (&rows)[M][4], int k) const {
#pragma unroll
    for (int m = 0; m < M; m++) {
      if constexpr (KEPT) {
#pragma unroll
        for (int i = 0; i < 4; i++) rows[m][i] = kept[k][m][i];
      } else {
        load_matrices(rows[m], at + m * 16 * PITCH + k * 16);
      }
    }
  }
};

// c = a bᵀ of b's N rows.
template <class E, int M, int N, bool KEPT>
DEVICE void multiply_transposed(float (&c)[M][N / 8][4], const Left<M, KEPT>& a, const uint16_t* b) {
  const uint32_t lane = lane_index();
  b += (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
  clear(c);
#pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++) {
    uint32_t rows[M][4];
    a.step(rows, k);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t x[4];
      load_matrices(x, b + n * 16 * PITCH + k * 16);
      const uint32_t first[2] = {x[0], x[1]}, second[2] = {x[2], x[3]};
#pragma unroll
      for (int m = 0; m < M; m++) {
        E::mma(c[m][2 * n], rows[m], first);
        E::mma(c[m][2 * n + 1], rows[m], second);
      }
    }
  }
}

// A step of a product whose left side, [16, K], is what other products left in registers: rounded.
template <class E, int K>
DEVICE void round_step(uint32_t (&rows)[4], const float (&p)[K][4], int k) {
  rows[0] = E::pack(p[2 * k][0], p[2 * k][1]);
  rows[1] = E::pack(p[2 * k][2], p[2 * k][3]);
  rows[2] = E::pack(p[2 * k + 1][0], p[2 * k + 1][1]);
  rows[3] = E::pack(p[2 * k + 1][2], p[2 * k + 1][3]);
}

// c += p b: p, [M * 16, K], as above; b: K rows of C columns of a tile.
template <class E, int K, int M, int C>
DEVICE void multiply(float (&c)[M][C][4], const float (&p)[M][K / 8][4], const uint16_t* b) {
  b += lane_index() % 16 * PITCH + lane_index() / 16 * 8;
#pragma unroll
  for (int k = 0; k < K / 16; k++) {
    uint32_t rows[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) round_step<E>(rows[m], p[m], k);
#pragma unroll
    for (int n = 0; n < C / 2; n++) {
      uint32_t x[4];
      load_matrices_transposed(x, b + k * 16 * PITCH + n * 16);
      const uint32_t first[2] = {x[0], x[1]}, second[2] = {x[2], x[3]};
#pragma unroll
      for (int m = 0; m < M; m++) {
        E::mma(c[m][2 * n], rows[m], first);
        E::mma(c[m][2 * n + 1], rows[m], second);
      }
    }
  }
}

// Starts copies of R rows of head_dim numbers to a tile; rows from `rows` on become zeros.
template <int R, int THREADS>
DEVICE void copy_tile(uint16_t* tile, const uint16_t* from, size_t stride, int rows, int head_dim) {
  const int PIECES = HEAD_DIM / 8;
#pragma unroll 2
  for (int i = 0; i < (R * PIECES + THREADS - 1) / THREADS; i++) {
    int piece = i * THREADS + int(threadIdx.x);
    if (R * PIECES % THREADS != 0 && piece >= R * PIECES) break;
    int r = piece / PIECES, column = piece % PIECES * 8;
    bool there = r < rows && column < head_dim;
    copy_async(tile + r * PITCH + column, there ? from + r * stride + column : from, there);
  }
}

// Position p sees keys j <= p with p - j < window.
DEVICE bool sees(int p, int j, int window) { return j <= p && p - j < window; }

// Whether positions low..=high all see keys first..=last.
DEVICE bool all_see(int low, int high, int first, int last, int window) {
  return last <= low && high - first < window;
}

// Whether any of them sees any.
DEVICE bool some_see(int low, int high, int first, int last, int window) {
  return first <= high && low - last < window;
}

// First key that a position sees, down to a multiple of `size`.
DEVICE int first_key(int p, int window, int size) { return max(0, p + 1 - window) / size * size; }

// From products of queries and keys to logarithms (of base 2) of weights.
struct Scores {
  float scale;    // of a product, or of one between -1 and 1 if there is a cap
  float inverse;  // what a product is multiplied by before it is capped
  bool capped;

  DEVICE Scores(float factor, float cap) {
    capped = cap > 0.0f;
    scale = (capped ? cap : factor) * LOG2_E;
    inverse = capped ? factor / cap : 1.0f;
  }

  // tanh(x factor / cap) = 1 - 2 / (1 + e^2x), within 2^-22 of it for any x.
  DEVICE float bound(float x) const {
    return 1.0f - __fdividef(2.0f, 1.0f + exp2_flushed(2.0f * LOG2_E * inverse * x));
  }
};

// What a warp knows of M * 16 queries after some of their keys. A thread has rows m * 16 + h * 8 + lane / 4,
// and every fourth pair of columns.
template <int M, int D = HEAD_DIM>
struct Online {
  float sums[M][D / 8][4];  // of weights times values
  float most[M][2];         // largest logarithm of a weight
  float total[M][2];        // sum of weights, of this thread's keys until `finish`

  DEVICE Online() {
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        most[m][h] = -infinity();
        total[m][h] = 0.0f;
      }
  }

  // From products with keys from `first` on to weights relative to the largest so far. position(m, h) is
  // that of a row, `all` whether all rows see all of the keys.
  template <int N, class Position>
  DEVICE void weigh(float (&x)[M][N][4], const Scores& scores, Position position, bool all, int first,
                    int window) {
    if (scores.capped) each(x, [&](float& score, int, int, int) { score = scores.bound(score); });
    if (!all) {
      each(x, [&](float& score, int m, int n, int i) {
        int key = first + n * 8 + lane_index() % 4 * 2 + i % 2;
        if (!sees(position(m, i / 2), key, window)) score = -infinity();
      });
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float largest = -infinity();
#pragma unroll
        for (int n = 0; n < N; n++) largest = fmaxf(largest, fmaxf(x[m][n][2 * h], x[m][n][2 * h + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
        largest = fmaxf(most[m][h], largest * scores.scale);
        // No key was seen yet: all weights are 0.
        float shift = largest == -infinity() ? 0.0f : largest;
        float keep = exp2_flushed(most[m][h] - shift), sum = 0.0f;
        most[m][h] = largest;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; i++) {
            x[m][n][i] = exp2_flushed(fmaf(x[m][n][i], scores.scale, -shift));
            sum += x[m][n][i];
          }
        total[m][h] = fmaf(total[m][h], keep, sum);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          sums[m][n][2 * h] *= keep;
          sums[m][n][2 * h + 1] *= keep;
        }
      }
  }

  // Sums of all keys.
  DEVICE void finish() {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        total[m][h] += __shfl_xor_sync(ALL_LANES, total[m][h], 1);
        total[m][h] += __shfl_xor_sync(ALL_LANES, total[m][h], 2);
      }
  }

  // Writes the result of a row, or zeros unless it is one, to out and in bf16 to copy, if these are there,
  // from element `at` on.
  DEVICE void store(int m, int h, bool is_row, float* out, uint16_t* copy, size_t at, int head_dim) const {
    const float inverse = 1.0f / total[m][h];
    at += lane_index() % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      if (n * 8 >= head_dim) break;
      float2 y = make_float2(0.0f, 0.0f);
      if (is_row) y = make_float2(sums[m][n][2 * h] * inverse, sums[m][n][2 * h + 1] * inverse);
      if (out) *reinterpret_cast<float2*>(out + at + n * 8) = y;
      if (copy) *reinterpret_cast<uint32_t*>(copy + at + n * 8) = pack_bf16(y.x, y.y);
    }
  }
};

// What goes through keys: four warps of M * 16 queries each, KEYS keys at a time.
const int ATTEND_M = HEAD_DIM <= 128 ? 2 : 1;
const int ATTEND_ROWS = 4 * ATTEND_M * 16;
const int KEYS = 64;

// Shared memory: tiles of ATTEND_ROWS queries, KEYS keys and KEYS values.
struct Tiles {
  uint16_t *queries, *keys, *values;
  DEVICE explicit Tiles(uint16_t* shared)
      : queries(shared), keys(shared + ATTEND_ROWS * PITCH), values(keys + KEYS * PITCH) {}
};

// Takes in keys from `key` up to `end` for the warp's queries, whose positions are from `low` on. The tile of
// queries has been written or is being copied; copy_keys(key) and copy_values(key) start copies of KEYS rows.
//
// The next values come while scores are computed, the next keys while values are added.
template <class E, class CopyKeys, class CopyValues>
DEVICE void attend(Online<ATTEND_M>& online, const Tiles& tiles, const Scores& scores, int low, int key, int end,
                   int window, CopyKeys copy_keys, CopyValues copy_values) {
  const int high = low + ATTEND_M * 16 - 1;
  auto position = [&](int m, int h) { return low + m * 16 + h * 8 + int(lane_index() / 4); };
  copy_async_commit();
  copy_keys(key);
  copy_async_commit();
  copy_async_wait<1>();
  __syncthreads();
  const Left<ATTEND_M, (HEAD_DIM <= 64)> left(tiles.queries + warp_index() * ATTEND_M * 16 * PITCH);
  for (; key < end; key += KEYS) {
    // The keys have come, and nobody reads the values before.
    copy_async_wait<0>();
    __syncthreads();
    copy_values(key);
    copy_async_commit();
    const bool some = some_see(low, high, key, key + KEYS - 1, window);
    const bool all = all_see(low, high, key, key + KEYS - 1, window);
    float x[ATTEND_M][KEYS / 8][4];
    if (some) multiply_transposed<E, ATTEND_M, KEYS>(x, left, tiles.keys);
    copy_async_wait<0>();
    __syncthreads();
    if (some) online.weigh(x, scores, position, all, key, window);
    if (key + KEYS < end) {
      copy_keys(key + KEYS);
      copy_async_commit();
    }
    if (some) multiply<E, KEYS>(online.sums, x, tiles.values);
  }
  online.finish();
}

// A tile of a span's rows.
struct Tile {
  int start;  // row of the span's first position
  int len;    // positions
  int room;   // rows to the next span; those after `len` are of no span
  int from;   // the tile's first position
};

// Tile `index` of `size` rows, in the order of spans; if `backwards` a span's last tile first, as it
// takes longest. starts: [spans + 1], the last of them the number of rows. False if there are not so many.
DEVICE bool find_tile(Tile& tile, const uint32_t* starts, const uint32_t* lens, int spans, int index,
                      int size, bool backwards) {
  const int lane = lane_index();
  for (int first = 0; first < spans; first += 32) {
    int span = first + lane, tiles = 0;
    if (span < spans) tiles = ceil_div(starts[span + 1] - starts[span], size);
    int end = tiles;
    for (int apart = 1; apart < 32; apart *= 2) {
      int before = __shfl_up_sync(ALL_LANES, end, apart);
      if (lane >= apart) end += before;
    }
    uint32_t after = __ballot_sync(ALL_LANES, index < end);
    if (after != 0) {
      int found = __ffs(after) - 1;
      tiles = __shfl_sync(ALL_LANES, tiles, found);
      index -= __shfl_sync(ALL_LANES, end, found) - tiles;
      span = first + found;
      tile.start = starts[span];
      tile.len = lens[span];
      tile.room = starts[span + 1] - tile.start;
      tile.from = (backwards ? tiles - 1 - index : index) * size;
      return true;
    }
    index -= __shfl_sync(ALL_LANES, end, 31);
  }
  return false;
}
