// What device.h promises, for its tests alone.

// d[16][8] = a[16][16] b[16][8] by one warp, through shared memory; b lies as [8][16] for
// load_matrices and as [16][8] for load_matrices_transposed.
extern "C" __global__ void probe_product(const uint16_t* a, const uint16_t* b, const uint16_t* b_by_rows,
                                         float* d, float* again) {
  SHARED(uint16_t, tile);
  uint32_t lane = lane_index(), group = lane / 4, pair = 2 * (lane % 4);
  uint16_t *a_tile = tile, *b_tile = tile + 256, *rows_tile = tile + 384;
  copy_async(a_tile + 8 * lane, a + 8 * lane, true);
  copy_async_commit();
  if (lane < 16) copy_async(b_tile + 8 * lane, b + 8 * lane, true);
  if (lane < 16) copy_async(rows_tile + 8 * lane, b_by_rows + 8 * lane, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  uint32_t fa[4], fb[4], fb_by_rows[4];
  load_matrices(fa, a_tile + lane % 16 * 16 + lane / 16 * 8);
  load_matrices(fb, b_tile + lane % 8 * 16 + lane / 8 % 2 * 8);
  load_matrices_transposed(fb_by_rows, rows_tile + lane % 16 * 8);
  float sum[4] = {0, 0, 0, 0}, other[4] = {1, 1, 1, 1};
  mma_bf16(sum, fa, {fb[0], fb[1]});
  mma_bf16(other, fa, {fb_by_rows[0], fb_by_rows[1]});
  for (uint32_t i = 0; i < 4; i++) {
    d[(group + i / 2 * 8) * 8 + pair + i % 2] = sum[i];
    again[(group + i / 2 * 8) * 8 + pair + i % 2] = other[i];
  }
}

// d[16][8] = a[16][32] b[32][8] of bytes; b lies as [8][32].
extern "C" __global__ void probe_bytes(const uint32_t* a, const uint32_t* b, int* d) {
  uint32_t lane = lane_index(), group = lane / 4, four = lane % 4;
  uint32_t fa[4] = {a[group * 8 + four], a[(group + 8) * 8 + four], a[group * 8 + 4 + four],
                    a[(group + 8) * 8 + 4 + four]};
  uint32_t fb[2] = {b[group * 8 + four], b[group * 8 + 4 + four]};
  int sum[4] = {0, 0, 0, 0};
  mma_s8(sum, fa, fb);
  for (uint32_t i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + 2 * four + i % 2] = sum[i];
}

// A block's sum and maximum, and one lane's shuffles, ballots and conversions.
extern "C" __global__ void probe_block(const float* x, float* y, uint32_t* bits) {
  float mine = x[threadIdx.x], sum = block_sum(mine), most = block_max(mine);
  float next = __shfl_down_sync(ALL_LANES, mine, 1), first = __shfl_sync(ALL_LANES, mine, 0, 8);
  uint32_t votes = __ballot_sync(ALL_LANES, mine > 0.0f);
  __syncwarp();
  y[4 * threadIdx.x] = sum;
  y[4 * threadIdx.x + 1] = most;
  y[4 * threadIdx.x + 2] = next;
  y[4 * threadIdx.x + 3] = first;
  bits[4 * threadIdx.x] = votes;
  bits[4 * threadIdx.x + 1] = pack_bf16(mine, 1.0f);
  bits[4 * threadIdx.x + 2] = __float_as_uint(from_f16(uint16_t(threadIdx.x * 257)));
  bits[4 * threadIdx.x + 3] = __float_as_uint(exp2_fast(mine) + sigmoid(mine));
}

// A barrier that half of the block never comes to, unless `all`.
extern "C" __global__ void probe_barrier(int all) {
  if (all || threadIdx.x < 32) __syncthreads();
}

// What the copies of the group before the last, and of the last, have brought when only the first is
// waited for; zeros where there is nothing.
extern "C" __global__ void probe_copies(const float* x, float* y) {
  SHARED(float, tile);
  copy_async(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, threadIdx.x < 2);
  copy_async_commit();
  copy_async(tile + 64 + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
  copy_async_commit();
  copy_async_wait<1>();
  __syncthreads();
  for (uint32_t i = 0; i < 4; i++) y[4 * threadIdx.x + i] = tile[4 * threadIdx.x + i];
  copy_async_wait<0>();
  __syncthreads();
  for (uint32_t i = 0; i < 4; i++) y[64 + 4 * threadIdx.x + i] = tile[64 + 4 * threadIdx.x + i];
}
