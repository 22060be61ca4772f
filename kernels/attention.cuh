// What the attention kernels share: their parameters, the items and units of work, and the merging of chunks.
//
// qkv: act [T, (H + 2G) * D], queries first, rotated; out: act [T, H * D]; starts: i32 [S + 1]; context_lens: i32 [S];
// tables: i32 [S, table_cols]. A KV block is [layer][keys, values][kv_head][token][dim].
//
// An item is a query token. Its keys are cut into chunks of 256 at fixed absolute positions; a chunk's result is the sum of
// values weighted by 2^(score - max), with its max and its sum of weights, and an item's result is the left fold of its
// chunks in rising order. So the bits of an item depend on nothing but the item, however its chunks are spread: over the grid
// with a merge kernel behind it, or one after the other in one block where the workspace has no room for more partials.
#pragma once
#include "common.cuh"

constexpr uint32_t CHUNK = 256;
constexpr float LOG2E = 1.44269504088896340736f;

struct AttentionParams {
  uint64_t out;
  uint64_t qkv;
  uint64_t starts;
  uint64_t context_lens;
  uint64_t tables;
  uint64_t pool;
  uint64_t block_bytes;
  uint64_t layer_bytes;
  uint64_t fault;
  uint64_t plan;    // ItemPlan [items], for the merge
  uint64_t limits;  // max and sum of weights: f32 [capacity * heads, 2]
  uint64_t sums;    // weighted sums: f32 [capacity * heads, head_dim]
  uint64_t walk;    // weighted sums of a block that walks: f32 [grid, 16 * head_dim]
  uint32_t sequences;
  uint32_t table_cols;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t block_size;
  uint32_t blocks;
  uint32_t window;      // 2^32 - 1: none
  uint32_t by_sequence;  // items are sequences, those with one token; else all tokens
  uint32_t first_item;   // of this launch
  uint32_t items;
  uint32_t capacity;  // chunks whose partial results fit
  float scale;
  float soft_cap;  // 0: none
};
static_assert(sizeof(AttentionParams) == 160, "mirrored in src/hal/cuda/ops/attention.rs");

// For the merge: the first partial result of an item and how many there are; none for an item that is done.
struct ItemPlan {
  uint32_t slot;
  uint32_t chunks;
};

struct Item {
  uint32_t sequence, token;
  uint32_t position, first_key;
  uint32_t fresh;  // the sequence's first position whose keys this step brought
  bool active;

  __device__ uint32_t first_chunk() const { return first_key / CHUNK; }
  __device__ uint32_t chunks() const { return active ? position / CHUNK - first_chunk() + 1 : 0; }
};

__device__ __forceinline__ Item item_at(const AttentionParams& p, uint32_t index) {
  const int* starts = at<int>(p.starts);
  Item item{};
  uint32_t from, to;
  if (p.by_sequence) {
    item.sequence = p.first_item + index;
    from = uint32_t(starts[item.sequence]);
    to = uint32_t(starts[item.sequence + 1]);
    item.token = from;
    item.active = to == from + 1;
  } else {
    item.token = p.first_item + index;
    // The last sequence that starts at or before the token.
    uint32_t low = 0, high = p.sequences;
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      if (uint32_t(starts[middle + 1]) > item.token) high = middle;
      else low = middle + 1;
    }
    item.active = low < p.sequences;
    item.sequence = item.active ? low : 0;
    from = uint32_t(starts[item.sequence]);
    to = uint32_t(starts[item.sequence + 1]);
  }
  const uint32_t context = uint32_t(at<int>(p.context_lens)[item.sequence]);
  item.active = item.active && context >= to - from;
  if (!item.active) return item;
  item.fresh = context - (to - from);
  item.position = item.fresh + (item.token - from);
  item.first_key = item.position >= p.window ? item.position - p.window + 1 : 0;
  return item;
}

// Bytes of one head's keys of one token; values are `value_bytes` further.
template <typename KV>
struct KvRows {
  uint64_t base, block_bytes, piece_bytes, value_bytes;
  const int* table;
  uint32_t block_size, blocks, head_dim;

  __device__ KvRows(const AttentionParams& p, uint32_t sequence, uint32_t kv_head) {
    block_size = p.block_size;
    blocks = p.blocks;
    head_dim = p.head_dim;
    piece_bytes = uint64_t(p.block_size) * p.head_dim * sizeof(KV);
    value_bytes = piece_bytes * p.kv_heads;
    block_bytes = p.block_bytes;
    base = p.pool + p.layer_bytes + kv_head * piece_bytes;
    table = at<int>(p.tables) + uint64_t(sequence) * p.table_cols;
  }
  // Address of the keys of a token whose position is in the table; 0 when its block does not exist.
  __device__ uint64_t key(uint32_t position) const {
    const uint32_t block = uint32_t(table[position / block_size]);
    if (block >= blocks) return 0;
    return base + block * block_bytes + uint64_t(position % block_size) * head_dim * sizeof(KV);
  }
};

// 2^x as all kernels of a fold must round it.
__device__ __forceinline__ float weight_of(float x) { return exp2_fast(x); }

// A running result of one row: what it is folded with shrinks one of both.
struct Fold {
  float max, sum;  // of scores in powers of two; of weights
  float keep, take;  // factors of the old and the new weighted sums

  __device__ void begin() {
    max = -INFINITY;
    sum = keep = take = 0;
  }
  __device__ void with(float other_max, float other_sum) {
    const float top = fmaxf(max, other_max);
    keep = weight_of(max - top);
    take = weight_of(other_max - top);
    sum = fmaf(other_sum, take, __fmul_rn(sum, keep));
    max = top;
  }
  // The same where either may be of no keys at all, with sums of zero.
  __device__ void with_any(float other_max, float other_sum) {
    if (other_max == -INFINITY) keep = 1, take = 0;
    else with(other_max, other_sum);
  }
  __device__ float weighted(float old_sum, float other) const { return fmaf(other, take, __fmul_rn(old_sum, keep)); }
};

__device__ __forceinline__ float finished(float weighted_sum, float sum) { return __fmul_rn(weighted_sum, 1.0f / sum); }

// cap * tanh(x / cap), to a few units in the last place of the cap.
__device__ __forceinline__ float capped_fast(float x, float cap) {
  return __fsub_rn(cap, __fdividef(2.0f * cap, 1.0f + exp2_fast(x * (2.0f * LOG2E / cap))));
}

// A chunk on tensor cores is STREAMS streams of GROUP keys: stream s has every STREAMS-th group from the s-th on, is summed
// up group after group, and the chunk is the left fold of its streams. Groups without a key that a row sees change nothing.
constexpr uint32_t STREAMS = 4, GROUP = 16, GROUPS = CHUNK / GROUP / STREAMS;

// Running result of 16 rows of a warp: a thread's rows are lane / 4 and lane / 4 + 8.
template <uint32_t DIM>
struct Running {
  float sums[DIM / 8][4];
  float max[2], sum[2];  // of scores in powers of two; of the thread's own weights

  __device__ void begin() {
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) sums[d][i] = 0;
    }
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
  // Of all weights.
  __device__ void end() {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      sum[h] += __shfl_xor_sync(ALL, sum[h], 1);
      sum[h] += __shfl_xor_sync(ALL, sum[h], 2);
    }
  }
};

// Keys that a thread's rows see.
struct Seen {
  uint32_t first[2], last[2];
};

// Scores of a group that begins at `start` become weights `a`, for an mma; what was summed before shrinks. Every rounding is
// spelled out: kernels that take other rows side by side must come to the same bits.
template <typename T, uint32_t DIM>
__device__ __forceinline__ void weigh_group(const AttentionParams& p, uint32_t start, const Seen& seen, bool masked,
                                            float (&s)[2][4], Running<DIM>& run, uint32_t (&a)[4]) {
  const uint32_t position = start + threadIdx.x % 4 * 2;
  float max[2] = {-INFINITY, -INFINITY}, keep[2];
#pragma unroll
  for (uint32_t n = 0; n < 2; n++) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      float x = __fmul_rn(s[n][i], p.scale);
      if (p.soft_cap != 0.0f) x = capped_fast(x, p.soft_cap);
      x = __fmul_rn(x, LOG2E);
      if (masked) {
        const uint32_t key = position + 8 * n + i % 2;
        x = key >= seen.first[i / 2] && key <= seen.last[i / 2] ? x : -INFINITY;
      }
      s[n][i] = x;
      max[i / 2] = fmaxf(max[i / 2], x);
    }
  }
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    max[h] = fmaxf(max[h], __shfl_xor_sync(ALL, max[h], 1));
    max[h] = fmaxf(max[h], __shfl_xor_sync(ALL, max[h], 2));
    const float top = fmaxf(run.max[h], max[h]);
    max[h] = top == -INFINITY ? 0.0f : top;  // nothing seen so far: any finite number will do
    keep[h] = weight_of(__fsub_rn(run.max[h], max[h]));
    run.max[h] = top;
    run.sum[h] = __fmul_rn(run.sum[h], keep[h]);
  }
#pragma unroll
  for (uint32_t n = 0; n < 2; n++) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      s[n][i] = weight_of(__fsub_rn(s[n][i], max[i / 2]));
      run.sum[i / 2] = __fadd_rn(run.sum[i / 2], s[n][i]);
    }
    a[2 * n] = pack<T>(s[n][0], s[n][1]);
    a[2 * n + 1] = pack<T>(s[n][2], s[n][3]);
  }
  if (__any_sync(ALL, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) run.sums[d][i] *= keep[i / 2];
    }
  }
}

// The items' units of work: `units[i]` is the first unit of item i, `slots[i]` its first partial result or NO_SLOT.
constexpr uint32_t NO_SLOT = ~0u;
struct Plan {
  uint32_t* units;  // [items + 1]
  uint32_t* slots;  // [items]

  __device__ Plan(unsigned char* shared, uint32_t items) {
    units = reinterpret_cast<uint32_t*>(shared);
    slots = units + items + 1;
  }

  // All threads of a block of 128. Items with several chunks have a slot for each, as far as there is room.
  __device__ void make(const AttentionParams& p) {
    __shared__ uint32_t warp_sums[2][4];
    const uint32_t per = (p.items + 127) / 128;
    const uint32_t from = min(threadIdx.x * per, p.items), to = min(from + per, p.items);
    uint32_t total = 0;
    for (uint32_t i = from; i < to; i++) {
      const uint32_t n = item_at(p, i).chunks();
      units[i] = n;
      total += n > 1 ? n : 0;
    }
    uint32_t slot = before(total, warp_sums[0]);
    uint32_t work = 0;
    for (uint32_t i = from; i < to; i++) {
      const uint32_t n = units[i];
      slots[i] = n > 1 && slot + n <= p.capacity ? slot : NO_SLOT;
      slot += n > 1 ? n : 0;
      if (p.plan != 0 && blockIdx.x == 0) at<ItemPlan>(p.plan)[i] = ItemPlan{slots[i], n};
      work += slots[i] != NO_SLOT ? n : n > 0 ? 1 : 0;
    }
    uint32_t unit = before(work, warp_sums[1]);
    for (uint32_t i = from; i < to; i++) {
      const uint32_t n = units[i];
      units[i] = unit;
      unit += slots[i] != NO_SLOT ? n : n > 0 ? 1 : 0;
    }
    if (to == p.items && from < to) units[p.items] = unit;
    if (p.items == 0 && threadIdx.x == 0) units[0] = 0;
    __syncthreads();
  }

  // Sum of the threads before this one.
  __device__ static uint32_t before(uint32_t x, uint32_t* warp_sums) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t y = x;
    for (uint32_t d = 1; d < 32; d *= 2) {
      const uint32_t z = __shfl_up_sync(ALL, y, d);
      if (lane >= d) y += z;
    }
    if (lane == 31) warp_sums[warp] = y;
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++) y += warp_sums[w];
    return y - x;
  }

  // The item of a unit.
  __device__ uint32_t item_of(uint32_t unit, uint32_t items) const {
    uint32_t low = 0, high = items;  // the last item that starts at or before the unit
    while (low + 1 < high) {
      const uint32_t middle = (low + high) / 2;
      if (units[middle] <= unit) low = middle;
      else high = middle;
    }
    return low;
  }
};

// A unit of work: query heads `head..head + rows` of one item over some chunks.
struct Unit {
  Item item;
  uint32_t kv_head, head, rows;
  uint32_t chunk, chunks;
  uint32_t slot;  // of the first chunk, or NO_SLOT
};

__device__ __forceinline__ Unit unit_at(const AttentionParams& p, const Plan& plan, uint32_t work, uint32_t rows) {
  const uint32_t ratio = p.heads / p.kv_heads, slices = (ratio + rows - 1) / rows;
  const uint32_t part = work % (p.kv_heads * slices), number = work / (p.kv_heads * slices);
  const uint32_t index = plan.item_of(number, p.items);
  Unit unit;
  unit.item = item_at(p, index);
  unit.kv_head = part / slices;
  const uint32_t first = part % slices * rows;
  unit.head = unit.kv_head * ratio + first;
  unit.rows = min(rows, ratio - first);
  unit.chunk = unit.item.first_chunk();
  unit.chunks = unit.item.chunks();
  unit.slot = plan.slots[index];
  if (unit.slot != NO_SLOT) {
    const uint32_t which = number - plan.units[index];
    unit.slot += which;
    unit.chunk += which;
    unit.chunks = 1;
  }
  return unit;
}

__device__ __forceinline__ uint32_t number_of_units(const AttentionParams& p, const Plan& plan, uint32_t rows) {
  const uint32_t ratio = p.heads / p.kv_heads;
  return plan.units[p.items] * p.kv_heads * ((ratio + rows - 1) / rows);
}

// What a block of 128 threads does with the result of chunk number `step` of its unit. `value(row, col)` is a weighted sum,
// `max` and `sum` are of its rows, `folds` is the block's own state of a walk; all in shared memory, behind a barrier.
template <typename T, typename Value>
__device__ __forceinline__ void emit(const AttentionParams& p, const Unit& unit, uint32_t step, const float* max,
                                     const float* sum, Fold* folds, const Value& value) {
  const uint32_t dim = p.head_dim, count = unit.rows * dim;
  T* out = at<T>(p.out) + (uint64_t(unit.item.token) * p.heads + unit.head) * dim;
  if (unit.slot != NO_SLOT) {
    const uint64_t first = uint64_t(unit.slot) * p.heads + unit.head;
    for (uint32_t i = threadIdx.x; i < count; i += 128) at<float>(p.sums)[first * dim + i] = value(i / dim, i % dim);
    if (threadIdx.x < unit.rows) {
      at<float2>(p.limits)[first + threadIdx.x] = make_float2(max[threadIdx.x], sum[threadIdx.x]);
    }
    return;
  }
  if (unit.chunks == 1) {
    for (uint32_t i = threadIdx.x; i < count; i += 128) {
      out[i] = narrowed<T>(finished(value(i / dim, i % dim), sum[i / dim]));
    }
    return;
  }
  if (threadIdx.x < unit.rows) {
    if (step == 0) folds[threadIdx.x].begin();
    folds[threadIdx.x].with(max[threadIdx.x], sum[threadIdx.x]);
  }
  __syncthreads();
  float* walk = at<float>(p.walk) + uint64_t(blockIdx.x) * 16 * dim;
  for (uint32_t i = threadIdx.x; i < count; i += 128) {
    const Fold fold = folds[i / dim];
    const float x = fold.weighted(step == 0 ? 0.0f : walk[i], value(i / dim, i % dim));
    if (step + 1 == unit.chunks) out[i] = narrowed<T>(finished(x, fold.sum));
    else walk[i] = x;
  }
}
