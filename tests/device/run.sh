#!/usr/bin/env bash
# On the machine with the GPU, in the folder that pack.sh made: every test, every bench, a short table last.
# usage: run.sh [FOLDER FOR LOGS]
set -uo pipefail
cd "$(dirname "$0")"
logs=${1:-logs}
mkdir -p "$logs"
export CARGO_MANIFEST_DIR=$PWD
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
run() {
  local name=$1 from=$SECONDS
  shift
  if timeout 600 "$@" >"$logs/$name.log" 2>&1; then outcome=ok; else outcome="FAILED ($?)"; fi
  printf '%-28s %-12s %4d s  %s\n' "$name" "$outcome" $((SECONDS - from)) "$(grep -E '^test result' "$logs/$name.log" | tail -1)"
  [[ $outcome == ok ]] || grep -E 'panicked|apart|expected|^test .*FAILED|Error|error' -A3 "$logs/$name.log" | head -30
}
run conformance bin/conformance --nocapture every_op_on_a_gpu
run invariant bin/conformance --nocapture every_op_on_an_invariant_gpu
run golden bin/golden --nocapture gpu::
run gpu_ops bin/gpu_ops --device cuda
run workloads bin/workloads --device cuda
cat "$logs/gpu_ops.log" "$logs/workloads.log"
