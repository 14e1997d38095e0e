#!/usr/bin/env bash
# Builds the benchmarks and the rivals, and runs one scenario for a moment: that they work, not how
# fast they are. Run by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

manifest=bench/Cargo.toml
cargo build --release --locked --workspace --manifest-path "$manifest"
cargo run --release --locked --manifest-path "$manifest" --bin wharf-bench-harness -- echo --quick
