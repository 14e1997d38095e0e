#!/usr/bin/env bash
# What no compiler looks for: left-over markers and debugging, long lines, one machine's paths,
# trailing blanks. Looks at every file that git has or would add.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# So that a column is a character and not a byte.
export LC_ALL=C.UTF-8
status=0

# reject WHAT PATTERN FILES...: fails when the pattern stands in one of the files.
reject() {
    local what=$1 pattern=$2 found=0
    shift 2
    git grep --untracked -nIP -e "$pattern" -- "$@" ':!ci/tidy.sh' || found=$?
    case $found in
    0) echo "tidy: $what" >&2 && status=1 ;;
    1) ;;
    *) exit "$found" ;;
    esac
}

reject "a marker left over: finish it, or say what is missing and why" '\b(FIXME|TODO|XXX)\b' '*'
reject "a debugging macro" '\bdbg!' '*.rs'
# A row of a table in a doc comment cannot be broken.
reject "a line of more than 100 columns" '^(?!\s*//[/!] \|).{101,}$' '*.rs'
reject "a path of one machine" '(?<![\w.}~-])/(work|root|home)\b(?!-)' '*'
reject "blanks at the end of a line" '[ \t]+$' '*' ':!LICENSE-*'

exit "$status"
