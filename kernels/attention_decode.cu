// paged_attention of single query tokens (decodes) on tensor cores: bound by reading the cache once. See attention.cuh.
//
// A block of four warps takes one chunk of 256 keys of one item and up to 16 query heads of one key head, which share every
// key and value it loads. A warp has groups of 16 tokens of its own (every fourth) and streams them through its own ring of
// asynchronous 16-byte copies, so no barrier stands in the loop: scores by mma m16n8k16, weights in f32 with a running
// maximum, weighted sums in registers. The four warps' results are folded at the end of a chunk, in their order. The grid
// is fixed and each block finds its units itself from starts and context_lens, so a captured launch replays for any lengths.
// Instances: f16 and bf16 (activations and cache alike) x head dimensions 64, 80, 96, 128, 256.
#include "attention.cuh"

constexpr uint32_t THREADS = 128, WARPS = STREAMS, ROWS = 16;

template <typename T, uint32_t DIM>
struct Ring {
  static constexpr uint32_t STAGES = DIM <= 96 ? 3 : 2;  // three blocks of 128 columns fit a multiprocessor
  // Tiles of 8 rows touch all banks: pieces of 16 bytes change places by their row, or a row has an odd number of them.
  static constexpr bool SWIZZLES = DIM % 64 == 0;
  static constexpr uint32_t STRIDE = SWIZZLES ? DIM : DIM + 8;
  __device__ static constexpr uint32_t place(uint32_t row, uint32_t column) {
    return SWIZZLES ? column ^ row % 8 * 8 : column;
  }
  T keys[STAGES][GROUP][STRIDE];
  T values[STAGES][GROUP][STRIDE];
};

template <typename T, uint32_t DIM>
struct DecodeShared {
  Ring<T, DIM> rings[WARPS];
  T query[ROWS][DIM + 8];
  float warp_max[WARPS][ROWS], warp_sum[WARPS][ROWS];
  float max[ROWS], sum[ROWS];
  float keep[WARPS][ROWS], take[WARPS][ROWS];
  Fold folds[ROWS];
};

// A warp's work on one chunk.
template <typename T, uint32_t DIM>
struct Stream {
  static constexpr uint32_t STAGES = Ring<T, DIM>::STAGES, PIECES = DIM / 8;
  Ring<T, DIM>& ring;
  const uint32_t lane, warp;
  uint32_t first, last;      // positions of the first and the last key the query sees
  uint32_t chunk_start;
  uint64_t rows[2];          // key addresses of tokens lane % 16 of groups lane / 16 and 2 + lane / 16
  uint64_t value_bytes;

  __device__ uint32_t start_of(uint32_t group) const { return chunk_start + (group * WARPS + warp) * GROUP; }
  __device__ bool wanted(uint32_t group) const {
    const uint32_t start = start_of(group);
    return group < GROUPS && start <= last && start + GROUP > first;
  }

  __device__ void locate(const AttentionParams& p, const KvRows<T>& kv, uint32_t sequence) {
    value_bytes = kv.value_bytes;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
      const uint32_t position = start_of(2 * i + lane / 16) + lane % 16;
      rows[i] = 0;
      if (position < first || position > last) continue;
      rows[i] = kv.key(position);
      if (rows[i] == 0) fault(p.fault, KV_BLOCK, sequence, uint32_t(kv.table[position / kv.block_size]));
    }
  }

  __device__ void load(const AttentionParams& p, uint32_t group) {
    const uint32_t stage = group % STAGES;
#pragma unroll
    for (uint32_t i = 0; i < GROUP * PIECES / 32; i++) {
      const uint32_t piece = lane + 32 * i, row = piece / PIECES, column = piece % PIECES * 8;
      const uint64_t key = __shfl_sync(ALL, group < 2 ? rows[0] : rows[1], int(group % 2 * 16 + row));
      const bool valid = key != 0;
      const T* from = at<T>(valid ? key : p.pool) + (valid ? column : 0);
      const T* values = at<T>(valid ? key + value_bytes : p.pool) + (valid ? column : 0);
      const uint32_t place = Ring<T, DIM>::place(row, column);
      copy16_async(&ring.keys[stage][row][place], from, valid);
      copy16_async(&ring.values[stage][row][place], values, valid);
    }
  }
};

// Fragments of a tile of queries.
template <typename T, uint32_t DIM>
__device__ __forceinline__ void load_query(const T (&query)[ROWS][DIM + 8], uint32_t k, uint32_t (&a)[4]) {
  const uint32_t lane = threadIdx.x % 32;
  load_tiles(a, &query[lane % 16][k * 16 + lane / 16 * 8]);
}

// Fragments of the query that stay in registers.
template <uint32_t DIM>
constexpr uint32_t KEPT = DIM <= 96 ? DIM / 16 : 1;

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attend_group(const AttentionParams& p, const Stream<T, DIM>& stream, uint32_t group,
                                             const T (&query)[ROWS][DIM + 8], const uint32_t (&kept)[KEPT<DIM>][4],
                                             Running<DIM>& run) {
  const uint32_t lane = threadIdx.x % 32, stage = group % Stream<T, DIM>::STAGES;
  float s[2][4] = {};
#pragma unroll
  for (uint32_t k = 0; k < DIM / 16; k++) {
    uint32_t a[4], b[4];
    if (k < KEPT<DIM>) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) a[i] = kept[k][i];
    } else {
      load_query<T, DIM>(query, k, a);
    }
    const uint32_t row = lane / 16 * 8 + lane % 8;
    load_tiles(b, &stream.ring.keys[stage][row][Ring<T, DIM>::place(row, k * 16 + lane / 8 % 2 * 8)]);
    mma<T>(s[0], a, b[0], b[1]);
    mma<T>(s[1], a, b[2], b[3]);
  }
  const Seen seen{{stream.first, stream.first}, {stream.last, stream.last}};
  uint32_t a[4];
  weigh_group<T, DIM>(p, stream.start_of(group), seen, true, s, run, a);
#pragma unroll
  for (uint32_t d = 0; d < DIM / 16; d++) {
    uint32_t b[4];
    load_tiles_transposed(b, &stream.ring.values[stage][lane % 16][Ring<T, DIM>::place(lane % 16, d * 16 + lane / 16 * 8)]);
    mma<T>(run.sums[2 * d], a, b[0], b[1]);
    mma<T>(run.sums[2 * d + 1], a, b[2], b[3]);
  }
}

// Leaves the chunk's result in shared memory: maxima, sums, and the warps' weighted sums at the start of their rings.
template <typename T, uint32_t DIM>
__device__ __forceinline__ void attend_chunk(const AttentionParams& p, const Unit& unit, const KvRows<T>& kv,
                                             DecodeShared<T, DIM>& sh, uint32_t chunk) {
  constexpr uint32_t STAGES = Ring<T, DIM>::STAGES;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Stream<T, DIM> stream{sh.rings[warp], lane, warp, unit.item.first_key, unit.item.position, chunk * CHUNK};
  stream.locate(p, kv, unit.item.sequence);
#pragma unroll
  for (uint32_t group = 0; group < STAGES; group++) {
    if (stream.wanted(group)) stream.load(p, group);
    copy_commit();
  }
  Running<DIM> run;
  run.begin();
  uint32_t kept[KEPT<DIM>][4];
#pragma unroll
  for (uint32_t k = 0; k < KEPT<DIM>; k++) load_query<T, DIM>(sh.query, k, kept[k]);
#pragma unroll 1
  for (uint32_t group = 0; group < GROUPS; group++) {
    copy_wait<STAGES - 1>();
    __syncwarp();
    if (stream.wanted(group)) attend_group<T, DIM>(p, stream, group, sh.query, kept, run);
    __syncwarp();
    if (stream.wanted(group + STAGES)) stream.load(p, group + STAGES);
    copy_commit();
  }
  copy_wait<0>();
  __syncwarp();
  float* sums = reinterpret_cast<float*>(&stream.ring);
  run.end();
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    const uint32_t row = lane / 4 + 8 * h;
    if (lane % 4 == 0) sh.warp_max[warp][row] = run.max[h], sh.warp_sum[warp][row] = run.sum[h];
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
      sums[row * DIM + d * 8 + lane % 4 * 2] = run.sums[d][2 * h];
      sums[row * DIM + d * 8 + lane % 4 * 2 + 1] = run.sums[d][2 * h + 1];
    }
  }
  __syncthreads();
  if (threadIdx.x < ROWS) {
    const uint32_t row = threadIdx.x;
    Fold fold;
    fold.begin();
    for (uint32_t w = 0; w < WARPS; w++) {
      fold.with_any(sh.warp_max[w][row], sh.warp_sum[w][row]);
      sh.keep[w][row] = fold.keep;
      sh.take[w][row] = fold.take;
    }
    sh.max[row] = fold.max;
    sh.sum[row] = fold.sum;
  }
  __syncthreads();
}

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attention_decode(const AttentionParams& p) {
  static_assert(ROWS * DIM * sizeof(float) <= sizeof(Ring<T, DIM>), "weighted sums fit in a warp's ring");
  YN_DYNAMIC_SHARED(dynamic);
  DecodeShared<T, DIM>& sh = *reinterpret_cast<DecodeShared<T, DIM>*>(dynamic);
  Plan plan(dynamic + sizeof(DecodeShared<T, DIM>), p.items);
  plan.make(p);
  const uint32_t total = number_of_units(p, plan, ROWS);
  for (uint32_t work = blockIdx.x; work < total; work += gridDim.x) {
    const Unit unit = unit_at(p, plan, work, ROWS);
    const KvRows<T> kv(p, unit.item.sequence, unit.kv_head);
    const T* query = at<T>(p.qkv) + (uint64_t(unit.item.token) * (p.heads + 2 * p.kv_heads) + unit.head) * DIM;
    for (uint32_t i = threadIdx.x; i < ROWS * DIM / 8; i += THREADS) {
      const uint32_t row = i / (DIM / 8), column = i % (DIM / 8) * 8;
      const uint4 zero = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(&sh.query[row][column]) =
          row < unit.rows ? *reinterpret_cast<const uint4*>(query + row * DIM + column) : zero;
    }
    __syncthreads();
    for (uint32_t step = 0; step < unit.chunks; step++) {
      attend_chunk<T, DIM>(p, unit, kv, sh, unit.chunk + step);
      emit<T>(p, unit, step, sh.max, sh.sum, sh.folds, [&](uint32_t row, uint32_t col) {
        float x = 0;
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) {
          const float other = reinterpret_cast<const float*>(&sh.rings[w])[row * DIM + col];
          x = fmaf(other, sh.take[w][row], __fmul_rn(x, sh.keep[w][row]));
        }
        return x;
      });
      __syncthreads();
    }
  }
}

#define YN_DECODE(DIM)                                                                                    \
  static_assert(sizeof(DecodeShared<f16, DIM>) ==                                                         \
                    (128 * Ring<f16, DIM>::STAGES * Ring<f16, DIM>::STRIDE + ROWS * (DIM + 8)) * 2 + 1408,                \
                "mirrored in src/hal/cuda/ops/attention.rs");                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, DIM == 64 ? 4 : DIM <= 128 ? 3 : 1)               \
      yn_attention_decode_##DIM##_f16(const __grid_constant__ AttentionParams p) {                        \
    after_prior();                                                                                        \
    attention_decode<f16, DIM>(p);                                                                        \
  }                                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, DIM == 64 ? 4 : DIM <= 128 ? 3 : 1)               \
      yn_attention_decode_##DIM##_bf16(const __grid_constant__ AttentionParams p) {                       \
    after_prior();                                                                                        \
    attention_decode<bf16, DIM>(p);                                                                       \
  }

YN_DECODE(64)
YN_DECODE(80)
YN_DECODE(96)
YN_DECODE(128)
YN_DECODE(256)
