// silu_mul: `out = activation(gate) * up`. out: act [rows, cols]; gate_up: act [rows, 2 * cols], gate first. activation 0:
// `g / (1 + e^-g)`; 1: GELU by its tanh formula, `g / (1 + e^-2u)`, `u = sqrt(2/pi) (g + 0.044715 g^3)`. In f32, rounded once.
// Bound by memory: each number is read and written once.
//
// A unit of work is TILE columns of a row; rows and columns may be of any number. UB: 3 queues of two tiles of act, 3 of f32.
#include "common.h"

namespace yinian {

constexpr uint32_t SILU_TILE = 4096;
constexpr uint32_t GELU_TANH = 1;

template <typename T>
class SiluMul {
 public:
  __aicore__ inline void init(GM_ADDR out, GM_ADDR gate_up, uint32_t rows, uint32_t cols, uint32_t activation) {
    rows_ = rows;
    cols_ = cols;
    activation_ = activation;
    out_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(out), static_cast<uint64_t>(rows) * cols);
    in_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(gate_up), static_cast<uint64_t>(rows) * cols * 2);
    pipe_.InitBuffer(gates_, 2, SILU_TILE * sizeof(T));
    pipe_.InitBuffer(ups_, 2, SILU_TILE * sizeof(T));
    pipe_.InitBuffer(outs_, 2, SILU_TILE * sizeof(T));
    pipe_.InitBuffer(gate_, SILU_TILE * sizeof(float));
    pipe_.InitBuffer(up_, SILU_TILE * sizeof(float));
    pipe_.InitBuffer(power_, SILU_TILE * sizeof(float));
  }

  __aicore__ inline void run() {
    const uint32_t tiles = ceil_div(cols_, SILU_TILE);
    const uint64_t units = static_cast<uint64_t>(rows_) * tiles;
    for (uint64_t unit = GetBlockIdx(); unit < units; unit += GetBlockNum()) {
      const uint64_t row = unit / tiles;
      const uint32_t from = static_cast<uint32_t>(unit % tiles) * SILU_TILE;
      const uint32_t n = smaller(SILU_TILE, cols_ - from);
      fetch(row * 2 * cols_ + from, n);
      compute(n);
      LocalTensor<T> out = outs_.template DeQue<T>();
      store(out_gm_[row * cols_ + from], out, n);
      outs_.FreeTensor(out);
    }
  }

 private:
  __aicore__ inline void fetch(uint64_t at, uint32_t n) {
    LocalTensor<T> gate = gates_.template AllocTensor<T>();
    load(gate, in_gm_[at], n);
    gates_.EnQue(gate);
    LocalTensor<T> up = ups_.template AllocTensor<T>();
    load(up, in_gm_[at + cols_], n);
    ups_.EnQue(up);
  }

  __aicore__ inline void compute(uint32_t n) {
    LocalTensor<float> g = gate_.Get<float>(), u = up_.Get<float>(), e = power_.Get<float>();
    LocalTensor<T> gate = gates_.template DeQue<T>();
    LocalTensor<T> up = ups_.template DeQue<T>();
    widen(g, gate, n);
    widen(u, up, n);
    gates_.FreeTensor(gate);
    ups_.FreeTensor(up);
    barrier();
    if (activation_ == GELU_TANH) {
      Mul(e, g, g, n);
      barrier();
      Muls(e, e, 0.044715f, n);
      barrier();
      Adds(e, e, 1.0f, n);
      barrier();
      Mul(e, e, g, n);
      barrier();
      Muls(e, e, -1.5957691f, n);  // -2 sqrt(2 / pi)
    } else {
      Muls(e, g, -1.0f, n);
    }
    barrier();
    Exp(e, e, n);
    barrier();
    Adds(e, e, 1.0f, n);
    barrier();
    Div(g, g, e, n);
    barrier();
    Mul(g, g, u, n);
    barrier();
    LocalTensor<T> out = outs_.template AllocTensor<T>();
    narrow(out, g, n);
    outs_.EnQue(out);
    barrier();
  }

  TPipe pipe_;
  TQue<QuePosition::VECIN, 2> gates_, ups_;
  TQue<QuePosition::VECOUT, 2> outs_;
  TBuf<QuePosition::VECCALC> gate_, up_, power_;
  GlobalTensor<T> in_gm_, out_gm_;
  uint32_t rows_, cols_, activation_;
};

template <typename T>
__aicore__ inline void silu_mul(GM_ADDR out, GM_ADDR gate_up, uint32_t rows, uint32_t cols, uint32_t activation) {
  SiluMul<T> kernel;
  kernel.init(out, gate_up, rows, cols, activation);
  kernel.run();
}

}  // namespace yinian

extern "C" __global__ __aicore__ void yn_silu_mul_f16(GM_ADDR out, GM_ADDR gate_up, uint32_t rows, uint32_t cols,
                                                      uint32_t activation) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  yinian::silu_mul<half>(out, gate_up, rows, cols, activation);
}
extern "C" __global__ __aicore__ void yn_silu_mul_bf16(GM_ADDR out, GM_ADDR gate_up, uint32_t rows, uint32_t cols,
                                                       uint32_t activation) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  yinian::silu_mul<bfloat16_t>(out, gate_up, rows, cols, activation);
}
