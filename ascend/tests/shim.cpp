// The emulation catches what a real core would get wrong: small kernels, each with one mistake, and the words in which it was
// told. The kernel they are made from is right, and passes.
#include <functional>

#include "kernel_operator.h"

#include "harness.h"

using namespace AscendC;

namespace {

constexpr uint32_t N = 256;

template <HardEvent EVENT>
void wait_for() {
  const event_t id = static_cast<event_t>(GetTPipePtr()->FetchEventID(EVENT));
  SetFlag<EVENT>(id);
  WaitFlag<EVENT>(id);
}

// Memory and buffers of a kernel `out = 2 * in + 1`.
struct Kit {
  GlobalTensor<float> in, out;
  TPipe pipe;
  TQue<QuePosition::VECIN, 2> ins;
  TQue<QuePosition::VECOUT, 2> outs;
  TBuf<QuePosition::VECCALC> work, more;

  Kit(float* from, float* to) {
    in.SetGlobalBuffer(from, N);
    out.SetGlobalBuffer(to, N);
    pipe.InitBuffer(ins, 2, N * 4);
    pipe.InitBuffer(outs, 2, N * 4);
    pipe.InitBuffer(work, N * 4);
    pipe.InitBuffer(more, N * 4);
  }
  LocalTensor<float> fetch() {
    LocalTensor<float> x = ins.AllocTensor<float>();
    DataCopy(x, in, N);
    ins.EnQue(x);
    return ins.DeQue<float>();
  }
  void give(uint32_t n = N) {
    LocalTensor<float> y = outs.DeQue<float>();
    DataCopy(out, y, n);
    outs.FreeTensor(y);
  }
  void right() {
    LocalTensor<float> x = fetch(), w = work.Get<float>(), y = outs.AllocTensor<float>();
    Muls(w, x, 2.0f, N);
    ins.FreeTensor(x);
    PipeBarrier<PIPE_V>();
    Adds(y, w, 1.0f, N);
    outs.EnQue(y);
    give();
  }
};

DataCopyPadExtParams<float> padded(uint8_t right) {
  DataCopyPadExtParams<float> pad;
  pad.isPad = true;
  pad.rightPadding = right;
  return pad;
}

struct Mistake {
  const char* what;
  const char* caught;  // part of the text
  std::function<void(Kit&)> kernel;
  uint32_t blocks = 1;
};

// Memory that is too much, too little, or in the wrong place.
const Mistake memory[] = {
    {"more UB than there is", "usable are 188160",
     [](Kit& k) { TBuf<QuePosition::VECCALC> b; k.pipe.InitBuffer(b, 188160 - 6 * N * 4 + 32); }},
    {"a buffer of no whole blocks", "not whole blocks of 32", [](Kit& k) { TBuf<QuePosition::VECCALC> b; k.pipe.InitBuffer(b, 100); }},
    {"more queue buffers than events", "events are 8",
     [](Kit& k) { TQue<QuePosition::VECIN, 2> q; k.pipe.InitBuffer(q, 7, 32); }},
    {"a copy of 100 bytes", "not whole blocks of 32",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopy(x, k.in, 25); }},
    {"a copy from an unaligned address", "GM address is not aligned",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopy(x, k.in[1], 8); }},
    {"a copy to an unaligned place", "UB address is not aligned",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopyPad(x[1], k.in, {1, 32, 0, 0, 0}, padded(0)); }},
    {"an unaligned operand", "not aligned to 32 bytes",
     [](Kit& k) { LocalTensor<float> x = k.fetch(); Muls(k.work.Get<float>(), x[4], 2.0f, 8); }},
    {"a read behind the tensor in GM", "of a GlobalTensor of 32",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopy(x, k.in[N - 8], 16); }},
    {"a read behind the allocation", "not all within one allocation",
     [](Kit& k) {
       GlobalTensor<float> wide = k.in[0];
       wide.SetGlobalBuffer(reinterpret_cast<float*>(k.in.at(0, 0, "")), 2 * N);
       LocalTensor<float> x = k.ins.AllocTensor<float>();
       DataCopy(x, wide[N - 8], 16);
     }},
    {"a write behind the tensor in UB", "uses byte",
     [](Kit& k) { LocalTensor<float> x = k.fetch(); Muls(k.work.Get<float>(), x, 2.0f, N + 8); }},
    {"padding of 36 bytes", "more than 32 bytes",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopyPad(x, k.in, {1, 4, 0, 0, 0}, padded(9)); }},
    {"5000 blocks in a copy", "1 to 4095",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopyPad(x, k.in, {5000, 4, 0, 0, 0}, padded(0)); }},
    {"a scalar behind its tensor", "uses byte", [](Kit& k) { k.work.Get<float>().SetValue(N, 1.0f); }},
};

// Pipes that do not wait for each other.
const Mistake order[] = {
    {"V after V without a barrier", "PipeBarrier<PIPE_V> missing",
     [](Kit& k) { LocalTensor<float> x = k.fetch(), w = k.work.Get<float>(); Muls(w, x, 2.0f, N); Adds(w, w, 1.0f, N); }},
    {"V overwrites what V reads", "PipeBarrier<PIPE_V> missing",
     [](Kit& k) {
       LocalTensor<float> x = k.fetch(), w = k.work.Get<float>(), m = k.more.Get<float>();
       Duplicate(w, 1.0f, N);
       PipeBarrier<PIPE_V>();
       Adds(m, w, 1.0f, N);
       Muls(w, x, 2.0f, N);
     }},
    {"V overwrites in place what V reads", "PipeBarrier<PIPE_V> missing",
     [](Kit& k) {
       LocalTensor<float> w = k.work.Get<float>();
       Duplicate(w, 1.0f, N);
       PipeBarrier<PIPE_V>();
       Adds(k.more.Get<float>(), w, 1.0f, N);
       Muls(w, w, 2.0f, N);
     }},
    {"S reads what V wrote", "HardEvent::V_S",
     [](Kit& k) { LocalTensor<float> w = k.work.Get<float>(); Duplicate(w, 1.0f, N); w.GetValue(0); }},
    {"V reads what S wrote", "HardEvent::S_V",
     [](Kit& k) { LocalTensor<float> w = k.work.Get<float>(); w.SetValue(0, 1.0f); Adds(k.more.Get<float>(), w, 1.0f, 8); }},
    {"V overwrites what S reads", "HardEvent::S_V",
     [](Kit& k) {
       LocalTensor<float> w = k.work.Get<float>();
       Duplicate(w, 1.0f, 8);
       wait_for<HardEvent::V_S>();
       w.GetValue(0);
       Duplicate(w, 2.0f, 8);
     }},
    {"V reads a buffer that is still loaded", "HardEvent::MTE2_V",
     [](Kit& k) { LocalTensor<float> w = k.work.Get<float>(); DataCopy(w, k.in, N); Adds(k.more.Get<float>(), w, 1.0f, N); }},
    {"V reads before EnQue and DeQue", "HardEvent::MTE2_V",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopy(x, k.in, N); Adds(k.work.Get<float>(), x, 1.0f, N); }},
    {"S reads a tensor that V may read", "HardEvent::MTE2_S", [](Kit& k) { LocalTensor<float> x = k.fetch(); x.GetValue(0); }},
    {"a store of what V still computes", "HardEvent::V_MTE3",
     [](Kit& k) { LocalTensor<float> w = k.work.Get<float>(); Duplicate(w, 1.0f, N); DataCopy(k.out, w, N); }},
    {"V overwrites what is still stored", "HardEvent::MTE3_V",
     [](Kit& k) {
       LocalTensor<float> w = k.work.Get<float>();
       Duplicate(w, 1.0f, N);
       wait_for<HardEvent::V_MTE3>();
       DataCopy(k.out, w, N);
       Duplicate(w, 2.0f, N);
     }},
    {"a load over what V still reads", "HardEvent::V_MTE2",
     [](Kit& k) {
       LocalTensor<float> w = k.work.Get<float>();
       DataCopy(w, k.in, N);
       wait_for<HardEvent::MTE2_V>();
       Adds(k.more.Get<float>(), w, 1.0f, N);
       DataCopy(w, k.in, N);
     }},
    {"a load of what was just stored", "HardEvent::MTE3_MTE2",
     [](Kit& k) { k.right(); LocalTensor<float> x = k.ins.AllocTensor<float>(); DataCopy(x, k.out, N); }},
    {"a store over what is still loaded", "HardEvent::MTE2_MTE3",
     [](Kit& k) {
       LocalTensor<float> w = k.work.Get<float>(), m = k.more.Get<float>();
       Duplicate(w, 1.0f, N);
       wait_for<HardEvent::V_MTE3>();
       DataCopy(m, k.in, N);
       DataCopy(k.in, w, N);
     }},
    {"S reads from GM what was just stored", "HardEvent::MTE3_S", [](Kit& k) { k.right(); k.out.GetValue(3); }},
    {"a wait for a flag nobody sets", "without SetFlag", [](Kit&) { WaitFlag<HardEvent::V_S>(static_cast<event_t>(0)); }},
    {"a flag nobody waits for", "without WaitFlag", [](Kit&) { SetFlag<HardEvent::V_S>(static_cast<event_t>(0)); }},
    {"a flag set twice", "twice", [](Kit&) { for (int i = 0; i < 2; i++) SetFlag<HardEvent::V_S>(static_cast<event_t>(0)); }},
    {"a flag set again before it was awaited", "may not have come to the WaitFlag",
     [](Kit& k) {
       LocalTensor<float> w = k.work.Get<float>();
       for (uint32_t i = 0; i < 2; i++) {
         w.SetValue(8 * i, 1.0f);
         wait_for<HardEvent::S_V>();
         Adds(k.more.Get<float>()[8 * i], w[8 * i], 1.0f, 8);
       }
     }},
    {"a flag with a number that does not exist", "event 8", [](Kit&) { SetFlag<HardEvent::V_S>(static_cast<event_t>(8)); }},
    {"two blocks that write one place", "blocks do not wait", [](Kit& k) { k.right(); }, 2},
    {"a block that reads what another writes", "blocks do not wait",
     [](Kit& k) {
       if (GetBlockIdx() == 0) return k.right();
       LocalTensor<float> x = k.ins.AllocTensor<float>();
       DataCopy(x, k.out, N);
       k.ins.EnQue(x);
       x = k.ins.DeQue<float>();
       k.ins.FreeTensor(x);
     },
     2},
};

// Queues.
const Mistake queues[] = {
    {"a tensor that is not freed", "not freed at the end", [](Kit& k) { k.fetch(); }},
    {"one tensor more than the queue has", "no buffer of the queue is free",
     [](Kit& k) { for (int i = 0; i < 3; i++) k.ins.AllocTensor<float>(); }},
    {"DeQue of an empty queue", "queue is empty", [](Kit& k) { k.ins.DeQue<float>(); }},
    {"EnQue of a tensor that was dequeued", "not just allocated", [](Kit& k) { LocalTensor<float> x = k.fetch(); k.ins.EnQue(x); }},
    {"a tensor freed twice", "was freed", [](Kit& k) { LocalTensor<float> x = k.fetch(); k.ins.FreeTensor(x); k.ins.FreeTensor(x); }},
    {"a tensor used when freed", "was freed",
     [](Kit& k) { LocalTensor<float> x = k.fetch(); k.ins.FreeTensor(x); Muls(k.work.Get<float>(), x, 2.0f, N); }},
    {"a tensor used when its buffer has another", "was freed",
     [](Kit& k) {
       LocalTensor<float> x = k.fetch(), old = x;
       for (int i = 0; i < 2; i++) k.ins.FreeTensor(x), x = k.fetch();
       Muls(k.work.Get<float>(), old, 2.0f, N);
     }},
    {"a tensor used in its queue", "is in its queue",
     [](Kit& k) { LocalTensor<float> x = k.ins.AllocTensor<float>(); k.ins.EnQue(x); Muls(k.work.Get<float>(), x, 2.0f, N); }},
    {"a tensor freed into another queue", "of another queue", [](Kit& k) { LocalTensor<float> x = k.fetch(); k.outs.FreeTensor(x); }},
    {"more in a queue than its depth", "queue of depth 1",
     [](Kit& k) {
       TQue<QuePosition::VECIN, 1> q;
       k.pipe.InitBuffer(q, 2, 32);
       for (int i = 0; i < 2; i++) { LocalTensor<float> x = q.AllocTensor<float>(); q.EnQue(x); }
     }},
    {"a queue without buffers", "InitBuffer it first", [](Kit&) { TQue<QuePosition::VECIN, 1> q; q.AllocTensor<float>(); }},
    {"a tensor without memory", "no memory", [](Kit& k) { LocalTensor<float> x; Muls(k.work.Get<float>(), x, 2.0f, 8); }},
    {"a second TPipe", "a kernel has one", [](Kit&) { TPipe second; }},
};

// What instructions take.
const Mistake instructions[] = {
    {"Add of bfloat16", "Add takes no bfloat16",
     [](Kit& k) { LocalTensor<bfloat16_t> x = k.fetch().ReinterpretCast<bfloat16_t>(); Add(x, x, x, 8); }},
    {"Mul of bfloat16", "Mul takes no bfloat16",
     [](Kit& k) { LocalTensor<bfloat16_t> x = k.fetch().ReinterpretCast<bfloat16_t>(); Mul(x, x, x, 8); }},
    {"Div of int32", "Div takes no int32",
     [](Kit& k) { LocalTensor<int32_t> x = k.fetch().ReinterpretCast<int32_t>(); Div(x, x, x, 8); }},
    {"And of int32", "And takes no int32", [](Kit& k) { LocalTensor<int32_t> x = k.fetch().ReinterpretCast<int32_t>(); And(x, x, x, 8); }},
    {"Cast to bfloat16 without rounding", "Cast from float to bfloat16",
     [](Kit& k) {
       LocalTensor<float> x = k.fetch();
       Cast(k.work.Get<bfloat16_t>(), x, RoundMode::CAST_NONE, 8);
     }},
    {"Cast from half to bfloat16", "Cast from half to bfloat16",
     [](Kit& k) { Cast(k.work.Get<bfloat16_t>(), k.fetch().ReinterpretCast<half>(), RoundMode::CAST_RINT, 8); }},
    {"a mask of 65 floats", "a mask of 1 to 256 bytes",
     [](Kit& k) { LocalTensor<float> x = k.fetch(); Add(x, x, x, 65, 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8)); }},
    {"no repeats", "1 to 255 repeats",
     [](Kit& k) { LocalTensor<float> x = k.fetch(); Add(x, x, x, 64, uint8_t(256), BinaryRepeatParams(1, 1, 1, 8, 8, 8)); }},
    {"a repeat that reads what the one before wrote", "a repeat reads what another one writes",
     [](Kit& k) { LocalTensor<float> x = k.fetch(); Add(x, x, x[64], 64, 2, BinaryRepeatParams(1, 1, 1, 8, 8, 8)); }},
    {"result and operand that overlap", "overlap", [](Kit& k) { LocalTensor<float> x = k.fetch(); Muls(x[8], x, 2.0f, 64); }},
    {"a comparison of 60 floats", "whole repeats of 256",
     [](Kit& k) { CompareScalar(k.work.Get<uint8_t>(), k.fetch(), 0.0f, CMPMODE::GT, 60); }},
    {"a comparison of int32 by size", "CompareScalar takes no int32",
     [](Kit& k) { CompareScalar(k.work.Get<uint8_t>(), k.fetch().ReinterpretCast<int32_t>(), 0, CMPMODE::GT, 64); }},
    {"a sum of 300 repeats", "1 to 255 repeats",
     [](Kit& k) { WholeReduceSum(k.work.Get<float>(), k.fetch(), 8, 300, 1, 1, 0); }},
    {"Brcb onto itself", "overlap", [](Kit& k) { LocalTensor<float> x = k.fetch(); Brcb(x, x, 1, BrcbRepeatParams(1, 8)); }},
    {"a count of 0", "a count of at least 1", [](Kit& k) { LocalTensor<float> x = k.fetch(); Muls(x, x, 2.0f, 0); }},
};

std::string run(const std::function<void(Kit&)>& kernel, uint32_t blocks, const test::Gm<float>& in, const test::Gm<float>& out) {
  const char* fault = shim::run(blocks, &test::gm_check, [&] {
    Kit kit(in.get(), out.get());
    kernel(kit);
  });
  return fault == nullptr ? "" : fault;
}

template <size_t COUNT>
void all_caught(const Mistake (&mistakes)[COUNT], const test::Gm<float>& in, const test::Gm<float>& out) {
  for (const Mistake& mistake : mistakes) {
    const std::string fault = run(mistake.kernel, mistake.blocks, in, out);
    std::printf("  %-45s %s\n", mistake.what, fault.empty() ? "NOT CAUGHT" : fault.c_str());
    if (fault.find(mistake.caught) == std::string::npos) test::failed("%s: told as \"%s\"", mistake.what, fault.c_str());
  }
}

}  // namespace

void test_shim() {
  const test::Gm<float> in(N), out(N);
  for (uint32_t i = 0; i < N; i++) in[i] = float(i);
  const std::string fault = run([](Kit& k) { k.right(); }, 1, in, out);
  if (!fault.empty()) test::failed("the right kernel: %s", fault.c_str());
  for (uint32_t i = 0; i < N; i++) {
    if (out[i] != 2 * float(i) + 1) test::failed("the right kernel: out[%u] is %g", i, double(out[i]));
  }
  all_caught(memory, in, out);
  all_caught(order, in, out);
  all_caught(queues, in, out);
  all_caught(instructions, in, out);
}
