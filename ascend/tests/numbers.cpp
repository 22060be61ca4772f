// The 16-bit numbers of the emulation: every one of them there and back, and floats to the nearest, ties to even.
#include "harness.h"

using namespace test;

namespace {

template <typename T>
T number(uint32_t raw) {
  T x;
  x.raw = uint16_t(raw);
  return x;
}

// Positive numbers of T are in the order of their bits.
template <typename T>
void check(uint16_t infinity) {
  for (uint32_t raw = 0; raw < 0x10000; raw++) {
    const T x = number<T>(raw);
    const T back(float{float(x)});
    const bool nan = (raw & 0x7fff) > infinity;
    if (nan ? !std::isnan(float(back)) : back.raw != raw) failed("%s 0x%04x comes back as 0x%04x", suffix<T>(), raw, back.raw);
  }
  for (uint32_t raw = 0; raw < infinity; raw++) {
    const double low = double(float(number<T>(raw)));
    const double high = raw + 1 == infinity ? 2 * low - double(float(number<T>(raw - 1))) : double(float(number<T>(raw + 1)));
    const float middle = float((low + high) / 2);
    const uint32_t even = raw % 2 == 0 ? raw : raw + 1;
    if (T(middle).raw != even) failed("%s: %g goes to 0x%04x, not 0x%04x", suffix<T>(), double(middle), T(middle).raw, even);
    if (T(std::nextafter(middle, 0.0f)).raw != raw) failed("%s: below %g", suffix<T>(), double(middle));
    if (T(std::nextafter(middle, INFINITY)).raw != raw + 1) failed("%s: above %g", suffix<T>(), double(middle));
    if (T(-middle).raw != (even | 0x8000)) failed("%s: -%g", suffix<T>(), double(middle));
  }
  if (T(INFINITY).raw != infinity || T(-INFINITY).raw != (infinity | 0x8000)) failed("%s: infinity", suffix<T>());
}

}  // namespace

void test_numbers() {
  check<half>(0x7c00);
  check<bfloat16_t>(0x7f80);
}
