// What is done to values and whole parameters, element by element.

extern "C" __global__ void fill(float value, float* y, size_t n) {
  for (size_t i = grid_thread(); i < n; i += grid_threads()) y[i] = value;
}

// y = a x + b y; what y held doesn't matter if b is 0.
extern "C" __global__ void axpby(float a, const float* x, float b, float* y, size_t n) {
  for (size_t i = grid_thread(); i < n; i += grid_threads())
    y[i] = b == 0.0f ? a * x[i] : fmaf(a, x[i], b * y[i]);
}

// y = a y
extern "C" __global__ void scale(float a, float* y, size_t n) {
  for (size_t i = grid_thread(); i < n; i += grid_threads()) y[i] *= a;
}

// y = x in bf16
extern "C" __global__ void round_bf16(const float* x, uint16_t* y, size_t n) {
  for (size_t i = grid_thread(); i < n; i += grid_threads()) y[i] = to_bf16(x[i]);
}

// y = x of bf16
extern "C" __global__ void widen_bf16(const uint16_t* x, float* y, size_t n) {
  for (size_t i = grid_thread(); i < n; i += grid_threads()) y[i] = from_bf16(x[i]);
}

// The sum of squares of each part of `part` elements; a block a part.
extern "C" __global__ void squares_of_parts(const float* x, size_t n, uint32_t part, float* sums) {
  size_t start = size_t(blockIdx.x) * part;
  size_t end = min(start + part, n);
  float sum = 0.0f;
  for (size_t i = start + threadIdx.x; i < end; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
