// rope_write_kv against float64: queries in place, keys and values in their places, and nothing else touched.
#include "harness.h"

using namespace test;

namespace {

struct Case {
  uint32_t tokens, heads, kv_heads, dim, block_size, layers, blocks;
  bool norms;
};

constexpr uint32_t POOL_BLOCKS = 5, MAX_POSITION = 300;

// A head after its norm, and what f32 may lose of each number.
std::vector<double> normed(const std::vector<double>& x, const float* weight, float eps) {
  std::vector<double> out = x;
  if (weight == nullptr) return out;
  double sum = 0;
  for (double v : x) sum += v * v;
  const double inverse = 1 / std::sqrt(sum / double(x.size()) + double(eps));
  for (size_t i = 0; i < x.size(); i++) out[i] = x[i] * inverse * double(weight[i]);
  return out;
}

template <typename T>
struct World {
  Case c;
  Random random;
  uint32_t all, layer;
  size_t pool_numbers;
  const Gm<T> qkv, pool;
  const Gm<int32_t> positions, slots;
  const Gm<float> rope, query, key;
  const float eps = 1e-6f;
  std::string name;

  World(const Case& c, uint64_t seed)
      : c(c), random(seed), all(c.heads + 2 * c.kv_heads), layer(uint32_t(seed % c.layers)),
        pool_numbers(size_t(POOL_BLOCKS) * 2 * c.layers * c.block_size * c.kv_heads * c.dim),
        qkv(size_t(c.tokens) * all * c.dim, seed % 3), pool(pool_numbers, seed % 2), positions(c.tokens, seed % 2), slots(c.tokens),
        rope(size_t(MAX_POSITION) * c.dim, seed % 3), query(c.dim, seed % 3), key(c.dim) {
    fill(qkv, random, std::pow(10.0, random.between(-2, 1)));
    for (uint32_t p = 0; p < MAX_POSITION; p++) {
      for (uint32_t i = 0; i < c.dim / 2; i++) {
        const double angle = p * std::pow(10000.0, -2.0 * i / c.dim);
        rope[size_t(p) * c.dim + i] = float(std::cos(angle));
        rope[size_t(p) * c.dim + c.dim / 2 + i] = float(std::sin(angle));
      }
    }
    for (uint32_t i = 0; i < c.dim; i++) query[i] = float(1 + 0.2 * random.normal()), key[i] = float(1 + 0.2 * random.normal());
    const uint32_t places = POOL_BLOCKS * c.block_size, start = random.below(places);
    for (uint32_t t = 0; t < c.tokens; t++) {
      positions[t] = int32_t(random.below(MAX_POSITION));
      slots[t] = t < places ? int32_t((start + t * 7) % places) : -1;
      for (uint32_t u = 0; u < t; u++) slots[t] = slots[u] == slots[t] ? -1 : slots[t];
      if (t % 5 == 3) slots[t] = -1 - int32_t(random.below(3));
      if (t % 11 == 6) slots[t] = int32_t(places + random.below(100));
      if (t % 13 == 8) positions[t] = random.below(2) == 0 ? -1 : int32_t(MAX_POSITION);
    }
    name = std::string("yn_rope_write_kv_") + suffix<T>() + " T " + std::to_string(c.tokens) + " H " + std::to_string(c.heads) +
           " G " + std::to_string(c.kv_heads) + " D " + std::to_string(c.dim) + " block " + std::to_string(c.block_size) +
           (c.norms ? " normed" : "") + " on " + std::to_string(c.blocks);
  }

  bool counts(uint32_t t) const {
    return slots[t] >= 0 && uint32_t(slots[t]) < POOL_BLOCKS * c.block_size && positions[t] >= 0 &&
           uint32_t(positions[t]) < MAX_POSITION;
  }
  size_t place(uint32_t slot, uint32_t which) const {
    const size_t page = (size_t(slot / c.block_size) * 2 + which) * c.layers + layer;
    return (page * c.block_size + slot % c.block_size) * c.kv_heads * c.dim;
  }
  std::string launch_it() const {
    Arguments args;
    args << qkv << positions << slots << rope;
    if (c.norms) args << query << key;
    if (!c.norms) args << static_cast<void*>(nullptr) << static_cast<void*>(nullptr);
    args << pool << c.tokens << c.heads << c.kv_heads << c.dim << c.block_size << POOL_BLOCKS << layer << c.layers << MAX_POSITION
         << eps;
    return launch("rope_write_kv", std::string("yn_rope_write_kv_") + suffix<T>(), c.blocks, args);
  }

  // Whether `got` is head `h` of token `t`, normed and rotated.
  bool turned(const T* got, const std::vector<T>& before, uint32_t t, uint32_t h) const {
    std::vector<double> x(c.dim);
    for (uint32_t i = 0; i < c.dim; i++) x[i] = double(float(before[(size_t(t) * all + h) * c.dim + i]));
    x = normed(x, !c.norms ? nullptr : h < c.heads ? query.get() : key.get(), eps);
    const float* row = rope.get() + size_t(positions[t]) * c.dim;
    for (uint32_t i = 0; i < c.dim / 2; i++) {
      const double cosine = double(row[i]), sine = double(row[c.dim / 2 + i]), a = x[i], b = x[c.dim / 2 + i];
      const double lost = 2e-6 * (std::fabs(a) + std::fabs(b));
      const double low = a * cosine - b * sine, high = b * cosine + a * sine;
      if (close(got[i], low, lost) && close(got[c.dim / 2 + i], high, lost)) continue;
      failed("%s: token %u head %u pair %u is (%g, %g), not (%g, %g)", name.c_str(), t, h, i, float(got[i]),
             float(got[c.dim / 2 + i]), low, high);
      return false;
    }
    return true;
  }
};

template <typename T>
void check(const Case& c, uint64_t seed) {
  const World<T> w(c, seed);
  const std::vector<T> before = w.qkv.copy(), pool_before = w.pool.copy();
  const std::string fault = w.launch_it();
  if (!fault.empty()) return failed("%s: %s", w.name.c_str(), fault.c_str());
  std::vector<T> pool = pool_before, qkv = before;  // as they should be, where nothing was computed
  for (uint32_t t = 0; t < c.tokens; t++) {
    if (!w.counts(t)) continue;
    const size_t token = size_t(t) * w.all * c.dim;
    for (uint32_t h = 0; h < c.heads; h++) {
      const size_t at = token + size_t(h) * c.dim;
      if (!w.turned(w.qkv.get() + at, before, t, h)) return;
      std::memcpy(&qkv[at], w.qkv.get() + at, c.dim * sizeof(T));
    }
    for (uint32_t g = 0; g < c.kv_heads; g++) {
      const size_t k = w.place(uint32_t(w.slots[t]), 0) + size_t(g) * c.dim, v = w.place(uint32_t(w.slots[t]), 1) + size_t(g) * c.dim;
      if (!w.turned(w.pool.get() + k, before, t, c.heads + g)) return;
      std::memcpy(&pool[k], w.pool.get() + k, c.dim * sizeof(T));
      std::memcpy(&pool[v], &before[token + size_t(c.heads + c.kv_heads + g) * c.dim], c.dim * sizeof(T));
    }
  }
  if (std::memcmp(pool.data(), w.pool.get(), pool.size() * sizeof(T)) != 0) failed("%s: values, or other places of the cache", w.name.c_str());
  if (std::memcmp(qkv.data(), w.qkv.get(), qkv.size() * sizeof(T)) != 0) failed("%s: keys, values or padding in qkv", w.name.c_str());
}

}  // namespace

void test_rope() {
  const uint32_t heads[][2] = {{1, 1}, {4, 1}, {8, 2}, {14, 2}, {32, 8}, {12, 12}, {71, 1}, {300, 4}};
  const uint32_t blocks[] = {1, 3, 40, 48}, block_sizes[] = {128, 16, 1};
  uint64_t seed = 1;
  for (uint32_t dim : {2u, 6u, 18u, 64u, 80u, 96u, 128u, 256u, 512u}) {
    for (const auto& h : heads) {
      for (uint32_t tokens : {1u, 2u, 17u}) {
        if (h[0] * dim * tokens > 90000) continue;
        const Case c = {tokens, h[0], h[1], dim, block_sizes[seed % 3], uint32_t(1 + seed % 3), blocks[seed / 2 % 4], seed % 5 < 2};
        check<half>(c, seed++);
        check<bfloat16_t>(c, seed++);
      }
    }
  }
}
