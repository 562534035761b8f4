// What kernels share. It stands before every source; in the emulator after emulated.h, which
// defines EMULATED and what NVIDIA's compiler knows by itself.
//
// Kernels are written `extern "C" __global__ void NAME(...)` in full (no macros: names and
// parameters are read from the text). Parameters are pointers, float, int, uint32_t and size_t.

#ifndef EMULATED
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

// Dynamic shared memory of the block, 16-byte aligned: SHARED(float, scores).
#define SHARED(type, name)                                            \
  extern __shared__ __align__(16) unsigned char shared_memory_bytes[]; \
  type* name = reinterpret_cast<type*>(shared_memory_bytes)
#endif

#define DEVICE __device__ __forceinline__

const uint32_t ALL_LANES = 0xffffffffu;

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
DEVICE uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// ---- Where a thread is.

DEVICE uint32_t lane_index() { return threadIdx.x % 32; }
DEVICE uint32_t warp_index() { return threadIdx.x / 32; }
// Index of the thread in the grid, and the number of threads: for (size_t i = grid_thread(); i < n; i += grid_threads()).
DEVICE size_t grid_thread() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE size_t grid_threads() { return size_t(gridDim.x) * blockDim.x; }

// ---- Numbers of 16 bits, as their bits.

DEVICE float from_bf16(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }

// To the nearest, ties to even; NaN stays NaN.
DEVICE uint16_t to_bf16(float x) {
#ifdef EMULATED
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
#else
  uint16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
#endif
}

// Two in one register, `low` in the lower half, as products take them.
DEVICE uint32_t pack_bf16(float low, float high) {
#ifdef EMULATED
  return uint32_t(to_bf16(low)) | uint32_t(to_bf16(high)) << 16;
#else
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#endif
}

DEVICE float from_f16(uint16_t x) {
#ifdef EMULATED
  return emulated::from_f16(x);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
#endif
}

// Two in one register, as pack_bf16; infinity from 65520 on.
DEVICE uint32_t pack_f16(float low, float high) {
#ifdef EMULATED
  return uint32_t(emulated::to_f16(low)) | uint32_t(emulated::to_f16(high)) << 16;
#else
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#endif
}

// ---- Four neighbours at a time: one access where they are aligned and inside.

struct Four {
  float at[4];
};

// x[i..i + 4], zeros from n on.
DEVICE Four load4(const float* x, size_t i, size_t n) {
  if (i + 4 <= n && reinterpret_cast<size_t>(x + i) % 16 == 0) {
    float4 v = *reinterpret_cast<const float4*>(x + i);
    return {{v.x, v.y, v.z, v.w}};
  }
  Four v;
  for (uint32_t j = 0; j < 4; j++) v.at[j] = i + j < n ? x[i + j] : 0.0f;
  return v;
}

// y[i..i + 4] = v, what is from n on not.
DEVICE void store4(float* y, size_t i, size_t n, const Four& v) {
  if (i + 4 <= n && reinterpret_cast<size_t>(y + i) % 16 == 0) {
    *reinterpret_cast<float4*>(y + i) = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
    return;
  }
  for (uint32_t j = 0; j < 4; j++)
    if (i + j < n) y[i + j] = v.at[j];
}

// The same of bf16.
DEVICE Four load4(const uint16_t* x, size_t i, size_t n) {
  if (i + 4 <= n && reinterpret_cast<size_t>(x + i) % 8 == 0) {
    uint2 v = *reinterpret_cast<const uint2*>(x + i);
    return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
             __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
  }
  Four v;
  for (uint32_t j = 0; j < 4; j++) v.at[j] = i + j < n ? from_bf16(x[i + j]) : 0.0f;
  return v;
}

DEVICE void store4(uint16_t* y, size_t i, size_t n, const Four& v) {
  if (i + 4 <= n && reinterpret_cast<size_t>(y + i) % 8 == 0) {
    *reinterpret_cast<uint2*>(y + i) =
        make_uint2(pack_bf16(v.at[0], v.at[1]), pack_bf16(v.at[2], v.at[3]));
    return;
  }
  for (uint32_t j = 0; j < 4; j++)
    if (i + j < n) y[i + j] = to_bf16(v.at[j]);
}

// To both kinds of outputs, of which each may be missing.
DEVICE void store4(float* y, uint16_t* y_bf16, size_t i, size_t n, const Four& v) {
  if (y) store4(y, i, n, v);
  if (y_bf16) store4(y_bf16, i, n, v);
}

// ---- Functions of one number.

// 2^x within 2 units in the last place; 0 for -infinity.
DEVICE float exp2_fast(float x) {
#ifdef EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- Reductions in a fixed order: the same bits in all threads that take part, and in every run.

DEVICE float warp_sum(float x) {
  for (uint32_t apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
  return x;
}

DEVICE float warp_max(float x) {
  for (uint32_t apart = 16; apart > 0; apart /= 2)
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
  return x;
}

// Of all threads of a block of whole warps, which all must come here.
DEVICE float block_sum(float x) {
  __shared__ float parts[32];
  x = warp_sum(x);
  if (lane_index() == 0) parts[warp_index()] = x;
  __syncthreads();
  x = warp_sum(lane_index() < blockDim.x / 32 ? parts[lane_index()] : 0.0f);
  __syncthreads();
  return x;
}

DEVICE float block_max(float x) {
  __shared__ float parts[32];
  x = warp_max(x);
  if (lane_index() == 0) parts[warp_index()] = x;
  __syncthreads();
  x = warp_max(lane_index() < blockDim.x / 32 ? parts[lane_index()] : -infinity());
  __syncthreads();
  return x;
}

// ---- Tensor cores: products of fragments that a warp holds together.

// d += a b, of a [16, 16] and b [16, 8]. With g = lane / 4 and t = 2 * (lane % 4), a register holding
// two neighbours each, the lower half first:
//   a[0]: a[g][t..], a[1]: a[g + 8][t..], a[2]: a[g][t + 8..], a[3]: a[g + 8][t + 8..]
//   b[0]: b[t..][g], b[1]: b[t + 8..][g]
//   d[0], d[1]: d[g][t..], d[2], d[3]: d[g + 8][t..]
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef EMULATED
  emulated::mma_bf16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same of f16.
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef EMULATED
  emulated::mma_f16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a b, of bytes with a sign: a [16, 32] and b [32, 8]. As above with four neighbours a register:
// t = 4 * (lane % 4), 16 in the place of 8 along the columns of a and the rows of b; d as above.
DEVICE void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef EMULATED
  emulated::mma_s8(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four matrices of [8, 8] numbers of 16 bits from shared memory; lane i gives the address of row i % 8
// of matrix i / 8 (16-byte aligned). r[m]: matrix m's [lane / 4][2 * (lane % 4)..].
DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
#ifdef EMULATED
  emulated::load_matrices(r, row, false);
#else
  uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// The same of the transposed matrices: r[m]: matrix m's [2 * (lane % 4)..][lane / 4].
DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
#ifdef EMULATED
  emulated::load_matrices(r, row, true);
#else
  uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// ---- Copies into shared memory that go on beside the work.

// 16 bytes, both sides aligned to that; zeros in their place unless `there` (`from` is not read then).
DEVICE void copy_async(void* shared, const void* from, bool there) {
#ifdef EMULATED
  emulated::copy_async(shared, from, there);
#else
  uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  uint32_t bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(from), "r"(bytes)
               : "memory");
#endif
}

// Closes a group of copies.
DEVICE void copy_async_commit() {
#ifdef EMULATED
  emulated::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

// Waits until at most the last `N` groups of this thread are under way; then __syncthreads().
template <int N>
DEVICE void copy_async_wait() {
#ifdef EMULATED
  emulated::copy_async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
#endif
}
