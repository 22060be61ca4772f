// add_rms_norm and rms_norm: `out = x / sqrt(mean(x^2) + eps) * weight` for each row; with a residual, `residual += x` comes
// first and the sum, rounded to act as the residual keeps it, is normed. out, x, residual: act [rows, cols]; weight: f32
// [cols]; sums in f32. `out` may be `x`. Bound by memory: each number is read and written once.
//
// A unit of work is a row, of any length. What is normed stays in UB, in act, up to RESIDENT numbers; longer rows are read again.
#include "common.h"

namespace yinian {

constexpr uint32_t NORM_TILE = 2048, RESIDENT = 32768;

template <typename T, bool ADD>
class RmsNorm {
 public:
  __aicore__ inline void init(GM_ADDR out, GM_ADDR residual, GM_ADDR x, GM_ADDR weight, uint32_t rows, uint32_t cols, float eps) {
    rows_ = rows;
    cols_ = cols;
    eps_ = eps;
    const uint64_t all = static_cast<uint64_t>(rows) * cols;
    out_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(out), all);
    x_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(x), all);
    if constexpr (ADD) residual_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(residual), all);
    weight_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weight), cols);
    pipe_.InitBuffer(xs_, 2, NORM_TILE * sizeof(T));
    if constexpr (ADD) pipe_.InitBuffer(residuals_, 2, NORM_TILE * sizeof(T));
    if constexpr (ADD) pipe_.InitBuffer(sums_, 2, NORM_TILE * sizeof(T));
    pipe_.InitBuffer(weights_, 2, NORM_TILE * sizeof(float));
    pipe_.InitBuffer(outs_, 2, NORM_TILE * sizeof(T));
    pipe_.InitBuffer(row_, RESIDENT * sizeof(T));
    pipe_.InitBuffer(value_, NORM_TILE * sizeof(float));
    pipe_.InitBuffer(square_, NORM_TILE * sizeof(float));
    pipe_.InitBuffer(parts_, LANES * sizeof(float));
    pipe_.InitBuffer(total_, LANES * sizeof(float));
  }

  __aicore__ inline void run() {
    const bool resident = cols_ <= RESIDENT;
    for (uint32_t row = GetBlockIdx(); row < rows_; row += GetBlockNum()) {
      const uint64_t at = static_cast<uint64_t>(row) * cols_;
      Duplicate(total_.Get<float>(), 0.0f, LANES);
      for (uint32_t from = 0; from < cols_; from += NORM_TILE) sum_tile(at, from, resident);
      const float scale = scale_of_row();
      if (ADD && !resident) wait_for<HardEvent::MTE3_MTE2>();  // queues order this too
      for (uint32_t from = 0; from < cols_; from += NORM_TILE) norm_tile(at, from, resident, scale);
    }
  }

 private:
  // Adds the residual, keeps the row, and adds up squares.
  __aicore__ inline void sum_tile(uint64_t at, uint32_t from, bool resident) {
    const uint32_t n = smaller(NORM_TILE, cols_ - from);
    LocalTensor<float> v = value_.Get<float>(), q = square_.Get<float>();
    LocalTensor<T> row = row_.template Get<T>();
    LocalTensor<T> x = xs_.template AllocTensor<T>();
    load(x, x_gm_[at + from], n);
    xs_.EnQue(x);
    if constexpr (ADD) {
      LocalTensor<T> r = residuals_.template AllocTensor<T>();
      load(r, residual_gm_[at + from], n);
      residuals_.EnQue(r);
    }
    x = xs_.template DeQue<T>();
    widen(v, x, n);
    xs_.FreeTensor(x);
    if constexpr (ADD) {
      LocalTensor<T> r = residuals_.template DeQue<T>();
      widen(q, r, n);
      residuals_.FreeTensor(r);
      barrier();
      Add(v, v, q, n);
      barrier();
      LocalTensor<T> sum = sums_.template AllocTensor<T>();
      narrow(sum, v, n);
      barrier();
      widen(v, sum, n);
      sums_.EnQue(sum);
      sum = sums_.template DeQue<T>();
      store(residual_gm_[at + from], sum, n);
      sums_.FreeTensor(sum);
    }
    barrier();
    if (resident) narrow(row[from], v, n);
    Mul(q, v, v, n);
    barrier();
    add_up(q, n);
  }

  // Adds n numbers to the lanes of the total.
  __aicore__ inline void add_up(const LocalTensor<float>& q, uint32_t n) {
    LocalTensor<float> parts = parts_.Get<float>(), total = total_.Get<float>();
    const uint32_t whole = n / LANES, rest = n % LANES;
    if (whole > 0) WholeReduceSum(parts, q, LANES, whole, 1, 1, 8);
    if (whole > 0 && rest > 0) barrier();  // both may write to one block of UB
    if (rest > 0) WholeReduceSum(parts[whole], q[whole * LANES], rest, 1, 1, 1, 8);
    barrier();
    Add(total, total, parts, whole + (rest > 0 ? 1 : 0));
    barrier();
  }

  // 1 / sqrt(mean + eps).
  __aicore__ inline float scale_of_row() {
    LocalTensor<float> parts = parts_.Get<float>(), total = total_.Get<float>();
    WholeReduceSum(parts, total, LANES, 1, 1, 1, 8);
    barrier();
    Muls(parts, parts, 1.0f / static_cast<float>(cols_), 1);
    Duplicate(total, 1.0f, 1);
    barrier();
    Adds(parts, parts, eps_, 1);
    barrier();
    Sqrt(parts, parts, 1);
    barrier();
    Div(parts, total, parts, 1);
    wait_for<HardEvent::V_S>();
    const float scale = parts.GetValue(0);
    wait_for<HardEvent::S_V>();
    return scale;
  }

  __aicore__ inline void norm_tile(uint64_t at, uint32_t from, bool resident, float scale) {
    const uint32_t n = smaller(NORM_TILE, cols_ - from);
    LocalTensor<float> v = value_.Get<float>();
    LocalTensor<float> weight = weights_.template AllocTensor<float>();
    load(weight, weight_gm_[from], n);
    weights_.EnQue(weight);
    if (resident) {
      widen(v, row_.template Get<T>()[from], n);
    } else {
      LocalTensor<T> x = xs_.template AllocTensor<T>();
      if constexpr (ADD) {
        load(x, residual_gm_[at + from], n);
      } else {
        load(x, x_gm_[at + from], n);
      }
      xs_.EnQue(x);
      x = xs_.template DeQue<T>();
      widen(v, x, n);
      xs_.FreeTensor(x);
    }
    barrier();
    Muls(v, v, scale, n);
    weight = weights_.template DeQue<float>();
    barrier();
    Mul(v, v, weight, n);
    weights_.FreeTensor(weight);
    barrier();
    LocalTensor<T> out = outs_.template AllocTensor<T>();
    narrow(out, v, n);
    outs_.EnQue(out);
    barrier();
    out = outs_.template DeQue<T>();
    store(out_gm_[at + from], out, n);
    outs_.FreeTensor(out);
  }

  TPipe pipe_;
  TQue<QuePosition::VECIN, 2> xs_, residuals_, weights_;
  TQue<QuePosition::VECOUT, 2> outs_, sums_;
  TBuf<QuePosition::VECCALC> row_, value_, square_, parts_, total_;
  GlobalTensor<T> out_gm_, residual_gm_, x_gm_;
  GlobalTensor<float> weight_gm_;
  uint32_t rows_, cols_;
  float eps_;
};

template <typename T, bool ADD>
__aicore__ inline void rms_norm(GM_ADDR out, GM_ADDR residual, GM_ADDR x, GM_ADDR weight, uint32_t rows, uint32_t cols,
                                float eps) {
  RmsNorm<T, ADD> kernel;
  kernel.init(out, residual, x, weight, rows, cols, eps);
  kernel.run();
}

}  // namespace yinian

extern "C" __global__ __aicore__ void yn_add_rms_norm_f16(GM_ADDR out, GM_ADDR residual, GM_ADDR x, GM_ADDR weight,
                                                          uint32_t rows, uint32_t cols, float eps) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  yinian::rms_norm<half, true>(out, residual, x, weight, rows, cols, eps);
}
extern "C" __global__ __aicore__ void yn_add_rms_norm_bf16(GM_ADDR out, GM_ADDR residual, GM_ADDR x, GM_ADDR weight,
                                                           uint32_t rows, uint32_t cols, float eps) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  yinian::rms_norm<bfloat16_t, true>(out, residual, x, weight, rows, cols, eps);
}
extern "C" __global__ __aicore__ void yn_rms_norm_f16(GM_ADDR out, GM_ADDR x, GM_ADDR weight, uint32_t rows, uint32_t cols,
                                                      float eps) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  yinian::rms_norm<half, false>(out, nullptr, x, weight, rows, cols, eps);
}
extern "C" __global__ __aicore__ void yn_rms_norm_bf16(GM_ADDR out, GM_ADDR x, GM_ADDR weight, uint32_t rows, uint32_t cols,
                                                       float eps) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  yinian::rms_norm<bfloat16_t, false>(out, nullptr, x, weight, rows, cols, eps);
}
