// linear of some rows in mode `fast`: out = x * w^T + bias. out: act or f32 [M, N]; x: act [M, K]; w: act [N, K]; bias: f32 [N].
// Bound by reading w once. With a gate out is act [M, N / 2]: activation(gate) * up, gates being the first half of w's rows; each
// intermediate result is rounded to act, as ops one by one would.
// A norm between two products takes no launch: the first one adds its rows to the residual stream, gives the sums times the norm's
// weights as out, and for each unit the squares of its sums; the second one takes that out as x and scales its rows at the end.
//
// Every multiprocessor has a block, and each block, or pair of blocks, one unit: as many strips of 8 columns as the next one, or one
// more. The blocks of a pair are a cluster, have half of k each, finish every other eight rows each, and store the other's sums in its
// shared memory: whoever waits for memory at the end of a product waits for all the weights that are on their way.
// One warp has w's slots copied into a ring, the first ones while the launch in front is still under way, and another x's into a
// ring of its own; rings are so large that no two blocks fit on a multiprocessor, where a launch could not but put them while the
// small ones in front of it end. Two warpgroups multiply, each every other slot: w's slot is the
// first operand of wgmma and x's the second, so that few rows waste little. A slot is free as soon as its products are done.
// Slots are copied by the hardware (tensor maps): two boxes of 64 numbers of k and of up to 64 rows by one instruction, swizzled by 128
// bytes.
// A warpgroup has STRIPES stripes of a unit, a slot each for one slot of x: of two, with a gate, one of gates and one of what they
// multiply, so that a thread has both.
// Instances: f16 and bf16 x up to 16, 32, 48 and 64 rows x 1 and 2 stripes. Other architectures have empty bodies, which are never
// launched.
#include "activation.cuh"
#include "common.cuh"
#include "hopper.cuh"

struct MidParams {
  alignas(64) unsigned char w_map[128];  // CUtensorMap of w: slots of `rows` rows
  alignas(64) unsigned char x_map[128];  // of x: slots of ROWS rows
  uint64_t out;
  uint64_t bias;      // 0: none
  uint64_t residual;  // act [M, N]; 0: none
  uint64_t weight;    // f32 [N], of the norm of sums
  uint64_t given;     // f32 [units, MOST_ROWS]: squares of sums
  uint64_t taken;     // those of the product that x comes from; 0: none
  uint32_t m;
  uint32_t n;         // columns of out
  uint32_t rows;      // of a stripe: whole strips
  uint32_t apart;     // rows of w from a warpgroup's stripe to its next
  uint32_t tiles;     // of k, BOXES boxes each
  uint32_t stages;    // slots of w's ring, an even number
  uint32_t x_stages;
  uint32_t wide;      // out is f32
  uint32_t pairs;     // rows of out are whole aligned pairs
  uint32_t gate;      // of two stripes
  uint32_t k;         // columns of x
  uint32_t units;     // that gave squares
  float eps;
};
static_assert(sizeof(MidParams) == 384, "mirrored in src/hal/cuda/ops/linear_mid.rs");

constexpr uint32_t GROUPS = 2, WARPS = 4 * GROUPS, MULTIPLY = 32 * WARPS, THREADS = MULTIPLY + 64, MAX_STAGES = 16;
constexpr uint32_t BOXES = 2, ROW_BYTES = 128, MOST_ROWS = 64;

#ifdef YN_SM90A

struct MidShared {
  uint64_t full[MAX_STAGES], free[MAX_STAGES];
  uint64_t x_full[MAX_STAGES], x_free[MAX_STAGES];
  uint64_t given;                   // sums from the other block of a pair are here
  float squares[WARPS][MOST_ROWS];  // of rows of x, later of sums
  float scales[MOST_ROWS];
};

// A place in a ring.
struct Place {
  uint32_t stage, parity;
  __device__ __forceinline__ void step(uint32_t by, uint32_t stages) {
    stage += by;
    if (stage >= stages) stage -= stages, parity ^= 1;
  }
};

template <typename T, uint32_t ROWS, uint32_t STRIPES>
struct Mid {
  static constexpr uint32_t X_BYTES = BOXES * ROWS * ROW_BYTES, EIGHTS = ROWS / 8, HALF = EIGHTS / 2;
  using Sums = float[4];
  const MidParams& p;
  MidShared& sh;
  unsigned char* ring;
  const uint32_t warp, lane, slot_bytes;
  uint32_t column, end;     // of this unit
  uint32_t tile, tiles;     // of this block's part of k: the first one, and the one behind the last
  // Of each stripe, and each eight rows of x: rows lane % 4 * 2 and the next of column lane / 4 of the warp's sixteen, then of the one 8
  // behind.
  float acc[STRIPES][EIGHTS][4];
  // Of one stripe: of the columns that a lane stores, what is added to them, and weights of the norm.
  uint32_t residual[EIGHTS][2];
  float2 weights[2];

  __device__ Mid(const MidParams& p, MidShared& sh, unsigned char* ring)
      : p(p), sh(sh), ring(ring), warp(threadIdx.x / 32), lane(threadIdx.x % 32), slot_bytes(BOXES * p.rows * ROW_BYTES) {
    const uint32_t strips = (p.n + 7) / 8;
    column = strips * blockIdx.x / gridDim.x * 8;
    end = min(p.n, strips * (blockIdx.x + 1) / gridDim.x * 8);
    tile = p.tiles * blockIdx.z / gridDim.z;
    tiles = p.tiles * (blockIdx.z + 1) / gridDim.z;
  }

  // The first row of w of a warpgroup's stripe `i`.
  __device__ uint32_t stripe_of(uint32_t i, uint32_t group) const { return column + group * p.rows + i * p.apart; }

  // One thread each: all slots of the block, in order.
  __device__ void copy_w() {
    Place at = {0, 1};
#pragma unroll 1
    for (uint32_t t = tile; t < tiles; t++) {
      for (uint32_t stripe = 0; stripe < GROUPS * STRIPES; stripe++) {
        const uint32_t row = stripe_of(stripe / GROUPS, stripe % GROUPS);
        barrier_wait(&sh.free[at.stage], at.parity);
        barrier_expect(&sh.full[at.stage], slot_bytes);
        copy_tile(ring + at.stage * slot_bytes, p.w_map, int(row), int(t * BOXES), &sh.full[at.stage]);
        at.step(1, p.stages);
      }
    }
  }
  __device__ void copy_x() {
    wait_for_prior();
    Place at = {0, 1};
#pragma unroll 1
    for (uint32_t t = tile; t < tiles; t++) {
      barrier_wait(&sh.x_free[at.stage], at.parity);
      barrier_expect(&sh.x_full[at.stage], X_BYTES);
      copy_tile(x_ring() + at.stage * X_BYTES, p.x_map, 0, int(t * BOXES), &sh.x_full[at.stage]);
      at.step(1, p.x_stages);
    }
  }
  __device__ unsigned char* x_ring() const { return ring + p.stages * slot_bytes; }

  __device__ void compute() {
    if (p.residual != 0) load_weights();
    wait_for_prior();
    if (p.taken != 0) take_squares();
    if (p.residual != 0) load_residual();
    Place w = {warp / 4, 0}, x = {0, 0};
    for (uint32_t t = tile; t < tiles; t++) {
      barrier_wait(&sh.x_full[x.stage], x.parity);
#pragma unroll
      for (uint32_t i = 0; i < STRIPES; i++) {
        barrier_wait(&sh.full[w.stage], w.parity);
        multiply(reinterpret_cast<float(&)[ROWS / 2]>(acc[i]), w.stage, x.stage, t > tile);
        if (lane == 0) barrier_arrive(&sh.free[w.stage]);
        w.step(GROUPS, p.stages);
      }
      if (lane == 0) barrier_arrive(&sh.x_free[x.stage]);
      x.step(1, p.x_stages);
    }
  }
  // What is needed at the end is on its way before the products.
  __device__ void load_weights() {
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
      const uint32_t to = stored() + 8 * j;
      if (to < end) weights[j] = *reinterpret_cast<const float2*>(at<float>(p.weight) + to);
    }
  }
  __device__ void load_residual() {
#pragma unroll
    for (uint32_t eight = 0; eight < EIGHTS; eight++)
#pragma unroll
      for (uint32_t j = 0; j < 2; j++) {
        const uint32_t row = 8 * eight + lane / 4, to = stored() + 8 * j;
        if (is_mine(eight) && row < p.m && to < end) residual[eight][j] = *in_row(p.residual, row, to);
      }
  }
  // Each warp adds up the squares that every eighth unit gave.
  __device__ void take_squares() {
    constexpr uint32_t AT_ONCE = 9;
#pragma unroll
    for (uint32_t row = lane; row < ROWS; row += 32) {
      float sum = 0;
      for (uint32_t from = warp; from < p.units; from += AT_ONCE * WARPS) {
        float parts[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
          const uint32_t unit = from + i * WARPS;
          parts[i] = unit < p.units ? at<float>(p.taken)[unit * MOST_ROWS + row] : 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) sum += parts[i];
      }
      sh.squares[warp][row] = sum;
    }
  }
  __device__ float total_squares(uint32_t row) const {
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < WARPS; i++) sum += sh.squares[i][row];
    return sum;
  }

  // Rows of a slot behind the last one are those of others; nobody looks at their sums.
  __device__ __forceinline__ void multiply(float (&sums)[ROWS / 2], uint32_t w_stage, uint32_t x_stage, int keeps) {
    const uint32_t w = shared_address(ring) + w_stage * slot_bytes, x = shared_address(x_ring()) + x_stage * X_BYTES;
    wgmma_begin();
#pragma unroll
    for (uint32_t box = 0; box < BOXES; box++) {
      const uint64_t a = swizzled_tile(w + box * p.rows * ROW_BYTES, 0), b = swizzled_tile(x + box * ROWS * ROW_BYTES, 0);
#pragma unroll
      for (uint32_t k = 0; k < 4; k++) wgmma_shared<T, ROWS>(sums, a + 2 * k, b + 2 * k, keeps | int(box + k));
    }
    wgmma_commit();
    wgmma_wait<0>();
  }

  // Sums from the other block of a pair stand behind the rings.
  __device__ float4* given(uint32_t i, uint32_t of_half) const {
    return reinterpret_cast<float4*>(x_ring() + p.x_stages * X_BYTES) + (i * HALF + of_half) * MULTIPLY + threadIdx.x;
  }
  __device__ bool is_mine(uint32_t eight) const { return gridDim.z == 1 || eight % 2 == blockIdx.z; }
  __device__ void give() {
#pragma unroll
    for (uint32_t i = 0; i < STRIPES; i++)
#pragma unroll
      for (uint32_t eight = 0; eight < EIGHTS; eight++)
        if (!is_mine(eight)) send_to_cluster(given(i, eight / 2), &sh.given, blockIdx.z ^ 1, as_float4(acc[i][eight]));
  }
  static __device__ float4 as_float4(const float (&x)[4]) { return make_float4(x[0], x[1], x[2], x[3]); }

  // Eight rows after eight by the same code.
  __device__ void finish() {
    if (p.taken != 0) make_scales();
    if (gridDim.z > 1) barrier_wait(&sh.given, 0);
#pragma unroll 1
    for (uint32_t eight = 0; eight < EIGHTS; eight++) {
      if (is_mine(eight)) finish_eight(eight);
#pragma unroll
      for (uint32_t next = 1; next < EIGHTS; next++) {
#pragma unroll
        for (uint32_t i = 0; i < STRIPES; i++) copy(acc[i][next - 1], acc[i][next]);
        residual[next - 1][0] = residual[next][0], residual[next - 1][1] = residual[next][1];
      }
    }
    if (p.residual != 0) give_squares();
  }
  static __device__ void copy(Sums& to, const Sums& from) {
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) to[j] = from[j];
  }
  // Their sums stand in front.
  __device__ __forceinline__ void finish_eight(uint32_t eight) {
#pragma unroll
    for (uint32_t i = 0; i < STRIPES; i++) {
      Sums& sums = acc[i][0];
      if (gridDim.z > 1) take(*given(i, eight / 2), sums);
      if (p.taken != 0) scale(eight, sums);
      if (p.bias != 0) add_bias(i, sums);
    }
    if (STRIPES == 1 && p.residual != 0) return add_residual(eight, acc[0][0]);
    if (STRIPES == 2 && p.gate != NONE) {
      multiply_gates(acc[0][0], acc[STRIPES - 1][0]);
      return store_stripe(0, eight, acc[0][0]);
    }
#pragma unroll
    for (uint32_t i = 0; i < STRIPES; i++) store_stripe(i, eight, acc[i][0]);
  }
  static __device__ void take(float4 other, Sums& sums) {
    sums[0] += other.x, sums[1] += other.y, sums[2] += other.z, sums[3] += other.w;
  }

  // Products of rows that are not normed yet become those of normed ones.
  __device__ void make_scales() {
    meet(1, MULTIPLY);
    if (threadIdx.x < ROWS) sh.scales[threadIdx.x] = 1.0f / sqrtf(total_squares(threadIdx.x) / float(p.k) + p.eps);
    meet(1, MULTIPLY);
  }
  __device__ void scale(uint32_t eight, Sums& sums) const {
    const float2 scales = *reinterpret_cast<const float2*>(sh.scales + 8 * eight + lane % 4 * 2);
    sums[0] *= scales.x, sums[1] *= scales.y, sums[2] *= scales.x, sums[3] *= scales.y;
  }
  // The sum stands in the residual stream; out is the sum times the norm's weights.
  __device__ void add_residual(uint32_t eight, const Sums& sums) {
    const uint32_t row = 8 * eight + lane / 4;
    const uint32_t products[2] = {transposed(pack<T>(sums[0], sums[1])), transposed(pack<T>(sums[2], sums[3]))};
    float squares = 0;
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
      const float2 product = unpack<T>(products[j]), before = unpack<T>(residual[0][j]);
      const uint32_t to = stored() + 8 * j, two = pack<T>(before.x + product.x, before.y + product.y);
      if (row >= p.m || to >= last_stored()) continue;
      const float2 sum = unpack<T>(two);
      *in_row(p.residual, row, to) = two;
      *in_row(p.out, row, to) = pack<T>(sum.x * weights[j].x, sum.y * weights[j].y);
      squares = fmaf(sum.x, sum.x, fmaf(sum.y, sum.y, squares));
    }
    squares += __shfl_xor_sync(ALL, squares, 1);
    squares += __shfl_xor_sync(ALL, squares, 2);
    if (lane % 4 == 0) sh.squares[warp][row] = squares;
  }
  // Of the sums of a unit, where the product behind takes them.
  __device__ void give_squares() {
    meet(1, MULTIPLY);
    if (threadIdx.x < ROWS && is_mine(threadIdx.x / 8)) {
      at<float>(p.given)[blockIdx.x * MOST_ROWS + threadIdx.x] = total_squares(threadIdx.x);
    }
  }
  // The first column that a lane stores of its warpgroup's first stripe, and the one behind the stripe.
  __device__ uint32_t stored() const { return stripe_of(0, warp / 4) + warp % 4 * 16 + lane % 4 * 2; }
  __device__ uint32_t last_stored() const { return min(end, stripe_of(0, warp / 4) + p.rows); }
  __device__ uint32_t* in_row(uint64_t rows, uint32_t row, uint32_t at_column) const {
    return reinterpret_cast<uint32_t*>(at<T>(rows) + uint64_t(row) * p.n + at_column);
  }
  __device__ void add_bias(uint32_t i, Sums& sums) const {
    const uint32_t behind = p.gate != NONE ? i * p.apart : 0, first = stripe_of(i, warp / 4) + warp % 4 * 16 + lane / 4;
    const float low = bias(first, end + behind), high = bias(first + 8, end + behind);
    sums[0] += low, sums[1] += low, sums[2] += high, sums[3] += high;
  }
  // Each as activations keep it.
  __device__ void multiply_gates(Sums& gates, const Sums& ups) const {
    if (p.gate == SILU) multiply_gates(SiluFast(), gates, ups);
    else multiply_gates(GeluTanhFast(), gates, ups);
  }
  template <typename Activation>
  static __device__ void multiply_gates(Activation activation, Sums& gates, const Sums& ups) {
#pragma unroll
    for (uint32_t j = 0; j < 4; j += 2) {
      const float2 gate = unpack<T>(pack<T>(gates[j], gates[j + 1])), up = unpack<T>(pack<T>(ups[j], ups[j + 1]));
      gates[j] = activation(gate.x) * up.x;
      gates[j + 1] = activation(gate.y) * up.y;
    }
  }
  __device__ void store_stripe(uint32_t i, uint32_t eight, const Sums& sums) const {
    // The columns that a lane has sums of, and those that it stores.
    const uint32_t stripe = stripe_of(i, warp / 4), first = stripe + warp % 4 * 16, last = min(end, stripe + p.rows);
    const uint32_t of = first + lane / 4, to = first + lane % 4 * 2;
    if (p.wide) {
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) store_wide(8 * eight + lane % 4 * 2 + j % 2, of + j / 2 * 8, last, sums[j]);
    } else {
      store(8 * eight + lane / 4, to, last, transposed(pack<T>(sums[0], sums[1])));
      store(8 * eight + lane / 4, to + 8, last, transposed(pack<T>(sums[2], sums[3])));
    }
  }
  __device__ float bias(uint32_t at_column, uint32_t last) const {
    return at_column < last ? at<float>(p.bias)[at_column] : 0;
  }
  __device__ void store_wide(uint32_t row, uint32_t at_column, uint32_t last, float x) const {
    if (row < p.m && at_column < last) at<float>(p.out)[uint64_t(row) * p.n + at_column] = x;
  }
  __device__ void store(uint32_t row, uint32_t at_column, uint32_t last, uint32_t two) const {
    if (row >= p.m || at_column >= last) return;
    T* to = at<T>(p.out) + uint64_t(row) * p.n + at_column;
    if (p.pairs) {
      *reinterpret_cast<uint32_t*>(to) = two;
    } else {
      to[0].bits = uint16_t(two);
      if (at_column + 1 < last) to[1].bits = uint16_t(two >> 16);
    }
  }

  __device__ void run() {
    if (threadIdx.x == 0) {
      prefetch_map(p.w_map);
      prefetch_map(p.x_map);
#pragma unroll 1
      for (uint32_t i = 0; i < p.stages; i++) {
        barrier_init(&sh.full[i], 1);
        barrier_init(&sh.free[i], 4);
      }
#pragma unroll 1
      for (uint32_t i = 0; i < p.x_stages; i++) {
        barrier_init(&sh.x_full[i], 1);
        barrier_init(&sh.x_free[i], WARPS);
      }
      barrier_init(&sh.given, 1);
      barrier_expect(&sh.given, STRIPES * HALF * MULTIPLY * sizeof(float4));
      barrier_publish();
    }
    __syncthreads();
    const bool paired = gridDim.z > 1, multiplies = warp < WARPS;
    if (paired) cluster_arrive();
    if (multiplies) compute();
    else if (warp == WARPS && lane == 0) copy_w();
    else if (warp > WARPS && lane == 0) copy_x();
    __syncwarp();
    if (paired) {
      cluster_wait();  // until both blocks run
      if (multiplies) give();
    }
    if (multiplies) finish();
  }
};

#define YN_MID_BODY(ROWS, STRIPES, T)                                                  \
  YN_DYNAMIC_SHARED(dynamic);                                                          \
  __shared__ MidShared shared;                                                     \
  Mid<T, ROWS, STRIPES> mid(p, shared, dynamic + (-shared_address(dynamic) & 1023)); \
  mid.run()

#else
#define YN_MID_BODY(ROWS, STRIPES, T) wait_for_prior()
#endif

#define YN_MID_OF(ROWS, STRIPES, NAME, T)                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, ROWS * STRIPES > 96 ? 1 : 2)                              \
      yn_linear_mid_##ROWS##_##STRIPES##_##NAME(const __grid_constant__ MidParams p) { \
    let_next_start();                                                                   \
    YN_MID_BODY(ROWS, STRIPES, T);                                                      \
  }
#define YN_MID(ROWS, STRIPES)           \
  YN_MID_OF(ROWS, STRIPES, f16, f16)    \
  YN_MID_OF(ROWS, STRIPES, bf16, bf16)
YN_MID(16, 1)
YN_MID(16, 2)
YN_MID(32, 1)
YN_MID(32, 2)
YN_MID(48, 1)
YN_MID(48, 2)
YN_MID(64, 1)
YN_MID(64, 2)
