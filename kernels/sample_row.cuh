// A sequence's sampler row as the kernels of sample.cu read it: its words, and its logits with the penalties that apply to them.
#pragma once
#include "sampling.cuh"

// Words of a sampler row, as hal::ops::SamplerWord numbers them.
enum Word : uint32_t {
  LAST_TOKEN = 0,
  TEMPERATURE = 1,
  TOP_K = 2,
  TOP_P = 3,
  SEED_LOW = 4,
  SEED_HIGH = 5,
  CHOICE = 6,
  PROMPT_LEN = 7,
  MIN_TOKENS = 8,
  NUM_END_TOKENS = 9,
  MIN_P = 10,
  COUNTS_TOKENS = 11,
  REPETITION_PENALTY = 12,
  PRESENCE_PENALTY = 13,
  FREQUENCY_PENALTY = 14,
  NUM_BIASES = 15,
  END_TOKENS = 16,
};
constexpr uint32_t STATE_WORDS = 80, MAX_ENDS = STATE_WORDS - END_TOKENS, MAX_BIASES = 300;
constexpr uint32_t IN_PROMPT = 1u << 15;

struct SampleParams {
  uint64_t logits;
  uint64_t rows;
  uint64_t positions;
  uint64_t state;
  uint64_t counts;
  uint64_t biases;
  uint64_t out;
  uint64_t scratch;  // Scratch [S]
  uint64_t fault;
  uint64_t firsts;   // u64 [S], what the product in front gave (give_first); 0: nothing
  uint32_t vocabulary;
  uint32_t state_rows;
  uint32_t parts;
  uint32_t vectors;  // rows of logits are whole aligned vectors of four
};
static_assert(sizeof(SampleParams) == 96, "mirrored in src/hal/cuda/ops/sample.rs");

constexpr uint32_t MAX_PARTS = 32;

struct Part {
  uint64_t best;  // smallest candidate()
  float lowest;   // smallest logit above -infinity
  uint32_t has_nan;
};
// What sample_scan leaves for sample_draw, per sequence.
struct Scratch {
  Part parts[MAX_PARTS];
  float before_bias[MAX_BIASES];
  float before_mask[MAX_ENDS];
};
static_assert(sizeof(Scratch) == 1968, "mirrored in src/hal/cuda/ops/sample.rs");

// Whether a sequence draws the largest of its logits as they are; `position`: that of the token drawn.
__device__ __forceinline__ bool draws_largest(const int* words, int position) {
  const bool masks = words[NUM_END_TOKENS] > 0 && position - words[PROMPT_LEN] < words[MIN_TOKENS];
  const bool greedy = !(__int_as_float(words[TEMPERATURE]) > 0.0f) || words[TOP_K] == 1;
  return greedy && !masks && words[COUNTS_TOKENS] == 0 && words[NUM_BIASES] <= 0;
}

// A sequence's row: its state, and what its logits go through when they are read.
struct Row {
  int* words;
  uint16_t* counts;
  const int* biases;
  float* logits;
  float repetition, presence, frequency;
  uint32_t vocabulary, num_biases, num_masked;
  int output_index;
  bool counting, takes_first;

  __device__ Row(const SampleParams& p, uint32_t s, uint32_t row) {
    words = at<int>(p.state) + uint64_t(row) * STATE_WORDS;
    counts = at<uint16_t>(p.counts) + uint64_t(row) * p.vocabulary;
    biases = at<int>(p.biases) + uint64_t(row) * 2 * MAX_BIASES;
    logits = at<float>(p.logits) + uint64_t(s) * p.vocabulary;
    vocabulary = p.vocabulary;
    output_index = at<int>(p.positions)[s] - words[PROMPT_LEN];
    takes_first = p.firsts != 0 && draws_largest(words, at<int>(p.positions)[s]);
    counting = words[COUNTS_TOKENS] != 0;
    repetition = number(REPETITION_PENALTY);
    presence = number(PRESENCE_PENALTY);
    frequency = number(FREQUENCY_PENALTY);
    num_biases = uint32_t(max(0, min(words[NUM_BIASES], int(MAX_BIASES))));
    const bool held = output_index < words[MIN_TOKENS];
    num_masked = held ? uint32_t(max(0, min(words[NUM_END_TOKENS], int(MAX_ENDS)))) : 0;
  }

  __device__ float number(Word word) const { return __int_as_float(words[word]); }

  __device__ float penalized(float x, uint32_t id) const {
    if (!counting) return x;
    const uint32_t count = counts[id];
    if (count == 0) return x;
    x = x > 0.0f ? x / repetition : __fmul_rn(x, repetition);
    const uint32_t outputs = count & ~IN_PROMPT;
    return outputs > 0 ? __fsub_rn(x, __fadd_rn(presence, __fmul_rn(frequency, float(outputs)))) : x;
  }

  // Whether bias `i` is the first of its id, and its id is in `from..to`.
  __device__ bool owns(uint32_t i, uint32_t from, uint32_t to) const {
    const uint32_t id = uint32_t(biases[2 * i]);
    if (id < from || id >= to) return false;
    for (uint32_t j = 0; j < i; j++) {
      if (uint32_t(biases[2 * j]) == id) return false;
    }
    return true;
  }

  __device__ bool masks(uint32_t i, uint32_t from, uint32_t to) const {
    const uint32_t id = uint32_t(words[END_TOKENS + i]);
    return id >= from && id < to;
  }
};

// The sequence's sampler row; -1 for padding and for a row that does not exist.
__device__ __forceinline__ int sampler_row(const SampleParams& p, uint32_t s) {
  const int row = at<int>(p.rows)[s];
  return row < int(p.state_rows) ? row : -1;
}
