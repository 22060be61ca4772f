// Launches by name: what a runtime may get wrong is told, and runs nothing.
#include "harness.h"

using namespace test;

namespace {

void expect(const char* part, const std::string& text) {
  if (text.find(part) == std::string::npos) failed("a launch: \"%s\", expected \"%s\"", text.c_str(), part);
}

}  // namespace

void test_launch() {
  const Gm<half> out(32), both(64);
  const uint32_t rows = 1, cols = 32, silu = 0;
  const auto arguments = [&] {
    Arguments args;
    args << out << both << rows << cols;
    return args;
  };
  expect("no entry yn_silu_mul", launch("silu_mul", "yn_silu_mul", 1, arguments() << silu));
  expect("takes 5 arguments, not 4", launch("silu_mul", "yn_silu_mul_f16", 1, arguments()));
  expect("argument 4 has 4 bytes, not 8", launch("silu_mul", "yn_silu_mul_f16", 1, arguments() << uint64_t(0)));
  expect("a launch of 0 blocks", launch("silu_mul", "yn_silu_mul_f16", 0, arguments() << silu));
  Arguments nowhere;
  nowhere << out << static_cast<void*>(nullptr) << rows << cols << silu;
  expect("not all within one allocation", launch("silu_mul", "yn_silu_mul_f16", 1, nowhere));
  Arguments longer;
  longer << out << both << rows << cols + 1 << silu;
  expect("not all within one allocation", launch("silu_mul", "yn_silu_mul_f16", 1, longer));
  Arguments odd;
  odd << static_cast<void*>(reinterpret_cast<uint8_t*>(out.get()) + 1) << both << rows << cols << silu;
  expect("not aligned to its elements", launch("silu_mul", "yn_silu_mul_f16", 1, odd));
  for (size_t i = 0; i < out.size(); i++) {
    if (out[i].raw != 0xffff) failed("a refused launch wrote");
  }
  expect("", launch("silu_mul", "yn_silu_mul_f16", 1, arguments() << silu));
}
