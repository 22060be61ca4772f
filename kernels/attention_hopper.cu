// paged_attention of several query tokens of a sequence (prefill chunks) with the tensor cores and the copy hardware of
// sm_90a: bound by arithmetic. Layouts as in attention.cuh, rows as in attention_tile.cuh. The scheme is FlashAttention 3's
// (arXiv 2407.08608): a warp copies, two groups of four warps compute and take turns at the tensor cores, and a group's
// weights are made of one tile's scores while the products of the tile before and after run.
//
// A block has 128 rows, 64 for each group. Keys and values come in tiles of 128 tokens at absolute positions, as boxes of 16
// tokens by 64 columns that the copy hardware swizzles; the tensor map describes the whole pool as rows of one head of one
// token. Keys and values that nobody may see are scored -inf; values behind the last one are zeroed first, since a block can
// hold anything there and 0 * NaN is not 0. Where few rows see many keys, blocks take parts of them (gridDim.z) for
// yn_attention_prefill_merge.
// Instances: f16 and bf16 x head dimensions 64 and 128. Other architectures have empty bodies, which are never launched.
#include "attention_tile.cuh"
#include "hopper.cuh"

constexpr uint32_t ROWS = 128, GROUP_ROWS = 64, KEYS = 128, BOX = 16, STAGES = 2, THREADS = 384, COMPUTING = 256;

struct HopperParams {
  alignas(64) unsigned char map[128];  // CUtensorMap of the pool: boxes of 16 rows by 64 columns
  AttentionParams attention;
};
static_assert(sizeof(HopperParams) == 320, "mirrored in src/hal/cuda/ops/attention_hopper.rs");

template <typename T, uint32_t DIM>
struct HopperShared {
  T query[DIM / 64][ROWS][64];
  T keys[STAGES][DIM / 64][KEYS][64];
  T values[STAGES][DIM / 64][KEYS][64];
  uint64_t keys_full[STAGES], values_full[STAGES], keys_free[STAGES], values_free[STAGES];
  uint32_t found[2];
};

#ifdef YN_SM90A

// What all warps of a block know of its tile.
struct Span {
  QueryTile tile;
  uint32_t ratio, kv_head, window;
  uint32_t first_key, last_key;  // that any row sees
  uint32_t first_start, end;     // of this block's part of the key tiles

  __device__ Span(const AttentionParams& p, const QueryTile& found) : tile(found) {
    ratio = p.heads / p.kv_heads;
    kv_head = blockIdx.y;
    window = p.window;
    first_key = first_of(position_of(0));
    last_key = position_of(ROWS - 1);
    const uint32_t share = ((last_key / KEYS - first_key / KEYS) / gridDim.z + 1) * KEYS;
    first_start = first_key / KEYS * KEYS + blockIdx.z * share;
    end = min(last_key, first_start + share - 1);
  }
  __device__ uint32_t rows_left() const { return tile.tokens * ratio - tile.first_row; }
  // Rows behind the last are treated as the last one.
  __device__ uint32_t position_of(uint32_t row) const {
    return tile.before + min(tile.first_row + row, tile.tokens * ratio - 1) / ratio;
  }
  __device__ uint32_t first_of(uint32_t position) const { return position >= window ? position - window + 1 : 0; }
  __device__ bool empty() const { return first_start > last_key; }
  __device__ uint32_t tiles() const { return (end - first_start) / KEYS + 1; }
  // Element of a row in a tensor of so many heads per token.
  template <uint32_t DIM>
  __device__ uint64_t element(uint32_t row, uint32_t all_heads) const {
    const uint32_t index = tile.first_row + row;
    return (uint64_t(tile.from + index / ratio) * all_heads + kv_head * ratio + index % ratio) * DIM;
  }
};

// The copying warp.
template <typename T, uint32_t DIM>
__device__ __forceinline__ void copy_tiles(const HopperParams& all, const Span& span, HopperShared<T, DIM>& sh) {
  constexpr uint32_t HALVES = DIM / 64, ROW_BYTES = DIM * sizeof(T);
  const AttentionParams& p = all.attention;
  const uint32_t lane = threadIdx.x % 32, box = lane % (KEYS / BOX), half = lane / (KEYS / BOX);
  const int* table = at<int>(p.tables) + uint64_t(span.tile.sequence) * p.table_cols;
  const int values = int(p.kv_heads * p.block_size);  // rows from keys to values
  const uint32_t tiles = span.tiles();
  for (uint32_t t = 0; t < tiles; t++) {
    const uint32_t position = span.first_start + t * KEYS + box * BOX, stage = t % STAGES, parity = t / STAGES % 2 ^ 1;
    bool wanted = half < HALVES && position <= span.last_key && position + BOX > span.first_key;
    int row = 0;
    if (wanted) {
      const uint32_t block = uint32_t(table[position / p.block_size]);
      if (block >= p.blocks) {
        fault(p.fault, KV_BLOCK, span.tile.sequence, block);
        wanted = false;
      } else {
        row = int((block * p.block_bytes + p.layer_bytes) / ROW_BYTES) +
              int(span.kv_head * p.block_size + position % p.block_size);
      }
    }
    const uint32_t bytes = __popc(__ballot_sync(ALL, wanted)) * BOX * 128;
    barrier_wait(&sh.keys_free[stage], parity);
    if (lane == 0) barrier_expect(&sh.keys_full[stage], bytes);
    __syncwarp();
    if (wanted) copy_box(&sh.keys[stage][half][box * BOX][0], all.map, int(half * 64), row, &sh.keys_full[stage]);
    barrier_wait(&sh.values_free[stage], parity);
    if (lane == 0) barrier_expect(&sh.values_full[stage], bytes);
    __syncwarp();
    if (wanted) {
      copy_box(&sh.values[stage][half][box * BOX][0], all.map, int(half * 64), row + values, &sh.values_full[stage]);
    }
  }
}

// One of the computing groups: 64 rows, of which a thread has lane / 4 and lane / 4 + 8 of its warp's 16.
template <typename T, uint32_t DIM>
struct Group {
  static constexpr uint32_t HALVES = DIM / 64;
  const AttentionParams& p;
  const Span& span;
  HopperShared<T, DIM>& sh;
  const uint32_t group, thread, lane, warp;
  float s[KEYS / 2], o[DIM / 2];
  uint32_t weights[KEYS / 16][4];
  float max[2], sum[2];

  __device__ uint32_t row_of(uint32_t half) const { return group * GROUP_ROWS + warp * 16 + half * 8 + lane / 4; }
  // Where a row's 16-byte piece stands in a swizzled tile of queries.
  __device__ T* piece(uint32_t row, uint32_t column) {
    return &sh.query[column / 64][row][(column / 8 % 8 ^ row % 8) * 8];
  }
  __device__ void meet_group() const { meet(3 + group, 128); }

  __device__ void load_queries() {
    for (uint32_t i = thread; i < GROUP_ROWS * DIM / 8; i += 128) {
      const uint32_t row = group * GROUP_ROWS + i / (DIM / 8), column = i % (DIM / 8) * 8;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row < span.rows_left()) {
        const uint64_t from = span.template element<DIM>(row, p.heads + 2 * p.kv_heads) + column;
        x = *reinterpret_cast<const uint4*>(at<T>(p.qkv) + from);
      }
      *reinterpret_cast<uint4*>(piece(row, column)) = x;
    }
    publish_shared();
    meet_group();
  }

  __device__ __forceinline__ void score(uint32_t stage) {
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      const uint64_t a = swizzled_tile(shared_address(&sh.query[k / 4][group * GROUP_ROWS][0]) + k % 4 * 32, 16);
      const uint64_t b = swizzled_tile(shared_address(&sh.keys[stage][k / 4][0][0]) + k % 4 * 32, 16);
      wgmma_shared<T, KEYS>(s, a, b, k != 0);
    }
  }

  __device__ __forceinline__ void accumulate(uint32_t stage) {
#pragma unroll
    for (uint32_t n = 0; n < KEYS / 16; n++) {
      const uint64_t b = swizzled_tile(shared_address(&sh.values[stage][0][n * 16][0]), KEYS * 128);
      wgmma_registers<T, DIM>(o, weights[n], b);
    }
  }

  // Zeroes the values of a tile that no row of the block sees.
  __device__ void clear_unseen(uint32_t start, uint32_t stage) {
    const uint32_t last = span.last_key, first = span.first_key / BOX * BOX;
    if (start + KEYS - 1 <= last && start >= first) return;
    for (uint32_t i = thread; i < KEYS * HALVES * 8; i += 128) {
      const uint32_t key = i / (HALVES * 8), column = i % (HALVES * 8);
      if (start + key <= last && start + key >= first) continue;
      *reinterpret_cast<uint4*>(&sh.values[stage][column / 8][key][column % 8 * 8]) = make_uint4(0, 0, 0, 0);
    }
    publish_shared();
    meet_group();
  }

  // Scores become weights. What was summed before is to shrink by `keep`.
  __device__ __forceinline__ void weigh(uint32_t start, float (&keep)[2]) {
    const float unit = p.scale * LOG2E;
    const bool masked = start + KEYS > span.position_of(group * GROUP_ROWS) + 1 ||
                        start < span.first_of(span.position_of(group * GROUP_ROWS + GROUP_ROWS - 1));
    if (masked) {
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        const uint32_t last = span.position_of(row_of(h)), first = span.first_of(last);
#pragma unroll
        for (uint32_t n = 0; n < KEYS / 8; n++) {
#pragma unroll
          for (uint32_t i = 0; i < 2; i++) {
            const uint32_t key = start + n * 8 + lane % 4 * 2 + i;
            if (key < first || key > last) s[4 * n + 2 * h + i] = -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      float top = max[h];
#pragma unroll
      for (uint32_t n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
      // Nothing seen so far: any finite number will do.
      const float shift = top == -INFINITY ? 0.0f : top * unit;
      keep[h] = weight_of(fmaf(max[h], unit, -shift));
      max[h] = top;
      float total = sum[h] * keep[h];
#pragma unroll
      for (uint32_t n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
          const float w = weight_of(fmaf(s[4 * n + 2 * h + i], unit, -shift));
          s[4 * n + 2 * h + i] = w;
          total += w;
        }
      }
      sum[h] = total;
    }
  }

  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (uint32_t n = 0; n < KEYS / 16; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) weights[n][i] = pack<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
    }
  }

  // The two groups take turns at enqueuing products.
  __device__ __forceinline__ void my_turn() const { meet(1 + group, COMPUTING); }
  __device__ __forceinline__ void your_turn() const { meet_later(2 - group, COMPUTING); }

  __device__ __forceinline__ void free(uint64_t* barrier) const {
    if (lane == 0) barrier_arrive(barrier);
  }

  __device__ void run() {
#pragma unroll
    for (uint32_t i = 0; i < DIM / 2; i++) o[i] = 0;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
    if (span.empty()) return store_part();
    const uint32_t tiles = span.tiles(), start = span.first_start;
    load_queries();
    if (group == 1) your_turn();
    float keep[2];
    barrier_wait(&sh.keys_full[0], 0);
    my_turn();
    wgmma_begin();
    score(0);
    wgmma_commit();
    if (group == 0 || tiles > 1) your_turn();
    wgmma_wait<0>();
    free(&sh.keys_free[0]);
    weigh(start, keep);
    pack_weights();
    for (uint32_t t = 1; t < tiles; t++) {
      const uint32_t stage = t % STAGES, before = (t - 1) % STAGES;
      barrier_wait(&sh.keys_full[stage], t / STAGES % 2);
      barrier_wait(&sh.values_full[before], (t - 1) / STAGES % 2);
      clear_unseen(start + (t - 1) * KEYS, before);
      my_turn();
      wgmma_begin();
      score(stage);
      wgmma_commit();
      accumulate(before);
      wgmma_commit();
      if (group == 0 || t + 1 < tiles) your_turn();
      wgmma_wait<1>();
      free(&sh.keys_free[stage]);
      weigh(start + t * KEYS, keep);
      wgmma_wait<0>();
      free(&sh.values_free[before]);
#pragma unroll
      for (uint32_t i = 0; i < DIM / 2; i++) o[i] *= keep[i / 2 % 2];
      pack_weights();
    }
    const uint32_t stage = (tiles - 1) % STAGES;
    barrier_wait(&sh.values_full[stage], (tiles - 1) / STAGES % 2);
    clear_unseen(start + (tiles - 1) * KEYS, stage);
    wgmma_begin();
    accumulate(stage);
    wgmma_commit();
    wgmma_wait<0>();
    if (gridDim.z > 1) store_part();
    else store();
  }

  // One part of several, as attention_prefill.cu leaves them. A row that sees no key of it has a maximum of -infinity and
  // sums that nobody reads.
  __device__ void store_part() {
    const float unit = p.scale * LOG2E;
    const uint64_t part = uint64_t(blockIdx.z) * uint32_t(at<int>(p.starts)[p.sequences]);
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      float total = sum[h];
      total += __shfl_xor_sync(ALL, total, 1);
      total += __shfl_xor_sync(ALL, total, 2);
      const uint32_t row = row_of(h), index = span.tile.first_row + row;
      if (row >= span.rows_left()) continue;
      const uint64_t place =
          (part + span.tile.from + index / span.ratio) * p.heads + span.kv_head * span.ratio + index % span.ratio;
      const bool none = max[h] == -INFINITY;
      if (lane % 4 == 0) at<float2>(p.limits)[place] = make_float2(none ? -INFINITY : max[h] * unit, total);
      if (none) continue;
#pragma unroll
      for (uint32_t d = 0; d < DIM / 8; d++) {
        at<float2>(p.sums)[(place * DIM + d * 8) / 2 + lane % 4] = make_float2(o[4 * d + 2 * h], o[4 * d + 2 * h + 1]);
      }
    }
  }

  // Through the group's own rows of the query tile, for wide stores.
  __device__ void store() {
    meet_group();
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      float total = sum[h];
      total += __shfl_xor_sync(ALL, total, 1);
      total += __shfl_xor_sync(ALL, total, 2);
      const float inverse = 1.0f / total;
#pragma unroll
      for (uint32_t d = 0; d < DIM / 8; d++) {
        uint32_t* to = reinterpret_cast<uint32_t*>(piece(row_of(h), d * 8)) + lane % 4;
        *to = pack<T>(o[4 * d + 2 * h] * inverse, o[4 * d + 2 * h + 1] * inverse);
      }
    }
    meet_group();
    for (uint32_t i = thread; i < GROUP_ROWS * DIM / 8; i += 128) {
      const uint32_t row = group * GROUP_ROWS + i / (DIM / 8), column = i % (DIM / 8) * 8;
      if (row >= span.rows_left()) break;
      *reinterpret_cast<uint4*>(at<T>(p.out) + span.template element<DIM>(row, p.heads) + column) =
          *reinterpret_cast<const uint4*>(piece(row, column));
    }
  }
};

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attention_hopper(const HopperParams& all) {
  extern __shared__ unsigned char dynamic[];
  const uint32_t unaligned = shared_address(dynamic) % 1024;
  HopperShared<T, DIM>& sh = *reinterpret_cast<HopperShared<T, DIM>*>(dynamic + (1024 - unaligned) % 1024);
  QueryTile tile;
  if (!find_tile(all.attention, blockIdx.x, ROWS, sh.found, tile)) return;
  const Span span(all.attention, tile);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < STAGES; i++) {
      barrier_init(&sh.keys_full[i], 1);
      barrier_init(&sh.values_full[i], 1);
      barrier_init(&sh.keys_free[i], COMPUTING / 32);
      barrier_init(&sh.values_free[i], COMPUTING / 32);
    }
    barrier_publish();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_down<24>();
    if (threadIdx.x < 32 && !span.empty()) copy_tiles<T, DIM>(all, span, sh);
  } else {
    registers_up<240>();
    const uint32_t thread = threadIdx.x % 128;
    Group<T, DIM> group{all.attention, span, sh, threadIdx.x / 128 - 1, thread, thread % 32, thread / 32};
    group.run();
  }
}

#endif

#ifdef YN_SM90A
#define YN_HOPPER_BODY(T, DIM) attention_hopper<T, DIM>(p)
#else
#define YN_HOPPER_BODY(T, DIM) (void)p
#endif

#define YN_HOPPER(DIM)                                                                                            \
  static_assert(sizeof(HopperShared<f16, DIM>) == (ROWS + 4 * KEYS) * DIM * 2 + 72,                               \
                "mirrored in src/hal/cuda/ops/attention_hopper.rs");                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                        \
      yn_attention_hopper_##DIM##_f16(const __grid_constant__ HopperParams p) {                                   \
    after_prior();                                                                                                \
    YN_HOPPER_BODY(f16, DIM);                                                                                     \
  }                                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                        \
      yn_attention_hopper_##DIM##_bf16(const __grid_constant__ HopperParams p) {                                  \
    after_prior();                                                                                                \
    YN_HOPPER_BODY(bf16, DIM);                                                                                    \
  }

YN_HOPPER(64)
YN_HOPPER(128)
