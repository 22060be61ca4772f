// Faults for tests (src/hal/cuda/planted.rs); nothing else launches these.
#include <stdint.h>

struct PlantedWriteParams {
  uint64_t at;
};

// Writes where nothing is mapped: the context is lost.
extern "C" __global__ void yn_planted_write(const __grid_constant__ PlantedWriteParams p) {
  *reinterpret_cast<volatile uint32_t*>(p.at) = 1;
}

struct PlantedSpinParams {
  uint64_t stop;  // u32 in page-locked memory; not 0 ends the kernel
  uint64_t most_ns;
};
static_assert(sizeof(PlantedSpinParams) == 16, "mirrored in src/hal/cuda/planted.rs");

__device__ uint64_t now_ns() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// Keeps its threads' places on the multiprocessors.
extern "C" __global__ void __launch_bounds__(512, 4) yn_planted_spin(const __grid_constant__ PlantedSpinParams p) {
  if (threadIdx.x == 0) {
    const volatile uint32_t* stop = reinterpret_cast<const volatile uint32_t*>(p.stop);
    const uint64_t from = now_ns();
    while (*stop == 0 && now_ns() - from < p.most_ns) __nanosleep(100000);
  }
  __syncthreads();
}
