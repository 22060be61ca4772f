// What tests of kernels share: memory of an emulated device with guarded ends, kernels by name, random numbers, comparisons.
#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../shim/number.h"

namespace test {

// Failures so far. A test says what it saw and goes on.
inline int failures = 0;

__attribute__((format(printf, 1, 2))) inline void failed(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::printf("FAILED ");
  std::vprintf(format, args);
  std::printf("\n");
  va_end(args);
  if (++failures >= 20) {
    std::printf("too many failures\n");
    std::exit(1);
  }
}

// Live device memory, which kernels may touch.
inline std::map<uintptr_t, size_t>& allocations() {
  static std::map<uintptr_t, size_t> map;
  return map;
}
inline int gm_check(const void* host, size_t bytes, int) {
  auto it = allocations().upper_bound(uintptr_t(host));
  if (it == allocations().begin()) return 0;
  --it;
  return uintptr_t(host) + bytes <= it->first + it->second ? 1 : 0;
}

// Device memory for `count` elements, of NaN until something is put there. Starts `skew` elements behind a multiple of 64
// bytes. The bytes around it must stay as they are.
template <typename T>
class Gm {
 public:
  explicit Gm(size_t count, size_t skew = 0) : count_(count), bytes_(count * sizeof(T) + 2 * GUARD + skew * sizeof(T) + 64) {
    raw_ = static_cast<uint8_t*>(std::aligned_alloc(64, (bytes_ + 63) / 64 * 64));
    std::memset(raw_, 0xff, bytes_);
    data_ = reinterpret_cast<T*>(raw_ + GUARD) + skew;
    before_ = size_t(reinterpret_cast<uint8_t*>(data_) - raw_);
    std::memset(raw_, 0x5a, before_);
    std::memset(data_ + count, 0x5a, bytes_ - before_ - count * sizeof(T));
    allocations()[uintptr_t(data_)] = count * sizeof(T);
  }
  Gm(const Gm&) = delete;
  ~Gm() {
    for (size_t i = 0; i < bytes_; i++) {
      const bool inside = i >= before_ && i < before_ + count_ * sizeof(T);
      if (!inside && raw_[i] != 0x5a) {
        failed("bytes beside an allocation were written");
        break;
      }
    }
    allocations().erase(uintptr_t(data_));
    std::free(raw_);
  }
  T* get() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> copy() const { return std::vector<T>(data_, data_ + count_); }

 private:
  static constexpr size_t GUARD = 128;
  size_t count_, bytes_, before_ = 0;
  uint8_t* raw_;
  T* data_;
};

// Arguments of a launch, appended in order.
class Arguments {
 public:
  template <typename T>
  Arguments& operator<<(const T& value) {
    slots_.emplace_back(sizeof(T));
    std::memcpy(slots_.back().data(), &value, sizeof(T));
    return *this;
  }
  template <typename T>
  Arguments& operator<<(const Gm<T>& memory) {
    return *this << static_cast<void*>(memory.get());
  }
  void split(std::vector<void*>& pointers, std::vector<size_t>& sizes) const {
    for (const auto& slot : slots_) {
      pointers.push_back(const_cast<uint8_t*>(slot.data()));
      sizes.push_back(slot.size());
    }
  }

 private:
  std::vector<std::vector<uint8_t>> slots_;
};

// Runs an entry of `file`.o; the text is what it did wrong, or empty.
std::string launch(const char* file, const std::string& entry, uint32_t blocks, const Arguments& arguments);

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15 + 1) {}
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t n) { return uint32_t(next() % n); }
  double unit() { return double(next() >> 11) * 0x1p-53; }
  double between(double a, double b) { return a + (b - a) * unit(); }
  double normal() { return std::sqrt(-2 * std::log(1 - unit())) * std::cos(6.283185307179586 * unit()); }
};

template <typename T>
void fill(const Gm<T>& memory, Random& random, double scale) {
  for (size_t i = 0; i < memory.size(); i++) memory[i] = T(float(random.normal() * scale));
}

template <typename T> constexpr const char* suffix();
template <> constexpr const char* suffix<half>() { return "f16"; }
template <> constexpr const char* suffix<bfloat16_t>() { return "bf16"; }

// Half a unit in the last place of T at x, and what f32 loses on the way.
template <typename T>
double tolerance(double x, double f32_part) {
  const double ulp = std::is_same<T, half>::value ? 0x1p-11 : 0x1p-8, smallest = std::is_same<T, half>::value ? 0x1p-25 : 1e-38;
  return std::fabs(x) * (ulp * 1.001 + 2e-6) + f32_part + smallest;
}

// Whether a number of T is what float64 says, as T rounds it.
template <typename T>
bool close(T got, double want, double f32_part = 0) {
  const double g = double(float(got)), most = std::is_same<T, half>::value ? 65504 : 3.3895e38;
  if (std::isnan(want)) return std::isnan(g);
  if (std::fabs(want) > most) return std::fabs(g) >= most * 0.999 && (g > 0) == (want > 0);
  return std::fabs(g - want) <= tolerance<T>(want, f32_part);
}

}  // namespace test

// Each file of tests has one.
void test_shim();
void test_numbers();
void test_launch();
void test_norm();
void test_silu_mul();
void test_rope();
void test_penalty();
