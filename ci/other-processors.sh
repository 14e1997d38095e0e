#!/usr/bin/env bash
# The library's tests on other processors, a big-endian one among them, under qemu's user emulation.
# It has no io_uring, so it is the driver on epoll that runs there. And whether wharf compiles for
# processors on which nothing is run. Slow (it builds the standard library for each), so it is run by
# hand. As root on Debian, installs what it needs. Arguments name targets: aarch64 s390x i686
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
    rustc-web rust-web-src qemu-user
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-s390x-linux-gnu libc6-dev-s390x-cross
)
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
    export "CARGO_TARGET_${name}_LINKER=$processor-linux-gnu-gcc"
    export "CARGO_TARGET_${name}_RUNNER=qemu-$processor -L /usr/$processor-linux-gnu"
    echo "SKIP $processor: the unit tests of io_uring, which qemu does not have"
    cargo test -p wharf -Zbuild-std=std,panic_unwind,test --target "$target" \
        --target-dir target/other-processors --lib --test epoll -- \
        --skip sys::uring --test-threads=2
}

check() {
    cargo check -p wharf -Zbuild-std=std,panic_unwind --target "$1-unknown-linux-gnu" \
        --target-dir target/other-processors
}

for processor in "${@:-aarch64 s390x i686}"; do
    for processor in $processor; do
        echo "== $processor =="
        case $processor in
            aarch64 | s390x) tests "$processor" ;;
            *) check "$processor" ;;
        esac
    done
done
