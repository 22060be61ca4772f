// FlashInfer's kernel for sm_90a, FlashAttention 3 over a paged cache, from the templates of its headers.
#include <cstdint>

#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/cutlass_utils.cuh>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>

#include "stick.h"

namespace stick {
namespace {

namespace fi = flashinfer;

using Element = cutlass::bfloat16_t;
using Params = fi::BatchPrefillPagedParams<Element, Element, Element, int32_t>;

Element* elements(Bf16* at) { return reinterpret_cast<Element*>(at); }

void shape(Params& params, const Problem& p) {
  params.q_ptr = elements(p.q.as<Bf16>());
  params.k_ptr = elements(p.key_pool());
  params.v_ptr = elements(p.value_pool());
  params.o_ptr = elements(p.out.as<Bf16>());
  params.additional_params.sm_scale = kScale;
  params.q_stride_n = params.o_stride_n = p.heads * kHeadDim;
  params.q_stride_h = params.o_stride_h = kHeadDim;
  params.k_stride_n = params.v_stride_n = kHeadDim;
  params.k_stride_h = params.v_stride_h = kBlock * kHeadDim;
  params.k_page_stride = params.v_page_stride = 2 * p.piece();
  params.nnz_qo = p.tokens();
  params.num_qo_heads = p.heads;
  params.num_kv_heads = p.kv_heads;
  params.group_size = p.heads / p.kv_heads;
  params.page_size = kBlock;
  params.window_left = -1;
  params.causal = true;
  params.kv_indices = p.blocks_d.as<int32_t>();
}

}  // namespace

Launch fa3(Problem& p) {
  fi::PrefillPlanSM90Info plan;
  check(fi::PrefillSM90Plan<int32_t>(p.floats.as<void>(), p.floats.bytes(), p.ints.as<void>(), p.ints_host.as<void>(),
                                     p.ints.bytes(), plan, p.starts.data(), p.block_starts.data(), p.keys.data(),
                                     p.tokens(), p.sequences(), p.heads, p.kv_heads, kHeadDim, kHeadDim, kBlock, true,
                                     false, sizeof(Bf16), p.stream),
        "PrefillSM90Plan");
  check(cudaStreamSynchronize(p.stream), "upload of a plan");
  if (plan.same_schedule_for_all_heads) {
    throw std::runtime_error("the plan wants one schedule for all heads, which is not compiled");
  }
  Params params{};
  shape(params, p);
  const auto in = [&](int64_t offset) { return fi::GetPtrFromBaseOffset<int32_t>(p.ints.as<void>(), offset); };
  params.qo_tile_indices = in(plan.qo_tile_indices_offset);
  params.qo_indptr = in(plan.qo_indptr_offset);
  params.kv_indptr = in(plan.kv_indptr_offset);
  params.qo_lens = in(plan.qo_len_offset);
  params.kv_lens = in(plan.kv_len_offset);
  params.head_indices = in(plan.head_indices_offset);
  params.work_indptr = in(plan.work_indptr_offset);
  params.batch_indices = in(plan.batch_indices_offset);
  return [params, stream = p.stream]() mutable {
    check(fi::BatchPrefillWithPagedKVCacheDispatched<kHeadDim, kHeadDim, fi::MaskMode::kCausal, false, false,
                                                     fi::StandardAttention>(params, true, stream),
          "BatchPrefillWithPagedKVCache of sm_90a");
  };
}

}  // namespace stick
