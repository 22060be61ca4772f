// penalty_temperature: logits as the processors of a sampler row leave them: biases, penalties, end tokens held back by
// min_tokens, temperature. logits: f32 [S, V], in place; rows, positions: i32 [S]; state: i32 [R, 80] (hal::ops::SamplerWord,
// then end tokens); counts: u16 [R, V]; biases: i32 pairs [R, 300]. A sequence whose row is negative or unknown is left alone,
// and so is one whose row asks for nothing. Bound by reading the logits.
//
// A unit of work is TILE logits of a sequence. Biases and end tokens are few and go through the scalar unit.
#include "common.h"

namespace yinian {

// Words of a sampler row, as hal::ops::SamplerWord numbers them.
constexpr uint32_t TEMPERATURE = 1, PROMPT_LEN = 7, MIN_TOKENS = 8, NUM_END_TOKENS = 9, COUNTS_TOKENS = 11,
                   REPETITION_PENALTY = 12, PRESENCE_PENALTY = 13, FREQUENCY_PENALTY = 14, NUM_BIASES = 15, END_TOKENS = 16;
constexpr uint32_t STATE_WORDS = 80, MAX_ENDS = STATE_WORDS - END_TOKENS, MAX_BIASES = 300;
constexpr int16_t OUTPUTS = 0x7fff;  // the other bit says that the token is in the prompt
constexpr uint32_t LOGITS_TILE = 4096;
constexpr int32_t MINUS_INFINITY_BITS = static_cast<int32_t>(0xff800000);

class PenaltyTemperature {
 public:
  __aicore__ inline void init(GM_ADDR logits, GM_ADDR rows, GM_ADDR positions, GM_ADDR state, GM_ADDR counts, GM_ADDR biases,
                              uint32_t sequences, uint32_t vocabulary, uint32_t state_rows) {
    sequences_ = sequences;
    vocabulary_ = vocabulary;
    state_rows_ = state_rows;
    logits_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(logits), static_cast<uint64_t>(sequences) * vocabulary);
    rows_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(rows), sequences);
    positions_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions), sequences);
    state_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(state), static_cast<uint64_t>(state_rows) * STATE_WORDS);
    counts_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int16_t*>(counts), static_cast<uint64_t>(state_rows) * vocabulary);
    biases_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(biases), static_cast<uint64_t>(state_rows) * 2 * MAX_BIASES);
    pipe_.InitBuffer(ins_, 2, LOGITS_TILE * sizeof(float));
    pipe_.InitBuffer(outs_, 2, LOGITS_TILE * sizeof(float));
    pipe_.InitBuffer(counts_, 1, LOGITS_TILE * sizeof(int16_t));
    pipe_.InitBuffer(states_, 1, STATE_WORDS * sizeof(int32_t));
    pipe_.InitBuffer(biases_, 1, round_up(2 * MAX_BIASES * sizeof(int32_t), BLOCK_BYTES));
    pipe_.InitBuffer(count_, LOGITS_TILE * sizeof(float));
    pipe_.InitBuffer(a_, LOGITS_TILE * sizeof(float));
    pipe_.InitBuffer(b_, LOGITS_TILE * sizeof(float));
    pipe_.InitBuffer(c_, LOGITS_TILE * sizeof(float));
    pipe_.InitBuffer(bits_, LOGITS_TILE * sizeof(int16_t));
    pipe_.InitBuffer(chosen_, LOGITS_TILE / 8);
    Duplicate(bits_.Get<int16_t>(), OUTPUTS, LOGITS_TILE);
  }

  __aicore__ inline void run() {
    const uint32_t tiles = ceil_div(vocabulary_, LOGITS_TILE);
    const uint64_t units = static_cast<uint64_t>(sequences_) * tiles;
    for (uint64_t unit = GetBlockIdx(); unit < units; unit += GetBlockNum()) {
      const uint32_t sequence = static_cast<uint32_t>(unit / tiles), from = static_cast<uint32_t>(unit % tiles) * LOGITS_TILE;
      const int32_t row = rows_gm_.GetValue(sequence);
      if (row < 0 || static_cast<uint32_t>(row) >= state_rows_) continue;
      LocalTensor<int32_t> words = states_.AllocTensor<int32_t>();
      load(words, state_gm_[static_cast<uint64_t>(row) * STATE_WORDS], STATE_WORDS);
      states_.EnQue(words);
      words = states_.DeQue<int32_t>();
      wait_for<HardEvent::MTE2_S>();
      read_words(words, positions_gm_.GetValue(sequence));
      if (num_biases_ > 0 || num_held_ > 0 || counting_ || scale_ != 1.0f) tile(sequence, static_cast<uint32_t>(row), from, words);
      states_.FreeTensor(words);
      wait_for<HardEvent::S_MTE2>();
    }
  }

 private:
  __aicore__ inline uint32_t word_within(const LocalTensor<int32_t>& words, uint32_t word, uint32_t most) const {
    const int32_t value = words.GetValue(word);
    return value < 0 ? 0 : smaller(static_cast<uint32_t>(value), most);
  }

  __aicore__ inline void read_words(const LocalTensor<int32_t>& words, int32_t position) {
    const LocalTensor<float> numbers = words.ReinterpretCast<float>();
    const int32_t output_index = position - words.GetValue(PROMPT_LEN);
    num_biases_ = word_within(words, NUM_BIASES, MAX_BIASES);
    num_held_ = output_index < words.GetValue(MIN_TOKENS) ? word_within(words, NUM_END_TOKENS, MAX_ENDS) : 0;
    counting_ = words.GetValue(COUNTS_TOKENS) != 0;
    repetition_ = numbers.GetValue(REPETITION_PENALTY);
    presence_ = numbers.GetValue(PRESENCE_PENALTY);
    frequency_ = numbers.GetValue(FREQUENCY_PENALTY);
    const float temperature = numbers.GetValue(TEMPERATURE);
    scale_ = temperature > 0.0f ? 1.0f / temperature : 1.0f;
  }

  __aicore__ inline void tile(uint32_t sequence, uint32_t row, uint32_t from, const LocalTensor<int32_t>& words) {
    const uint32_t n = smaller(LOGITS_TILE, vocabulary_ - from);
    const uint64_t at = static_cast<uint64_t>(sequence) * vocabulary_ + from;
    LocalTensor<float> x = ins_.AllocTensor<float>();
    load(x, logits_gm_[at], n);
    ins_.EnQue(x);
    x = ins_.DeQue<float>();
    if (num_biases_ > 0) add_biases(x, row, from, n);
    LocalTensor<float> y = a_.Get<float>();
    if (counting_) {
      penalize(y, x, static_cast<uint64_t>(row) * vocabulary_ + from, n);
    } else {
      Muls(y, x, 1.0f, n);
    }
    ins_.FreeTensor(x);
    if (num_held_ > 0) hold_back(y, words, from, n);
    barrier();
    LocalTensor<float> out = outs_.AllocTensor<float>();
    Muls(out, y, scale_, n);
    outs_.EnQue(out);
    barrier();  // queues order this too
    out = outs_.DeQue<float>();
    store(logits_gm_[at], out, n);
    outs_.FreeTensor(out);
  }

  __aicore__ inline void add_biases(const LocalTensor<float>& x, uint32_t row, uint32_t from, uint32_t n) {
    LocalTensor<int32_t> pairs = biases_.AllocTensor<int32_t>();
    load(pairs, biases_gm_[static_cast<uint64_t>(row) * 2 * MAX_BIASES], 2 * num_biases_);
    biases_.EnQue(pairs);
    pairs = biases_.DeQue<int32_t>();
    const LocalTensor<float> numbers = pairs.ReinterpretCast<float>();
    wait_for<HardEvent::MTE2_S>();
    for (uint32_t i = 0; i < num_biases_; i++) {
      const uint32_t place = static_cast<uint32_t>(pairs.GetValue(2 * i)) - from;  // of ids in front it is large
      if (place < n) x.SetValue(place, x.GetValue(place) + numbers.GetValue(2 * i + 1));
    }
    biases_.FreeTensor(pairs);
    wait_for<HardEvent::S_V>();
  }

  // y = x with the penalties of counted tokens.
  __aicore__ inline void penalize(const LocalTensor<float>& y, const LocalTensor<float>& x, uint64_t at, uint32_t n) {
    const uint32_t whole = round_up(n, LANES);
    LocalTensor<float> b = b_.Get<float>(), c = c_.Get<float>(), count = count_.Get<float>();
    LocalTensor<uint8_t> chosen = chosen_.Get<uint8_t>();
    LocalTensor<int16_t> counts = counts_.AllocTensor<int16_t>();
    load(counts, counts_gm_[at], n);
    counts_.EnQue(counts);
    counts = counts_.DeQue<int16_t>();
    widen(count, counts, n);  // not 0 for counted tokens
    Duplicate(b, repetition_, n);
    Muls(c, x, repetition_, n);
    CompareScalar(chosen, x, 0.0f, CMPMODE::GT, whole);
    barrier();
    Div(b, x, b, n);
    And(counts, counts, bits_.Get<int16_t>(), n);
    barrier();
    Select(y, chosen, b, c, SELMODE::VSEL_TENSOR_TENSOR_MODE, whole);
    barrier();
    CompareScalar(chosen, count, 0.0f, CMPMODE::NE, whole);
    barrier();
    Select(c, chosen, y, x, SELMODE::VSEL_TENSOR_TENSOR_MODE, whole);
    widen(count, counts, n);  // how often the output has them
    counts_.FreeTensor(counts);
    barrier();
    Muls(b, count, frequency_, n);
    CompareScalar(chosen, count, 0.0f, CMPMODE::GT, whole);
    barrier();
    Adds(b, b, presence_, n);
    barrier();
    Sub(b, c, b, n);
    barrier();
    Select(y, chosen, b, c, SELMODE::VSEL_TENSOR_TENSOR_MODE, whole);
  }

  __aicore__ inline void hold_back(const LocalTensor<float>& y, const LocalTensor<int32_t>& words, uint32_t from, uint32_t n) {
    const LocalTensor<int32_t> bits = y.ReinterpretCast<int32_t>();
    wait_for<HardEvent::V_S>();
    for (uint32_t i = 0; i < num_held_; i++) {
      const uint32_t place = static_cast<uint32_t>(words.GetValue(END_TOKENS + i)) - from;
      if (place < n) bits.SetValue(place, MINUS_INFINITY_BITS);
    }
    wait_for<HardEvent::S_V>();
  }

  TPipe pipe_;
  TQue<QuePosition::VECIN, 2> ins_;
  TQue<QuePosition::VECIN, 1> counts_, states_, biases_;
  TQue<QuePosition::VECOUT, 2> outs_;
  TBuf<QuePosition::VECCALC> count_, a_, b_, c_, bits_, chosen_;
  GlobalTensor<float> logits_gm_;
  GlobalTensor<int32_t> rows_gm_, positions_gm_, state_gm_, biases_gm_;
  GlobalTensor<int16_t> counts_gm_;
  uint32_t sequences_, vocabulary_, state_rows_;
  uint32_t num_biases_, num_held_;
  bool counting_;
  float repetition_, presence_, frequency_, scale_;
};

}  // namespace yinian

extern "C" __global__ __aicore__ void yn_penalty_temperature(GM_ADDR logits, GM_ADDR rows, GM_ADDR positions, GM_ADDR state,
                                                             GM_ADDR counts, GM_ADDR biases, uint32_t sequences,
                                                             uint32_t vocabulary, uint32_t state_rows) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  if (sequences == 0 || vocabulary == 0) return;
  yinian::PenaltyTemperature kernel;
  kernel.init(logits, rows, positions, state, counts, biases, sequences, vocabulary, state_rows);
  kernel.run();
}
