// add_rms_norm and rms_norm against float64.
#include "harness.h"

using namespace test;

namespace {

struct Case {
  uint32_t rows, cols, blocks;
  bool add, in_place;
};

template <typename T>
void check(const Case& c, uint64_t seed) {
  Random random(seed);
  const size_t all = size_t(c.rows) * c.cols;
  const float eps = 1e-5f;
  const Gm<T> x(all, seed % 3), residual(all, seed % 5), out(all, seed % 2);
  const Gm<float> weight(c.cols, seed % 4);
  const double scale = std::pow(10.0, random.between(-3, 1.5));
  fill(x, random, scale);
  fill(residual, random, scale);
  for (size_t i = 0; i < c.cols; i++) weight[i] = float(1 + 0.3 * random.normal());
  const std::vector<T> x0 = x.copy(), r0 = residual.copy();
  const Gm<T>& to = c.in_place ? x : out;
  Arguments args;
  args << to;
  if (c.add) args << residual;
  args << x << weight << c.rows << c.cols << eps;
  const std::string entry = std::string(c.add ? "yn_add_rms_norm_" : "yn_rms_norm_") + suffix<T>();
  const std::string fault = launch("add_rms_norm", entry, c.blocks, args);
  const std::string name = entry + " " + std::to_string(c.rows) + "x" + std::to_string(c.cols) + " on " + std::to_string(c.blocks);
  if (!fault.empty()) return failed("%s: %s", name.c_str(), fault.c_str());
  for (uint32_t row = 0; row < c.rows; row++) {
    const size_t at = size_t(row) * c.cols;
    std::vector<double> v(c.cols);
    double sum = 0;
    for (uint32_t i = 0; i < c.cols; i++) {
      const double added = double(float(x0[at + i])) + double(float(r0[at + i]));
      if (c.add && !close(residual[at + i], added)) {
        return failed("%s: residual[%u][%u] is %g, not %g", name.c_str(), row, i, float(residual[at + i]), added);
      }
      v[i] = c.add ? double(float(residual[at + i])) : double(float(x0[at + i]));
      sum += v[i] * v[i];
    }
    const double inverse = 1 / std::sqrt(sum / c.cols + double(eps));
    for (uint32_t i = 0; i < c.cols; i++) {
      const double want = v[i] * inverse * double(weight[i]);
      if (!close(to[at + i], want)) {
        return failed("%s: out[%u][%u] is %g, not %g", name.c_str(), row, i, float(to[at + i]), want);
      }
    }
  }
  if (!c.add && std::memcmp(residual.get(), r0.data(), all * sizeof(T)) != 0) failed("%s: wrote another tensor", name.c_str());
}

}  // namespace

void test_norm() {
  const uint32_t cols[] = {1, 7, 8, 16, 64, 100, 576, 896, 2047, 2048, 2049, 4096, 5120, 32768, 32769, 36001};
  const uint32_t blocks[] = {1, 2, 3, 48};
  uint64_t seed = 1;
  for (uint32_t n : cols) {
    for (uint32_t rows : {1u, 3u, 7u}) {
      if (rows > 3 && n > 5120) continue;
      for (bool add : {false, true}) {
        const Case c = {rows, n, blocks[seed % 4], add, seed % 3 == 0};
        check<half>(c, seed++);
        check<bfloat16_t>(c, seed++);
      }
    }
  }
}
