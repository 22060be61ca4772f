// paged_attention on plain arithmetic units, a query token at a time: exact in f32, any even head dimension up to 256.
// For f32 activations and for head dimensions that the tensor-core kernels are not made for. See attention.cuh.
//
// A block of 128 takes chunks of one item and up to 8 query heads of one key head: a thread scores two keys, a warp turns
// the scores of a head into weights, then threads have pairs of dimensions and stripes of the tokens.
// `yn_attention_merge`: folds the partial results of items with several chunks; a thread has one dimension.
// Instances: the five pairs of activation and KV dtype; the merge for three act dtypes.
#include "attention.cuh"

constexpr uint32_t THREADS = 128, ROWS = 8, MAX_DIM = 256;

template <typename T, typename KV>
struct PlainShared {
  float query[ROWS][MAX_DIM];
  float weights[ROWS][CHUNK];
  float parts[MAX_DIM][ROWS];  // [stripe * dim + d]
  uint64_t keys[CHUNK];        // addresses
  float max[ROWS], sum[ROWS];
  Fold folds[ROWS];
};

template <typename KV>
__device__ __forceinline__ void score_keys(const AttentionParams& p, const float (&query)[ROWS][MAX_DIM], uint64_t key,
                                           float (&scores)[ROWS]) {
  const KV* k = at<KV>(key);
#pragma unroll
  for (uint32_t r = 0; r < ROWS; r++) scores[r] = 0;
  if (p.head_dim % 8 == 0 && key % 16 == 0) {
    for (uint32_t d = 0; d < p.head_dim; d += 8) {
      float x[8];
      load8(k + d, x);
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) scores[r] = fmaf(query[r][d + j], x[j], scores[r]);
      }
    }
    return;
  }
  for (uint32_t d = 0; d < p.head_dim; d++) {
    const float x = widen(k[d]);
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) scores[r] = fmaf(query[r][d], x, scores[r]);
  }
}

// One chunk: tokens `from..to` of it.
template <typename T, typename KV>
__device__ __forceinline__ void attend(const AttentionParams& p, const Unit& unit, const KvRows<KV>& rows,
                                       PlainShared<T, KV>& sh, uint32_t from, uint32_t to) {
  const uint32_t t = threadIdx.x, lane = t % 32, count = to - from, dim = p.head_dim;
  for (uint32_t i = t; i < count; i += THREADS) {
    const uint64_t key = rows.key(from + i);
    if (key == 0) fault(p.fault, KV_BLOCK, unit.item.sequence, uint32_t(rows.table[(from + i) / p.block_size]));
    sh.keys[i] = key != 0 ? key : rows.base;
    float scores[ROWS];
    score_keys<KV>(p, sh.query, sh.keys[i], scores);
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
      float s = scores[r] * p.scale;
      if (p.soft_cap != 0.0f) s = p.soft_cap * tanhf(s / p.soft_cap);
      sh.weights[r][i] = s * LOG2E;
    }
  }
  __syncthreads();
  for (uint32_t r = t / 32; r < ROWS; r += THREADS / 32) {
    float max = -INFINITY, sum = 0;
    for (uint32_t i = lane; i < count; i += 32) max = fmaxf(max, sh.weights[r][i]);
    max = reduce_warp(max, Max());
    for (uint32_t i = lane; i < count; i += 32) {
      const float w = exp2f(sh.weights[r][i] - max);
      sh.weights[r][i] = w;
      sum += w;
    }
    sum = reduce_warp(sum, Add());
    if (lane == 0) sh.max[r] = max, sh.sum[r] = sum;
  }
  __syncthreads();
  // A thread has dimensions 2 pair and 2 pair + 1 of the tokens of its stripe.
  const uint32_t pairs = dim / 2, stripes = THREADS / pairs, pair = t % pairs, stripe = t / pairs;
  if (stripe < stripes) {
    float sums[ROWS][2] = {};
    for (uint32_t i = stripe; i < count; i += stripes) {
      const KV* v = at<KV>(sh.keys[i] + rows.value_bytes) + 2 * pair;
      const float a = widen(v[0]), b = widen(v[1]);
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        sums[r][0] = fmaf(sh.weights[r][i], a, sums[r][0]);
        sums[r][1] = fmaf(sh.weights[r][i], b, sums[r][1]);
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
      sh.parts[stripe * dim + 2 * pair][r] = sums[r][0];
      sh.parts[stripe * dim + 2 * pair + 1][r] = sums[r][1];
    }
  }
  __syncthreads();
}

template <typename T, typename KV>
__device__ __forceinline__ void attention_plain(const AttentionParams& p) {
  YN_DYNAMIC_SHARED(dynamic);
  __shared__ PlainShared<T, KV> sh;
  Plan plan(dynamic, p.items);
  plan.make(p);
  const uint32_t total = number_of_units(p, plan, ROWS), dim = p.head_dim;
  for (uint32_t work = blockIdx.x; work < total; work += gridDim.x) {
    const Unit unit = unit_at(p, plan, work, ROWS);
    const KvRows<KV> rows(p, unit.item.sequence, unit.kv_head);
    const T* query = at<T>(p.qkv) + (uint64_t(unit.item.token) * (p.heads + 2 * p.kv_heads) + unit.head) * dim;
    for (uint32_t i = threadIdx.x; i < ROWS * dim; i += THREADS) {
      sh.query[i / dim][i % dim] = i / dim < unit.rows ? widen(query[i]) : 0.0f;
    }
    __syncthreads();
    for (uint32_t step = 0; step < unit.chunks; step++) {
      const uint32_t chunk = unit.chunk + step;
      const uint32_t from = max(chunk * CHUNK, unit.item.first_key), to = min((chunk + 1) * CHUNK, unit.item.position + 1);
      attend<T, KV>(p, unit, rows, sh, from, to);
      const uint32_t stripes = THREADS / (dim / 2);
      emit<T>(p, unit, step, sh.max, sh.sum, sh.folds, [&](uint32_t row, uint32_t col) {
        float sum = 0;
        for (uint32_t i = 0; i < stripes; i++) sum += sh.parts[i * dim + col][row];
        return sum;
      });
      __syncthreads();
    }
  }
}

template <typename T>
__device__ __forceinline__ void attention_merge(const AttentionParams& p) {
  constexpr uint32_t AHEAD = 8;  // loads in flight
  const uint64_t index = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x, width = uint64_t(p.heads) * p.head_dim;
  if (index >= p.items * width) return;
  const uint32_t number = uint32_t(index / width), column = uint32_t(index % width), head = column / p.head_dim;
  const ItemPlan plan = at<ItemPlan>(p.plan)[number];
  if (plan.slot == NO_SLOT) return;
  const float2* limits = at<float2>(p.limits) + uint64_t(plan.slot) * p.heads + head;
  const float* sums = at<float>(p.sums) + plan.slot * width + column;
  Fold fold;
  fold.begin();
  float x = 0;
  for (uint32_t first = 0; first < plan.chunks; first += AHEAD) {
    float2 limit[AHEAD];
    float sum[AHEAD];
#pragma unroll
    for (uint32_t j = 0; j < AHEAD; j++) {
      if (first + j >= plan.chunks) break;
      limit[j] = limits[uint64_t(first + j) * p.heads];
      sum[j] = sums[(first + j) * width];
    }
#pragma unroll
    for (uint32_t j = 0; j < AHEAD; j++) {
      if (first + j >= plan.chunks) break;
      fold.with(limit[j].x, limit[j].y);
      x = fold.weighted(x, sum[j]);
    }
  }
  at<T>(p.out)[item_at(p, number).token * width + column] = narrowed<T>(finished(x, fold.sum));
}

#define YN_PLAIN(A, TA, K, TK)                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS)                           \
      yn_attention_plain_##A##_##K(const __grid_constant__ AttentionParams p) {   \
    after_prior();                                                                \
    attention_plain<TA, TK>(p);                                                   \
  }
YN_PLAIN(f32, float, f32, float)
YN_PLAIN(f32, float, f16, f16)
YN_PLAIN(f32, float, bf16, bf16)
YN_PLAIN(f16, f16, f16, f16)
YN_PLAIN(bf16, bf16, bf16, bf16)

#define YN_MERGE(A, TA)                                                                                       \
  extern "C" __global__ void yn_attention_merge_##A(const __grid_constant__ AttentionParams p) {              \
    after_prior();                                                                                            \
    attention_merge<TA>(p);                                                                                   \
  }
YN_MERGE(f32, float)
YN_MERGE(f16, f16)
YN_MERGE(bf16, bf16)
