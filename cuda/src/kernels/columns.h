// Sums over the rows of a matrix, in two steps of a fixed order: over parts of PART_ROWS rows, here, and
// over the parts, by add_parts.

const uint32_t PART_ROWS = 256;
const uint32_t PART_COLS = 128;

// One part of 128 columns; 256 threads, blocks (column / 128, part). `terms(row, col)` are what is added
// for columns col..col + 4, zeros past the last. sums: [parts, width].
template <class Terms>
DEVICE void sum_part(uint32_t rows, uint32_t width, float* sums, Terms terms) {
  __shared__ float shared[8][PART_COLS];
  uint32_t col = 4 * lane_index(), left = PART_COLS * blockIdx.x;
  uint32_t start = PART_ROWS * blockIdx.y, end = min(start + PART_ROWS, rows);
  Four sum = {};
  if (left + col < width) {
    for (uint32_t row = start + warp_index(); row < end; row += 8) {
      Four term = terms(row, left + col);
      for (uint32_t j = 0; j < 4; j++) sum.at[j] += term.at[j];
    }
  }
  for (uint32_t j = 0; j < 4; j++) shared[warp_index()][col + j] = sum.at[j];
  __syncthreads();
  if (threadIdx.x < PART_COLS && left + threadIdx.x < width) {
    float total = 0.0f;
    for (uint32_t warp = 0; warp < 8; warp++) total += shared[warp][threadIdx.x];
    sums[size_t(blockIdx.y) * width + left + threadIdx.x] = total;
  }
  __syncthreads();
}
