// Half formats and floats.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace dbl {

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bf16(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }
// To the nearest, ties to even.
inline uint16_t to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_f16(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FF;
    if (exponent == 31) return float_of_bits(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = float(mantissa) * 5.9604644775390625e-8f;
    return sign ? -value : value;
}
inline uint16_t to_f16(float value) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFF;
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if (magnitude > 0x7F800000) return uint16_t(sign | 0x7E00);
    if (magnitude >= 0x477FF000) return uint16_t(sign | 0x7C00);
    if (magnitude >= 0x38800000) {
        uint32_t shifted = magnitude - 0x38000000;
        return uint16_t(sign | (shifted + 0xFFF + (shifted >> 13 & 1)) >> 13);
    }
    // Adding half lets the hardware round to a multiple of the smallest half.
    float rounded = float_of_bits(magnitude) + 0.5f;
    return uint16_t(sign | (bits_of(rounded) - bits_of(0.5f)));
}

} // namespace dbl
