// XQA, the decode kernel that FlashInfer has from TensorRT-LLM. Its source is compiled as it stands in the wheel, with the
// options of build.sh, which fix dtype, block size, head dimension and the number of heads that share keys.
#include <cstdint>

#include "mha.h"

#include "stick.h"

namespace stick {

Launch xqa(Problem& p) {
  if (p.heads != p.kv_heads * HEAD_GRP_SIZE) throw std::runtime_error("another number of heads shares keys");
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  check(cudaMemset(p.semaphores.as<void>(), 0, p.semaphores.bytes()), "semaphores");
  check(cudaDeviceSynchronize(), "semaphores");
  if (p.semaphores.bytes() < sizeof(uint32_t) * p.sequences() * p.kv_heads) throw std::runtime_error("few semaphores");
  return [&p, processors] {
    launchMHAFlashInfer(processors, p.kv_heads, 0, 1.f, nullptr, p.out.as<OutputHead>(), p.q.as<InputHead const>(),
                        nullptr, reinterpret_cast<GMemCacheHead*>(p.key_pool()),
                        reinterpret_cast<GMemCacheHead*>(p.value_pool()), p.table_d.as<KVCachePageIndex const>(),
                        p.widest * kBlock, p.keys_d.as<uint32_t const>(), p.sequences(), 1.f, nullptr,
                        p.semaphores.as<uint32_t>(), p.floats.as<void>(), true, 2 * p.piece(), kHeadDim,
                        kBlock * kHeadDim, p.stream);
  };
}

}  // namespace stick
