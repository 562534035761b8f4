// RMS norm of rows. (After columns.h.)

// y = x inv w, inv = 1 / sqrt(mean(x^2) + eps); a block a row.
extern "C" __global__ void rms_norm(const float* x, const float* w, float eps, uint32_t width, float* y,
                                    uint16_t* y_bf16, float* inv) {
  size_t start = size_t(blockIdx.x) * width;
  x += start;
  float sum = 0.0f;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width);
    for (uint32_t j = 0; j < 4; j++) sum = fmaf(v.at[j], v.at[j], sum);
  }
  float scale = 1.0f / sqrtf(block_sum(sum) / float(width) + eps);
  if (inv && threadIdx.x == 0) inv[blockIdx.x] = scale;
  if (y) y += start;
  if (y_bf16) y_bf16 += start;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width), weight = load4(w, c, width);
    for (uint32_t j = 0; j < 4; j++) v.at[j] = v.at[j] * scale * weight.at[j];
    store4(y, y_bf16, c, width, v);
  }
}

// With g = dy w: dx = inv g - x inv^3 mean(g x), or += with `more`; a block a row.
extern "C" __global__ void rms_norm_backward(const float* x, const float* w, const float* inv,
                                             const float* dy, uint32_t width, float* dx, int more) {
  size_t start = size_t(blockIdx.x) * width;
  x += start;
  dy += start;
  dx += start;
  float sum = 0.0f;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width), d = load4(dy, c, width), weight = load4(w, c, width);
    for (uint32_t j = 0; j < 4; j++) sum = fmaf(d.at[j] * weight.at[j], v.at[j], sum);
  }
  float scale = inv[blockIdx.x];
  float slope = -(scale * scale * scale) * (block_sum(sum) / float(width));
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width), d = load4(dy, c, width), weight = load4(w, c, width), old = {};
    if (more) old = load4(dx, c, width);
    for (uint32_t j = 0; j < 4; j++)
      v.at[j] = old.at[j] + fmaf(v.at[j], slope, scale * (d.at[j] * weight.at[j]));
    store4(dx, c, width, v);
  }
}

// Parts of dw = sum of dy x inv.
extern "C" __global__ void rms_norm_weight(const float* x, const float* inv, const float* dy, uint32_t rows,
                                           uint32_t width, float* parts) {
  sum_part(rows, width, parts, [=](uint32_t row, uint32_t col) {
    Four v = load4(x + size_t(row) * width, col, width), d = load4(dy + size_t(row) * width, col, width);
    for (uint32_t j = 0; j < 4; j++) v.at[j] = d.at[j] * (v.at[j] * inv[row]);
    return v;
  });
}
