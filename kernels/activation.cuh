// What a gate goes through before it multiplies.
#pragma once
#include "ptx.cuh"

// What becomes of the first half of a product's columns.
enum Gate : uint32_t { NONE = 0, SILU = 1, GELU = 2 };

// Exact to the last bits of f32.
struct Silu {
  __device__ __forceinline__ float operator()(float g) const { return g / (1.0f + expf(-g)); }
};
struct GeluTanh {
  // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) with u = sqrt(2 / pi) * (g + 0.044715 g^3).
  __device__ __forceinline__ float operator()(float g) const {
    return g / (1.0f + expf(-1.5957691216057308f * (g + 0.044715f * (g * g * g))));
  }
};

// The same to some units in the last place of f32, where a thread has many that become numbers of 16 bits at once.
struct SiluFast {
  __device__ __forceinline__ float operator()(float g) const { return g * reciprocal(1.0f + exp2_fast(-1.4426950408889634f * g)); }
};
struct GeluTanhFast {
  __device__ __forceinline__ float operator()(float g) const {
    return g * reciprocal(1.0f + exp2_fast(-2.302208198144325f * (g + 0.044715f * (g * g * g))));
  }
};
