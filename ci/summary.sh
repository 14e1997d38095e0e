#!/usr/bin/env bash
# Reads the output of `cargo test` and prints its summaries, each after the name of what ran, then
# their sum. Fails when no test ran: a suite that ran nothing has proved nothing.
set -euo pipefail

awk '
    /^ *Running / || /^ *Doc-tests / { name = $0; sub(/^ */, "", name) }
    /^test result: / {
        print name
        print
        for (i = 1; i < NF; i++) {
            if ($(i + 1) == "passed;") passed += $i
            if ($(i + 1) == "failed;") failed += $i
            if ($(i + 1) == "ignored;") skipped += $i
        }
    }
    END {
        printf "tests: %d passed, %d failed, %d skipped\n", passed, failed, skipped
        exit passed == 0
    }
'
