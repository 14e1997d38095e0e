#!/usr/bin/env bash
# A long run of the server under changing load: connections from 1 to 2,000, messages from 1 byte to
# 1 MiB, every byte compared, clients that are killed in the middle, and a handler that blocks. Fails at a
# wrong byte, a server that dies, descriptors that are not given back, or memory that keeps growing.
#
# usage: ci/soak.sh [MINUTES (10)] [SERVE OPTION...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:-10}
shift || true

target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --quiet --release --locked -p wharf-cli
wharf=$target/release/wharf
scratch=$(mktemp -d)
servers=()
cleanup() {
    for server in "${servers[@]}"; do
        kill -KILL "$server" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    echo "soak: $*" >&2
    tail -n 5 "$scratch"/*.err >&2
    exit 1
}

ulimit -n "$(ulimit -Hn)"

# serve NAME OPTION...: starts a server; its address is in ${address[NAME]}.
declare -A address pid
serve() {
    local name=$1
    shift
    : >"$scratch/$name.out"
    "$wharf" serve --tcp 127.0.0.1:0 --json "$@" </dev/null >"$scratch/$name.out" \
        2>"$scratch/$name.err" &
    pid[$name]=$!
    servers+=("$!")
    for ((attempt = 0; attempt < 100; attempt++)); do
        address[$name]=$(sed -n 's/^listening tcp //p' "$scratch/$name.out")
        [[ -z ${address[$name]} ]] || return 0
        sleep 0.1
    done
    fail "the server $name does not listen"
}
serve echo "$@"
serve block --service block --size 64 "$@"

resident() { awk '/^VmRSS/ { print $2 }' "/proc/${pid[$1]}/status"; }
descriptors() { find "/proc/${pid[$1]}/fd" -mindepth 1 | wc -l; }
one_of() { local options=("$@"); echo "${options[RANDOM % $#]}"; }

declare -A first_descriptors high
for name in echo block; do
    first_descriptors[$name]=$(descriptors "$name")
    high[$name]=0
done

end=$((SECONDS + minutes * 60))
rounds=0 killed=0
while ((SECONDS < end)); do
    size=$(one_of 1 64 64 4096 65536 1048576)
    connections=$(one_of 1 7 50 500 2000)
    ((size < 65536 || connections < 500)) || connections=50
    depth=$(one_of 1 1 4 32)
    ((size < 65536)) || depth=1
    load=("$wharf" load tcp "${address[echo]}" --connections "$connections" --size "$size"
        --depth "$depth" --seconds 3 --verify --json)
    if ((RANDOM % 4 == 0)); then
        # Killed in the middle: the server meets resets, and data that nobody will read.
        { timeout --signal=KILL 1.5 "${load[@]}" </dev/null || true; } >/dev/null 2>&1
        killed=$((killed + 1))
    else
        "${load[@]}" >"$scratch/load.json" 2>"$scratch/load.err" </dev/null ||
            fail "load failed: ${load[*]}"
        grep -qE '"mismatches": ?0[,}]' "$scratch/load.json" || fail "wrong bytes: ${load[*]}"
    fi
    "$wharf" load tcp "${address[block]}" --connections 20 --size 64 --seconds 1 --json \
        --block-every 100 --block-ms 10 >"$scratch/load.json" 2>"$scratch/load.err" </dev/null || fail "load on blocking handlers"
    for name in echo block; do
        kill -0 "${pid[$name]}" 2>/dev/null || fail "the server $name has died"
        rss=$(resident "$name")
        ((rss <= high[$name])) || high[$name]=$rss
    done
    rounds=$((rounds + 1))
    # After a tenth of the time everything has been as large as it gets, but for fragments.
    if ((rounds == 10)); then
        for name in echo block; do
            declare "early_$name=${high[$name]}"
        done
    fi
    if [[ -t 2 ]]; then
        printf '\rsoak: %d rounds, %d killed, %d s left, %d KiB ' \
            "$rounds" "$killed" "$((end - SECONDS))" "$(resident echo)" >&2
    fi
done
[[ ! -t 2 ]] || echo >&2

sleep 1
for name in echo block; do
    now=$(descriptors "$name")
    # The watch over blocked handlers keeps a file open for each worker.
    ((now <= first_descriptors[$name] + 32)) ||
        fail "$name: $now descriptors are open, ${first_descriptors[$name]} were at the start"
    early=early_$name
    if ((rounds > 20 && $(resident "$name") > 2 * ${!early} + 65536)); then
        fail "$name: memory grows: ${!early} KiB after 10 rounds, $(resident "$name") KiB now"
    fi
    kill -TERM "${pid[$name]}"
    wait "${pid[$name]}" || fail "$name did not end well"
    echo "$name: highest ${high[$name]} KiB; $(tail -n 1 "$scratch/$name.out")"
done
echo "soak: $rounds rounds in $minutes minutes, $killed loads killed in the middle, no byte wrong"
