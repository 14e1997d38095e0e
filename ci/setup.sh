#!/usr/bin/env bash
# Looks for what a build needs: a Rust that is new enough, and a linker. Installs the linker from
# Debian where it may; says what to do about the rest. With --lints, asks for rustfmt and clippy too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)

remedy() {
    cat >&2 <<EOF

wharf needs cargo and rustc $needed or newer: $1

  Debian 12, from its own archive (rustc 1.96 when this was written):
      apt-get update && apt-get install cargo-web rustc-web
  anywhere, with rustup:
      rustup toolchain install stable
EOF
    exit 1
}

command -v cargo >/dev/null || remedy "there is no cargo on the PATH."
command -v rustc >/dev/null || remedy "there is no rustc on the PATH."
found=$(rustc --version | cut -d' ' -f2)
# `sort -C -V` succeeds when its lines are already in order: when what is needed comes first.
printf '%s\n' "$needed" "${found%%-*}" | sort -C -V || remedy "this one is $found."

if [[ ${1-} == --lints ]]; then
    cargo fmt --version >/dev/null 2>&1 || remedy "rustfmt is missing (Debian: rustfmt-web)."
    cargo clippy --version >/dev/null 2>&1 || remedy "clippy is missing (Debian: rust-web-clippy)."
fi

# Rust links through the C compiler. rustup brings none.
if ! command -v cc >/dev/null; then
    install=(apt-get install --yes --no-install-recommends gcc libc6-dev)
    if ! command -v apt-get >/dev/null || ((EUID != 0)); then
        echo "wharf needs a C compiler to link with. On Debian, as root: ${install[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    "${install[@]}"
fi
echo "rustc $found, $(cc --version | head -n 1)"
