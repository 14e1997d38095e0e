#!/usr/bin/env bash
# build.sh NAME FOLDER: builds the rival NAME, a C or C++ file beside this script, as
# FOLDER/rival-NAME, if it is not there or older. In the file's first comment, "flags:" has what the
# compiler is told, and "package:" what it needs of Debian.
set -euo pipefail

name=$1 folder=$(realpath --canonicalize-missing "$2")
out=$folder/rival-$name
cd "$(dirname "${BASH_SOURCE[0]}")"
case $(echo "$name".c*) in
*.c) source=$name.c compiler=${CC:-cc} ;;
*.cpp) source=$name.cpp compiler=${CXX:-c++} ;;
*) echo "there is no $name.c or $name.cpp" >&2 && exit 1 ;;
esac
[[ ! -x $out || $source -nt $out || rival.h -nt $out || build.sh -nt $out ]] || exit 0

# field NAME: what the first comment says about it.
field() { sed -n "s|^[/* ]*$1: ||p" "$source" | head -n 1; }

command -v "$compiler" >/dev/null || { echo "there is no $compiler (Debian: g++)" >&2 && exit 1; }
mkdir -p "$folder"
if ! errors=$("$compiler" -O3 -Wall -Wextra -o "$out.new" "$source" $(field flags) 2>&1); then
    echo "$errors" >&2
    reason=$(grep -m 1 -oE '(error|cannot find).*' <<<"$errors") || reason="it does not compile"
    echo "$reason (it needs Debian's $(field package): apt-get install $(field package))" >&2
    exit 1
fi
mv "$out.new" "$out"
