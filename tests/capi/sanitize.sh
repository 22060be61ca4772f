#!/usr/bin/env bash
# Runs the C programs of this directory under a memory checker.
#   tests/capi/sanitize.sh address [SECONDS]    AddressSanitizer and LeakSanitizer, in the library and the programs
#   tests/capi/sanitize.sh valgrind [SECONDS]   memcheck, on the release library; it knows no AVX-512
# SECONDS is how long each soak takes, 10 unless given. Needs gcc, and valgrind for the second; prints a line per program.
set -euo pipefail
cd "$(dirname "$0")/../.."
tool=${1:?address or valgrind}
seconds=${2:-10}
target=${CARGO_TARGET_DIR:-$PWD/target}
model=$PWD/examples/demo_model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
triple=$(rustc -vV | sed -n 's/^host: //p')
flags=(-std=c99 -D_POSIX_C_SOURCE=200809L -pthread -g -O1 -DPATIENCE_MS=300000 -DSLACK_MB=100 -DNO_LIMITS)

case $tool in
  address)
    # The sanitizer is an unstable flag: RUSTC_BOOTSTRAP lets a stable compiler take it.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target/sanitize \
      cargo build --release --lib --locked --target "$triple"
    library=$target/sanitize/$triple/release/libyinian.so
    # Frames under the sanitizer are several times as large.
    flags+=(-fsanitize=address -fno-omit-frame-pointer -DSTACK_KB=512)
    ;;
  valgrind)
    cargo build --release --lib --locked
    library=$target/release/libyinian.so
    ;;
  *) echo "unknown tool $tool; expected address or valgrind" >&2; exit 2 ;;
esac
ln -s "$library" "$work/libyinian.so"
ln -s "$library" "$work/libyinian.so.0.1"

failed=0
# check LEAKS PROGRAM ARGUMENTS...: LEAKS is "leaks", or "forks" for programs whose forked children end with the memory of
# threads that they do not have.
check() {
  local leaks=$1 name=$2 log=$work/log start=$SECONDS rc=0
  shift 2
  local link=(-L "$work" -Wl,-rpath,"$work" -lyinian)
  [ "$name" = loader ] && link=(-ldl)
  [ -x "$work/$name" ] || cc "${flags[@]}" -o "$work/$name" "tests/capi/$name.c" -I include "${link[@]}"
  rm -f "$log"*
  if [ "$tool" = address ]; then
    ASAN_OPTIONS=exitcode=98:quarantine_size_mb=16:use_sigaltstack=0:detect_leaks=$([ "$leaks" = leaks ] && echo 1 || echo 0) \
      timeout 1200 "$work/$name" "$@" >"$log" 2>&1 || rc=$?
  else
    timeout 1200 valgrind --fair-sched=yes --num-callers=30 --error-exitcode=98 --leak-check=full \
      --show-leak-kinds=definite --errors-for-leak-kinds="$([ "$leaks" = leaks ] && echo definite || echo none)" \
      --log-file="$log.%p" "$work/$name" "$@" >"$log" 2>&1 || rc=$?
  fi
  echo "$tool: $name $*: exit $rc, $((SECONDS - start)) s"
  if [ $rc -ne 0 ]; then
    failed=1
    cat "$log"*
  fi
}

check forks smoke
check leaks faults
check forks wake
check leaks free_traffic
check leaks arguments "$model"
check leaks configs "$model"
check leaks requests '{"model": "mock:words", "max_model_len": 100}' 257
check leaks two_engines "$model" avx2
check leaks two_engines "$model" portable
if [ "$tool" = valgrind ]; then
  echo "valgrind: demo and the soak of the demo model are SKIPPED: they take hours; two_engines runs the same kernels"
else
  check leaks demo "$model"
  check leaks soak "$model" "$seconds" avx2
  check leaks soak "$model" "$seconds" portable
fi
check leaks many '{"model": "mock:words,delay_us=300", "max_num_seqs": 32}' hello
check leaks many '{"model": "mock:words,delay_us=300", "kv_cache_bytes": 1024, "block_size": 4}' hi
check leaks stacks "$model"
check forks hazards "$model"
for ending in close "early handler" "late handler" used destructor return exit _exit thread; do
  check leaks loader "$library" "$ending"
done
# glibc itself forgets 64 bytes when main ends by pthread_exit.
check forks loader "$library" "main ends"
check forks loader "$library" fork
check leaks soak mock:words,delay_us=200 "$seconds"
exit $failed
