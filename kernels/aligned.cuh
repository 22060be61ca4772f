// What kernels of the numeric mode "aligned" share: numbers as the dtype of activations keeps them, and sums of squares in the
// order in which PyTorch's mean over the last dimension adds them up when there are 16 rows or more.
#pragma once
#include "common.cuh"

// x as T keeps it.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return widen(narrowed<T>(x));
}

// From this many numbers on a row is spread over 16 warps, below over one.
constexpr uint32_t WIDE_ROW = 8161;

// Lanes of a warp that have a share of n numbers: the largest power of two up to n, 32 at most.
__device__ __forceinline__ uint32_t lanes_of(uint32_t n) { return n >= 32 ? 32 : 1u << (31 - __clz(int(n))); }

__device__ __forceinline__ void add_square(float& sum, float x) { sum = __fadd_rn(sum, __fmul_rn(x, x)); }

// The share of thread `thread` out of `threads`: four running sums, of vectors of four where there are 128 numbers or more.
template <typename Load>
__device__ __forceinline__ float squares_of_thread(uint32_t n, uint32_t thread, uint32_t threads, const Load& load) {
  float sums[4] = {};
  if (n >= 128) {
    for (uint32_t i = thread; 4 * i + 3 < n; i += threads) {
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) add_square(sums[j], load(4 * i + j));
    }
    if (thread < n % 4) add_square(sums[0], load(n - n % 4 + thread));
  } else {
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
      if (thread < threads && thread + j * threads < n) add_square(sums[j], load(thread + j * threads));
    }
  }
  return __fadd_rn(__fadd_rn(__fadd_rn(sums[0], sums[1]), sums[2]), sums[3]);
}

// 1 / sqrt(mean + eps) of a sum of squares.
__device__ __forceinline__ float norm_scale(float sum, uint32_t n, float eps) {
  return rsqrtf(__fadd_rn(__fmul_rn(sum, 1.0f / float(n)), eps));
}

// A normed number times its weight: a weight in T multiplies the number as T keeps it (Llama), an F32 one the number itself
// (Gemma). To be rounded to T.
template <typename T>
__device__ __forceinline__ float weighted(float normed, uint64_t weights, bool in_act, uint32_t i) {
  if (in_act) return __fmul_rn(widen(at<T>(weights)[i]), rounded<T>(normed));
  return __fmul_rn(normed, at<float>(weights)[i]);
}
