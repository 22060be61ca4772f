// rope_write_kv: norms (optional) and rotates queries in place, writes normed and rotated keys and plain values to the cache.
// qkv: act [T, (H + 2G) * D]; positions, slots: i32 [T]; rope: f32 [max_position, D], cosines then sines; norms: f32 [D] or
// null. pool: act [blocks][keys, values][layers][block_size][G][D]; a slot is block * block_size + offset. A token with a
// negative slot (padding), or with a slot or position out of range, is left alone. In f32, rounded once. Bound by memory.
//
// A unit of work is some heads of one token; values go with the last of them. In UB a head is two halves, each filled up with
// zeros to whole blocks: numbers i and i + D/2 then stand `half_` apart in every head, whatever D, and one instruction rotates
// 64 numbers of all heads. D is even, at most MAX_DIM.
#include "common.h"

namespace yinian {

constexpr uint32_t ROPE_TILE = 8192;  // numbers of heads in UB at once, fill included
constexpr uint32_t MAX_HEADS = 248;   // repeats of one instruction, in whole groups of 8
constexpr uint32_t MAX_DIM = 512;
constexpr uint32_t VALUE_TILE = 4096;

struct RopeShape {
  uint32_t tokens, heads, kv_heads, dim, block_size, blocks, layer, layers, max_position;
  float eps;
};

template <typename T>
class RopeWriteKv {
 public:
  __aicore__ inline void init(GM_ADDR qkv, GM_ADDR positions, GM_ADDR slots, GM_ADDR rope, GM_ADDR query_norm, GM_ADDR key_norm,
                              GM_ADDR pool, const RopeShape& shape) {
    s_ = shape;
    rotated_ = s_.heads + s_.kv_heads;
    all_ = rotated_ + s_.kv_heads;
    half_ = round_up(s_.dim / 2, BLOCK_BYTES / sizeof(T));
    head_ = 2 * half_;
    stride_ = static_cast<uint8_t>(head_ / F32_OF_BLOCK);
    norms_ = query_norm != nullptr;
    const uint64_t token = static_cast<uint64_t>(s_.kv_heads) * s_.dim;
    layer_numbers_ = s_.block_size * token;
    qkv_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(qkv), static_cast<uint64_t>(s_.tokens) * all_ * s_.dim);
    positions_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions), s_.tokens);
    slots_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(slots), s_.tokens);
    rope_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(rope), static_cast<uint64_t>(s_.max_position) * s_.dim);
    pool_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(pool), layer_numbers_ * 2 * s_.layers * s_.blocks);
    pipe_.InitBuffer(ins_, 2, ROPE_TILE * sizeof(T));
    pipe_.InitBuffer(outs_, 2, ROPE_TILE * sizeof(T));
    pipe_.InitBuffer(ropes_, 2, 2 * MAX_DIM * sizeof(float));
    pipe_.InitBuffer(values_, 2, VALUE_TILE * sizeof(T));
    pipe_.InitBuffer(heads_, ROPE_TILE * sizeof(float));
    pipe_.InitBuffer(work_, ROPE_TILE * sizeof(float));
    pipe_.InitBuffer(weights_, 4 * MAX_DIM * sizeof(float));
    pipe_.InitBuffer(scales_, 256 * sizeof(float));
    pipe_.InitBuffer(ones_, 256 * sizeof(float));
    pipe_.InitBuffer(spread_, MAX_HEADS * BLOCK_BYTES);
    if (norms_) load_norms(query_norm, key_norm);
  }

  __aicore__ inline void run() {
    const uint32_t most = larger(1, smaller(MAX_HEADS, ROPE_TILE / head_));
    const uint32_t wanted = smaller(rotated_, ceil_div(static_cast<uint32_t>(GetBlockNum()), s_.tokens));
    const uint32_t chunk = ceil_div(rotated_, larger(ceil_div(rotated_, most), wanted));
    const uint32_t parts = ceil_div(rotated_, chunk);
    const uint64_t units = static_cast<uint64_t>(s_.tokens) * parts;
    for (uint64_t unit = GetBlockIdx(); unit < units; unit += GetBlockNum()) {
      const uint32_t token = static_cast<uint32_t>(unit / parts), part = static_cast<uint32_t>(unit % parts);
      const int32_t slot = slots_gm_.GetValue(token), position = positions_gm_.GetValue(token);
      if (slot < 0 || static_cast<uint32_t>(slot) / s_.block_size >= s_.blocks) continue;
      if (position < 0 || static_cast<uint32_t>(position) >= s_.max_position) continue;
      const uint32_t first = part * chunk, last = smaller(rotated_, first + chunk);
      rotate(token, static_cast<uint32_t>(position), static_cast<uint32_t>(slot), first, last);
      if (part == parts - 1) copy_values(token, static_cast<uint32_t>(slot));
    }
  }

 private:
  // Where keys (`which` 0) or values (1) of a slot start in the pool.
  __aicore__ inline uint64_t place(uint32_t slot, uint32_t which) const {
    const uint64_t page = (static_cast<uint64_t>(slot / s_.block_size) * 2 + which) * s_.layers + s_.layer;
    return page * layer_numbers_ + static_cast<uint64_t>(slot % s_.block_size) * s_.kv_heads * s_.dim;
  }

  // A row of D f32 numbers as two halves, at the distance that halves of heads have.
  __aicore__ inline void load_halves(const LocalTensor<float>& dst, const GlobalTensor<float>& src) {
    load(dst, src, s_.dim / 2, 2, (half_ - round_up(s_.dim / 2, F32_OF_BLOCK)) / F32_OF_BLOCK);
  }

  __aicore__ inline void load_norms(GM_ADDR query_norm, GM_ADDR key_norm) {
    GlobalTensor<float> query, key;
    query.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(query_norm), s_.dim);
    key.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(key_norm), s_.dim);
    LocalTensor<float> weights = weights_.Get<float>();
    load_halves(weights, query);
    load_halves(weights[2 * MAX_DIM], key);
    wait_for<HardEvent::MTE2_V>();  // queues order this too
    Duplicate(ones_.Get<float>(), 1.0f, MAX_HEADS);
  }

  __aicore__ inline void rotate(uint32_t token, uint32_t position, uint32_t slot, uint32_t first, uint32_t last) {
    const uint32_t n = last - first;
    const uint64_t at = (static_cast<uint64_t>(token) * all_ + first) * s_.dim;
    LocalTensor<float> rope = ropes_.AllocTensor<float>();
    load_halves(rope, rope_gm_[static_cast<uint64_t>(position) * s_.dim]);
    ropes_.EnQue(rope);
    LocalTensor<T> in = ins_.template AllocTensor<T>();
    load(in, qkv_gm_[at], s_.dim / 2, 2 * n);
    ins_.EnQue(in);
    LocalTensor<float> x = heads_.Get<float>();
    in = ins_.template DeQue<T>();
    widen(x, in, n * head_);
    ins_.FreeTensor(in);
    barrier();
    const uint32_t queries = first < s_.heads ? smaller(last, s_.heads) - first : 0;
    if (norms_) norm(x, n, queries);
    rope = ropes_.DeQue<float>();
    turn(x, rope, n);
    ropes_.FreeTensor(rope);
    LocalTensor<T> out = outs_.template AllocTensor<T>();
    narrow(out, x, n * head_);
    outs_.EnQue(out);
    barrier();
    out = outs_.template DeQue<T>();
    if (queries > 0) store(qkv_gm_[at], out, s_.dim / 2, 2 * queries);
    if (queries < n) {
      const uint64_t key = static_cast<uint64_t>(first + queries - s_.heads) * s_.dim;
      store(pool_gm_[place(slot, 0) + key], out[queries * head_], s_.dim / 2, 2 * (n - queries));
    }
    outs_.FreeTensor(out);
  }

  // Each of n heads in x becomes x / sqrt(mean(x^2) + eps) * weight; the first `queries` have the queries' weight.
  __aicore__ inline void norm(const LocalTensor<float>& x, uint32_t n, uint32_t queries) {
    LocalTensor<float> q = work_.Get<float>(), scale = scales_.Get<float>(), spread = spread_.Get<float>();
    const BinaryRepeatParams same(1, 1, 1, stride_, stride_, stride_), by_head(1, 1, 0, stride_, stride_, 1);
    const uint8_t repeats = static_cast<uint8_t>(n);
    Mul(q, x, x, n * head_);
    barrier();
    for (uint32_t c = LANES; c < head_; c += LANES) {
      Add(q, q, q[c], smaller(LANES, head_ - c), repeats, same);
      barrier();
    }
    WholeReduceSum(scale, q, smaller(LANES, head_), n, 1, 1, stride_);
    barrier();
    Muls(scale, scale, 1.0f / static_cast<float>(s_.dim), n);
    barrier();
    Adds(scale, scale, s_.eps, n);
    barrier();
    Sqrt(scale, scale, n);
    barrier();
    Div(scale, ones_.Get<float>(), scale, n);
    barrier();
    Brcb(spread, scale, static_cast<uint8_t>(ceil_div(n, 8)), BrcbRepeatParams(1, 8));
    barrier();
    for (uint32_t c = 0; c < head_; c += LANES) Mul(x[c], x[c], spread, smaller(LANES, head_ - c), repeats, by_head);
    barrier();
    LocalTensor<float> weights = weights_.Get<float>();
    weigh(x, weights, queries);
    weigh(x[queries * head_], weights[2 * MAX_DIM], n - queries);
    barrier();
  }

  __aicore__ inline void weigh(const LocalTensor<float>& x, const LocalTensor<float>& weight, uint32_t n) {
    if (n == 0) return;
    const BinaryRepeatParams all_heads(1, 1, 1, stride_, stride_, 0);
    for (uint32_t c = 0; c < head_; c += LANES) {
      Mul(x[c], x[c], weight[c], smaller(LANES, head_ - c), static_cast<uint8_t>(n), all_heads);
    }
  }

  // (a, b) of each pair becomes (a cos - b sin, b cos + a sin).
  __aicore__ inline void turn(const LocalTensor<float>& x, const LocalTensor<float>& rope, uint32_t n) {
    LocalTensor<float> t = work_.Get<float>();
    const BinaryRepeatParams all_heads(1, 1, 1, stride_, stride_, 0), same(1, 1, 1, stride_, stride_, stride_);
    const uint8_t repeats = static_cast<uint8_t>(n);
    for (uint32_t c = 0; c < half_; c += LANES) {
      const uint32_t m = smaller(LANES, half_ - c), low = c, high = half_ + c;
      Mul(t[low], x[high], rope[high], m, repeats, all_heads);
      Mul(t[high], x[low], rope[high], m, repeats, all_heads);
    }
    barrier();
    for (uint32_t c = 0; c < half_; c += LANES) {
      const uint32_t m = smaller(LANES, half_ - c), low = c, high = half_ + c;
      Mul(x[low], x[low], rope[low], m, repeats, all_heads);
      Mul(x[high], x[high], rope[low], m, repeats, all_heads);
    }
    barrier();
    for (uint32_t c = 0; c < half_; c += LANES) {
      const uint32_t m = smaller(LANES, half_ - c), low = c, high = half_ + c;
      Sub(x[low], x[low], t[low], m, repeats, same);
      Add(x[high], x[high], t[high], m, repeats, same);
    }
    barrier();
  }

  // All values of a token lie one behind the other, in qkv and in the cache.
  __aicore__ inline void copy_values(uint32_t token, uint32_t slot) {
    const uint32_t numbers = s_.kv_heads * s_.dim;
    const uint64_t from = (static_cast<uint64_t>(token) * all_ + rotated_) * s_.dim, to = place(slot, 1);
    for (uint32_t i = 0; i < numbers; i += VALUE_TILE) {
      const uint32_t n = smaller(VALUE_TILE, numbers - i);
      LocalTensor<T> v = values_.template AllocTensor<T>();
      load(v, qkv_gm_[from + i], n);
      values_.EnQue(v);
      v = values_.template DeQue<T>();
      store(pool_gm_[to + i], v, n);
      values_.FreeTensor(v);
    }
  }

  TPipe pipe_;
  TQue<QuePosition::VECIN, 2> ins_, ropes_;
  TQue<QuePosition::VECOUT, 2> outs_;
  TQueBind<QuePosition::VECIN, QuePosition::VECOUT, 2> values_;
  TBuf<QuePosition::VECCALC> heads_, work_, weights_, scales_, ones_, spread_;
  GlobalTensor<T> qkv_gm_, pool_gm_;
  GlobalTensor<int32_t> positions_gm_, slots_gm_;
  GlobalTensor<float> rope_gm_;
  RopeShape s_;
  uint64_t layer_numbers_;
  uint32_t rotated_, all_, half_, head_;
  uint8_t stride_;
  bool norms_;
};

template <typename T>
__aicore__ inline void rope_write_kv(GM_ADDR qkv, GM_ADDR positions, GM_ADDR slots, GM_ADDR rope, GM_ADDR query_norm,
                                     GM_ADDR key_norm, GM_ADDR pool, const RopeShape& shape) {
  if (shape.tokens == 0 || shape.dim == 0 || shape.dim > MAX_DIM || shape.dim % 2 != 0) return;
  RopeWriteKv<T> kernel;
  kernel.init(qkv, positions, slots, rope, query_norm, key_norm, pool, shape);
  kernel.run();
}

}  // namespace yinian

extern "C" __global__ __aicore__ void yn_rope_write_kv_f16(GM_ADDR qkv, GM_ADDR positions, GM_ADDR slots, GM_ADDR rope,
                                                           GM_ADDR query_norm, GM_ADDR key_norm, GM_ADDR pool, uint32_t tokens,
                                                           uint32_t heads, uint32_t kv_heads, uint32_t head_dim,
                                                           uint32_t block_size, uint32_t blocks, uint32_t layer, uint32_t layers,
                                                           uint32_t max_position, float eps) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  const yinian::RopeShape shape = {tokens, heads, kv_heads, head_dim, block_size, blocks, layer, layers, max_position, eps};
  yinian::rope_write_kv<half>(qkv, positions, slots, rope, query_norm, key_norm, pool, shape);
}
extern "C" __global__ __aicore__ void yn_rope_write_kv_bf16(GM_ADDR qkv, GM_ADDR positions, GM_ADDR slots, GM_ADDR rope,
                                                            GM_ADDR query_norm, GM_ADDR key_norm, GM_ADDR pool, uint32_t tokens,
                                                            uint32_t heads, uint32_t kv_heads, uint32_t head_dim,
                                                            uint32_t block_size, uint32_t blocks, uint32_t layer, uint32_t layers,
                                                            uint32_t max_position, float eps) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  const yinian::RopeShape shape = {tokens, heads, kv_heads, head_dim, block_size, blocks, layer, layers, max_position, eps};
  yinian::rope_write_kv<bfloat16_t>(qkv, positions, slots, rope, query_norm, key_norm, pool, shape);
}
