// linear of many rows in mode `fast` with the gate behind it: out = activation(gate) * up, of gate and up = x * w^T + bias, each rounded to
// act.
// out: act [M, N / 2]; x: act [M, K]; w: act [N, K], gates first; bias: f32 [N].
//
// Of a tile's columns half are gates and half what those multiply, so that a thread has both. Its sums, rounded to act, take half as many
// registers while they wait; a part of the end is four eights of columns.
// Instances: f16 and bf16 x 192, 224 and 256 columns. Other architectures have empty bodies, which are never launched.
#include "activation.cuh"
#include "linear_large.cuh"

#ifdef YN_SM90A

template <typename T, uint32_t COLUMNS, typename Act>
struct Gates {
  // Of a tile of out: columns, eights of them, and what a thread has of it in parts of four times two columns.
  static constexpr uint32_t WIDTH = COLUMNS / 2, EIGHTS = WIDTH / 8, PARTS = EIGHTS / 2;
  const LargeParams& p;
  const uint32_t lane;
  // Of the tile that it took, and where that begins for this thread; of none at first, behind the last row.
  uint32_t kept[COLUMNS / 4] = {}, row, column = 0;

  __device__ __forceinline__ Gates(const LargeParams& p, uint32_t lane) : p(p), lane(lane), row(p.m) {}

  __device__ __forceinline__ void take(float (&sums)[COLUMNS / 2], uint32_t from_row, uint32_t from_column) {
    row = from_row;
    column = from_column;
    if (p.bias != 0) add_bias(sums, column + lane % 4 * 2);
#pragma unroll
    for (uint32_t i = 0; i < COLUMNS / 4; i++) kept[i] = pack<T>(sums[2 * i], sums[2 * i + 1]);
  }

  // `column`: the thread's first one of out.
  __device__ __forceinline__ void add_bias(float (&sums)[COLUMNS / 2], uint32_t column) const {
#pragma unroll
    for (uint32_t eight = 0; eight < COLUMNS / 8; eight++) {
      const uint32_t of = column + 8 * (eight % EIGHTS);
      if (of >= p.n) continue;
      const float2 bias = *reinterpret_cast<const float2*>(at<float>(p.bias) + eight / EIGHTS * p.n + of);
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) sums[4 * eight + i] += i % 2 == 0 ? bias.x : bias.y;
    }
  }

  // Two columns of out: of the thread's eight of them, and of its row or the one 8 below.
  __device__ __forceinline__ uint32_t finished(uint32_t eight, uint32_t below) const {
    const float2 gate = unpack<T>(kept[2 * eight + below]), up = unpack<T>(kept[2 * (eight + EIGHTS) + below]);
    return pack<T>(Act()(gate.x) * up.x, Act()(gate.y) * up.y);
  }

  // A part: four eights of columns of one row of the thread's two, or two of both where no four are left. Each lane stores one of them.
  __device__ __forceinline__ void finish(uint32_t part) const {
    const uint32_t eight = part / 2 * 4, j = lane % 4;
    const bool fours = eight + 4 <= EIGHTS;
    uint32_t x[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      x[i] = fours ? finished(eight + i, part % 2) : finished(eight + i % 2, i / 2);
    }
    swap_blocks(x, lane);
    const uint32_t to_row = row + 8 * (fours ? part % 2 : j / 2), to_column = column + 8 * (eight + (fours ? j : j % 2));
    if (to_row >= p.m || to_column >= p.n) return;
    *reinterpret_cast<uint4*>(at<T>(p.out) + uint64_t(to_row) * p.n + to_column) = make_uint4(x[0], x[1], x[2], x[3]);
  }
};

#define YN_LARGE_BODY(COLUMNS, T)                                                                      \
  YN_DYNAMIC_SHARED(dynamic);                                                                          \
  __shared__ LargeBarriers barriers;                                                                   \
  Large<T, COLUMNS, COLUMNS / 2> large(p, barriers, dynamic + (-shared_address(dynamic) & 1023));      \
  large.run(                                                                                           \
      [&] {                                                                                            \
        /* Without branches, which would keep a warp from its next products. */                        \
        if (p.gelu) large.compute(Gates<T, COLUMNS, GeluTanhFast>(p, large.lane));                     \
        else large.compute(Gates<T, COLUMNS, SiluFast>(p, large.lane));                                \
      },                                                                                               \
      [] {})

#else
#define YN_LARGE_BODY(COLUMNS, T) wait_for_prior()
#endif

#define YN_LARGE_OF(COLUMNS, NAME, T)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                             \
      yn_linear_large_##COLUMNS##_##NAME(const __grid_constant__ LargeParams p) {     \
    let_next_start();                                                                  \
    YN_LARGE_BODY(COLUMNS, T);                                                         \
  }
#define YN_LARGE(COLUMNS)            \
  YN_LARGE_OF(COLUMNS, f16, f16)     \
  YN_LARGE_OF(COLUMNS, bf16, bf16)
YN_LARGE(192)
YN_LARGE(224)
YN_LARGE(256)
