// silu_mul against float64, both activations.
#include "harness.h"

using namespace test;

namespace {

double reference(double g, double up, uint32_t activation) {
  const double u = std::sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g);
  return g / (1 + std::exp(activation == 0 ? -g : -2 * u)) * up;
}

template <typename T>
void check(uint32_t rows, uint32_t cols, uint32_t blocks, uint32_t activation, uint64_t seed) {
  Random random(seed);
  const size_t all = size_t(rows) * cols;
  const Gm<T> both(2 * all, seed % 3), out(all, seed % 5);
  fill(both, random, std::pow(10.0, random.between(-2, 1.3)));
  const double edges[] = {0, -0.0, 60, -60, 88.5, -88.5, 200, -200, 1e-7, 60000, -60000};
  for (size_t i = 0; i < 2 * all; i += 1 + random.below(9)) both[i] = T(float(edges[random.below(11)]));
  const std::vector<T> before = both.copy();
  const std::string entry = std::string("yn_silu_mul_") + suffix<T>();
  Arguments args;
  args << out << both << rows << cols << activation;
  const std::string fault = launch("silu_mul", entry, blocks, args);
  const std::string name = entry + " " + std::to_string(rows) + "x" + std::to_string(cols) + " on " + std::to_string(blocks);
  if (!fault.empty()) return failed("%s: %s", name.c_str(), fault.c_str());
  for (uint32_t row = 0; row < rows; row++) {
    for (uint32_t i = 0; i < cols; i++) {
      const double g = double(float(before[size_t(row) * 2 * cols + i])), up = double(float(before[(size_t(row) * 2 + 1) * cols + i]));
      const double want = reference(g, up, activation);
      // An exponent of f32 near -100 has lost seven bits.
      const double lost = std::fabs(want) * 6e-8 * (activation == 0 ? std::fabs(g) : 8 + std::fabs(g * g * g)) + 1e-36 * std::fabs(up);
      if (!close(out[size_t(row) * cols + i], want, lost)) {
        return failed("%s: activation %u of %g, times %g, is %g, not %g", name.c_str(), activation, g, up,
                      float(out[size_t(row) * cols + i]), want);
      }
    }
  }
  if (std::memcmp(both.get(), before.data(), 2 * all * sizeof(T)) != 0) failed("%s: wrote its operand", name.c_str());
}

}  // namespace

void test_silu_mul() {
  const uint32_t blocks[] = {1, 2, 7, 48};
  uint64_t seed = 1;
  for (uint32_t cols : {1u, 5u, 16u, 100u, 176u, 4095u, 4096u, 4097u, 11008u}) {
    for (uint32_t rows : {1u, 2u, 9u}) {
      if (rows == 9 && cols > 4097) continue;
      for (uint32_t activation : {0u, 1u}) {
        check<half>(rows, cols, blocks[seed % 4], activation, seed);
        check<bfloat16_t>(rows, cols, blocks[seed / 2 % 4], activation, seed + 1);
        seed += 2;
      }
    }
  }
}
