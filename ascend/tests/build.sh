#!/bin/sh
# Builds the kernels for the emulation and the program that tests them: OUT_DIR/kernels (see shim/build.sh) and OUT_DIR/tests.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 OUT_DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
"$here/../shim/build.sh" "$out/kernels"
exec 9> "$out/.lock"
if command -v flock > /dev/null; then flock 9; fi
for source in "$here"/*.cpp; do
  object="$out/$(basename "$source" .cpp).obj"
  if [ -e "$object" ] && [ -z "$(find "$here" "$here/../shim" -type f -newer "$object")" ]; then continue; fi
  "${CXX:-c++}" ${CXXFLAGS:-} -std=c++17 -O1 -g1 -Wall -Wextra -Werror -I"$here/../shim" -c "$source" -o "$object.$$"
  mv "$object.$$" "$object"
done
"${CXX:-c++}" ${CXXFLAGS:-} "$out"/*.obj -ldl -o "$out/tests.$$"
mv "$out/tests.$$" "$out/tests"
