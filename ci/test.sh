#!/usr/bin/env bash
# The tests, with the README's own command. Arguments are handed on: ci/test.sh -- --nocapture
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec cargo test --workspace "$@"
