#!/usr/bin/env bash
# The library's tests on the completion ports of Windows: built here, run under Wine. Installs what
# is missing from Debian, as root; says what is missing otherwise.
#
#     ci/windows.sh [ARGUMENTS OF CARGO TEST]     ci/windows.sh --test windows -- files
#     ci/windows.sh --check                       compiles only, for all the targets of Windows
#
# The target is the one that programs are built for. The tier-3 target for Windows 7 would need no
# DLL of ours (see below), but nobody builds for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=x86_64-pc-windows-gnu
others=(aarch64-pc-windows-gnullvm i686-pc-windows-gnu)
folder=$PWD/target/windows

# ---- Tools -----------------------------------------------------------------------------------

# has RUSTC WHAT: whether something lies in the compiler's library folder.
has() { compgen -G "$("$1" --print sysroot)/lib/rustlib/$2" >/dev/null; }

look() {
    missing=()
    wine=$(command -v wine64 || command -v /usr/lib/wine/wine64) || missing+=(wine wine64)
    command -v x86_64-w64-mingw32-gcc >/dev/null || missing+=(gcc-mingw-w64-x86-64-win32)
    # A compiler that has the sources of the standard library beside it: rustup's with the component
    # rust-src, or Debian's.
    rustc=
    for candidate in rustc /usr/bin/rustc; do
        if command -v "$candidate" >/dev/null && has "$candidate" src/rust/library/Cargo.lock; then
            rustc=$candidate
            break
        fi
    done
    [[ -n $rustc ]] || missing+=(rustc-web rust-web-src)
    ((${#missing[@]} == 0))
}

if ! look; then
    if ! command -v apt-get >/dev/null || ((EUID != 0)); then
        echo "SKIP windows: not installed here: ${missing[*]} (as Debian calls them)"
        exit 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
    look || { echo "still missing: ${missing[*]}" >&2 && exit 1; }
fi

# The standard library is built from its sources, which wants a flag of a nightly compiler, and the
# compiler that belongs to them.
export RUSTC=$rustc RUSTDOC=${rustc%rustc}rustdoc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$folder
# Backtraces of what goes wrong are worth less than half of the building time.
export CARGO_PROFILE_DEV_DEBUG=line-tables-only
std=-Zbuild-std=std,panic_unwind,test

if [[ ${1-} == --check ]]; then
    for target in "$target" "${others[@]}"; do
        echo "for $target:"
        cargo check --workspace --all-targets --locked "$std" --target "$target"
    done
    exit
fi

# ---- Wine ------------------------------------------------------------------------------------

export WINEPREFIX=$folder/wine WINEDEBUG=-all
if [[ ! -d $WINEPREFIX/drive_c/windows/system32 ]]; then
    mkdir -p "$folder"
    "$wine" wineboot --init
fi
# Its server would otherwise wait a little for the next program.
trap '${wine%wine64}wineserver -k || true' EXIT

# Wine 8.0 lacks a DLL of one function, which Rust's standard library takes its random numbers from.
dll=$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll
if [[ ! -e $dll ]]; then
    x86_64-w64-mingw32-gcc -shared -O1 -x c - -o "$dll" -ladvapi32 <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length) {
    return SystemFunction036(data, (ULONG) length);
}
C
fi

# ---- Tests -----------------------------------------------------------------------------------

export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$wine
cargo test -p wharf -p wharf-cli --locked "$std" --target "$target" "$@"
(($# == 0)) || exit 0

# ---- The program: this one and that one, each as server and as load ----------------------------

cargo build -p wharf-cli --locked "$std" --target "$target"
(unset RUSTC RUSTDOC RUSTC_BOOTSTRAP CARGO_TARGET_DIR && cargo build -p wharf-cli --locked)
linux=(target/debug/wharf)
windows=("$wine" "$folder/$target/debug/wharf.exe")
logs=$folder/program
rm -rf "$logs"
mkdir -p "$logs"
passed=0 failed=0

# verdict NAME COMMAND...: runs it as a test.
verdict() {
    local name=$1
    shift
    if "$@" >"$logs/$name.log" 2>&1; then
        passed=$((passed + 1))
        echo "test program::$name ... ok"
    else
        failed=$((failed + 1))
        echo "test program::$name ... FAILED"
        cat "$logs/$name.log"
    fi
}

# address KIND: where the server whose log is in $log says that it listens.
address() {
    sed -n "s/^listening $1 \([0-9.:]*\).*/\1/p" "$log"
}

# serve NAME COMMAND...: starts a server for everything, and waits until it says where it listens.
serve() {
    log=$logs/$1.server
    : >"$log"
    shift
    # The interface is the first one: loopback, here and there.
    "$@" serve --tcp 127.0.0.1:0 --udp 127.0.0.1:0 --broadcast 0.0.0.0:0 \
        --multicast 239.77.8.1%1:0 >"$log" 2>&1 </dev/null &
    server=$!
    for _ in {1..300}; do
        [[ -z $(address multicast) ]] || return 0
        sleep 0.1
    done
    cat "$log"
    return 1
}

load() {
    "$@" load tcp "$(address tcp)" --connections 20 --size 1000 --depth 4 --seconds 2 --verify
}

# The same with datagrams: all come back, once, and are those that were sent.
load_udp() {
    local target=$1
    shift
    "$@" load udp "$target" --size 1000 --depth 16 --seconds 1 --json |
        grep -E '"lost":0,"duplicates":0,.*"unknown":0,.*"errors":0,'
}

# Several datagrams given to the system at once. More than a buffer may hold: some may be lost.
load_segments() {
    "$@" load udp "$(address udp)" --size 1000 --depth 64 --gso --seconds 1 --json |
        grep -E '"duplicates":0,.*"unknown":0,'
}

load_broadcast() {
    local all
    all=$(address broadcast)
    load_udp "127.255.255.255:${all#*:}" "$@"
}

# loads SERVER CLIENT COMMAND...: everything that one of them serves, with load of the other.
loads() {
    local name=$2_loads_$1
    shift 2
    verdict "$name" load "$@"
    verdict "${name}_with_datagrams" load_udp "$(address udp)" "$@"
    verdict "${name}_with_segments" load_segments "$@"
    verdict "${name}_with_broadcasts" load_broadcast "$@"
}

# serve_files COMMAND...: the same for a folder.
serve_files() {
    log=$logs/files.server
    : >"$log"
    "$@" serve --tcp 127.0.0.1:0 --files "$logs/site" >"$log" 2>&1 </dev/null &
    server=$!
    for _ in {1..300}; do
        [[ -z $(address tcp) ]] || return 0
        sleep 0.1
    done
    cat "$log"
    return 1
}

# By a client that nobody here wrote: all, a part, the rest, and what is not there.
fetch() {
    local url got=$logs/got
    url=http://$(address tcp)
    curl --fail --silent --show-error --noproxy '*' "$url/below/large" --output "$got" &&
        cmp "$got" "$logs/site/below/large" &&
        head -c 1234567 "$logs/site/below/large" >"$got" &&
        curl --fail --silent --noproxy '*' --continue-at - "$url/below/large" --output "$got" &&
        cmp "$got" "$logs/site/below/large" &&
        ! curl --fail --silent --noproxy '*' --path-as-is "$url/..%5cfiles.server"
}

# copy COMMAND...: a large file, compared here.
copy() {
    "$@" copy "$logs/site/below/large" "$logs/copied" --verify &&
        cmp "$logs/site/below/large" "$logs/copied" && rm "$logs/copied"
}

# Ctrl-C in the middle: nothing is left. (It may have been faster.)
interrupted_copy() {
    local copying
    "$@" copy "$logs/site/below/large" "$logs/copied" --depth 1 --block 4K &
    copying=$!
    for _ in {1..1000}; do
        compgen -G "$logs/.copied*.part" >/dev/null && break
        sleep 0.01
    done
    kill -INT "$copying"
    if wait "$copying"; then
        cmp "$logs/site/below/large" "$logs/copied"
    else
        [[ ! -e $logs/copied ]]
    fi && ! compgen -G "$logs/.copied*"
}

# Ctrl-C, which Wine passes on as one: the server drains, and ends well.
stop() {
    kill -INT "$server" && wait "$server" && grep -q '^drained: ' "$log"
}

# Connections that are refused, and a line that says why.
refused() {
    ! "$@" load tcp 127.0.0.1:1 --connections 1 --size 1 --depth 1 --seconds 1
}

echo "     Running wharf as a program of Windows"
verdict the_doctor_finds_a_port "${windows[@]}" doctor
verdict a_refused_load_fails refused "${windows[@]}"
if serve windows "${windows[@]}"; then
    loads windows linux "${linux[@]}"
    loads windows windows "${windows[@]}"
    verdict a_server_drains_at_ctrl_c stop
else
    failed=$((failed + 1))
fi
if serve linux "${linux[@]}"; then
    loads linux windows "${windows[@]}"
    verdict the_linux_server_drains stop
else
    failed=$((failed + 1))
fi
mkdir -p "$logs/site/below"
head -c 50000000 /dev/urandom >"$logs/site/below/large"
verdict windows_copies copy "${windows[@]}"
verdict an_interrupted_copy_leaves_nothing interrupted_copy "${windows[@]}"
if ! command -v curl >/dev/null; then
    echo "SKIP curl_gets_files_from_windows: there is no curl"
elif serve_files "${windows[@]}"; then
    verdict curl_gets_files_from_windows fetch
    verdict a_server_of_files_drains_at_ctrl_c stop
else
    failed=$((failed + 1))
fi
echo "test result: $( ((failed)) && echo FAILED || echo ok). $passed passed; $failed failed; 0 ignored;"
((failed == 0))
