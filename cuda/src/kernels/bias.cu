// A vector on every row, and sums over rows. (After columns.h.)

// y[r] = b, or += with `more`; a block a row.
extern "C" __global__ void add_bias(const float* b, float* y, uint32_t width, int more) {
  y += size_t(blockIdx.x) * width;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(b, c, width), old = {};
    if (more) old = load4(y, c, width);
    for (uint32_t j = 0; j < 4; j++) v.at[j] += old.at[j];
    store4(y, c, width, v);
  }
}

extern "C" __global__ void column_sums(const float* dy, uint32_t rows, uint32_t width, float* parts) {
  sum_part(rows, width, parts,
           [=](uint32_t row, uint32_t col) { return load4(dy + size_t(row) * width, col, width); });
}

// sums += the sum of the parts, [count, width]; 1024 threads for 32 columns.
extern "C" __global__ void __launch_bounds__(1024)
add_parts(const float* parts, uint32_t count, uint32_t width, float* sums) {
  __shared__ float shared[32][33];
  uint32_t col = 32 * blockIdx.x + lane_index();
  float sum = 0.0f;
  if (col < width)
    for (uint32_t part = warp_index(); part < count; part += 32) sum += parts[size_t(part) * width + col];
  shared[warp_index()][lane_index()] = sum;
  __syncthreads();
  // Warp w sums column w.
  float total = warp_sum(shared[lane_index()][warp_index()]);
  col = 32 * blockIdx.x + warp_index();
  if (lane_index() == 0 && col < width) sums[col] += total;
}
