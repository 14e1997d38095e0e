#!/usr/bin/env bash
# The documentation, private items included: a broken link or a warning is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export RUSTDOCFLAGS="${RUSTDOCFLAGS-} -D warnings"
# One at a time: the library and the program are both called wharf, and so are their pages. The
# library comes last, so that its pages are the ones that stay.
cargo doc -p wharf-cli --no-deps --document-private-items
cargo doc -p wharf --no-deps --document-private-items
