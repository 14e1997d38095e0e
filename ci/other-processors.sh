#!/usr/bin/env bash
# The library's tests on other processors under qemu's user emulation: s390x, which is big-endian,
# and aarch64. It has no io_uring, so it is the driver on epoll that runs there. And whether wharf
# compiles for i686, on which nothing is run. As root on Debian, installs what it needs. Arguments
# choose among the three; .ci/run takes s390x.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the tests say, for the summary of all that ran.
log=target/other-processors/log
mkdir -p "$(dirname "$log")"
: >"$log"

(($#)) || set -- s390x aarch64 i686
packages=(rustc-web rust-web-src)
for processor in "$@"; do
    case $processor in
        s390x) packages+=(qemu-user gcc-s390x-linux-gnu libc6-dev-s390x-cross) ;;
        aarch64) packages+=(qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross) ;;
        i686) ;;
        *)
            echo "other-processors: $processor is none of s390x, aarch64 and i686" >&2
            exit 2
            ;;
    esac
done
if ! dpkg-query --show "${packages[@]}" >/dev/null 2>&1; then
    install=(apt-get install --yes --no-install-recommends "${packages[@]}")
    if ! command -v apt-get >/dev/null || ((EUID != 0)); then
        echo "SKIP other-processors: needs, on Debian and as root: ${install[*]}"
        exit 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    "${install[@]}"
fi

# Debian's compiler has the sources of the standard library beside it, for any target.
export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
# Emulation is slow enough as it is.
export CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_TEST_DEBUG=line-tables-only

tests() {
    local processor=$1 target=$1-unknown-linux-gnu
    local name=${target^^}
    name=${name//-/_}
    local runner="qemu-$processor -L /usr/$processor-linux-gnu"
    export "CARGO_TARGET_${name}_LINKER=$processor-linux-gnu-gcc"
    export "CARGO_TARGET_${name}_RUNNER=$runner"
    # For the tests that run themselves once more.
    export WHARF_TEST_RUNNER=$runner
    # Not the unit tests of io_uring, which qemu does not have.
    cargo test -p wharf -Zbuild-std=std,panic_unwind,test --target "$target" \
        --target-dir target/other-processors --lib --test epoll --no-fail-fast -- \
        --skip sys::uring --test-threads=2 2>&1 | tee --append "$log"
}

check() {
    cargo check -p wharf -Zbuild-std=std,panic_unwind --target "$1-unknown-linux-gnu" \
        --target-dir target/other-processors
}

ran=0
failed=()
for processor in "$@"; do
    echo "== $processor =="
    case $processor in
        i686) check "$processor" || failed+=("$processor") ;;
        *)
            ran=1
            tests "$processor" || failed+=("$processor")
            ;;
    esac
done

if ((ran)); then
    echo "== Tests =="
    ci/summary.sh <"$log" || failed+=("summary")
fi
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
