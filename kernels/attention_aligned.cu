// paged_attention with the roundings of the reference's eager attention: a score is rounded as a product, again when it is
// scaled, and at each step of the soft cap; weights are e^(score - max) / sum over the whole row in f32, rounded; their product
// with the values is summed in f32 and rounded. Layouts as in attention.cuh.
//
// A block of four warps has 16 rows, a row being one query head of one token, of the heads that share a key head and of the
// tokens of one sequence. It walks the keys three times, 64 at absolute positions at once: for the maxima, for the sums, and
// for the output, so that nothing grows with the context. Sums stand in the order of PyTorch's softmax of up to 1024 numbers of
// f16 and 2048 of bf16: one for each position modulo 32, then a tree. Products walk 16 keys or dimensions at a time, in rising
// order, but for a whole prompt whose number of keys is no multiple of 8: the host says in which order the reference's products
// of that many keys add up (see AlignedParams). So a row's bits depend on nothing but the row, and the length of a whole prompt.
// Bound by latency for single tokens, by arithmetic for many.
// Instances: f16 and bf16, activations and cache alike; any even head dimension up to 256.
#include "aligned.cuh"
#include "attention.cuh"

constexpr uint32_t THREADS = 128, ROWS = 16, TILE = 64, MAX_TILES = 256 / 8 / 4, PROBS_STRIDE = TILE + 8;

// The order of sums of a sequence that stands in the step as a whole and has `keys` keys. The numbers of a sum enter it 8 or 16
// at once, in scores also one by one. Those of the product with the values begin with the first `rest` keys, which are what
// whole tiles of the reference leave; their last group is filled up with zeros, and the next group begins at key `rest`.
struct AlignedParams {
  AttentionParams attention;
  uint32_t keys;
  uint32_t score_step;
  uint32_t value_step;
  uint32_t rest;
};
static_assert(sizeof(AlignedParams) == 176, "mirrored in src/hal/cuda/ops/attention_aligned.rs");

struct AlignedShared {
  uint64_t rows[2][TILE];  // addresses of keys; 0 outside of what is seen
  float sums[ROWS][32];
  float maxima[THREADS / 32][ROWS];
  float max[ROWS], sum[ROWS];
  uint32_t found[2];
};

template <typename T>
struct Aligned {
  const AttentionParams& p;
  const AlignedParams& order;
  AlignedShared& sh;
  T *query, *keys, *values, *probs;  // [ROWS][stride], [2][TILE][stride] twice, [ROWS][PROBS_STRIDE]
  uint32_t stride, dim, steps;       // numbers of a row, those that count, and products of 16 of them
  uint32_t ratio, kv_head, lane, warp;
  uint32_t sequence, from, tokens, before, first_row;  // of the tile of rows
  uint32_t first_key, last_key;
  uint32_t rest = 0, gap = 0;  // places of keys: behind the first `rest` of them so many are empty
  bool ordered, vectors;

  __device__ Aligned(const AlignedParams& params, AlignedShared& shared, unsigned char* dynamic)
      : p(params.attention), order(params), sh(shared) {
    dim = p.head_dim;
    steps = (dim + 15) / 16;
    stride = 16 * steps + 8;
    query = reinterpret_cast<T*>(dynamic);
    keys = query + ROWS * stride;
    values = keys + 2 * TILE * stride;
    probs = values + 2 * TILE * stride;
    ratio = p.heads / p.kv_heads;
    kv_head = blockIdx.y;
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    vectors = dim % 8 == 0 && (p.pool | p.layer_bytes | p.block_bytes) % 16 == 0;
  }

  // The tile with this block's number over all sequences; false behind the last. All threads call it.
  __device__ bool find() {
    const int* starts = at<int>(p.starts);
    if (warp == 0) {
      uint32_t left = blockIdx.x, found = ~0u;
      for (uint32_t base = 0; base < p.sequences && found == ~0u; base += 32) {
        uint32_t tiles = 0;
        if (base + lane < p.sequences) {
          tiles = (uint32_t(starts[base + lane + 1] - starts[base + lane]) * ratio + ROWS - 1) / ROWS;
        }
        uint32_t end = tiles;
#pragma unroll
        for (uint32_t d = 1; d < 32; d *= 2) {
          const uint32_t x = __shfl_up_sync(ALL, end, d);
          if (lane >= d) end += x;
        }
        const uint32_t here = __ballot_sync(ALL, left < end);
        if (here != 0) {
          const uint32_t which = uint32_t(__ffs(int(here))) - 1;
          found = base + which;
          left -= __shfl_sync(ALL, end - tiles, int(which));
        } else {
          left -= __shfl_sync(ALL, end, 31);
        }
      }
      if (lane == 0) sh.found[0] = found, sh.found[1] = left;
    }
    __syncthreads();
    if (sh.found[0] == ~0u) return false;
    sequence = sh.found[0];
    from = uint32_t(starts[sequence]);
    tokens = uint32_t(starts[sequence + 1]) - from;
    const uint32_t context = uint32_t(at<int>(p.context_lens)[sequence]);
    if (context < tokens) return false;
    before = context - tokens;
    ordered = before == 0 && tokens == order.keys;
    first_row = sh.found[1] * ROWS;
    first_key = first_of(position_of(0));
    last_key = position_of(ROWS - 1);
    return true;
  }

  // Rows behind the last are treated as the last one.
  __device__ uint32_t position_of(uint32_t row) const { return before + min(first_row + row, tokens * ratio - 1) / ratio; }
  __device__ uint32_t first_of(uint32_t position) const { return position >= p.window ? position - p.window + 1 : 0; }
  __device__ bool is_row(uint32_t row) const { return first_row + row < tokens * ratio; }
  __device__ uint32_t place_of(uint32_t key) const { return key < rest ? key : key + gap; }
  // No key's number for a place that is empty.
  __device__ uint32_t key_at(uint32_t place) const {
    if (place < rest) return place;
    return place < rest + gap ? ~0u : place - gap;
  }
  // Of a row in a tensor with this many heads for a token.
  __device__ uint64_t element(uint32_t row, uint32_t all_heads) const {
    const uint32_t index = first_row + row;
    return (uint64_t(from + index / ratio) * all_heads + kv_head * ratio + index % ratio) * dim;
  }

  // Columns behind `dim` are zero from here on, as nothing else writes them.
  __device__ void load_queries() {
    const uint32_t rest = stride - dim;
    for (uint32_t i = threadIdx.x; i < (ROWS + 4 * TILE) * rest; i += THREADS) {
      query[i / rest * stride + dim + i % rest] = narrowed<T>(0.0f);
    }
    const T* x = at<T>(p.qkv);
    for (uint32_t i = threadIdx.x; i < ROWS * dim; i += THREADS) {
      const uint32_t row = i / dim, column = i % dim;
      query[row * stride + column] =
          is_row(row) ? x[element(row, p.heads + 2 * p.kv_heads) + column] : narrowed<T>(0.0f);
    }
  }

  __device__ void locate(const KvRows<T>& kv, uint32_t start, uint32_t stage) {
    if (threadIdx.x >= TILE) return;
    const uint32_t position = key_at(start + threadIdx.x);
    uint64_t key = 0;
    if (position >= first_key && position <= last_key) {
      key = kv.key(position);
      if (key == 0) fault(p.fault, KV_BLOCK, sequence, uint32_t(kv.table[position / kv.block_size]));
    }
    sh.rows[stage][threadIdx.x] = key;
  }

  // Keys or values of a tile into one of two stages.
  __device__ void load(T* to, uint32_t stage, uint64_t offset) {
    to += stage * TILE * stride;
    if (vectors) {
      const uint32_t pieces = dim / 8;
      for (uint32_t i = threadIdx.x; i < TILE * pieces; i += THREADS) {
        const uint32_t row = i / pieces, column = i % pieces * 8;
        const uint64_t key = sh.rows[stage][row];
        copy16_async(to + row * stride + column, key != 0 ? at<T>(key + offset) + column : at<T>(p.pool), key != 0);
      }
      return;
    }
    for (uint32_t i = threadIdx.x; i < TILE * dim; i += THREADS) {
      const uint32_t row = i / dim, column = i % dim;
      const uint64_t key = sh.rows[stage][row];
      to[row * stride + column] = key != 0 ? at<T>(key + offset)[column] : narrowed<T>(0.0f);
    }
  }

  // A product as the row's softmax sees it.
  __device__ float score(float product) const {
    float s = rounded<T>(__fmul_rn(rounded<T>(product), p.scale));
    if (p.soft_cap != 0.0f) {
      s = rounded<T>(tanhf(rounded<T>(__fmul_rn(s, 1.0f / p.soft_cap))));
      s = rounded<T>(__fmul_rn(s, p.soft_cap));
    }
    return s;
  }

  // c += a * b, `step` numbers at once.
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, uint32_t step) {
    if (step == 8) {
      mma_short<T>(c, a[0], a[1], b0);
      mma_short<T>(c, a[2], a[3], b1);
    } else {
      mma<T>(c, a, b0, b1);
    }
  }

  // The product of a query and a key of a tile, one dimension after the other.
  __device__ float in_turn(uint32_t row, uint32_t key) const {
    float sum = 0.0f;
#pragma unroll 1
    for (uint32_t i = 0; i < dim; i++) sum = fmaf(widen(query[row * stride + i]), widen(keys[key * stride + i]), sum);
    return sum;
  }

  // Places of a thread in a tile: `half` 0 or 1 of it, `which` of two neighbours.
  __device__ uint32_t column_of(uint32_t half, uint32_t which) const { return half * 32 + warp * 8 + lane % 4 * 2 + which; }

  // Calls `each(half of the rows, half of the tile, which, score)` for what the thread's rows see, places rising.
  template <typename Each>
  __device__ void each_score(uint32_t start, uint32_t stage, const Each& each) const {
    const uint32_t step = ordered ? order.score_step : 16;
    float products[2][4] = {};
    for (uint32_t k = 0; k < steps; k++) {
      uint32_t a[4], b[4];
      load_tiles(a, query + lane % 16 * stride + 16 * k + lane / 16 * 8);
      load_tiles(b, keys + (stage * TILE + lane / 16 * 32 + warp * 8 + lane % 8) * stride + 16 * k + lane / 8 % 2 * 8);
      multiply(products[0], a, b[0], b[1], step);
      multiply(products[1], a, b[2], b[3], step);
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
      const uint32_t last = position_of(r * 8 + lane / 4), first = first_of(last);
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
          const uint32_t key = key_at(start + column_of(h, j));
          if (key < first || key > last) continue;
          if (step == 1) products[h][2 * r + j] = in_turn(r * 8 + lane / 4, stage * TILE + column_of(h, j));
          each(r, h, j, score(products[h][2 * r + j]));
        }
      }
    }
  }

  template <bool VALUES>
  __device__ void begin_tile(const KvRows<T>& kv, uint32_t start, uint32_t stage) {
    locate(kv, start, stage);
    __syncthreads();
    load(keys, stage, 0);
    if (VALUES) load(values, stage, kv.value_bytes);
    copy_commit();
  }

  // Walks the keys: `tile(start, stage)` runs with the keys of a tile, and its values if asked for, in a stage of shared
  // memory, while those of the next one are on their way.
  template <bool VALUES, typename Tile>
  __device__ void walk(const KvRows<T>& kv, const Tile& tile) {
    const uint32_t first = place_of(first_key) / TILE * TILE, last = place_of(last_key);
    uint32_t stage = 0;
    __syncthreads();
    begin_tile<VALUES>(kv, first, stage);
    for (uint32_t start = first; start <= last; start += TILE) {
      if (start + TILE <= last) {
        begin_tile<VALUES>(kv, start + TILE, stage ^ 1);
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      __syncthreads();
      tile(start, stage);
      __syncthreads();
      stage ^= 1;
    }
  }

  __device__ void find_maxima(const KvRows<T>& kv) {
    float max[2] = {-INFINITY, -INFINITY};
    walk<false>(kv, [&](uint32_t start, uint32_t stage) {
      each_score(start, stage, [&](uint32_t r, uint32_t, uint32_t, float s) { max[r] = fmaxf(max[r], s); });
    });
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
      max[r] = fmaxf(max[r], __shfl_xor_sync(ALL, max[r], 1));
      max[r] = fmaxf(max[r], __shfl_xor_sync(ALL, max[r], 2));
      if (lane % 4 == 0) sh.maxima[warp][r * 8 + lane / 4] = max[r];
    }
    __syncthreads();
    if (threadIdx.x < ROWS) {
      float x = sh.maxima[0][threadIdx.x];
#pragma unroll
      for (uint32_t w = 1; w < THREADS / 32; w++) x = fmaxf(x, sh.maxima[w][threadIdx.x]);
      sh.max[threadIdx.x] = x;
    }
    __syncthreads();
  }

  __device__ void find_sums(const KvRows<T>& kv, const float (&max)[2]) {
    float sums[2][2] = {};
    walk<false>(kv, [&](uint32_t start, uint32_t stage) {
      each_score(start, stage, [&](uint32_t r, uint32_t, uint32_t j, float s) {
        sums[r][j] = __fadd_rn(sums[r][j], expf(s - max[r]));
      });
    });
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
#pragma unroll
      for (uint32_t j = 0; j < 2; j++) sh.sums[r * 8 + lane / 4][column_of(0, j)] = sums[r][j];
    }
    __syncthreads();
    for (uint32_t row = warp; row < ROWS; row += THREADS / 32) {
      const float x = reduce_warp(sh.sums[row][lane], Add());
      if (lane == 0) sh.sum[row] = x;
    }
    __syncthreads();
  }

  __device__ void attend() {
    load_queries();
    const KvRows<T> kv(p, sequence, kv_head);
    find_maxima(kv);
    const float max[2] = {sh.max[lane / 4], sh.max[8 + lane / 4]};
    find_sums(kv, max);
    const float sum[2] = {sh.sum[lane / 4], sh.sum[8 + lane / 4]};
    const uint32_t step = ordered ? order.value_step : 16;
    if (ordered) {
      rest = order.rest;
      gap = (step - rest % step) % step;
    }
    float out[MAX_TILES][4] = {};
    const uint32_t tiles = 2 * steps;  // of eight dimensions; a warp has each fourth
    walk<true>(kv, [&](uint32_t start, uint32_t stage) {
      float weights[2][2][2] = {};
      each_score(start, stage, [&](uint32_t r, uint32_t h, uint32_t j, float s) {
        weights[r][h][j] = __fdiv_rn(expf(s - max[r]), sum[r]);
      });
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        T* to = probs + (i / 2 * 8 + lane / 4) * PROBS_STRIDE + column_of(i % 2, 0);
        *reinterpret_cast<uint32_t*>(to) = pack<T>(weights[i / 2][i % 2][0], weights[i / 2][i % 2][1]);
      }
      __syncthreads();
#pragma unroll
      for (uint32_t k = 0; k < TILE / 16; k += 2) {
        uint32_t a[2][4];
        load_tiles(a[0], probs + lane % 16 * PROBS_STRIDE + 16 * k + lane / 16 * 8);
        load_tiles(a[1], probs + lane % 16 * PROBS_STRIDE + 16 * (k + 1) + lane / 16 * 8);
#pragma unroll
        for (uint32_t n = 0; n < MAX_TILES; n++) {
          if (warp + 4 * n >= tiles) break;
          uint32_t b[4];
          load_tiles_transposed(b, values + (stage * TILE + 16 * k + lane) * stride + 8 * (warp + 4 * n));
          multiply(out[n], a[0], b[0], b[1], step);
          multiply(out[n], a[1], b[2], b[3], step);
        }
      }
    });
#pragma unroll
    for (uint32_t n = 0; n < MAX_TILES; n++) {
      const uint32_t column = 8 * (warp + 4 * n) + lane % 4 * 2;
      if (column >= dim) break;
#pragma unroll
      for (uint32_t r = 0; r < 2; r++) {
        const uint32_t row = r * 8 + lane / 4;
        if (!is_row(row)) continue;
        T* to = at<T>(p.out) + element(row, p.heads) + column;
        to[0] = narrowed<T>(out[n][2 * r]);
        to[1] = narrowed<T>(out[n][2 * r + 1]);
      }
    }
  }
};

#define YN_ALIGNED(A, TA)                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS)                           \
      yn_attention_aligned_##A(const __grid_constant__ AlignedParams p) {         \
    after_prior();                                                                \
    YN_DYNAMIC_SHARED(dynamic);                                                   \
    __shared__ AlignedShared shared;                                              \
    Aligned<TA> tile(p, shared, dynamic);                                         \
    if (tile.find()) tile.attend();                                               \
  }
YN_ALIGNED(f16, f16)
YN_ALIGNED(bf16, bf16)
