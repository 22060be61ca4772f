// What sample and logprobs share: the order of candidates and their weights, by the CPU backend's arithmetic.
#pragma once
#include "common.cuh"

// Rises as logits fall; equal for 0 and -0.
__device__ __forceinline__ uint32_t falling(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits >> 31 ? bits : ~(bits | 0x80000000u);
}
__device__ __forceinline__ float unfalling(uint32_t key) {
  return __uint_as_float(key >> 31 ? key : ~key & 0x7fffffffu);
}
// Falling logit, then rising id.
__device__ __forceinline__ uint64_t candidate(float x, uint32_t id) { return uint64_t(falling(x)) << 32 | id; }

// The first of some candidates, which are told by rising id.
struct Largest {
  float x = -INFINITY;
  uint32_t id;
  __device__ __forceinline__ explicit Largest(uint32_t first) : id(first) {}
  __device__ __forceinline__ void tell(float other, uint32_t other_id) {
    if (other > x) id = other_id;
    x = max_or_nan(x, other);
  }
  // 0, which no candidate is, where a NaN was told.
  __device__ __forceinline__ uint64_t found() const { return isnan(x) ? 0 : candidate(x, id); }
};
// The first candidate of each row, which a product's blocks give and sample_draw takes; complemented, as 0 is what was there before.
__device__ __forceinline__ void give_first(uint64_t firsts, uint32_t row, uint64_t found) {
  atomicMax(at<unsigned long long>(firsts) + row, ~static_cast<unsigned long long>(found));
}
__device__ __forceinline__ uint64_t take_first(uint64_t firsts, uint32_t row) {
  unsigned long long& given = at<unsigned long long>(firsts)[row];
  const uint64_t first = ~given;
  given = 0;
  return first;
}

// e^x for x <= 88: 2^n * e^r with |r| <= ln(2)/2 and a Taylor polynomial, the same operations as the CPU backend's.
__device__ __forceinline__ float exp_same(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = fmaf(clamped, 1.44269504088896340736f, round);
  const float n = __fsub_rn(shifted, round);
  const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, clamped));
  float p = 1.0f / 5040.0f;
  p = fmaf(p, r, 1.0f / 720.0f);
  p = fmaf(p, r, 1.0f / 120.0f);
  p = fmaf(p, r, 1.0f / 24.0f);
  p = fmaf(p, r, 1.0f / 6.0f);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  const float scaled = __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
  return x < -87.0f ? 0.0f : scaled;
}

// Philox 4x32 with ten rounds (Salmon et al., SC 2011), its first word as a uniform number in [0, 1).
__device__ __forceinline__ float uniform(uint32_t k0, uint32_t k1, uint32_t choice, uint32_t index) {
  uint32_t c0 = index, c1 = choice, c2 = 0, c3 = 0;
  for (int i = 0; i < 10; i++) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return float(c0 >> 8) * (1.0f / 16777216.0f);
}

// Calls `each(x, id)` for the numbers `from..to` of a row, spread over the block. `vectors`: rows and `from` are 16-byte
// aligned and hold whole vectors of four.
template <typename Each>
__device__ __forceinline__ void visit(const float* row, uint32_t from, uint32_t to, bool vectors, const Each& each) {
  constexpr uint32_t AHEAD = 4;  // loads in flight
  if (!vectors) {
    for (uint32_t id = from + threadIdx.x; id < to; id += blockDim.x) each(row[id], id);
    return;
  }
  const uint32_t step = 4 * blockDim.x;
  for (uint32_t first = from + 4 * threadIdx.x; first < to; first += AHEAD * step) {
    float4 x[AHEAD];
#pragma unroll
    for (uint32_t j = 0; j < AHEAD; j++) {
      if (first + j * step < to) x[j] = *reinterpret_cast<const float4*>(row + first + j * step);
    }
#pragma unroll
    for (uint32_t j = 0; j < AHEAD; j++) {
      const uint32_t id = first + j * step;
      if (id >= to) break;
      each(x[j].x, id);
      each(x[j].y, id + 1);
      each(x[j].z, id + 2);
      each(x[j].w, id + 3);
    }
  }
}
