// What CUDA C++ has no name for in sm_90a: products of warpgroups, barriers in shared memory, tiles copied by the hardware.
#pragma once
#include "ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define YN_SM90A 1
#endif

// A tile in shared memory that is swizzled by 128 bytes: its rows are 128 bytes, eight of them 1024, from a 1024-byte
// boundary on. `leading` is only looked at where rows go along k (transposed operands): bytes to the next 64 columns.
__device__ __forceinline__ uint64_t swizzled_tile(uint32_t address, uint32_t leading) {
  return uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(leading >> 4) << 16 | (address >> 4 & 0x3fff);
}

#ifdef YN_SM90A

// The same in two steps, for loops over tiles: the low word of the tile at `p`, the same in all lanes of a warp and known to the
// compiler as such; and the tile `offset` bytes further, with `eight` bytes from one eight of rows to the next.
__device__ __forceinline__ uint32_t swizzled_low(const void* p, uint32_t leading) {
  return __reduce_or_sync(0xffffffffu, leading >> 4 << 16 | shared_address(p) >> 4);
}
__device__ __forceinline__ uint64_t swizzled_at(uint32_t low, uint32_t eight, uint32_t offset) {
  uint64_t y;
  asm("mov.b64 %0, {%1, %2};" : "=l"(y) : "r"(low + (offset >> 4)), "r"(1u << 30 | eight >> 4));
  return y;
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N groups are under way.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes barriers known to the copy hardware.
__device__ __forceinline__ void barrier_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and has the barrier wait for so many bytes of copies too.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Arrives at the barrier that stands there in the shared memory of the cluster's block `rank`. Nothing that the thread wrote is seen by it.
__device__ __forceinline__ void barrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Some of a block's warps meet: `threads` of them at the barrier with this number.
__device__ __forceinline__ void meet(uint32_t number, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
// The same without waiting for the others.
__device__ __forceinline__ void meet_later(uint32_t number, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// What ordinary stores wrote to shared memory, made seen by products and copies.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four numbers to this address of the shared memory of the cluster's block `rank`; they arrive at its barrier by their bytes.
__device__ __forceinline__ void send_to_cluster(const void* to, uint64_t* barrier, uint32_t rank, float4 x) {
  uint32_t there, at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there), "f"(x.x),
               "f"(x.y), "f"(x.z), "f"(x.w), "r"(at)
               : "memory");
}

// A box of the map's, whose first element is (column, row), to shared memory; arrives at `barrier` by its bytes.
__device__ __forceinline__ void copy_box(void* to, const void* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// The same to that place of each of the cluster's blocks that `blocks` has a bit of, and to their barriers.
__device__ __forceinline__ void copy_box_to(void* to, const void* map, int column, int row, uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
      "[%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}

// A tile of the map's, which begins at `row` and at `box` times 64 columns: box by box, each by rows.
__device__ __forceinline__ void copy_tile(void* to, const void* map, int row, int box, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {0, %2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(row), "r"(box), "r"(shared_address(barrier))
      : "memory");
}

// A box of the map's of rows of one or two times 64 columns, which begins at row `eight` times eight: eight rows after eight, each
// of 64 columns first.
__device__ __forceinline__ void copy_eights(void* to, const void* map, uint32_t eight, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {0, 0, 0, %2}], [%3];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(eight), "r"(shared_address(barrier))
      : "memory");
}

// A box of the map's of rows of heads of tokens, which begins at `column` of `head` of `token`: by tokens, heads and columns.
__device__ __forceinline__ void copy_queries(void* to, const void* map, uint32_t column, uint32_t head, uint32_t token,
                                             uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(head), "r"(token), "r"(shared_address(barrier))
      : "memory");
}

// Of four lanes, which each have two numbers of each of four blocks of eight columns, as products leave them, each gets a whole block.
__device__ __forceinline__ void swap_blocks(uint32_t (&x)[4], uint32_t lane) {
#pragma unroll
  for (uint32_t bit = 1; bit < 4; bit *= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
      if (j & bit) continue;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? x[j] : x[j | bit], int(bit));
      if (upper) x[j] = got;
      else x[j | bit] = got;
    }
  }
}

// Has a map at hand when it is first used.
__device__ __forceinline__ void prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

template <uint32_t N>
__device__ __forceinline__ void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <uint32_t N>
__device__ __forceinline__ void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// d = a * b, plus d where `keeps` is not 0: a 64 x 16 and b N x 16, both by row in shared memory.
template <typename T, uint32_t N>
__device__ __forceinline__ void wgmma_shared(float (&d)[N / 2], uint64_t a, uint64_t b, int keeps);
// d += a * b: a 64 x 16 in registers, b 16 x N by row in shared memory.
template <typename T, uint32_t N>
__device__ __forceinline__ void wgmma_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);

// The registers of a thread's numbers of d, by their count, as operands and as text.
#define YN_IN_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define YN_IN_16 YN_IN_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define YN_IN_24 YN_IN_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define YN_IN_32 YN_IN_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define YN_IN_64                                                                                                      \
  YN_IN_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
           "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define YN_IN_96                                                                                                    \
  YN_IN_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
           "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define YN_IN_112 YN_IN_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define YN_IN_128 \
  YN_IN_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define YN_OUT_EIGHT(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define YN_OUT_8 YN_OUT_EIGHT(0)
#define YN_OUT_16 YN_OUT_8, YN_OUT_EIGHT(8)
#define YN_OUT_24 YN_OUT_16, YN_OUT_EIGHT(16)
#define YN_OUT_32 YN_OUT_24, YN_OUT_EIGHT(24)
#define YN_OUT_64 YN_OUT_32, YN_OUT_EIGHT(32), YN_OUT_EIGHT(40), YN_OUT_EIGHT(48), YN_OUT_EIGHT(56)
#define YN_OUT_96 YN_OUT_64, YN_OUT_EIGHT(64), YN_OUT_EIGHT(72), YN_OUT_EIGHT(80), YN_OUT_EIGHT(88)
#define YN_OUT_112 YN_OUT_96, YN_OUT_EIGHT(96), YN_OUT_EIGHT(104)
#define YN_OUT_128 YN_OUT_112, YN_OUT_EIGHT(112), YN_OUT_EIGHT(120)

// N columns take REGISTERS numbers of a thread, behind which come the operands: A, B and whether d is kept; or the registers A0 to A3, and B.
#define YN_WGMMA_SHARED(T, NAME, N, REGISTERS, A, B, KEEPS)                                                              \
  template <>                                                                                                            \
  __device__ __forceinline__ void wgmma_shared<T, N>(float (&d)[REGISTERS], uint64_t a, uint64_t b, int keeps) {         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #KEEPS ", 0;\n"                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" YN_IN_##REGISTERS "}, %" #A ", %" #B \
                 ", p, 1, 1, 0, 0;\n}"                                                                                   \
                 : YN_OUT_##REGISTERS                                                                                    \
                 : "l"(a), "l"(b), "r"(keeps));                                                                          \
  }
#define YN_WGMMA_REGISTERS(T, NAME, N, REGISTERS, A0, A1, A2, A3, B)                                                      \
  template <>                                                                                                             \
  __device__ __forceinline__ void wgmma_registers<T, N>(float (&d)[REGISTERS], const uint32_t (&a)[4], uint64_t b) {      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" YN_IN_##REGISTERS "}, {%" #A0 ", %" #A1 \
                 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 1;"                                                            \
                 : YN_OUT_##REGISTERS                                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                   \
  }
#define YN_WGMMA(T, NAME)                             \
  YN_WGMMA_SHARED(T, NAME, 16, 8, 8, 9, 10)           \
  YN_WGMMA_SHARED(T, NAME, 32, 16, 16, 17, 18)        \
  YN_WGMMA_SHARED(T, NAME, 48, 24, 24, 25, 26)        \
  YN_WGMMA_SHARED(T, NAME, 64, 32, 32, 33, 34)        \
  YN_WGMMA_SHARED(T, NAME, 128, 64, 64, 65, 66)       \
  YN_WGMMA_SHARED(T, NAME, 192, 96, 96, 97, 98)       \
  YN_WGMMA_SHARED(T, NAME, 224, 112, 112, 113, 114)   \
  YN_WGMMA_SHARED(T, NAME, 256, 128, 128, 129, 130)   \
  YN_WGMMA_REGISTERS(T, NAME, 64, 32, 32, 33, 34, 35, 36) \
  YN_WGMMA_REGISTERS(T, NAME, 128, 64, 64, 65, 66, 67, 68)
YN_WGMMA(f16, "f16")
YN_WGMMA(bf16, "bf16")

#endif
