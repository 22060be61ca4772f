#!/usr/bin/env bash
# On the machine with the GPU, in the folder that pack.sh made: tests and benches, one table last.
# usage: run.sh [-l FOLDER FOR LOGS] [-t SECONDS] [PART]; PART is one of
#   all | tests | latency | load | workloads [NAME ...] | attention | profile [NAME ...] | sanitize [PART ...]
# `all` (the default) is the first four and every workload. `attention` sets our attention beside FlashInfer's.
# `profile` tells where workloads' time on the GPU goes, kernel by kernel; it needs a C compiler and CUDA's CUPTI. Everything ends
# within the seconds (570): a program gets what its limit and the rest of them allow, and what comes after that is told and left
# out. `sanitize` needs compute-sanitizer; its parts, all of which run when none is named, are those of `sanitizers` below.
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

sanitizers=(memcheck race-fast race-aligned race-invariant race-invariance race-fast-attention race-invariant-attention)

# sanitizer PART: conformance on few shapes under a checker. memcheck looks at everything. racecheck looks at our own kernels, of
# each mode: rows with products of the vendor's library are left out, whose hazards are none of ours, and on which the tool fails.
sanitizer() {
  local tool=racecheck shapes=smallest test rows
  case $1 in
    memcheck) tool=memcheck shapes=small test=_gpu rows= ;;
    race-fast) test=every_op_on_a_gpu rows='-linear,-norm_linear,-few rows: linear in float32,-few rows: norm_linear in float32,-some rows: linear in float32,-some rows: norm_linear in float32,-many rows: norm_linear in float32,-linear_norm_linear in float32,-linear_norm_linear in float16,-attention' ;;
    race-fast-attention) test=every_op_on_a_gpu rows=attention ;;
    race-aligned) test=every_op_on_an_aligned_gpu rows='-linear,-aligned logits,-aligned biases' ;;
    race-invariant) test=every_op_on_an_invariant_gpu rows='-attention,-row invariance,-many rows' ;;
    race-invariant-attention) test=every_op_on_an_invariant_gpu rows=attention ;;
    race-invariance) test=every_op_on_an_invariant_gpu rows='row invariance' ;;
    *)
      echo "run.sh: $1 is none of ${sanitizers[*]}" >&2
      exit 2
      ;;
  esac
  YN_CONFORMANCE=$shapes YN_CONFORMANCE_ROWS=${YN_CONFORMANCE_ROWS:-$rows} run "$1" 560 \
    compute-sanitizer --tool "$tool" --error-exitcode 9 bin/conformance --nocapture --test-threads=1 "$test"
  grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY|rows ran' "$logs/$1.log"
  # The first hazards, or the row that it came to.
  grep -hE '^=+ (Error|Warning): ' "$logs/$1.log" | cut -c-200 | sort | uniq -c | sort -rn | head -5
  grep -hE ' in b?float(16|32): ' "$logs/$1.log" | tail -1
}

sanitize() {
  local part
  for part in "${@:-${sanitizers[@]}}"; do sanitizer "$part"; done
}

# Both tables as they are, then both times of each case, FlashInfer's of its fastest kernel there, and our speed over that one's.
attention() {
  run attention 300 bin/gpu_ops --device cuda attention
  run flashinfer 120 bin/flashinfer_bench
  cat "$logs"/{attention,flashinfer}.log 2>/dev/null
  [[ -x bin/flashinfer_bench ]] || return
  printf '\n%-44s %9s %13s %7s  %s\n' attention 'ours us' 'flashinfer us' speed kernel
  awk '{ name = substr($0, 1, 44); sub(/ +$/, "", name); $0 = substr($0, 45) }
    name == "" || $4 !~ /%$/ { next }
    FILENAME ~ /attention.log$/ { ours[name] = $1; names[++n] = name; next }
    !(name in best) || $1 < best[name] { best[name] = $1; $1 = $2 = $3 = $4 = ""; sub(/^ +/, ""); kernel[name] = $0 }
    END {
      for (i = 1; i <= n; i++) if (names[i] in best) {
        name = names[i]
        printf "%-44s %9.2f %13.2f %6.2fx  %s\n", name, ours[name], best[name], best[name] / ours[name], kernel[name]
      }
    }' "$logs/attention.log" "$logs/flashinfer.log" 2>/dev/null
}

# One run of the workloads, and all its launches.
profile() {
  local cuda=${CUDA_HOME:-/usr/local/cuda} parts=(-lcupti)
  for folder in "$cuda/extras/CUPTI" "$cuda"; do parts+=(-I"$folder/include" -L"$folder/lib64" -Wl,-rpath,"$folder/lib64"); done
  cc -O2 -shared -fPIC tests/device/launches.c -o "$logs/launches.so" "${parts[@]}" || exit 1
  CUDA_INJECTION64_PATH=$(realpath "$logs/launches.so") YN_LAUNCHES=$logs/launches.log run profile 300 bin/workloads --device cuda "$@"
  cat "$logs"/{profile,launches}.log
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
  sanitize) sanitize "$@" ;;
  latency) run latency 120 bin/latency --device cuda "$@" ;;
  load) run load 240 bin/load --device cuda "$@" ;;
  workloads) run workloads 560 bin/workloads --device cuda "$@" ;;
  attention)
    attention
    exit $failed
    ;;
  profile)
    profile "$@"
    exit $failed
    ;;
  all)
    tests
    run latency 60 bin/latency --device cuda
    run workloads 450 bin/workloads --device cuda
    run load 120 bin/load --device cuda
    ;;
  *)
    echo "run.sh: $what is none of all, tests, latency, load, workloads, attention, profile, sanitize" >&2
    exit 2
    ;;
esac
cat "$logs"/{faults,latency,load,workloads}.log 2>/dev/null
[[ $what == tests || $what == sanitize ]] || table
exit $failed
