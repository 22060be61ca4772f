// paged_attention of few single query tokens (decodes) in mode `fast`: bound by the way from one block to the next more than by
// reading the cache. Layouts and items as in attention.cuh, products and maxima as in attention_heads.cuh.
//
// A cluster of eight blocks has a row of work, up to 8 or 16 query heads of one key head of one item, and each of its blocks an equal
// run of the row's steps of 64 keys. They add up their results through each other's shared memory: each block an eighth of all
// dimensions. Of rows with more steps than `WHOLE` a block several clusters have a part each; the last block of them all puts their
// results together.
// The grid is fixed, a row has `clusters` of them, and each finds its part from starts and context_lens, so a captured launch replays
// for any lengths. Blocks of the cache have 2^n tokens, 16 at least.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64 and 128 x 8 and 16 heads. Other architectures than
// sm_90 and later have no clusters; there it is never launched.
#include "attention_heads.cuh"

constexpr uint32_t BLOCKS = 8;  // of a cluster
// Steps of a block from which on another cluster helps.
constexpr uint32_t WHOLE = 4;

template <typename T, uint32_t DIM, uint32_t TILES>
struct FewShared {
  static constexpr uint32_t ROWS = TILES * TILE, STAGES = 2;
  // A block's eighth of the results of all blocks of the cluster, and their rows' maxima and sums of weights.
  struct Parts {
    float2 sums[BLOCKS][ROWS * DIM / 2 / BLOCKS];
    float2 limits[BLOCKS][ROWS];
  };
  T keys[WARPS][STAGES][GROUP][DIM];
  T values[WARPS][STAGES][GROUP][DIM];
  Parts parts;
  T queries[ROWS][DIM + 8];
  float left[WARPS][TILE][DIM + 4];
  float max[WARPS][ROWS], sum[WARPS][ROWS];
  uint32_t arrived;

  __device__ float (&sums(uint32_t warp))[TILE][DIM + 4] { return left[warp]; }
};

template <typename T, uint32_t DIM, uint32_t TILES>
struct Few : Heads<T, DIM, TILES, FewShared<T, DIM, TILES>> {
  using Shared = FewShared<T, DIM, TILES>;
  using Base = Heads<T, DIM, TILES, Shared>;
  static constexpr uint32_t ROWS = Base::ROWS, PAIRS = Base::PAIRS;
  const Item item;
  const uint32_t row, rank;  // of work; of the block in its cluster
  uint32_t kv_head, head, heads;  // of the row: its first head and how many it has
  uint32_t cluster, clusters;     // of the row, that work
  uint32_t from, to;              // steps of the block
  bool waited = false;            // for the launch in front

  __device__ Few(const AttentionParams& p, Shared& sh, uint32_t index, uint32_t part, uint32_t parts, uint32_t cluster)
      : Base(p, sh), item(item_at(p, index)), row(index * parts + part), rank(blockIdx.z), cluster(cluster) {
    const uint32_t ratio = p.heads / p.kv_heads, slices = (ratio + ROWS - 1) / ROWS;
    kv_head = part / slices;
    head = kv_head * ratio + part % slices * ROWS;
    heads = min(ROWS, ratio - part % slices * ROWS);
    const uint32_t steps = steps_of(item);
    clusters = min(max((steps + BLOCKS * WHOLE - 1) / (BLOCKS * WHOLE), 1u), p.capacity);
    const uint32_t cuts = clusters * BLOCKS, cut = cluster * BLOCKS + rank;
    from = uint32_t(uint64_t(steps) * cut / cuts);
    to = uint32_t(uint64_t(steps) * (cut + 1) / cuts);
  }
  __device__ uint32_t start(uint32_t step) const { return (item.first_key / STEP + step) * STEP; }
  __device__ void wait() {
    if (!waited) wait_for_prior();
    waited = true;
  }

  // A step's keys and values into its stage, as one group of copies. What this step of the model brought is written by the launch
  // in front, all before it by earlier ones.
  __device__ void load(uint32_t step) {
    const AttentionParams& p = this->p;
    const uint32_t first = start(step) + this->warp * GROUP, stage = (step - from) % Shared::STAGES;
    if (step < to && start(step) + STEP > item.fresh) wait();
    if (step < to && first <= item.position && first + GROUP > item.first_key) {
      const uint32_t shift = 31 - __clz(int(p.block_size));
      const uint32_t block = uint32_t(at<int>(p.tables)[uint64_t(item.sequence) * p.table_cols + (first >> shift)]);
      if (block >= p.blocks) {
        fault(p.fault, KV_BLOCK, item.sequence, block);
      } else {
        const uint32_t token = (kv_head << shift) + (first & (p.block_size - 1));
        const uint64_t keys = p.pool + p.layer_bytes + block * p.block_bytes + uint64_t(token) * (DIM * sizeof(T)) + this->lane * 16;
        const uint32_t begin = max(item.first_key, first) - first, end = min(item.position - first + 1, GROUP);
        copy_group<false>(this->sh.keys[this->warp][stage], this->sh.values[this->warp][stage], keys,
                          uint64_t(p.kv_heads << shift) * (DIM * sizeof(T)), begin, end);
      }
    }
    copy_commit();
  }

  __device__ void load_query() {
    const AttentionParams& p = this->p;
    const T* of = at<T>(p.qkv) + (uint64_t(item.token) * (p.heads + 2 * p.kv_heads) + head) * DIM;
    copy_queries<T, DIM>(this->sh.queries, of, heads);
    copy_commit();
  }

  __device__ void attend_all() {
#pragma unroll
    for (uint32_t i = 0; i < Shared::STAGES; i++) load(from + i);
    wait();
    load_query();
    copy_wait<0>();
    __syncthreads();
    this->take_queries(this->sh.queries);
#pragma unroll 1
    for (uint32_t step = from; step < to; step++) {
      copy_wait<Shared::STAGES - 1>();
      __syncwarp();
      this->attend(start(step), item.first_key, item.position, (step - from) % Shared::STAGES);
      __syncwarp();
      load(step + Shared::STAGES);
    }
  }

  // Hands each block of the cluster its eighth of this block's results; all of them run by then.
  __device__ void hand_out() {
    auto& parts = this->sh.parts;
    const auto each = [&](uint32_t r, uint32_t pair, float2 x, float top, float all) {
      const uint32_t i = r * PAIRS + pair;
      store_of_cluster(shared_address(&parts.sums[rank][i / BLOCKS]), i % BLOCKS, x);
      if (pair < BLOCKS) store_of_cluster(shared_address(&parts.limits[rank][r]), pair, make_float2(top, all));
    };
    if (from < to) return this->fold(heads, each);
    for (uint32_t i = threadIdx.x; i < heads * PAIRS; i += THREADS) {
      each(i / PAIRS, i % PAIRS, make_float2(0, 0), -INFINITY, 0);
    }
  }

  __device__ void finish() {
    const AttentionParams& p = this->p;
    const auto& parts = this->sh.parts;
    uint32_t* out = reinterpret_cast<uint32_t*>(at<T>(p.out) + (uint64_t(item.token) * p.heads + head) * DIM);
    const uint64_t slot = (uint64_t(row) * p.capacity + cluster) * ROWS;
    for (uint32_t i = threadIdx.x; i < heads * PAIRS / BLOCKS; i += THREADS) {
      const uint32_t at_pair = i * BLOCKS + rank, r = at_pair / PAIRS;
      float top = -INFINITY, all = 0;
      float2 x = make_float2(0, 0);
#pragma unroll
      for (uint32_t b = 0; b < BLOCKS; b++) top = fmaxf(top, parts.limits[b][r].x);
#pragma unroll
      for (uint32_t b = 0; b < BLOCKS; b++) {
        const float weight = weight_of(parts.limits[b][r].x - top);
        all = fmaf(parts.limits[b][r].y, weight, all);
        x.x = fmaf(parts.sums[b][i].x, weight, x.x);
        x.y = fmaf(parts.sums[b][i].y, weight, x.y);
      }
      if (clusters == 1) {
        out[at_pair] = pack<T>(finished(x.x, all), finished(x.y, all));
      } else {
        at<float2>(p.sums)[slot * PAIRS + at_pair] = x;
        if (at_pair % PAIRS < BLOCKS) at<float2>(p.limits)[slot + r] = make_float2(top, all);
      }
    }
    if (clusters == 1 || !this->last_to_arrive(row, clusters * BLOCKS)) return;
    this->merge(out, heads, 0, clusters - 1, [&](uint32_t c) { return (uint64_t(row) * p.capacity + c) * ROWS; });
  }
};

template <typename T, uint32_t DIM, uint32_t TILES>
__device__ __forceinline__ void attention_few(const AttentionParams& p) {
  using Shared = FewShared<T, DIM, TILES>;
  YN_DYNAMIC_SHARED(dynamic);
  const uint32_t ratio = p.heads / p.kv_heads, parts = p.kv_heads * ((ratio + Shared::ROWS - 1) / Shared::ROWS);
  const uint32_t rows = p.items * parts, index = blockIdx.x % rows, cluster = blockIdx.x / rows;
  Few<T, DIM, TILES> few(p, *reinterpret_cast<Shared*>(dynamic), index / parts, index % parts, parts, cluster);
  if (cluster >= few.clusters) return;  // others of this launch wait for the one in front
  if (!few.item.active) return wait_for_prior();
  few.attend_all();
  meet_cluster();
  few.hand_out();
  meet_cluster();
  few.finish();
}

#define YN_FEW_OF(DIM, ROWS, NAME, T)                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS)                                            \
      yn_attention_few##ROWS##_##DIM##_##NAME(const __grid_constant__ AttentionParams p) {         \
    let_next_start();                                                                              \
    attention_few<T, DIM, ROWS / TILE>(p);                                                         \
  }
#define YN_FEW(DIM, ROWS, SHARED)                                                                                 \
  static_assert(sizeof(FewShared<f16, DIM, ROWS / TILE>) == SHARED, "mirrored in src/hal/cuda/ops/attention.rs"); \
  YN_FEW_OF(DIM, ROWS, f16, f16)                                                                                  \
  YN_FEW_OF(DIM, ROWS, bf16, bf16)

YN_FEW(64, 8, 45448)
YN_FEW(64, 16, 49416)
YN_FEW(128, 8, 89480)
YN_FEW(128, 16, 96520)
