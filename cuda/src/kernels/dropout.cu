// Dropout: which elements stay is a function of a key and their place.

// The finaliser of MurmurHash3 (Appleby).
DEVICE uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

// y = factor x where the upper half of the mixed place is `least` at least, else 0.
extern "C" __global__ void dropout(size_t key, size_t least, float factor, const float* x, float* y, size_t n) {
  for (size_t i = 4 * grid_thread(); i < n; i += 4 * grid_threads()) {
    Four v = load4(x, i, n);
    for (uint32_t j = 0; j < 4; j++) {
      bool stays = mixed(uint64_t(key) ^ (i + j)) >> 32 >= least;
      v.at[j] = stays ? v.at[j] * factor : 0.0f;
    }
    store4(y, i, n, v);
  }
}
