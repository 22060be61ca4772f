// rope_write_kv: norms (optional) and rotates queries in place, writes normed and rotated keys and plain values to the cache.
// qkv: act [T, (H + 2G) * D]; positions, slots: i32 [T]; rope: f32 [max_position, D], cosines then sines; norms: f32 [D].
// A KV block is [layer][keys, values][kv_head][token][dim]; a slot is block * block_size + offset. A negative slot writes
// nothing: padding rows of a captured step have it. Bound by memory, and by launch at decode sizes.
//
// `rope_vectors`: D / 2 is whole vectors of 8; a thread has eight pairs (i, i + D/2) of one head, or of several of a token where
// tokens are many, and with norms a head is a power of two of threads, so that a warp holds it whole; all but qkv is loaded before the
// launch in front has ended. `rope_plain`: a warp has a head, any even D up to 256.
// Instances of both: the pairs of activation and KV dtype that paged_attention takes.
// `rope_aligned`: as `rope_plain`, with roundings and sums as in the reference implementation; norms are f32 or act. Instances:
// f16 and bf16, activations and cache alike.
// `rope_turn`: the cosines and sines of a table of angles, f32 [rows, cols], each angle in both halves of a row.
#include "aligned.cuh"

struct RopeParams {
  uint64_t qkv;
  uint64_t positions;
  uint64_t slots;
  uint64_t rope;
  uint64_t query_norm;  // 0: no norms
  uint64_t key_norm;
  uint64_t pool;
  uint64_t block_bytes;
  uint64_t layer_bytes;  // from a block's start to its layer
  uint64_t fault;
  uint32_t tokens;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t block_size;
  uint32_t blocks;
  uint32_t max_position;
  float eps;
  uint32_t norms_in_act;  // of the aligned kernels
  uint32_t apart;         // of `rope_vectors`: from one head of a thread to the next, at least a part in HEADS of all
};
static_assert(sizeof(RopeParams) == 120, "mirrored in src/hal/cuda/ops/rope.rs");

// Threads of a block, and most heads of one of them.
constexpr uint32_t BLOCK = 128, HEADS = 3;

// Where a key or value head of a token goes; null when nowhere.
template <typename KV>
__device__ __forceinline__ KV* destination(const RopeParams& p, int slot, uint32_t kv_index) {
  const uint32_t block = uint32_t(slot) / p.block_size, offset = uint32_t(slot) % p.block_size;
  if (slot < 0 || block >= p.blocks) return nullptr;
  KV* layer = at<KV>(p.pool + block * p.block_bytes + p.layer_bytes);
  return layer + (uint64_t(kv_index) * p.block_size + offset) * p.head_dim;
}

__device__ __forceinline__ uint32_t checked_position(const RopeParams& p, uint32_t token, int slot) {
  const int position = at<int>(p.positions)[token];
  const bool known = uint32_t(position) < p.max_position;
  if (!known && slot >= 0) fault(p.fault, POSITION, token, uint32_t(position));
  if (slot >= 0 && uint32_t(slot) / p.block_size >= p.blocks) fault(p.fault, KV_SLOT, token, uint32_t(slot));
  return known ? uint32_t(position) : 0;
}

// A thread's eight pairs of one head: `a` and what is half a head behind it.
template <typename T, typename KV>
__device__ __forceinline__ void rope_eight(const RopeParams& p, uint32_t head, uint32_t lane, int slot, T* low, float (&a)[8],
                                           float (&b)[8], const float (&c)[8], const float (&s)[8]) {
  const uint32_t half = p.head_dim / 2, lanes = half / 8;
  const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
  if (p.query_norm != 0) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(a[j], a[j], fmaf(b[j], b[j], sum));
    for (uint32_t width = lanes / 2; width > 0; width /= 2) sum += __shfl_xor_sync(ALL, sum, width);
    if (!is_value) {
      const float scale = 1.0f / sqrtf(sum / float(p.head_dim) + p.eps);
      const float* weight = at<float>(is_query ? p.query_norm : p.key_norm) + 8 * lane;
      float w[8];
      load8(weight, w);
#pragma unroll
      for (int j = 0; j < 8; j++) a[j] = a[j] * scale * w[j];
      load8(weight + half, w);
#pragma unroll
      for (int j = 0; j < 8; j++) b[j] = b[j] * scale * w[j];
    }
  }
  if (low == nullptr) return;
  if (!is_value) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float x = a[j], y = b[j];
      a[j] = x * c[j] - y * s[j];
      b[j] = y * c[j] + x * s[j];
    }
  }
  if (is_query) {
    store8(low, a);
    store8(low + half, b);
  } else if (KV* to = destination<KV>(p, slot, head - p.heads)) {
    store8(to + 8 * lane, a);
    store8(to + half + 8 * lane, b);
  }
}

template <typename T, typename KV>
__device__ __forceinline__ void rope_vectors(const RopeParams& p) {
  const uint32_t half = p.head_dim / 2, lanes = half / 8, all = p.heads + 2 * p.kv_heads;
  const uint64_t total = uint64_t(p.tokens) * p.apart * lanes;
  const uint64_t thread = blockIdx.x * uint64_t(BLOCK) + threadIdx.x;
  const bool active = thread < total;
  const uint64_t index = active ? thread : total - 1;
  const uint32_t lane = uint32_t(index % lanes), first = uint32_t(index / lanes % p.apart);
  const uint32_t token = uint32_t(index / lanes / p.apart);
  const int slot = at<int>(p.slots)[token];
  const uint32_t position = checked_position(p, token, slot);
  T* low = at<T>(p.qkv) + (uint64_t(token) * all + first) * p.head_dim + 8 * lane;
  float c[8], s[8];
  const float* row = at<float>(p.rope) + uint64_t(position) * p.head_dim + 8 * lane;
  load8(row, c);
  load8(row + half, s);
  wait_for_prior();
  // Of a thread's heads the last may be one of none.
  Eight<T> lows[HEADS], highs[HEADS];
#pragma unroll
  for (uint32_t i = 0; i < HEADS; i++) {
    if (i * p.apart >= all) break;
    const T* from = low + min(i * p.apart, all - 1 - first) * p.head_dim;
    lows[i].load(from);
    highs[i].load(from + half);
  }
#pragma unroll
  for (uint32_t i = 0; i < HEADS; i++) {
    if (i * p.apart >= all) break;
    const uint32_t head = first + i * p.apart;
    float a[8], b[8];
    lows[i].widen_to(a);
    highs[i].widen_to(b);
    rope_eight<T, KV>(p, head, lane, slot, active && head < all ? low + i * p.apart * p.head_dim : nullptr, a, b, c, s);
  }
}

template <typename T, typename KV>
__device__ __forceinline__ void rope_plain(const RopeParams& p) {
  const uint32_t half = p.head_dim / 2, all = p.heads + 2 * p.kv_heads, lane = threadIdx.x % 32;
  const uint64_t index = blockIdx.x * uint64_t(BLOCK / 32) + threadIdx.x / 32;
  if (index >= uint64_t(p.tokens) * all) return;
  const uint32_t head = uint32_t(index % all), token = uint32_t(index / all);
  const int slot = at<int>(p.slots)[token];
  const uint32_t position = checked_position(p, token, slot);
  T* low = at<T>(p.qkv) + (uint64_t(token) * all + head) * p.head_dim;
  const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
  float scale = 1.0f;
  const float* weight = nullptr;
  if (p.query_norm != 0 && !is_value) {
    float sum = 0;
    for (uint32_t i = lane; i < p.head_dim; i += 32) sum = fmaf(widen(low[i]), widen(low[i]), sum);
    sum = reduce_warp(sum, Add());
    scale = 1.0f / sqrtf(sum / float(p.head_dim) + p.eps);
    weight = at<float>(is_query ? p.query_norm : p.key_norm);
  }
  KV* to = is_query ? nullptr : destination<KV>(p, slot, head - p.heads);
  const float* row = at<float>(p.rope) + uint64_t(position) * p.head_dim;
  for (uint32_t i = lane; i < half; i += 32) {
    float x = widen(low[i]), y = widen(low[i + half]);
    if (weight != nullptr) {
      x = x * scale * weight[i];
      y = y * scale * weight[i + half];
    }
    const float c = is_value ? 1.0f : row[i], s = is_value ? 0.0f : row[half + i];
    const float turned_x = is_value ? x : x * c - y * s, turned_y = is_value ? y : y * c + x * s;
    if (is_query) {
      low[i] = narrowed<T>(turned_x);
      low[i + half] = narrowed<T>(turned_y);
    } else if (to != nullptr) {
      to[i] = narrowed<KV>(turned_x);
      to[i + half] = narrowed<KV>(turned_y);
    }
  }
}

template <typename T>
__device__ __forceinline__ void rope_aligned(const RopeParams& p) {
  const uint32_t half = p.head_dim / 2, all = p.heads + 2 * p.kv_heads, lane = threadIdx.x % 32;
  const uint64_t index = blockIdx.x * uint64_t(BLOCK / 32) + threadIdx.x / 32;
  if (index >= uint64_t(p.tokens) * all) return;
  const uint32_t head = uint32_t(index % all), token = uint32_t(index / all);
  const int slot = at<int>(p.slots)[token];
  const uint32_t position = checked_position(p, token, slot);
  T* low = at<T>(p.qkv) + (uint64_t(token) * all + head) * p.head_dim;
  const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
  const bool normed = p.query_norm != 0 && !is_value;
  const uint64_t weights = is_query ? p.query_norm : p.key_norm;
  float scale = 1.0f;
  if (normed) {
    const uint32_t lanes = lanes_of(p.head_dim);
    float sum = 0;
    if (lane < lanes) sum = squares_of_thread(p.head_dim, lane, lanes, [&](uint32_t i) { return widen(low[i]); });
    scale = norm_scale(reduce_warp(sum, Add()), p.head_dim, p.eps);
  }
  T* to = is_query ? low : destination<T>(p, slot, head - p.heads);
  if (to == nullptr) return;
  const float* row = at<float>(p.rope) + uint64_t(position) * p.head_dim;
  for (uint32_t i = lane; i < half; i += 32) {
    float x = widen(low[i]), y = widen(low[i + half]);
    if (normed) {
      x = rounded<T>(weighted<T>(__fmul_rn(x, scale), weights, p.norms_in_act != 0, i));
      y = rounded<T>(weighted<T>(__fmul_rn(y, scale), weights, p.norms_in_act != 0, i + half));
    }
    if (!is_value) {
      const float c = rounded<T>(row[i]), s = rounded<T>(row[half + i]), a = x, b = y;
      x = __fadd_rn(rounded<T>(__fmul_rn(a, c)), rounded<T>(__fmul_rn(-b, s)));
      y = __fadd_rn(rounded<T>(__fmul_rn(b, c)), rounded<T>(__fmul_rn(a, s)));
    }
    to[i] = narrowed<T>(x);
    to[i + half] = narrowed<T>(y);
  }
}

#define YN_ROPE(A, TA, K, TK)                                                                                 \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                                         \
      yn_rope_write_kv_vectors_##A##_##K(const __grid_constant__ RopeParams p) {                              \
    let_next_start();                                                                                         \
    rope_vectors<TA, TK>(p);                                                                                  \
  }                                                                                                           \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                                         \
      yn_rope_write_kv_plain_##A##_##K(const __grid_constant__ RopeParams p) {                                \
    after_prior();                                                                                            \
    rope_plain<TA, TK>(p);                                                                                    \
  }

YN_ROPE(f32, float, f32, float)
YN_ROPE(f32, float, f16, f16)
YN_ROPE(f32, float, bf16, bf16)
YN_ROPE(f16, f16, f16, f16)
YN_ROPE(bf16, bf16, bf16, bf16)

#define YN_ROPE_ALIGNED(A, T)                                                                                 \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                                         \
      yn_rope_write_kv_aligned_##A(const __grid_constant__ RopeParams p) {                                    \
    after_prior();                                                                                            \
    rope_aligned<T>(p);                                                                                       \
  }

YN_ROPE_ALIGNED(f16, f16)
YN_ROPE_ALIGNED(bf16, bf16)

struct TurnParams {
  uint64_t table;
  uint32_t rows;
  uint32_t cols;
};
static_assert(sizeof(TurnParams) == 16, "mirrored in src/hal/cuda/ops/rope.rs");

extern "C" __global__ void __launch_bounds__(BLOCK) yn_rope_turn(const __grid_constant__ TurnParams p) {
  after_prior();
  const uint64_t i = blockIdx.x * uint64_t(BLOCK) + threadIdx.x;
  if (i >= uint64_t(p.rows) * p.cols) return;
  float& x = at<float>(p.table)[i];
  x = i % p.cols < p.cols / 2 ? cosf(x) : sinf(x);
}
