// rms_norm and add_rms_norm: `out = x / sqrt(mean(x^2) + eps) * weight` for each row; with a residual, `residual += x`
// comes first and the sum, as the residual keeps it, is normed.
// out, x, residual: act [rows, cols]; weight: f32 [cols]; sums in f32. Bound by memory: each number is read and written once.
//
// A block has a row, a thread up to 4 vectors of 8 numbers in registers: as many as that where rows are many, since more of them are on
// their way at a time then. The order of a sum depends on `cols` and on that alone, so in mode `invariant`, where threads have as few as
// they can, a row's bits do not depend on the rows beside it. Weights are loaded before the launch in front has ended. Rows that are
// not whole vectors, or longer than 32768, are read twice.
// Instances: 3 act dtypes x with and without a residual.
// `_aligned`: roundings and sums as in the reference implementation; the weight is f32 or act. 2 act dtypes x with and without.
#include "aligned.cuh"

struct NormParams {
  uint64_t out;
  uint64_t x;
  uint64_t residual;
  uint64_t weight;
  uint32_t cols;
  uint32_t vectors;  // cols / 8, or 0 for the plain path
  float eps;
  uint32_t weight_in_act;  // of the aligned kernels
};
static_assert(sizeof(NormParams) == 48, "mirrored in src/hal/cuda/ops/norm.rs");

constexpr int VECTORS = 4;

template <typename T, bool ADD>
__device__ __forceinline__ void norm_vectors(const NormParams& p, float* scratch) {
  const uint64_t row = uint64_t(blockIdx.x) * p.cols;
  T* out = at<T>(p.out) + row;
  const T* x = at<T>(p.x) + row;
  T* residual = ADD ? at<T>(p.residual) + row : nullptr;
  const float* weight = at<float>(p.weight);
  float first[8];
  if (threadIdx.x < p.vectors) load8(weight + 8 * threadIdx.x, first);
  wait_for_prior();
  Eight<T> own[VECTORS], kept[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const uint32_t n = threadIdx.x + i * blockDim.x;
    if (n >= p.vectors) continue;
    own[i].load(x + 8 * n);
    if (ADD) kept[i].load(residual + 8 * n);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const uint32_t n = threadIdx.x + i * blockDim.x;
    if (n >= p.vectors) continue;
    float v[8];
    own[i].widen_to(v);
    if (ADD) {
      float r[8];
      kept[i].widen_to(r);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] += r[j];
      own[i].narrow_from(v);
      own[i].store(residual + 8 * n);
      own[i].widen_to(v);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(v[j], v[j], sum);
  }
  sum = reduce_block(sum, 0.0f, scratch, Add());
  const float scale = 1.0f / sqrtf(sum / float(p.cols) + p.eps);
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const uint32_t n = threadIdx.x + i * blockDim.x;
    if (n >= p.vectors) continue;
    float v[8];
    own[i].widen_to(v);
    if (i > 0) load8(weight + 8 * n, first);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = v[j] * scale * first[j];
    store8(out + 8 * n, v);
  }
}

template <typename T, bool ADD>
__device__ __forceinline__ void norm_plain(const NormParams& p, float* scratch) {
  const uint64_t row = uint64_t(blockIdx.x) * p.cols;
  T* out = at<T>(p.out) + row;
  const T* x = at<T>(p.x) + row;
  T* residual = ADD ? at<T>(p.residual) + row : nullptr;
  const float* weight = at<float>(p.weight);
  wait_for_prior();
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    float v = widen(x[i]);
    if (ADD) {
      residual[i] = narrowed<T>(widen(residual[i]) + v);
      v = widen(residual[i]);
    }
    sum = fmaf(v, v, sum);
  }
  sum = reduce_block(sum, 0.0f, scratch, Add());
  const float scale = 1.0f / sqrtf(sum / float(p.cols) + p.eps);
  const T* from = ADD ? residual : x;
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    out[i] = narrowed<T>(widen(from[i]) * scale * weight[i]);
  }
}

template <typename T, bool ADD>
__device__ __forceinline__ void norm(const NormParams& p) {
  __shared__ float scratch[32];
  if (p.vectors != 0) {
    norm_vectors<T, ADD>(p, scratch);
  } else {
    norm_plain<T, ADD>(p, scratch);
  }
}

// A block has a row; blocks of at least 512 threads for wide rows.
template <typename T, bool ADD>
__device__ __forceinline__ void norm_aligned(const NormParams& p) {
  __shared__ float scratch[32];
  const uint64_t row = uint64_t(blockIdx.x) * p.cols;
  T* out = at<T>(p.out) + row;
  const T* x = at<T>(p.x) + row;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = p.cols >= WIDE_ROW ? 16 : 1;
  if (ADD) {
    T* residual = at<T>(p.residual) + row;
    for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
      residual[i] = narrowed<T>(__fadd_rn(widen(residual[i]), widen(x[i])));
    }
    __syncthreads();
    x = residual;
  }
  if (warp < warps) {
    const uint32_t threads = warps * lanes_of(p.cols);
    float sum = 0;
    if (threadIdx.x < threads) {
      sum = squares_of_thread(p.cols, threadIdx.x, threads, [&](uint32_t i) { return widen(x[i]); });
    }
    sum = reduce_warp(sum, Add());
    if (lane == 0) scratch[warp] = sum;
  }
  __syncthreads();
  const float sum = reduce_warp(lane < warps ? scratch[lane] : 0.0f, Add());
  const float scale = norm_scale(sum, p.cols, p.eps);
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    out[i] = narrowed<T>(weighted<T>(__fmul_rn(widen(x[i]), scale), p.weight, p.weight_in_act != 0, i));
  }
}

#define YN_NORM(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(1024)                                              \
      yn_rms_norm_##NAME(const __grid_constant__ NormParams p) {                                  \
    let_next_start();                                                                             \
    norm<T, false>(p);                                                                            \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(1024)                                              \
      yn_add_rms_norm_##NAME(const __grid_constant__ NormParams p) {                              \
    let_next_start();                                                                             \
    norm<T, true>(p);                                                                             \
  }

YN_NORM(f32, float)
YN_NORM(f16, f16)
YN_NORM(bf16, bf16)

#define YN_NORM_ALIGNED(NAME, T)                                                                  \
  extern "C" __global__ void __launch_bounds__(1024)                                              \
      yn_rms_norm_aligned_##NAME(const __grid_constant__ NormParams p) {                          \
    after_prior();                                                                                \
    norm_aligned<T, false>(p);                                                                    \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(1024)                                              \
      yn_add_rms_norm_aligned_##NAME(const __grid_constant__ NormParams p) {                      \
    after_prior();                                                                                \
    norm_aligned<T, true>(p);                                                                     \
  }

YN_NORM_ALIGNED(f16, f16)
YN_NORM_ALIGNED(bf16, bf16)
