// paged_attention of many single query tokens (decodes) in mode `fast`, on tensor cores: bound by reading the cache once. Layouts
// and items as in attention.cuh, what is computed as in attention_heads.cuh.
//
// A block takes a row of work whole: the hardware places a block where one ends, which evens out what blocks get of the memory, as
// equal pieces (attention_stream) do not. It wants a row for every third place of a block. Key heads are the fastest index: those of
// a token lie side by side in the cache.
// A row that is longer than the `quota` is cut into equal pieces. Its own block has the first; the others, counted over all
// rows, go to the first blocks of the grid behind their own rows. They are fewer than `capacity`, as the quota is that share of
// all steps, and so fewer than rows. The block that ends last puts the row together.
// Where there is no `capacity` no row is cut.
// The grid is fixed, and so a captured launch replays for any lengths. Blocks of the cache have 2^n tokens, 16 at least.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64 and 128 x 8 and 16 heads.
#include "attention_heads.cuh"

// Steps that are worth a piece.
constexpr uint32_t MIN_STEPS = 8;

template <typename T, uint32_t DIM, uint32_t TILES>
struct RowsShared {
  static constexpr uint32_t ROWS = TILES * TILE, STAGES = DIM == 64 || TILES == 2 ? 3 : 2;
  static_assert(STAGES <= MIN_STEPS / 2, "stages are filled before the piece is known");
  T keys[WARPS][STAGES][GROUP][DIM];
  T values[WARPS][STAGES][GROUP][DIM];
  float max[WARPS][ROWS], sum[WARPS][ROWS];
  uint32_t warp_sums[4], warp_max[4];
  uint32_t arrived;
  // Extra pieces before those of the block's row; the piece that the block has besides: its row, which of it, and extra pieces
  // before those of this row.
  uint32_t own, row, number, first;

  // Weighted sums of a tile stand where a warp's keys were.
  using Sums = float[TILE][DIM + 4];
  static_assert(sizeof(Sums) <= sizeof(keys[0]), "weighted sums fit where keys were");
  __device__ Sums& sums(uint32_t warp) { return *reinterpret_cast<Sums*>(&keys[warp]); }
};

// Up to `rows` query heads of a key head.
struct Part {
  uint32_t parts, part, kv_head, head, heads;

  __device__ Part(const AttentionParams& p, uint32_t rows) {
    const uint32_t ratio = p.heads / p.kv_heads, slices = (ratio + rows - 1) / rows;
    parts = p.kv_heads * slices;
    part = blockIdx.x % parts;
    kv_head = part / slices;
    const uint32_t first = part % slices * rows;
    head = kv_head * ratio + first;
    heads = min(rows, ratio - first);
  }
};

// How rows are cut: the same for all blocks.
struct Cut {
  uint32_t quota;   // most steps of a piece
  uint32_t extras;  // pieces behind the first ones of all rows

  __device__ uint32_t pieces(uint32_t steps) const { return steps > quota ? (steps + quota - 1) / quota : 1; }

  // All threads of a block. Says in `sh` what the block has to do with row `index` and beside it.
  template <typename Shared>
  __device__ Cut(const AttentionParams& p, Shared& sh, uint32_t index) : extras(0) {
    if (p.capacity == 0) {
      quota = ~0u;
      return;
    }
    const uint32_t per = (p.items + THREADS - 1) / THREADS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t from = min(threadIdx.x * per, p.items), to = min(from + per, p.items);
    uint32_t total = 0, longest = 0;
    for (uint32_t i = from; i < to; i++) {
      const uint32_t steps = steps_of(item_near(p, i));
      total += steps;
      longest = max(longest, steps);
    }
    total = reduce_warp(total, Add());
    longest = reduce_warp(longest, Max());
    if (lane == 0) sh.warp_sums[warp] = total, sh.warp_max[warp] = longest;
    __syncthreads();
    total = sh.warp_sums[0] + sh.warp_sums[1] + sh.warp_sums[2] + sh.warp_sums[3];
    longest = max(max(sh.warp_max[0], sh.warp_max[1]), max(sh.warp_max[2], sh.warp_max[3]));
    quota = max((total + p.capacity - 1) / p.capacity, MIN_STEPS);
    if (longest > quota) number(p, sh, index, from, to);
  }

  template <typename Shared>
  __device__ void number(const AttentionParams& p, Shared& sh, uint32_t index, uint32_t from, uint32_t to) {
    uint32_t mine = 0;
    for (uint32_t i = from; i < to; i++) mine += pieces(steps_of(item_near(p, i))) - 1;
    __syncthreads();
    uint32_t before = Plan::before(mine, sh.warp_sums);
    extras = sh.warp_sums[0] + sh.warp_sums[1] + sh.warp_sums[2] + sh.warp_sums[3];
    for (uint32_t i = from; i < to; i++) {
      const uint32_t more = pieces(steps_of(item_near(p, i))) - 1;
      if (i == index) sh.own = before;
      if (index >= before && index < before + more) sh.row = i, sh.number = index - before + 1, sh.first = before;
      before += more;
    }
    __syncthreads();
  }
};

// A row's keys on their way through a warp's ring.
template <typename T, uint32_t DIM, uint32_t TILES>
struct RowLoader {
  using Shared = RowsShared<T, DIM, TILES>;
  const AttentionParams& p;
  Shared& sh;
  const uint32_t lane, warp, kv_head;
  const uint32_t shift;  // a block has 2^shift tokens
  Item item;
  uint32_t base, entry;  // a lane's entry of the table is for step base + lane
  uint32_t guessed;      // the sequence whose first entries are here already
  bool waited;           // for the launch in front

  __device__ RowLoader(const AttentionParams& p, Shared& sh, uint32_t kv_head)
      : p(p), sh(sh), lane(threadIdx.x % 32), warp(threadIdx.x / 32), kv_head(kv_head),
        shift(31 - __clz(int(p.block_size))), guessed(~0u), waited(false) {}

  // Loads the table of what is most likely the row's sequence, while its length is on its way.
  __device__ void guess(uint32_t index) {
    const uint32_t sequence = p.first_item + index;
    if (sequence >= p.sequences) return;
    const uint32_t column = min((lane * STEP + warp * GROUP) >> shift, p.table_cols - 1);
    entry = uint32_t(at<int>(p.tables)[uint64_t(sequence) * p.table_cols + column]);
    guessed = sequence;
  }
  __device__ void wait() {
    if (!waited) wait_for_prior();
    waited = true;
  }
  __device__ void look_up(uint32_t step) {
    base = step;
    const uint32_t start = (step + lane) * STEP + warp * GROUP;
    const int* table = at<int>(p.tables) + uint64_t(item.sequence) * p.table_cols;
    entry = start <= item.position ? uint32_t(table[start >> shift]) : 0;
  }
  // The first steps of `from..to`.
  __device__ void begin(const Item& of, uint32_t from, uint32_t to) {
    item = of;
    if (from == 0 && item.sequence == guessed) base = 0;
    else look_up(from);
    guessed = ~0u;
#pragma unroll
    for (uint32_t stage = 0; stage < Shared::STAGES; stage++) load(from + stage, to, stage);
  }
  // A step as one group of copies, an empty one from `to` on. What this step of the model brought is written by the launch in front,
  // all before it by earlier ones.
  __device__ void load(uint32_t step, uint32_t to, uint32_t stage) {
    if (step < to) {
      if (step == base + 32) look_up(step);
      if ((step + 1) * STEP > item.fresh) wait();
      const uint32_t block = __shfl_sync(ALL, entry, int(step - base));
      const uint32_t start = step * STEP + warp * GROUP;
      if (start <= item.position && start + GROUP > item.first_key) copy(block, start, stage);
    }
    copy_commit();
  }
  // A group, which lies in one block.
  __device__ void copy(uint32_t block, uint32_t start, uint32_t stage) {
    if (block >= p.blocks) return fault(p.fault, KV_BLOCK, item.sequence, block);
    const uint32_t token = (kv_head << shift) + (start & (p.block_size - 1));
    const uint64_t keys =
        p.pool + p.layer_bytes + block * p.block_bytes + uint64_t(token) * (DIM * sizeof(T)) + lane * 16;
    const uint64_t value_bytes = uint64_t(p.kv_heads << shift) * (DIM * sizeof(T));
    auto& to_keys = sh.keys[warp][stage];
    auto& to_values = sh.values[warp][stage];
    const uint32_t first = item.first_key, last = item.position;
    if (start >= first && start + GROUP - 1 <= last) {
      copy_group<true>(to_keys, to_values, keys, value_bytes, 0, GROUP);
    } else {
      copy_group<false>(to_keys, to_values, keys, value_bytes, max(first, start) - start, min(last - start + 1, GROUP));
    }
  }
};

template <typename T, uint32_t DIM, uint32_t TILES>
struct RowsBlock {
  using Shared = RowsShared<T, DIM, TILES>;
  const AttentionParams& p;
  Shared& sh;
  const Part part;
  RowLoader<T, DIM, TILES> loader;
  Heads<T, DIM, TILES, Shared> heads;

  __device__ RowsBlock(const AttentionParams& p, Shared& sh)
      : p(p), sh(sh), part(p, Shared::ROWS), loader(p, sh, part.kv_head), heads(p, sh) {}

  // Fragments of the row's queries; heads behind the last are zeros.
  __device__ void take_query(const Item& item) {
    loader.wait();
    const uint64_t row = uint64_t(item.token) * (p.heads + 2 * p.kv_heads) + part.head;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(at<T>(p.qkv) + row * DIM);
#pragma unroll
    for (uint32_t t = 0; t < TILES; t++) {
      const uint32_t head = t * TILE + heads.lane / 4;
#pragma unroll
      for (uint32_t k = 0; k < DIM / 16; k++) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
          const uint32_t word = head * (DIM / 2) + k * 8 + i * 4 + heads.lane % 4;
          heads.queries[k][t][i] = head < part.heads ? from[word] : 0;
        }
      }
    }
    heads.begin();
  }

  // Steps `from..to` of a row, of which the first are on their way.
  __device__ void attend(const Item& item, uint32_t from, uint32_t to) {
    take_query(item);
    uint32_t stage = 0;
#pragma unroll 1
    for (uint32_t step = from; step < to; step++) {
      copy_wait<Shared::STAGES - 1>();
      __syncwarp();
      heads.attend(step * STEP, item.first_key, item.position, stage);
      __syncwarp();
      loader.load(step + Shared::STAGES, to, stage);
      stage = stage + 1 == Shared::STAGES ? 0 : stage + 1;
    }
  }

  __device__ uint32_t* out_of(const Item& item) const {
    return reinterpret_cast<uint32_t*>(at<T>(p.out) + (uint64_t(item.token) * p.heads + part.head) * DIM);
  }

  // Piece `number` of row `index`, whose pieces behind the first are those from `first_extra` on.
  __device__ void leave(const Item& item, uint32_t index, uint32_t number, uint32_t first_extra, uint32_t pieces) {
    const auto slot_of = [&](uint32_t i) {
      return (uint64_t(i == 0 ? index : p.items + first_extra + i - 1) * part.parts + part.part) * Shared::ROWS;
    };
    if (!heads.leave_piece(part.heads, slot_of(number), index * part.parts + part.part, pieces)) return;
    heads.merge(out_of(item), part.heads, 0, pieces - 1, slot_of);
  }

  __device__ void run() {
    const uint32_t index = blockIdx.x / part.parts;
    loader.guess(index);
    Item item = item_near(p, index);
    const uint32_t begin = item.first_key / STEP;
    if (item.active) loader.begin(item, begin, begin + steps_of(item));
    const Cut cut(p, sh, index);
    uint32_t row = index, number = 0, first_extra = sh.own;
#pragma unroll 1
    while (true) {
      if (item.active) {
        const uint32_t steps = steps_of(item), pieces = cut.pieces(steps), length = (steps + pieces - 1) / pieces;
        const uint32_t first = item.first_key / STEP, from = first + number * length;
        const uint32_t to = min(from + length, first + steps);
        if (number > 0) loader.begin(item, from, to);
        attend(item, from, to);
        if (pieces == 1) heads.store(out_of(item), part.heads);
        else leave(item, row, number, first_extra, pieces);
      }
      if (number > 0 || index >= cut.extras) break;
      __syncthreads();  // sums stood where keys come
      row = sh.row, number = sh.number, first_extra = sh.first;
      item = item_near(p, row);
    }
    loader.wait();
  }
};

#define YN_ROWS_OF(DIM, ROWS, BLOCKS, NAME, T)                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                             \
      yn_attention_rows##ROWS##_##DIM##_##NAME(const __grid_constant__ AttentionParams p) { \
    let_next_start();                                                                       \
    YN_DYNAMIC_SHARED(dynamic);                                                             \
    using Block = RowsBlock<T, DIM, ROWS / TILE>;                                           \
    Block(p, *reinterpret_cast<Block::Shared*>(dynamic)).run();                             \
  }
#define YN_ROWS(DIM, ROWS, BLOCKS, SHARED)                                                                         \
  static_assert(sizeof(RowsShared<f16, DIM, ROWS / TILE>) == SHARED, "mirrored in src/hal/cuda/ops/attention.rs"); \
  YN_ROWS_OF(DIM, ROWS, BLOCKS, f16, f16)                                                                          \
  YN_ROWS_OF(DIM, ROWS, BLOCKS, bf16, bf16)

YN_ROWS(64, 8, 4, 49460)
YN_ROWS(64, 16, 3, 49716)
YN_ROWS(128, 8, 3, 65844)
YN_ROWS(128, 16, 2, 98868)
