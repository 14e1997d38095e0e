#!/usr/bin/env bash
# The full report, for docs/bench: everything is measured, in some 30 minutes on two CPUs, and written as
# figures (JSON), as a page (HTML), and as those plots that the README shows. On a machine that has
# nothing else to do: the report says so where it had.
#
# Options are those of wharf bench: bench/full.sh --rounds 9
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -n $(git status --porcelain) ]]; then
    echo "commit first: the report names the commit that it measures" >&2
    exit 1
fi
if awk '{ exit !($1 > 0.5) }' /proc/loadavg; then
    echo "careful: others use this machine (load $(cut -d' ' -f1 /proc/loadavg))" >&2
fi

bench() { cargo run --release --locked --quiet -p wharf-cli -- bench "$@"; }

mkdir -p docs/bench
status=0
bench --wait --json docs/bench/report.json --html docs/bench/report.html "$@" || status=$?
# 1: a row has failed, and the report says which; the rest is worth keeping.
((status <= 1)) || exit "$status"

plots=$(mktemp -d)
trap 'rm -rf "$plots"' EXIT
bench report docs/bench/report.json --plots "$plots"
# The first table of a scenario is the one with the base of each parameter.
cp "$plots"/echo-1-cpu_ns.svg "$plots"/blocking-rate-1-latency.svg docs/bench/
echo "written: docs/bench"
exit "$status"
