// Numbers of 16 bits as the hardware has them: to f32 and back, rounded to nearest even. Arithmetic on them goes through f32.
#pragma once
#include <cstdint>
#include <cstring>

namespace shim {

template <typename To, typename From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return bits<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float value = float(mantissa) * 0x1p-24f;
  return sign != 0 ? -value : value;
}

inline uint16_t float_to_half(float f) {
  const uint32_t x = bits<uint32_t>(f), sign = x >> 16 & 0x8000, size = x & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more
  if (size < 0x38800000) {                                 // below 2^-14: a multiple of 2^-24
    const float rounded = bits<float>(size) + 0.5f;        // whose lowest bit is 2^-24
    return uint16_t(sign | (bits<uint32_t>(rounded) - bits<uint32_t>(0.5f)));
  }
  const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
  return uint16_t(sign | (rounded - (112u << 23)) >> 13);
}

inline float bf16_to_float(uint16_t b) { return bits<float>(uint32_t(b) << 16); }

inline uint16_t float_to_bf16(float f) {
  const uint32_t x = bits<uint32_t>(f);
  if ((x & 0x7fffffff) > 0x7f800000) return uint16_t(x >> 16 | 0x40);
  return uint16_t((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

}  // namespace shim

struct half {
  uint16_t raw;
  half() = default;
  half(float f) : raw(shim::float_to_half(f)) {}
  operator float() const { return shim::half_to_float(raw); }
};

struct bfloat16_t {
  uint16_t raw;
  bfloat16_t() = default;
  explicit bfloat16_t(float f) : raw(shim::float_to_bf16(f)) {}
  explicit operator float() const { return shim::bf16_to_float(raw); }
};

namespace shim {

// Dtypes as bits of a set, for the lists of what an instruction takes.
enum Dtype : uint32_t { I8 = 1, U8 = 2, I16 = 4, U16 = 8, I32 = 16, U32 = 32, F16 = 64, BF16 = 128, F32 = 256 };

template <typename T> struct DtypeOf;
template <> struct DtypeOf<int8_t> { static constexpr Dtype code = I8; static constexpr const char* name = "int8"; };
template <> struct DtypeOf<uint8_t> { static constexpr Dtype code = U8; static constexpr const char* name = "uint8"; };
template <> struct DtypeOf<int16_t> { static constexpr Dtype code = I16; static constexpr const char* name = "int16"; };
template <> struct DtypeOf<uint16_t> { static constexpr Dtype code = U16; static constexpr const char* name = "uint16"; };
template <> struct DtypeOf<int32_t> { static constexpr Dtype code = I32; static constexpr const char* name = "int32"; };
template <> struct DtypeOf<uint32_t> { static constexpr Dtype code = U32; static constexpr const char* name = "uint32"; };
template <> struct DtypeOf<half> { static constexpr Dtype code = F16; static constexpr const char* name = "half"; };
template <> struct DtypeOf<bfloat16_t> { static constexpr Dtype code = BF16; static constexpr const char* name = "bfloat16"; };
template <> struct DtypeOf<float> { static constexpr Dtype code = F32; static constexpr const char* name = "float"; };

}  // namespace shim
