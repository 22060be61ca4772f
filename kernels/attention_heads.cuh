// Decodes of mode `fast`, as attention_stream and attention_rows compute them: rows of up to 8 or 16 query heads of one key head of
// one item, whose keys are cut into steps of 64 at absolute positions, of which each of a block's four warps has 16.
//
// Products stand on their heads: keys by queries, then values by weights, so that eight heads fill a tile. A max only moves, and
// sums are only scaled, when a score is far above it.
#pragma once
#include "attention.cuh"

constexpr uint32_t THREADS = 128, WARPS = 4, TILE = 8, STEP = WARPS * GROUP;
// How far above a row's max a score must be to move it, in powers of two: weights stay below 2^SLACK.
constexpr float SLACK = 8;

__device__ __forceinline__ uint32_t steps_of(const Item& item) {
  return item.active ? item.position / STEP - item.first_key / STEP + 1 : 0;
}

__device__ __noinline__ Item item_searched(const AttentionParams& p, uint32_t index) { return item_at(p, index); }

// The item, found at once where all sequences have one token.
__device__ __forceinline__ Item item_near(const AttentionParams& p, uint32_t index) {
  const int* starts = at<int>(p.starts);
  const uint32_t token = p.first_item + index;
  if (p.by_sequence || token >= p.sequences) return item_searched(p, index);
  const uint32_t from = uint32_t(starts[token]), to = uint32_t(starts[token + 1]);
  const uint32_t context = uint32_t(at<int>(p.context_lens)[token]);
  if (from != token || to != token + 1) return item_searched(p, index);
  Item item{};
  item.sequence = item.token = token;
  item.active = context > 0;
  if (!item.active) return item;
  item.fresh = item.position = context - 1;
  item.first_key = item.position >= p.window ? item.position - p.window + 1 : 0;
  return item;
}

// So many of sixteen bytes from global to shared memory, and zeros behind them.
__device__ __forceinline__ void copy16_sized(uint32_t to, uint64_t from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Pieces of 16 bytes change places by their row, so that tiles of 8 rows touch all banks.
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t column) { return column ^ row % 8 * 8; }

// Tokens `from..to` of a warp's group, whose first piece of this lane stands at `from_keys`, into a stage; zeros for the others, as a
// block can hold anything there.
template <bool WHOLE, typename T, uint32_t DIM>
__device__ __forceinline__ void copy_group(T (&keys)[GROUP][DIM], T (&values)[GROUP][DIM], uint64_t from_keys,
                                           uint64_t value_bytes, uint32_t from, uint32_t to) {
  constexpr uint32_t PIECES = DIM / 8;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t first_keys = shared_address(keys), first_values = shared_address(values);
#pragma unroll
  for (uint32_t i = 0; i < GROUP * PIECES / 32; i++) {
    const uint32_t token = lane / PIECES + i * (32 / PIECES);
    const uint32_t place = 2 * (token * DIM + swizzled(token, lane % PIECES * 8));
    const uint32_t bytes = WHOLE || (token >= from && token < to) ? 16 : 0;
    copy16_sized(first_keys + place, from_keys + i * 512, bytes);
    copy16_sized(first_values + place, from_keys + value_bytes + i * 512, bytes);
  }
}

// All threads of a block: the queries of `heads` heads, which stand one behind the other. Rows behind the last are zeros.
template <typename T, uint32_t DIM, uint32_t ROWS>
__device__ __forceinline__ void copy_queries(T (&to)[ROWS][DIM + 8], const T* from, uint32_t heads) {
  constexpr uint32_t PIECES = DIM / 8;
#pragma unroll
  for (uint32_t i = 0; i < (ROWS * PIECES + THREADS - 1) / THREADS; i++) {
    const uint32_t piece = threadIdx.x + THREADS * i, r = piece / PIECES, column = piece % PIECES * 8;
    if (ROWS * PIECES % THREADS != 0 && r >= ROWS) break;
    const bool valid = r < heads;
    copy16_async(&to[r][column], valid ? from + r * DIM + column : from, valid);
  }
}

// Running result of the heads of a row over a warp's keys. Of sums a thread has dimensions lane / 4 and lane / 4 + 8 of each
// sixteen, of heads lane % 4 * 2 and the next of each tile. `Shared` has keys and values by warp and stage.
template <typename T, uint32_t DIM, uint32_t TILES, typename Shared>
struct Heads {
  static constexpr uint32_t ROWS = TILES * TILE, PAIRS = DIM / 2;
  const AttentionParams& p;
  Shared& sh;
  const uint32_t lane, warp;
  uint32_t queries[DIM / 16][TILES][2];
  float sums[TILES][DIM / 16][4];
  float max[TILES][2], sum[TILES][2];  // of scores in powers of two; of the thread's own weights

  __device__ Heads(const AttentionParams& p, Shared& sh) : p(p), sh(sh), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {}

  __device__ void begin() {
#pragma unroll
    for (uint32_t t = 0; t < TILES; t++) {
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) sums[t][d][i] = 0;
      }
      max[t][0] = max[t][1] = -INFINITY;
      sum[t][0] = sum[t][1] = 0;
    }
  }

  // Begins a row, whose queries stand here.
  __device__ void take_queries(const T (&of)[ROWS][DIM + 8]) {
#pragma unroll
    for (uint32_t t = 0; t < TILES; t++) {
#pragma unroll
      for (uint32_t k = 0; k < DIM / 16; k += 2) {
        uint32_t b[4];
        load_tiles(b, &of[t * TILE + lane % 8][k * 16 + lane / 8 * 8]);
        queries[k][t][0] = b[0], queries[k][t][1] = b[1];
        queries[k + 1][t][0] = b[2], queries[k + 1][t][1] = b[3];
      }
    }
    begin();
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

  // The warp's keys of the step at `step_start`, of which the row sees `first` to `last`.
  __device__ void attend(uint32_t step_start, uint32_t first, uint32_t last, uint32_t stage) {
    const uint32_t start = step_start + warp * GROUP;
    if (start > last || start + GROUP <= first) return;
    float s[TILES][2][4] = {};
    const uint32_t row = lane % 16;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t a[4];
      load_tiles(a, &sh.keys[warp][stage][row][swizzled(row, k * 16 + lane / 16 * 8)]);
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
      load_tiles_transposed(a, &sh.values[warp][stage][key][swizzled(key, d * 16 + lane / 8 % 2 * 8)]);
#pragma unroll
      for (uint32_t t = 0; t < TILES; t++) mma<T>(sums[t][d], a, b[t][0], b[t][1]);
    }
  }

  // What the warp has of a tile, for all threads.
  __device__ void leave(uint32_t t) {
    auto& left = sh.sums(warp);
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
      const uint32_t head = lane % 4 * 2 + j;
      float all = sum[t][j];
#pragma unroll
      for (uint32_t width = 4; width < 32; width *= 2) all += __shfl_xor_sync(ALL, all, width);
      if (lane < 4) sh.max[warp][t * TILE + head] = max[t][j], sh.sum[warp][t * TILE + head] = all;
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) {
        left[head][d * 16 + lane / 4] = sums[t][d][j];
        left[head][d * 16 + lane / 4 + 8] = sums[t][d][j + 2];
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
          const float2 part = *reinterpret_cast<const float2*>(&sh.sums(w)[head][i % PAIRS * 2]);
          all = fmaf(sh.sum[w][row], weight, all);
          x.x = fmaf(part.x, weight, x.x);
          x.y = fmaf(part.y, weight, x.y);
        }
        each(row, i % PAIRS, x, top, all);
      }
    }
  }

  // Leaves the partial result of a piece in rows `slot` and further; true in the block that is the last of `pieces` at `counter`.
  __device__ bool leave_piece(uint32_t rows, uint64_t slot, uint32_t counter, uint32_t pieces) {
    fold(rows, [&](uint32_t row, uint32_t pair, float2 x, float top, float all) {
      at<float2>(p.sums)[(slot + row) * PAIRS + pair] = x;
      if (pair == 0) at<float2>(p.limits)[slot + row] = make_float2(top, all);
    });
    return last_to_arrive(counter, pieces);
  }

  // Whether this is the last of so many blocks, whose partial results it then sees.
  __device__ bool last_to_arrive(uint32_t counter, uint32_t pieces) {
    __threadfence();
    __syncthreads();
    uint32_t* arrived = at<uint32_t>(p.plan) + counter;
    if (threadIdx.x == 0) {
      sh.arrived = atomicAdd(arrived, 1u);
      if (sh.arrived == pieces - 1) *arrived = 0;
    }
    __syncthreads();
    return sh.arrived == pieces - 1;
  }

  __device__ void store(uint32_t* out, uint32_t rows) {
    fold(rows, [&](uint32_t row, uint32_t pair, float2 x, float, float all) {
      out[row * PAIRS + pair] = pack<T>(finished(x.x, all), finished(x.y, all));
    });
  }

  // Partial results are folded a few at a time, whose loads run side by side.
  // `slot_of(i)` is the first row of that of piece i.
  template <typename SlotOf>
  __device__ void merge(uint32_t* out, uint32_t rows, uint32_t first, uint32_t last, const SlotOf& slot_of) const {
    constexpr uint32_t AT_ONCE = 8;
    __threadfence();
    for (uint32_t i = threadIdx.x; i < rows * PAIRS; i += THREADS) {
      float top = -INFINITY, all = 0;
      float2 x = make_float2(0, 0);
      for (uint32_t from = first; from <= last; from += AT_ONCE) {
        float2 limits[AT_ONCE], parts[AT_ONCE];
        float now = top;
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
          const uint64_t slot = slot_of(min(from + j, last));
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
  }
};
