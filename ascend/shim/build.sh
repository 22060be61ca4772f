#!/bin/sh
# Builds each kernel with the emulation of this folder into OUT_DIR/AscendDouble/<kernel>.o: shared objects that look like kernel
# binaries of a chip "AscendDouble", for the conformance double of the tests to run. Does what is out of date, and may run
# several times at once. CXX names the compiler, c++ when it does not;
# CXXFLAGS come in front of our own flags.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 OUT_DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/AscendDouble"
out=$(cd "$1/AscendDouble" && pwd)
exec 9> "$out/.lock"
if command -v flock > /dev/null; then flock 9; fi
for kernel in add_rms_norm penalty_temperature rope_write_kv silu_mul; do
  source="$here/../$kernel.cpp" object="$out/$kernel.o"
  if [ -e "$object" ] && [ -z "$(find "$here" "$here/../common.h" "$source" -type f -newer "$object")" ]; then continue; fi
  entries=$(sed -n 's/^extern "C" __global__ __aicore__ void \([a-z0-9_]*\)(.*/YN_ENTRY(\1)/p' "$source" | tr '\n' ' ')
  "${CXX:-c++}" ${CXXFLAGS:-} -std=c++17 -O2 -g1 -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -fno-gnu-unique -I"$here" \
    -DYN_KERNEL="\"$source\"" -DYN_ENTRIES="$entries" "$here/export.cpp" -o "$object.$$"
  mv "$object.$$" "$object"
done
