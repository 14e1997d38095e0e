#!/usr/bin/env bash
# The benchmarks, as a smoke test: lints and builds them with all rivals, runs their tests (a page in headless
# Chromium among them) and `wharf bench --quick`. That they work, not how fast anybody is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

manifest=bench/Cargo.toml
out=target/bench-smoke
mkdir -p "$out"

# What Debian has for the rivals in C and C++, nginx among them with the load that it is put under, and to
# look at the page. Without it, those rows and that
# test say that they are skipped.
packages=()
command -v c++ >/dev/null || packages+=(g++)
[[ -e /usr/include/boost/asio.hpp ]] || packages+=(libboost-dev)
[[ -e /usr/include/uv.h ]] || packages+=(libuv1-dev)
command -v wrk >/dev/null || packages+=(wrk)
[[ -x /usr/sbin/nginx ]] || packages+=(nginx-light)
command -v chromium >/dev/null || packages+=(chromium)
if ((${#packages[@]})); then
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update --quiet && apt-get install --yes --no-install-recommends "${packages[@]}"; } \
            >"$out/apt.log" 2>&1 || echo "SKIP bench: cannot install ${packages[*]}"
        # Where services are started when they are installed: this one is not wanted as a service.
        [[ " ${packages[*]} " != *" nginx-light "* ]] || service nginx stop >>"$out/apt.log" 2>&1 || true
    else
        echo "SKIP bench: not installed: ${packages[*]}"
    fi
fi

cargo clippy --locked --quiet --workspace --all-targets --manifest-path "$manifest" -- -D warnings

# Those that have tests, without the optimisation across crates that only figures need.
cargo test --locked --quiet --manifest-path "$manifest" -p wharf-bench-harness -p rival-common

status=0
cargo run --release --locked --quiet -p wharf-cli -- bench --quick --wait \
    --json "$out/quick.json" --html "$out/quick.html" >"$out/quick.txt" || status=$?
cat "$out/quick.txt"
((status == 0 || status == 1)) || { echo "wharf bench ended with $status" >&2 && exit 1; }
[[ -s $out/quick.json && -s $out/quick.html ]]

# glommio needs locked memory that not every machine grants, and Debian's libraries may be missing; both
# are said by name. Nobody else may fail.
failed=$(grep -E '^   [a-z:-]+: failed: ' "$out/quick.txt" || true)
if [[ -n $failed ]]; then
    sed 's/^ */SKIP bench: /' <<<"$failed" | sort -u
    ! grep -vE '^   (glommio|asio|libuv): |(wrk|nginx) is not installed' <<<"$failed" || { echo "a rival failed" >&2 && exit 1; }
fi
