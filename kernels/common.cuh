// What all kernels share: loads and stores of eight numbers, reductions in one fixed order, the fault word.
//
// Addresses travel as 64-bit numbers in one plain parameter struct per op, which src/hal/cuda/ops mirrors.
#pragma once
#include "ptx.cuh"

template <typename T>
__device__ __forceinline__ T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
__device__ __forceinline__ T narrowed(float x) {
  T y;
  narrow(x, y);
  return y;
}

// Eight numbers as they stand in memory, from a 16-byte boundary.
template <typename T>
struct Eight {
  uint4 words;
  __device__ __forceinline__ void load(const T* p) { words = *reinterpret_cast<const uint4*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<uint4*>(p) = words; }
  __device__ __forceinline__ void widen_to(float (&x)[8]) const {
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      T low, high;
      low.bits = uint16_t(w[i]);
      high.bits = uint16_t(w[i] >> 16);
      x[2 * i] = widen(low);
      x[2 * i + 1] = widen(high);
    }
  }
  __device__ __forceinline__ void narrow_from(const float (&x)[8]) {
    words = make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
  }
};
template <>
struct Eight<float> {
  float4 low, high;
  __device__ __forceinline__ void load(const float* p) {
    low = reinterpret_cast<const float4*>(p)[0], high = reinterpret_cast<const float4*>(p)[1];
  }
  __device__ __forceinline__ void store(float* p) const {
    reinterpret_cast<float4*>(p)[0] = low, reinterpret_cast<float4*>(p)[1] = high;
  }
  __device__ __forceinline__ void widen_to(float (&x)[8]) const {
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }
  __device__ __forceinline__ void narrow_from(const float (&x)[8]) {
    low = make_float4(x[0], x[1], x[2], x[3]), high = make_float4(x[4], x[5], x[6], x[7]);
  }
};

template <typename T>
__device__ __forceinline__ void load8(const T* p, float (&x)[8]) {
  Eight<T> eight;
  eight.load(p);
  eight.widen_to(x);
}
template <typename T>
__device__ __forceinline__ void store8(T* p, const float (&x)[8]) {
  Eight<T> eight;
  eight.narrow_from(x);
  eight.store(p);
}

constexpr unsigned ALL = 0xffffffffu;

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Min {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Over a warp; every lane has the result.
template <typename T, typename Op>
__device__ __forceinline__ T reduce_warp(T x, Op op) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) x = op(x, __shfl_xor_sync(ALL, x, width));
  return x;
}

// Over a block of whole warps; every thread has the result. `scratch` holds a number per warp; it is free again when the
// caller's next barrier is passed.
template <typename T, typename Op>
__device__ __forceinline__ T reduce_block(T x, T identity, T* scratch, Op op) {
  x = reduce_warp(x, op);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return reduce_warp(lane < blockDim.x / 32 ? scratch[lane] : identity, op);
}

// What went wrong, for the host to find: the word is 0, or the complement of kind << 56 | place << 32 | value of the
// smallest of all faults. src/hal/cuda/ops/fault.rs reads it.
enum Fault : uint32_t {
  EMBED_ID = 1,
  GATHER_INDEX = 2,
  KV_SLOT = 3,
  POSITION = 4,
  SAMPLER_ROW = 6,
  KV_BLOCK = 7,
  LOGPROBS_INDEX = 8,
};

__device__ __forceinline__ void fault(uint64_t word, Fault kind, uint32_t place, uint32_t value) {
  const unsigned long long code = uint64_t(kind) << 56 | uint64_t(place & 0xffffffu) << 32 | value;
  atomicMax(at<unsigned long long>(word), ~code);
}
