// A card in the imagination of a C++ compiler, for tests: blocks one after the other, the threads of
// a block as fibers that change places where they wait for each other.
//
// Threads run in order until each waits or ends, or in the reverse order, so that what a missing
// barrier would leave to chance differs between two launches. Threads that wait for what cannot come,
// and memory that is touched outside of its buffer, end the launch with a message.

#include <math.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define EMULATED
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static
#define __constant__ static const
#define __align__(n) alignas(n)
#define SHARED(type, name) type* name = reinterpret_cast<type*>(emulated::shared)

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) char4 { signed char x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }

// The same whichever two kinds of integers are compared, as there.
using std::max;
using std::min;
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }

template <class To, class From>
inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
  uint64_t both = uint64_t(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    unsigned nibble = select >> (4 * i) & 15;
    unsigned byte = unsigned(both >> (8 * (nibble & 7))) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}
// Sums of products of four bytes with a sign.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int(int8_t(unsigned(a) >> (8 * i))) * int(int8_t(unsigned(b) >> (8 * i)));
  return c;
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  unsigned out = 0;
  for (int i = 0; i < 32; i += 8) out |= (((a >> i) - (b >> i)) & 0xff) << i;
  return out;
}
inline unsigned __vsubss4(unsigned a, unsigned b) {
  unsigned out = 0;
  for (int i = 0; i < 32; i += 8) {
    int d = int(int8_t(a >> i)) - int(int8_t(b >> i));
    out |= (unsigned(std::max(-128, std::min(127, d))) & 0xff) << i;
  }
  return out;
}
template <class T>
inline T __ldg(const T* from) { return *from; }
template <class T>
inline T __ldcs(const T* from) { return *from; }
template <class T>
inline void __stcs(T* to, T value) { *to = value; }
inline unsigned atomicAdd(unsigned* to, unsigned x) { unsigned old = *to; *to += x; return old; }
inline int atomicAdd(int* to, int x) { int old = *to; *to += x; return old; }
inline unsigned atomicMax(unsigned* to, unsigned x) { unsigned old = *to; *to = std::max(old, x); return old; }
inline int atomicMax(int* to, int x) { int old = *to; *to = std::max(old, x); return old; }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace {
uint3 threadIdx, blockIdx, blockDim, gridDim;
const int warpSize = 32;
}

namespace emulated {
namespace {

const size_t STACK = 256 << 10;
const size_t MOST_SHARED = 256 << 10;
const unsigned FULL = 0xffffffffu;

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Copy {
  void* to;
  const void* from;
  unsigned group;
};

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  State state;
  unsigned mask;      // whom it waits for at AT_WARP
  unsigned exchanges; // with the whole warp, so far
  unsigned groups;    // of copies, closed
  std::vector<Copy> copies;
};

// What lanes show each other: two places in turn for exchanges of whole warps, one for others.
struct Slot {
  alignas(16) unsigned char bytes[3][32];
};

Fiber fibers[1024];
Slot slots[1024];
unsigned char* stacks;
unsigned threads, current;
bool running;
const char* kernel_name;
void (*kernel_entry)(void**);
void** kernel_arguments;
unsigned char* shared_end;
void* shared;

#if defined(__x86_64__)
void* scheduler_stack_pointer;
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");
#else
ucontext_t scheduler_context;
#endif

void leave() {
#if defined(__x86_64__)
  emulated_switch(&fibers[current].stack_pointer, scheduler_stack_pointer);
#else
  swapcontext(&fibers[current].context, &scheduler_context);
#endif
}

void body() {
  kernel_entry(kernel_arguments);
  fibers[current].state = DONE;
  leave();
  abort();
}

void prepare(unsigned t) {
  Fiber& fiber = fibers[t];
  fiber.state = READY;
  fiber.exchanges = fiber.groups = 0;
  fiber.copies.clear();
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stacks + size_t(t + 1) * STACK);
  *--top = nullptr;  // where `body` would return to
  *--top = reinterpret_cast<void*>(&body);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks + size_t(t) * STACK;
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
#endif
}

void resume(unsigned t) {
  current = t;
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
#if defined(__x86_64__)
  emulated_switch(&scheduler_stack_pointer, fibers[t].stack_pointer);
#else
  swapcontext(&scheduler_context, &fibers[t].context);
#endif
}

unsigned first_lane(unsigned t) { return t / 32 * 32; }
unsigned lanes_of(unsigned first) { return std::min(32u, threads - first); }

// Lanes of a warp that can go on as all that they wait for have come.
bool release(unsigned first) {
  unsigned waiting = 0, lanes = lanes_of(first), free = 0;
  unsigned there = lanes == 32 ? FULL : (1u << lanes) - 1;
  for (unsigned i = 0; i < lanes; i++) waiting |= unsigned(fibers[first + i].state == AT_WARP) << i;
  for (unsigned i = 0; i < lanes; i++) {
    Fiber& fiber = fibers[first + i];
    if (fiber.state != AT_WARP) continue;
    unsigned mask = fiber.mask & there;
    bool all = (mask & waiting) == mask;
    for (unsigned j = 0; all && j < lanes; j++)
      if (mask >> j & 1) all = fibers[first + j].mask == fiber.mask;
    if (all) free |= 1u << i;
  }
  for (unsigned i = 0; i < lanes; i++)
    if (free >> i & 1) fibers[first + i].state = READY;
  return free != 0;
}

void run_warp(unsigned first, bool reversed) {
  unsigned lanes = lanes_of(first);
  do {
    for (unsigned i = 0; i < lanes; i++) {
      unsigned t = first + (reversed ? lanes - 1 - i : i);
      if (fibers[t].state == READY) resume(t);
    }
  } while (release(first));
}

// Whether all threads came to their end.
bool run_block(bool reversed) {
  for (unsigned t = 0; t < threads; t++) prepare(t);
  unsigned warps = (threads + 31) / 32;
  for (;;) {
    for (unsigned w = 0; w < warps; w++) run_warp(32 * (reversed ? warps - 1 - w : w), reversed);
    unsigned at_block = 0, done = 0;
    for (unsigned t = 0; t < threads; t++) {
      at_block += fibers[t].state == AT_BLOCK;
      done += fibers[t].state == DONE;
    }
    if (done == threads) return true;
    if (at_block != threads) return false;
    for (unsigned t = 0; t < threads; t++) fibers[t].state = READY;
  }
}

void wait_warp(unsigned mask) {
  fibers[current].state = AT_WARP;
  fibers[current].mask = mask;
  leave();
}

// Shows `mine` to the lanes of `mask`; what they show is read by `read` before anybody goes on.
template <class T, class Read>
inline auto exchange(unsigned mask, const T& mine, Read read) {
  static_assert(sizeof(T) <= sizeof slots[0].bytes[0], "more than a slot holds");
  unsigned first = first_lane(current);
  unsigned place = mask == FULL ? fibers[current].exchanges++ % 2 : 2;
  memcpy(slots[current].bytes[place], &mine, sizeof mine);
  wait_warp(mask);
  auto other = [&](unsigned lane) {
    T theirs;
    memcpy(&theirs, slots[first + lane].bytes[place], sizeof theirs);
    return theirs;
  };
  auto result = read(other, current - first);
  if (place == 2) wait_warp(mask);
  return result;
}

void pages(void** memory, size_t bytes) {
  *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*memory == MAP_FAILED) {
    perror("memory of the emulator");
    abort();
  }
}

struct sigaction before[2];

void outside(int signal, siginfo_t* info, void*) {
  if (running) {
    char text[512];
    int n = snprintf(text, sizeof text,
                     "emulator: %s, block (%u, %u, %u), thread %u touches %p, outside of every buffer or "
                     "not aligned\n",
                     kernel_name, blockIdx.x, blockIdx.y, blockIdx.z, current, info->si_addr);
    if (write(2, text, size_t(n)) < 0) abort();
  }
  sigaction(signal, &before[signal == SIGBUS], nullptr);
}

// The parts of two, packed as lanes hold them for a product.
struct Fragments {
  uint32_t a[4], b[2];
};

inline float bf16(uint32_t pair, unsigned upper) {
  return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16);
}

}  // namespace

inline float from_f16(uint16_t x) {
  unsigned sign = unsigned(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ff;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    float value = ldexpf(float(mantissa), -24);
    return sign ? -value : value;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// To the nearest, ties to even.
inline uint16_t to_f16(float x) {
  unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000u) return 0x7fff;
  if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00);
  // Below the smallest normal number, units are of 2^-24.
  if (size < 0x38800000u) return uint16_t(sign | unsigned(nearbyintf(fabsf(x) * 16777216.0f)));
  size -= 112u << 23;
  return uint16_t(sign | (size + 0xfff + (size >> 13 & 1)) >> 13);
}

inline float f16(uint32_t pair, unsigned upper) { return from_f16(uint16_t(upper ? pair >> 16 : pair)); }

template <float (*number)(uint32_t, unsigned)>
inline void mma_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  exchange(FULL, mine, [&](auto other, unsigned lane) {
    unsigned group = lane / 4, pair = 2 * (lane % 4);
    for (unsigned k = 0; k < 16; k++) {
      Fragments rows = other(4 * group + k % 8 / 2);
      float upper = number(rows.a[k < 8 ? 0 : 2], k & 1), lower = number(rows.a[k < 8 ? 1 : 3], k & 1);
      for (unsigned j = 0; j < 2; j++) {
        float column = number(other(4 * (pair + j) + k % 8 / 2).b[k / 8], k & 1);
        d[j] = fmaf(upper, column, d[j]);
        d[2 + j] = fmaf(lower, column, d[2 + j]);
      }
    }
    return 0;
  });
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_halves<bf16>(d, a, b);
}

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_halves<f16>(d, a, b);
}

inline void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  exchange(FULL, mine, [&](auto other, unsigned lane) {
    unsigned group = lane / 4, pair = 2 * (lane % 4);
    for (unsigned k = 0; k < 32; k += 4) {
      Fragments rows = other(4 * group + k % 16 / 4);
      for (unsigned j = 0; j < 2; j++) {
        int column = int(other(4 * (pair + j) + k % 16 / 4).b[k / 16]);
        d[j] = __dp4a(int(rows.a[k < 16 ? 0 : 2]), column, d[j]);
        d[2 + j] = __dp4a(int(rows.a[k < 16 ? 1 : 3]), column, d[2 + j]);
      }
    }
    return 0;
  });
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  if (uintptr_t(row) % 16 != 0) {
    fprintf(stderr, "emulator: %s: rows of matrices must be 16-byte aligned\n", kernel_name);
    abort();
  }
  const uint16_t* mine = static_cast<const uint16_t*>(row);
  exchange(FULL, mine, [&](auto other, unsigned lane) {
    unsigned group = lane / 4, pair = 2 * (lane % 4);
    for (unsigned m = 0; m < 4; m++) {
      uint16_t low = transposed ? other(8 * m + pair)[group] : other(8 * m + group)[pair];
      uint16_t high = transposed ? other(8 * m + pair + 1)[group] : other(8 * m + group)[pair + 1];
      r[m] = uint32_t(low) | uint32_t(high) << 16;
    }
    return 0;
  });
}

// The bytes come when they are waited for; until then there is NaN.
inline void copy_async(void* to, const void* from, bool there) {
  if (uintptr_t(to) % 16 != 0 || (there && uintptr_t(from) % 16 != 0)) {
    fprintf(stderr, "emulator: %s: copies must be 16-byte aligned\n", kernel_name);
    abort();
  }
  memset(to, 0xff, 16);
  fibers[current].copies.push_back({to, there ? from : nullptr, fibers[current].groups});
}

inline void copy_async_commit() { fibers[current].groups++; }

inline void copy_async_wait(unsigned left) {
  Fiber& fiber = fibers[current];
  size_t kept = 0;
  for (const Copy& copy : fiber.copies) {
    if (copy.group + left < fiber.groups) {
      if (copy.from) memcpy(copy.to, copy.from, 16);
      else memset(copy.to, 0, 16);
    } else {
      fiber.copies[kept++] = copy;
    }
  }
  fiber.copies.resize(kept);
}

template <class... P, size_t... I>
inline void call_with(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...);
}

template <class... P>
inline void call(void (*kernel)(P...), void** arguments) {
  call_with(kernel, arguments, std::index_sequence_for<P...>());
}

}  // namespace emulated

inline void __syncthreads() {
  emulated::fibers[emulated::current].state = emulated::AT_BLOCK;
  emulated::leave();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulated::wait_warp(mask);
}
template <class T>
inline T __shfl_sync(unsigned mask, T mine, int from, int width = 32) {
  return emulated::exchange(mask, mine, [&](auto other, unsigned lane) {
    return other(lane / unsigned(width) * unsigned(width) + unsigned(from) % unsigned(width));
  });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T mine, int bits, int width = 32) {
  return emulated::exchange(mask, mine, [&](auto other, unsigned lane) {
    unsigned from = lane ^ unsigned(bits);
    return from / unsigned(width) <= lane / unsigned(width) ? other(from) : mine;
  });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T mine, unsigned apart, int width = 32) {
  return emulated::exchange(mask, mine, [&](auto other, unsigned lane) {
    return lane % unsigned(width) + apart < unsigned(width) ? other(lane + apart) : mine;
  });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T mine, unsigned apart, int width = 32) {
  return emulated::exchange(mask, mine, [&](auto other, unsigned lane) {
    return lane % unsigned(width) >= apart ? other(lane - apart) : mine;
  });
}
inline unsigned __ballot_sync(unsigned mask, int mine) {
  return emulated::exchange(mask, mine, [&](auto other, unsigned) {
    unsigned votes = 0;
    unsigned lanes = emulated::lanes_of(emulated::first_lane(emulated::current));
    for (unsigned i = 0; i < lanes; i++)
      if (mask >> i & 1) votes |= unsigned(other(i) != 0) << i;
    return votes;
  });
}
inline int __any_sync(unsigned mask, int mine) { return __ballot_sync(mask, mine) != 0; }
inline int __all_sync(unsigned mask, int mine) { return __ballot_sync(mask, !mine) == 0; }

// One launch. What went wrong, or null.
extern "C" const char* emulated_launch(void (*entry)(void**), const char* name, const unsigned* grid,
                                       unsigned block, size_t shared_bytes, void** arguments, int reversed) {
  using namespace emulated;
  static char message[512];
  if (!stacks) {
    pages(reinterpret_cast<void**>(&stacks), 1024 * STACK);
    void* memory;
    pages(&memory, MOST_SHARED + (64 << 10));
    shared_end = static_cast<unsigned char*>(memory) + MOST_SHARED;
    mprotect(shared_end, 64 << 10, PROT_NONE);
  }
  if (block == 0 || block > 1024 || shared_bytes > MOST_SHARED) return "no such block";
  struct sigaction action = {};
  action.sa_sigaction = outside;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &before[0]);
  sigaction(SIGBUS, &action, &before[1]);
  kernel_name = name;
  kernel_entry = entry;
  kernel_arguments = arguments;
  threads = block;
  blockDim = {block, 1, 1};
  gridDim = {grid[0], grid[1], grid[2]};
  size_t whole = (shared_bytes + 15) / 16 * 16;
  shared = shared_end - whole;
  running = true;
  bool ended = true;
  for (blockIdx.z = 0; ended && blockIdx.z < grid[2]; blockIdx.z++)
    for (blockIdx.y = 0; ended && blockIdx.y < grid[1]; blockIdx.y++)
      for (blockIdx.x = 0; ended && blockIdx.x < grid[0]; blockIdx.x++) {
        memset(shared, 0xff, whole);
        ended = run_block(reversed != 0);
        if (!ended) {
          unsigned count[4] = {};
          for (unsigned t = 0; t < threads; t++) count[fibers[t].state]++;
          snprintf(message, sizeof message,
                   "threads of block (%u, %u, %u) wait for others in vain: %u for their warp, %u for "
                   "their block, %u have ended",
                   blockIdx.x, blockIdx.y, blockIdx.z, count[AT_WARP], count[AT_BLOCK], count[DONE]);
        }
      }
  running = false;
  sigaction(SIGSEGV, &before[0], nullptr);
  sigaction(SIGBUS, &before[1], nullptr);
  return ended ? nullptr : message;
}
