// Norm and rotation of heads. (After columns.h.) Of a head of `dim` elements the first 2 n are rotated, i
// and n + i as a pair; table: [positions, 2, n], cosines and sines. Positions past the table give NaN.

// Cosine and sine of pair i at a position.
DEVICE float2 angle(const float* table, uint32_t positions, uint32_t position, uint32_t n, uint32_t i) {
  if (position >= positions) return make_float2(infinity() - infinity(), 0.0f);
  const float* row = table + size_t(position) * 2 * n;
  return make_float2(row[i], row[n + i]);
}

// y = rotate(norm(x)); without w there is no norm. x, y: [rows, heads, dim]; a warp a head.
extern "C" __global__ void norm_rotate(const float* x, const float* w, float eps, const float* table,
                                       uint32_t positions, const uint32_t* position, uint32_t rows,
                                       uint32_t heads, uint32_t dim, uint32_t n, float* y,
                                       uint16_t* y_bf16, float* inv) {
  size_t head = size_t(blockIdx.x) * (blockDim.x / 32) + warp_index();
  if (head >= size_t(rows) * heads) return;
  size_t start = head * dim;
  x += start;
  float scale = 1.0f;
  if (w) {
    float sum = 0.0f;
    for (uint32_t i = lane_index(); i < dim; i += 32) sum = fmaf(x[i], x[i], sum);
    scale = 1.0f / sqrtf(warp_sum(sum) / float(dim) + eps);
    if (inv && lane_index() == 0) inv[head] = scale;
  }
  auto put = [=](uint32_t i, float value) {
    if (y) y[start + i] = value;
    if (y_bf16) y_bf16[start + i] = to_bf16(value);
  };
  uint32_t at = position[head / heads];
  for (uint32_t i = lane_index(); i < n; i += 32) {
    float2 turn = angle(table, positions, at, n, i);
    float a = x[i], b = x[n + i];
    if (w) {
      a = a * scale * w[i];
      b = b * scale * w[n + i];
    }
    put(i, a * turn.x - b * turn.y);
    put(n + i, fmaf(b, turn.x, a * turn.y));
  }
  for (uint32_t i = 2 * n + lane_index(); i < dim; i += 32) put(i, w ? x[i] * scale * w[i] : x[i]);
}

// Element i of a head's gradient, turned back.
DEVICE float turned_back(const float* dy, const float* table, uint32_t positions, uint32_t position,
                         uint32_t n, uint32_t i) {
  if (i >= 2 * n) return dy[i];
  uint32_t pair = i < n ? i : i - n;
  float2 turn = angle(table, positions, position, n, pair);
  float a = dy[pair], b = dy[n + pair];
  return i < n ? fmaf(a, turn.x, b * turn.y) : b * turn.x - a * turn.y;
}

// dx from dy, which are apart; a warp a head. With d the gradient turned back and g = d w:
// dx = inv g - x inv^3 mean(g x); without w dx = d.
extern "C" __global__ void norm_rotate_backward(const float* x, const float* w, const float* inv,
                                                const float* table, uint32_t positions,
                                                const uint32_t* position, const float* dy, uint32_t rows,
                                                uint32_t heads, uint32_t dim, uint32_t n, float* dx,
                                                uint16_t* dx_bf16) {
  size_t head = size_t(blockIdx.x) * (blockDim.x / 32) + warp_index();
  if (head >= size_t(rows) * heads) return;
  size_t start = head * dim;
  dy += start;
  uint32_t at = position[head / heads];
  float scale = 1.0f, slope = 0.0f;
  if (w) {
    x += start;
    float sum = 0.0f;
    for (uint32_t i = lane_index(); i < dim; i += 32)
      sum = fmaf(turned_back(dy, table, positions, at, n, i) * w[i], x[i], sum);
    scale = inv[head];
    slope = -(scale * scale * scale) * (warp_sum(sum) / float(dim));
  }
  for (uint32_t i = lane_index(); i < dim; i += 32) {
    float d = turned_back(dy, table, positions, at, n, i);
    if (w) d = fmaf(x[i], slope, scale * (d * w[i]));
    if (dx) dx[start + i] = d;
    if (dx_bf16) dx_bf16[start + i] = to_bf16(d);
  }
}

// Parts of dw = sum over all heads of d x inv.
extern "C" __global__ void norm_rotate_weight(const float* x, const float* inv, const float* table,
                                              uint32_t positions, const uint32_t* position,
                                              const float* dy, uint32_t rows, uint32_t heads, uint32_t dim,
                                              uint32_t n, float* parts) {
  sum_part(rows * heads, dim, parts, [=](uint32_t head, uint32_t col) {
    size_t start = size_t(head) * dim;
    Four v = load4(x + start, col, dim);
    uint32_t at = position[head / heads];
    for (uint32_t j = 0; j < 4; j++) {
      float d = col + j < dim ? turned_back(dy + start, table, positions, at, n, col + j) : 0.0f;
      v.at[j] = d * (v.at[j] * inv[head]);
    }
    return v;
  });
}
