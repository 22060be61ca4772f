// paged_attention of several query tokens of a sequence (prefill chunks) with the tensor cores and the copy hardware of
// sm_90a: bound by arithmetic. Layouts as in attention.cuh, rows as in attention_tile.cuh. The scheme is FlashAttention 3's
// (arXiv 2407.08608): two groups of four warps compute, and a group's weights are made of one tile's scores while the
// products of the tile before run.
//
// A block has a multiprocessor to itself and takes span after span (attention_hopper.cuh): 128 rows, 64 for each group. Its
// other four warps are a span or two ahead of it. The last products of a span are enqueued with the first scores of the next, so
// the tensor cores do not see where spans end.
//
// Keys and values come in tiles of 128 tokens at absolute positions, as boxes of 16 tokens that the copy hardware swizzles; the
// tensor map describes the whole pool as rows of one head of one token. Keys that a row may not see are scored -inf; values
// behind the last one are zeroed first, since a block can hold anything there and 0 * NaN is not 0. Where few rows see many
// keys, spans are parts of them for yn_attention_prefill_merge.
// Instances: f16 and bf16 x head dimensions 64 and 128. Other architectures have empty bodies, which are never launched.
#include "attention_hopper.cuh"

#ifdef YN_SM90A

// Has the weights done before what comes next. Left alone, the compiler moves the exponentials behind the wait for the products
// that they should run beside; a store in front of it keeps them there, which never happens: sums of weights are not negative.
__device__ __forceinline__ void finish_weights(float sum, uint32_t* unused) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p st.shared.u32 [%1], 0;\n}" ::"f"(sum),
               "r"(shared_address(unused))
               : "memory");
}

// One of the computing groups: 64 rows, of which a thread has lane / 4 and lane / 4 + 8 of its warp's 16.
template <typename T, uint32_t DIM>
struct Group {
  static constexpr uint32_t EIGHT = DIM * 16;  // bytes of eight rows of a tile of keys or values
  const AttentionParams& p;
  HopperShared<T, DIM>& sh;
  const uint32_t group, thread, lane, warp;
  float unit;  // of scores, in powers of two
  float s[KEYS / 2], o[DIM / 2];
  uint32_t weights[KEYS / 16][4];
  float max[2], sum[2];
  uint32_t token[2], head[2];  // of the thread's rows, in a tile
  uint32_t last[2];            // their positions
  uint32_t all_from, all_to;   // keys that all rows of the group see
  __device__ void meet_group() const { meet(1 + group, 128); }
  __device__ __forceinline__ void free(uint64_t* barrier) const {
    if (lane == 0) barrier_arrive(barrier);
  }

  __device__ __forceinline__ void score(uint32_t stage, uint32_t buffer) {
    const uint32_t a = swizzled_low(sh.query[buffer][0][group * GROUP_ROWS], 16), b = swizzled_low(sh.keys[stage], 16);
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      wgmma_shared<T, KEYS>(s, swizzled_at(a, 1024, k / 4 * ROWS * 128 + k % 4 * 32),
                            swizzled_at(b, EIGHT, k / 4 * 1024 + k % 4 * 32), k != 0);
    }
  }
  __device__ __forceinline__ void accumulate(uint32_t stage) {
    const uint32_t b = swizzled_low(sh.values[stage], 1024);
#pragma unroll
    for (uint32_t n = 0; n < KEYS / 16; n++) wgmma_registers<T, DIM>(o, weights[n], swizzled_at(b, EIGHT, n * 2 * EIGHT));
  }

  // The scores of tile `k` of all that the block takes, and the products of the one before, which are still under way at the end.
  __device__ __forceinline__ void enqueue(uint32_t k, uint32_t buffer) {
    wgmma_begin();
    score(k % STAGES, buffer);
    wgmma_commit();
    accumulate((k + STAGES - 1) % STAGES);
    wgmma_commit();
    wgmma_wait<1>();
    free(&sh.keys_free[k % STAGES]);
  }
  __device__ void wait_keys(uint32_t k) { barrier_wait(&sh.keys_full[k % STAGES], k / STAGES % 2); }
  __device__ void wait_values(uint32_t k) { barrier_wait(&sh.values_full[k % STAGES], k / STAGES % 2); }

  // Zeroes the values behind the last one that any row of the block sees, which came with it.
  __device__ void clear_unseen(const Span& span, uint32_t stage) {
    const uint32_t from = span.last_key - span.last_start() + 1, to = (from + BOX - 1) / BOX * BOX;
    if (from >= KEYS || from == to) return;
    for (uint32_t i = thread; i < (to - from) * (DIM / 8); i += 128) {
      const uint32_t key = from + i / (DIM / 8), column = i % (DIM / 8);
      *reinterpret_cast<uint4*>(&sh.values[stage][key / 8][column / 8][key % 8][column % 8 * 8]) = make_uint4(0, 0, 0, 0);
    }
    publish_shared();
    meet_group();
  }

  __device__ __forceinline__ void mask(uint32_t start) {
    const uint32_t own = start + lane % 4 * 2;  // the thread's first key
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const int seen = int(last[h] - own);
#pragma unroll
      for (uint32_t i = 0; i < KEYS / 4; i++) {
        if (int(i / 2 * 8 + i % 2) > seen) s[i / 2 * 4 + 2 * h + i % 2] = -INFINITY;
      }
    }
    if (start >= all_from) return;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const int unseen = int(first_of(p, last[h]) - own);
#pragma unroll
      for (uint32_t i = 0; i < KEYS / 4; i++) {
        if (int(i / 2 * 8 + i % 2) < unseen) s[i / 2 * 4 + 2 * h + i % 2] = -INFINITY;
      }
    }
  }

  // Scores become weights. What was summed before is to shrink by `keep`.
  __device__ __forceinline__ void weigh(uint32_t start, float (&keep)[2]) {
    if (start < all_from || start + KEYS > all_to) mask(start);
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      float top = max[h], other = s[2 * h + 1];
#pragma unroll
      for (uint32_t n = 0; n < KEYS / 8; n++) {
        top = fmaxf(top, s[4 * n + 2 * h]);
        other = fmaxf(other, s[4 * n + 2 * h + 1]);
      }
      top = fmaxf(top, other);
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
      // Nothing seen so far: any finite number will do.
      const float shift = top == -INFINITY ? 0.0f : top * unit;
      keep[h] = weight_of(fmaf(max[h], unit, -shift));
      max[h] = top;
      float total = sum[h] * keep[h], odd = 0;
#pragma unroll
      for (uint32_t n = 0; n < KEYS / 8; n++) {
        float* even = &s[4 * n + 2 * h];
        even[0] = weight_of(fmaf(even[0], unit, -shift));
        even[1] = weight_of(fmaf(even[1], unit, -shift));
        total += even[0];
        odd += even[1];
      }
      sum[h] = total + odd;
    }
    finish_weights(sum[0] + sum[1], &sh.unused);
  }

  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (uint32_t n = 0; n < KEYS / 16; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) weights[n][i] = pack<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
    }
  }

  __device__ void run() {
#pragma unroll
    for (uint32_t i = 0; i < KEYS / 4; i++) weights[i / 4][i % 4] = 0;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
    unit = p.scale * LOG2E;
    const uint32_t ratio = p.heads / p.kv_heads, row = group * GROUP_ROWS + warp * 16 + lane / 4;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) token[h] = (row + 8 * h) / ratio, head[h] = (row + 8 * h) % ratio;
    uint32_t k = 0, n = 0;
    for (;; n++) {
      const Span& span = span_of(sh, n);
      if (!span.there) break;
      begin(span, n, k);
      const uint32_t tiles = span.tiles;
      uint32_t start = span.start;
      k++;
      for (uint32_t t = 1; t < tiles; t++, k++) {
        wait_keys(k);
        wait_values(k - 1);
        start += KEYS;
        enqueue(k, n % QUERIES);
        float keep[2];
        weigh(start, keep);
        wgmma_wait<0>();
        free(&sh.values_free[(k - 1) % STAGES]);
#pragma unroll
        for (uint32_t i = 0; i < DIM / 2; i++) o[i] *= keep[i / 2 % 2];
        pack_weights();
      }
      free(&sh.query_free[n % QUERIES]);
    }
    if (n != 0) end(sh.spans[(n - 1) % SPANS], k - 1);
  }

  // The first tile of a span. The products of the last of the one before end with it; where there is none, they are of no
  // weights and of what happens to be there.
  __device__ __forceinline__ void begin(const Span& span, uint32_t n, uint32_t k) {
    // Rows behind the last see what it sees.
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) last[h] = span.position + min(token[h], span.tokens - 1);
    const uint32_t ratio = p.heads / p.kv_heads, first = group * GROUP_ROWS / ratio, behind = (group + 1) * GROUP_ROWS / ratio;
    all_from = first_of(p, span.position + min(behind, span.tokens - 1));
    all_to = span.position + min(first, span.tokens - 1) + 1;
    const Span& before = sh.spans[(n - 1) % SPANS];
    barrier_wait(&sh.query_full[n % QUERIES], n / QUERIES % 2);
    wait_keys(k);
    if (n != 0) {
      wait_values(k - 1);
      clear_unseen(before, (k - 1) % STAGES);
    }
    enqueue(k, n % QUERIES);
    const float maxima[2] = {max[0], max[1]}, sums[2] = {sum[0], sum[1]};
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
    float keep[2];
    weigh(span.start, keep);
    wgmma_wait<0>();
    if (n != 0) {
      free(&sh.values_free[(k - 1) % STAGES]);
      store(before, maxima, sums);
      barrier_arrive(&sh.span_free[(n - 1) % SPANS]);
    }
#pragma unroll
    for (uint32_t i = 0; i < DIM / 2; i++) o[i] = 0;
    pack_weights();
  }

  __device__ __forceinline__ void end(const Span& span, uint32_t k) {
    wait_values(k);
    clear_unseen(span, k % STAGES);
    wgmma_begin();
    accumulate(k % STAGES);
    wgmma_commit();
    wgmma_wait<0>();
    store(span, max, sum);
  }

  __device__ __forceinline__ void store(const Span& span, const float (&maxima)[2], const float (&sums)[2]) {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      float total = sums[h];
      total += __shfl_xor_sync(ALL, total, 1);
      total += __shfl_xor_sync(ALL, total, 2);
      const bool stored = token[h] < span.tokens;
      const uint64_t place = uint64_t(span.from + token[h]) * p.heads + span.kv_head * (p.heads / p.kv_heads) + head[h];
      if (p.capacity > 1) {
        if (stored) store_part(span.part, place, h, maxima[h], total);
        continue;
      }
      const float inverse = reciprocal(total);
#pragma unroll
      for (uint32_t g = 0; g < DIM / 32; g++) {
        uint32_t x[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
          const float* from = &o[16 * g + 4 * j + 2 * h];
          x[j] = pack<T>(from[0] * inverse, from[1] * inverse);
        }
        swap_blocks(x, lane);
        T* to = at<T>(p.out) + place * DIM + g * 32 + lane % 4 * 8;
        if (stored) *reinterpret_cast<uint4*>(to) = make_uint4(x[0], x[1], x[2], x[3]);
      }
    }
  }

  // A row of one part of several, as attention_prefill.cu leaves them. One that sees no key of it has a maximum of -infinity and
  // sums that nobody reads.
  __device__ __forceinline__ void store_part(uint32_t part, uint64_t place, uint32_t h, float top, float total) {
    place += uint64_t(part) * uint32_t(at<int>(p.starts)[p.sequences]) * p.heads;
    const bool none = top == -INFINITY;
    if (lane % 4 == 0) at<float2>(p.limits)[place] = make_float2(none ? -INFINITY : top * unit, total);
    if (none) return;
#pragma unroll
    for (uint32_t d = 0; d < DIM / 8; d++) {
      at<float2>(p.sums)[(place * DIM + d * 8) / 2 + lane % 4] = make_float2(o[4 * d + 2 * h], o[4 * d + 2 * h + 1]);
    }
  }
};

template <typename T, uint32_t DIM>
__device__ __forceinline__ void attention_hopper(const HopperParams& all) {
  extern __shared__ unsigned char dynamic[];
  const uint32_t unaligned = shared_address(dynamic) % 1024;
  HopperShared<T, DIM>& sh = *reinterpret_cast<HopperShared<T, DIM>*>(dynamic + (1024 - unaligned) % 1024);
  if (threadIdx.x == 0) begin_barriers(sh);
  __syncthreads();
  const AttentionParams& p = all.attention;
  const uint32_t warp = __shfl_sync(ALL, threadIdx.x / 32, 0);
  // What the list begins with was there before the launch in front.
  if (warp != 3) wait_for_prior();
  if (warp < 4) {
    registers_down<40>();
    if (warp == 0) copy_tiles<T, DIM, false>(all, sh);
    else if (warp == 1) copy_tiles<T, DIM, true>(all, sh);
    else if (warp == 3) SpanList(p).run<T, DIM>(sh);
    else if (threadIdx.x % 32 == 0) load_queries<T, DIM>(all, sh);
  } else {
    registers_up<232>();
    const uint32_t thread = threadIdx.x % 128;
    Group<T, DIM> group{p, sh, warp / 4 - 1, thread, thread % 32, warp % 4};
    group.run();
  }
}

#endif

#ifdef YN_SM90A
#define YN_HOPPER_BODY(T, DIM) attention_hopper<T, DIM>(p)
#else
#define YN_HOPPER_BODY(T, DIM) (void)p
#endif

#define YN_HOPPER(DIM)                                                                                            \
  static_assert(sizeof(HopperShared<f16, DIM>) == (QUERIES * ROWS + 2 * STAGES * KEYS) * DIM * 2 + 280,           \
                "mirrored in src/hal/cuda/ops/attention_hopper.rs");                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                        \
      yn_attention_hopper_##DIM##_f16(const __grid_constant__ HopperParams p) {                                   \
    let_next_start();                                                                                             \
    YN_HOPPER_BODY(f16, DIM);                                                                                     \
  }                                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                        \
      yn_attention_hopper_##DIM##_bf16(const __grid_constant__ HopperParams p) {                                  \
    let_next_start();                                                                                             \
    YN_HOPPER_BODY(bf16, DIM);                                                                                    \
  }

YN_HOPPER(64)
YN_HOPPER(128)
