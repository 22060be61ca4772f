// logprobs: natural logarithms of probabilities by the logits alone, of one token and of the k most probable ones.
// logits: f32 [S, V]; index: i32 [N], rows of the logits; tokens: i32 [S]; out: i32 [N, 3 (1 + k)]: id, rank, f32 bits.
// A block has a row: one pass for the largest logit, one for the sum and the token's rank, and no pass over the row for the
// k tokens: each thread keeps the best of its own share, and when that is taken its warp looks for the thread's next one.
// Bound by reading the logits twice. A negative index is padding. Instances: one.
#include "sampling.cuh"

struct LogprobsParams {
  uint64_t logits;
  uint64_t index;
  uint64_t tokens;
  uint64_t out;
  uint64_t fault;
  uint32_t logits_rows;
  uint32_t vocabulary;
  uint32_t k;
  uint32_t vectors;
};
static_assert(sizeof(LogprobsParams) == 56, "mirrored in src/hal/cuda/ops/sample.rs");

constexpr uint32_t THREADS = 1024;
constexpr uint64_t NOBODY = ~uint64_t(0);

__device__ __forceinline__ void write_entry(int* entry, uint32_t id, uint32_t rank, float x, double log_sum) {
  entry[0] = int(id);
  entry[1] = int(rank);
  entry[2] = __float_as_int(float(double(x) - log_sum));
}

extern "C" __global__ void __launch_bounds__(THREADS) yn_logprobs(const __grid_constant__ LogprobsParams p) {
  after_prior();
  __shared__ uint64_t best_scratch[32];
  __shared__ double sum_scratch[32];
  __shared__ uint32_t rank_scratch[32];
  const uint32_t t = threadIdx.x, lane = t % 32;
  const int row = at<int>(p.index)[blockIdx.x];
  if (row < 0) return;
  const int token = row < int(p.logits_rows) ? at<int>(p.tokens)[row] : -1;
  if (uint32_t(token) >= p.vocabulary) {
    if (t == 0) fault(p.fault, LOGPROBS_INDEX, blockIdx.x, uint32_t(row));
    return;
  }
  const float* logits = at<float>(p.logits) + uint64_t(row) * p.vocabulary;
  int* out = at<int>(p.out) + uint64_t(blockIdx.x) * 3 * (1 + p.k);

  // Threads take numbers t, t + THREADS, ...: the share of the searches below.
  uint64_t mine = NOBODY;
  for (uint32_t id = t; id < p.vocabulary; id += THREADS) mine = Min()(mine, candidate(logits[id], id));
  const uint64_t best = reduce_block(mine, NOBODY, best_scratch, Min());
  const float largest = unfalling(uint32_t(best >> 32)), x = logits[token];
  double sum = 0;
  uint32_t before = 0;
  visit(logits, 0, p.vocabulary, p.vectors != 0, [&](float y, uint32_t id) {
    sum += double(exp_same(y - largest));
    before += y > x || (y == x && id < uint32_t(token));
  });
  sum = reduce_block(sum, 0.0, sum_scratch, Add());
  before = reduce_block(before, 0u, rank_scratch, Add());
  const double log_sum = double(largest) + log(sum);
  if (t == 0) write_entry(out, uint32_t(token), before + 1, x, log_sum);

  for (uint32_t rank = 1; rank <= p.k; rank++) {
    int* entry = out + 3 * rank;
    __syncthreads();
    const uint64_t next = reduce_block(mine, NOBODY, best_scratch, Min());
    const uint32_t id = uint32_t(next);
    if (t == 0) {
      if (next == NOBODY) {
        entry[0] = -1, entry[1] = 0, entry[2] = 0;
      } else {
        write_entry(entry, id, rank, logits[id], log_sum);
      }
    }
    if (next == NOBODY) continue;
    const uint32_t winner = id % THREADS;
    if (winner / 32 != t / 32) continue;
    uint64_t other = NOBODY;
    for (uint64_t i = winner + uint64_t(lane) * THREADS; i < p.vocabulary; i += 32 * THREADS) {
      const uint64_t c = candidate(logits[i], uint32_t(i));
      if (c > next) other = Min()(other, c);
    }
    other = reduce_warp(other, Min());
    if (t == winner) mine = other;
  }
}
