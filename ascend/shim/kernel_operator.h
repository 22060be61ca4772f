// An emulation, of our own, of the part of AscendC that our kernels use: a kernel includes this in place of the vendor's
// header of the same name and runs on the CPU, where each instruction is checked as it runs (core.h says how).
// What it does not know of a real core: timing, precision of the vector unit (it computes in IEEE f32), and whatever the
// public documentation does not say.
#pragma once
#include "copy.h"
#include "launch.h"
#include "vector.h"

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR uint8_t*

#define KERNEL_TYPE_AIV_ONLY 0
#define KERNEL_TASK_TYPE_DEFAULT(type) static_assert((type) == KERNEL_TYPE_AIV_ONLY, "kernels of the vector cores only")
