// What a kernel of FlashInfer is given here, and what it gives: one attention over a paged cache, and a way to launch it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace stick {

constexpr int kHeadDim = 128;
constexpr int kBlock = 16;
using Bf16 = __nv_bfloat16;

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

/// Memory of the device, or page-locked memory of the host; freed with its owner.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes, bool on_host = false) : bytes_(bytes), on_host_(on_host) {
    const size_t some = bytes == 0 ? 1 : bytes;
    check(on_host ? cudaMallocHost(&at_, some) : cudaMalloc(&at_, some), on_host ? "cudaMallocHost" : "cudaMalloc");
  }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(bytes_, other.bytes_);
    std::swap(on_host_, other.on_host_);
    return *this;
  }
  ~Memory() {
    if (at_ != nullptr) on_host_ ? cudaFreeHost(at_) : cudaFree(at_);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(at_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* at_ = nullptr;
  size_t bytes_ = 0;
  bool on_host_ = false;
};

/// One attention: sequences of some queries, the last of their keys, over a cache whose block is [keys, values][kv_head][token][dim].
struct Problem {
  int heads = 0, kv_heads = 0;
  bool decode = false;
  // Of the host: queries and keys of each sequence, sums of queries and of blocks before each (and of all), the longest table.
  std::vector<int> queries, keys, starts, block_starts;
  int widest = 0;
  // Of the device: [tokens, heads, dim], the cache, and indices in the forms that kernels want.
  Memory q, out, pool;
  Memory starts_d, block_starts_d, keys_d, last_lens_d;
  Memory blocks_d;  // tables without gaps
  Memory table_d;   // tables as rows of `widest`
  // For plans and partial results.
  Memory floats, ints, ints_host, semaphores;
  cudaStream_t stream = nullptr;

  int sequences() const { return static_cast<int>(queries.size()); }
  int tokens() const { return starts.back(); }
  int piece() const { return kv_heads * kBlock * kHeadDim; }  // keys or values of a block
  Bf16* key_pool() const { return pool.as<Bf16>(); }
  Bf16* value_pool() const { return pool.as<Bf16>() + piece(); }
};

constexpr float kScale = 0.08838834764831845f;  // of logits: 1 / sqrt(128)

/// Enqueues one attention. What is planned on the host is planned once, before.
using Launch = std::function<void()>;

Launch fa2_decode(Problem& problem);          // CUDA cores; decodes
Launch fa2_prefill_decode(Problem& problem);  // tensor cores: the prefill kernel with a query a sequence; decodes
Launch fa2_prefill(Problem& problem);         // tensor cores; prefills
Launch fa3(Problem& problem);                 // wgmma; anything
Launch xqa(Problem& problem);                 // tensor cores; decodes of 4 heads that share keys

}  // namespace stick
