// paged_attention of single query tokens (decodes) in mode `fast`, on tensor cores: bound by reading the cache once. Layouts
// and items as in attention.cuh; the scheme is FlashDecoding's split of keys (Dao et al. 2023), cut evenly as Stream-K cuts
// products (arXiv 2301.03598).
//
// A row of work is up to 8 or 16 query heads of one key head of one item; its keys are cut into steps of 64 at absolute positions,
// of which each of a block's four warps has 16. All steps of a key head stand in one line, and each of the blocks of this head
// takes an equal piece of it, whatever the lengths of the sequences. Neighbouring blocks have the same piece of different heads,
// which lie side by side in the cache: so memory is read in long stretches. A warp streams its keys and values through its own ring
// of asynchronous copies, from one row into the next, and so do the queries, so that memory is busy while a row ends. A row that
// lies in several blocks is put together by the one of them that ends last, in the order of keys.
// Blocks of the cache have 2^n tokens, 16 at least.
// The grid is fixed and each block finds its piece from starts and context_lens, so a captured launch replays for any lengths.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64 and 128 x 8 and 16 heads.
#include "attention_heads.cuh"

// Steps that are worth a block.
constexpr uint32_t MIN_STEPS = 2;

template <typename T, uint32_t DIM, uint32_t TILES>
struct StreamShared {
  static constexpr uint32_t ROWS = TILES * TILE;
  static constexpr uint32_t STAGES = DIM == 64 ? 3 : 2;
  // Rows that can be on their way at once: each stage may hold the last step of one.
  static constexpr uint32_t QUERIES = STAGES + 2;
  T keys[WARPS][STAGES][GROUP][DIM];
  T values[WARPS][STAGES][GROUP][DIM];
  T queries[QUERIES][ROWS][DIM + 8];
  float left[WARPS][TILE][DIM + 4];
  float max[WARPS][ROWS], sum[WARPS][ROWS];
  uint32_t arrived;

  __device__ float (&sums(uint32_t warp))[TILE][DIM + 4] { return left[warp]; }
};

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
      units[i] = steps_of(item_near(p, i));
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
    item = item_near(p, index);
    steps = steps_of(item);
    step = at - line.units[index];
  }
  // To the next one, which exists; true in a new row.
  __device__ bool advance(const AttentionParams& p, const Line& line) {
    if (++step < steps) return false;
    step = 0;
    do index++;
    while (line.units[index + 1] == line.units[index]);
    item = item_near(p, index);
    steps = steps_of(item);
    return true;
  }
  __device__ uint32_t start() const { return (item.first_key / STEP + step) * STEP; }
};

// Brings keys, values and queries, a few steps ahead of those who compute.
template <typename T, uint32_t DIM, uint32_t TILES>
struct Loader {
  using Shared = StreamShared<T, DIM, TILES>;
  static constexpr uint32_t ROWS = Shared::ROWS;
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
    copy_queries<T, DIM>(sh.queries[query], at_query(line.head(p)), line.heads(p));
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
  // The next step into `stage`, as one group of copies; an empty one behind the last. What this step
  // of the model brought is written by the launch in front, all before it by earlier ones.
  __device__ void load(uint32_t stage) {
    if (at < line.to) {
      if (cursor.start() + STEP > cursor.item.fresh) wait();
      if (keys != 0) {
        const uint32_t start = cursor.start() + warp * GROUP, first = cursor.item.first_key, last = cursor.item.position;
        auto& to_keys = sh.keys[warp][stage];
        auto& to_values = sh.values[warp][stage];
        const uint64_t value_bytes = uint64_t(p.kv_heads << shift) * (DIM * sizeof(T));
        if (start >= first && start + GROUP - 1 <= last) {
          copy_group<true>(to_keys, to_values, keys, value_bytes, 0, GROUP);
        } else {
          const uint32_t from = max(first, start) - start, to = min(last - start + 1, GROUP);
          copy_group<false>(to_keys, to_values, keys, value_bytes, from, to);
        }
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

template <typename T, uint32_t DIM, uint32_t TILES>
struct Streamed : Heads<T, DIM, TILES, StreamShared<T, DIM, TILES>> {
  using Shared = StreamShared<T, DIM, TILES>;
  using Base = Heads<T, DIM, TILES, Shared>;
  const Line& line;

  __device__ Streamed(const AttentionParams& p, const Line& line, Shared& sh) : Base(p, sh), line(line) {}

  // The end of a row, or of what this block has of it.
  __device__ void emit(const Cursor& cursor) {
    const AttentionParams& p = this->p;
    const uint32_t from = line.units[cursor.index], to = from + cursor.steps, rows = line.heads(p);
    uint32_t* out = reinterpret_cast<uint32_t*>(at<T>(p.out) + (uint64_t(cursor.item.token) * p.heads + line.head(p)) * DIM);
    if (from >= line.from && to <= line.to) return this->store(out, rows);
    const uint32_t first = from / line.quota, last = (to - 1) / line.quota;
    const uint32_t counter = first * line.parts + line.part;
    if (!this->leave_piece(rows, slot_of(line.cut, last), counter, last - first + 1)) return;
    this->merge(out, rows, first, last, [&](uint32_t cut) { return slot_of(cut, last); });
  }

  // The first row of the partial results of a piece: of what ends in it, and of what goes on behind it.
  __device__ uint64_t slot_of(uint32_t cut, uint32_t last) const {
    return ((2 * uint64_t(cut) + (cut == last ? 0 : 1)) * line.parts + line.part) * Base::ROWS;
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
  Streamed<T, DIM, TILES> streamed(p, line, sh);
  uint32_t stage = 0, query = 0;
  bool fresh = true;
  copy_wait<0>();
#pragma unroll 1
  for (uint32_t at = line.from; at < line.to; at++) {
    copy_wait<Shared::STAGES - 1>();
    if (fresh) {
      __syncthreads();  // each warp brought a share of the queries
      streamed.take_queries(sh.queries[query]);
    } else {
      __syncwarp();
    }
    streamed.attend(cursor.start(), cursor.item.first_key, cursor.item.position, stage);
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
