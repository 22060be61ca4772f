#!/usr/bin/env bash
# Builds target/flashinfer_bench: FlashInfer's attention kernels on the shapes of `gpu_ops attention`, a measuring stick for ours.
# It needs no GPU, takes two minutes and is part of nothing else: when the file is there, tests/device/pack.sh takes it along, and
# `run.sh attention` on the machine with the GPU sets both beside each other. The kernels come from the source wheel of
# flashinfer-python (Apache-2.0, parts BSD-3), which is fetched into target/ and never committed; nothing of it gets into the library.
# For sm_90a only. Needs python3, pip and g++.
set -euo pipefail
cd "$(dirname "$0")/../../.."
version=0.7.2.post1
wheel=flashinfer_python-$version-py3-none-any.whl
sum=bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49
to=target/flashinfer
nvcc=target/cuda-compiler/nvidia/cu13/bin/nvcc
here=tests/device/flashinfer

kernels/fetch_compiler.sh
mkdir -p "$to/objects" "$to/shadow/cutlass/util/reference/device"
if [[ ! -e $to/complete-$version ]]; then
  python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$to" "flashinfer-python==$version"
  echo "$sum  $to/$wheel" | sha256sum --check --quiet
  rm -rf "$to/wheel"
  python3 -m zipfile -e "$to/$wheel" "$to/wheel"
  touch "$to/complete-$version"
fi
data=$to/wheel/flashinfer/data
# One header includes helpers of tests, which want cuRAND and are not used: empty ones stand in front of them.
touch "$to"/shadow/cutlass/util/reference/device/{tensor_fill,tensor_compare}.h

common=(-O3 -std=c++17 -DNDEBUG --expt-relaxed-constexpr -static-global-template-stub=false -diag-suppress 177,3357,20012
  -gencode arch=compute_90a,code=sm_90a --compress-mode=size)
# As FlashInfer compiles its own; its CCCL has to come before the toolkit's.
library=(-use_fast_math -DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED "-I$to/shadow"
  "-I$data/cccl/cub" "-I$data/cccl/libcudacxx/include" "-I$data/cccl/thrust" -isystem "$data/include"
  -isystem "$data/cutlass/include" -isystem "$data/cutlass/tools/util/include" -isystem "$data/spdlog/include")
# bf16, blocks of 16, heads of 128, four query heads to a KV head.
xqa=("-I$data/csrc/xqa" -DBEAM_WIDTH=1 -DUSE_INPUT_KV=0 -DUSE_CUSTOM_BARRIER=1 -DTOKENS_PER_PAGE=16 -DHEAD_ELEMS=128 -DINPUT_FP16=0
  -DCACHE_ELEM_ENUM=0 -DHEAD_GRP_SIZE=4 -DSLIDING_WINDOW=0 -DLOW_PREC_OUTPUT=0 -DSPEC_DEC=0 -DMLA_WRAPPER=0 -DUSE_SM90_MHA=0)

objects=()
# compile NAME SOURCE OPTION ...: when what it is made of has changed.
compile() {
  local object=$to/objects/$1.o source=$2 newer
  shift 2
  objects+=("$object")
  newer=$(find "$source" "$here" -name '*.h' -newer "$object" -o -samefile "$source" -newer "$object" \
    -o -name build.sh -newer "$object" 2>/dev/null || true)
  if [[ -e $object && -z $newer ]]; then return; fi
  echo "nvcc $source"
  "$nvcc" "${common[@]}" "$@" -c "$source" -o "$object.part"
  mv "$object.part" "$object"
}

compile bench "$here/bench.cu" "-DFLASHINFER_VERSION=\"$version\""
compile fa2 "$here/fa2.cu" "${library[@]}"
compile xqa "$here/xqa.cu" "${library[@]}" "${xqa[@]}"
compile xqa_kernel "$data/csrc/xqa/mha.cu" "${library[@]}" "${xqa[@]}"
compile fa3 "$here/fa3.cu" "${library[@]}"
# Only the C library of the other machine is used.
"$nvcc" "${objects[@]}" -gencode arch=compute_90a,code=sm_90a -cudart static -Xcompiler -static-libstdc++,-static-libgcc \
  -o "$to/flashinfer_bench"
strip -o target/flashinfer_bench "$to/flashinfer_bench"
du -h target/flashinfer_bench
