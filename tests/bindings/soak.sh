#!/usr/bin/env bash
# The soaks of all wrappers side by side, for the night: so many seconds each, ten minutes unless told otherwise.
#   tests/bindings/soak.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
YINIAN_SOAK_SECONDS=${1:-600} CI=true cargo test --release --locked --test bindings -- --nocapture --test-threads=4 --skip java_ soak java::java
