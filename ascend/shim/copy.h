// Copies between GM and UB.
#pragma once
#include "tensor.h"

namespace AscendC {

// Strides lie between the end of a block and the start of the next: in GM in bytes, in UB in blocks of 32 bytes.
struct DataCopyExtParams {
  uint16_t blockCount = 1;
  uint32_t blockLen = 0;  // bytes
  uint32_t srcStride = 0;
  uint32_t dstStride = 0;
  uint32_t rsv = 0;
  DataCopyExtParams() = default;
  DataCopyExtParams(uint16_t count, uint32_t len, uint32_t src, uint32_t dst, uint32_t reserved)
      : blockCount(count), blockLen(len), srcStride(src), dstStride(dst), rsv(reserved) {}
};

template <typename T>
struct DataCopyPadExtParams {
  bool isPad = false;
  uint8_t leftPadding = 0;   // elements
  uint8_t rightPadding = 0;  // elements
  T paddingValue = T(0);
};

}  // namespace AscendC

namespace shim {

inline uint32_t whole_lines(uint64_t bytes) { return uint32_t((bytes + LINE - 1) / LINE * LINE); }

inline void check_blocks(const AscendC::DataCopyExtParams& p, size_t element) {
  if (p.blockCount == 0 || p.blockCount > 4095) fail("DataCopyPad: %u blocks, 1 to 4095 are possible", p.blockCount);
  if (p.blockLen == 0 || p.blockLen > 2097151) fail("DataCopyPad: blocks of %u bytes, 1 to 2097151 are possible", p.blockLen);
  if (p.blockLen % element != 0) fail("DataCopyPad: blocks of %u bytes are not whole elements", p.blockLen);
}

inline void check_line(uint64_t address, const char* name, const char* where) {
  if (address % LINE != 0) fail("%s: the %s address is not aligned to 32 bytes", name, where);
}

}  // namespace shim

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count) {
  const uint64_t seq = shim::core().start(shim::MTE2, "DataCopy"), bytes = uint64_t(count) * sizeof(T);
  if (bytes == 0 || bytes % shim::LINE != 0) shim::fail("DataCopy: %llu bytes are not whole blocks of 32", (unsigned long long)bytes);
  const uint8_t* from = src.at(0, bytes, "DataCopy");
  const uint32_t to = dst.use(0, bytes, "DataCopy");
  shim::check_line(uintptr_t(from), "DataCopy", "GM");
  shim::check_line(to, "DataCopy", "UB");
  shim::core().touch_gm(shim::MTE2, seq, from, bytes, false);
  shim::core().touch(shim::MTE2, seq, to, uint32_t(bytes), true);
  std::memcpy(&shim::core().ub[to], from, bytes);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count) {
  const uint64_t seq = shim::core().start(shim::MTE3, "DataCopy"), bytes = uint64_t(count) * sizeof(T);
  if (bytes == 0 || bytes % shim::LINE != 0) shim::fail("DataCopy: %llu bytes are not whole blocks of 32", (unsigned long long)bytes);
  uint8_t* to = dst.at(0, bytes, "DataCopy");
  const uint32_t from = src.use(0, bytes, "DataCopy");
  shim::check_line(uintptr_t(to), "DataCopy", "GM");
  shim::check_line(from, "DataCopy", "UB");
  shim::core().touch(shim::MTE3, seq, from, uint32_t(bytes), false);
  shim::core().touch_gm(shim::MTE3, seq, to, bytes, true);
  std::memcpy(to, &shim::core().ub[from], bytes);
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>& pad) {
  const uint64_t seq = shim::core().start(shim::MTE2, "DataCopyPad");
  shim::check_blocks(p, sizeof(T));
  const uint32_t left = pad.isPad ? pad.leftPadding : 0, right = pad.isPad ? pad.rightPadding : 0;
  if (left * sizeof(T) > shim::LINE || right * sizeof(T) > shim::LINE) shim::fail("DataCopyPad: padding of more than 32 bytes");
  const uint32_t filled = uint32_t((left + right) * sizeof(T)) + p.blockLen, taken = shim::whole_lines(filled);
  for (uint32_t i = 0; i < p.blockCount; i++) {
    const uint8_t* from = src.at(uint64_t(i) * (p.blockLen + uint64_t(p.srcStride)), p.blockLen, "DataCopyPad");
    const uint32_t to = dst.use(uint64_t(i) * (taken + uint64_t(p.dstStride) * shim::LINE), taken, "DataCopyPad");
    shim::check_line(to, "DataCopyPad", "UB");
    shim::core().touch_gm(shim::MTE2, seq, from, p.blockLen, false);
    shim::core().touch(shim::MTE2, seq, to, taken, true);
    uint8_t* out = &shim::core().ub[to];
    std::memset(out, shim::POISON, taken);
    for (uint32_t j = 0; j < left; j++) std::memcpy(out + j * sizeof(T), &pad.paddingValue, sizeof(T));
    std::memcpy(out + left * sizeof(T), from, p.blockLen);
    for (uint32_t j = 0; j < right; j++) {
      std::memcpy(out + left * sizeof(T) + p.blockLen + j * sizeof(T), &pad.paddingValue, sizeof(T));
    }
  }
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& p) {
  const uint64_t seq = shim::core().start(shim::MTE3, "DataCopyPad");
  shim::check_blocks(p, sizeof(T));
  const uint32_t taken = shim::whole_lines(p.blockLen);
  for (uint32_t i = 0; i < p.blockCount; i++) {
    uint8_t* to = dst.at(uint64_t(i) * (p.blockLen + uint64_t(p.dstStride)), p.blockLen, "DataCopyPad");
    const uint32_t from = src.use(uint64_t(i) * (taken + uint64_t(p.srcStride) * shim::LINE), p.blockLen, "DataCopyPad");
    shim::check_line(from, "DataCopyPad", "UB");
    shim::core().touch(shim::MTE3, seq, from, p.blockLen, false);
    shim::core().touch_gm(shim::MTE3, seq, to, p.blockLen, true);
    std::memcpy(to, &shim::core().ub[from], p.blockLen);
  }
}

}  // namespace AscendC
