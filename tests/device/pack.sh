#!/usr/bin/env bash
# Builds everything that a machine with a GPU needs to test and measure this library, without Rust or a network there: test and
# bench programs with the kernels in them, test data, and run.sh. It comes to lie in target/device-kit and, packed, in
# target/device-kit.tar.xz, which is what travels: `tar xJf device-kit.tar.xz && device-kit/run.sh`.
# FlashInfer's kernels travel too, as a measuring stick, when flashinfer/build.sh has built target/flashinfer_bench.
set -euo pipefail
cd "$(dirname "$0")/../.."
# Tests and benches that travel, as Cargo.toml names them, and the most bytes that all may have.
programs=(conformance golden workloads latency load faults gpu_ops)
most=$((40 * 1000 * 1000))

kernels/fetch_compiler.sh
kit=target/device-kit
rm -rf "$kit" "$kit.tar.xz"
mkdir -p "$kit/bin" "$kit/tests/conformance" "$kit/tests/device" "$kit/examples"
arguments=()
for name in "${programs[@]}"; do
  section=$(grep -B1 -x "name = \"$name\"" Cargo.toml | head -1)
  case $section in
    '[[test]]') arguments+=(--test "$name") ;;
    '[[bench]]') arguments+=(--bench "$name") ;;
    *) echo "pack.sh: Cargo.toml has no test or bench $name, it stays at home" >&2 ;;
  esac
done
cargo test --release --locked --no-run --message-format=json "${arguments[@]}" |
  sed -n 's/.*"name":"\([a-z_]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' |
  while read -r name path; do strip -o "$kit/bin/$name" "$path"; done
cp tests/conformance/*.json "$kit/tests/conformance/"
cp -r tests/golden "$kit/tests/"
cp tests/device/launches.c "$kit/tests/device/"
cp -r examples/demo_model "$kit/examples/"
cp tests/device/run.sh "$kit/"
if [[ -x target/flashinfer_bench ]]; then cp target/flashinfer_bench "$kit/bin/"; fi
# The programs share most of their code, so the dictionary spans them all.
tar -C target -cf - device-kit | xz -T1 --lzma2=preset=5,dict=128MiB >"$kit.tar.xz"
du -sh "$kit" "$kit.tar.xz"
bytes=$(stat -c %s "$kit.tar.xz")
((bytes <= most)) || { echo "pack.sh: $kit.tar.xz has $bytes bytes; at most $most may travel" >&2; exit 1; }
