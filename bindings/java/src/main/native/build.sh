#!/usr/bin/env bash
# Puts what the jar carries for this platform into OUT/linux-ARCH: the library, stripped, and the glue, which finds it beside itself.
#   bindings/java/src/main/native/build.sh LIBRARY_FOLDER OUT
# LIBRARY_FOLDER holds libyinian.so. JAVA_HOME is a JDK's, CC the C compiler, cc unless given. Needs binutils.
set -euo pipefail
fail() {
  echo "build.sh: $*" >&2
  exit 1
}
[[ $# == 2 ]] || fail "give the folder of libyinian.so, and where to write"
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../../.." && pwd)
[[ -e $1/libyinian.so ]] || fail "there is no $1/libyinian.so: cargo build --release makes target/release/libyinian.so"
[[ -e ${JAVA_HOME:-}/include/jni.h ]] || fail "JAVA_HOME (${JAVA_HOME:-not set}) is no JDK: it has no include/jni.h"
for tool in strip readelf "${CC:-cc}"; do
  command -v "$tool" >/dev/null || fail "$tool is needed and not there"
done

out=$2/linux-$(uname -m)
soname=$(readelf -d "$1/libyinian.so" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[[ $soname == libyinian.so.* ]] || fail "$1/libyinian.so has no soname"
mkdir -p "$out"
strip --strip-unneeded -o "$out/$soname" "$1/libyinian.so"
"${CC:-cc}" -std=c11 -Wall -Wextra -Werror -O2 -shared -fPIC -o "$out/libyinian_jni.so" \
  "$here"/yinian_jni{,_text}.c -I "$root/include" -I "$root/bindings" -I "$JAVA_HOME/include" -I "$JAVA_HOME/include/linux" \
  "$out/$soname" -Wl,-rpath,'$ORIGIN'
