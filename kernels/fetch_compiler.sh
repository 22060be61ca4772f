#!/usr/bin/env bash
# Puts a CUDA compiler into target/cuda-compiler, where build.rs looks for one, on a machine that has none. The wheels are
# NVIDIA's, under its licence; they are build inputs and are never part of what we ship. About 104 MB; needs python3 and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
to=target/cuda-compiler
if [[ -x $to/nvidia/cu13/bin/nvcc && -e $to/complete ]]; then exit 0; fi
rm -rf "$to"
mkdir -p "$to"
python3 -m pip install --quiet --no-deps --disable-pip-version-check --target "$to" \
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
ln -sfn lib "$to/nvidia/cu13/lib64"
chmod +x "$to"/nvidia/cu13/bin/* "$to"/nvidia/cu13/nvvm/bin/* 2>/dev/null || true
"$to/nvidia/cu13/bin/nvcc" --version | tail -1
touch "$to/complete"
