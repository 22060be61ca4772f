#!/bin/sh
# Builds what is needed and writes one JSON about the NPU of this machine: examples/ascend_selftest/run.sh [OPTION..]
#   --out FILE         where to, ascend-selftest.json unless told
#   --device NAME      ascend unless told; ascend:1 is the second NPU
#   --prefix DIR       where libyinian is installed; else pkg-config finds it, else target/release has it
#   --soc NAME         the chip for which kernels are built (Ascend910B3, say); else npu-smi is asked
#   --library-dir DIR  vendor libraries, and kernels in DIR/<soc>; nothing is built then
#   --ranks N          golden tokens on N NPUs, too
#   --short            seconds instead of minutes
# Needs a C++ compiler, this checkout, libyinian, and CANN with its set_env.sh sourced; cmake too, for kernels of our own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=ascend-selftest.json device=ascend prefix='' soc='' library_dir='' short='' ranks=''
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --short) short=--short; shift; continue ;;
    --out | --device | --prefix | --soc | --library-dir | --ranks) [ $# -gt 1 ] || usage ;;
    *) usage ;;
  esac
  case $1 in
    --out) out=$2 ;;
    --device) device=$2 ;;
    --prefix) prefix=$2 ;;
    --soc) soc=$2 ;;
    --library-dir) library_dir=$2 ;;
    --ranks) ranks="--ranks $2" ;;
  esac
  shift 2
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

include="-I$root/include -I$root/bindings/cpp"
if [ -n "$prefix" ]; then
  lib=$(dirname "$(find "$prefix" -name 'libyinian.so*' | head -n 1)")
elif lib=$(pkg-config --variable=libdir yinian 2> /dev/null) && [ -n "$lib" ]; then
  :
else
  lib=$root/target/release
fi
ls "$lib"/libyinian.so* > /dev/null 2>&1 || { echo "no libyinian.so in \"$lib\": install it (bindings/install.sh) and name where with --prefix" >&2; exit 2; }
# A build's own folder has no links for the linker and the loader.
for name in libyinian.so libyinian.so.0.1; do
  ln -s "$(ls "$lib"/libyinian.so* | tail -n 1)" "$work/$name"
done
# shellcheck disable=SC2086
"${CXX:-c++}" -std=c++17 -O1 $include "$here/main.cpp" -o "$work/selftest" -L"$work" -lyinian -Wl,-rpath,"$work"

# Kernels of our own are worth having and not needed: what went wrong goes into the report.
kernels="those of $library_dir, if any"
if [ -z "$library_dir" ]; then
  [ -n "$soc" ] || soc=$(npu-smi info 2> /dev/null | grep -o '\(910\|310\)[A-Za-z0-9]*' | head -n 1 | sed 's/^/Ascend/') || true
  if [ -z "$soc" ]; then
    kernels='not built: npu-smi does not say what the chip is, and --soc was not given'
  elif cmake -S "$root/ascend" -B "$work/kernels" -DSOC_VERSION="$soc" -DCMAKE_INSTALL_PREFIX="$work/out" > "$work/log" 2>&1 &&
    cmake --build "$work/kernels" >> "$work/log" 2>&1 && cmake --install "$work/kernels" >> "$work/log" 2>&1; then
    kernels="built for $soc"
    library_dir=$work/out
  else
    kernels="not built for $soc: $(tail -c 4000 "$work/log")"
  fi
  echo "kernels: $kernels" >&2
fi
status=0
# shellcheck disable=SC2086
"$work/selftest" --root "$root" --out "$out" --device "$device" --library-dir "$library_dir" --kernels "$kernels" $ranks $short || status=$?
exit $status
