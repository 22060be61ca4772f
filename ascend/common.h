// What our AscendC kernels share: copies of any length, waits, and casts between act and f32.
#pragma once
#include "kernel_operator.h"

namespace yinian {

using namespace AscendC;

constexpr uint32_t BLOCK_BYTES = 32;       // grain of UB
constexpr uint32_t LANES = 64;             // f32 numbers of a repeat
constexpr uint32_t F32_OF_BLOCK = 8;       // f32 numbers of a block

__aicore__ inline uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
__aicore__ inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
__aicore__ inline uint32_t ceil_div(uint32_t n, uint32_t by) { return (n + by - 1) / by; }
__aicore__ inline uint32_t round_up(uint32_t n, uint32_t to) { return ceil_div(n, to) * to; }

// What comes later on the second pipe of EVENT waits for what came earlier on the first.
template <HardEvent EVENT>
__aicore__ inline void wait_for() {
  const event_t id = static_cast<event_t>(GetTPipePtr()->FetchEventID(EVENT));
  SetFlag<EVENT>(id);
  WaitFlag<EVENT>(id);
}

// `blocks` pieces of `count` elements, which lie one behind the other in GM; in UB each starts at a block of its own and is
// filled up with zeros, `gap` blocks before the next.
template <typename T>
__aicore__ inline void load(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count, uint32_t blocks = 1,
                            uint32_t gap = 0) {
  const uint32_t bytes = count * sizeof(T);
  DataCopyPadExtParams<T> pad;
  pad.isPad = true;
  pad.leftPadding = 0;
  pad.rightPadding = static_cast<uint8_t>((round_up(bytes, BLOCK_BYTES) - bytes) / sizeof(T));
  const DataCopyExtParams shape(static_cast<uint16_t>(blocks), bytes, 0, gap, 0);
  DataCopyPad(dst, src, shape, pad);
}

// The other way.
template <typename T>
__aicore__ inline void store(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count, uint32_t blocks = 1) {
  const DataCopyExtParams shape(static_cast<uint16_t>(blocks), static_cast<uint32_t>(count * sizeof(T)), 0, 0, 0);
  DataCopyPad(dst, src, shape);
}

template <typename T>
__aicore__ inline void widen(const LocalTensor<float>& dst, const LocalTensor<T>& src, uint32_t count) {
  Cast(dst, src, RoundMode::CAST_NONE, count);
}
template <typename T>
__aicore__ inline void narrow(const LocalTensor<T>& dst, const LocalTensor<float>& src, uint32_t count) {
  Cast(dst, src, RoundMode::CAST_RINT, count);
}

__aicore__ inline void barrier() { PipeBarrier<PIPE_V>(); }

}  // namespace yinian
