// The vector unit. An instruction works in repeats of 256 bytes, eight blocks of 32; forms with a count cut it themselves.
#pragma once
#include <cmath>

#include "tensor.h"

namespace AscendC {

enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC };
enum class CMPMODE { LT, GT, EQ, LE, GE, NE };
enum class SELMODE { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };

// Strides in blocks of 32 bytes: between blocks of one repeat, and between repeats.
struct BinaryRepeatParams {
  uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
  BinaryRepeatParams() = default;
  BinaryRepeatParams(uint8_t db, uint8_t b0, uint8_t b1, uint8_t dr, uint8_t r0, uint8_t r1)
      : dstBlkStride(db), src0BlkStride(b0), src1BlkStride(b1), dstRepStride(dr), src0RepStride(r0), src1RepStride(r1) {}
};
struct BrcbRepeatParams {
  uint16_t dstBlkStride = 1, dstRepStride = 8;
  BrcbRepeatParams() = default;
  BrcbRepeatParams(uint16_t db, uint16_t dr) : dstBlkStride(db), dstRepStride(dr) {}
};

}  // namespace AscendC

namespace shim {

constexpr uint32_t REPEAT = 256, BLOCKS = 8, MAX_REPEATS = 255;

// Values in the arithmetic of their dtype: small floats go through f32.
template <typename T> struct Wide { using type = T; };
template <> struct Wide<half> { using type = float; };
template <> struct Wide<bfloat16_t> { using type = float; };

// One vector instruction.
class Vector {
 public:
  explicit Vector(const char* name) : name_(name), seq_(core().start(V, name)) {}

  template <typename T>
  void takes(uint32_t dtypes) const {
    if ((DtypeOf<T>::code & dtypes) == 0) fail("%s takes no %s", name_, DtypeOf<T>::name);
  }
  void check(bool right, const char* what) const {
    if (!right) fail("%s: %s", name_, what);
  }
  // Elements `from..from + count` in UB, aligned to `align` bytes.
  template <typename T>
  T* part(const AscendC::LocalTensor<T>& tensor, uint64_t from, uint64_t count, bool write, uint32_t align = LINE) const {
    const uint32_t at = tensor.use(from * sizeof(T), count * sizeof(T), name_);
    if (at % align != 0) fail("%s: UB address %u is not aligned to %u bytes", name_, at, align);
    core().touch(V, seq_, at, uint32_t(count * sizeof(T)), write);
    return reinterpret_cast<T*>(&core().ub[at]);
  }
  // An operand may be the result itself; one that overlaps it otherwise is read before or after it is written, who knows.
  template <typename T, typename U>
  void apart(const AscendC::LocalTensor<T>& dst, uint64_t dst_count, const AscendC::LocalTensor<U>& src, uint64_t count) const {
    const uint64_t d = dst.start_byte(), s = src.start_byte();
    if (d == s && sizeof(T) == sizeof(U)) return;
    if (d < s + count * sizeof(U) && s < d + dst_count * sizeof(T)) fail("%s: result and operand overlap", name_);
  }
  const char* name() const { return name_; }

 private:
  const char* name_;
  uint64_t seq_;
};

template <typename T, typename F>
void binary(const char* name, uint32_t dtypes, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& a,
            const AscendC::LocalTensor<T>& b, int32_t count, F f) {
  using W = typename Wide<T>::type;
  const Vector op(name);
  op.takes<T>(dtypes);
  op.check(count > 0, "a count of at least 1");
  op.apart(dst, uint64_t(count), a, uint64_t(count));
  op.apart(dst, uint64_t(count), b, uint64_t(count));
  const T* x = op.part(a, 0, uint64_t(count), false);
  const T* y = op.part(b, 0, uint64_t(count), false);
  T* out = op.part(dst, 0, uint64_t(count), true);
  for (int32_t i = 0; i < count; i++) out[i] = T(f(W(x[i]), W(y[i])));
}

// Which repeat writes each line of UB, to find repeats that depend on each other.
inline thread_local uint16_t line_owner[LINES];

template <typename T, typename F>
void binary(const char* name, uint32_t dtypes, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& a,
            const AscendC::LocalTensor<T>& b, uint64_t mask, uint8_t repeats, const AscendC::BinaryRepeatParams& p, F f) {
  using W = typename Wide<T>::type;
  constexpr uint64_t per_block = LINE / sizeof(T);
  const Vector op(name);
  op.takes<T>(dtypes);
  op.check(mask >= 1 && mask <= REPEAT / sizeof(T), "a mask of 1 to 256 bytes of elements");
  op.check(repeats >= 1, "1 to 255 repeats");
  const uint64_t used = (mask + per_block - 1) / per_block;
  for (int pass = 0; pass < 3; pass++) {  // mark lines, look for foreign ones, unmark
    for (uint32_t r = 0; r < repeats; r++) {
      for (uint64_t k = 0; k < used; k++) {
        const auto line = [&](const AscendC::LocalTensor<T>& t, uint32_t block, uint32_t repeat) -> uint16_t& {
          return line_owner[(t.start_byte() / LINE + block * k + repeat * r) % LINES];
        };
        if (pass == 0) line(dst, p.dstBlkStride, p.dstRepStride) = uint16_t(r + 1);
        if (pass == 2) line(dst, p.dstBlkStride, p.dstRepStride) = 0;
        if (pass != 1) continue;
        const uint16_t x = line(a, p.src0BlkStride, p.src0RepStride), y = line(b, p.src1BlkStride, p.src1RepStride);
        if ((x != 0 && x != r + 1) || (y != 0 && y != r + 1)) {
          std::memset(line_owner, 0, sizeof(line_owner));
          fail("%s: a repeat reads what another one writes", name);
        }
      }
    }
  }
  for (uint32_t r = 0; r < repeats; r++) {
    for (uint64_t k = 0; k < used; k++) {
      const uint64_t n = mask - k * per_block < per_block ? mask - k * per_block : per_block;
      const T* x = op.part(a, (p.src0BlkStride * k + p.src0RepStride * r) * per_block, n, false);
      const T* y = op.part(b, (p.src1BlkStride * k + p.src1RepStride * r) * per_block, n, false);
      T* out = op.part(dst, (p.dstBlkStride * k + p.dstRepStride * r) * per_block, n, true);
      for (uint64_t i = 0; i < n; i++) out[i] = T(f(W(x[i]), W(y[i])));
    }
  }
}

template <typename T, typename F>
void unary(const char* name, uint32_t dtypes, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
           int32_t count, F f) {
  using W = typename Wide<T>::type;
  const Vector op(name);
  op.takes<T>(dtypes);
  op.check(count > 0, "a count of at least 1");
  op.apart(dst, uint64_t(count), src, uint64_t(count));
  const T* x = op.part(src, 0, uint64_t(count), false);
  T* out = op.part(dst, 0, uint64_t(count), true);
  for (int32_t i = 0; i < count; i++) out[i] = T(f(W(x[i])));
}

inline bool can_cast(uint32_t to, uint32_t from, AscendC::RoundMode mode) {
  const bool none = mode == AscendC::RoundMode::CAST_NONE;
  if (to == F32 && (from == F16 || from == BF16 || from == I16)) return none;
  if (to == F32 && from == I32) return true;
  if (to == F16 && from == F32) return true;
  if (to == BF16 && from == F32) return !none;
  return to == I32 && from == F32 && !none;
}

inline float rounded(float x, AscendC::RoundMode mode) {
  switch (mode) {
    case AscendC::RoundMode::CAST_FLOOR: return std::floor(x);
    case AscendC::RoundMode::CAST_CEIL: return std::ceil(x);
    case AscendC::RoundMode::CAST_ROUND: return std::round(x);
    case AscendC::RoundMode::CAST_TRUNC: return std::trunc(x);
    default: return std::nearbyint(x);
  }
}

}  // namespace shim

namespace AscendC {

#define YN_BINARY(NAME, DTYPES, EXPRESSION)                                                                              \
  template <typename T>                                                                                                  \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t count) {                \
    shim::binary(#NAME, DTYPES, dst, a, b, count, [](auto x, auto y) { return EXPRESSION; });                            \
  }                                                                                                                      \
  template <typename T>                                                                                                  \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& a, const LocalTensor<T>& b, uint64_t mask, uint8_t repeats, \
            const BinaryRepeatParams& params) {                                                                          \
    shim::binary(#NAME, DTYPES, dst, a, b, mask, repeats, params, [](auto x, auto y) { return EXPRESSION; });            \
  }
YN_BINARY(Add, shim::F16 | shim::F32 | shim::I16 | shim::I32, x + y)
YN_BINARY(Sub, shim::F16 | shim::F32 | shim::I16 | shim::I32, x - y)
YN_BINARY(Mul, shim::F16 | shim::F32 | shim::I16 | shim::I32, x* y)
YN_BINARY(Div, shim::F16 | shim::F32, x / y)
YN_BINARY(Max, shim::F16 | shim::F32 | shim::I16 | shim::I32, x > y ? x : y)
YN_BINARY(Min, shim::F16 | shim::F32 | shim::I16 | shim::I32, x < y ? x : y)
#undef YN_BINARY

template <typename T>
void And(const LocalTensor<T>& dst, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t count) {
  shim::binary("And", shim::I16 | shim::U16, dst, a, b, count, [](auto x, auto y) { return x & y; });
}

#define YN_UNARY(NAME, EXPRESSION)                                                                 \
  template <typename T>                                                                            \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t count) {                 \
    shim::unary(#NAME, shim::F16 | shim::F32, dst, src, count, [](auto x) { return EXPRESSION; }); \
  }
YN_UNARY(Exp, std::exp(x))
YN_UNARY(Sqrt, std::sqrt(x))
YN_UNARY(Abs, std::fabs(x))
#undef YN_UNARY

#define YN_SCALAR(NAME, EXPRESSION)                                                                                \
  template <typename T>                                                                                            \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, int32_t count) {                \
    using W = typename shim::Wide<T>::type;                                                                        \
    const W y = W(scalar);                                                                                         \
    shim::unary(#NAME, shim::F16 | shim::F32 | shim::I16 | shim::I32, dst, src, count, [y](W x) { return EXPRESSION; }); \
  }
YN_SCALAR(Adds, x + y)
YN_SCALAR(Muls, x* y)
YN_SCALAR(Maxs, x > y ? x : y)
YN_SCALAR(Mins, x < y ? x : y)
#undef YN_SCALAR

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalar, int32_t count) {
  const shim::Vector op("Duplicate");
  op.takes<T>(shim::F16 | shim::BF16 | shim::F32 | shim::I16 | shim::U16 | shim::I32 | shim::U32);
  op.check(count > 0, "a count of at least 1");
  T* out = op.part(dst, 0, uint64_t(count), true);
  for (int32_t i = 0; i < count; i++) out[i] = scalar;
}

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& mode, uint32_t count) {
  const shim::Vector op("Cast");
  if (!shim::can_cast(shim::DtypeOf<T>::code, shim::DtypeOf<U>::code, mode)) {
    shim::fail("Cast from %s to %s with round mode %d is not possible", shim::DtypeOf<U>::name, shim::DtypeOf<T>::name, int(mode));
  }
  op.check(count > 0, "a count of at least 1");
  op.check(std::is_same<U, int32_t>::value || std::is_same<T, int32_t>::value || mode == RoundMode::CAST_NONE ||
               mode == RoundMode::CAST_RINT,
           "this emulation rounds floats to nearest even only");
  op.apart(dst, count, src, count);
  const U* x = op.part(src, 0, count, false);
  T* out = op.part(dst, 0, count, true);
  for (uint32_t i = 0; i < count; i++) {
    out[i] = std::is_same<T, int32_t>::value ? T(shim::rounded(float(x[i]), mode)) : T(float(x[i]));
  }
}

// Bit i of dst says whether src[i] compares so.
template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src, T scalar, CMPMODE mode, uint32_t count) {
  const shim::Vector op("CompareScalar");
  op.takes<T>(shim::F16 | shim::F32 | (mode == CMPMODE::EQ ? uint32_t(shim::I32) : 0u));
  op.takes<U>(shim::U8);
  op.check(count > 0 && count * sizeof(T) % shim::REPEAT == 0, "a count of whole repeats of 256 bytes");
  op.apart(dst, count / 8, src, count);
  const T* x = op.part(src, 0, count, false);
  U* out = op.part(dst, 0, count / 8, true);
  std::memset(out, 0, count / 8);
  for (uint32_t i = 0; i < count; i++) {
    const float a = float(x[i]), b = float(scalar);
    const bool is = mode == CMPMODE::LT   ? a < b
                    : mode == CMPMODE::GT ? a > b
                    : mode == CMPMODE::EQ ? a == b
                    : mode == CMPMODE::LE ? a <= b
                    : mode == CMPMODE::GE ? a >= b
                                          : a != b;
    out[i / 8] = U(out[i / 8] | uint8_t(is) << i % 8);
  }
}

// dst[i] = bit i of mask ? a[i] : b[i].
template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& mask, const LocalTensor<T>& a, const LocalTensor<T>& b, SELMODE mode,
            uint32_t count) {
  const shim::Vector op("Select");
  op.takes<T>(shim::F16 | shim::F32);
  op.takes<U>(shim::U8);
  op.check(mode == SELMODE::VSEL_TENSOR_TENSOR_MODE, "this emulation has VSEL_TENSOR_TENSOR_MODE only");
  op.check(count > 0 && count * sizeof(T) % shim::REPEAT == 0, "a count of whole repeats of 256 bytes");
  op.apart(dst, count, a, count);
  op.apart(dst, count, b, count);
  const U* bits = op.part(mask, 0, count / 8, false);
  const T* x = op.part(a, 0, count, false);
  const T* y = op.part(b, 0, count, false);
  T* out = op.part(dst, 0, count, true);
  for (uint32_t i = 0; i < count; i++) out[i] = (bits[i / 8] >> i % 8 & 1) != 0 ? x[i] : y[i];
}

// dst[r * dstRepStride] = the sum of `mask` elements of repeat r, added pairwise.
template <typename T>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t mask, int32_t repeats, int32_t dstRepStride,
                    int32_t srcBlkStride, int32_t srcRepStride) {
  constexpr uint64_t per_block = shim::LINE / sizeof(T), lanes = shim::REPEAT / sizeof(T);
  const shim::Vector op("WholeReduceSum");
  op.takes<T>(shim::F16 | shim::F32);
  op.check(mask >= 1 && uint64_t(mask) <= lanes, "a mask of 1 to 256 bytes of elements");
  op.check(repeats >= 1 && uint32_t(repeats) <= shim::MAX_REPEATS, "1 to 255 repeats");
  op.check(dstRepStride >= 1 && srcBlkStride >= 0 && srcRepStride >= 0, "strides that lead forward");
  op.apart(dst, uint64_t(repeats - 1) * uint64_t(dstRepStride) + 1, src,
           uint64_t(repeats - 1) * uint64_t(srcRepStride) * per_block + lanes);
  for (int32_t r = 0; r < repeats; r++) {
    float lane[lanes] = {};
    for (uint64_t i = 0; i < uint64_t(mask); i += per_block) {
      const uint64_t n = uint64_t(mask) - i < per_block ? uint64_t(mask) - i : per_block;
      const uint64_t block = uint64_t(srcBlkStride) * (i / per_block) + uint64_t(srcRepStride) * uint64_t(r);
      const T* x = op.part(src, block * per_block, n, false);
      for (uint64_t j = 0; j < n; j++) lane[i + j] = float(x[j]);
    }
    for (uint64_t width = lanes; width > 1; width /= 2) {
      for (uint64_t i = 0; i < width / 2; i++) lane[i] = lane[2 * i] + lane[2 * i + 1];
    }
    *op.part(dst, uint64_t(r) * uint64_t(dstRepStride), 1, true, sizeof(T)) = T(lane[0]);
  }
}

// Each element of src fills a block of 32 bytes, eight of them a repeat.
template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint8_t repeats, const BrcbRepeatParams& p) {
  constexpr uint64_t per_block = shim::LINE / sizeof(T);
  const shim::Vector op("Brcb");
  op.takes<T>(shim::F16 | shim::F32 | shim::I16 | shim::U16 | shim::I32 | shim::U32);
  op.check(repeats >= 1, "1 to 255 repeats");
  const uint64_t blocks = uint64_t(repeats - 1) * p.dstRepStride + (shim::BLOCKS - 1) * uint64_t(p.dstBlkStride) + 1;
  op.check(dst.start_byte() >= src.start_byte() + repeats * 8 * sizeof(T) || src.start_byte() >= dst.start_byte() + blocks * shim::LINE,
           "result and operand overlap");
  const T* x = op.part(src, 0, uint64_t(repeats) * shim::BLOCKS, false);
  for (uint32_t r = 0; r < repeats; r++) {
    for (uint32_t k = 0; k < shim::BLOCKS; k++) {
      T* out = op.part(dst, (uint64_t(p.dstRepStride) * r + uint64_t(p.dstBlkStride) * k) * per_block, per_block, true);
      for (uint64_t i = 0; i < per_block; i++) out[i] = x[r * shim::BLOCKS + k];
    }
  }
}

}  // namespace AscendC
