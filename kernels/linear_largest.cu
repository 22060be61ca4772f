// The head of many rows in mode `fast`, with what greedy rows draw: logits = x * w^T, and the first candidate of each row, for sample_draw.
// logits: f32 [M, N], stored for the rows whose sampler row asks for more than its largest logit (draws_largest), or for all; x: act [M, K];
// w: act [N, K]; firsts: u64 [M]; rows, positions: i32 [M]; state: i32 [R, words].
//
// A thread has numbers of two rows, 8 apart; a part of the end is three eights of columns. Two warps that copy nothing find out whose
// logits are stored while the first tile's products run.
// Instances: f16 and bf16 x 192 columns. Other architectures have empty bodies, which are never launched.
#include "linear_large.cuh"
#include "sample_row.cuh"

struct LargestParams {
  LargeParams product;
  uint64_t firsts;
  uint64_t rows;
  uint64_t positions;
  uint64_t state;
  uint32_t state_rows;
  uint32_t keeps;  // logits of all rows
};
static_assert(sizeof(LargestParams) == 384, "mirrored in src/hal/cuda/ops/linear_largest.rs");

#ifdef YN_SM90A

constexpr uint32_t COLUMNS = 192;
constexpr uint32_t MAX_ROWS = 2048;  // mirrored in src/hal/cuda/ops/linear_largest.rs

struct Stored {
  uint32_t rows[MAX_ROWS / 32];  // a bit each
  uint64_t known;                // a barrier
};

// By two warps.
__device__ __forceinline__ void find_stored(const LargestParams& p, Stored& stored) {
  wait_for_prior();
  const uint32_t m = p.product.m, lane = threadIdx.x % 32;
#pragma unroll 2
  for (uint32_t word = threadIdx.x / 32 % 2; word * 32 < m; word += 2) {
    const uint32_t s = word * 32 + lane;
    const int row = s < m ? at<int>(p.rows)[s] : -1;
    const bool known = row >= 0 && row < int(p.state_rows);
    const bool stores = p.keeps || !known || !draws_largest(at<int>(p.state) + uint64_t(row) * STATE_WORDS, at<int>(p.positions)[s]);
    const uint32_t bits = __ballot_sync(ALL, stores);
    if (lane == 0) stored.rows[word] = bits;
  }
  __syncwarp();
  if (lane == 0) barrier_arrive(&stored.known);
}

struct Firsts {
  static constexpr uint32_t EIGHTS = COLUMNS / 8, PARTS = 8;
  const LargestParams& p;
  Stored& stored;
  const uint32_t lane;
  // Of the tile that it took, and where that begins for this thread; of none at first, behind the last row.
  float kept[COLUMNS / 2] = {};
  uint32_t row, column = 0;
  bool stores[2] = {};
  Largest largest[2] = {Largest(0), Largest(0)};

  __device__ __forceinline__ Firsts(const LargestParams& p, Stored& stored, uint32_t lane)
      : p(p), stored(stored), lane(lane), row(p.product.m) {}

  __device__ __forceinline__ void take(float (&sums)[COLUMNS / 2], uint32_t from_row, uint32_t from_column) {
    row = from_row;
    column = from_column + lane % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < COLUMNS / 2; i++) kept[i] = sums[i];
    barrier_wait(&stored.known, 0);
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t of = row + 8 * h;
      stores[h] = of < p.product.m && (stored.rows[of / 32] >> of % 32 & 1);
      largest[h] = Largest(column);
    }
  }

  __device__ __forceinline__ void finish(uint32_t part) {
#pragma unroll
    for (uint32_t i = 0; i < EIGHTS / PARTS; i++) {
      const uint32_t eight = part * (EIGHTS / PARTS) + i, at_column = column + 8 * eight;
      if (at_column >= p.product.n) break;
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        const float2 x = make_float2(kept[4 * eight + 2 * h], kept[4 * eight + 2 * h + 1]);
        largest[h].tell(x.x, at_column);
        largest[h].tell(x.y, at_column + 1);
        if (stores[h]) *reinterpret_cast<float2*>(at<float>(p.product.out) + uint64_t(row + 8 * h) * p.product.n + at_column) = x;
      }
    }
    if (part + 1 == PARTS) give();
  }

  // Four lanes have a row.
  __device__ __forceinline__ void give() const {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      uint64_t found = column < p.product.n ? largest[h].found() : ~uint64_t(0);
#pragma unroll
      for (int width = 2; width > 0; width /= 2) found = Min()(found, __shfl_xor_sync(ALL, found, width));
      if (lane % 4 == 0 && row + 8 * h < p.product.m) give_first(p.firsts, row + 8 * h, found);
    }
  }
};

#define YN_LARGEST_BODY(T)                                                                               \
  YN_DYNAMIC_SHARED(dynamic);                                                                            \
  __shared__ LargeBarriers barriers;                                                                     \
  __shared__ Stored stored;                                                                              \
  if (threadIdx.x == 0) barrier_init(&stored.known, 2);                                                  \
  Large<T, COLUMNS, COLUMNS> large(p.product, barriers, dynamic + (-shared_address(dynamic) & 1023));    \
  large.run([&] { large.compute(Firsts(p, stored, large.lane)); }, [&] { find_stored(p, stored); })

#else
#define YN_LARGEST_BODY(T) wait_for_prior()
#endif

#define YN_LARGEST(NAME, T)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) yn_linear_largest_##NAME(const __grid_constant__ LargestParams p) { \
    let_next_start();                                                                                                        \
    YN_LARGEST_BODY(T);                                                                                                      \
  }
YN_LARGEST(f16, f16)
YN_LARGEST(bf16, bf16)
