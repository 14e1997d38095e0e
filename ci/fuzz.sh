#!/usr/bin/env bash
# Every fuzz target for a while: ci/fuzz.sh [SECONDS], by default 60 each. Needs a nightly toolchain, so
# it is run by hand; installs cargo-fuzz into the cache folder. What it finds lies in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"

if ! rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
    echo "SKIP fuzz: there is no nightly toolchain (rustup toolchain install nightly)"
    exit 0
fi

version=0.13.1
tools=${XDG_CACHE_HOME:-$HOME/.cache}/wharf/cargo-fuzz-$version
if [[ ! -x $tools/bin/cargo-fuzz ]]; then
    cargo install --quiet --locked --root "$tools" "cargo-fuzz@$version"
fi

for target in fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    echo "$name:"
    PATH=$tools/bin:$PATH cargo +nightly fuzz run --fuzz-dir . "$name" -- \
        -max_total_time="${1-60}" -max_len=512 -print_final_stats=1
done
