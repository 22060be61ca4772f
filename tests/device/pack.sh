#!/usr/bin/env bash
# Builds everything that a machine with a GPU needs to test and measure this library, without Rust or a network there, and
# puts it into target/device-kit: test and bench programs with the kernels in them, test data, and run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
kernels/fetch_compiler.sh
kit=target/device-kit
rm -rf "$kit"
mkdir -p "$kit/bin" "$kit/tests/conformance" "$kit/examples"
built=$(cargo test --release --locked --no-run --message-format=json --test conformance --test golden --bench workloads --bench gpu_ops |
  sed -n 's/.*"name":"\([a-z_]*\)".*"executable":"\([^"]*\)".*/\1 \2/p')
while read -r name path; do
  strip -o "$kit/bin/$name" "$path"
done <<<"$built"
cp tests/conformance/*.json "$kit/tests/conformance/"
cp -r tests/golden "$kit/tests/"
cp -r examples/demo_model "$kit/examples/"
cp tests/device/run.sh "$kit/"
du -sh "$kit"
