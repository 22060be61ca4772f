// The ends of a product of few rows (linear_few.cu). In front of it, in each block anew, as rows are few: sum = residual + x, as
// activations keep it, and its norm, which the product takes. Behind it activation(gate) * up, gates being the first half of all
// columns. Each intermediate result is rounded to act, as ops one by one would.
#pragma once
#include "activation.cuh"
#include "common.cuh"
#include "hopper.cuh"

struct FewParams {
  alignas(64) unsigned char w_map[128];  // CUtensorMap of w: tiles of 8 * strips rows
  alignas(64) unsigned char x_map[128];  // of x: tiles of 8 or 16 rows; not looked at where rows are normed
  uint64_t out;
  uint64_t bias;      // 0: none
  uint64_t x;         // of rows that are normed
  uint64_t residual;  // 0: none
  uint64_t sum;
  uint64_t weight;    // f32 [K], of the norm
  uint64_t firsts;    // u64 [M], of logits, whose first candidates are given; 0: no logits
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t strips;  // of 8 columns, in a unit
  uint32_t units;
  uint32_t wide;   // out is f32
  uint32_t pairs;  // rows of out are whole aligned pairs
  uint32_t stages;  // of the ring
  uint32_t splits;  // of k, one a block of a cluster
  uint32_t gate;   // what becomes of the first half of the columns, which then multiplies the second
  uint32_t x_stride;  // bytes from a normed row to the next, in shared memory
  float eps;
  uint32_t late;  // the next launch starts when rows are here, not before
};
static_assert(sizeof(FewParams) == 384, "mirrored in src/hal/cuda/ops/linear_few.rs");

constexpr uint32_t WARPS = 8, THREADS = 32 * (WARPS + 1), MAX_STAGES = 16, MAX_SPLITS = 8;
constexpr uint32_t ROW_BYTES = 128, RING_BYTES = 80 * 1024;
constexpr uint32_t REDUCED = 4608;  // numbers of a round of adding up

struct FewShared {
  // Of each stage w's boxes, then x's; rows of 128 bytes.
  unsigned char ring[RING_BYTES];
  float reduced[REDUCED];
  union {
    float2 parts[16 * 32];  // of each block of the cluster, the sums that this one adds up
    float2 gates[16][32];   // a unit's, for the columns that they multiply
  };
  uint64_t full[MAX_STAGES], free[MAX_STAGES];
  float squares[WARPS];
  // Behind it normed rows.
};

#ifdef YN_SM90A

// Eight numbers of x, or of sum = residual + x, which one block stores.
template <typename T>
__device__ __forceinline__ void load_sum(const FewParams& p, uint64_t from, float (&v)[8]) {
  load8(at<T>(p.x) + from, v);
  if (p.residual == 0) return;
  float r[8];
  load8(at<T>(p.residual) + from, r);
#pragma unroll
  for (int j = 0; j < 8; j++) v[j] = widen(narrowed<T>(r[j] + v[j]));
  if (blockIdx.x == 0) store8(at<T>(p.sum) + from, v);
}

__device__ __forceinline__ float squares_of(const float (&v)[8]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 8; j++) sum = fmaf(v[j], v[j], sum);
  return sum;
}

// The computing warps: all rows, normed, to shared memory. Up to eight rows are worked on at once, by equally many warps each.
template <typename T>
__device__ __forceinline__ void norm_rows(const FewParams& p, FewShared& sh, unsigned char* rows) {
  constexpr uint32_t NEAR = 2;  // vectors that a thread keeps in registers
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t warps = p.m > 4 ? 1 : p.m > 2 ? 2 : p.m > 1 ? 4 : 8, lanes = 32 * warps, row = warp / warps;
  const uint32_t place = warp % warps * 32 + lane, vectors = p.k / 8;
  const float* weight = at<float>(p.weight);
  float w[NEAR][8], v[NEAR][8];
#pragma unroll
  for (uint32_t i = 0; i < NEAR; i++) {
    if (place + i * lanes < vectors) load8(weight + 8 * (place + i * lanes), w[i]);
  }
  wait_for_prior();
  const uint64_t start = uint64_t(row) * p.k;
  T* to = reinterpret_cast<T*>(rows + row * p.x_stride);
  const bool mine = row < p.m;
  float squares = 0;
#pragma unroll
  for (uint32_t i = 0; i < NEAR; i++) {
    if (mine && place + i * lanes < vectors) load_sum<T>(p, start + 8 * (place + i * lanes), v[i]);
  }
#pragma unroll
  for (uint32_t i = 0; i < NEAR; i++) {
    if (mine && place + i * lanes < vectors) squares += squares_of(v[i]);
  }
  for (uint32_t n = place + NEAR * lanes; mine && n < vectors; n += lanes) {
    float far[8];
    load_sum<T>(p, start + 8 * n, far);
    squares += squares_of(far);
    store8(to + 8 * n, far);
  }
  squares = reduce_warp(squares, Add());
  if (warps > 1) {
    if (lane == 0) sh.squares[warp] = squares;
    meet(1, 32 * WARPS);
    squares = reduce_warp(lane < warps ? sh.squares[row * warps + lane] : 0.0f, Add());
  }
  const float scale = rsqrtf(squares / float(p.k) + p.eps);
#pragma unroll
  for (uint32_t i = 0; i < NEAR; i++) {
    if (!mine || place + i * lanes >= vectors) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) v[i][j] *= scale * w[i][j];
    store8(to + 8 * (place + i * lanes), v[i]);
  }
  for (uint32_t n = place + NEAR * lanes; mine && n < vectors; n += lanes) {
    load8(weight + 8 * n, w[0]);
    load8(to + 8 * n, v[0]);
#pragma unroll
    for (int j = 0; j < 8; j++) v[0][j] *= scale * w[0][j];
    store8(to + 8 * n, v[0]);
  }
  for (uint32_t i = p.k + place; mine && i < p.x_stride / sizeof(T); i += lanes) to[i] = narrowed<T>(0.0f);
  meet(1, 32 * WARPS);
}

// Two neighbouring columns of a row.
template <typename T>
__device__ __forceinline__ void store_pair(const FewParams& p, uint32_t row, uint32_t column, float2 x) {
  if (column >= p.n) return;
  const bool both = column + 1 < p.n;
  if (p.bias != 0) {
    x.x += at<float>(p.bias)[column];
    if (both) x.y += at<float>(p.bias)[column + 1];
  }
  const uint64_t to = uint64_t(row) * p.n + column;
  if (p.pairs && p.wide) {
    *reinterpret_cast<float2*>(at<float>(p.out) + to) = x;
  } else if (p.pairs) {
    *reinterpret_cast<uint32_t*>(at<T>(p.out) + to) = pack<T>(x.x, x.y);
  } else if (p.wide) {
    at<float>(p.out)[to] = x.x;
    if (both) at<float>(p.out)[to + 1] = x.y;
  } else {
    at<T>(p.out)[to] = narrowed<T>(x.x);
    if (both) at<T>(p.out)[to + 1] = narrowed<T>(x.y);
  }
}

// Two neighbouring columns of a unit: gates are kept for the next unit, whose columns they multiply, in the same thread.
template <typename T>
__device__ __forceinline__ void gate_pair(const FewParams& p, FewShared& sh, uint32_t row, bool is_gate, uint32_t column,
                                          uint32_t in_unit, float2 x) {
  if (column >= (is_gate ? p.n / 2 : p.n)) return;
  if (p.bias != 0) {
    x.x += at<float>(p.bias)[column];
    x.y += at<float>(p.bias)[column + 1];
  }
  x = make_float2(widen(narrowed<T>(x.x)), widen(narrowed<T>(x.y)));
  float2& kept = sh.gates[row][in_unit / 2];
  if (is_gate) {
    kept = p.gate == SILU ? make_float2(Silu()(x.x), Silu()(x.y)) : make_float2(GeluTanh()(x.x), GeluTanh()(x.y));
    return;
  }
  const uint64_t to = uint64_t(row) * (p.n / 2) + column - p.n / 2;
  *reinterpret_cast<uint32_t*>(at<T>(p.out) + to) = pack<T>(kept.x * x.x, kept.y * x.y);
}

#endif
