// paged_attention of single query tokens (decodes) in mode `fast`, on tensor cores: bound by reading the cache once. Layouts
// and items as in attention.cuh; the scheme is FlashDecoding's split of keys (Dao et al. 2023), cut evenly as Stream-K cuts
// products (arXiv 2301.03598).
//
// A row of work is up to 16 query heads of one key head of one item; its keys are cut into steps of 64 at absolute positions,
// of which each of a block's four warps has 16. All steps of all rows stand in one line, and each block takes an equal piece
// of it, whatever the lengths of the sequences. A warp streams its keys and values through its own ring of asynchronous
// copies, from one row into the next, and so do the queries, so that memory is busy while a row ends. A row that lies in
// several blocks is put together by the one of them that ends last, in the order of keys.
// Blocks of the cache have 2^n tokens, 16 at least.
// The grid is fixed and each block finds its piece from starts and context_lens, so a captured launch replays for any lengths.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64 and 128.
#include "attention.cuh"

constexpr uint32_t THREADS = 128, WARPS = 4, ROWS = 16, STEP = WARPS * GROUP;
// Steps that are worth a block.
constexpr uint32_t MIN_STEPS = 2;

template <typename T, uint32_t DIM>
struct StreamShared {
  static constexpr uint32_t STAGES = DIM == 64 ? 3 : 2;
  // Rows that can be on their way at once: each stage may hold the last step of one.
  static constexpr uint32_t QUERIES = STAGES + 2;
  // Pieces of 16 bytes change places by their row, so that tiles of 8 rows touch all banks.
  __device__ static constexpr uint32_t place(uint32_t row, uint32_t column) { return column ^ row % 8 * 8; }
  T keys[WARPS][STAGES][GROUP][DIM];
  T values[WARPS][STAGES][GROUP][DIM];
  T queries[QUERIES][ROWS][DIM + 8];
  float sums[2][ROWS][DIM + 8];
  float max[WARPS][ROWS], sum[WARPS][ROWS];
  uint32_t arrived;
};

__device__ __forceinline__ uint32_t steps_of(const Item& item) {
  return item.active ? item.position / STEP - item.first_key / STEP + 1 : 0;
}

// The line of all steps: `units[i]` steps of a key head stand before item i.
struct Line {
  uint32_t* units;  // [items + 1], in shared memory
  uint32_t parts;   // rows of an item
  uint32_t slices;  // of a key head
  uint32_t quota;   // steps of a block
  uint32_t from, to;

  __device__ Line(const AttentionParams& p, uint32_t* shared) : units(shared) {
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
    slices = (p.heads / p.kv_heads + ROWS - 1) / ROWS;
    parts = p.kv_heads * slices;
    const uint32_t all = units[p.items] * parts;
    quota = max((all + gridDim.x - 1) / gridDim.x, MIN_STEPS);
    from = min(blockIdx.x * quota, all);
    to = min(from + quota, all);
  }
};

// A step of the line.
struct Cursor {
  uint32_t index, part, step, steps;
  Item item;

  __device__ Cursor(const AttentionParams& p, const Line& line, uint32_t at) {
    uint32_t low = 0, high = p.items;  // the last item that starts at or before it
    while (low + 1 < high) {
      const uint32_t middle = (low + high) / 2;
      if (line.units[middle] * line.parts <= at) low = middle;
      else high = middle;
    }
    index = low;
    item = item_at(p, index);
    steps = steps_of(item);
    const uint32_t rest = at - line.units[index] * line.parts;
    part = rest / steps;
    step = rest % steps;
  }
  // To the next one, which exists; true in a new row.
  __device__ bool advance(const AttentionParams& p, const Line& line) {
    if (++step < steps) return false;
    step = 0;
    if (++part < line.parts) return true;
    part = 0;
    do index++;
    while (line.units[index + 1] == line.units[index]);
    item = item_at(p, index);
    steps = steps_of(item);
    return true;
  }
  __device__ uint32_t start() const { return (item.first_key / STEP + step) * STEP; }
  __device__ uint32_t kv_head(const Line& line) const { return part / line.slices; }
  __device__ uint32_t head(const AttentionParams& p, const Line& line) const {
    return kv_head(line) * (p.heads / p.kv_heads) + part % line.slices * ROWS;
  }
  __device__ uint32_t rows(const AttentionParams& p, const Line& line) const {
    return min(ROWS, p.heads / p.kv_heads - part % line.slices * ROWS);
  }
  // Places in the line where the row begins and ends.
  __device__ uint32_t row_from(const Line& line) const { return line.units[index] * line.parts + part * steps; }
  __device__ uint32_t row_to(const Line& line) const { return row_from(line) + steps; }
};

// So many of sixteen bytes from global to shared memory, and zeros behind them.
__device__ __forceinline__ void copy16_sized(uint32_t to, uint64_t from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Brings keys, values and queries, a few steps ahead of those who compute.
template <typename T, uint32_t DIM>
struct Loader {
  using Shared = StreamShared<T, DIM>;
  static constexpr uint32_t PIECES = DIM / 8;
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
    const uint32_t token = (cursor.kv_head(line) << shift) + (start & (p.block_size - 1));
    keys = p.pool + p.layer_bytes + block * p.block_bytes + uint64_t(token) * (DIM * sizeof(T)) + lane * 16;
  }
  // This warp's share of the row's queries. Rows behind the last are zeros.
  __device__ void load_query() {
    wait();
    const uint32_t head = cursor.head(p, line), rows = cursor.rows(p, line);
    const T* from = at_query(head);
#pragma unroll
    for (uint32_t i = 0; i < ROWS * PIECES / THREADS; i++) {
      const uint32_t piece = threadIdx.x + THREADS * i, r = piece / PIECES, column = piece % PIECES * 8;
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

template <typename T, uint32_t DIM>
struct Streamed {
  using Shared = StreamShared<T, DIM>;
  const AttentionParams& p;
  const Line& line;
  Shared& sh;
  const uint32_t lane, warp;
  Running<DIM> run;
  uint32_t queries[DIM / 16][4];

  __device__ void take_query(uint32_t query) {
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      load_tiles(queries[k], &sh.queries[query][lane % 16][k * 16 + lane / 16 * 8]);
    }
    run.begin();
  }

  __device__ void hide(uint32_t start, uint32_t first, uint32_t last, float (&s)[2][4]) const {
#pragma unroll
    for (uint32_t n = 0; n < 2; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        const uint32_t key = start + lane % 4 * 2 + 8 * n + i % 2;
        if (key < first || key > last) s[n][i] = -INFINITY;
      }
    }
  }

  // Scores of a group, of which one at least is seen, become weights for an mma; what was summed before shrinks.
  __device__ void weigh(float (&s)[2][4], uint32_t (&a)[4]) {
    const float factor = p.soft_cap != 0.0f ? 1.0f : p.scale * LOG2E;
    if (p.soft_cap != 0.0f) {
#pragma unroll
      for (uint32_t i = 0; i < 8; i++) {
        float& x = s[i / 4][i % 4];
        x = x == -INFINITY ? x : capped_fast(x * p.scale, p.soft_cap) * LOG2E;
      }
    }
    float keep[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) s[i / 2][2 * h + i % 2] *= factor;
      float top = fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
      top = fmaxf(run.max[h], fmaxf(top, __shfl_xor_sync(ALL, top, 2)));
      keep[h] = weight_of(run.max[h] - top);
      run.max[h] = top;
      run.sum[h] *= keep[h];
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        float& x = s[i / 2][2 * h + i % 2];
        x = weight_of(x - top);
        run.sum[h] += x;
      }
    }
#pragma unroll
    for (uint32_t n = 0; n < 2; n++) a[2 * n] = pack<T>(s[n][0], s[n][1]), a[2 * n + 1] = pack<T>(s[n][2], s[n][3]);
    if (__any_sync(ALL, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
      for (uint32_t d = 0; d < DIM / 8; d++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) run.sums[d][i] *= keep[i / 2];
      }
    }
  }

  // The warp's keys of a step.
  __device__ void attend(const Cursor& cursor, uint32_t stage) {
    const uint32_t start = cursor.start() + warp * GROUP, first = cursor.item.first_key, last = cursor.item.position;
    if (start > last || start + GROUP <= first) return;
    float s[2][4] = {};
    const uint32_t row = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t b[4];
      load_tiles(b, &sh.keys[warp][stage][row][Shared::place(row, k * 16 + lane / 8 % 2 * 8)]);
      mma<T>(s[0], queries[k], b[0], b[1]);
      mma<T>(s[1], queries[k], b[2], b[3]);
    }
    uint32_t a[4];
    if (start < first || start + GROUP - 1 > last) hide(start, first, last, s);
    weigh(s, a);
#pragma unroll
    for (uint32_t d = 0; d < DIM / 16; d++) {
      uint32_t b[4];
      load_tiles_transposed(b, &sh.values[warp][stage][lane % 16][Shared::place(lane % 16, d * 16 + lane / 16 * 8)]);
      mma<T>(run.sums[2 * d], a, b[0], b[1]);
      mma<T>(run.sums[2 * d + 1], a, b[2], b[3]);
    }
  }

  template <typename Each>
  __device__ void each(const Each& each) {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
      for (uint32_t d = 0; d < DIM / 8; d++) each(h, d, lane / 4 + 8 * h, d * 8 + lane % 4 * 2);
    }
  }
  __device__ void leave(uint32_t half) {
    each([&](uint32_t h, uint32_t d, uint32_t row, uint32_t column) {
      *reinterpret_cast<float2*>(&sh.sums[half][row][column]) = make_float2(run.sums[d][2 * h], run.sums[d][2 * h + 1]);
    });
  }
  __device__ void add(uint32_t half) {
    each([&](uint32_t h, uint32_t d, uint32_t row, uint32_t column) {
      const float2 x = *reinterpret_cast<const float2*>(&sh.sums[half][row][column]);
      run.sums[d][2 * h] += x.x;
      run.sums[d][2 * h + 1] += x.y;
    });
  }

  // Adds up the four warps' results; the first warp has them.
  __device__ void fold() {
    run.end();
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      if (lane % 4 == 0) sh.max[warp][lane / 4 + 8 * h] = run.max[h], sh.sum[warp][lane / 4 + 8 * h] = run.sum[h];
    }
    __syncthreads();
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t row = lane / 4 + 8 * h;
      float top = sh.max[0][row], sum = 0;
#pragma unroll
      for (uint32_t w = 1; w < WARPS; w++) top = fmaxf(top, sh.max[w][row]);
#pragma unroll
      for (uint32_t w = 0; w < WARPS; w++) sum = fmaf(sh.sum[w][row], weight_of(sh.max[w][row] - top), sum);
      const float own = weight_of(run.max[h] - top);
#pragma unroll
      for (uint32_t d = 0; d < DIM / 8; d++) run.sums[d][2 * h] *= own, run.sums[d][2 * h + 1] *= own;
      run.max[h] = top;
      run.sum[h] = sum;
    }
    if (warp >= 2) leave(warp - 2);
    __syncthreads();
    if (warp < 2) add(warp);
    if (warp == 1) leave(1);
    __syncthreads();
    if (warp == 0) add(1);
  }

  __device__ T* out_of(const Cursor& cursor) const {
    return at<T>(p.out) + (uint64_t(cursor.item.token) * p.heads + cursor.head(p, line)) * DIM;
  }

  // The end of a row, or of what this block has of it.
  __device__ void emit(const Cursor& cursor) {
    fold();
    const uint32_t from = cursor.row_from(line), to = cursor.row_to(line), rows = cursor.rows(p, line);
    if (from >= line.from && to <= line.to) {
      if (warp != 0) return;
      T* out = out_of(cursor);
      each([&](uint32_t h, uint32_t d, uint32_t row, uint32_t column) {
        if (row >= rows) return;
        const uint32_t two = pack<T>(finished(run.sums[d][2 * h], run.sum[h]), finished(run.sums[d][2 * h + 1], run.sum[h]));
        *reinterpret_cast<uint32_t*>(out + row * DIM + column) = two;
      });
      return;
    }
    const uint32_t first = from / line.quota, last = (to - 1) / line.quota;
    if (warp == 0) {
      const uint32_t slot = slot_of(blockIdx.x, last);
      each([&](uint32_t h, uint32_t d, uint32_t row, uint32_t column) {
        if (row >= rows) return;
        at<float2>(p.sums)[(uint64_t(slot) * ROWS + row) * (DIM / 2) + column / 2] =
            make_float2(run.sums[d][2 * h], run.sums[d][2 * h + 1]);
        if (column == 0) at<float2>(p.limits)[slot * ROWS + row] = make_float2(run.max[h], run.sum[h]);
      });
      __threadfence();
      __syncwarp();
      if (lane == 0) sh.arrived = atomicAdd(at<uint32_t>(p.plan) + first, 1u);
    }
    __syncthreads();
    if (sh.arrived == last - first) merge(cursor, first, last);
  }

  // Partial results of a block: of the row that ends in it, and of the one that goes on behind it.
  __device__ static uint32_t slot_of(uint32_t block, uint32_t last) { return 2 * block + (block == last ? 0 : 1); }

  // Partial results are folded a few at a time, whose loads run side by side.
  __device__ void merge(const Cursor& cursor, uint32_t first, uint32_t last) {
    constexpr uint32_t AT_ONCE = 8;
    __threadfence();
    T* out = out_of(cursor);
    for (uint32_t i = threadIdx.x; i < cursor.rows(p, line) * (DIM / 2); i += THREADS) {
      const uint32_t row = i / (DIM / 2);
      float top = -INFINITY, sum = 0;
      float2 x = make_float2(0, 0);
      for (uint32_t from = first; from <= last; from += AT_ONCE) {
        float2 limits[AT_ONCE], sums[AT_ONCE];
        float now = top;
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
          const uint64_t slot = slot_of(min(from + j, last), last);
          limits[j] = __ldcg(at<float2>(p.limits) + slot * ROWS + row);
          sums[j] = __ldcg(at<float2>(p.sums) + slot * ROWS * (DIM / 2) + i);
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) now = fmaxf(now, limits[j].x);
        const float keep = weight_of(top - now);
        sum *= keep, x.x *= keep, x.y *= keep;
        top = now;
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
          const float weight = from + j <= last ? weight_of(limits[j].x - top) : 0.0f;
          sum = fmaf(limits[j].y, weight, sum);
          x.x = fmaf(sums[j].x, weight, x.x);
          x.y = fmaf(sums[j].y, weight, x.y);
        }
      }
      reinterpret_cast<uint32_t*>(out)[i] = pack<T>(finished(x.x, sum), finished(x.y, sum));
    }
    if (threadIdx.x == 0) at<uint32_t>(p.plan)[first] = 0;
  }
};

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attention_stream(const AttentionParams& p) {
  using Shared = StreamShared<T, DIM>;
  YN_DYNAMIC_SHARED(dynamic);
  Shared& sh = *reinterpret_cast<Shared*>(dynamic);
  const Line line(p, reinterpret_cast<uint32_t*>(dynamic + sizeof(Shared)));
  if (line.from >= line.to) return wait_for_prior();
  Cursor cursor(p, line, line.from);
  Loader<T, DIM> loader(p, line, sh, cursor);
#pragma unroll
  for (uint32_t stage = 0; stage < Shared::STAGES; stage++) loader.load(stage);
  loader.load_first_query(cursor);
  Streamed<T, DIM> streamed{p, line, sh, threadIdx.x % 32, threadIdx.x / 32};
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

#define YN_STREAM(DIM, BLOCKS, SHARED)                                                                    \
  static_assert(sizeof(StreamShared<f16, DIM>) == SHARED, "mirrored in src/hal/cuda/ops/attention.rs");   \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                           \
      yn_attention_stream_##DIM##_f16(const __grid_constant__ AttentionParams p) {                        \
    let_next_start();                                                                                     \
    attention_stream<f16, DIM>(p);                                                                        \
  }                                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                           \
      yn_attention_stream_##DIM##_bf16(const __grid_constant__ AttentionParams p) {                       \
    let_next_start();                                                                                     \
    attention_stream<bf16, DIM>(p);                                                                       \
  }

YN_STREAM(64, 3, 70404)
YN_STREAM(128, 2, 100868)
