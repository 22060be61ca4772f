// FlashInfer's kernels for sm_80 and later, from the templates of its headers: decode, and prefill for prefills and decodes.
#include <cstdint>

#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/layout.cuh>
#include <flashinfer/page.cuh>
#include <flashinfer/pos_enc.cuh>

#include "stick.h"

namespace stick {
namespace {

namespace fi = flashinfer;

using Attention = fi::DefaultAttention<false, false, false, false>;
using DecodeParams = fi::BatchDecodeParams<Bf16, Bf16, Bf16, int32_t>;
using PrefillParams = fi::BatchPrefillPagedParams<Bf16, Bf16, Bf16, int32_t>;
constexpr auto kNoPositions = fi::PosEncodingMode::kNone;

template <typename T>
T* in(const Memory& memory, int64_t offset) {
  return fi::GetPtrFromBaseOffset<T>(memory.as<void>(), offset);
}

fi::paged_kv_t<Bf16, int32_t> cache(const Problem& p) {
  const int64_t strides[] = {2 * p.piece(), kBlock * kHeadDim, kHeadDim, 1};
  return {static_cast<uint32_t>(p.kv_heads),
          kBlock,
          kHeadDim,
          static_cast<uint32_t>(p.sequences()),
          fi::QKVLayout::kHND,
          p.key_pool(),
          p.value_pool(),
          strides,
          p.blocks_d.as<int32_t>(),
          p.block_starts_d.as<int32_t>(),
          p.last_lens_d.as<int32_t>()};
}

template <uint32_t GROUP>
fi::DecodePlanInfo plan_decode(Problem& p) {
  fi::DecodePlanInfo plan;
  auto estimate =
      fi::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<GROUP, kHeadDim, kNoPositions, Attention, DecodeParams>;
  check(fi::DecodePlan<kHeadDim, kNoPositions, Attention, DecodeParams>(
            p.floats.as<void>(), p.floats.bytes(), p.ints.as<void>(), p.ints_host.as<void>(), p.ints.bytes(), plan,
            p.block_starts.data(), p.sequences(), p.heads, kBlock, false, p.stream, estimate),
        "DecodePlan");
  check(cudaStreamSynchronize(p.stream), "upload of a plan");
  return plan;
}

/// The prefill kernel with tiles of `TILE` rows, which the plan has to agree with.
template <uint32_t TILE, fi::MaskMode MASK>
Launch prefill(Problem& p) {
  fi::PrefillPlanInfo plan;
  check(fi::PrefillPlan<int32_t>(p.floats.as<void>(), p.floats.bytes(), p.ints.as<void>(), p.ints_host.as<void>(),
                                 p.ints.bytes(), plan, p.starts.data(), p.block_starts.data(), p.tokens(),
                                 p.sequences(), p.heads, p.kv_heads, kHeadDim, kHeadDim, kBlock, false, sizeof(Bf16),
                                 -1, -1, false, 0, 0, p.stream),
        "PrefillPlan");
  check(cudaStreamSynchronize(p.stream), "upload of a plan");
  if (plan.cta_tile_q != TILE) {
    throw std::runtime_error("the plan wants tiles of " + std::to_string(plan.cta_tile_q) + " rows, compiled are " +
                             std::to_string(TILE));
  }
  PrefillParams params(p.q.as<Bf16>(), cache(p), nullptr, p.starts_d.as<int32_t>(), nullptr, nullptr, p.out.as<Bf16>(),
                       nullptr, nullptr, p.heads, p.heads * kHeadDim, kHeadDim, -1, 0.f, kScale, 1.f, 1e4f);
  params.request_indices = in<int32_t>(p.ints, plan.request_indices_offset);
  params.qo_tile_indices = in<int32_t>(p.ints, plan.qo_tile_indices_offset);
  params.kv_tile_indices = in<int32_t>(p.ints, plan.kv_tile_indices_offset);
  params.o_indptr = in<int32_t>(p.ints, plan.o_indptr_offset);
  params.kv_chunk_size_ptr = in<int32_t>(p.ints, plan.kv_chunk_size_ptr_offset);
  params.padded_batch_size = plan.padded_batch_size;
  params.max_total_num_rows = plan.total_num_rows;
  Bf16* values = nullptr;
  float* sums = nullptr;
  if (plan.split_kv) {
    params.merge_indptr = in<int32_t>(p.ints, plan.merge_indptr_offset);
    values = in<Bf16>(p.floats, plan.v_offset);
    sums = in<float>(p.floats, plan.s_offset);
  }
  return [=, stream = p.stream] {
    check(fi::BatchPrefillWithPagedKVCacheDispatched<true, TILE, kHeadDim, kHeadDim, kNoPositions, false, MASK,
                                                     Attention, PrefillParams>(params, values, sums, true, stream),
          "BatchPrefillWithPagedKVCache");
  };
}

}  // namespace

Launch fa2_decode(Problem& p) {
  const fi::DecodePlanInfo plan = p.heads == p.kv_heads ? plan_decode<1>(p) : plan_decode<4>(p);
  DecodeParams params(p.q.as<Bf16>(), nullptr, cache(p), p.out.as<Bf16>(), nullptr, nullptr, p.heads,
                      p.heads * kHeadDim, kHeadDim, -1, 0.f, kScale, 1.f, 1e4f);
  params.request_indices = in<int32_t>(p.ints, plan.request_indices_offset);
  params.kv_tile_indices = in<int32_t>(p.ints, plan.kv_tile_indices_offset);
  params.o_indptr = in<int32_t>(p.ints, plan.o_indptr_offset);
  params.kv_chunk_size_ptr = in<int32_t>(p.ints, plan.kv_chunk_size_ptr_offset);
  params.padded_batch_size = plan.padded_batch_size;
  Bf16* values = plan.split_kv ? in<Bf16>(p.floats, plan.v_offset) : nullptr;
  float* sums = plan.split_kv ? in<float>(p.floats, plan.s_offset) : nullptr;
  return [=, stream = p.stream] {
    check(fi::BatchDecodeWithPagedKVCacheDispatched<kHeadDim, kNoPositions, Attention, DecodeParams>(
              params, values, sums, true, stream),
          "BatchDecodeWithPagedKVCache");
  };
}

Launch fa2_prefill_decode(Problem& p) { return prefill<16, fi::MaskMode::kNone>(p); }

Launch fa2_prefill(Problem& p) { return prefill<128, fi::MaskMode::kCausal>(p); }

}  // namespace stick
