// paged_attention of single query tokens (decodes) in mode `fast`, on tensor cores: bound by reading the cache once. Layouts
// and items as in attention.cuh; the scheme is FlashDecoding's split of keys (Dao et al. 2023), cut evenly as Stream-K cuts
// products (arXiv 2301.03598).
//
// A row of work is up to 8 or 16 query heads of one key head of one item; its keys are cut into steps of 64 at absolute positions,
// of which each of a block's four warps has 16. All steps of a key head stand in one line, and each of the blocks of this head
// takes an equal piece of it, whatever the lengths of the sequences. Neighbouring blocks have the same piece of different heads,
// which lie side by side in the cache: so memory is read in long stretches. A warp streams its keys and values through its own ring of asynchronous
// copies, from one row into the next, and so do the queries, so that memory is busy while a row ends. A row that lies in
// several blocks is put together by the one of them that ends last, in the order of keys.
// Products stand on their heads: keys by queries, then values by weights, so that eight heads fill a tile. A max only moves, and
// sums are only scaled, when a score is far above it.
// Blocks of the cache have 2^n tokens, 16 at least.
// The grid is fixed and each block finds its piece from starts and context_lens, so a captured launch replays for any lengths.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64 and 128 x 8 and 16 heads.
#include "attention.cuh"

constexpr uint32_t THREADS = 128, WARPS = 4, TILE = 8, STEP = WARPS * GROUP;
// How far above a row's max a score must be to move it, in powers of two: weights stay below 2^SLACK.
constexpr float SLACK = 8;
// Steps that are worth a block.
constexpr uint32_t MIN_STEPS = 2;

template <typename T, uint32_t DIM, uint32_t TILES>
struct StreamShared {
  static constexpr uint32_t ROWS = TILES * TILE;
  static constexpr uint32_t STAGES = DIM == 64 ? 3 : 2;
  // Rows that can be on their way at once: each stage may hold the last step of one.
  static constexpr uint32_t QUERIES = STAGES + 2;
  // Pieces of 16 bytes change places by their row, so that tiles of 8 rows touch all banks.
  __device__ static constexpr uint32_t place(uint32_t row, uint32_t column) { return column ^ row % 8 * 8; }
  T keys[WARPS][STAGES][GROUP][DIM];
  T values[WARPS][STAGES][GROUP][DIM];
  T queries[QUERIES][ROWS][DIM + 8];
  float sums[WARPS][TILE][DIM + 4];
  float max[WARPS][ROWS], sum[WARPS][ROWS];
  uint32_t arrived;
};

__device__ __forceinline__ uint32_t steps_of(const Item& item) {
  return item.active ? item.position / STEP - item.first_key / STEP + 1 : 0;
}

// The line of all steps of one part of each item: of a key head, or of a slice of its query heads. `units[i]` stand before item i.
struct Line {
  uint32_t* units;  // [items + 1], in shared memory
  uint32_t rows;    // heads of a row at most
  uint32_t slices;  // of a key head
  uint32_t parts, part;
  uint32_t quota, cut;  // steps of a piece, which piece
  uint32_t from, to;

  __device__ Line(const AttentionParams& p, uint32_t* shared, uint32_t rows) : units(shared), rows(rows) {
    __shared__ uint32_t warp_sums[4];
    const uint32_t per = (p.items + THREADS - 1) / THREADS;
    const uint32_t first = min(threadIdx.x * per, p.items), last = min(first + per, p.items);
    uint32_t total = 0;
    for (uint32_t i = first; i < last; i++) {
      units[i] = steps_of(item_at(p, i));
      total += units[i];
    }
    uint32_t unit = Plan::before(total, warp_sums);
    for (uint32_t i = first; i < last; i++) {
      const uint32_t n = units[i];
      units[i] = unit;
      unit += n;
    }
    if (threadIdx.x == THREADS - 1) units[p.items] = unit;
    __syncthreads();
    slices = (p.heads / p.kv_heads + rows - 1) / rows;
    parts = p.kv_heads * slices;
    part = blockIdx.x % parts;
    cut = blockIdx.x / parts;
    const uint32_t all = units[p.items], cuts = gridDim.x / parts;
    quota = max((all + cuts - 1) / cuts, MIN_STEPS);
    from = cut < cuts ? min(cut * quota, all) : all;
    to = min(from + quota, all);
  }
  __device__ uint32_t kv_head() const { return part / slices; }
  // Of a row: its first head and how many it has.
  __device__ uint32_t head(const AttentionParams& p) const {
    return kv_head() * (p.heads / p.kv_heads) + part % slices * rows;
  }
  __device__ uint32_t heads(const AttentionParams& p) const {
    return min(rows, p.heads / p.kv_heads - part % slices * rows);
  }
};

// A step of the line.
struct Cursor {
  uint32_t index, step, steps;
  Item item;

  __device__ Cursor(const AttentionParams& p, const Line& line, uint32_t at) {
    uint32_t low = 0, high = p.items;  // the last item that starts at or before it
    while (low + 1 < high) {
      const uint32_t middle = (low + high) / 2;
      if (line.units[middle] <= at) low = middle;
      else high = middle;
    }
    index = low;
    item = item_at(p, index);
    steps = steps_of(item);
    step = at - line.units[index];
  }
  // To the next one, which exists; true in a new row.
  __device__ bool advance(const AttentionParams& p, const Line& line) {
    if (++step < steps) return false;
    step = 0;
    do index++;
    while (line.units[index + 1] == line.units[index]);
    item = item_at(p, index);
    steps = steps_of(item);
    return true;
  }
  __device__ uint32_t start() const { return (item.first_key / STEP + step) * STEP; }
};

// So many of sixteen bytes from global to shared memory, and zeros behind them.
__device__ __forceinline__ void copy16_sized(uint32_t to, uint64_t from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Brings keys, values and queries, a few steps ahead of those who compute.
template <typename T, uint32_t DIM, uint32_t TILES>
struct Loader {
  using Shared = StreamShared<T, DIM, TILES>;
  static constexpr uint32_t PIECES = DIM / 8, ROWS = Shared::ROWS;
  const AttentionParams& p;
  const Line& line;
  Shared& sh;
  const uint32_t lane, warp;
  Cursor cursor;
  const uint32_t shift;  // a block has 2^shift tokens
  uint32_t at, query;
  bool waited;    // for the launch in front
  uint64_t keys;  // where this lane's first piece of the warp's group stands, or 0 where nobody sees the group

  __device__ Loader(const AttentionParams& p, const Line& line, Shared& sh, const Cursor& cursor)
      : p(p), line(line), sh(sh), lane(threadIdx.x % 32), warp(threadIdx.x / 32), cursor(cursor),
        shift(31 - __clz(int(p.block_size))), at(line.from), query(0), waited(false) {
    locate();
  }
  __device__ void wait() {
    if (!waited) wait_for_prior();
    waited = true;
  }
  // A group lies in one block.
  __device__ void locate() {
    const uint32_t start = cursor.start() + warp * GROUP;
    keys = 0;
    if (start > cursor.item.position || start + GROUP <= cursor.item.first_key) return;
    const uint32_t block = uint32_t(::at<int>(p.tables)[uint64_t(cursor.item.sequence) * p.table_cols + (start >> shift)]);
    if (block >= p.blocks) {
      fault(p.fault, KV_BLOCK, cursor.item.sequence, block);
      return;
    }
    const uint32_t token = (line.kv_head() << shift) + (start & (p.block_size - 1));
    keys = p.pool + p.layer_bytes + block * p.block_bytes + uint64_t(token) * (DIM * sizeof(T)) + lane * 16;
  }
  // This warp's share of the row's queries. Rows behind the last are zeros.
  __device__ void load_query() {
    wait();
    const uint32_t head = line.head(p), rows = line.heads(p);
    const T* from = at_query(head);
#pragma unroll
    for (uint32_t i = 0; i < (ROWS * PIECES + THREADS - 1) / THREADS; i++) {
      const uint32_t piece = threadIdx.x + THREADS * i, r = piece / PIECES, column = piece % PIECES * 8;
      if (ROWS * PIECES % THREADS != 0 && r >= ROWS) break;
      const bool valid = r < rows;
      copy16_async(&sh.queries[query][r][column], valid ? from + r * DIM + column : from, valid);
    }
  }
  // Behind the first steps of the block, which may be on their way while the launch in front writes it.
  __device__ void load_first_query(const Cursor& first) {
    const Cursor now = cursor;
    const uint32_t to = query;
    cursor = first, query = 0;
    load_query();
    cursor = now, query = to;
    copy_commit();
  }
  __device__ const T* at_query(uint32_t head) const {
    return ::at<T>(p.qkv) + (uint64_t(cursor.item.token) * (p.heads + 2 * p.kv_heads) + head) * DIM;
  }
  // Tokens `from..to` of the group; zeros for the others, as a block can hold anything there.
  template <bool WHOLE>
  __device__ void copy_group(uint32_t stage, uint32_t from, uint32_t to) {
    const uint64_t value_bytes = uint64_t(p.kv_heads << shift) * (DIM * sizeof(T));
    const uint32_t first_keys = shared_address(&sh.keys[warp][stage][0][0]);
    const uint32_t first_values = shared_address(&sh.values[warp][stage][0][0]);
#pragma unroll
    for (uint32_t i = 0; i < GROUP * PIECES / 32; i++) {
      const uint32_t token = lane / PIECES + i * (32 / PIECES);
      const uint32_t place = 2 * (token * DIM + Shared::place(token, lane % PIECES * 8));
      const uint32_t bytes = WHOLE || (token >= from && token < to) ? 16 : 0;
      copy16_sized(first_keys + place, keys + i * 512, bytes);
      copy16_sized(first_values + place, keys + value_bytes + i * 512, bytes);
    }
  }
  // The next step into `stage`, as one group of copies; an empty one behind the last. What this step
  // of the model brought is written by the launch in front, all before it by earlier ones.
  __device__ void load(uint32_t stage) {
    if (at < line.to) {
      if (cursor.start() + STEP > cursor.item.fresh) wait();
      if (keys != 0) {
        const uint32_t start = cursor.start() + warp * GROUP, first = cursor.item.first_key, last = cursor.item.position;
        if (start >= first && start + GROUP - 1 <= last) copy_group<true>(stage, 0, GROUP);
        else copy_group<false>(stage, max(first, start) - start, min(last - start + 1, GROUP));
      }
      if (++at < line.to) {
        if (cursor.advance(p, line)) {
          query = query + 1 == Shared::QUERIES ? 0 : query + 1;
          load_query();
        }
        locate();
      }
    }
    copy_commit();
  }
};

// Running result of the heads of a row over a warp's keys. Of sums a thread has dimensions lane / 4 and lane / 4 + 8 of each
// sixteen, of heads lane % 4 * 2 and the next of each tile.
template <typename T, uint32_t DIM, uint32_t TILES>
struct Streamed {
  using Shared = StreamShared<T, DIM, TILES>;
  static constexpr uint32_t ROWS = Shared::ROWS, PAIRS = DIM / 2;
  const AttentionParams& p;
  const Line& line;
  Shared& sh;
  const uint32_t lane, warp;
  uint32_t queries[DIM / 16][TILES][2];
  float sums[TILES][DIM / 16][4];
  float max[TILES][2], sum[TILES][2];  // of scores in powers of two; of the thread's own weights

  __device__ void take_query(uint32_t query) {
#pragma unroll
    for (uint32_t t = 0; t < TILES; t++) {
#pragma unroll
      for (uint32_t k = 0; k < DIM / 16; k += 2) {
        uint32_t b[4];
        load_tiles(b, &sh.queries[query][t * TILE + lane % 8][k * 16 + lane / 8 * 8]);
        queries[k][t][0] = b[0], queries[k][t][1] = b[1];
        queries[k + 1][t][0] = b[2], queries[k + 1][t][1] = b[3];
      }
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) sums[t][d][i] = 0;
      }
      max[t][0] = max[t][1] = -INFINITY;
      sum[t][0] = sum[t][1] = 0;
    }
  }

  // Scores of a tile as powers of two; of keys that nobody sees minus infinity.
  __device__ void scale(uint32_t start, uint32_t first, uint32_t last, float (&s)[4]) const {
    const float factor = p.scale * LOG2E;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      s[i] = p.soft_cap != 0.0f ? capped_fast(s[i] * p.scale, p.soft_cap) * LOG2E : s[i] * factor;
    }
    if (start >= first && start + GROUP - 1 <= last) return;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t key = start + lane / 4 + i / 2 * 8;
      if (key < first || key > last) s[i] = -INFINITY;
    }
  }

  // Moves a tile's max to its scores'; what was summed before shrinks.
  __device__ void move_max(uint32_t t, const float (&s)[4]) {
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
      float top = fmaxf(s[j], s[j + 2]);
#pragma unroll
      for (uint32_t width = 4; width < 32; width *= 2) top = fmaxf(top, __shfl_xor_sync(ALL, top, width));
      top = fmaxf(max[t][j], top);
      const float keep = weight_of(max[t][j] - top);
      max[t][j] = top;
      sum[t][j] *= keep;
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) sums[t][d][j] *= keep, sums[t][d][j + 2] *= keep;
    }
  }

  // Scores of a tile, of which one key at least is seen, become weights for an mma.
  __device__ void weigh(uint32_t t, float (&s)[4], uint32_t (&b)[2]) {
    bool far = false;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) far = far || s[i] > max[t][i % 2] + SLACK;
    if (__any_sync(ALL, far)) move_max(t, s);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      s[i] = weight_of(s[i] - max[t][i % 2]);
      sum[t][i % 2] += s[i];
    }
    b[0] = transposed(pack<T>(s[0], s[1]));
    b[1] = transposed(pack<T>(s[2], s[3]));
  }

  // The warp's keys of a step.
  __device__ void attend(const Cursor& cursor, uint32_t stage) {
    const uint32_t start = cursor.start() + warp * GROUP, first = cursor.item.first_key, last = cursor.item.position;
    if (start > last || start + GROUP <= first) return;
    float s[TILES][2][4] = {};
    const uint32_t row = lane % 16;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t a[4];
      load_tiles(a, &sh.keys[warp][stage][row][Shared::place(row, k * 16 + lane / 16 * 8)]);
#pragma unroll
      for (uint32_t t = 0; t < TILES; t++) mma<T>(s[t][k % 2], a, queries[k][t][0], queries[k][t][1]);
    }
    uint32_t b[TILES][2];
#pragma unroll
    for (uint32_t t = 0; t < TILES; t++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) s[t][0][i] += s[t][1][i];
      scale(start, first, last, s[t][0]);
      weigh(t, s[t][0], b[t]);
    }
    const uint32_t key = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (uint32_t d = 0; d < DIM / 16; d++) {
      uint32_t a[4];
      load_tiles_transposed(a, &sh.values[warp][stage][key][Shared::place(key, d * 16 + lane / 8 % 2 * 8)]);
#pragma unroll
      for (uint32_t t = 0; t < TILES; t++) mma<T>(sums[t][d], a, b[t][0], b[t][1]);
    }
  }

  // What the warp has of a tile, for all threads.
  __device__ void leave(uint32_t t) {
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
      const uint32_t head = lane % 4 * 2 + j;
      float all = sum[t][j];
#pragma unroll
      for (uint32_t width = 4; width < 32; width *= 2) all += __shfl_xor_sync(ALL, all, width);
      if (lane < 4) sh.max[warp][t * TILE + head] = max[t][j], sh.sum[warp][t * TILE + head] = all;
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) {
        sh.sums[warp][head][d * 16 + lane / 4] = sums[t][d][j];
        sh.sums[warp][head][d * 16 + lane / 4 + 8] = sums[t][d][j + 2];
      }
    }
  }

  // Adds up the four warps' results of a row and hands them to `each(row, pair, sums, max, sum)`: two dimensions at a time.
  template <typename Each>
  __device__ void fold(uint32_t rows, const Each& each) {
#pragma unroll
    for (uint32_t t = 0; t < TILES; t++) {
      if (t * TILE >= rows) return;
      if (t > 0) __syncthreads();
      leave(t);
      __syncthreads();
      for (uint32_t i = threadIdx.x; i < min(rows - t * TILE, TILE) * PAIRS; i += THREADS) {
        const uint32_t head = i / PAIRS, row = t * TILE + head;
        float top = sh.max[0][row], all = 0;
#pragma unroll
        for (uint32_t w = 1; w < WARPS; w++) top = fmaxf(top, sh.max[w][row]);
        float2 x = make_float2(0, 0);
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) {
          const float weight = weight_of(sh.max[w][row] - top);
          const float2 part = *reinterpret_cast<const float2*>(&sh.sums[w][head][i % PAIRS * 2]);
          all = fmaf(sh.sum[w][row], weight, all);
          x.x = fmaf(part.x, weight, x.x);
          x.y = fmaf(part.y, weight, x.y);
        }
        each(row, i % PAIRS, x, top, all);
      }
    }
  }

  __device__ uint32_t* out_of(const Cursor& cursor) const {
    return reinterpret_cast<uint32_t*>(at<T>(p.out) + (uint64_t(cursor.item.token) * p.heads + line.head(p)) * DIM);
  }

  // The end of a row, or of what this block has of it.
  __device__ void emit(const Cursor& cursor) {
    const uint32_t from = line.units[cursor.index], to = from + cursor.steps, rows = line.heads(p);
    if (from >= line.from && to <= line.to) {
      uint32_t* out = out_of(cursor);
      fold(rows, [&](uint32_t row, uint32_t pair, float2 x, float, float all) {
        out[row * PAIRS + pair] = pack<T>(finished(x.x, all), finished(x.y, all));
      });
      return;
    }
    const uint32_t first = from / line.quota, last = (to - 1) / line.quota;
    const uint64_t slot = slot_of(line.cut, last);
    fold(rows, [&](uint32_t row, uint32_t pair, float2 x, float top, float all) {
      at<float2>(p.sums)[(slot + row) * PAIRS + pair] = x;
      if (pair == 0) at<float2>(p.limits)[slot + row] = make_float2(top, all);
    });
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) sh.arrived = atomicAdd(at<uint32_t>(p.plan) + first * line.parts + line.part, 1u);
    __syncthreads();
    if (sh.arrived == last - first) merge(cursor, first, last);
  }

  // The first row of the partial results of a piece: of what ends in it, and of what goes on behind it.
  __device__ uint64_t slot_of(uint32_t cut, uint32_t last) const {
    return ((2 * uint64_t(cut) + (cut == last ? 0 : 1)) * line.parts + line.part) * ROWS;
  }

  // Partial results are folded a few at a time, whose loads run side by side.
  __device__ void merge(const Cursor& cursor, uint32_t first, uint32_t last) {
    constexpr uint32_t AT_ONCE = 8;
    __threadfence();
    uint32_t* out = out_of(cursor);
    for (uint32_t i = threadIdx.x; i < line.heads(p) * PAIRS; i += THREADS) {
      float top = -INFINITY, all = 0;
      float2 x = make_float2(0, 0);
      for (uint32_t from = first; from <= last; from += AT_ONCE) {
        float2 limits[AT_ONCE], parts[AT_ONCE];
        float now = top;
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
          const uint64_t slot = slot_of(min(from + j, last), last);
          limits[j] = __ldcg(at<float2>(p.limits) + slot + i / PAIRS);
          parts[j] = __ldcg(at<float2>(p.sums) + slot * PAIRS + i);
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) now = fmaxf(now, limits[j].x);
        const float keep = weight_of(top - now);
        all *= keep, x.x *= keep, x.y *= keep;
        top = now;
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
          const float weight = from + j <= last ? weight_of(limits[j].x - top) : 0.0f;
          all = fmaf(limits[j].y, weight, all);
          x.x = fmaf(parts[j].x, weight, x.x);
          x.y = fmaf(parts[j].y, weight, x.y);
        }
      }
      out[i] = pack<T>(finished(x.x, all), finished(x.y, all));
    }
    if (threadIdx.x == 0) at<uint32_t>(p.plan)[first * line.parts + line.part] = 0;
  }
};

template <typename T, uint32_t DIM, uint32_t TILES>
__device__ __forceinline__ void attention_stream(const AttentionParams& p) {
  using Shared = StreamShared<T, DIM, TILES>;
  YN_DYNAMIC_SHARED(dynamic);
  Shared& sh = *reinterpret_cast<Shared*>(dynamic);
  const Line line(p, reinterpret_cast<uint32_t*>(dynamic + sizeof(Shared)), Shared::ROWS);
  if (line.from >= line.to) return wait_for_prior();
  Cursor cursor(p, line, line.from);
  Loader<T, DIM, TILES> loader(p, line, sh, cursor);
#pragma unroll
  for (uint32_t stage = 0; stage < Shared::STAGES; stage++) loader.load(stage);
  loader.load_first_query(cursor);
  Streamed<T, DIM, TILES> streamed{p, line, sh, threadIdx.x % 32, threadIdx.x / 32};
  uint32_t stage = 0, query = 0;
  bool fresh = true;
  copy_wait<0>();
#pragma unroll 1
  for (uint32_t at = line.from; at < line.to; at++) {
    copy_wait<Shared::STAGES - 1>();
    if (fresh) {
      __syncthreads();  // each warp brought a share of the queries
      streamed.take_query(query);
    } else {
      __syncwarp();
    }
    streamed.attend(cursor, stage);
    __syncwarp();
    loader.load(stage);
    stage = stage + 1 == Shared::STAGES ? 0 : stage + 1;
    fresh = cursor.step + 1 == cursor.steps;
    if (fresh || at + 1 == line.to) streamed.emit(cursor);
    if (at + 1 == line.to) return;
    if (cursor.advance(p, line)) query = query + 1 == Shared::QUERIES ? 0 : query + 1;
  }
}

#define YN_STREAM_OF(DIM, ROWS, BLOCKS, NAME, T)                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                     \
      yn_attention_stream##ROWS##_##DIM##_##NAME(const __grid_constant__ AttentionParams p) { \
    let_next_start();                                                               \
    attention_stream<T, DIM, ROWS / TILE>(p);                                       \
  }
#define YN_STREAM(DIM, ROWS, BLOCKS, SHARED)                                                                          \
  static_assert(sizeof(StreamShared<f16, DIM, ROWS / TILE>) == SHARED, "mirrored in src/hal/cuda/ops/attention.rs");  \
  YN_STREAM_OF(DIM, ROWS, BLOCKS, f16, f16)                                                                           \
  YN_STREAM_OF(DIM, ROWS, BLOCKS, bf16, bf16)

YN_STREAM(64, 8, 3, 63876)
YN_STREAM(64, 16, 3, 69892)
YN_STREAM(128, 8, 2, 91396)
YN_STREAM(128, 16, 2, 100356)
