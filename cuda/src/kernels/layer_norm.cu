// Layer norm of rows. (After columns.h.)

// y = (x - mean) inv w + b, inv = 1 / sqrt(variance + eps); stats: [rows, 2], mean and inv. A block a row.
extern "C" __global__ void layer_norm(const float* x, const float* w, const float* b, float eps,
                                      uint32_t width, float* y, uint16_t* y_bf16, float* stats) {
  size_t start = size_t(blockIdx.x) * width;
  x += start;
  float sum = 0.0f;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width);
    for (uint32_t j = 0; j < 4; j++) sum += v.at[j];
  }
  float mean = block_sum(sum) / float(width);
  sum = 0.0f;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width);
    for (uint32_t j = 0; j < 4; j++) {
      float apart = c + j < width ? v.at[j] - mean : 0.0f;
      sum = fmaf(apart, apart, sum);
    }
  }
  float inv = 1.0f / sqrtf(block_sum(sum) / float(width) + eps);
  if (stats && threadIdx.x == 0) {
    stats[2 * blockIdx.x] = mean;
    stats[2 * blockIdx.x + 1] = inv;
  }
  if (y) y += start;
  if (y_bf16) y_bf16 += start;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width), weight = load4(w, c, width), bias = load4(b, c, width);
    for (uint32_t j = 0; j < 4; j++) v.at[j] = fmaf((v.at[j] - mean) * inv, weight.at[j], bias.at[j]);
    store4(y, y_bf16, c, width, v);
  }
}

// With g = dy w, u = (x - mean) inv: dx = inv (g - mean(g) - u mean(g u)), or += with `more`; a block a row.
extern "C" __global__ void layer_norm_backward(const float* x, const float* w, const float* stats,
                                               const float* dy, uint32_t width, float* dx, int more) {
  size_t start = size_t(blockIdx.x) * width;
  x += start;
  dy += start;
  dx += start;
  float mean = stats[2 * blockIdx.x], inv = stats[2 * blockIdx.x + 1];
  float slopes = 0.0f, along = 0.0f;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width), d = load4(dy, c, width), weight = load4(w, c, width);
    for (uint32_t j = 0; j < 4; j++) {
      float slope = d.at[j] * weight.at[j];
      slopes += slope;
      along = fmaf(slope, (v.at[j] - mean) * inv, along);
    }
  }
  slopes = block_sum(slopes) / float(width);
  along = block_sum(along) / float(width);
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width), d = load4(dy, c, width), weight = load4(w, c, width), old = {};
    if (more) old = load4(dx, c, width);
    for (uint32_t j = 0; j < 4; j++) {
      float unit = (v.at[j] - mean) * inv;
      v.at[j] = fmaf(inv, d.at[j] * weight.at[j] - slopes - unit * along, old.at[j]);
    }
    store4(dx, c, width, v);
  }
}

// Parts of dw = sum of dy u.
extern "C" __global__ void layer_norm_weight(const float* x, const float* stats, const float* dy,
                                             uint32_t rows, uint32_t width, float* parts) {
  sum_part(rows, width, parts, [=](uint32_t row, uint32_t col) {
    Four v = load4(x + size_t(row) * width, col, width), d = load4(dy + size_t(row) * width, col, width);
    float mean = stats[2 * row], inv = stats[2 * row + 1];
    for (uint32_t j = 0; j < 4; j++) v.at[j] = d.at[j] * ((v.at[j] - mean) * inv);
    return v;
  });
}
