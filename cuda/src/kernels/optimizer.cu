// Steps of optimizers, bound by memory: each goes over a parameter once, and writes what products
// read of it in the same pass. Gradients are multiplied by a factor from memory, which clipping has
// left there, if there is one.

DEVICE float factor_of(const float* factor) { return factor ? *factor : 1.0f; }

// to[0]: the root of the sum of all `sums`, in f64 and a fixed order; to[1]: what makes a gradient
// that is longer than `limit` (if not 0) as long as that. One block.
extern "C" __global__ void __launch_bounds__(256) clip_factor(
    const float* sums, size_t n, float limit, float* to) {
  __shared__ double parts[256];
  double sum = 0.0;
  for (size_t i = threadIdx.x; i < n; i += 256) sum += double(sums[i]);
  parts[threadIdx.x] = sum;
  for (uint32_t apart = 128; apart > 0; apart /= 2) {
    __syncthreads();
    if (threadIdx.x < apart) parts[threadIdx.x] += parts[threadIdx.x + apart];
  }
  if (threadIdx.x > 0) return;
  double norm = sqrt(parts[0]);
  to[0] = float(norm);
  to[1] = limit > 0.0f && norm > double(limit) ? float(double(limit) / norm) : 1.0f;
}

// AdamW (Loshchilov and Hutter 2019), element by element in the operations of the CPU's:
//   m = beta1 m + rest1 g,  v = beta2 v + rest2 g²,  x = keep x - rate m / (sqrt(root v) + eps)
extern "C" __global__ void adamw(
    float* x, uint16_t* x_bf16, const float* g, const float* factor, float* m, float* v, size_t n,
    float beta1, float rest1, float beta2, float rest2, float rate, float root, float eps,
    float keep) {
  const float by = factor_of(factor);
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four x4 = load4(x, i, n), g4 = load4(g, i, n), m4 = load4(m, i, n), v4 = load4(v, i, n);
    for (uint32_t j = 0; j < 4; j++) {
      float gradient = __fmul_rn(by, g4.at[j]);
      m4.at[j] = __fmaf_rn(beta1, m4.at[j], __fmul_rn(rest1, gradient));
      v4.at[j] = __fmaf_rn(beta2, v4.at[j], __fmul_rn(rest2, __fmul_rn(gradient, gradient)));
      float step = m4.at[j] / __fadd_rn(sqrtf(__fmul_rn(v4.at[j], root)), eps);
      x4.at[j] = __fmaf_rn(-rate, step, __fmul_rn(keep, x4.at[j]));
    }
    store4(m, i, n, m4);
    store4(v, i, n, v4);
    store4(x, x_bf16, i, n, x4);
  }
}

// Muon's momentum with Nesterov's look-ahead.
DEVICE float ahead(float mu, float momentum, float gradient) {
  return __fmaf_rn(mu, momentum, gradient);
}

// momentum = mu momentum + g, and the sums of squares of parts of `part` elements of the
// look-ahead, g + mu momentum; a block a part.
extern "C" __global__ void muon_momentum(
    const float* g, const float* factor, float mu, float* momentum, size_t n, uint32_t part,
    float* sums) {
  const float by = factor_of(factor);
  size_t start = size_t(blockIdx.x) * part, end = min(start + part, n);
  float sum = 0.0f;
  for (size_t i = start + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
    Four g4 = load4(g, i, end), m4 = load4(momentum, i, end);
    for (uint32_t j = 0; j < 4; j++) {
      float gradient = __fmul_rn(by, g4.at[j]);
      m4.at[j] = __fadd_rn(gradient, __fmul_rn(mu, m4.at[j]));
      float u = ahead(mu, m4.at[j], gradient);
      sum = fmaf(u, u, sum);
    }
    store4(momentum, i, end, m4);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// x = (g + mu momentum) / norm in bf16; zeros if that is shorter than `least`.
extern "C" __global__ void muon_start(
    const float* g, const float* factor, float mu, const float* momentum, const float* norm,
    float least, uint16_t* x, size_t n) {
  const float by = factor_of(factor), length = *norm;
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four g4 = load4(g, i, n), m4 = load4(momentum, i, n);
    for (uint32_t j = 0; j < 4; j++) {
      float u = ahead(mu, m4.at[j], __fmul_rn(by, g4.at[j]));
      m4.at[j] = length < least ? 0.0f : u / length;
    }
    store4(x, i, n, m4);
  }
}

// y = b gram + c square in bf16
extern "C" __global__ void muon_polynomial(
    const float* gram, float b, const float* square, float c, uint16_t* y, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four gram4 = load4(gram, i, n), square4 = load4(square, i, n);
    for (uint32_t j = 0; j < 4; j++)
      gram4.at[j] = __fmaf_rn(b, gram4.at[j], __fmul_rn(c, square4.at[j]));
    store4(y, i, n, gram4);
  }
}

// x = a x + product, of bf16
extern "C" __global__ void muon_next(float a, const float* product, uint16_t* x, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four x4 = load4(x, i, n), product4 = load4(product, i, n);
    for (uint32_t j = 0; j < 4; j++) x4.at[j] = __fmaf_rn(a, x4.at[j], product4.at[j]);
    store4(x, i, n, x4);
  }
}

// w = keep w - rate (a x + product): the last step, and that of the parameter.
extern "C" __global__ void muon_update(
    float a, const uint16_t* x, const float* product, float rate, float keep, float* w,
    uint16_t* w_bf16, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four x4 = load4(x, i, n), product4 = load4(product, i, n), w4 = load4(w, i, n);
    for (uint32_t j = 0; j < 4; j++) {
      float u = __fmaf_rn(a, x4.at[j], product4.at[j]);
      w4.at[j] = __fmaf_rn(-rate, u, __fmul_rn(keep, w4.at[j]));
    }
    store4(w, w_bf16, i, n, w4);
  }
}
