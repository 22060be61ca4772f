#!/usr/bin/env bash
# Builds the conformance double into a directory under the names of the libraries it stands for. Two calls at once are
# safe, and nothing is built that is newer than its sources. HEADERS=DIR checks all definitions against the vendor's headers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT_DIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
exec 9>"$out/.lock"
flock 9
flags=(-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-format-zero-length -g1 -pthread)
if [[ -n ${HEADERS:-} ]]; then
  flags+=(-DREAL_HEADERS -isystem "$HEADERS" -isystem "$HEADERS/third_party/acl/inc" -isystem "$HEADERS/third_party/hccl/inc")
  grep -q aclrtBinaryLoadFromFile "$HEADERS/third_party/acl/inc/acl/acl_rt.h" && flags+=(-DREAL_KERNEL_LAUNCH)
fi
newest=$(ls -t "$here"/*.h "$here"/build.sh | head -1)
objects=() missing=()
for source in "$here"/*.cpp; do
  object=$out/$(basename "$source" .cpp).o
  objects+=("$object")
  [[ $object -nt $source && $object -nt $newest ]] || missing+=("$source")
done
if ((${#missing[@]})); then
  export OUT="$out"
  printf '%s\0' "${missing[@]}" |
    xargs -0 -P 2 -I '{}' sh -c 'c++ "$@" -c "$0" -o "$OUT/$(basename "$0" .cpp).o.new"' '{}' "${flags[@]}"
  for source in "${missing[@]}"; do mv "$out/$(basename "$source" .cpp).o.new" "$out/$(basename "$source" .cpp).o"; done
fi
if ((${#missing[@]})) || [[ ! -e $out/libhccl.so ]]; then
  c++ -shared -pthread -Wl,-z,nodelete -Wl,--no-undefined -Wl,-soname,libascendcl.so "${objects[@]}" -ldl -o "$out/libascendcl.so.new"
  mv "$out/libascendcl.so.new" "$out/libascendcl.so"
  for name in libnnopbase libopapi libhccl; do ln -sf libascendcl.so "$out/$name.so"; done
fi
