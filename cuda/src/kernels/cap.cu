// A soft limit on logits: x = limit tanh(x / limit).

extern "C" __global__ void cap(float limit, float* x, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four v = load4(x, i, n);
    for (uint32_t j = 0; j < 4; j++) v.at[j] = limit * tanhf(v.at[j] / limit);
    store4(x, i, n, v);
  }
}

// dy *= 1 - (y / limit)^2, where y was capped.
extern "C" __global__ void cap_backward(float limit, const float* y, float* dy, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four v = load4(y, i, n), d = load4(dy, i, n);
    for (uint32_t j = 0; j < 4; j++) {
      float share = v.at[j] / limit;
      d.at[j] *= 1.0f - share * share;
    }
    store4(dy, i, n, d);
  }
}
