#!/usr/bin/env bash
# Fails when a file is not as rustfmt would have it. To have it so: ci/fmt.sh --fix
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

check=(--check)
[[ ${1-} != --fix ]] || check=()

cargo fmt --all "${check[@]}"
cargo fmt --all --manifest-path bench/Cargo.toml "${check[@]}"
# The build script finds these; rustfmt, which follows `mod`, does not.
rustfmt --edition 2024 "${check[@]}" bench/harness/src/scenarios/*.rs
