// penalty_temperature against float64, in the order of the CPU backend's processors.
#include <algorithm>

#include "harness.h"

using namespace test;

namespace {

constexpr uint32_t WORDS = 80, ENDS = 16, MAX_BIASES = 300, IN_PROMPT = 1u << 15;
enum Word { TEMPERATURE = 1, PROMPT_LEN = 7, MIN_TOKENS = 8, NUM_ENDS = 9, COUNTS = 11, REPETITION, PRESENCE, FREQUENCY, NUM_BIASES };

struct World {
  uint32_t sequences, vocabulary, state_rows;
  Random random;
  const Gm<float> logits;
  const Gm<int32_t> rows, positions, state, biases;
  const Gm<uint16_t> counts;

  World(uint32_t sequences, uint32_t vocabulary, uint64_t seed)
      : sequences(sequences), vocabulary(vocabulary), state_rows(sequences + 3), random(seed),
        logits(size_t(sequences) * vocabulary, seed % 3), rows(sequences, seed % 2), positions(sequences),
        state(size_t(state_rows) * WORDS), biases(size_t(state_rows) * 2 * MAX_BIASES), counts(size_t(state_rows) * vocabulary, seed % 5) {
    fill(logits, random, 5);
    for (size_t i = 0; i < logits.size(); i += 1 + random.below(400)) logits[i] = random.below(2) == 0 ? -INFINITY : 0.0f;
    for (uint32_t s = 0; s < sequences; s++) {
      rows[s] = int32_t(state_rows - 1 - s);
      positions[s] = int32_t(20 + random.below(20));
    }
    if (sequences > 2) rows[1] = -1, rows[2] = int32_t(state_rows) + 5;
    for (uint32_t r = 0; r < state_rows; r++) row(r);
  }

  void number(uint32_t r, Word word, double x) { state[size_t(r) * WORDS + word] = shim::bits<int32_t>(float(x)); }

  // Random wishes; some rows have none.
  void row(uint32_t r) {
    int32_t* words = state.get() + size_t(r) * WORDS;
    std::fill(words, words + WORDS, 0);
    const bool plain = r % 4 == 2;
    number(r, TEMPERATURE, random.below(3) == 0 || plain ? 0 : random.between(0.1, 2));
    words[PROMPT_LEN] = 20;
    words[MIN_TOKENS] = plain ? 0 : int32_t(random.below(30));
    words[NUM_ENDS] = random.below(4) == 0 ? 64 : int32_t(random.below(5));
    for (uint32_t i = ENDS; i < WORDS; i++) words[i] = random.below(8) == 0 ? -3 : int32_t(random.below(vocabulary + vocabulary / 8 + 1));
    words[COUNTS] = plain ? 0 : int32_t(random.below(2));
    number(r, REPETITION, random.between(0.5, 2));
    number(r, PRESENCE, random.between(-1, 2));
    number(r, FREQUENCY, random.between(-1, 1));
    words[NUM_BIASES] = plain || random.below(3) == 0 ? 0 : random.below(4) == 0 ? 300 : int32_t(1 + random.below(20));
    for (uint32_t i = 0; i < MAX_BIASES; i++) {
      biases[(size_t(r) * MAX_BIASES + i) * 2] = random.below(9) == 0 ? -1 : int32_t(random.below(vocabulary + vocabulary / 8 + 1));
      biases[(size_t(r) * MAX_BIASES + i) * 2 + 1] = shim::bits<int32_t>(float(random.between(-50, 50)));
    }
    for (uint32_t v = 0; v < vocabulary; v++) {
      const uint32_t count = random.below(3) == 0 ? random.below(5) == 0 ? 32767 : random.below(9) : 0;
      counts[size_t(r) * vocabulary + v] = uint16_t(count | (random.below(4) == 0 ? IN_PROMPT : 0));
    }
  }

  // What a sequence's logits should be; `lost`: what f32 may lose of each.
  std::vector<double> reference(uint32_t s, const std::vector<float>& before, std::vector<double>& lost) const {
    std::vector<double> x(vocabulary);
    for (uint32_t v = 0; v < vocabulary; v++) x[v] = double(before[size_t(s) * vocabulary + v]);
    lost.assign(vocabulary, 0);
    const int32_t r = rows[s];
    if (r < 0 || uint32_t(r) >= state_rows) return x;
    const int32_t* words = state.get() + size_t(r) * WORDS;
    const auto f = [&](Word w) { return double(shim::bits<float>(words[w])); };
    const auto lose = [&](uint32_t v, double size) { lost[v] += std::isfinite(size) ? std::fabs(size) * 2e-7 : 0; };
    for (int32_t i = 0; i < words[NUM_BIASES]; i++) {
      const int32_t* pair = biases.get() + (size_t(r) * MAX_BIASES + size_t(i)) * 2;
      if (pair[0] < 0 || uint32_t(pair[0]) >= vocabulary) continue;
      lose(uint32_t(pair[0]), std::fabs(x[size_t(pair[0])]) + 50);
      x[size_t(pair[0])] += double(shim::bits<float>(pair[1]));
    }
    for (uint32_t v = 0; v < vocabulary && words[COUNTS] != 0; v++) {
      const uint32_t count = counts[size_t(r) * vocabulary + v], outputs = count & (IN_PROMPT - 1);
      if (count == 0) continue;
      x[v] = x[v] > 0 ? x[v] / f(REPETITION) : x[v] * f(REPETITION);
      lost[v] *= 4;  // a bias that f32 takes across zero
      const double taken = outputs > 0 ? f(PRESENCE) + f(FREQUENCY) * outputs : 0;
      lose(v, std::fabs(x[v]) + std::fabs(f(FREQUENCY) * outputs) + 2);
      x[v] -= taken;
    }
    for (int32_t i = 0; positions[s] - words[PROMPT_LEN] < words[MIN_TOKENS] && i < words[NUM_ENDS]; i++) {
      const int32_t end = words[ENDS + size_t(i)];
      if (end >= 0 && uint32_t(end) < vocabulary) x[size_t(end)] = -INFINITY;
    }
    if (f(TEMPERATURE) <= 0) return x;
    for (uint32_t v = 0; v < vocabulary; v++) x[v] /= f(TEMPERATURE), lost[v] /= f(TEMPERATURE);
    return x;
  }
};

void check(uint32_t sequences, uint32_t vocabulary, uint32_t blocks, uint64_t seed) {
  const World w(sequences, vocabulary, seed);
  const std::vector<float> before = w.logits.copy();
  const std::vector<int32_t> state = w.state.copy();
  Arguments args;
  args << w.logits << w.rows << w.positions << w.state << w.counts << w.biases << sequences << vocabulary << w.state_rows;
  const std::string fault = launch("penalty_temperature", "yn_penalty_temperature", blocks, args);
  const std::string name = "yn_penalty_temperature " + std::to_string(sequences) + "x" + std::to_string(vocabulary) + " on " +
                           std::to_string(blocks);
  if (!fault.empty()) return failed("%s: %s", name.c_str(), fault.c_str());
  for (uint32_t s = 0; s < sequences; s++) {
    std::vector<double> lost;
    const std::vector<double> want = w.reference(s, before, lost);
    for (uint32_t v = 0; v < vocabulary; v++) {
      const double got = double(w.logits[size_t(s) * vocabulary + v]);
      const bool right = std::isfinite(want[v]) ? std::fabs(got - want[v]) <= std::fabs(want[v]) * 3e-7 + lost[v] : got == want[v];
      if (!right) return failed("%s: sequence %u token %u is %g, not %g", name.c_str(), s, v, got, want[v]);
    }
  }
  if (state != w.state.copy()) failed("%s: wrote the state", name.c_str());
}

}  // namespace

void test_penalty() {
  const uint32_t blocks[] = {1, 2, 7, 48};
  uint64_t seed = 1;
  for (uint32_t vocabulary : {1u, 7u, 63u, 64u, 100u, 1000u, 4095u, 4096u, 4097u, 9001u, 32003u}) {
    for (uint32_t sequences : {1u, 2u, 6u}) {
      if (sequences == 6 && vocabulary > 10000) continue;
      for (int again = 0; again < 4; again++, seed++) check(sequences, vocabulary, blocks[seed % 4], seed);
    }
  }
}
