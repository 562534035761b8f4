// Causal attention, backward (Dao 2023): weights are computed again from the kept logarithms of their sums.
// With P the weights, dP = dout vᵀ and delta the row sums of dout * out:
//   dS = P * (dP - delta), dv = Pᵀ dout, dk = factor dSᵀ q, dq = factor dS k.
//
// One kernel has a tile of keys in a block and goes through the queries that see it, in a fixed order, also
// over the heads of a group; another has a tile of queries. So nothing is added atomically, for seven
// products in the place of five. Bound by the tensor cores and by reads of shared memory.

// With more than 128 elements two warps share keys, each for half of the columns of dk and dv.
const int SPLIT = HEAD_DIM <= 128 ? 1 : 2;
const int COLUMNS = HEAD_DIM / SPLIT;
const int KEY_M = HEAD_DIM <= 64 ? 2 : 1;
const int KEY_ROWS = 4 * KEY_M * 16;
const int QUERIES = HEAD_DIM <= 64 ? 32 : HEAD_DIM <= 128 ? 48 : 16;

const int ROW_M = HEAD_DIM <= 128 ? 2 : 1;
const int ROWS = 4 * ROW_M * 16;
const int STEP = HEAD_DIM <= 128 ? 32 : 16;

// delta[i] = dout[i] · out[i] of all `n` rows of heads, [n, head_dim], and dout in bf16, which delta is of
// too, so that dP - delta is 0 where it should be. Eight threads have a row. Bound by memory.
extern "C" __global__ void __launch_bounds__(256) attention_delta(
    const float* dout, const float* out, size_t n, int head_dim, float* delta, uint16_t* copy) {
  const size_t row = grid_thread() / 8;
  const int part = threadIdx.x % 8 * 4;
  float sum = 0.0f;
  if (row < n) {
    for (int i = part; i < head_dim; i += 32) {
      const float4 x = *reinterpret_cast<const float4*>(dout + row * head_dim + i);
      const float4 y = *reinterpret_cast<const float4*>(out + row * head_dim + i);
      const uint2 pairs = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
      *reinterpret_cast<uint2*>(copy + row * head_dim + i) = pairs;
      sum = fmaf(__uint_as_float(pairs.x << 16), y.x, sum);
      sum = fmaf(__uint_as_float(pairs.x & 0xffff0000u), y.y, sum);
      sum = fmaf(__uint_as_float(pairs.y << 16), y.z, sum);
      sum = fmaf(__uint_as_float(pairs.y & 0xffff0000u), y.w, sum);
    }
  }
  for (int apart = 4; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
  if (row < n && part == 0) delta[row] = sum;
}

// From products x of queries and keys and y of dout and values to weights and slopes. `lse` is of base 2.
DEVICE void differentiate(float& x, float& y, const Scores& scores, float lse, float delta, bool seen) {
  float slope = 1.0f;
  if (scores.capped) {
    x = scores.bound(x);
    slope -= x * x;  // tanh' = 1 - tanh^2
  }
  x = seen ? exp2_flushed(fmaf(x, scores.scale, -lse)) : 0.0f;
  y = x * (y - delta) * slope;
}

// dk, dv: [rows, kv_heads * head_dim].
extern "C" __global__ void __launch_bounds__(128 * SPLIT) attention_keys(
    const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint16_t* dout, const float* lse,
    const float* delta, const uint32_t* starts, const uint32_t* lens, int spans, int heads, int kv_heads,
    int head_dim, float factor, float cap, int window, float* dk, float* dv) {
  SHARED(uint16_t, keys);
  uint16_t *values = keys + KEY_ROWS * PITCH, *queries = values + KEY_ROWS * PITCH;
  uint16_t* gradients = queries + 2 * QUERIES * PITCH;
  // Of the queries at hand and the next ones: lse and delta.
  float* known = reinterpret_cast<float*>(gradients + QUERIES * PITCH);
  Tile tile;
  if (!find_tile(tile, starts, lens, spans, blockIdx.x, KEY_ROWS, false)) return;
  const int kv_head = blockIdx.y, group = heads / kv_heads;
  const size_t width = size_t(heads) * head_dim, kv_width = size_t(kv_heads) * head_dim;
  const size_t offset = (tile.start + tile.from) * kv_width + kv_head * head_dim;
  const int half = warp_index() / 4 * COLUMNS;
  const int low = warp_index() % 4 * KEY_M * 16, high = low + KEY_M * 16 - 1;
  const Scores scores(factor, cap);

  // Steps: the heads of the group, and for each the tiles of queries from the keys' own on.
  const int end = tile.from < tile.len ? min(tile.len, tile.from + KEY_ROWS - 1 + window) : tile.from;
  const int tiles = (end - tile.from + QUERIES - 1) / QUERIES, steps = group * tiles;
  auto query_at = [&](int step) { return tile.from + step % tiles * QUERIES; };
  auto head_at = [&](int step) { return kv_head * group + step / tiles; };
  auto copy_rows = [&](uint16_t* to, const uint16_t* from, int step) {
    from += (tile.start + query_at(step)) * width + head_at(step) * head_dim;
    copy_tile<QUERIES, 128 * SPLIT>(to, from, width, tile.len - query_at(step), head_dim);
    copy_async_commit();
  };
  float next_lse = 0.0f, next_delta = 0.0f;
  auto load_known = [&](int step) {
    const int p = query_at(step) + threadIdx.x;
    if (threadIdx.x >= QUERIES || p >= tile.len) {
      next_lse = infinity();  // Such a row weighs nothing.
      next_delta = 0.0f;
      return;
    }
    const size_t at = size_t(tile.start + p) * heads + head_at(step);
    next_lse = lse[at] * LOG2_E;
    next_delta = delta[at];
  };
  auto store_known = [&](int step) {
    if (threadIdx.x >= QUERIES) return;
    known[step % 2 * 2 * QUERIES + threadIdx.x] = next_lse;
    known[step % 2 * 2 * QUERIES + QUERIES + threadIdx.x] = next_delta;
  };

  float key_sums[KEY_M][COLUMNS / 8][4], value_sums[KEY_M][COLUMNS / 8][4];
  clear(key_sums);
  clear(value_sums);
  if (steps > 0) {
    copy_tile<KEY_ROWS, 128 * SPLIT>(keys, k + offset, kv_width, tile.len - tile.from, head_dim);
    copy_tile<KEY_ROWS, 128 * SPLIT>(values, v + offset, kv_width, tile.len - tile.from, head_dim);
    copy_rows(queries, q, 0);
    copy_rows(gradients, dout, 0);
    load_known(0);
    store_known(0);
  }
  const Left<KEY_M, false> left_keys(keys + low * PITCH), left_values(values + low * PITCH);
  for (int step = 0; step < steps; step++) {
    const uint16_t* rows = queries + step % 2 * QUERIES * PITCH;
    const bool more = step + 1 < steps;
    copy_async_wait<0>();
    __syncthreads();
    if (more) {
      copy_rows(queries + (step + 1) % 2 * QUERIES * PITCH, q, step + 1);
    }
    // Transposed: keys along the rows, queries along the columns.
    float x[KEY_M][QUERIES / 8][4], y[KEY_M][QUERIES / 8][4];
    const int first = query_at(step), last = first + QUERIES - 1;
    const bool some = some_see(first, last, tile.from + low, tile.from + high, window);
    const bool all = all_see(first, last, tile.from + low, tile.from + high, window);
    if (some) {
      multiply_transposed<Bf16, KEY_M, QUERIES>(x, left_keys, rows);
      multiply_transposed<Bf16, KEY_M, QUERIES>(y, left_values, gradients);
      each(x, [&](float& x, int m, int n, int i) {
        const int key = tile.from + low + m * 16 + i / 2 * 8 + lane_index() / 4;
        const int column = n * 8 + lane_index() % 4 * 2 + i % 2;
        const float* of_column = known + step % 2 * 2 * QUERIES + column;
        const bool seen = all || sees(first + column, key, window);
        differentiate(x, y[m][n][i], scores, of_column[0], of_column[QUERIES], seen);
      });
      multiply<Bf16, QUERIES>(value_sums, x, gradients + half);
    }
    __syncthreads();
    if (more) copy_rows(gradients, dout, step + 1);
    if (more) load_known(step + 1);
    if (some) multiply<Bf16, QUERIES>(key_sums, y, rows + half);
    if (more) store_known(step + 1);
  }

  each(key_sums, [&](float& sum, int m, int n, int i) {
    if (i % 2 == 1) return;
    const int p = low + m * 16 + i / 2 * 8 + lane_index() / 4;
    const int column = half + n * 8 + lane_index() % 4 * 2;
    if (tile.from + p >= tile.room || column >= head_dim) return;
    float2 of_keys = make_float2(0.0f, 0.0f), of_values = of_keys;
    if (tile.from + p < tile.len) {
      of_keys = make_float2(sum * factor, key_sums[m][n][i + 1] * factor);
      of_values = make_float2(value_sums[m][n][i], value_sums[m][n][i + 1]);
    }
    *reinterpret_cast<float2*>(dk + offset + p * kv_width + column) = of_keys;
    *reinterpret_cast<float2*>(dv + offset + p * kv_width + column) = of_values;
  });
}

// dq: [rows, heads * head_dim].
extern "C" __global__ void __launch_bounds__(128) attention_queries(
    const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint16_t* dout, const float* lse,
    const float* delta, const uint32_t* starts, const uint32_t* lens, int spans, int heads, int kv_heads,
    int head_dim, float factor, float cap, int window, float* dq) {
  SHARED(uint16_t, queries);
  uint16_t *gradients = queries + ROWS * PITCH, *keys = gradients + ROWS * PITCH;
  uint16_t* values = keys + 2 * STEP * PITCH;
  Tile tile;
  if (!find_tile(tile, starts, lens, spans, blockIdx.x, ROWS, true)) return;
  const int head = blockIdx.y;
  const size_t width = size_t(heads) * head_dim, kv_width = size_t(kv_heads) * head_dim;
  const size_t at = (tile.start + tile.from) * width + head * head_dim;
  const size_t offset = tile.start * kv_width + head / (heads / kv_heads) * head_dim;
  const int low = warp_index() * ROW_M * 16, high = low + ROW_M * 16 - 1;
  const Scores scores(factor, cap);

  float row_lse[ROW_M][2], row_delta[ROW_M][2];
#pragma unroll
  for (int m = 0; m < ROW_M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int p = tile.from + low + m * 16 + h * 8 + lane_index() / 4;
      const size_t known = size_t(tile.start + p) * heads + head;
      row_lse[m][h] = p < tile.len ? lse[known] * LOG2_E : infinity();
      row_delta[m][h] = p < tile.len ? delta[known] : 0.0f;
    }

  auto copy_keys = [&](uint16_t* to, const uint16_t* from, int key) {
    copy_tile<STEP, 128>(to, from + offset + key * kv_width, kv_width, tile.len - key, head_dim);
    copy_async_commit();
  };
  const int start = first_key(tile.from, window, STEP);
  const int end = tile.from < tile.len ? min(tile.from + ROWS, tile.len) : 0;
  float sums[ROW_M][HEAD_DIM / 8][4];
  clear(sums);
  if (start < end) {
    copy_tile<ROWS, 128>(queries, q + at, width, tile.len - tile.from, head_dim);
    copy_tile<ROWS, 128>(gradients, dout + at, width, tile.len - tile.from, head_dim);
    copy_keys(keys, k, start);
    copy_keys(values, v, start);
  }
  const Left<ROW_M, false> left_queries(queries + low * PITCH), left_gradients(gradients + low * PITCH);
  for (int key = start, step = 0; key < end; key += STEP, step++) {
    const uint16_t* at_hand = keys + step % 2 * STEP * PITCH;
    const bool more = key + STEP < end;
    copy_async_wait<0>();
    __syncthreads();
    if (more) copy_keys(keys + (step + 1) % 2 * STEP * PITCH, k, key + STEP);
    float x[ROW_M][STEP / 8][4], y[ROW_M][STEP / 8][4];
    const bool some = some_see(tile.from + low, tile.from + high, key, key + STEP - 1, window);
    const bool all = all_see(tile.from + low, tile.from + high, key, key + STEP - 1, window);
    if (some) {
      multiply_transposed<Bf16, ROW_M, STEP>(x, left_queries, at_hand);
      multiply_transposed<Bf16, ROW_M, STEP>(y, left_gradients, values);
    }
    __syncthreads();
    if (more) copy_keys(values, v, key + STEP);
    if (!some) continue;
    each(x, [&](float& x, int m, int n, int i) {
      const int p = tile.from + low + m * 16 + i / 2 * 8 + lane_index() / 4;
      const int column = key + n * 8 + lane_index() % 4 * 2 + i % 2;
      const bool seen = all || sees(p, column, window);
      differentiate(x, y[m][n][i], scores, row_lse[m][i / 2], row_delta[m][i / 2], seen);
    });
    multiply<Bf16, STEP>(sums, y, at_hand);
  }

  each(sums, [&](float& sum, int m, int n, int i) {
    if (i % 2 == 1) return;
    const int p = low + m * 16 + i / 2 * 8 + lane_index() / 4;
    const int column = n * 8 + lane_index() % 4 * 2;
    if (tile.from + p >= tile.room || column >= head_dim) return;
    float2 y = make_float2(0.0f, 0.0f);
    if (tile.from + p < tile.len) y = make_float2(sum * factor, sums[m][n][i + 1] * factor);
    *reinterpret_cast<float2*>(dq + at + p * width + column) = y;
  });
}
