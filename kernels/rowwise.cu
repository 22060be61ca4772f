// Ops that treat each number or row alone, all bound by memory:
// embed:       out[t] = table[ids[t]] * scale; an id below 0 is the last token of sampler row -id - 1.
//              out: act [T, cols]; table: any weight dtype [rows, cols]; ids: i32 [T]; state: i32 [R, state_cols].
// act_mul:     out = activation(gate) * up; out: act [T, cols]; gate_up: act [T, 2 cols], gate first.
// soft_cap:    x = cap * tanh(x / cap), in place; x: f32 [n].
// round:       x as a dtype of activations keeps it, in place; x: f32 [n].
// gather_rows: out[s] = x[index[s]]; rows of `row_bytes`.
// copy_rows:   out[to[i]] = x[from[i]]; rows of words.
// mask_logits: x[s][v] = -infinity where a bit is not set; x: f32 [S, V]; masks: i32 [S, ceil(V / 32)].
//
// A thread has eight numbers (sixteen bytes of a gather), or as many single ones where rows are not whole vectors. Exact to
// the last bits of f32: no fast exponentials here.
// Instances: embed 3 act x 3 table dtypes, act_mul 3 act dtypes x 2 activations, gather_rows by 16 and by 2 bytes, copy_rows by
// 16 and by 4. `_aligned`: act_mul and soft_cap with the roundings and formulas of the reference implementation, for 2 act dtypes.
#include "activation.cuh"
#include "aligned.cuh"

constexpr uint32_t BLOCK = 128;

struct EmbedParams {
  uint64_t out;
  uint64_t table;
  uint64_t ids;
  uint64_t state;
  uint64_t fault;
  uint32_t cols;
  uint32_t table_rows;
  uint32_t state_rows;
  uint32_t state_cols;
  uint32_t last_token;  // column of `state`
  float scale;
  uint32_t vectors;  // rows are whole vectors
  uint32_t unused;
};
static_assert(sizeof(EmbedParams) == 72, "mirrored in src/hal/cuda/ops/rowwise.rs");

// Grid: a row of blocks for each token, 8 * BLOCK columns a block.
template <typename T, typename W>
__device__ __forceinline__ void embed(const EmbedParams& p) {
  const uint32_t t = blockIdx.x;
  int id = at<int>(p.ids)[t];
  if (id < 0) {
    const uint32_t row = uint32_t(-(id + 1));
    id = row < p.state_rows ? at<int>(p.state)[uint64_t(row) * p.state_cols + p.last_token] : -1;
  }
  const bool known = uint32_t(id) < p.table_rows;
  if (!known && blockIdx.y == 0 && threadIdx.x == 0) fault(p.fault, EMBED_ID, t, uint32_t(id));
  const W* from = at<W>(p.table) + uint64_t(known ? id : 0) * p.cols;
  T* out = at<T>(p.out) + uint64_t(t) * p.cols;
  const float scale = known ? p.scale : 0.0f;
  if (p.vectors) {
    const uint32_t i = 8 * (blockIdx.y * BLOCK + threadIdx.x);
    if (i >= p.cols) return;
    float x[8];
    load8(from + i, x);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= scale;
    store8(out + i, x);
  } else {
    const uint32_t first = 8 * blockIdx.y * BLOCK;
    for (uint32_t i = first + threadIdx.x; i < min(first + 8 * BLOCK, p.cols); i += BLOCK) {
      out[i] = narrowed<T>(widen(from[i]) * scale);
    }
  }
}

struct ActMulParams {
  uint64_t out;
  uint64_t gate_up;
  uint32_t cols;
  uint32_t vectors;
};
static_assert(sizeof(ActMulParams) == 24, "mirrored in src/hal/cuda/ops/rowwise.rs");

// The same by the formula whose roundings the reference has.
struct GeluTanhAligned {
  __device__ __forceinline__ float operator()(float g) const {
    const float cube = g * g * g, inner = 0.7978845608028654f * (g + 0.044715f * cube);
    return 0.5f * g * (1.0f + tanhf(inner));
  }
};
// An activation whose result T keeps.
template <typename T, typename Act>
struct Rounded {
  __device__ __forceinline__ float operator()(float g) const { return rounded<T>(Act()(g)); }
};

template <typename T, typename Act>
__device__ __forceinline__ void act_mul(const ActMulParams& p) {
  const Act act;
  const T* gate = at<T>(p.gate_up) + 2 * uint64_t(blockIdx.x) * p.cols;
  const T* up = gate + p.cols;
  T* out = at<T>(p.out) + uint64_t(blockIdx.x) * p.cols;
  if (p.vectors) {
    const uint32_t i = 8 * (blockIdx.y * BLOCK + threadIdx.x);
    if (i >= p.cols) return;
    float g[8], u[8];
    load8(gate + i, g);
    load8(up + i, u);
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = act(g[j]) * u[j];
    store8(out + i, g);
  } else {
    const uint32_t first = 8 * blockIdx.y * BLOCK;
    for (uint32_t i = first + threadIdx.x; i < min(first + 8 * BLOCK, p.cols); i += BLOCK) {
      out[i] = narrowed<T>(act(widen(gate[i])) * widen(up[i]));
    }
  }
}

struct SoftCapParams {
  uint64_t x;
  uint64_t n;
  float cap;
  uint32_t unused;
};
static_assert(sizeof(SoftCapParams) == 24, "mirrored in src/hal/cuda/ops/rowwise.rs");

// Each number of a thread's share through `f`.
template <typename F>
__device__ __forceinline__ void each_in_place(const SoftCapParams& p, const F& f) {
  const uint64_t first = 8 * uint64_t(BLOCK) * blockIdx.x;
  float* x = at<float>(p.x);
#pragma unroll
  for (uint32_t j = 0; j < 8; j++) {
    const uint64_t i = first + j * BLOCK + threadIdx.x;
    if (i < p.n) x[i] = f(x[i]);
  }
}

extern "C" __global__ void yn_soft_cap(const __grid_constant__ SoftCapParams p) {
  after_prior();
  each_in_place(p, [&](float x) { return p.cap * tanhf(x / p.cap); });
}

template <typename T>
__device__ __forceinline__ void soft_cap_aligned(const SoftCapParams& p) {
  const float inverse = 1.0f / p.cap;
  each_in_place(p, [&](float x) { return rounded<T>(rounded<T>(tanhf(rounded<T>(x * inverse))) * p.cap); });
}

struct GatherParams {
  uint64_t out;
  uint64_t x;
  uint64_t index;
  uint64_t fault;
  uint32_t row_units;  // of 16 or 2 bytes
  uint32_t rows;       // of x
};
static_assert(sizeof(GatherParams) == 40, "mirrored in src/hal/cuda/ops/rowwise.rs");

template <typename Unit>
__device__ __forceinline__ void gather(const GatherParams& p) {
  const uint32_t s = blockIdx.x;
  const int from = at<int>(p.index)[s];
  if (uint32_t(from) >= p.rows) {
    if (blockIdx.y == 0 && threadIdx.x == 0) fault(p.fault, GATHER_INDEX, s, uint32_t(from));
    return;
  }
  const Unit* x = at<Unit>(p.x) + uint64_t(from) * p.row_units;
  Unit* out = at<Unit>(p.out) + uint64_t(s) * p.row_units;
  for (uint32_t i = blockIdx.y * BLOCK + threadIdx.x; i < p.row_units; i += gridDim.y * BLOCK) out[i] = x[i];
}

extern "C" __global__ void yn_gather_rows_16(const __grid_constant__ GatherParams p) {
  after_prior();
  gather<uint4>(p);
}
extern "C" __global__ void yn_gather_rows_2(const __grid_constant__ GatherParams p) {
  after_prior();
  gather<uint16_t>(p);
}

struct CopyRowsParams {
  uint64_t out;
  uint64_t to;
  uint64_t x;
  uint64_t from;
  uint64_t fault;
  uint32_t row_units;  // of 16 or 4 bytes
  uint32_t out_rows;
  uint32_t x_rows;
  uint32_t unused;
};
static_assert(sizeof(CopyRowsParams) == 56, "mirrored in src/hal/cuda/ops/rowwise.rs");

// Grid: copies x blocks along a row.
template <typename Unit>
__device__ __forceinline__ void copy_rows(const CopyRowsParams& p) {
  const uint32_t i = blockIdx.x;
  const uint32_t to = uint32_t(at<int>(p.to)[i]), from = uint32_t(at<int>(p.from)[i]);
  if (to >= p.out_rows || from >= p.x_rows) {
    if (blockIdx.y == 0 && threadIdx.x == 0) fault(p.fault, GATHER_INDEX, i, to >= p.out_rows ? to : from);
    return;
  }
  const Unit* x = at<Unit>(p.x) + uint64_t(from) * p.row_units;
  Unit* out = at<Unit>(p.out) + uint64_t(to) * p.row_units;
  for (uint32_t j = blockIdx.y * BLOCK + threadIdx.x; j < p.row_units; j += gridDim.y * BLOCK) out[j] = x[j];
}

extern "C" __global__ void yn_copy_rows_16(const __grid_constant__ CopyRowsParams p) {
  after_prior();
  copy_rows<uint4>(p);
}
extern "C" __global__ void yn_copy_rows_4(const __grid_constant__ CopyRowsParams p) {
  after_prior();
  copy_rows<uint32_t>(p);
}

struct MaskParams {
  uint64_t logits;
  uint64_t masks;
  uint32_t vocabulary;
  uint32_t mask_words;
};
static_assert(sizeof(MaskParams) == 24, "mirrored in src/hal/cuda/ops/rowwise.rs");

// Grid: rows x blocks of 8 * BLOCK logits.
extern "C" __global__ void yn_mask_logits(const __grid_constant__ MaskParams p) {
  after_prior();
  float* logits = at<float>(p.logits) + uint64_t(blockIdx.x) * p.vocabulary;
  const uint32_t* mask = at<uint32_t>(p.masks) + uint64_t(blockIdx.x) * p.mask_words;
  const uint32_t first = 8 * BLOCK * blockIdx.y;
#pragma unroll
  for (uint32_t j = 0; j < 8; j++) {
    const uint32_t v = first + j * BLOCK + threadIdx.x;
    if (v < p.vocabulary && (mask[v / 32] >> (v % 32) & 1) == 0) logits[v] = -INFINITY;
  }
}

#define YN_EMBED(A, TA, W, TW) \
  extern "C" __global__ void yn_embed_##W##_##A(const __grid_constant__ EmbedParams p) {                \
    after_prior();                                                                                      \
    embed<TA, TW>(p);                                                                                   \
  }
#define YN_ROWWISE(A, TA)                                                                               \
  YN_EMBED(A, TA, f32, float)                                                                           \
  YN_EMBED(A, TA, f16, f16)                                                                             \
  YN_EMBED(A, TA, bf16, bf16)                                                                           \
  extern "C" __global__ void yn_silu_mul_##A(const __grid_constant__ ActMulParams p) {                  \
    after_prior();                                                                                      \
    act_mul<TA, Silu>(p);                                                                               \
  }                                                                                                     \
  extern "C" __global__ void yn_gelu_mul_##A(const __grid_constant__ ActMulParams p) {                  \
    after_prior();                                                                                      \
    act_mul<TA, GeluTanh>(p);                                                                           \
  }

YN_ROWWISE(f32, float)
YN_ROWWISE(f16, f16)
YN_ROWWISE(bf16, bf16)

#define YN_ROWWISE_ALIGNED(A, TA)                                                                       \
  extern "C" __global__ void yn_silu_mul_aligned_##A(const __grid_constant__ ActMulParams p) {          \
    after_prior();                                                                                      \
    act_mul<TA, Rounded<TA, Silu>>(p);                                                                  \
  }                                                                                                     \
  extern "C" __global__ void yn_gelu_mul_aligned_##A(const __grid_constant__ ActMulParams p) {          \
    after_prior();                                                                                      \
    act_mul<TA, Rounded<TA, GeluTanhAligned>>(p);                                                       \
  }                                                                                                     \
  extern "C" __global__ void yn_soft_cap_aligned_##A(const __grid_constant__ SoftCapParams p) {         \
    after_prior();                                                                                      \
    soft_cap_aligned<TA>(p);                                                                            \
  }                                                                                                     \
  extern "C" __global__ void yn_round_##A(const __grid_constant__ SoftCapParams p) {                    \
    after_prior();                                                                                      \
    each_in_place(p, [](float x) { return rounded<TA>(x); });                                           \
  }

YN_ROWWISE_ALIGNED(f16, f16)
YN_ROWWISE_ALIGNED(bf16, bf16)
