// Matrices of random numbers for benches, equal to those of the host: element i is the i-th number of SplitMix64 (Steele,
// Lea, Flood, OOPSLA 2014) from a seed on, uniform in -width/2..width/2.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

struct RandomParams {
  uint64_t out;
  uint64_t n;
  uint64_t seed;
  float width;
  uint32_t pad;
};
static_assert(sizeof(RandomParams) == 32, "mirrored in src/hal/cuda/random.rs");

__device__ float unit(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return float(z >> 40) * (1.0f / 16777216.0f);
}

template <typename T>
__device__ void fill(const RandomParams& p) {
  const uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x;
  if (i < p.n) reinterpret_cast<T*>(p.out)[i] = T(__fmul_rn(__fadd_rn(unit(p.seed, i), -0.5f), p.width));
}

extern "C" __global__ void yn_random_f32(const __grid_constant__ RandomParams p) { fill<float>(p); }
extern "C" __global__ void yn_random_f16(const __grid_constant__ RandomParams p) { fill<__half>(p); }
extern "C" __global__ void yn_random_bf16(const __grid_constant__ RandomParams p) { fill<__nv_bfloat16>(p); }
