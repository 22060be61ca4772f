// Tiles of rows for prefills, a row being one query head of one token: the heads that share a key head stand together.
#pragma once
#include "attention.cuh"

// A tile of rows of one sequence.
struct QueryTile {
  uint32_t sequence, from, tokens, before;  // first token in the T axis, their number, positions before them
  uint32_t first_row;
};

// The tile with this number over all sequences of several tokens; false behind the last. All threads call it.
__device__ __forceinline__ bool find_tile(const AttentionParams& p, uint32_t number, uint32_t tile_rows, uint32_t (&found)[2],
                                          QueryTile& tile) {
  const int* starts = at<int>(p.starts);
  const uint32_t ratio = p.heads / p.kv_heads, lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    uint32_t before = 0, sequence = ~0u, index = 0;
    for (uint32_t base = 0; base < p.sequences && sequence == ~0u; base += 32) {
      uint32_t tiles = 0;
      if (base + lane < p.sequences) {
        const uint32_t tokens = uint32_t(starts[base + lane + 1] - starts[base + lane]);
        tiles = tokens > 1 ? (tokens * ratio + tile_rows - 1) / tile_rows : 0;
      }
      uint32_t end = tiles;
#pragma unroll
      for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t x = __shfl_up_sync(ALL, end, d);
        if (lane >= d) end += x;
      }
      const uint32_t here = __ballot_sync(ALL, number - before < end);
      if (here != 0) {
        const uint32_t which = uint32_t(__ffs(int(here))) - 1;
        sequence = base + which;
        const uint32_t start = __shfl_sync(ALL, end - tiles, int(which));
        index = number - before - start;
        // The last tokens see the most keys: they go first.
        index = __shfl_sync(ALL, tiles, int(which)) - 1 - index;
      }
      before += __shfl_sync(ALL, end, 31);
    }
    if (lane == 0) found[0] = sequence, found[1] = index;
  }
  __syncthreads();
  if (found[0] == ~0u) return false;
  tile.sequence = found[0];
  tile.from = uint32_t(starts[tile.sequence]);
  tile.tokens = uint32_t(starts[tile.sequence + 1]) - tile.from;
  tile.before = uint32_t(at<int>(p.context_lens)[tile.sequence]) - tile.tokens;
  tile.first_row = found[1] * tile_rows;
  return true;
}
