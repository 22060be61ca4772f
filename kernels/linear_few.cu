// linear of few rows in mode `fast`: out = x * w^T + bias. out: act or f32 [M, N]; x: act [M, K]; w: act [N, K]; bias: f32 [N].
// Bound by reading w once.
//
// There is one block for each multiprocessor at most, and each has an equal number of units: 8 to 64 neighbouring columns over
// the whole of k. One warp has tiles of 128 or 256 numbers of k copied into a ring, w's first ones while the launch in front is still
// under way; two such blocks fit on a multiprocessor, so the next product's ring fills while this one ends. Where blocks have many
// units one multiprocessor must not get two of them: such launches ask for so much shared memory that one fits beside a small one.
// Eight warps multiply, each its steps of 16 of a tile, and add up what they have at the end of a unit, in the order of warps.
// Where k is long and columns are few, the blocks of a cluster have a unit each a part of k, and add up their results in the order
// of parts.
// Tiles are copied by the hardware (tensor maps) in boxes of 64 numbers of k and swizzled by 128 bytes, so that ldmatrix meets no bank
// twice. Where units of a large matrix have few columns a tile is four boxes, which one instruction copies: the hardware of an H200 brings
// 4.3 TB/s of pieces of 4 KB or more, 3.6 of 2 KB, 2.2 of 1 KB.
// Instances: f16 and bf16 x tiles of two boxes of up to 8 and up to 16 rows, and of four boxes of up to 8. Other
// architectures have empty bodies, which are never launched.
#include "common.cuh"
#include "hopper.cuh"

struct FewParams {
  alignas(64) unsigned char w_map[128];  // CUtensorMap of w: tiles of 8 * strips rows
  alignas(64) unsigned char x_map[128];  // of x: tiles of 8 or 16 rows
  uint64_t out;
  uint64_t bias;  // 0: none
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t strips;  // of 8 columns, in a unit
  uint32_t units;
  uint32_t wide;   // out is f32
  uint32_t pairs;  // rows of out are whole aligned pairs
  uint32_t stages;  // of the ring
  uint32_t splits;  // of k, one a block of a cluster
};
static_assert(sizeof(FewParams) == 320, "mirrored in src/hal/cuda/ops/linear_few.rs");

constexpr uint32_t WARPS = 8, THREADS = 32 * (WARPS + 1), STRIPS = 8, MAX_STAGES = 16;
constexpr uint32_t ROW_BYTES = 128, RING_BYTES = 80 * 1024;
constexpr uint32_t REDUCED = 4608;  // numbers of a round of adding up

struct FewShared {
  // Of each stage w's boxes, then x's; rows of 128 bytes.
  unsigned char ring[RING_BYTES];
  float reduced[REDUCED];
  float2 part[16][STRIPS * 4];  // a block's sums of a unit, for its cluster
  uint64_t full[MAX_STAGES], free[MAX_STAGES];
};

#ifdef YN_SM90A

template <typename T, uint32_t ROWS, uint32_t BOXES>
struct Few {
  const FewParams& p;
  FewShared& sh;
  const uint32_t warp, lane;
  uint32_t first, last;      // units of this block
  uint32_t tile, tiles;      // the first tile of its part of k, and how many it has
  uint32_t w_bytes, bytes;   // of a tile of w, of a stage
  float acc[STRIPS][4];

  __device__ Few(const FewParams& p, FewShared& sh) : p(p), sh(sh), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {
    first = p.units * blockIdx.x / gridDim.x;
    last = p.units * (blockIdx.x + 1) / gridDim.x;
    const uint32_t all = (p.k + 64 * BOXES - 1) / (64 * BOXES);
    tile = all * blockIdx.z / p.splits;
    tiles = all * (blockIdx.z + 1) / p.splits - tile;
    w_bytes = BOXES * 8 * p.strips * ROW_BYTES;
    bytes = w_bytes + BOXES * ROWS * ROW_BYTES;
  }

  __device__ void copy(unsigned char* to, const void* map, uint32_t rows, int row, uint32_t t, uint32_t stage) {
    const int box = int((tile + t) * BOXES);
    if (BOXES != 2) {
      copy_tile(to, map, row, box, &sh.full[stage]);
      return;
    }
    copy_box(to, map, 64 * box, row, &sh.full[stage]);
    copy_box(to + rows * ROW_BYTES, map, 64 * box + 64, row, &sh.full[stage]);
  }
  __device__ void copy_w(uint32_t unit, uint32_t t, uint32_t stage) {
    barrier_expect(&sh.full[stage], bytes);
    copy(sh.ring + stage * bytes, p.w_map, 8 * p.strips, int(unit * p.strips * 8), t, stage);
  }
  __device__ void copy_x(uint32_t t, uint32_t stage) {
    copy(sh.ring + stage * bytes + w_bytes, p.x_map, ROWS, 0, t, stage);
  }
  // One thread: all tiles of the block, in order.
  __device__ void copy_all() {
    const uint32_t total = (last - first) * tiles, ahead = min(total, p.stages);
    uint32_t unit = first, t = 0;
    for (uint32_t i = 0; i < ahead; i++) {
      copy_w(unit, t, i);
      if (++t == tiles) t = 0, unit++;
    }
    wait_for_prior();
    for (uint32_t i = 0; i < ahead; i++) copy_x(i % tiles, i);
    uint32_t stage = 0, parity = 0;
    for (uint32_t i = ahead; i < total; i++) {
      barrier_wait(&sh.free[stage], parity);
      copy_w(unit, t, stage);
      copy_x(t, stage);
      if (++t == tiles) t = 0, unit++;
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
  }

  // This warp's step or two of a tile.
  __device__ void multiply(uint32_t stage) {
    const uint32_t x_row = lane % ROWS, w_row = lane / 16 * 8 + lane % 8;
    const unsigned char* ws = sh.ring + stage * bytes + w_row * ROW_BYTES;
    const unsigned char* xs = sh.ring + stage * bytes + w_bytes + x_row * ROW_BYTES;
#pragma unroll
    for (uint32_t i = 0; i < BOXES / 2; i++) {
      const uint32_t step = warp + i * WARPS, box = step / 4, k = step % 4;
      uint32_t a[4];
      load_tiles(a, xs + box * ROWS * ROW_BYTES + (2 * k + lane / 16 ^ x_row % 8) * 16);
#pragma unroll
      for (uint32_t j = 0; j < STRIPS / (BOXES / 2); j += 2) {
        if (j >= p.strips) break;
        uint32_t b[4];
        load_tiles(b, ws + (box * p.strips + j) * 8 * ROW_BYTES + (2 * k + lane / 8 % 2 ^ w_row % 8) * 16);
        mma<T>(acc[j], a, b[0], b[1]);
        mma<T>(acc[j + 1], a, b[2], b[3]);  // of other numbers behind the last strip, which nobody looks at
      }
    }
  }

  // Adds up the warps' results of a unit, some strips at a time, and stores them.
  __device__ void finish(uint32_t unit) {
    constexpr uint32_t strip_floats = 8 * ROWS + 8, per = 64 / ROWS;
    for (uint32_t from = 0; from < p.strips; from += per) {
      const uint32_t count = min(per, p.strips - from);
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j++) {
        if (j < from || j >= from + count) continue;
#pragma unroll
        for (uint32_t h = 0; h < ROWS / 8; h++) {
          const uint32_t row = 8 * h + lane / 4;
          if (row >= p.m) continue;
          float* to = sh.reduced + (warp * per + j - from) * strip_floats + row * 8 + lane % 4 * 2;
          *reinterpret_cast<float2*>(to) = make_float2(acc[j][2 * h], acc[j][2 * h + 1]);
        }
      }
      meet(1, 32 * WARPS);
      for (uint32_t i = threadIdx.x; i < p.m * count * 4; i += 32 * WARPS) {
        const uint32_t row = i / (count * 4), strip = i / 4 % count, column = i % 4 * 2;
        const float* of = sh.reduced + strip * strip_floats + row * 8 + column;
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) {
          const float2 part = *reinterpret_cast<const float2*>(of + w * per * strip_floats);
          sum.x += part.x;
          sum.y += part.y;
        }
        if (p.splits > 1) sh.part[row][(from + strip) * 4 + column / 2] = sum;
        else store(row, (unit * p.strips + from + strip) * 8 + column, sum);
      }
      meet(1, 32 * WARPS);
    }
  }
  __device__ void store(uint32_t row, uint32_t column, float2 x) const {
    if (column >= p.n) return;
    const bool both = column + 1 < p.n;
    if (p.bias != 0) {
      x.x += at<float>(p.bias)[column];
      if (both) x.y += at<float>(p.bias)[column + 1];
    }
    const uint64_t to = uint64_t(row) * p.n + column;
    if (p.pairs && p.wide) {
      *reinterpret_cast<float2*>(at<float>(p.out) + to) = x;
    } else if (p.pairs) {
      *reinterpret_cast<uint32_t*>(at<T>(p.out) + to) = pack<T>(x.x, x.y);
    } else if (p.wide) {
      at<float>(p.out)[to] = x.x;
      if (both) at<float>(p.out)[to + 1] = x.y;
    } else {
      at<T>(p.out)[to] = narrowed<T>(x.x);
      if (both) at<T>(p.out)[to + 1] = narrowed<T>(x.y);
    }
  }

  __device__ void compute() {
    wait_for_prior();
    uint32_t stage = 0, parity = 0;
    for (uint32_t unit = first; unit < last; unit++) {
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
      for (uint32_t t = 0; t < tiles; t++) {
        barrier_wait(&sh.full[stage], parity);
        multiply(stage);
        __syncwarp();
        if (lane == 0) barrier_arrive(&sh.free[stage]);
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }
      finish(unit);
    }
  }

  // The cluster's results of its unit.
  __device__ void finish_cluster() {
    meet_cluster();
    const uint32_t pairs = p.strips * 4, threads = blockDim.x;
    for (uint32_t i = blockIdx.z * threads + threadIdx.x; i < p.m * pairs; i += p.splits * threads) {
      const uint32_t row = i / pairs, pair = i % pairs;
      float2 sum = make_float2(0, 0);
      for (uint32_t split = 0; split < p.splits; split++) {
        const float2 part = load_of_cluster(shared_address(&sh.part[row][pair]), split);
        sum.x += part.x;
        sum.y += part.y;
      }
      store(row, first * p.strips * 8 + 2 * pair, sum);
    }
    meet_cluster();
  }

  __device__ void run() {
    if (threadIdx.x == 0) {
      prefetch_map(p.w_map);
      prefetch_map(p.x_map);
      for (uint32_t i = 0; i < p.stages; i++) {
        barrier_init(&sh.full[i], 1);
        barrier_init(&sh.free[i], WARPS);
      }
      barrier_publish();
    }
    __syncthreads();
    if (warp < WARPS) compute();
    else if (lane == 0) copy_all();
    __syncwarp();
    if (p.splits > 1) finish_cluster();
  }
};

#define YN_FEW_BODY(ROWS, BOXES, T)                                                                       \
  YN_DYNAMIC_SHARED(dynamic);                                                                      \
  Few<T, ROWS, BOXES> few(p, *reinterpret_cast<FewShared*>(dynamic + (-shared_address(dynamic) & 1023))); \
  few.run()

#else
#define YN_FEW_BODY(ROWS, BOXES, T) wait_for_prior()
#endif

static_assert(sizeof(FewShared) + 1024 == 105728, "mirrored in src/hal/cuda/ops/linear_few.rs");
#define YN_FEW(ROWS, BOXES, NAME, T)                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                        \
      yn_linear_few_##ROWS##_##BOXES##_##NAME(const __grid_constant__ FewParams p) { \
    let_next_start();                                                             \
    YN_FEW_BODY(ROWS, BOXES, T);                                                  \
  }
YN_FEW(8, 2, f16, f16)
YN_FEW(8, 2, bf16, bf16)
YN_FEW(8, 4, f16, f16)
YN_FEW(8, 4, bf16, bf16)
YN_FEW(16, 2, f16, f16)
YN_FEW(16, 2, bf16, bf16)
