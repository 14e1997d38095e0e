#!/usr/bin/env bash
# The library's tests under AddressSanitizer, which also reports leaks. Slow, and needs a nightly
# toolchain, so it is run by hand. The standard library is not instrumented.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
    echo "SKIP asan: there is no nightly toolchain (rustup toolchain install nightly)"
    exit 0
fi

flags="-Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer"
export RUSTFLAGS="${RUSTFLAGS-} $flags" RUSTDOCFLAGS="${RUSTDOCFLAGS-} $flags"
# With --target, the flags reach the tests and not the build scripts.
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
cargo +nightly test -p wharf --target "$host" --target-dir target/asan "$@"
