// linear in one fixed order: out = x * w^T + bias, with the same bits for a row whatever rows stand beside it.
// out: act or f32 [M, N]; x: act [M, K]; w: act [N, K]; bias: f32 [N].
//
// K is cut into `splits` parts at multiples of 64 that N and K alone decide. A part of an element is one chain of mma
// m16n8k16 steps in f32 from zero, an element is the sum of its parts in rising order and then its bias. All shapes of tiles
// use the same instruction, so they give the same bits and the launch may choose: a block takes one part of its tile (few
// rows: bound by reading w once, parts fill the machine), or all of them one after the other (many rows: bound by mma). Of
// the blocks that share a tile, the one that ends last adds up all parts, which lie in scratch memory.
//
// Operands come through a ring of asynchronous 16-byte copies; 64 numbers of k are 128 bytes of a row, whose 16-byte pieces
// are swapped by the row's number so that neither copies nor ldmatrix meet on a bank.
// `linear_plain`: one chain of fused multiply-adds over k, for f32 and for rows that are no whole vectors.
// Instances: f16 and bf16 x six shapes of tiles; the plain one for three act dtypes.
#include "common.cuh"

struct LinearParams {
  uint64_t out;
  uint64_t x;
  uint64_t w;
  uint64_t bias;      // 0: none
  uint64_t partials;  // float2 [tiles, splits, PAIRS, threads], where blocks have one part each
  uint64_t counters;  // u32 [tiles], zero between launches
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t splits;
  uint32_t wide;     // out is f32
  uint32_t vectors;  // rows of out are whole aligned vectors of four
  uint32_t clustered;  // the blocks of a tile are a cluster
  uint32_t pad;
};
static_assert(sizeof(LinearParams) == 80, "mirrored in src/hal/cuda/ops/linear.rs");

constexpr uint32_t STEP = 64;            // numbers of k in a stage
constexpr uint32_t ROW_BYTES = 2 * STEP;
constexpr uint32_t GROUP = 8;            // tiles of rows that run side by side over all columns

// BM x BN numbers of out, WM x WN warps.
template <uint32_t BM_, uint32_t BN_, uint32_t WM_, uint32_t WN_, uint32_t STAGES_>
struct Tile {
  static constexpr uint32_t BM = BM_, BN = BN_, WM = WM_, WN = WN_, STAGES = STAGES_;
  static constexpr uint32_t THREADS = 32 * WM * WN, ROWS = BM / WM, COLS = BN / WN;
  static constexpr uint32_t STAGE_BYTES = (BM + BN) * ROW_BYTES, BYTES = STAGES * STAGE_BYTES;
  static constexpr uint32_t PITCH = BN + 4;  // of the staged output
  static constexpr uint32_t PAIRS = ROWS / 16 * (COLS / 8) * 2;
  static_assert(BM * PITCH * 4 <= BYTES, "the output is staged in the ring");
  static_assert(BM * 8 % THREADS == 0 && BN * 8 % THREADS == 0, "whole rounds of copies");
};
using Tile16x64 = Tile<16, 64, 1, 4, 6>;
using Tile16x128 = Tile<16, 128, 1, 4, 5>;
using Tile32x64 = Tile<32, 64, 1, 4, 6>;
using Tile32x128 = Tile<32, 128, 1, 4, 5>;
using Tile64x128 = Tile<64, 128, 2, 2, 4>;
using Tile128x128 = Tile<128, 128, 2, 4, 4>;

template <typename T, typename S>
struct Linear {
  static constexpr uint32_t BANDS = S::ROWS / 16, STRIPS = S::COLS / 8;
  const LinearParams& p;
  unsigned char* ring;
  const uint32_t lane, warp_m, warp_n;
  uint32_t tile, row0, col0;

  float acc[BANDS][STRIPS][4];
  float total[BANDS][STRIPS][4];

  // Blocks of GROUP tiles of rows go together, so that what they read stays in the L2 cache.
  __device__ void place() {
    const uint32_t across = (p.n + S::BN - 1) / S::BN, down = (p.m + S::BM - 1) / S::BM;
    tile = blockIdx.x;
    const uint32_t group = tile / (GROUP * across), rest = tile % (GROUP * across);
    const uint32_t height = min(GROUP, down - group * GROUP);
    row0 = (group * GROUP + rest % height) * S::BM;
    col0 = rest / height * S::BN;
  }

  template <uint32_t COUNT, bool WEIGHTS>
  __device__ void load_rows(unsigned char* to, const T* from, uint32_t first, uint32_t rows, uint32_t k) {
    constexpr uint32_t PER = S::THREADS / 8;  // rows of a round
    static_assert(PER % 8 == 0, "a thread's rows have one place in the swap");
    const uint32_t row = threadIdx.x / 8, piece = threadIdx.x % 8, column = k + 8 * piece;
    unsigned char* slot = to + row * ROW_BYTES + (piece ^ row % 8) * 16;
#pragma unroll
    for (uint32_t i = 0; i < COUNT / PER; i++) {
      const uint32_t index = first + row + i * PER;
      const bool valid = index < rows && column < p.k;
      const T* piece_at = valid ? from + uint64_t(index) * p.k + column : from;
      if (WEIGHTS) copy16_streamed(slot + i * PER * ROW_BYTES, piece_at, valid);
      else copy16_async(slot + i * PER * ROW_BYTES, piece_at, valid);
    }
  }
  __device__ void load_x(uint32_t step, uint32_t stage) {
    load_rows<S::BM, false>(ring + stage * S::STAGE_BYTES, at<T>(p.x), row0, p.m, step * STEP);
  }
  __device__ void load_w(uint32_t step, uint32_t stage) {
    unsigned char* to = ring + stage * S::STAGE_BYTES + S::BM * ROW_BYTES;
    load_rows<S::BN, true>(to, at<T>(p.w), col0, p.n, step * STEP);
  }

  // Fragments of the k-th 16 numbers of a stage.
  __device__ void fragments(uint32_t stage, uint32_t k, uint32_t (&a)[BANDS][4], uint32_t (&b)[STRIPS / 2][4]) const {
    const unsigned char* xs = ring + stage * S::STAGE_BYTES;
    const unsigned char* ws = xs + S::BM * ROW_BYTES;
    const uint32_t x_row = warp_m * S::ROWS + lane % 16, x_piece = 2 * k + lane / 16;
    const uint32_t w_row = warp_n * S::COLS + lane / 16 * 8 + lane % 8, w_piece = 2 * k + lane / 8 % 2;
#pragma unroll
    for (uint32_t i = 0; i < BANDS; i++) {
      load_tiles(a[i], xs + (x_row + 16 * i) * ROW_BYTES + (x_piece ^ x_row % 8) * 16);
    }
#pragma unroll
    for (uint32_t j = 0; j < STRIPS / 2; j++) {
      load_tiles(b[j], ws + (w_row + 16 * j) * ROW_BYTES + (w_piece ^ w_row % 8) * 16);
    }
  }
  __device__ void multiply(uint32_t stage) {
    uint32_t a[2][BANDS][4], b[2][STRIPS / 2][4];
    fragments(stage, 0, a[0], b[0]);
#pragma unroll
    for (uint32_t k = 0; k < STEP / 16; k++) {
      if (k + 1 < STEP / 16) fragments(stage, k + 1, a[(k + 1) % 2], b[(k + 1) % 2]);
#pragma unroll
      for (uint32_t i = 0; i < BANDS; i++) {
#pragma unroll
        for (uint32_t j = 0; j < STRIPS; j++) {
          mma<T>(acc[i][j], a[k % 2][i], b[k % 2][j / 2][j % 2 * 2], b[k % 2][j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  template <typename Each>
  __device__ void each(const Each& each) {
#pragma unroll
    for (uint32_t i = 0; i < BANDS; i++) {
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j++) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) each(i, j, h);
      }
    }
  }
  __device__ void clear() {
    each([&](uint32_t i, uint32_t j, uint32_t h) { acc[i][j][2 * h] = acc[i][j][2 * h + 1] = 0; });
  }
  // A part is done.
  __device__ void close(bool first) {
    each([&](uint32_t i, uint32_t j, uint32_t h) {
#pragma unroll
      for (uint32_t c = 2 * h; c < 2 * h + 2; c++) {
        total[i][j][c] = first ? acc[i][j][c] : __fadd_rn(total[i][j][c], acc[i][j][c]);
      }
    });
    clear();
  }

  // Parts `from..to` into `total`. Weights are on their way before what they are multiplied with is there.
  __device__ void accumulate(uint32_t from, uint32_t to) {
    const uint32_t steps = (p.k + STEP - 1) / STEP;
    const auto start_of = [&](uint32_t part) { return uint32_t(uint64_t(part) * steps / p.splits); };
    const uint32_t first = start_of(from), last = start_of(to);
#pragma unroll
    for (uint32_t i = 0; i + 1 < S::STAGES; i++) {
      if (first + i < last) load_w(first + i, i);
    }
    copy_commit();
    wait_for_prior();
#pragma unroll
    for (uint32_t i = 0; i + 1 < S::STAGES; i++) {
      if (first + i < last) load_x(first + i, i);
      copy_commit();
    }
    clear();
    uint32_t part = from, end = start_of(from + 1), stage = 0;
    for (uint32_t step = first; step < last; step++) {
      copy_wait<S::STAGES - 2>();
      __syncthreads();  // this stage has come, and the one before it is no longer read
      const uint32_t ahead = step + S::STAGES - 1;
      if (ahead < last) {
        load_x(ahead, stage == 0 ? S::STAGES - 1 : stage - 1);
        load_w(ahead, stage == 0 ? S::STAGES - 1 : stage - 1);
      }
      copy_commit();
      multiply(stage);
      stage = stage + 1 == S::STAGES ? 0 : stage + 1;
      if (step + 1 == end) {
        close(part == from);
        part++;
        end = start_of(part + 1);
      }
    }
    copy_wait<0>();
    __syncthreads();
  }

  __device__ uint32_t row_of(uint32_t i, uint32_t h) const { return warp_m * S::ROWS + 16 * i + 8 * h + lane / 4; }

  // Adds up the parts that `part_of(part, pair)` finds, in rising order, into `total`.
  template <typename PartOf>
  __device__ void add_parts(const PartOf& part_of) {
    for (uint32_t part = 0; part < p.splits; part++) {
      float2 other[S::PAIRS];
      each([&](uint32_t i, uint32_t j, uint32_t h) {
        const uint32_t pair = (i * STRIPS + j) * 2 + h;
        other[pair] = row0 + row_of(i, h) < p.m ? part_of(part, pair) : make_float2(0, 0);
      });
      each([&](uint32_t i, uint32_t j, uint32_t h) {
        const float2 x = other[(i * STRIPS + j) * 2 + h];
        total[i][j][2 * h] = part == 0 ? x.x : __fadd_rn(total[i][j][2 * h], x.x);
        total[i][j][2 * h + 1] = part == 0 ? x.y : __fadd_rn(total[i][j][2 * h + 1], x.y);
      });
    }
  }

  // The same through the shared memory of a cluster; true in its first block.
  __device__ bool exchange_in_cluster() {
    float2* mine = reinterpret_cast<float2*>(ring) + threadIdx.x;
    each([&](uint32_t i, uint32_t j, uint32_t h) {
      mine[((i * STRIPS + j) * 2 + h) * S::THREADS] = make_float2(total[i][j][2 * h], total[i][j][2 * h + 1]);
    });
    meet_cluster();
    if (blockIdx.z == 0) {
      const uint32_t from = shared_address(mine);
      add_parts([&](uint32_t part, uint32_t pair) { return load_of_cluster(from + pair * S::THREADS * 8, part); });
    }
    meet_cluster();  // nobody leaves, or writes to the ring, while the first one reads
    return blockIdx.z == 0;
  }

  // Leaves the block's part for the last block of its tile; true in that one, whose `total` is then the whole.
  __device__ bool exchange(uint32_t* shared) {
    float2* mine = at<float2>(p.partials) + uint64_t(tile) * p.splits * S::PAIRS * S::THREADS + threadIdx.x;
    float2* to = mine + uint64_t(blockIdx.z) * S::PAIRS * S::THREADS;
    each([&](uint32_t i, uint32_t j, uint32_t h) {
      if (row0 + row_of(i, h) >= p.m) return;
      to[((i * STRIPS + j) * 2 + h) * S::THREADS] = make_float2(total[i][j][2 * h], total[i][j][2 * h + 1]);
    });
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *shared = atomicAdd(at<uint32_t>(p.counters) + tile, 1u);
    __syncthreads();
    if (*shared + 1 != p.splits) return false;
    __threadfence();
    add_parts([&](uint32_t part, uint32_t pair) {
      return __ldcg(mine + (uint64_t(part) * S::PAIRS + pair) * S::THREADS);
    });
    if (threadIdx.x == 0) at<uint32_t>(p.counters)[tile] = 0;
    __syncthreads();  // `shared` is part of the staged output
    return true;
  }

  // Through the ring, for wide stores.
  __device__ void store() {
    float* staged = reinterpret_cast<float*>(ring);
    each([&](uint32_t i, uint32_t j, uint32_t h) {
      *reinterpret_cast<float2*>(staged + row_of(i, h) * S::PITCH + warp_n * S::COLS + 8 * j + lane % 4 * 2) =
          make_float2(total[i][j][2 * h], total[i][j][2 * h + 1]);
    });
    __syncthreads();
    const uint32_t rows = min(S::BM, p.m - row0);
    for (uint32_t i = threadIdx.x; i < rows * (S::BN / 4); i += S::THREADS) {
      const uint32_t row = i / (S::BN / 4), column = i % (S::BN / 4) * 4;
      if (col0 + column >= p.n) continue;
      const float4 four = *reinterpret_cast<const float4*>(staged + row * S::PITCH + column);
      float x[4] = {four.x, four.y, four.z, four.w};
      const uint32_t count = min(4u, p.n - col0 - column);
      if (p.bias != 0) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
          if (j < count) x[j] = __fadd_rn(x[j], at<float>(p.bias)[col0 + column + j]);
        }
      }
      const uint64_t to = uint64_t(row0 + row) * p.n + col0 + column;
      if (p.vectors && p.wide) {
        *reinterpret_cast<float4*>(at<float>(p.out) + to) = make_float4(x[0], x[1], x[2], x[3]);
      } else if (p.vectors) {
        *reinterpret_cast<uint2*>(at<T>(p.out) + to) = make_uint2(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
      } else {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
          if (j >= count) continue;
          if (p.wide) at<float>(p.out)[to + j] = x[j];
          else at<T>(p.out)[to + j] = narrowed<T>(x[j]);
        }
      }
    }
  }

  __device__ void run() {
    place();
    if (gridDim.z == 1) {
      accumulate(0, p.splits);
    } else {
      accumulate(blockIdx.z, blockIdx.z + 1);
      if (!(p.clustered ? exchange_in_cluster() : exchange(reinterpret_cast<uint32_t*>(ring)))) return;
    }
    store();
  }
};

template <typename T, typename S>
__device__ __forceinline__ void linear(const LinearParams& p) {
  YN_DYNAMIC_SHARED(dynamic);
  const uint32_t warp = threadIdx.x / 32;
  Linear<T, S> linear{p, dynamic, threadIdx.x % 32, warp / S::WN, warp % S::WN};
  linear.run();
}

constexpr uint32_t PLAIN_M = 16, PLAIN_N = 64, PLAIN_K = 32, PLAIN_THREADS = 256;

template <typename T>
__device__ __forceinline__ void linear_plain(const LinearParams& p) {
  __shared__ float xs[PLAIN_M][PLAIN_K + 1], ws[PLAIN_N][PLAIN_K + 1];
  constexpr uint32_t PER = PLAIN_THREADS / PLAIN_N, COUNT = PLAIN_M / PER;
  const uint32_t row0 = blockIdx.x * PLAIN_M, col0 = blockIdx.y * PLAIN_N;
  const uint32_t column = threadIdx.x % PLAIN_N, first = threadIdx.x / PLAIN_N;
  float sums[COUNT] = {};
  for (uint32_t k0 = 0; k0 < p.k; k0 += PLAIN_K) {
    const auto load = [&](float (*to)[PLAIN_K + 1], uint64_t from, uint32_t count, uint32_t base, uint32_t rows) {
      for (uint32_t i = threadIdx.x; i < count * PLAIN_K; i += PLAIN_THREADS) {
        const uint32_t row = i / PLAIN_K, k = i % PLAIN_K;
        const bool valid = base + row < rows && k0 + k < p.k;
        to[row][k] = valid ? widen(at<T>(from)[uint64_t(base + row) * p.k + k0 + k]) : 0.0f;
      }
    };
    load(xs, p.x, PLAIN_M, row0, p.m);
    load(ws, p.w, PLAIN_N, col0, p.n);
    __syncthreads();
    for (uint32_t k = 0; k < PLAIN_K; k++) {
#pragma unroll
      for (uint32_t i = 0; i < COUNT; i++) sums[i] = fmaf(xs[first + i * PER][k], ws[column][k], sums[i]);
    }
    __syncthreads();
  }
  if (col0 + column >= p.n) return;
  const float bias = p.bias != 0 ? at<float>(p.bias)[col0 + column] : 0.0f;
#pragma unroll
  for (uint32_t i = 0; i < COUNT; i++) {
    const uint32_t row = row0 + first + i * PER;
    if (row >= p.m) continue;
    const uint64_t to = uint64_t(row) * p.n + col0 + column;
    if (p.wide) at<float>(p.out)[to] = __fadd_rn(sums[i], bias);
    else at<T>(p.out)[to] = narrowed<T>(__fadd_rn(sums[i], bias));
  }
}

#define YN_LINEAR(TILE, NAME, T, BLOCKS, SHARED)                                                                 \
  static_assert(Tile##TILE::BYTES == SHARED, "mirrored in src/hal/cuda/ops/linear.rs");                          \
  extern "C" __global__ void __launch_bounds__(Tile##TILE::THREADS, BLOCKS)                                      \
      yn_linear_##TILE##_##NAME(const __grid_constant__ LinearParams p) {                                        \
    let_next_start();                                                                                            \
    linear<T, Tile##TILE>(p);                                                                                    \
  }
#define YN_LINEARS(NAME, T)              \
  YN_LINEAR(16x64, NAME, T, 3, 61440)    \
  YN_LINEAR(16x128, NAME, T, 2, 92160)   \
  YN_LINEAR(32x64, NAME, T, 3, 73728)    \
  YN_LINEAR(32x128, NAME, T, 2, 102400)  \
  YN_LINEAR(64x128, NAME, T, 2, 98304)   \
  YN_LINEAR(128x128, NAME, T, 1, 131072)
YN_LINEARS(f16, f16)
YN_LINEARS(bf16, bf16)

#define YN_PLAIN(NAME, T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(PLAIN_THREADS, 4)                                                 \
      yn_linear_plain_##NAME(const __grid_constant__ LinearParams p) {                                           \
    after_prior();                                                                                               \
    linear_plain<T>(p);                                                                                          \
  }
YN_PLAIN(f32, float)
YN_PLAIN(f16, f16)
YN_PLAIN(bf16, bf16)
