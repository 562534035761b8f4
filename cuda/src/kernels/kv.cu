// Keys and values of sequences in pages of 64 positions (Kwon et al. 2023), and attention to them.
//
// A page holds, layer by layer and head by head, keys [64, head_dim], then values [64, head_dim], of KV_TYPE.
// With KV_BYTES 1 these are codes, of which 32 of a row share a scale; behind them, in f32, are the scales of
// keys and of values, [64, groups] each. `pages` begins at the layer's first head in the first page.
//
// spans: (first row, rows, positions before them, place of the first row's partial sums or NO_PLACE) of
// each sequence; table: [sequences, table_len], its pages. What there is of all that may change between
// launches that are otherwise the same.

const int PAGE = 64;
const int SCALED = 32;
const uint32_t NO_PLACE = 0xffffffffu;

DEVICE int groups_of(int head_dim) { return (head_dim + SCALED - 1) / SCALED; }

// A head in a page.
struct Head {
  uint8_t *keys, *values;
  float *key_scales, *value_scales;

  DEVICE Head(const uint8_t* pages, size_t page_bytes, uint32_t page, int kv_head, int head_dim) {
    const int codes = PAGE * head_dim * KV_BYTES, scales = KV_BYTES == 1 ? PAGE * groups_of(head_dim) : 0;
    keys = const_cast<uint8_t*>(pages) + page * page_bytes + kv_head * 2 * (codes + scales * sizeof(float));
    values = keys + codes;
    key_scales = reinterpret_cast<float*>(values + codes);
    value_scales = key_scales + scales;
  }
};

// Eight neighbours from a column on, as products take them.
DEVICE uint4 fetch(const uint8_t* rows, const float* scales, int row, int column, int head_dim) {
  const uint8_t* from = rows + (row * head_dim + column) * KV_BYTES;
#if KV_BYTES == 2
  return *reinterpret_cast<const uint4*>(from);
#else
  const uint2 codes = *reinterpret_cast<const uint2*>(from);
  const float scale = scales[row * groups_of(head_dim) + column / SCALED];
  auto pair = [&](uint32_t codes) {
    return KV_TYPE::pack(float(int8_t(codes)) * scale, float(int8_t(codes >> 8)) * scale);
  };
  return make_uint4(pair(codes.x), pair(codes.x >> 16), pair(codes.y), pair(codes.y >> 16));
#endif
}

// Rounds new rows of keys and values, [rows, kv_heads * head_dim], to their places. Blocks (row, sequence).
extern "C" __global__ void __launch_bounds__(128) kv_append(
    const float* k, const float* v, const uint4* spans, const uint32_t* table, uint32_t table_len,
    uint8_t* pages, size_t page_bytes, int kv_heads, int head_dim) {
  const uint4 span = spans[blockIdx.y];
  const int piece_len = KV_BYTES == 1 ? SCALED : 8;
  const int pieces = (head_dim + piece_len - 1) / piece_len;
  for (uint32_t row = blockIdx.x; row < span.y; row += gridDim.x) {
    const uint32_t position = span.z + row, slot = position % PAGE;
    const uint32_t page = table[size_t(blockIdx.y) * table_len + position / PAGE];
    for (int i = threadIdx.x; i < 2 * kv_heads * pieces; i += 128) {
      const int kv_head = i / 2 / pieces, column = i / 2 % pieces * piece_len;
      const bool is_key = i % 2 == 0;
      const float* from = (is_key ? k : v) + (size_t(span.x + row) * kv_heads + kv_head) * head_dim + column;
      const Head head(pages, page_bytes, page, kv_head, head_dim);
      uint8_t* to = (is_key ? head.keys : head.values) + (slot * head_dim + column) * KV_BYTES;
#if KV_BYTES == 2
      const float4 x = *reinterpret_cast<const float4*>(from), y = *reinterpret_cast<const float4*>(from + 4);
      *reinterpret_cast<uint4*>(to) = make_uint4(KV_TYPE::pack(x.x, x.y), KV_TYPE::pack(x.z, x.w),
                                                 KV_TYPE::pack(y.x, y.y), KV_TYPE::pack(y.z, y.w));
#else
      const int len = min(SCALED, head_dim - column);
      float largest = 0.0f;
      bool number = true;
      for (int c = 0; c < len; c++) {
        largest = fmaxf(largest, fabsf(from[c]));
        number = number && from[c] == from[c];
      }
      const float inverse = largest > 1e-36f ? 127.0f / largest : 0.0f;
      for (int c = 0; c < len; c++) to[c] = uint8_t(int8_t(__float2int_rn(from[c] * inverse)));
      // What is no number stays none: the scale hands it on.
      float* scales = is_key ? head.key_scales : head.value_scales;
      scales[slot * groups_of(head_dim) + column / SCALED] =
          number ? largest / 127.0f : infinity() - infinity();
#endif
    }
  }
}

// Attention of many new rows: as attention_forward, with keys from pages. q: [rows, heads * head_dim]. Blocks
// (tile, query head, sequence).
extern "C" __global__ void __launch_bounds__(128) kv_prompt(
    const float* q, const uint8_t* pages, size_t page_bytes, const uint4* spans, const uint32_t* table,
    uint32_t table_len, int heads, int kv_heads, int head_dim, float factor, float cap, int window,
    float* out, uint16_t* copy) {
  SHARED(uint16_t, shared);
  const Tiles tiles(shared);
  const uint4 span = spans[blockIdx.z];
  const int len = span.y, past = span.z, from = (gridDim.x - 1 - blockIdx.x) * ATTEND_ROWS;
  if (span.w != NO_PLACE || from >= len) return;
  const int head = blockIdx.y;
  const size_t width = size_t(heads) * head_dim;
  table += size_t(blockIdx.z) * table_len;
  q += (span.x + from) * width + head * head_dim;

  for (int i = threadIdx.x; i < ATTEND_ROWS * HEAD_DIM / 8; i += 128) {
    const int r = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8;
    uint4 rounded = make_uint4(0, 0, 0, 0);
    if (from + r < len && column < head_dim) {
      const float4* at = reinterpret_cast<const float4*>(q + r * width + column);
      const float4 x = at[0], y = at[1];
      rounded = make_uint4(KV_TYPE::pack(x.x, x.y), KV_TYPE::pack(x.z, x.w), KV_TYPE::pack(y.x, y.y),
                           KV_TYPE::pack(y.z, y.w));
    }
    *reinterpret_cast<uint4*>(tiles.queries + r * PITCH + column) = rounded;
  }

  // A tile of keys is a page; what is not filled yet becomes zeros.
  const int low = past + from + warp_index() * ATTEND_M * 16;
  const int end = past + min(from + ATTEND_ROWS, len);
  auto copy_page = [&](uint16_t* tile, bool keys, int key) {
    const int filled = past + len - key;
    const Head page(pages, page_bytes, table[key / PAGE], head / (heads / kv_heads), head_dim);
    const uint8_t* rows = keys ? page.keys : page.values;
#if KV_BYTES == 2
    copy_tile<PAGE, 128>(tile, reinterpret_cast<const uint16_t*>(rows), head_dim, filled, head_dim);
#else
    const float* scales = keys ? page.key_scales : page.value_scales;
#pragma unroll 1
    for (int i = threadIdx.x; i < PAGE * HEAD_DIM / 8; i += 128) {
      const int r = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (r < filled && column < head_dim) x = fetch(rows, scales, r, column, head_dim);
      *reinterpret_cast<uint4*>(tile + r * PITCH + column) = x;
    }
#endif
  };
  Online<ATTEND_M> online;
  attend<KV_TYPE>(
      online, tiles, Scores(factor, cap), low, first_key(past + from, window, KEYS), end, window,
      [&](int key) { copy_page(tiles.keys, true, key); }, [&](int key) { copy_page(tiles.values, false, key); });

#pragma unroll
  for (int m = 0; m < ATTEND_M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int p = low + m * 16 + h * 8 + lane_index() / 4 - past;
      if (p < len) online.store(m, h, true, out, copy, (span.x + p) * width + head * head_dim, head_dim);
    }
}

// Attention of a few new rows, in two steps (Dao et al. 2023, Flash-Decoding): over segments of 256
// positions, here, and over the segments. Segments are where they are whatever else is in the batch, so a
// sequence's results do not depend on that.
//
// A block has 16 lines (row by row the query heads of a key head) and a segment; each of its warps has a
// page and goes from memory to products without shared memory: bound by memory, of which a lane asks for
// 16 bytes at a time and many at once. For that, elements are in another order than products' own. Of
// queries and keys, 32 elements are two steps in which lane t of four has elements 8t to 8t + 7; of values,
// column g of tile j of 64 elements is element 8g + j.

const int SEGMENT = 4 * PAGE;
const int WIDE = (HEAD_DIM + 63) / 64 * 64;
const int LINES = 16;

// sums: [places, heads, segments, head_dim]; stats: [places, heads, segments], the largest logarithm of a
// weight and the sum of weights. Blocks (tile of lines and which of `stride` segments, key head, sequence).
extern "C" __global__ void __launch_bounds__(128) kv_decode(
    const float* q, const uint8_t* pages, size_t page_bytes, const uint4* spans, const uint32_t* table,
    uint32_t table_len, uint32_t segments, uint32_t stride, int heads, int kv_heads, int head_dim, float factor,
    float cap, int window, float* sums, float2* stats) {
  SHARED(float, of_warps);  // [4, LINES, WIDE], then most and total, [4, LINES, 2]
  float* known = of_warps + 4 * LINES * WIDE;
  const uint4 span = spans[blockIdx.z];
  const int kv_head = blockIdx.y, group = heads / kv_heads, first_line = blockIdx.x / stride * LINES;
  const int lines = span.y * group, past = span.z, end = past + int(span.y);
  if (span.w == NO_PLACE || first_line >= lines) return;
  // Positions of the first and the last line.
  const int low = past + first_line / group, high = past + min(first_line + LINES - 1, lines - 1) / group;
  const int g = lane_index() / 4, t = lane_index() % 4;
  auto line_at = [&](int h) { return first_line + h * 8 + g; };
  const int first_segment = first_key(low, window, SEGMENT) / SEGMENT + blockIdx.x % stride;
  for (int segment = first_segment; segment <= high / SEGMENT; segment += stride) {
    const int first = segment * SEGMENT + warp_index() * PAGE;
    Online<1, WIDE> online;
    if (some_see(low, high, first, first + PAGE - 1, window)) {
      const Head page(pages, page_bytes, table[size_t(blockIdx.z) * table_len + first / PAGE], kv_head, head_dim);
      uint32_t queries[WIDE / 16][4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int line = line_at(h);
        const size_t row = size_t(span.x + line / group) * heads + kv_head * group + line % group;
#pragma unroll
        for (int k = 0; k < WIDE / 32; k++) {
          const int column = k * 32 + t * 8;
          float4 x = make_float4(0, 0, 0, 0), y = x;
          if (line < lines && column < head_dim) {
            const float4* at = reinterpret_cast<const float4*>(q + row * head_dim + column);
            x = at[0];
            y = at[1];
          }
          queries[2 * k][h] = KV_TYPE::pack(x.x, x.y);
          queries[2 * k][2 + h] = KV_TYPE::pack(x.z, x.w);
          queries[2 * k + 1][h] = KV_TYPE::pack(y.x, y.y);
          queries[2 * k + 1][2 + h] = KV_TYPE::pack(y.z, y.w);
        }
      }
      float scores[1][PAGE / 8][4];
      clear(scores);
#pragma unroll
      for (int n = 0; n < PAGE / 8; n++)
#pragma unroll
        for (int k = 0; k < WIDE / 32; k++) {
          const int key = n * 8 + g, column = k * 32 + t * 8;
          uint4 x = make_uint4(0, 0, 0, 0);
          if (first + key < end && column < head_dim) x = fetch(page.keys, page.key_scales, key, column, head_dim);
          const uint32_t step[2] = {x.x, x.y}, next[2] = {x.z, x.w};
          KV_TYPE::mma(scores[0][n], queries[2 * k], step);
          KV_TYPE::mma(scores[0][n], queries[2 * k + 1], next);
        }
      online.weigh(
          scores, Scores(factor, cap), [&](int, int h) { return past + line_at(h) / group; },
          all_see(low, high, first, first + PAGE - 1, window), first, window);
#pragma unroll
      for (int k = 0; k < PAGE / 16; k++) {
        uint32_t weights[4];
        round_step<KV_TYPE>(weights, scores[0], k);
#pragma unroll
        for (int c = 0; c < WIDE / 64; c++) {
          // Of keys 2t, 2t + 1, 2t + 8 and 2t + 9 of the step.
          uint32_t x[4][4];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int key = k * 16 + 2 * t + i / 2 * 8 + i % 2, column = c * 64 + g * 8;
            uint4 y = make_uint4(0, 0, 0, 0);
            if (first + key < end && column < head_dim)
              y = fetch(page.values, page.value_scales, key, column, head_dim);
            x[i][0] = y.x;
            x[i][1] = y.y;
            x[i][2] = y.z;
            x[i][3] = y.w;
          }
#pragma unroll
          for (int j = 0; j < 8; j++) {
            // Element j of two keys.
            const uint32_t half = j % 2 == 0 ? 0x5410 : 0x7632;
            const uint32_t step[2] = {__byte_perm(x[0][j / 2], x[1][j / 2], half),
                                      __byte_perm(x[2][j / 2], x[3][j / 2], half)};
            KV_TYPE::mma(online.sums[0][c * 8 + j], weights, step);
          }
        }
      }
      online.finish();
    }

    // The pages of the segment together, in order.
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int at = warp_index() * LINES + h * 8 + g;
      if (t == 0) {
        known[2 * at] = online.most[0][h];
        known[2 * at + 1] = online.total[0][h];
      }
#pragma unroll
      for (int c = 0; c < WIDE / 64; c++)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int j = 0; j < 8; j += 4) {
            const float(*y)[4] = &online.sums[0][c * 8 + j];
            *reinterpret_cast<float4*>(of_warps + at * WIDE + c * 64 + (2 * t + i) * 8 + j) =
                make_float4(y[0][2 * h + i], y[1][2 * h + i], y[2][2 * h + i], y[3][2 * h + i]);
          }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < LINES * WIDE / 4; i += 128) {
      const int line = i / (WIDE / 4), column = i % (WIDE / 4) * 4;
      if (first_line + line >= lines || column >= head_dim) continue;
      float most = -infinity();
      for (int w = 0; w < 4; w++) most = fmaxf(most, known[2 * (w * LINES + line)]);
      const float shift = most == -infinity() ? 0.0f : most;
      float4 sum = make_float4(0, 0, 0, 0);
      float total = 0.0f;
      for (int w = 0; w < 4; w++) {
        const int at = w * LINES + line;
        const float weight = exp2_flushed(known[2 * at] - shift);
        const float4 x = *reinterpret_cast<const float4*>(of_warps + at * WIDE + column);
        sum = make_float4(fmaf(x.x, weight, sum.x), fmaf(x.y, weight, sum.y), fmaf(x.z, weight, sum.z),
                          fmaf(x.w, weight, sum.w));
        total = fmaf(known[2 * at + 1], weight, total);
      }
      const size_t place = span.w + (first_line + line) / group;
      const size_t at = (place * heads + kv_head * group + (first_line + line) % group) * segments + segment;
      *reinterpret_cast<float4*>(sums + at * head_dim + column) = sum;
      if (column == 0) stats[at] = make_float2(most, total);
    }
    __syncthreads();
  }
}

// The segments together, in order. Blocks (query head, row, sequence).
extern "C" __global__ void __launch_bounds__(64) kv_combine(
    const float* sums, const float2* stats, const uint4* spans, uint32_t segments, int heads, int head_dim,
    int window, float* out, uint16_t* copy) {
  const uint4 span = spans[blockIdx.z];
  if (span.w == NO_PLACE || blockIdx.y >= span.y) return;
  const int position = span.z + blockIdx.y;
  const int first = first_key(position, window, SEGMENT) / SEGMENT, last = position / SEGMENT;
  const size_t at = (size_t(span.w + blockIdx.y) * heads + blockIdx.x) * segments;
  float most = -infinity(), total = 0.0f;
  for (int s = first; s <= last; s++) most = fmaxf(most, stats[at + s].x);
  for (int s = first; s <= last; s++) {
    total = fmaf(stats[at + s].y, exp2_flushed(stats[at + s].x - most), total);
  }
  for (int column = threadIdx.x * 4; column < head_dim; column += 64 * 4) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int s = first; s <= last; s++) {
      const float weight = exp2_flushed(stats[at + s].x - most);
      const float4 x = *reinterpret_cast<const float4*>(sums + (at + s) * head_dim + column);
      sum = make_float4(fmaf(x.x, weight, sum.x), fmaf(x.y, weight, sum.y), fmaf(x.z, weight, sum.z),
                        fmaf(x.w, weight, sum.w));
    }
    const float inverse = 1.0f / total;
    const size_t to = (size_t(span.x + blockIdx.y) * heads + blockIdx.x) * head_dim + column;
    const float4 y = make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
    if (out) *reinterpret_cast<float4*>(out + to) = y;
    if (copy) {
      *reinterpret_cast<uint2*>(copy + to) = make_uint2(pack_bf16(y.x, y.y), pack_bf16(y.z, y.w));
    }
  }
}
