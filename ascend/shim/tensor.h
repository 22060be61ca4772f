// Tensors, queues, buffers and events: what a kernel holds memory by and orders its pipes with.
#pragma once
#include "core.h"

namespace AscendC {

enum class TPosition { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };
enum event_t : int32_t {};
enum class HardEvent { MTE2_V, V_MTE2, V_MTE3, MTE3_V, V_S, S_V, MTE2_S, S_MTE2, MTE3_S, S_MTE3, MTE2_MTE3, MTE3_MTE2 };

inline uint32_t GetBlockIdx() { return shim::core().block; }
inline uint32_t GetBlockNum() { return shim::core().blocks; }

}  // namespace AscendC

namespace shim {

struct Pair {
  int from, to;
};

inline Pair pipes_of(AscendC::HardEvent event) {
  static const Pair pairs[] = {{MTE2, V}, {V, MTE2}, {V, MTE3}, {MTE3, V}, {V, S},       {S, V},
                               {MTE2, S}, {S, MTE2}, {MTE3, S}, {S, MTE3}, {MTE2, MTE3}, {MTE3, MTE2}};
  return pairs[int(event)];
}

// Who fills the tensors of a position, and who empties them.
constexpr int filler(AscendC::TPosition position) { return position == AscendC::TPosition::VECIN ? MTE2 : V; }
constexpr int emptier(AscendC::TPosition position) { return position == AscendC::TPosition::VECOUT ? MTE3 : V; }

}  // namespace shim

namespace AscendC {

// Elements of UB. Belongs to a buffer of a queue, or to a TBuf (queue -1).
template <typename T>
class LocalTensor {
 public:
  LocalTensor() = default;
  LocalTensor(uint32_t offset, uint32_t bytes, int queue, uint32_t buffer, uint32_t generation)
      : offset_(offset), bytes_(bytes), queue_(queue), buffer_(buffer), generation_(generation), valid_(true) {}

  LocalTensor operator[](uint32_t element) const {
    if (uint64_t(element) * sizeof(T) > bytes_) shim::fail("LocalTensor[%u] of %u elements", element, GetSize());
    LocalTensor part = *this;
    part.offset_ += element * uint32_t(sizeof(T));
    part.bytes_ -= element * uint32_t(sizeof(T));
    return part;
  }
  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    return LocalTensor<U>(offset_, bytes_, queue_, buffer_, generation_);
  }
  uint32_t GetSize() const { return bytes_ / uint32_t(sizeof(T)); }

  T GetValue(uint32_t element) const {
    const uint64_t seq = shim::core().start(shim::S, "GetValue");
    const uint32_t at = place(element);
    shim::core().touch(shim::S, seq, at, sizeof(T), false);
    T value;
    std::memcpy(&value, &shim::core().ub[at], sizeof(T));
    return value;
  }
  void SetValue(uint32_t element, T value) const {
    const uint64_t seq = shim::core().start(shim::S, "SetValue");
    const uint32_t at = place(element);
    shim::core().touch(shim::S, seq, at, sizeof(T), true);
    std::memcpy(&shim::core().ub[at], &value, sizeof(T));
  }

  // Of the emulation: offset in UB of bytes that an instruction may use now.
  uint32_t use(uint64_t from_byte, uint64_t bytes, const char* name) const {
    alive(name);
    if (from_byte + bytes > bytes_) {
      shim::fail("%s: uses byte %llu of a tensor of %u", name, (unsigned long long)(from_byte + bytes - 1), bytes_);
    }
    return offset_ + uint32_t(from_byte);
  }
  void alive(const char* name) const {
    if (!valid_) shim::fail("%s: the tensor has no memory", name);
    if (queue_ < 0) return;
    const shim::Buffer& buffer = shim::core().queues[size_t(queue_)].buffers[buffer_];
    if (buffer.generation != generation_ || buffer.state == shim::Buffer::FREE) shim::fail("%s: the tensor was freed", name);
    if (buffer.state == shim::Buffer::QUEUED) shim::fail("%s: the tensor is in its queue, DeQue it first", name);
  }
  uint32_t start_byte() const { return offset_; }
  int queue() const { return queue_; }
  uint32_t buffer() const { return buffer_; }

 private:
  uint32_t place(uint32_t element) const { return use(uint64_t(element) * sizeof(T), sizeof(T), "GetValue or SetValue"); }

  uint32_t offset_ = 0, bytes_ = 0;
  int queue_ = -1;
  uint32_t buffer_ = 0, generation_ = 0;
  bool valid_ = false;
};

// Elements of GM.
template <typename T>
class GlobalTensor {
 public:
  void SetGlobalBuffer(T* address, uint64_t elements) {
    if (uintptr_t(address) % sizeof(T) != 0) shim::fail("SetGlobalBuffer: the address is not aligned to its elements");
    address_ = address;
    elements_ = elements;
  }
  GlobalTensor operator[](uint64_t element) const {
    if (element > elements_) {
      shim::fail("GlobalTensor[%llu] of %llu elements", (unsigned long long)element, (unsigned long long)elements_);
    }
    GlobalTensor part;
    part.address_ = address_ + element;
    part.elements_ = elements_ - element;
    return part;
  }
  T GetValue(uint64_t element) const {
    const uint64_t seq = shim::core().start(shim::S, "GlobalTensor::GetValue");
    if (element >= elements_) {
      shim::fail("GlobalTensor::GetValue(%llu) of %llu elements", (unsigned long long)element, (unsigned long long)elements_);
    }
    shim::core().touch_gm(shim::S, seq, address_ + element, sizeof(T), false);
    return address_[element];
  }

  // Of the emulation.
  uint8_t* at(uint64_t byte, uint64_t bytes, const char* name) const {
    if (byte + bytes > elements_ * sizeof(T)) {
      shim::fail("%s: byte %llu of a GlobalTensor of %llu", name, (unsigned long long)(byte + bytes - 1),
                 (unsigned long long)(elements_ * sizeof(T)));
    }
    return reinterpret_cast<uint8_t*>(address_) + byte;
  }

 private:
  T* address_ = nullptr;
  uint64_t elements_ = 0;
};

template <TPosition FROM, TPosition TO, int32_t DEPTH, int32_t MASK = 0>
class TQueBind {
  static constexpr int from = shim::filler(FROM), to = FROM == TO ? shim::emptier(FROM) : shim::emptier(TO);

 public:
  template <typename T>
  LocalTensor<T> AllocTensor() {
    shim::Queue& queue = get("AllocTensor");
    for (size_t tries = 0; tries < queue.buffers.size(); tries++) {
      const uint32_t i = queue.next;
      queue.next = (i + 1) % uint32_t(queue.buffers.size());
      shim::Buffer& buffer = queue.buffers[i];
      if (buffer.state != shim::Buffer::FREE) continue;
      buffer.state = shim::Buffer::ALLOCATED;
      buffer.generation++;
      shim::core().learn(from, buffer.emptied);
      std::memset(&shim::core().ub[buffer.offset], shim::POISON, buffer.bytes);
      return LocalTensor<T>(buffer.offset, buffer.bytes, index_, i, buffer.generation);
    }
    shim::fail("AllocTensor: no buffer of the queue is free (%zu in all): waits for ever", queue.buffers.size());
  }
  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor) {
    shim::Queue& queue = get("EnQue");
    shim::Buffer& buffer = mine(queue, tensor, "EnQue");
    if (buffer.state != shim::Buffer::ALLOCATED) shim::fail("EnQue: the tensor was not just allocated");
    if (queue.waiting.size() >= queue.depth) shim::fail("EnQue: %zu tensors in a queue of depth %u", queue.waiting.size() + 1, queue.depth);
    buffer.state = shim::Buffer::QUEUED;
    buffer.filled = shim::core().seen(from);
    queue.waiting.push_back(tensor.buffer());
    return true;
  }
  template <typename T>
  LocalTensor<T> DeQue() {
    shim::Queue& queue = get("DeQue");
    if (queue.waiting.empty()) shim::fail("DeQue: the queue is empty: waits for ever");
    const uint32_t i = queue.waiting.front();
    queue.waiting.erase(queue.waiting.begin());
    shim::Buffer& buffer = queue.buffers[i];
    buffer.state = shim::Buffer::TAKEN;
    shim::core().learn(to, buffer.filled);
    return LocalTensor<T>(buffer.offset, buffer.bytes, index_, i, buffer.generation);
  }
  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor) {
    shim::Queue& queue = get("FreeTensor");
    shim::Buffer& buffer = mine(queue, tensor, "FreeTensor");
    tensor.alive("FreeTensor");
    buffer.state = shim::Buffer::FREE;
    buffer.emptied = shim::core().seen(to);
  }

  void init(uint32_t buffers, uint32_t bytes) {
    if (index_ >= 0) shim::fail("InitBuffer of a queue twice");
    shim::Core& core = shim::core();
    index_ = int(core.queues.size());
    core.queues.push_back(shim::Queue{from, to, uint32_t(DEPTH), {}, {}, 0});
    for (uint32_t i = 0; i < buffers; i++) {
      shim::Buffer buffer;
      buffer.offset = core.take(bytes);
      buffer.bytes = bytes;
      core.queues.back().buffers.push_back(buffer);
    }
    core.check_events(from, to);
  }

 private:
  shim::Queue& get(const char* name) {
    if (index_ < 0) shim::fail("%s: the queue has no buffers, InitBuffer it first", name);
    return shim::core().queues[size_t(index_)];
  }
  template <typename T>
  shim::Buffer& mine(shim::Queue& queue, const LocalTensor<T>& tensor, const char* name) {
    if (tensor.queue() != index_) shim::fail("%s: the tensor is of another queue", name);
    return queue.buffers[tensor.buffer()];
  }

  int index_ = -1;
};

template <TPosition POSITION, int32_t DEPTH, int32_t MASK = 0>
class TQue : public TQueBind<POSITION, POSITION, DEPTH, MASK> {};

template <TPosition POSITION>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get() {
    if (bytes_ == 0) shim::fail("TBuf::Get before InitBuffer");
    return LocalTensor<T>(offset_, bytes_, -1, 0, 0);
  }
  void init(uint32_t bytes) {
    if (bytes_ != 0) shim::fail("InitBuffer of a TBuf twice");
    offset_ = shim::core().take(bytes);
    bytes_ = bytes;
  }

 private:
  uint32_t offset_ = 0, bytes_ = 0;
};

class TPipe {
 public:
  TPipe() {
    if (of_thread != nullptr) shim::fail("a second TPipe: a kernel has one");
    of_thread = this;
  }
  TPipe(const TPipe&) = delete;
  ~TPipe() { of_thread = nullptr; }
  template <TPosition FROM, TPosition TO, int32_t DEPTH, int32_t MASK>
  bool InitBuffer(TQueBind<FROM, TO, DEPTH, MASK>& queue, uint8_t buffers, uint32_t bytes) {
    queue.init(buffers, bytes);
    return true;
  }
  template <TPosition POSITION>
  bool InitBuffer(TBuf<POSITION>& buffer, uint32_t bytes) {
    buffer.init(bytes);
    return true;
  }
  int32_t FetchEventID(HardEvent event) {
    const shim::Pair pair = shim::pipes_of(event);
    return int32_t(shim::core().free_event(pair.from, pair.to));
  }
  static inline thread_local TPipe* of_thread = nullptr;
};

inline TPipe* GetTPipePtr() {
  if (TPipe::of_thread == nullptr) shim::fail("GetTPipePtr without a TPipe");
  return TPipe::of_thread;
}

template <HardEvent EVENT>
void SetFlag(event_t id) {
  const shim::Pair pair = shim::pipes_of(EVENT);
  shim::core().set_flag(pair.from, pair.to, uint32_t(id));
}
template <HardEvent EVENT>
void WaitFlag(event_t id) {
  const shim::Pair pair = shim::pipes_of(EVENT);
  shim::core().wait_flag(pair.from, pair.to, uint32_t(id));
}
template <pipe_t PIPE>
void PipeBarrier() {
  if (PIPE == PIPE_ALL) {
    shim::core().barrier_all();
  } else {
    shim::core().barrier(int(PIPE));
  }
}

}  // namespace AscendC
