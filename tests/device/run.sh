#!/usr/bin/env bash
# On the machine with the GPU, in the folder that pack.sh made: tests and benches, one table last.
# usage: run.sh [-l FOLDER FOR LOGS] [-t SECONDS] [all | tests | latency | load | workloads [NAME ...] | sanitize]
# `all` (the default) is the first four and every workload. Everything ends within the seconds (570): a program gets what its
# limit and the rest of them allow, and what comes after that is told and left out. `sanitize` needs compute-sanitizer.
set -uo pipefail
cd "$(dirname "$0")"
logs=logs budget=570
while getopts l:t: option; do
  case $option in
    l) logs=$OPTARG ;;
    t) budget=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
what=${1:-all}
shift $(($# > 0))
mkdir -p "$logs"
export CARGO_MANIFEST_DIR=$PWD
failed=0

# run NAME SECONDS PROGRAM ...: its output in NAME.log, one line here.
run() {
  local name=$1 limit=$2 from=$SECONDS outcome
  shift 2
  ((limit > budget - SECONDS)) && limit=$((budget - SECONDS))
  if [[ $1 == bin/* && ! -x $1 ]]; then
    printf '%-22s is not in this kit\n' "$name"
    return
  elif ((limit < 5)); then
    printf '%-22s left out: no time is left\n' "$name"
    failed=1
    return
  fi
  timeout "$limit" "$@" >"$logs/$name.log" 2>&1
  case $? in
    0) outcome=ok ;;
    124) outcome="OUT OF TIME" failed=1 ;;
    *) outcome="FAILED ($?)" failed=1 ;;
  esac
  printf '%-22s %-12s %4d s  %s\n' "$name" "$outcome" $((SECONDS - from)) "$(grep -E '^test result' "$logs/$name.log" | tail -1)"
  [[ $outcome == ok ]] || grep -E 'panicked|apart|expected|^test .*FAILED|Error|error|=====' -A3 "$logs/$name.log" | head -30
}

tests() {
  run conformance 120 bin/conformance --nocapture _gpu
  run golden 120 bin/golden --nocapture --test-threads=1 gpu
  run golden-memory 60 bin/golden --nocapture --ignored --test-threads=1 gpu::memory
  run faults 120 bin/faults
}

# Every kernel under the memory checkers, on few shapes.
sanitize() {
  for tool in memcheck racecheck; do
    YN_CONFORMANCE=small run "$tool" 260 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      bin/conformance --nocapture --test-threads=1 _gpu
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs/$tool.log"
  done
}

# Of logs of workloads: name, limit, the peer, ours, and both ratios; of latency and load what has a bar.
table() {
  printf '\n%-24s %10s %10s %10s %9s %8s\n' workload limit vllm ours 'of limit' 'vs vllm'
  cat "$logs"/workloads*.log 2>/dev/null |
    awk '$5 ~ /%$/ && $6 ~ /x$/ { printf "%-24s %10s %10s %10s %9s %8s\n", $1, $2, $3, $4, $5, $6 }'
  sed -n 's/.*p99 during \/ p50 before \([0-9.]*\) .*first token \([0-9]*\) ms.*/\1 \2/p' "$logs"/latency*.log 2>/dev/null |
    awk '{ printf "%-24s %10s %10s %10s %9s  first token %d ms\n", "s8 32k among 64: p99/p50", "2.00", "-", $1, $1 <= 2 ? "within" : "ABOVE", $2 }'
  grep -hE '^(load: .* GB/s|start: ready)' "$logs"/load*.log 2>/dev/null
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
case $what in
  tests) tests ;;
  sanitize) sanitize ;;
  latency) run latency 120 bin/latency --device cuda "$@" ;;
  load) run load 240 bin/load --device cuda "$@" ;;
  workloads) run workloads 560 bin/workloads --device cuda "$@" ;;
  all)
    tests
    run latency 60 bin/latency --device cuda
    run workloads 450 bin/workloads --device cuda
    run load 120 bin/load --device cuda
    ;;
  *)
    echo "run.sh: $what is none of all, tests, latency, load, workloads, sanitize" >&2
    exit 2
    ;;
esac
cat "$logs"/{faults,latency,load,workloads}.log 2>/dev/null
[[ $what == tests || $what == sanitize ]] || table
exit $failed
