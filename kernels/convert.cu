// F32 numbers in another dtype, for biases of products (cuBLASLt adds biases of the output's dtype only).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "ptx.cuh"

struct ConvertParams {
  uint64_t out;
  uint64_t in;
  uint64_t n;
};
static_assert(sizeof(ConvertParams) == 24, "mirrored in src/hal/cuda/convert.rs");

template <typename T>
__device__ void convert(const ConvertParams& p) {
  const uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x;
  if (i < p.n) reinterpret_cast<T*>(p.out)[i] = T(reinterpret_cast<const float*>(p.in)[i]);
}

extern "C" __global__ void yn_convert_f16(const __grid_constant__ ConvertParams p) {
  after_prior();
  convert<__half>(p);
}
extern "C" __global__ void yn_convert_bf16(const __grid_constant__ ConvertParams p) {
  after_prior();
  convert<__nv_bfloat16>(p);
}
