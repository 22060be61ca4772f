// Products of many rows in mode `fast` by sm_90a's own means: what linear_large.cu and linear_largest.cu have in common, which is all
// but what becomes of a tile. Bound by arithmetic, and by the power that it takes.
//
// A block has a multiprocessor to itself and takes tile after tile: 128 rows, and COLUMNS rows of w, in two halves. One warp has w copied and
// another x, step by step of 64 numbers of k, into a ring; two warpgroups multiply 64 rows each, by all columns in one instruction, since
// reads of shared memory cost the most. Two blocks are a cluster, and each has half of what both read copied to both: half of w where
// their tiles are one below the other, half of the rows where those are side by side.
// What becomes of a tile is worked out beside the products of the next one, a part in each of the first steps.
// Tiles come group by group of COLUMN_TILES columns of tiles, whose w stays in the cache while all rows pass, downwards and upwards in
// turns, since the rows that came last are in the cache.
#pragma once
#include "common.cuh"
#include "hopper.cuh"

struct LargeParams {
  alignas(64) unsigned char w_map[128];  // CUtensorMap of w: boxes of COLUMNS / 2 rows
  alignas(64) unsigned char x_map[128];  // of x: boxes of the rows of a tile, or of half of them where blocks are side by side
  uint64_t out;
  uint64_t bias;  // 0: none
  uint32_t m;
  uint32_t n;        // columns of out
  uint32_t steps;    // of k
  uint32_t rows;     // of clusters' tiles
  uint32_t columns;  // of them
  uint32_t abreast;  // a cluster's tiles are side by side, else one below the other
  uint32_t apart;    // rows of w from the first half of a tile to the second
  uint32_t gelu;     // what gates go through, else silu
};
static_assert(sizeof(LargeParams) == 320, "mirrored in src/hal/cuda/ops/linear_large.rs");

constexpr uint32_t THREADS = 384, ROWS = 128, GROUP_ROWS = 64, STEP = 64, ROW_BYTES = 128, COLUMN_TILES = 8;
// Of shared memory, without what aligns it.
constexpr uint32_t RING_BYTES = 225 * 1024;

#ifdef YN_SM90A

constexpr uint32_t MAX_STAGES = RING_BYTES / (ROW_BYTES * (ROWS + 192));

struct LargeBarriers {
  uint64_t full[MAX_STAGES], free[MAX_STAGES];
};

// A place in the ring.
struct Place {
  uint32_t stage, parity;
  __device__ __forceinline__ void step(uint32_t stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// WIDTH: columns of out of a tile.
template <typename T, uint32_t COLUMNS, uint32_t WIDTH>
struct Large {
  static constexpr uint32_t X_BYTES = ROWS * ROW_BYTES, W_HALF = COLUMNS / 2 * ROW_BYTES, STAGE = X_BYTES + 2 * W_HALF;
  static constexpr uint32_t STAGES = RING_BYTES / STAGE;
  const LargeParams& p;
  LargeBarriers& sh;
  unsigned char* ring;
  const uint32_t warp, lane, rank;

  __device__ Large(const LargeParams& p, LargeBarriers& sh, unsigned char* ring)
      : p(p), sh(sh), ring(ring), warp(__shfl_sync(ALL, threadIdx.x / 32, 0)), lane(threadIdx.x % 32), rank(blockIdx.z) {}

  // Tiles of this block, by number, and where they begin: a row, and a column of out.
  __device__ __forceinline__ uint32_t tiles() const { return p.rows * p.columns; }
  __device__ __forceinline__ uint2 begin(uint32_t tile) const {
    const uint32_t whole = p.rows * COLUMN_TILES, group = tile / whole, in_group = tile % whole;
    const uint32_t columns = min(COLUMN_TILES, p.columns - group * COLUMN_TILES);
    const uint32_t down = in_group / columns, row = group % 2 == 0 ? down : p.rows - 1 - down;
    const uint32_t column = group * COLUMN_TILES + in_group % columns;
    return p.abreast ? make_uint2(row * ROWS, (2 * column + rank) * WIDTH) : make_uint2((2 * row + rank) * ROWS, column * WIDTH);
  }

  // One thread each: all steps of all tiles, in order.
  __device__ void copy_w() {
    Place at = {0, 1};
    for (uint32_t tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      const uint32_t row = begin(tile).y;
      for (uint32_t k = 0; k < p.steps; k++) {
        barrier_wait(&sh.free[at.stage], at.parity);
        uint64_t* full = &sh.full[at.stage];
        barrier_expect(full, STAGE);
        unsigned char* to = ring + at.stage * STAGE + X_BYTES;
        if (p.abreast) {
          copy_box(to, p.w_map, int(k * STEP), int(row), full);
          copy_box(to + W_HALF, p.w_map, int(k * STEP), int(row + p.apart), full);
        } else {
          copy_box_to(to + rank * W_HALF, p.w_map, int(k * STEP), int(row + rank * p.apart), full, 3);
        }
        at.step(STAGES);
      }
    }
  }
  __device__ void copy_x() {
    wait_for_prior();
    Place at = {0, 1};
    const uint32_t half = rank * (ROWS / 2);
    for (uint32_t tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      const uint32_t row = begin(tile).x;
      for (uint32_t k = 0; k < p.steps; k++) {
        barrier_wait(&sh.free[at.stage], at.parity);
        unsigned char* to = ring + at.stage * STAGE;
        if (p.abreast) copy_box_to(to + half * ROW_BYTES, p.x_map, int(k * STEP), int(row + half), &sh.full[at.stage], 3);
        else copy_box(to, p.x_map, int(k * STEP), int(row), &sh.full[at.stage]);
        at.step(STAGES);
      }
    }
  }

  // A stage is free when both blocks have multiplied what it has, as some of it comes from the other one.
  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane < 2) barrier_arrive_at(&sh.free[stage], lane);
  }

  // A step's products, with `beside` while they are under way. Those of the step before end first.
  template <bool FIRST, typename Beside>
  __device__ __forceinline__ void multiply(float (&sums)[COLUMNS / 2], uint2 operands, Place& at, uint32_t& before, Beside beside) {
    barrier_wait(&sh.full[at.stage], at.parity);
    wgmma_begin();
#pragma unroll
    for (uint32_t k = 0; k < STEP / 16; k++) {
      const uint32_t offset = at.stage * STAGE + k * 32;
      wgmma_shared<T, COLUMNS>(sums, swizzled_at(operands.x, 1024, offset), swizzled_at(operands.y, 1024, offset), FIRST ? int(k) : 1);
    }
    wgmma_commit();
    beside();
    if (!FIRST) {
      wgmma_wait<1>();
      release(before);
    }
    before = at.stage;
    at.step(STAGES);
  }

  // End: `take` has a tile's sums, `finish` works out a part of what becomes of the last ones that it took.
  template <typename End>
  __device__ __forceinline__ void compute(End end) {
    wait_for_prior();
    const uint32_t group = warp / 4 - 1;
    const uint2 operands = make_uint2(swizzled_low(ring + group * GROUP_ROWS * ROW_BYTES, 16), swizzled_low(ring + X_BYTES, 16));
    Place at = {0, 0};
    uint32_t before = 0;
    float sums[COLUMNS / 2];
    for (uint32_t tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      multiply<true>(sums, operands, at, before, [&] { end.finish(0); });
#pragma unroll
      for (uint32_t k = 1; k < End::PARTS; k++) multiply<false>(sums, operands, at, before, [&] { end.finish(k); });
      for (uint32_t k = End::PARTS; k < p.steps; k++) multiply<false>(sums, operands, at, before, [] {});
      wgmma_wait<0>();
      release(before);
      const uint2 from = begin(tile);
      end.take(sums, from.x + group * GROUP_ROWS + warp % 4 * 16 + lane / 4, from.y);
    }
#pragma unroll
    for (uint32_t part = 0; part < End::PARTS; part++) end.finish(part);
  }

  // `computes` is called by the warps that multiply, `beside` by two that are left.
  template <typename Computes, typename Beside>
  __device__ __forceinline__ void run(const Computes& computes, const Beside& beside) {
    if (threadIdx.x == 0) {
      prefetch_map(p.w_map);
      prefetch_map(p.x_map);
      for (uint32_t i = 0; i < STAGES; i++) {
        barrier_init(&sh.full[i], 1);
        barrier_init(&sh.free[i], 2 * (THREADS / 32 - 4));
      }
      barrier_publish();
    }
    meet_cluster();
    if (warp < 4) {
      registers_down<40>();
      if (warp == 0 && lane == 0) copy_w();
      if (warp == 1 && lane == 0) copy_x();
      if (warp >= 2) beside();
      __syncwarp();
    } else {
      registers_up<232>();
      computes();
    }
    // Neither block ends while the other one still copies to it.
    meet_cluster();
  }
};

#endif
