// Rows by number: of tables, of batches, and the gradient back into a table.

template <class T>
DEVICE void gather_row(const T* x, uint32_t rows, const uint32_t* ids, uint32_t width, float* y,
                       uint16_t* y_bf16) {
  uint32_t id = ids[blockIdx.x];
  size_t start = size_t(blockIdx.x) * width;
  if (y) y += start;
  if (y_bf16) y_bf16 += start;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    float nothing = infinity() - infinity();
    Four v = {{nothing, nothing, nothing, nothing}};
    if (id < rows) v = load4(x + size_t(id) * width, c, width);
    store4(y, y_bf16, c, width, v);
  }
}

// y[r] = x[ids[r]], NaN where there is no such row; x: [rows, width]. A block a row of y.
extern "C" __global__ void gather_f32(const float* x, uint32_t rows, const uint32_t* ids, uint32_t width,
                                      float* y, uint16_t* y_bf16) {
  gather_row(x, rows, ids, width, y, y_bf16);
}

extern "C" __global__ void gather_bf16(const uint16_t* x, uint32_t rows, const uint32_t* ids,
                                       uint32_t width, float* y, uint16_t* y_bf16) {
  gather_row(x, rows, ids, width, y, y_bf16);
}

// y[ids[r]] = x[r], or with weights += weights[r] x[r]; y: [rows, width], ids all different. A block a row.
extern "C" __global__ void scatter(const float* x, const uint32_t* ids, const float* weights, uint32_t width,
                                   uint32_t rows, float* y) {
  uint32_t id = ids[blockIdx.x];
  if (id >= rows) return;
  x += size_t(blockIdx.x) * width;
  y += size_t(id) * width;
  for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
    Four v = load4(x, c, width);
    if (weights) {
      Four old = load4(y, c, width);
      for (uint32_t j = 0; j < 4; j++) v.at[j] = fmaf(weights[blockIdx.x], v.at[j], old.at[j]);
    }
    store4(y, c, width, v);
  }
}

// dtable[ids[r]] += dy[r], rows in order. A block of 256 threads a row: that of an id's first row adds
// all rows of the id, the others do nothing.
extern "C" __global__ void embedding_backward(const float* dy, const uint32_t* ids, uint32_t count,
                                              uint32_t width, uint32_t vocab, float* dtable) {
  __shared__ int earlier;
  __shared__ uint32_t found[256], in_warps[8];
  uint32_t first = blockIdx.x, id = ids[first];
  if (id >= vocab) return;
  if (threadIdx.x == 0) earlier = 0;
  __syncthreads();
  bool seen = false;
  for (uint32_t r = threadIdx.x; r < first; r += 256) seen |= ids[r] == id;
  if (seen) earlier = 1;
  __syncthreads();
  if (earlier) return;
  float* row = dtable + size_t(id) * width;
  for (uint32_t start = first; start < count; start += 256) {
    // The rows of the next 256 that have the id, in order.
    uint32_t r = start + threadIdx.x;
    bool mine = r < count && ids[r] == id;
    uint32_t votes = __ballot_sync(ALL_LANES, mine);
    if (lane_index() == 0) in_warps[warp_index()] = __popc(votes);
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (uint32_t warp = 0; warp < 8; warp++) {
      if (warp < warp_index()) before += in_warps[warp];
      all += in_warps[warp];
    }
    if (mine) found[before + __popc(votes & ((1u << lane_index()) - 1))] = r;
    __syncthreads();
    if (all > 0) {
      for (uint32_t c = 4 * threadIdx.x; c < width; c += 4 * 256) {
        Four sum = load4(row, c, width);
#pragma unroll 4
        for (uint32_t i = 0; i < all; i++) {
          Four d = load4(dy + size_t(found[i]) * width, c, width);
          for (uint32_t j = 0; j < 4; j++) sum.at[j] += d.at[j];
        }
        store4(row, c, width, sum);
      }
    }
    __syncthreads();
  }
}
