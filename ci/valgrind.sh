#!/usr/bin/env bash
# The library's tests under valgrind. Slow, so it is run by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v valgrind >/dev/null; then
    echo "SKIP valgrind: it is not installed (Debian: apt-get install valgrind)"
    exit 0
fi

# valgrind does not see what the kernel writes through a ring, and takes every received byte for
# uninitialised: that one check is off. Invalid reads and writes, double frees and leaks stay.
valgrind="valgrind --quiet --error-exitcode=99 --undef-value-errors=no"
valgrind+=" --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite"
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=$valgrind"
# Threads take turns under valgrind, so more of them only make time-outs; fewer cases, for the time.
export PROPTEST_CASES="${PROPTEST_CASES-16}"
cargo test -p wharf --lib --tests "$@" -- --test-threads=1
