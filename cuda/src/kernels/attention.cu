// Causal attention, forward (Dao 2023, FlashAttention-2): a block has a tile of queries of a head and
// goes through the keys that they see, 64 at a time; scores exist in registers only.
//
// q: [rows, heads * head_dim], k, v: [rows, kv_heads * head_dim], bf16. The next values come while scores
// are computed, the next keys while values are added. Bound by the tensor cores (mma.sync) where spans are
// long: a key row of a tile serves 128 queries, and each fragment of keys 32 of a warp.

const int WARPS = 4;
const int M = HEAD_DIM <= 128 ? 2 : 1;
const int ROWS = WARPS * M * 16;
const int KEYS = 64;

extern "C" __global__ void __launch_bounds__(128) attention_forward(
    const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint32_t* starts, const uint32_t* lens,
    int spans, int heads, int kv_heads, int head_dim, float factor, float cap, int window, float* out,
    uint16_t* copy, float* lse) {
  SHARED(uint16_t, queries);
  uint16_t *keys = queries + ROWS * PITCH, *values = keys + KEYS * PITCH;
  Tile tile;
  if (!find_tile(tile, starts, lens, spans, blockIdx.x, ROWS, true)) return;
  const int head = blockIdx.y;
  const size_t width = size_t(heads) * head_dim, kv_width = size_t(kv_heads) * head_dim;
  q += (tile.start + tile.from) * width + head * head_dim;
  const size_t offset = tile.start * kv_width + head / (heads / kv_heads) * head_dim;
  k += offset;
  v += offset;

  const int end = tile.from < tile.len ? min(tile.from + ROWS, tile.len) : 0;
  const int low = tile.from + warp_index() * M * 16, high = low + M * 16 - 1;
  auto position = [&](int m, int h) { return low + m * 16 + h * 8 + int(lane_index() / 4); };

  const Scores scores(factor, cap);
  Online<M> online;
  int key = first_key(tile.from, window, KEYS);
  copy_tile<ROWS, 128>(queries, q, width, tile.len - tile.from, head_dim);
  copy_async_commit();
  copy_tile<KEYS, 128>(keys, k + key * kv_width, kv_width, tile.len - key, head_dim);
  copy_async_commit();
  copy_async_wait<1>();
  __syncthreads();
  const Left<M, (HEAD_DIM <= 64)> left(queries + warp_index() * M * 16 * PITCH);
  for (; key < end; key += KEYS) {
    // The keys have come, and nobody reads the values before.
    copy_async_wait<0>();
    __syncthreads();
    copy_tile<KEYS, 128>(values, v + key * kv_width, kv_width, tile.len - key, head_dim);
    copy_async_commit();
    const bool some = some_see(low, high, key, key + KEYS - 1, window);
    float x[M][KEYS / 8][4];
    if (some) multiply_transposed<Bf16, M, KEYS>(x, left, keys);
    copy_async_wait<0>();
    __syncthreads();
    if (some) online.weigh(x, scores, position, all_see(low, high, key, key + KEYS - 1, window), key, window);
    if (key + KEYS < end) {
      copy_tile<KEYS, 128>(keys, k + (key + KEYS) * kv_width, kv_width, tile.len - key - KEYS, head_dim);
      copy_async_commit();
    }
    if (some) multiply<Bf16, KEYS>(online.sums, x, values);
  }
  online.finish();

#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int p = position(m, h);
      if (p >= tile.room) continue;
      const float inverse = p < tile.len ? 1.0f / online.total[m][h] : 0.0f;
      const size_t row = tile.start + p, at = row * width + head * head_dim;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++) {
        const int column = n * 8 + lane_index() % 4 * 2;
        if (n * 8 >= head_dim) break;
        float2 y = make_float2(0.0f, 0.0f);
        if (p < tile.len) {
          y = make_float2(online.sums[m][n][2 * h] * inverse, online.sums[m][n][2 * h + 1] * inverse);
        }
        if (out) *reinterpret_cast<float2*>(out + at + column) = y;
        if (copy) *reinterpret_cast<uint32_t*>(copy + at + column) = pack_bf16(y.x, y.y);
      }
      if (lane_index() % 4 == 0) {
        lse[row * heads + head] = p < tile.len ? online.most[m][h] * LN_2 + logf(online.total[m][h]) : 0.0f;
      }
    }
}
