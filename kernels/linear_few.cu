// linear of few rows in mode `fast`: out = x * w^T + bias. out: act or f32 [M, N]; x: act [M, K]; w: act [N, K]; bias: f32 [N].
// Bound by reading w once, and where w is small by the way from one launch to the next. What may stand in front of the product and
// behind it is in few_ends.cuh.
//
// There is one block for each multiprocessor at most, and each has an equal number of units: 8 to 64 neighbouring columns over
// the whole of k; gates are followed by the unit of what they multiply. One warp has tiles of 128 or 256 numbers of k copied into a
// ring, w's first ones while the launch in front is still under way; two such blocks fit on a multiprocessor, so the next product's
// ring fills while this one ends. Where a block's share of w is more than a ring holds, one multiprocessor must not get two of a
// launch: it asks for so much shared memory that one fits beside a small one. Such launches also let the next one start only when rows of x
// are here, which would else wait behind the next ring's tiles.
// Eight warps multiply, each its steps of 16 of a tile, and add up what they have at the end of a unit, in the order of warps.
// Where k is long and columns are few, the blocks of a cluster have a unit each a part of k; each sends the others the results that
// they add up, in the order of parts.
// Tiles are copied by the hardware (tensor maps) in boxes of 64 numbers of k and swizzled by 128 bytes, so that ldmatrix meets no bank
// twice. Where units of a large matrix have few columns a tile is four boxes, which one instruction copies: the hardware of an H200 brings
// 4.3 TB/s of pieces of 4 KB or more, 3.6 of 2 KB, 2.2 of 1 KB.
// Tiles of x come with those of w; normed rows a block holds whole.
// Of logits each block gives the first candidate that it has of each row, for sample_draw.
// Instances: f16 and bf16 x tiles of two boxes of up to 8 and up to 16 rows, and of four boxes of up to 8; those of up to 8 with and
// without a norm. Other architectures have empty bodies, which are never launched.
#include "few_ends.cuh"
#include "hopper.cuh"
#include "sampling.cuh"

#ifdef YN_SM90A

template <typename T, uint32_t ROWS, uint32_t BOXES, bool NORM>
struct Few {
  static constexpr uint32_t STRIPS = BOXES == 2 ? 8 : 4;  // of a unit at most
  const FewParams& p;
  FewShared& sh;
  const uint32_t warp, lane;
  unsigned char* const rows;  // that are normed
  uint32_t first, last;      // units of this block
  uint32_t tile, tiles;      // the first tile of its part of k, and how many it has
  uint32_t w_bytes, bytes;   // of a tile of w, of a stage
  float acc[STRIPS][4];
  Largest largest;  // of this lane's columns of the warp's row, where out is logits

  __device__ Few(const FewParams& p, FewShared& sh)
      : p(p), sh(sh), warp(kept(threadIdx.x / 32)), lane(kept(threadIdx.x % 32)), rows(reinterpret_cast<unsigned char*>(&sh + 1)), largest(0) {
    const uint32_t together = gated() ? 2 : 1;
    first = p.units / together * blockIdx.x / gridDim.x * together;
    last = p.units / together * (blockIdx.x + 1) / gridDim.x * together;
    const uint32_t all = (p.k + 64 * BOXES - 1) / (64 * BOXES);
    tile = all * blockIdx.z / p.splits;
    tiles = all * (blockIdx.z + 1) / p.splits - tile;
    w_bytes = BOXES * 8 * p.strips * ROW_BYTES;
    bytes = w_bytes + (NORM ? 0 : BOXES * ROWS * ROW_BYTES);
  }
  __device__ bool gated() const { return NORM && p.gate != NONE; }
  // The first column of a unit.
  __device__ uint32_t column_of(uint32_t unit) const {
    return gated() ? unit / 2 * p.strips * 8 + unit % 2 * (p.n / 2) : unit * p.strips * 8;
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
    copy(sh.ring + stage * bytes, p.w_map, 8 * p.strips, int(column_of(unit)), t, stage);
  }
  __device__ void copy_x(uint32_t t, uint32_t stage) {
    copy(sh.ring + stage * bytes + w_bytes, p.x_map, ROWS, 0, t, stage);
  }
  // One thread: the block's tiles in order, those that the ring has room for and then the others.
  __device__ uint32_t ahead() const { return min((last - first) * tiles, p.stages); }
  __device__ void copy_ahead() {
    const uint32_t count = ahead();
    uint32_t unit = first, t = 0;
    for (uint32_t i = 0; i < count; i++) {
      copy_w(unit, t, i);
      if (++t == tiles) t = 0, unit++;
    }
    if (NORM) return;
    wait_for_prior();
    for (uint32_t i = 0; i < count; i++) copy_x(i % tiles, i);
  }
  __device__ void copy_behind() {
    const uint32_t total = (last - first) * tiles, count = ahead();
    uint32_t unit = first + count / tiles, t = count % tiles, stage = 0, parity = 0;
    for (uint32_t i = count; i < total; i++) {
      barrier_wait(&sh.free[stage], parity);
      copy_w(unit, t, stage);
      if (!NORM) copy_x(t, stage);
      if (++t == tiles) t = 0, unit++;
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
  }

  // This warp's step or two of a tile, at these places of shared memory.
  __device__ __forceinline__ void multiply(uint32_t x_at, uint32_t w_at) {
#pragma unroll
    for (uint32_t i = 0; i < BOXES / 2; i++) {
      uint32_t a[4], b[STRIPS / 2][4];
      load_tiles_at(a, x_at + i * 2 * (NORM ? ROW_BYTES : ROWS * ROW_BYTES));
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j += 2) {
        if (j >= p.strips) break;
        load_tiles_at(b[j / 2], w_at + (i * 2 * p.strips + j) * 8 * ROW_BYTES);
      }
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j += 2) {
        if (j >= p.strips) break;
        mma<T>(acc[j], a, b[j / 2][0], b[j / 2][1]);
        mma<T>(acc[j + 1], a, b[j / 2][2], b[j / 2][3]);  // of other numbers behind the last strip, which nobody looks at
      }
    }
  }

  // Adds up the warps' results of a unit, some strips at a time, and stores them: a warp has a row, four lanes a strip of it.
  __device__ __forceinline__ void finish(uint32_t unit, uint32_t first_column) {
    constexpr uint32_t strip_floats = 8 * ROWS + 8, per = 64 / ROWS;
    float* mine = sh.reduced + warp * per * strip_floats + lane / 4 * 8 + lane % 4 * 2;
    for (uint32_t from = 0; from < p.strips; from += per) {
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j++) {
        if (j < from || j >= min(from + per, p.strips)) continue;
#pragma unroll
        for (uint32_t h = 0; h < ROWS / 8; h++) {
          if (8 * h + lane / 4 >= p.m) continue;
          *reinterpret_cast<float2*>(mine + (j - from) * strip_floats + h * 64) = make_float2(acc[j][2 * h], acc[j][2 * h + 1]);
        }
      }
      meet(1, 32 * WARPS);
      const uint32_t strip = from + lane / 4;
      for (uint32_t row = warp; row < p.m; row += WARPS) {
        if (strip >= min(from + per, p.strips)) break;
        const float2 sum = total(sh.reduced + lane / 4 * strip_floats + row * 8 + lane % 4 * 2, per * strip_floats);
        const uint32_t in_unit = 8 * strip + lane % 4 * 2;
        if (p.splits > 1) send(row * p.strips * 4 + in_unit / 2, sum);
        else if (gated()) gate_pair<T>(p, sh, row, unit % 2 == 0, first_column + in_unit, in_unit, sum);
        else store_pair<T>(p, row, first_column + in_unit, sum);
        if (!NORM && p.firsts != 0) tell(first_column + in_unit, sum);
      }
      if (unit + 1 < last || from + per < p.strips) meet(1, 32 * WARPS);
    }
  }
  __device__ __forceinline__ void tell(uint32_t column, float2 x) {
    if (column < p.n) largest.tell(x.x, column);
    if (column + 1 < p.n) largest.tell(x.y, column + 1);
  }
  // Rows are no more than warps.
  __device__ __forceinline__ void give() const {
    const uint64_t found = reduce_warp(largest.found(), Min());
    if (lane == 0 && warp < p.m) give_first(p.firsts, warp, found);
  }
  static __device__ __forceinline__ float2 total(const float* of, uint32_t apart) {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
      const float2 part = *reinterpret_cast<const float2*>(of + w * apart);
      sum.x += part.x;
      sum.y += part.y;
    }
    return sum;
  }

  __device__ __forceinline__ void compute() {
    // A warp has its own step of 16 numbers of k of a tile; where in a stage this lane's rows are for it.
    const uint32_t box = warp / 4, k = warp % 4, row = lane % ROWS, w_row = lane / 16 * 8 + lane % 8;
    const uint32_t ring = shared_address(sh.ring);
    const uint32_t w_first = kept(ring + (box * p.strips * 8 + w_row) * ROW_BYTES + (2 * k + lane / 8 % 2 ^ w_row % 8) * 16);
    const uint32_t x_first = kept(
        NORM ? shared_address(rows) + min(row, p.m - 1) * p.x_stride + warp * 32 + lane / 16 * 16
             : ring + w_bytes + (box * ROWS + row) * ROW_BYTES + (2 * k + lane / 16 ^ row % 8) * 16);
    if (NORM) norm_rows<T>(p, sh, rows);
    else wait_for_prior();
    let_next_start_if(p.late != 0);
    if (p.splits > 1) cluster_wait();  // until its blocks run
    uint32_t stage = 0, parity = 0, w_at = w_first, x_at = x_first;
    for (uint32_t unit = first; unit < last; unit++) {
#pragma unroll
      for (uint32_t j = 0; j < STRIPS; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
      const uint32_t first_column = column_of(unit);
      if (NORM) x_at = x_first;
#pragma unroll 1
      for (uint32_t t = 0; t < tiles; t++) {
        barrier_wait(&sh.full[stage], parity);
        multiply(x_at, w_at);
        __syncwarp();
        if (lane == 0) barrier_arrive(&sh.free[stage]);
        const bool around = ++stage == p.stages;
        stage = around ? 0 : stage;
        parity ^= around ? 1 : 0;
        w_at = around ? w_first : w_at + bytes;
        if (NORM) x_at += BOXES * ROW_BYTES;
        else x_at = around ? x_first : x_at + bytes;
      }
      finish(unit, first_column);
    }
    if (!NORM && p.firsts != 0) give();
  }

  __device__ float2* parts(uint32_t split) { return sh.parts + split * (sizeof(sh.parts) / sizeof(float2) / p.splits); }
  // Pair i of a unit's sums to the block of the cluster that adds it up.
  __device__ void send(uint32_t i, float2 sum) {
    store_of_cluster(shared_address(parts(blockIdx.z) + i / p.splits), i % p.splits, sum);
  }
  __device__ void finish_cluster() {
    meet_cluster();
    const uint32_t pairs = p.strips * 4, i = threadIdx.x * p.splits + blockIdx.z;
    if (i >= p.m * pairs) return;
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (uint32_t split = 0; split < MAX_SPLITS; split++) {
      if (split >= p.splits) break;
      const float2 part = parts(split)[threadIdx.x];
      sum.x += part.x;
      sum.y += part.y;
    }
    store_pair<T>(p, i / pairs, first * p.strips * 8 + i % pairs * 2, sum);
  }

  __device__ void run() {
    if (p.splits > 1) cluster_arrive();
    if (threadIdx.x == 0) {
      prefetch_map(p.w_map);
      if (!NORM) prefetch_map(p.x_map);
      for (uint32_t i = 0; i < p.stages; i++) {
        barrier_init(&sh.full[i], 1);
        barrier_init(&sh.free[i], WARPS);
      }
      barrier_publish();
    }
    __syncthreads();
    if (warp < WARPS) {
      compute();
    } else {
      if (lane == 0) copy_ahead();
      __syncwarp();
      if (p.splits > 1) cluster_wait();  // before it waits for other warps: racecheck has all of a block meet here
      if (lane == 0) copy_behind();
      __syncwarp();
    }
    if (p.splits > 1) finish_cluster();
  }
};

#define YN_FEW_BODY(ROWS, BOXES, NORM, T)                                                                       \
  YN_DYNAMIC_SHARED(dynamic);                                                                                   \
  Few<T, ROWS, BOXES, NORM> few(p, *reinterpret_cast<FewShared*>(dynamic + (-shared_address(dynamic) & 1023))); \
  few.run()

#else
#define YN_FEW_BODY(ROWS, BOXES, NORM, T) wait_for_prior()
#endif

static_assert(sizeof(FewShared) + 1024 == 105760, "mirrored in src/hal/cuda/ops/linear_few.rs");
#define YN_FEW(KIND, ROWS, BOXES, NORM, NAME, T)                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                           \
      yn_linear_##KIND##_##ROWS##_##BOXES##_##NAME(const __grid_constant__ FewParams p) { \
    let_next_start_if(p.late == 0);                                                  \
    YN_FEW_BODY(ROWS, BOXES, NORM, T);                                               \
  }
YN_FEW(few, 8, 2, false, f16, f16)
YN_FEW(few, 8, 2, false, bf16, bf16)
YN_FEW(few, 8, 4, false, f16, f16)
YN_FEW(few, 8, 4, false, bf16, bf16)
YN_FEW(few, 16, 2, false, f16, f16)
YN_FEW(few, 16, 2, false, bf16, bf16)
YN_FEW(normed, 8, 2, true, f16, f16)
YN_FEW(normed, 8, 2, true, bf16, bf16)
YN_FEW(normed, 8, 4, true, f16, f16)
YN_FEW(normed, 8, 4, true, bf16, bf16)
