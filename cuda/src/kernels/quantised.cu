// Products y = x wᵀ with few rows of x, and elements, of weights of a TYPE: w [n, k], x [rows, k]
// as bf16, y [rows, n].
//
// Tiles of 16 rows of w are the left operand of the tensor cores and eight rows of x the right one,
// so one row of x costs as much as eight. The warps of a block take units of a tile in turn, and
// each has a ring of shared memory for those that are on the way. An output is the sum, over warps
// in order, of chains over their units' groups:
//   y = scale * (sum of codes * x) + y,   y = least * (sum of x) + y
// where sums over a group are the tensor cores', of exact products. Plain numbers are one chain of
// the tensor cores a warp. None of that depends on other rows of x, or on how many there are.
//
// Bound by memory up to 16 rows: a warp has two steps on the way, 2 to 13 KB.

const uint32_t WARPS = 8;

// Four columns of a row of x.
DEVICE void activations(const uint16_t* x, uint32_t (&b)[2]) {
  uint2 v = __ldg(reinterpret_cast<const uint2*>(x));
  b[0] = v.x, b[1] = v.y;
}

// Adds the products of 64 columns from `column` on (the lane's first) of each tile and 8 * GROUPS
// rows of x, which begin at `x + row[c]`. Columns that aren't there have weights of 0, and any
// others of x in their place.
template <class W, int TILES, int GROUPS>
DEVICE void add_plain(const W (&w)[TILES], const uint16_t* x, const uint32_t (&row)[GROUPS],
                      uint32_t column, uint32_t k, float (&total)[TILES][GROUPS][4]) {
#pragma unroll
  for (int f = 0; f < 4; f++) {
    uint32_t a[TILES][W::DIGITS][4];
#pragma unroll
    for (int i = 0; i < TILES; i++) w[i].fragment(f, a[i]);
#pragma unroll
    for (int c = 0; c < GROUPS; c++) {
      uint32_t b[2];
      activations(x + row[c] + min(column + 16 * f, k - 4), b);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int digit = 0; digit < W::DIGITS; digit++) mma_bf16(total[i][c], a[i][digit], b);
      }
    }
  }
}

// The same of 64 columns of codes, part `part` of a unit with these numbers of the lane's two rows.
template <class W, int TILES, int GROUPS, class Numbers>
DEVICE void add_codes(const W (&w)[TILES], const Numbers (&numbers)[TILES][2], int part,
                      const uint16_t* x, const uint32_t (&row)[GROUPS], uint32_t column, uint32_t k,
                      float (&total)[TILES][GROUPS][4]) {
  constexpr int EACH = Numbers::GROUP / 16;  // fragments of a group
  const uint32_t minus_128[4] = {both(0xc300), both(0xc300), both(0xc300), both(0xc300)};
#pragma unroll
  for (int first = 0; first < 4; first += EACH) {
    int group = (4 * part + first) / EACH;
    // Rows of blocks of 32 may end in the middle.
    uint32_t ahead = W::PARTS > 1 || first < 2 || column + 32 < k ? 16 * first : 0;
    uint32_t a[TILES][EACH][4];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int f = 0; f < EACH; f++) w[i].fragment(first + f, a[i][f]);
    }
#pragma unroll
    for (int c = 0; c < GROUPS; c++) {
      const uint16_t* from = x + row[c] + column;
      uint32_t b[EACH][2];
#pragma unroll
      for (int f = 0; f < EACH; f++) activations(from + ahead + 16 * f, b[f]);
      // -128 times the sum of x: what codes that are more by 128 start from, and the sum for a
      // least.
      float start[4] = {0, 0, 0, 0};
      if constexpr (Numbers::LEAST) {
#pragma unroll
        for (int f = 0; f < EACH; f++) mma_bf16(start, minus_128, b[f]);
      }
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        float sum[4] = {start[0], start[1], start[2], start[3]};
#pragma unroll
        for (int f = 0; f < EACH; f++) mma_bf16(sum, a[i][f], b[f]);
#pragma unroll
        for (int v = 0; v < 4; v++) {
          const Numbers& mine = numbers[i][v / 2];
          total[i][c][v] = fmaf(mine.scale(group), sum[v], total[i][c][v]);
          if constexpr (Numbers::LEAST)
            total[i][c][v] = fmaf(mine.weight(group), start[v], total[i][c][v]);
        }
      }
    }
  }
}

// Block (i, j): tiles `TILES * i` on by rows `8 * GROUPS * j` on of x. A warp goes by steps of
// W::STEP of its units, and its ring has room for three of these, or two where they are large. Shared
// memory: the rings, WARPS * DEPTH * PLACE bytes.
template <class W, int TILES, int GROUPS>
DEVICE void product(const uint8_t* w, const uint16_t* x, float* y, uint32_t n, uint32_t k,
                    uint32_t rows, uint32_t more) {
  constexpr int DEPTH = TILES * W::BYTES > 8000 ? 2 : 3;
  constexpr uint32_t STRIDE = W::STEP * WARPS, PLACE = W::STEP * TILES * W::BYTES;
  SHARED(uint8_t, memory);
  uint32_t lane = lane_index(), warp = warp_index();
  uint32_t tiles = ceil_div(n, 16), units = ceil_div(k, 64 * W::PARTS);
  uint32_t first_tile = blockIdx.x * TILES, first_row = blockIdx.y * 8 * GROUPS;
  uint8_t* ring = memory + warp * (DEPTH * PLACE);

  // Asks for the units of the next step, those that there are; a group of copies in any case.
  const uint8_t* next[TILES];
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    size_t tile = min(first_tile + i, tiles - 1);
    next[i] = w + (tile * units + warp) * W::BYTES + lane * 16;
  }
  auto ask = [&](uint32_t unit, uint8_t* place) {
#pragma unroll
    for (int s = 0; s < W::STEP; s++) {
      if (unit + WARPS * s >= units) break;
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const uint8_t* from = next[i] + WARPS * s * W::BYTES;
        uint8_t* to = place + (s * TILES + i) * W::BYTES + lane * 16;
#pragma unroll
        for (uint32_t byte = 0; byte < W::BYTES; byte += 512) {
          if (byte + 512 <= W::BYTES || byte + lane * 16 < W::BYTES)
            copy_async(to + byte, from + byte, true);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) next[i] += STRIDE * W::BYTES;
    copy_async_commit();
  };

  // Rows that aren't there are the last one again, and go nowhere.
  x += size_t(first_row) * k;
  uint32_t row[GROUPS];
#pragma unroll
  for (int c = 0; c < GROUPS; c++) row[c] = min(8 * c + lane / 4, rows - 1 - first_row) * k;
  float total[TILES][GROUPS][4] = {};
#pragma unroll
  for (uint32_t d = 0; d + 1 < DEPTH; d++) ask(warp + STRIDE * d, ring + d * PLACE);
  uint8_t *here = ring, *free = ring + (DEPTH - 1) * PLACE;
  for (uint32_t unit = warp; unit < units; unit += STRIDE) {
    copy_async_wait<DEPTH - 2>();
    __syncwarp();
    ask(unit + STRIDE * (DEPTH - 1), free);
#pragma unroll
    for (int s = 0; s < W::STEP; s++) {
      if (s > 0 && unit + WARPS * s >= units) break;
      const uint8_t* mine = here + s * TILES * W::BYTES;
      uint32_t column = (unit + WARPS * s) * (64 * W::PARTS) + lane % 4 * 4;
      W part[TILES];
      if constexpr (W::PLAIN) {
#pragma unroll
        for (int i = 0; i < TILES; i++) part[i].load(mine + i * W::BYTES, lane);
        add_plain(part, x, row, column, k, total);
      } else {
        typename W::Numbers numbers[TILES][2];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          const uint8_t* from = mine + i * W::BYTES + W::CODES;
          numbers[i][0].load(from, lane / 4), numbers[i][1].load(from, lane / 4 + 8);
        }
#pragma unroll
        for (int p = 0; p < W::PARTS; p++) {
#pragma unroll
          for (int i = 0; i < TILES; i++)
            part[i].load(mine + i * W::BYTES + p * (W::CODES / W::PARTS), lane);
          add_codes(part, numbers, p, x, row, column + 64 * p, k, total);
        }
      }
    }
    free = here;
    here = here == ring + (DEPTH - 1) * PLACE ? ring : here + PLACE;
  }
  copy_async_wait<0>();

  // The sums of all warps, eight rows of x at a time.
  float* sums = reinterpret_cast<float*>(memory);  // [WARPS][TILES][4][32]
#pragma unroll
  for (int c = 0; c < GROUPS; c++) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int v = 0; v < 4; v++) sums[((warp * TILES + i) * 4 + v) * 32 + lane] = total[i][c][v];
    }
    __syncthreads();
    for (uint32_t j = threadIdx.x; j < TILES * 128; j += WARPS * 32) {
      uint32_t i = j / 128, column = j % 128 / 16, r = j % 16;
      uint32_t to = (first_tile + i) * 16 + r, from = first_row + 8 * c + column;
      if (to >= n || from >= rows) continue;
      const float* mine = sums + (i * 4 + r / 8 * 2 + column % 2) * 32 + r % 8 * 4 + column / 2;
      float sum = 0.0f;
      for (uint32_t s = 0; s < WARPS; s++) sum += mine[s * TILES * 128];
      float* out = y + size_t(from) * n + to;
      *out = more ? *out + sum : sum;
    }
  }
}

// At least two blocks at a time, and the rest of the registers for work side by side in a warp.
extern "C" __global__ void __launch_bounds__(256, 2) quantised_product_8(
    const uint8_t* w, const uint16_t* x, float* y, uint32_t n, uint32_t k, uint32_t rows,
    uint32_t more) {
  product<TYPE, 1, 1>(w, x, y, n, k, rows, more);
}

// One block of the K types, which need more registers.
extern "C" __global__ void __launch_bounds__(256, TYPE::PARTS > 1 ? 1 : 2) quantised_product_16(
    const uint8_t* w, const uint16_t* x, float* y, uint32_t n, uint32_t k, uint32_t rows,
    uint32_t more) {
  product<TYPE, 2, 2>(w, x, y, n, k, rows, more);
}

// For more rows than memory alone sets the pace of.
extern "C" __global__ void __launch_bounds__(256) quantised_product_32(
    const uint8_t* w, const uint16_t* x, float* y, uint32_t n, uint32_t k, uint32_t rows,
    uint32_t more) {
  product<TYPE, 2, 4>(w, x, y, n, k, rows, more);
}

// Row `chosen[i]`, or `start + i` without these, of w [n, k] to row i of either output. What is no
// row of w is NaN.
extern "C" __global__ void quantised_rows(
    const uint8_t* w, const uint32_t* chosen, uint32_t start, float* y, uint16_t* y_bf16,
    uint32_t n, uint32_t k, uint32_t count) {
  using W = TYPE;
  const uint32_t WIDTH = 64 * W::PARTS;
  uint32_t fours = k / 4, units = ceil_div(k, WIDTH);
  size_t all = size_t(count) * fours;
  for (size_t i = grid_thread(); i < all; i += grid_threads()) {
    uint32_t to = uint32_t(i / fours), column = uint32_t(i % fours) * 4;
    uint32_t row = chosen ? chosen[to] : start + to;
    const float none = __uint_as_float(0x7fffffffu);
    Four v = {{none, none, none, none}};
    if (row < n) {
      const uint8_t* unit = w + (size_t(row / 16) * units + column / WIDTH) * W::BYTES;
      W::four(unit, row % 16, column % WIDTH, v.at);
    }
    store4(y, y_bf16, 4 * i, 4 * all, v);
  }
}
