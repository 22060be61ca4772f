// paged_attention of several query tokens of a sequence (prefill chunks) on tensor cores: bound by arithmetic.
// Layouts as in attention.cuh; sequences with one token are left to the decode kernel.
//
// A block of four warps has a tile of rows, a row being one query head of one token: the heads that share a key head stand
// together, so a tile of 128 rows is 32 tokens of 4 heads and all share the keys and values that are loaded. Keys and values
// come in tiles of TILE tokens at absolute positions, copied asynchronously one tile ahead. A warp has 16 * BANDS rows:
// scores and weighted sums by mma m16n8k16, weights in f32 with a running maximum. Only tiles at the diagonal or at a
// window's edge are masked. The grid is bounded by T and S; a block finds its tile from starts, long ones first.
//
// Few tokens over a long context are few tiles with a long way each. Then a tile's keys are cut into `capacity` parts of whole
// key tiles, a block for each: it leaves weighted sums, maxima and sums of weights, [part][token][head] (`sums`, `limits`), and
// yn_attention_prefill_merge folds the parts in rising order, a thread for four columns of a token. Blocks then take every
// gridDim.x-th of at most `items` tiles.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64, 80, 96, 128, 256; the merge for f16 and bf16.
#include "attention_tile.cuh"

constexpr uint32_t THREADS = 128, WARPS = 4;

template <uint32_t DIM>
struct Shape {
  // What registers hold without spilling.
  static constexpr uint32_t BANDS = DIM == 80 || DIM > 128 ? 1 : 2, TILE = DIM <= 80 ? 64 : 32;
  static constexpr uint32_t ROWS = WARPS * 16 * BANDS, STRIDE = DIM + 8;
};

template <typename T, uint32_t DIM>
struct PrefillShared {
  T query[Shape<DIM>::ROWS][Shape<DIM>::STRIDE];
  T keys[2][Shape<DIM>::TILE][Shape<DIM>::STRIDE];
  T values[2][Shape<DIM>::TILE][Shape<DIM>::STRIDE];
  uint64_t rows[2][Shape<DIM>::TILE];  // addresses of keys; 0 outside of what is seen
  uint32_t found[2];
};

template <typename T, uint32_t DIM>
struct Prefill {
  using S = Shape<DIM>;
  static constexpr uint32_t TILE = S::TILE, BANDS = S::BANDS, PIECES = DIM / 8;
  const AttentionParams& p;
  PrefillShared<T, DIM>& sh;
  const uint32_t lane, warp, ratio, kv_head;
  QueryTile tile;
  KvRows<T> kv;
  uint32_t first_key, last_key;  // that any row of the tile sees

  __device__ uint32_t rows_left() const { return tile.tokens * ratio - tile.first_row; }
  // Row of a thread: `half` 0 or 1 of a band.
  __device__ uint32_t row_of(uint32_t band, uint32_t half) const {
    return (warp * BANDS + band) * 16 + half * 8 + lane / 4;
  }
  // Rows behind the last are treated as the last one.
  __device__ uint32_t position_of(uint32_t row) const {
    return tile.before + min(tile.first_row + row, tile.tokens * ratio - 1) / ratio;
  }
  __device__ uint32_t first_of(uint32_t position) const {
    return position >= p.window ? position - p.window + 1 : 0;
  }
  __device__ uint64_t element(uint32_t row, uint32_t all_heads) const {
    const uint32_t index = tile.first_row + row;
    return (uint64_t(tile.from + index / ratio) * all_heads + kv_head * ratio + index % ratio) * DIM;
  }

  __device__ void load_queries() {
    for (uint32_t i = threadIdx.x; i < S::ROWS * PIECES; i += THREADS) {
      const uint32_t row = i / PIECES, column = i % PIECES * 8;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row < rows_left()) {
        x = *reinterpret_cast<const uint4*>(at<T>(p.qkv) + element(row, p.heads + 2 * p.kv_heads) + column);
      }
      *reinterpret_cast<uint4*>(&sh.query[row][column]) = x;
    }
  }

  __device__ void locate(uint32_t start, uint32_t stage) {
    if (threadIdx.x >= TILE) return;
    const uint32_t position = start + threadIdx.x;
    uint64_t key = 0;
    if (position >= first_key && position <= last_key) {
      key = kv.key(position);
      if (key == 0) fault(p.fault, KV_BLOCK, tile.sequence, uint32_t(kv.table[position / kv.block_size]));
    }
    sh.rows[stage][threadIdx.x] = key;
  }

  __device__ void load(T (&to)[TILE][S::STRIDE], uint32_t stage, uint64_t offset) {
#pragma unroll
    for (uint32_t i = 0; i < TILE * PIECES / THREADS; i++) {
      const uint32_t piece = threadIdx.x + THREADS * i, row = piece / PIECES, column = piece % PIECES * 8;
      const uint64_t key = sh.rows[stage][row];
      const bool valid = key != 0;
      copy16_async(&to[row][column], at<T>(valid ? key + offset : p.pool) + (valid ? column : 0), valid);
    }
    static_assert(TILE * PIECES % THREADS == 0, "whole rounds of copies");
  }
  __device__ void load_tile(uint32_t stage) {
    load(sh.keys[stage], stage, 0);
    copy_commit();
    load(sh.values[stage], stage, kv.value_bytes);
    copy_commit();
  }

  float sums[BANDS][DIM / 8][4];
  float max[BANDS][2], sum[BANDS][2];

  __device__ void score(uint32_t stage, float (&s)[BANDS][TILE / 8][4]) {
#pragma unroll
    for (uint32_t b = 0; b < BANDS; b++) {
#pragma unroll
      for (uint32_t n = 0; n < TILE / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) s[b][n][i] = 0;
      }
    }
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t a[BANDS][4];
#pragma unroll
      for (uint32_t b = 0; b < BANDS; b++) {
        load_tiles(a[b], &sh.query[(warp * BANDS + b) * 16 + lane % 16][k * 16 + lane / 16 * 8]);
      }
#pragma unroll
      for (uint32_t n = 0; n < TILE / 16; n++) {
        uint32_t key[4];
        load_tiles(key, &sh.keys[stage][n * 16 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
#pragma unroll
        for (uint32_t b = 0; b < BANDS; b++) {
          mma<T>(s[b][2 * n], a[b], key[0], key[1]);
          mma<T>(s[b][2 * n + 1], a[b], key[2], key[3]);
        }
      }
    }
  }

  // Scores become weights; what was summed before shrinks.
  __device__ void weigh(uint32_t start, bool masked, float (&s)[BANDS][TILE / 8][4]) {
    const bool caps = p.soft_cap != 0.0f;
    const float unit = caps ? LOG2E : p.scale * LOG2E;
#pragma unroll
    for (uint32_t b = 0; b < BANDS; b++) {
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        if (caps) {
#pragma unroll
          for (uint32_t n = 0; n < TILE / 8; n++) {
            s[b][n][2 * h] = capped_fast(s[b][n][2 * h] * p.scale, p.soft_cap);
            s[b][n][2 * h + 1] = capped_fast(s[b][n][2 * h + 1] * p.scale, p.soft_cap);
          }
        }
        if (masked) {
          const uint32_t last = position_of(row_of(b, h)), first = first_of(last);
#pragma unroll
          for (uint32_t n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
              const uint32_t key = start + n * 8 + lane % 4 * 2 + i;
              if (key < first || key > last) s[b][n][2 * h + i] = -INFINITY;
            }
          }
        }
        float top = max[b][h];
#pragma unroll
        for (uint32_t n = 0; n < TILE / 8; n++) top = fmaxf(top, fmaxf(s[b][n][2 * h], s[b][n][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
        // Nothing seen so far: any finite number will do.
        const float shift = top == -INFINITY ? 0.0f : top * unit;
        const float keep = weight_of(fmaf(max[b][h], unit, -shift));
        max[b][h] = top;
        sum[b][h] *= keep;
#pragma unroll
        for (uint32_t n = 0; n < TILE / 8; n++) {
#pragma unroll
          for (uint32_t i = 0; i < 2; i++) {
            s[b][n][2 * h + i] = weight_of(fmaf(s[b][n][2 * h + i], unit, -shift));
            sum[b][h] += s[b][n][2 * h + i];
          }
        }
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
          sums[b][d][2 * h] *= keep;
          sums[b][d][2 * h + 1] *= keep;
        }
      }
    }
  }

  __device__ void accumulate(uint32_t stage, const float (&s)[BANDS][TILE / 8][4]) {
#pragma unroll
    for (uint32_t n = 0; n < TILE / 16; n++) {
      uint32_t a[BANDS][4];
#pragma unroll
      for (uint32_t b = 0; b < BANDS; b++) {
        a[b][0] = pack<T>(s[b][2 * n][0], s[b][2 * n][1]);
        a[b][1] = pack<T>(s[b][2 * n][2], s[b][2 * n][3]);
        a[b][2] = pack<T>(s[b][2 * n + 1][0], s[b][2 * n + 1][1]);
        a[b][3] = pack<T>(s[b][2 * n + 1][2], s[b][2 * n + 1][3]);
      }
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) {
        uint32_t v[4];
        load_tiles_transposed(v, &sh.values[stage][n * 16 + lane % 16][d * 16 + lane / 16 * 8]);
#pragma unroll
        for (uint32_t b = 0; b < BANDS; b++) {
          mma<T>(sums[b][2 * d], a[b], v[0], v[1]);
          mma<T>(sums[b][2 * d + 1], a[b], v[2], v[3]);
        }
      }
    }
  }

  // One part of several. A row that sees no key of it has a maximum of -infinity and sums that nobody reads.
  __device__ void store_part(bool empty) {
    const float unit = p.soft_cap != 0.0f ? LOG2E : p.scale * LOG2E;
    const uint64_t part = uint64_t(blockIdx.z) * uint32_t(at<int>(p.starts)[p.sequences]);
#pragma unroll
    for (uint32_t b = 0; b < BANDS; b++) {
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        float total = sum[b][h];
        total += __shfl_xor_sync(ALL, total, 1);
        total += __shfl_xor_sync(ALL, total, 2);
        const uint32_t row = row_of(b, h), index = tile.first_row + row;
        if (row >= rows_left()) continue;
        const uint64_t place = (part + tile.from + index / ratio) * p.heads + kv_head * ratio + index % ratio;
        const bool none = empty || max[b][h] == -INFINITY;
        if (lane % 4 == 0) at<float2>(p.limits)[place] = make_float2(none ? -INFINITY : max[b][h] * unit, total);
        if (none) continue;
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
          at<float2>(p.sums)[(place * DIM + d * 8) / 2 + lane % 4] = make_float2(sums[b][d][2 * h], sums[b][d][2 * h + 1]);
        }
      }
    }
  }

  // Through the warp's own rows of the query tile, for wide stores.
  __device__ void store() {
#pragma unroll
    for (uint32_t b = 0; b < BANDS; b++) {
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        float total = sum[b][h];
        total += __shfl_xor_sync(ALL, total, 1);
        total += __shfl_xor_sync(ALL, total, 2);
        const float inverse = 1.0f / total;
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
          *reinterpret_cast<uint32_t*>(&sh.query[row_of(b, h)][d * 8 + lane % 4 * 2]) =
              pack<T>(sums[b][d][2 * h] * inverse, sums[b][d][2 * h + 1] * inverse);
        }
      }
    }
    __syncwarp();
    for (uint32_t i = lane; i < 16 * BANDS * PIECES; i += 32) {
      const uint32_t row = warp * BANDS * 16 + i / PIECES, column = i % PIECES * 8;
      if (row >= rows_left()) break;
      *reinterpret_cast<uint4*>(at<T>(p.out) + element(row, p.heads) + column) =
          *reinterpret_cast<const uint4*>(&sh.query[row][column]);
    }
  }

  __device__ void run() {
    const uint32_t low = position_of(0);
    last_key = position_of(S::ROWS - 1);
    first_key = first_of(low);
    const uint32_t high_first = first_of(last_key);
    // Whole key tiles, in `parts` equal shares.
    const uint32_t parts = gridDim.z;
    const uint32_t share = ((last_key / TILE - first_key / TILE) / parts + 1) * TILE;
    const uint32_t first_start = first_key / TILE * TILE + blockIdx.z * share;
    const uint32_t end = min(last_key, first_start + share - 1);  // of this part
#pragma unroll
    for (uint32_t b = 0; b < BANDS; b++) {
#pragma unroll
      for (uint32_t d = 0; d < DIM / 8; d++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) sums[b][d][i] = 0;
      }
      max[b][0] = max[b][1] = -INFINITY;
      sum[b][0] = sum[b][1] = 0;
    }
    if (first_start > last_key) {
      store_part(true);
      __syncthreads();  // all have read which tile this was
      return;
    }
    load_queries();
    locate(first_start, 0);
    __syncthreads();
    load_tile(0);
    uint32_t stage = 0;
    for (uint32_t start = first_start; start <= end; start += TILE, stage ^= 1) {
      const bool more = start + TILE <= end;
      if (more) locate(start + TILE, stage ^ 1);
      copy_wait<1>();  // this tile's keys
      __syncthreads();
      if (more) {
        load_tile(stage ^ 1);
      } else {
        copy_commit();
        copy_commit();
      }
      float s[BANDS][TILE / 8][4];
      score(stage, s);
      weigh(start, start + TILE > low + 1 || start < high_first, s);
      copy_wait<2>();  // its values
      __syncthreads();
      accumulate(stage, s);
    }
    copy_wait<0>();
    if (parts > 1) store_part(false);
    else store();
  }
};

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attention_prefill(const AttentionParams& p) {
  YN_DYNAMIC_SHARED(dynamic);
  PrefillShared<T, DIM>& sh = *reinterpret_cast<PrefillShared<T, DIM>*>(dynamic);
#pragma unroll 1
  for (uint32_t number = blockIdx.x; number < p.items; number += gridDim.x) {
    QueryTile tile;
    if (!find_tile(p, number, Shape<DIM>::ROWS, sh.found, tile)) return;
    Prefill<T, DIM> prefill{p,          sh,   threadIdx.x % 32, threadIdx.x / 32, p.heads / p.kv_heads,
                            blockIdx.y, tile, KvRows<T>(p, tile.sequence, blockIdx.y)};
    prefill.run();
  }
}

template <typename T>
__device__ __forceinline__ void attention_prefill_merge(const AttentionParams& p) {
  const uint32_t tokens = uint32_t(at<int>(p.starts)[p.sequences]);
  // The first `first_item` sequences, and so the first tokens, stand alone.
  const uint64_t width = uint64_t(p.heads) * p.head_dim;
  const uint64_t index = p.first_item * width + 4 * (blockIdx.x * uint64_t(blockDim.x) + threadIdx.x);
  if (index >= tokens * width) return;
  const uint64_t row = index / p.head_dim;
  const Item item = item_at(p, uint32_t(index / width) - p.first_item);
  const int* starts = at<int>(p.starts);
  // The decode kernel has taken sequences of one token.
  if (!item.active || starts[item.sequence + 1] - starts[item.sequence] == 1) return;
  Fold fold;
  fold.begin();
  float x[4] = {};
  for (uint32_t part = 0; part < p.capacity; part++) {
    const float2 limit = at<float2>(p.limits)[part * uint64_t(tokens) * p.heads + row];
    if (limit.x == -INFINITY) continue;
    const float4 sums = at<float4>(p.sums)[(part * tokens * width + index) / 4];
    fold.with(limit.x, limit.y);
    x[0] = fold.weighted(x[0], sums.x);
    x[1] = fold.weighted(x[1], sums.y);
    x[2] = fold.weighted(x[2], sums.z);
    x[3] = fold.weighted(x[3], sums.w);
  }
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) at<T>(p.out)[index + i] = narrowed<T>(finished(x[i], fold.sum));
}

extern "C" __global__ void __launch_bounds__(THREADS) yn_attention_prefill_merge_f16(const __grid_constant__ AttentionParams p) {
  after_prior();
  attention_prefill_merge<f16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) yn_attention_prefill_merge_bf16(const __grid_constant__ AttentionParams p) {
  after_prior();
  attention_prefill_merge<bf16>(p);
}

#define YN_PREFILL(DIM)                                                                                   \
  static_assert(sizeof(PrefillShared<f16, DIM>) == (Shape<DIM>::ROWS + 4 * Shape<DIM>::TILE) * (DIM + 8) * 2 +             \
                    Shape<DIM>::TILE * 16 + 8, "mirrored in src/hal/cuda/ops/attention.rs");              \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                   \
      yn_attention_prefill_##DIM##_f16(const __grid_constant__ AttentionParams p) {                       \
    after_prior();                                                                                        \
    attention_prefill<f16, DIM>(p);                                                                       \
  }                                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                   \
      yn_attention_prefill_##DIM##_bf16(const __grid_constant__ AttentionParams p) {                      \
    after_prior();                                                                                        \
    attention_prefill<bf16, DIM>(p);                                                                      \
  }

YN_PREFILL(64)
YN_PREFILL(80)
YN_PREFILL(96)
YN_PREFILL(128)
YN_PREFILL(256)
