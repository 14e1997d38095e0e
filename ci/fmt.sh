#!/usr/bin/env bash
# Fails when a file is not as rustfmt would have it. To have it so: cargo fmt --all
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo fmt --all --check
if [[ -f bench/Cargo.toml ]]; then
    cargo fmt --all --check --manifest-path bench/Cargo.toml
fi
