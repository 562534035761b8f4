// Rows of logits: cross-entropy, and the likeliest token. A block has a row. Bound by memory: cross-entropy
// with a gradient reads a row twice, which the second time is in the second cache if it isn't too long.

const float LOG2_E = 1.4426950408889634f;

// The logit that counts, and in `slope` its derivative.
DEVICE float capped(float x, float cap, float& slope) {
  slope = 1.0f;
  if (cap <= 0.0f) return x;
  const float y = tanhf(x / cap);
  slope = 1.0f - y * y;
  return cap * y;
}

// nats[r] = -ln softmax(logits[r])[targets[r]], 0 where the target is `ignore`, NaN where there is no such
// token. With weights the gradient of sum(weights * nats) goes to `rounded` in bf16, or without that in the
// place of the logits. With a cap logits count as cap * tanh(logit / cap). logits: [rows, vocab]
extern "C" __global__ void __launch_bounds__(512) cross_entropy(
    float* logits, const uint32_t* targets, const float* weights, uint32_t vocab, uint32_t ignore, float cap,
    float* nats, uint16_t* rounded) {
  const uint32_t row = blockIdx.x, target = targets[row];
  logits += size_t(row) * vocab;
  if (rounded) rounded += size_t(row) * vocab;
  float *in_place = rounded ? nullptr : logits, slope;
  if (target >= vocab) {
    if (threadIdx.x == 0) nats[row] = target == ignore ? 0.0f : infinity() - infinity();
    if (!weights) return;
    for (uint32_t i = 4 * threadIdx.x; i < vocab; i += 4 * blockDim.x) store4(in_place, rounded, i, vocab, Four{});
    return;
  }
  // Sums relative to the largest so far; not -infinity, from which -infinity has no distance.
  float most = -3e38f, sum = 0.0f;
#pragma unroll 4
  for (uint32_t i = 4 * threadIdx.x; i < vocab; i += 4 * blockDim.x) {
    Four x = load4(logits, i, vocab);
    float largest = most;
    for (uint32_t j = 0; j < 4; j++) {
      x.at[j] = i + j < vocab ? capped(x.at[j], cap, slope) : -infinity();
      largest = fmaxf(largest, x.at[j]);
    }
    sum *= exp2_fast((most - largest) * LOG2_E);
    for (uint32_t j = 0; j < 4; j++) sum += exp2_fast((x.at[j] - largest) * LOG2_E);
    most = largest;
  }
  const float largest = block_max(most);
  sum = block_sum(sum * exp2_fast((most - largest) * LOG2_E));
  if (threadIdx.x == 0) nats[row] = largest - capped(logits[target], cap, slope) + logf(sum);
  if (!weights) return;
  __syncthreads();
  const float weight = weights[row], scale = weight / sum;
#pragma unroll 4
  for (uint32_t i = 4 * threadIdx.x; i < vocab; i += 4 * blockDim.x) {
    Four x = load4(logits, i, vocab);
    for (uint32_t j = 0; j < 4; j++) {
      const float y = capped(x.at[j], cap, slope), p = scale * exp2_fast((y - largest) * LOG2_E);
      x.at[j] = (i + j == target ? p - weight : p) * slope;
    }
    store4(in_place, rounded, i, vocab, x);
  }
}

// Whether (a, at) comes before (b, other): larger or not a number, or as large and earlier.
DEVICE bool precedes(float a, uint32_t at, float b, uint32_t other) {
  if (a != a || b != b) return a != a && (b == b || at < other);
  return a > b || (a == b && at < other);
}

// ids[r]: the first of the largest of x[r], or of what is no number; tops[r]: that. x: [rows, width].
extern "C" __global__ void __launch_bounds__(1024) argmax(const float* x, uint32_t width, uint32_t* ids, float* tops) {
  __shared__ float shared_tops[32];
  __shared__ uint32_t shared_ids[32];
  x += size_t(blockIdx.x) * width;
  float top = -infinity();
  uint32_t id = 0xffffffffu;
#pragma unroll 4
  for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
    const Four v = load4(x, i, width);
    for (uint32_t j = 0; j < 4; j++) {
      if (i + j < width && precedes(v.at[j], i + j, top, id)) {
        top = v.at[j];
        id = i + j;
      }
    }
  }
  auto reduce = [&] {
    for (uint32_t apart = 16; apart > 0; apart /= 2) {
      const float other_top = __shfl_xor_sync(ALL_LANES, top, apart);
      const uint32_t other_id = __shfl_xor_sync(ALL_LANES, id, apart);
      if (precedes(other_top, other_id, top, id)) {
        top = other_top;
        id = other_id;
      }
    }
  };
  reduce();
  if (lane_index() == 0) {
    shared_tops[warp_index()] = top;
    shared_ids[warp_index()] = id;
  }
  __syncthreads();
  if (warp_index() > 0) return;
  const bool there = lane_index() < blockDim.x / 32;
  top = there ? shared_tops[lane_index()] : -infinity();
  id = there ? shared_ids[lane_index()] : 0xffffffffu;
  reduce();
  if (lane_index() == 0) {
    ids[blockIdx.x] = id;
    tops[blockIdx.x] = top;
  }
}
