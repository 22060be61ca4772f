// One emulated vector core: its unified buffer (UB), its pipes, and what each pipe knows to be complete.
//
// Pipes work at the same time. The shim runs instructions in program order, and asks of each whether it was sure to run after
// those whose bytes it touches: by a flag, a barrier or a queue. Order is kept as vector clocks: `known[p][q]` is the number
// of the last instruction of pipe q that is complete before the next one of pipe p starts. Bytes of UB are watched by lines
// of 32, the banks' grain; bytes of global memory (GM) exactly.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "number.h"

namespace shim {

// What the kernel did wrong; thrown through the kernel, caught by the launch.
struct Fault {
  std::string text;
};

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  throw Fault{text};
}

enum Pipe { S, V, MTE2, MTE3, PIPES };
inline const char* pipe_name(int pipe) {
  static const char* const names[] = {"S", "V", "MTE2", "MTE3"};
  return names[pipe];
}

constexpr uint32_t UB_BYTES = 192 * 1024, UB_USABLE = UB_BYTES - 256 - 8 * 1024, LINE = 32, LINES = UB_BYTES / LINE;
constexpr uint32_t EVENT_IDS = 8;
// What stands in memory that nothing has been put into: NaN in every dtype.
constexpr uint8_t POISON = 0xff;

struct Clock {
  uint64_t of[PIPES] = {};
  void join(const Clock& other) {
    for (int q = 0; q < PIPES; q++) of[q] = of[q] > other.of[q] ? of[q] : other.of[q];
  }
};

// The last instructions that touched some bytes.
struct Touched {
  int write_pipe = -1;
  uint64_t write = 0;
  const char* writer = "";
  uint64_t read[PIPES] = {};
  const char* reader[PIPES] = {};
  // The read before, which the last one hides where an instruction reads what it then writes.
  uint64_t earlier[PIPES] = {};
  const char* earlier_reader[PIPES] = {};
};

// Bytes of GM and which blocks of the launch touched them.
struct Span {
  uintptr_t end;
  Touched by;             // instructions of `block`
  int written_by = -1;    // block
  int read_by = -1;       // block; MANY for several
  static constexpr int MANY = -2;
};

// GM as one launch sees it.
struct Launch {
  using Check = int (*)(const void* host, size_t bytes, int write);
  Check check = nullptr;
  std::map<uintptr_t, Span> spans;
};

struct Buffer {
  enum State { FREE, ALLOCATED, QUEUED, TAKEN } state = FREE;
  uint32_t offset = 0, bytes = 0, generation = 0;
  Clock filled, emptied;
};

struct Queue {
  int from, to;  // pipes
  uint32_t depth;
  std::vector<Buffer> buffers;
  std::vector<uint32_t> waiting;
  uint32_t next = 0;
};

class Core {
 public:
  Core(Launch& launch, uint32_t block, uint32_t blocks) : block(block), blocks(blocks), launch_(launch) {
    ub.resize(UB_BYTES);
    lines_.resize(LINES);
    // Numbers of instructions go on from block to block, so what the block before did is complete and lines stay as they are.
    for (int p = 0; p < PIPES; p++) {
      count_[p] = last_;
      for (int q = 0; q < PIPES; q++) known_[p].of[q] = last_;
    }
  }
  Core(const Core&) = delete;
  ~Core() {
    for (uint64_t count : count_) last_ = last_ > count ? last_ : count;
  }

  const uint32_t block, blocks;
  static inline thread_local std::vector<uint8_t> ub;
  std::vector<Queue> queues;

  uint32_t take(uint64_t bytes) {
    if (bytes == 0 || bytes % LINE != 0) fail("InitBuffer of %llu bytes: not whole blocks of 32", (unsigned long long)bytes);
    if (used_ + bytes > UB_USABLE) {
      fail("InitBuffer: %llu bytes of UB in all, usable are %u", (unsigned long long)(used_ + bytes), UB_USABLE);
    }
    const uint32_t offset = used_;
    used_ += uint32_t(bytes);
    std::memset(&ub[offset], POISON, bytes);
    return offset;
  }

  // Starts an instruction; the scalar unit issues it, so it runs after all that the scalar unit has waited for.
  uint64_t start(int pipe, const char* name) {
    for (int q = 0; q < PIPES; q++) {
      if (q != S && known_[S].of[q] > known_[pipe].of[q]) known_[pipe].of[q] = known_[S].of[q];
    }
    name_ = name;
    return ++count_[pipe];
  }

  Clock seen(int pipe) const {
    Clock clock = known_[pipe];
    clock.of[pipe] = count_[pipe];
    return clock;
  }
  void learn(int pipe, const Clock& clock) { known_[pipe].join(clock); }

  void barrier(int pipe) { known_[pipe].of[pipe] = count_[pipe]; }
  void barrier_all() {
    for (int p = 0; p < PIPES; p++) {
      for (int q = 0; q < PIPES; q++) known_[p].of[q] = count_[q];
    }
  }

  void set_flag(int from, int to, uint32_t id) {
    if (id >= EVENT_IDS) fail("SetFlag: event %u, there are %u", id, EVENT_IDS);
    // A flag is one bit: set again before the other pipe came to its wait, it is set once.
    const auto waited = waits_.find(key(from, to, id));
    if (waited != waits_.end() && to != S && known_[from].of[to] < waited->second) {
      fail("SetFlag<%s_%s>(%u) again, and %s may not have come to the WaitFlag before", pipe_name(from), pipe_name(to), id,
           pipe_name(to));
    }
    if (!flags_.emplace(key(from, to, id), seen(from)).second) {
      fail("SetFlag<%s_%s>(%u) twice without WaitFlag", pipe_name(from), pipe_name(to), id);
    }
  }
  void wait_flag(int from, int to, uint32_t id) {
    const auto flag = flags_.find(key(from, to, id));
    if (flag == flags_.end()) {
      fail("WaitFlag<%s_%s>(%u) without SetFlag: waits for ever", pipe_name(from), pipe_name(to), id);
    }
    learn(to, flag->second);
    flags_.erase(flag);
    waits_[key(from, to, id)] = ++count_[to];
  }
  // An event id that nobody waits for now; queues hold one per buffer.
  uint32_t free_event(int from, int to) const {
    uint32_t held = 0;
    for (const Queue& queue : queues) held += queue.from == from && queue.to == to ? uint32_t(queue.buffers.size()) : 0;
    for (uint32_t id = held; id < EVENT_IDS; id++) {
      if (flags_.find(key(from, to, id)) == flags_.end()) return id;
    }
    fail("FetchEventID: no event from %s to %s is free", pipe_name(from), pipe_name(to));
  }
  // All pairs of pipes have EVENT_IDS events, and a queue takes one per buffer in each direction.
  void check_events(int from, int to) const {
    uint32_t held = 0;
    for (const Queue& queue : queues) held += queue.from == from && queue.to == to ? uint32_t(queue.buffers.size()) : 0;
    if (held > EVENT_IDS) {
      fail("InitBuffer: %u buffers of queues from %s to %s, events are %u", held, pipe_name(from), pipe_name(to), EVENT_IDS);
    }
  }

  // The instruction `seq` of `pipe` reads or writes bytes of UB.
  void touch(int pipe, uint64_t seq, uint32_t offset, uint32_t bytes, bool write) {
    if (bytes == 0) return;
    if (uint64_t(offset) + bytes > UB_BYTES) fail("%s ends behind UB", name_);
    for (uint32_t line = offset / LINE; line <= (offset + bytes - 1) / LINE; line++) {
      ordered(pipe, seq, lines_[line], write, "UB", line * LINE);
      note(pipe, seq, lines_[line], write);
    }
  }

  // The same of GM.
  void touch_gm(int pipe, uint64_t seq, const void* address, uint64_t bytes, bool write) {
    if (bytes == 0) return;
    if (launch_.check != nullptr && launch_.check(address, bytes, write) == 0) {
      fail("%s %s %llu bytes of GM that are not all within one allocation", name_, write ? "writes" : "reads",
           (unsigned long long)bytes);
    }
    const uintptr_t from = uintptr_t(address), to = from + bytes;
    split(from);
    split(to);
    uintptr_t at = from;
    for (auto span = launch_.spans.lower_bound(from); at < to;) {
      if (span == launch_.spans.end() || span->first > at) {  // a gap
        const uintptr_t end = span == launch_.spans.end() || span->first > to ? to : span->first;
        span = launch_.spans.emplace_hint(span, at, Span{end, {}, -1, -1});
      }
      touch_span(pipe, seq, span->second, write, uint64_t(span->first - from));
      at = span->second.end;
      ++span;
    }
  }

  void end() const {
    for (const Queue& queue : queues) {
      for (const Buffer& buffer : queue.buffers) {
        if (buffer.state != Buffer::FREE) fail("a tensor of a queue is not freed at the end of the kernel");
      }
    }
    if (!flags_.empty()) fail("SetFlag without WaitFlag at the end of the kernel");
  }

 private:
  static int key(int from, int to, uint32_t id) { return (from * PIPES + to) * int(EVENT_IDS) + int(id); }

  // Whether what `by` says was sure to be complete before instruction `seq` of `pipe`.
  void ordered(int pipe, uint64_t seq, const Touched& by, bool write, const char* where, uint64_t at) const {
    for (int q = 0; write && q < PIPES; q++) {
      const bool own = q == pipe && by.read[q] == seq;
      const uint64_t read = own ? by.earlier[q] : by.read[q];
      if (read > 0) need_order(pipe, seq, q, read, own ? by.earlier_reader[q] : by.reader[q], "reads", write, where, at);
    }
    if (by.write_pipe >= 0) need_order(pipe, seq, by.write_pipe, by.write, by.writer, "wrote", write, where, at);
  }
  void need_order(int pipe, uint64_t seq, int other, uint64_t before, const char* name, const char* did, bool write,
                  const char* where, uint64_t at) const {
    if (pipe == other && (pipe == S || before == seq)) return;  // the scalar unit is in order
    if (known_[pipe].of[other] >= before) return;
    if (pipe == other) {
      fail("%s %s %s+%llu, which %s %s on the same pipe: PipeBarrier<PIPE_%s> missing", name_, write ? "writes" : "reads", where,
           (unsigned long long)at, name, did, pipe_name(pipe));
    }
    fail("%s (%s) %s %s+%llu, which %s (%s) %s: SetFlag/WaitFlag<HardEvent::%s_%s> or a queue missing", name_, pipe_name(pipe),
         write ? "writes" : "reads", where, (unsigned long long)at, name, pipe_name(other), did, pipe_name(other),
         pipe_name(pipe));
  }
  void note(int pipe, uint64_t seq, Touched& by, bool write) const {
    if (write) {
      by = {};
      by.write_pipe = pipe;
      by.write = seq;
      by.writer = name_;
    } else if (by.read[pipe] != seq) {
      by.earlier[pipe] = by.read[pipe];
      by.earlier_reader[pipe] = by.reader[pipe];
      by.read[pipe] = seq;
      by.reader[pipe] = name_;
    }
  }

  void split(uintptr_t at) {
    auto span = launch_.spans.lower_bound(at);
    if (span == launch_.spans.begin()) return;
    --span;
    if (span->second.end <= at) return;
    Span tail = span->second;
    span->second.end = at;
    launch_.spans.emplace(at, tail);
  }
  void touch_span(int pipe, uint64_t seq, Span& span, bool write, uint64_t at) {
    const int me = int(block);
    if (span.written_by >= 0 && span.written_by != me) {
      fail("%s %s GM that block %d writes: blocks do not wait for each other", name_, write ? "writes" : "reads",
           span.written_by);
    }
    if (write && span.read_by != -1 && span.read_by != me) {
      fail("%s writes GM that another block reads: blocks do not wait for each other", name_);
    }
    const bool mine = span.written_by == me || span.read_by == me;
    if (mine) ordered(pipe, seq, span.by, write, "GM", at);
    if (!mine && span.read_by != Span::MANY) span.by = {};
    if (span.read_by == -1 || span.read_by == me || write) note(pipe, seq, span.by, write);
    if (write) {
      span.written_by = me;
    } else {
      span.read_by = span.read_by == -1 || span.read_by == me ? me : Span::MANY;
    }
  }

  Launch& launch_;
  uint32_t used_ = 0;
  uint64_t count_[PIPES] = {};
  Clock known_[PIPES];
  std::map<int, Clock> flags_;
  std::map<int, uint64_t> waits_;  // the last WaitFlag of each event, as an instruction of the pipe that waits
  const char* name_ = "";
  static inline thread_local std::vector<Touched> lines_;
  static inline thread_local uint64_t last_ = 0;
};

inline thread_local Core* current = nullptr;

inline Core& core() {
  if (current == nullptr) fail("called outside of a launch");
  return *current;
}

}  // namespace shim
