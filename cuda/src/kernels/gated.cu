// Activations, and the gate of a gated MLP. Both are x sigmoid(inner(x)).

const int SILU = 0, GELU = 1;

// Where the sigmoid is taken, and the slope of that.
DEVICE float2 inner(int function, float x) {
  if (function == SILU) return make_float2(x, 1.0f);
  const float A = 1.595769f, B = 1.595769f * 0.044715f;
  float square = x * x;
  return make_float2(x * fmaf(square, B, A), fmaf(square, 3.0f * B, A));
}

// y = f(gate) up; without up f(gate).
extern "C" __global__ void gated(int function, const float* gate, const float* up, size_t n, float* y,
                                 uint16_t* y_bf16) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four v = load4(gate, i, n), u = {{1.0f, 1.0f, 1.0f, 1.0f}};
    if (up) u = load4(up, i, n);
    for (uint32_t j = 0; j < 4; j++)
      v.at[j] = v.at[j] * sigmoid(inner(function, v.at[j]).x) * u.at[j];
    store4(y, y_bf16, i, n, v);
  }
}

// dgate = dy up f'(gate), dup = dy f(gate), with f'(x) = s (1 + x (1 - s) inner'(x)).
extern "C" __global__ void gated_backward(int function, const float* gate, const float* up, const float* dy,
                                          size_t n, float* dgate, uint16_t* dgate_bf16, float* dup,
                                          uint16_t* dup_bf16) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four g = load4(gate, i, n), d = load4(dy, i, n), u = {{1.0f, 1.0f, 1.0f, 1.0f}};
    if (up) u = load4(up, i, n);
    for (uint32_t j = 0; j < 4; j++) {
      float x = g.at[j];
      float2 at = inner(function, x);
      float s = sigmoid(at.x);
      g.at[j] = d.at[j] * u.at[j] * (s * fmaf(x, (1.0f - s) * at.y, 1.0f));
      u.at[j] = d.at[j] * (x * s);
    }
    store4(dgate, dgate_bf16, i, n, g);
    if (up) store4(dup, dup_bf16, i, n, u);
  }
}
