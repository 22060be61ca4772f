// The attentions that are measured: those of `gpu_ops attention` (tests/bench/gpu_ops.rs), under the same names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "stick.h"

namespace stick {

/// SplitMix64, as src/base/rng.rs has it.
struct Random {
  uint64_t state;
  uint64_t next() {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }
  float unit() { return static_cast<float>(next() >> 40) * (1.0f / 16777216.0f); }
};

struct Case {
  std::string name;
  int heads, kv_heads;
  std::vector<std::pair<int, int>> sequences;  // queries, keys
  bool small;                                  // is only checked, with numbers that make logits matter

  bool decode() const {
    return std::all_of(sequences.begin(), sequences.end(), [](auto& s) { return s.first == 1; });
  }
  double bytes() const {
    double keys = 0;
    for (auto& s : sequences) keys += s.second;
    return 4.0 * keys * kv_heads * kHeadDim;
  }
  double flops() const {
    double seen = 0;
    for (auto& [q, k] : sequences) seen += double(q) * (k - q) + double(q) * (q + 1) / 2;
    return 4.0 * seen * heads * kHeadDim;
  }
};

struct Kernel {
  const char* name;
  bool of_decodes, of_prefills, of_every_group;
  Launch (*plan)(Problem&);

  bool takes(const Case& c) const {
    return (c.decode() ? of_decodes : of_prefills) && (of_every_group || c.heads == 4 * c.kv_heads);
  }
};

constexpr Kernel kKernels[] = {
    {"fa2 decode", true, false, true, fa2_decode},
    {"fa2 prefill, 1 query", true, false, true, fa2_prefill_decode},
    {"xqa", true, false, false, xqa},
    {"fa2 prefill", false, true, true, fa2_prefill},
    {"fa3", true, true, true, fa3},
};

struct Unit {
  Case of;
  const Kernel* kernel;
};

inline std::vector<Case> cases() {
  using Sequences = std::vector<std::pair<int, int>>;
  const std::pair<int, int> shared{32, 8}, plain{32, 32};
  std::vector<Case> all;
  const auto add = [&](std::pair<int, int> heads, const char* what, Sequences sequences, bool small = false) {
    const std::string name = std::to_string(heads.first) + "/" + std::to_string(heads.second) + " " + what;
    all.push_back({name, heads.first, heads.second, std::move(sequences), small});
  };
  Sequences ragged, long_ones{{1, 5000}, {1, 77}}, many(300, {1, 40});
  for (int keys : {1, 15, 16, 17, 100, 333, 1000}) ragged.push_back({1, keys});
  many.push_back({1, 2049});
  for (auto heads : {shared, plain}) {
    add(heads, "check: decode of uneven lengths", ragged, true);
    add(heads, "check: decode of long ones", long_ones, true);
    add(heads, "check: decode of many", many, true);
    add(heads, "check: prefill", {{100, 100}, {33, 500}, {257, 300}, {65, 1000}, {129, 129}}, true);
  }
  Random random{1};
  Sequences uneven(256), one_long(255, {1, 300});
  for (auto& sequence : uneven) {
    float normal = 0;
    for (int i = 0; i < 12; i++) normal += random.unit();
    sequence = {1, static_cast<int>(std::clamp(400.0f * std::exp(0.9f * (normal - 6.0f)), 16.0f, 4000.0f))};
  }
  one_long.push_back({1, 8000});
  for (auto heads : {shared, plain}) {
    add(heads, "decode 1 x 8000", {{1, 8000}});
    add(heads, "decode 64 x 1000", Sequences(64, {1, 1000}));
    add(heads, "decode 256 x 512", Sequences(256, {1, 512}));
    add(heads, "decode 200 x 1000", Sequences(200, {1, 1000}));
    add(heads, "decode 256 x log-normal", uneven);
  }
  add(shared, "decode 255 x 300 and 1 x 8000", one_long);
  add(shared, "prefill 32 x 512", Sequences(32, {512, 512}));
  add(shared, "prefill 8 x 2048", Sequences(8, {2048, 2048}));
  add(shared, "prefill 2 x 8192", Sequences(2, {8192, 8192}));
  add(shared, "prefill 1 x 32768", {{32768, 32768}});
  add(shared, "prefill 4 x (512 over 8192)", Sequences(4, {512, 8192}));
  return all;
}

inline std::vector<Unit> units(const std::string& only) {
  std::vector<Unit> all;
  for (const Case& c : cases()) {
    for (const Kernel& kernel : kKernels) {
      if (kernel.takes(c) && (c.name + ", " + kernel.name).find(only) != std::string::npos) all.push_back({c, &kernel});
    }
  }
  return all;
}

}  // namespace stick
