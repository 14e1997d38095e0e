#!/usr/bin/env bash
# Clippy and the compiler's lints, over tests, examples and benches too. A warning is a failure, and
# so is a Cargo.lock that does not fit the manifests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo clippy --workspace --all-targets --locked -- -D warnings
