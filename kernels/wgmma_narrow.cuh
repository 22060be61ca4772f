// Products of warpgroups with few columns, both operands in shared memory: wgmma_shared of hopper.cuh for 16, 32, 48 and 64.
#pragma once
#include "hopper.cuh"

#ifdef YN_SM90A

#define YN_IN_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define YN_IN_16 YN_IN_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define YN_IN_24 YN_IN_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define YN_IN_32 YN_IN_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define YN_OUT_EIGHT(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define YN_OUT_8 YN_OUT_EIGHT(0)
#define YN_OUT_16 YN_OUT_8, YN_OUT_EIGHT(8)
#define YN_OUT_24 YN_OUT_16, YN_OUT_EIGHT(16)
#define YN_OUT_32 YN_OUT_24, YN_OUT_EIGHT(24)

// N columns take REGISTERS numbers of a thread, behind which come the operands A and B and whether d is kept.
#define YN_WGMMA_NARROW(T, NAME, N, REGISTERS, A, B, KEEPS)                                                              \
  template <>                                                                                                            \
  __device__ __forceinline__ void wgmma_shared<T, N>(float (&d)[REGISTERS], uint64_t a, uint64_t b, int keeps) {         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #KEEPS ", 0;\n"                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" YN_IN_##REGISTERS "}, %" #A ", %" #B \
                 ", p, 1, 1, 0, 0;\n}"                                                                                   \
                 : YN_OUT_##REGISTERS                                                                                    \
                 : "l"(a), "l"(b), "r"(keeps));                                                                          \
  }
YN_WGMMA_NARROW(f16, "f16", 16, 8, 8, 9, 10)
YN_WGMMA_NARROW(f16, "f16", 32, 16, 16, 17, 18)
YN_WGMMA_NARROW(f16, "f16", 48, 24, 24, 25, 26)
YN_WGMMA_NARROW(f16, "f16", 64, 32, 32, 33, 34)
YN_WGMMA_NARROW(bf16, "bf16", 16, 8, 8, 9, 10)
YN_WGMMA_NARROW(bf16, "bf16", 32, 16, 16, 17, 18)
YN_WGMMA_NARROW(bf16, "bf16", 48, 24, 24, 25, 26)
YN_WGMMA_NARROW(bf16, "bf16", 64, 32, 32, 33, 34)

#endif
