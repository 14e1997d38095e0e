#!/usr/bin/env bash
# The models: small unit tests whose path contains `model`, run by loom under every interleaving of
# their threads, up to LOOM_MAX_PREEMPTIONS. Arguments are handed on: ci/loom.sh parking
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export RUSTFLAGS="${RUSTFLAGS-} --cfg loom"
# Three forced switches find nearly every bug; each more multiplies the time. Raise it by hand.
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS-3}"
# Optimised, because a model runs many thousand times; checked, because that is what it is for.
export CARGO_PROFILE_RELEASE_LTO=off
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true

# A target folder of its own: other flags would rebuild everything in the usual one.
mkdir -p target/loom
log=target/loom/output.log
cargo test -p wharf --release --lib --target-dir target/loom model -- "$@" 2>&1 | tee "$log"

if grep -q '^running 0 tests' "$log"; then
    echo "loom: no model ran" >&2
    exit 1
fi
