// Causal attention, forward (Dao 2023, FlashAttention-2): a block has a tile of queries of a head and
// goes through the keys that they see; scores exist in registers only.
//
// q: [rows, heads * head_dim], k, v: [rows, kv_heads * head_dim], bf16. Bound by the tensor cores
// (mma.sync) where spans are long: a key of a tile serves 128 queries, and each fragment of keys 32.

extern "C" __global__ void __launch_bounds__(128) attention_forward(
    const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint32_t* starts, const uint32_t* lens,
    int spans, int heads, int kv_heads, int head_dim, float factor, float cap, int window, float* out,
    uint16_t* copy, float* lse) {
  SHARED(uint16_t, shared);
  const Tiles tiles(shared);
  Tile tile;
  if (!find_tile(tile, starts, lens, spans, blockIdx.x, ATTEND_ROWS, true)) return;
  const int head = blockIdx.y;
  const size_t width = size_t(heads) * head_dim, kv_width = size_t(kv_heads) * head_dim;
  q += (tile.start + tile.from) * width + head * head_dim;
  const size_t offset = tile.start * kv_width + head / (heads / kv_heads) * head_dim;
  k += offset;
  v += offset;

  const int low = tile.from + warp_index() * ATTEND_M * 16;
  const int end = tile.from < tile.len ? min(tile.from + ATTEND_ROWS, tile.len) : 0;
  Online<ATTEND_M> online;
  copy_tile<ATTEND_ROWS, 128>(tiles.queries, q, width, tile.len - tile.from, head_dim);
  attend<Bf16>(
      online, tiles, Scores(factor, cap), low, first_key(tile.from, window, KEYS), end, window,
      [&](int key) { copy_tile<KEYS, 128>(tiles.keys, k + key * kv_width, kv_width, tile.len - key, head_dim); },
      [&](int key) { copy_tile<KEYS, 128>(tiles.values, v + key * kv_width, kv_width, tile.len - key, head_dim); });

#pragma unroll
  for (int m = 0; m < ATTEND_M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int p = low + m * 16 + h * 8 + lane_index() / 4;
      if (p >= tile.room) continue;
      const bool is_row = p < tile.len;
      const size_t row = tile.start + p;
      online.store(m, h, is_row, out, copy, row * width + head * head_dim, head_dim);
      if (lane_index() % 4 == 0) {
        lse[row * heads + head] = is_row ? online.most[m][h] * LN_2 + logf(online.total[m][h]) : 0.0f;
      }
    }
}
