// What is done to values and whole parameters, element by element.

extern "C" __global__ void fill(float value, float* y, size_t n) {
  Four v = {{value, value, value, value}};
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) store4(y, i, n, v);
}

// y = a x + b y; what y held doesn't matter if b is 0.
extern "C" __global__ void axpby(float a, const float* x, float b, float* y, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four v = load4(x, i, n), old = {};
    if (b != 0.0f) old = load4(y, i, n);
    for (uint32_t j = 0; j < 4; j++) v.at[j] = fmaf(a, v.at[j], b * old.at[j]);
    store4(y, i, n, v);
  }
}

// y = a y
extern "C" __global__ void scale(float a, float* y, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four v = load4(y, i, n);
    for (uint32_t j = 0; j < 4; j++) v.at[j] *= a;
    store4(y, i, n, v);
  }
}

// y = x in bf16
extern "C" __global__ void round_bf16(const float* x, uint16_t* y, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) store4(y, i, n, load4(x, i, n));
}

// y = x of bf16
extern "C" __global__ void widen_bf16(const uint16_t* x, float* y, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) store4(y, i, n, load4(x, i, n));
}

// The sum of squares of each part of `part` elements; a block a part.
extern "C" __global__ void squares_of_parts(const float* x, size_t n, uint32_t part, float* sums) {
  size_t start = size_t(blockIdx.x) * part;
  size_t end = min(start + part, n);
  float sum = 0.0f;
  for (size_t i = start + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
    Four v = load4(x, i, end);
    for (uint32_t j = 0; j < 4; j++) sum = fmaf(v.at[j], v.at[j], sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
