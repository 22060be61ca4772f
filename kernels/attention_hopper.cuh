// What the blocks of attention_hopper.cu work on and how it comes to them: the list of spans, and the warps that copy.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

constexpr uint32_t ROWS = 128, GROUP_ROWS = 64, KEYS = 128, BOX = 16, THREADS = 384, COMPUTING = 256;
// Stages of keys and of values, tiles of queries, and spans that a block holds at once.
constexpr uint32_t STAGES = 2, QUERIES = 2, SPANS = 3;

struct HopperParams {
  alignas(64) unsigned char pool_map[128];   // CUtensorMap of rows of one head of one token, in boxes of 16
  alignas(64) unsigned char query_map[128];  // of qkv: a box has the queries of a tile, 64 columns of them
  AttentionParams attention;                 // `plan`: a count, zero between launches; `capacity`: parts of the keys
};
static_assert(sizeof(HopperParams) == 448, "mirrored in src/hal/cuda/ops/attention_hopper.rs");

// What a block works on at a time: a tile of whole tokens of one key head, and one part of its key tiles. A row is one query head
// of one token.
struct Span {
  uint32_t sequence, from, position, tokens;  // the tile's first token in the T axis, its position, and their number
  uint32_t kv_head, part;
  uint32_t first_key, last_key;  // that any row sees
  uint32_t start, tiles;         // of this part: first key, and key tiles
  uint32_t there;                // 0 behind the last

  __device__ uint32_t last_start() const { return start + (tiles - 1) * KEYS; }
};

__device__ __forceinline__ uint32_t first_of(const AttentionParams& p, uint32_t position) {
  return position >= p.window ? position - p.window + 1 : 0;
}

// Tiles are kept as eights of rows, each by 64 columns, as a box brings them: its rows lie 128 bytes apart there.
template <typename T, uint32_t DIM>
struct HopperShared {
  T query[QUERIES][DIM / 64][ROWS][64];
  T keys[STAGES][KEYS / 8][DIM / 64][8][64];
  T values[STAGES][KEYS / 8][DIM / 64][8][64];
  uint64_t keys_full[STAGES], values_full[STAGES], keys_free[STAGES], values_free[STAGES];
  uint64_t query_full[QUERIES], query_free[QUERIES], span_full[SPANS], span_free[SPANS];
  Span spans[SPANS];
  uint32_t unused;
};

#ifdef YN_SM90A

template <typename T, uint32_t DIM>
__device__ __forceinline__ void begin_barriers(HopperShared<T, DIM>& sh) {
  for (uint32_t i = 0; i < STAGES; i++) {
    barrier_init(&sh.keys_full[i], 1);
    barrier_init(&sh.values_full[i], 1);
    barrier_init(&sh.keys_free[i], COMPUTING / 32);
    barrier_init(&sh.values_free[i], COMPUTING / 32);
  }
  for (uint32_t i = 0; i < QUERIES; i++) {
    barrier_init(&sh.query_full[i], 1);
    barrier_init(&sh.query_free[i], COMPUTING / 32);
  }
  for (uint32_t i = 0; i < SPANS; i++) {
    barrier_init(&sh.span_full[i], 1);
    barrier_init(&sh.span_free[i], COMPUTING + 2 * 32 + 1);  // each lane that reads spans, by itself: racecheck sees no other way
  }
  barrier_publish();
}
// The block's span with this number, for as long as the caller has not freed it.
template <typename T, uint32_t DIM>
__device__ __forceinline__ const Span& span_of(HopperShared<T, DIM>& sh, uint32_t number) {
  barrier_wait(&sh.span_full[number % SPANS], number / SPANS % 2);
  return sh.spans[number % SPANS];
}

// Draws spans for a block: one warp. Numbers go by part, then by tile, then by key head: blocks that run together read the same
// keys. A block begins with the number that is its own; later ones it draws, since no two take as long.
struct SpanList {
  const AttentionParams& p;
  uint32_t lane, ratio, tile_tokens, parts, tiles;

  __device__ explicit SpanList(const AttentionParams& params) : p(params) {
    lane = threadIdx.x % 32;
    ratio = p.heads / p.kv_heads;
    tile_tokens = ROWS / ratio;
    parts = p.capacity;
    uint32_t all = 0;
    for (uint32_t s = p.first_item + lane; s < p.sequences; s += 32) all += tiles_of(s);
    tiles = reduce_warp(all, Add());
  }
  __device__ uint32_t size() const { return tiles * p.kv_heads * parts; }
  __device__ uint32_t tiles_of(uint32_t sequence) const {
    if (sequence >= p.sequences) return 0;
    const int* starts = at<int>(p.starts) + sequence;
    const uint32_t tokens = uint32_t(starts[1] - starts[0]);
    return tokens > 1 ? (tokens + tile_tokens - 1) / tile_tokens : 0;
  }

  // The last tiles of a sequence see the most keys: they go first.
  __device__ void find_tile(uint32_t number, Span& span) const {
    uint32_t before = 0, here = 0, skipped = 0;
    for (uint32_t base = p.first_item; here == 0; base += 32) {
      const uint32_t own = tiles_of(base + lane);
      uint32_t end = own;
#pragma unroll
      for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t x = __shfl_up_sync(ALL, end, d);
        if (lane >= d) end += x;
      }
      here = __ballot_sync(ALL, number - before < end);
      const int which = __ffs(int(here)) - 1;
      span.sequence = base + uint32_t(which);
      skipped = (__shfl_sync(ALL, end, which & 31) - 1 - (number - before)) * tile_tokens;
      before += __shfl_sync(ALL, end, 31);
    }
    const int* starts = at<int>(p.starts) + span.sequence;
    const uint32_t tokens = uint32_t(starts[1] - starts[0]);
    span.from = uint32_t(starts[0]) + skipped;
    span.tokens = min(tile_tokens, tokens - skipped);
    span.position = uint32_t(at<int>(p.context_lens)[span.sequence]) - tokens + skipped;
  }

  __device__ Span at_number(uint32_t number) const {
    Span span{};
    if (number >= size()) return span;
    span.there = 1;
    span.part = number % parts;
    span.kv_head = number / parts / tiles;
    find_tile(number / parts % tiles, span);
    span.first_key = first_of(p, span.position);
    span.last_key = span.position + span.tokens - 1;
    const uint32_t share = ((span.last_key / KEYS - span.first_key / KEYS) / parts + 1) * KEYS;
    span.start = span.first_key / KEYS * KEYS + span.part * share;
    if (span.start <= span.last_key) span.tiles = (min(span.last_key, span.start + share - 1) - span.start) / KEYS + 1;
    return span;
  }

  // A part without keys leaves what yn_attention_prefill_merge looks at.
  __device__ void leave_none(const Span& span) const {
    const uint64_t all = uint32_t(at<int>(p.starts)[p.sequences]), token = span.part * all + span.from;
    for (uint32_t row = lane; row < span.tokens * ratio; row += 32) {
      const uint64_t place = (token + row / ratio) * p.heads + span.kv_head * ratio + row % ratio;
      at<float2>(p.limits)[place] = make_float2(-INFINITY, 0);
    }
  }

  // As many numbers are drawn in all as there are spans, so nobody comes behind the one that draws the last.
  __device__ uint32_t draw() const {
    uint32_t drawn = 0;
    if (lane == 0) {
      drawn = atomicAdd(at<uint32_t>(p.plan), 1);
      if (drawn == size() - 1) *at<uint32_t>(p.plan) = 0;
    }
    return gridDim.x + __shfl_sync(ALL, drawn, 0);
  }

  template <typename T, uint32_t DIM>
  __device__ void run(HopperShared<T, DIM>& sh) const {
    Span span = at_number(blockIdx.x);
    wait_for_prior();
    for (uint32_t n = 0;; n++) {
      while (span.there && span.tiles == 0) {
        leave_none(span);
        span = at_number(draw());
      }
      if (lane == 0) {
        sh.spans[n % SPANS] = span;
        barrier_arrive(&sh.span_full[n % SPANS]);
      }
      if (!span.there) return;
      // Drawn no earlier than it can be taken: others may be free before.
      barrier_wait(&sh.span_free[(n + 1) % SPANS], (n + 1) / SPANS % 2 ^ 1);
      span = at_number(draw());
    }
  }
};

// Loads queries: one thread.
template <typename T, uint32_t DIM>
__device__ __forceinline__ void load_queries(const HopperParams& all, HopperShared<T, DIM>& sh) {
  const uint32_t ratio = all.attention.heads / all.attention.kv_heads;
  for (uint32_t n = 0;; n++) {
    const Span& span = span_of(sh, n);
    if (!span.there) return;
    const uint32_t buffer = n % QUERIES;
    barrier_wait(&sh.query_free[buffer], n / QUERIES % 2 ^ 1);
    barrier_expect(&sh.query_full[buffer], ROWS / ratio * ratio * DIM * sizeof(T));
#pragma unroll
    for (uint32_t half = 0; half < DIM / 64; half++) {
      copy_queries(sh.query[buffer][half], all.query_map, half * 64, span.kv_head * ratio, span.from, &sh.query_full[buffer]);
    }
    barrier_arrive(&sh.span_free[n % SPANS]);
  }
}

// Copies keys, or values: one warp each.
template <typename T, uint32_t DIM, bool VALUES>
__device__ __forceinline__ void copy_tiles(const HopperParams& all, HopperShared<T, DIM>& sh) {
  constexpr uint32_t ROW_BYTES = DIM * sizeof(T), BOXES = KEYS / BOX, NOWHERE = 1u << 28;
  const AttentionParams& p = all.attention;
  const uint32_t lane = threadIdx.x % 32;
  uint64_t* full = VALUES ? sh.values_full : sh.keys_full;
  uint64_t* free = VALUES ? sh.values_free : sh.keys_free;
  uint32_t copied = 0;
  for (uint32_t n = 0;; n++) {
    const Span& span = span_of(sh, n);
    if (!span.there) return;
    const int* table = at<int>(p.tables) + uint64_t(span.sequence) * p.table_cols;
    // Rows from a block's first to those of this head.
    const uint32_t inside = uint32_t(p.layer_bytes / ROW_BYTES) + (span.kv_head + (VALUES ? p.kv_heads : 0)) * p.block_size;
    const uint32_t tiles = span.tiles, first = span.first_key, last = span.last_key;
    uint32_t position = span.start + lane * BOX;
    for (uint32_t t = 0; t < tiles; t++, copied++, position += KEYS) {
      const uint32_t stage = copied % STAGES;
      // What no row sees becomes zeros, as all that lies behind the pool.
      uint32_t eight = NOWHERE;
      if (lane < BOXES && position <= last && position + BOX > first) {
        const uint32_t block = uint32_t(table[position / p.block_size]);
        if (block < p.blocks) eight = (uint32_t(block * (p.block_bytes / ROW_BYTES)) + inside + position % p.block_size) / 8;
        else fault(p.fault, KV_BLOCK, span.sequence, block);
      }
      barrier_wait(&free[stage], copied / STAGES % 2 ^ 1);
      if (lane == 0) barrier_expect(&full[stage], KEYS * ROW_BYTES);
      __syncwarp();
      T* to = VALUES ? &sh.values[stage][lane * (BOX / 8)][0][0][0] : &sh.keys[stage][lane * (BOX / 8)][0][0][0];
      if (lane < BOXES) copy_eights(to, all.pool_map, eight, &full[stage]);
    }
    barrier_arrive(&sh.span_free[n % SPANS]);
  }
}

#endif
