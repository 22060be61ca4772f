#!/bin/sh
# Takes one wait after the other out of the kernels (barriers and flags) and runs the tests: each must be missed, or it is one
# too many; those that order what queues happen to order too say so in the source. Minutes; not part of the test suite.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$here/.." "$work/ascend"
survivors=0
"$work/ascend/tests/build.sh" "$work/out"
for group in norm:add_rms_norm silu_mul:silu_mul rope:rope_write_kv penalty:penalty_temperature; do
  name=${group%%:*} kernel=${group##*:}
  source="$work/ascend/$kernel.cpp"
  cp "$source" "$work/right.cpp"
  for line in $(grep -nE '^ +(if \(.*\) )?(barrier|wait_for<[A-Za-z0-9_:]*>)\(\);' "$work/right.cpp" | grep -v 'queues order this too' | cut -d: -f1); do
    sed "${line}s/.*//" "$work/right.cpp" > "$source"
    "$work/ascend/shim/build.sh" "$work/out/kernels"
    if "$work/out/tests" "$work/out/kernels" "$name" > "$work/log"; then
      echo "nobody misses $kernel.cpp:$line: $(sed -n "${line}p" "$work/right.cpp")"
      survivors=$((survivors + 1))
    fi
  done
  cp "$work/right.cpp" "$source"
  touch "$source"
done
echo "$survivors waits that nobody misses"
[ "$survivors" -eq 0 ]
