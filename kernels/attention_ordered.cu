// paged_attention of several query tokens of a sequence in exactly the order of the decode kernel: a token has the same bits
// whether it is prefilled, in whatever chunk, or decoded. Layouts as in attention.cuh; sequences with one token are left to
// the decode kernel. Bound by arithmetic.
//
// A block of eight warps has a tile of 128 rows, 16 for each warp. Keys and values come a stream of a chunk at a time (four
// groups of 16 tokens, 64 apart), copied asynchronously one stream ahead. A stream's result stays in registers and is folded
// into the chunk's, also there; the fold of chunks lies in shared memory, where each thread keeps its own numbers. Groups
// that no row of a warp sees are left out; a row that sees no key of a group or chunk takes nothing from it.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64, 80, 96, 128. Longer heads do not fit: their
// tokens go through the decode kernel one by one.
#include "attention_tile.cuh"

constexpr uint32_t THREADS = 256, WARPS = 8, ROWS = 16 * WARPS, TILE = GROUPS * GROUP;

// Where a row's eighth numbers stand: pieces of whole 128-byte rows are swapped by the row's number, other rows are padded
// to an odd number of pieces, so that eight rows touch all banks.
template <uint32_t DIM>
struct Rows {
  static constexpr bool SWAPPED = DIM % 64 == 0;
  static constexpr uint32_t STRIDE = SWAPPED ? DIM : DIM + 8;
  __device__ static uint32_t at(uint32_t row, uint32_t piece) {
    return row * STRIDE + (SWAPPED ? piece ^ row % 8 : piece) * 8;
  }
};

template <typename T, uint32_t DIM>
struct OrderedShared {
  T query[ROWS * Rows<DIM>::STRIDE];
  T keys[2][TILE * Rows<DIM>::STRIDE];
  T values[2][TILE * Rows<DIM>::STRIDE];
  float4 totals[WARPS][DIM / 8][32];
  uint64_t rows[2][TILE];  // addresses of keys; 0 outside of what is seen
  uint32_t found[2];
  uint32_t unused[2];
};

// A fold of a thread's two rows.
struct Folds {
  Fold of[2];

  __device__ void begin() { of[0].begin(), of[1].begin(); }
  __device__ void with(const float (&max)[2], const float (&sum)[2]) {
    of[0].with_any(max[0], sum[0]);
    of[1].with_any(max[1], sum[1]);
  }
};

template <typename T, uint32_t DIM>
struct Ordered {
  using R = Rows<DIM>;
  static constexpr uint32_t PIECES = DIM / 8;
  const AttentionParams& p;
  OrderedShared<T, DIM>& sh;
  const uint32_t lane, warp, ratio, kv_head;
  QueryTile tile;
  KvRows<T> kv;
  uint32_t first_key, last_key;  // that any row of the tile sees
  uint32_t warp_first, warp_last;  // that any row of the warp sees
  uint32_t every_first, every_last;  // that all rows of the warp see
  Seen seen;

  __device__ uint32_t rows_left() const { return tile.tokens * ratio - tile.first_row; }
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

  // Streams are numbered over all chunks: this is where the first group of one begins.
  __device__ static uint32_t start_of(uint32_t stream) { return stream / STREAMS * CHUNK + stream % STREAMS * GROUP; }
  __device__ static bool meets(uint32_t group, uint32_t first, uint32_t last) {
    return group <= last && group + GROUP > first;
  }
  // The next stream with a key that the tile sees; `end` behind the last.
  __device__ uint32_t next(uint32_t stream, uint32_t end) const {
    for (; stream < end; stream++) {
#pragma unroll
      for (uint32_t g = 0; g < GROUPS; g++) {
        if (meets(start_of(stream) + g * STREAMS * GROUP, first_key, last_key)) return stream;
      }
    }
    return end;
  }

  __device__ void look() {
    const uint32_t low = position_of(16 * warp), high = position_of(16 * warp + 15);
    warp_first = first_of(low), warp_last = high;
    every_first = first_of(high), every_last = low;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      seen.last[h] = position_of(16 * warp + 8 * h + lane / 4);
      seen.first[h] = first_of(seen.last[h]);
    }
    last_key = position_of(ROWS - 1);
    first_key = first_of(position_of(0));
  }

  __device__ void load_queries() {
    for (uint32_t i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
      const uint32_t row = i / PIECES, piece = i % PIECES;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row < rows_left()) {
        x = *reinterpret_cast<const uint4*>(at<T>(p.qkv) + element(row, p.heads + 2 * p.kv_heads) + 8 * piece);
      }
      *reinterpret_cast<uint4*>(&sh.query[R::at(row, piece)]) = x;
    }
  }

  __device__ void locate(uint32_t stream, uint32_t stage) {
    if (threadIdx.x >= TILE) return;
    const uint32_t position = start_of(stream) + threadIdx.x / GROUP * STREAMS * GROUP + threadIdx.x % GROUP;
    uint64_t key = 0;
    if (position >= first_key && position <= last_key) {
      key = kv.key(position);
      if (key == 0) fault(p.fault, KV_BLOCK, tile.sequence, uint32_t(kv.table[position / kv.block_size]));
    }
    sh.rows[stage][threadIdx.x] = key;
  }
  __device__ void load(uint32_t stage) {
    for (uint32_t i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
      const uint32_t row = i / PIECES, piece = i % PIECES;
      const uint64_t key = sh.rows[stage][row];
      const bool valid = key != 0;
      const T* from = at<T>(valid ? key : p.pool) + (valid ? 8 * piece : 0);
      const T* values = at<T>(valid ? key + kv.value_bytes : p.pool) + (valid ? 8 * piece : 0);
      copy16_async(&sh.keys[stage][R::at(row, piece)], from, valid);
      copy16_async(&sh.values[stage][R::at(row, piece)], values, valid);
    }
  }

  Running<DIM> run;        // of a stream
  float chunk[DIM / 8][4];  // of a chunk
  Folds of_chunk, of_all;

  // COUNT groups of a stream, from number `first` on; `start` is the stream's.
  template <uint32_t COUNT>
  __device__ void groups(uint32_t stage, uint32_t start, uint32_t first) {
    float s[COUNT][2][4];
#pragma unroll
    for (uint32_t g = 0; g < COUNT; g++) {
#pragma unroll
      for (uint32_t i = 0; i < 8; i++) s[g][i / 4][i % 4] = 0;
    }
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t a[4];
      load_tiles(a, &sh.query[R::at(16 * warp + lane % 16, 2 * k + lane / 16)]);
#pragma unroll
      for (uint32_t g = 0; g < COUNT; g++) {
        uint32_t key[4];
        load_tiles(key, &sh.keys[stage][R::at((first + g) * GROUP + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2)]);
        mma<T>(s[g][0], a, key[0], key[1]);
        mma<T>(s[g][1], a, key[2], key[3]);
      }
    }
#pragma unroll
    for (uint32_t g = 0; g < COUNT; g++) {
      const uint32_t from = start + (first + g) * STREAMS * GROUP;
      const bool masked = from < every_first || from + GROUP - 1 > every_last;
      uint32_t a[4];
      weigh_group<T, DIM>(p, from, seen, masked, s[g], run, a);
#pragma unroll
      for (uint32_t d = 0; d < DIM / 16; d++) {
        uint32_t v[4];
        load_tiles_transposed(v, &sh.values[stage][R::at((first + g) * GROUP + lane % 16, 2 * d + lane / 16)]);
        mma<T>(run.sums[2 * d], a, v[0], v[1]);
        mma<T>(run.sums[2 * d + 1], a, v[2], v[3]);
      }
    }
  }

  __device__ void attend(uint32_t stream, uint32_t stage) {
    const uint32_t start = start_of(stream);
    uint32_t wanted = 0;
#pragma unroll
    for (uint32_t g = 0; g < GROUPS; g++) {
      wanted |= uint32_t(meets(start + g * STREAMS * GROUP, warp_first, warp_last)) << g;
    }
    if (wanted == 0) return;
    run.begin();
    if (wanted == (1u << GROUPS) - 1) {
      groups<GROUPS>(stage, start, 0);
    } else {
#pragma unroll 1
      for (uint32_t g = 0; g < GROUPS; g++) {
        if (wanted >> g & 1) groups<1>(stage, start, g);
      }
    }
    run.end();
    of_chunk.with(run.max, run.sum);
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) chunk[d][i] = of_chunk.of[i / 2].weighted(chunk[d][i], run.sums[d][i]);
    }
  }

  __device__ void begin_chunk() {
    of_chunk.begin();
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) chunk[d][i] = 0;
    }
  }
  __device__ void close_chunk(bool first) {
    const float max[2] = {of_chunk.of[0].max, of_chunk.of[1].max}, sum[2] = {of_chunk.of[0].sum, of_chunk.of[1].sum};
    of_all.with(max, sum);
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
      float4& total = sh.totals[warp][d][lane];
      const float4 old = first ? make_float4(0, 0, 0, 0) : total;
      total = make_float4(of_all.of[0].weighted(old.x, chunk[d][0]), of_all.of[0].weighted(old.y, chunk[d][1]),
                          of_all.of[1].weighted(old.z, chunk[d][2]), of_all.of[1].weighted(old.w, chunk[d][3]));
    }
    begin_chunk();
  }

  // Through the warp's own rows of the query tile, for wide stores.
  __device__ void store() {
    const uint32_t row = 16 * warp + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
      const float4 x = sh.totals[warp][d][lane];
      *reinterpret_cast<uint32_t*>(&sh.query[R::at(row, d) + column]) =
          pack<T>(finished(x.x, of_all.of[0].sum), finished(x.y, of_all.of[0].sum));
      *reinterpret_cast<uint32_t*>(&sh.query[R::at(row + 8, d) + column]) =
          pack<T>(finished(x.z, of_all.of[1].sum), finished(x.w, of_all.of[1].sum));
    }
    __syncwarp();
    for (uint32_t i = lane; i < 16 * PIECES; i += 32) {
      const uint32_t from = 16 * warp + i / PIECES, piece = i % PIECES;
      if (from >= rows_left()) break;
      *reinterpret_cast<uint4*>(at<T>(p.out) + element(from, p.heads) + 8 * piece) =
          *reinterpret_cast<const uint4*>(&sh.query[R::at(from, piece)]);
    }
  }

  __device__ void go() {
    look();
    load_queries();
    const uint32_t end = (last_key / CHUNK + 1) * STREAMS;
    uint32_t now = next(first_key / CHUNK * STREAMS, end), then = next(now + 1, end);
    locate(now, 0);
    __syncthreads();
    load(0);
    copy_commit();
    if (then < end) locate(then, 1);
    begin_chunk();
    of_all.begin();
    bool first = true;
    for (uint32_t stage = 0; now < end; stage ^= 1) {
      copy_wait<0>();
      __syncthreads();  // this stream has come, and the one before it is no longer read
      if (then < end) load(stage ^ 1);
      copy_commit();
      const uint32_t after = next(then + 1, end);
      if (after < end) locate(after, stage);  // whose addresses were all read before the barrier
      attend(now, stage);
      if (then >= end || then / STREAMS != now / STREAMS) {
        close_chunk(first);
        first = false;
      }
      now = then;
      then = after;
    }
    copy_wait<0>();
    __syncwarp();
    store();
  }
};

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attention_ordered(const AttentionParams& p) {
  YN_DYNAMIC_SHARED(dynamic);
  OrderedShared<T, DIM>& sh = *reinterpret_cast<OrderedShared<T, DIM>*>(dynamic);
  QueryTile tile;
  if (!find_tile(p, blockIdx.x, ROWS, sh.found, tile)) return;
  Ordered<T, DIM> ordered{p,          sh,   threadIdx.x % 32, threadIdx.x / 32, p.heads / p.kv_heads,
                          blockIdx.y, tile, KvRows<T>(p, tile.sequence, blockIdx.y)};
  ordered.go();
}

#define YN_ORDERED(DIM)                                                                                   \
  static_assert(sizeof(OrderedShared<f16, DIM>) == 768 * Rows<DIM>::STRIDE + 512 * DIM + 1040,            \
                "mirrored in src/hal/cuda/ops/attention.rs");                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                \
      yn_attention_ordered_##DIM##_f16(const __grid_constant__ AttentionParams p) {                       \
    after_prior();                                                                                        \
    attention_ordered<f16, DIM>(p);                                                                       \
  }                                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                \
      yn_attention_ordered_##DIM##_bf16(const __grid_constant__ AttentionParams p) {                      \
    after_prior();                                                                                        \
    attention_ordered<bf16, DIM>(p);                                                                      \
  }

YN_ORDERED(64)
YN_ORDERED(80)
YN_ORDERED(96)
YN_ORDERED(128)
