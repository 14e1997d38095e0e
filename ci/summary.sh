#!/usr/bin/env bash
# Reads the output of `cargo test` and prints its summaries, each after the name of what ran, then a
# line for each driver's suite and their sum. A test that has said SKIP is skipped, whatever the test
# harness thinks of it. Fails when no test ran: a suite that ran nothing has proved nothing.
set -euo pipefail

awk '
    /^ *Running / || /^ *Doc-tests / {
        name = $0
        sub(/^ */, "", name)
        suite = ""
        if (match(name, /tests\/(uring|uring_old_kernel|epoll|windows)\.rs/))
            suite = substr(name, RSTART + 6, RLENGTH - 9)
        if (name ~ /as a program of Windows/) suite = "windows_program"
        if (suite != "" && match(name, /other-processors\/[a-z0-9_]+-/))
            suite = suite " on " substr(name, RSTART + 17, RLENGTH - 18)
        said = 0
    }
    /(^|[^A-Za-z])SKIP [a-z_]+: / { said++ }
    /^test result: / {
        print name
        print
        for (i = 1; i < NF; i++) {
            if ($(i + 1) == "passed;") passed = $i
            if ($(i + 1) == "failed;") failed = $i
            if ($(i + 1) == "ignored;") skipped = $i
        }
        if (said > passed) said = passed
        all_passed += passed - said
        all_failed += failed
        all_skipped += skipped + said
        # Suites of other systems are compiled, and run nothing.
        if (suite != "" && passed + failed > 0)
            lines = lines sprintf("%s: %d passed, %d failed, %d skipped\n",
                suite, passed - said, failed, skipped + said)
        said = 0
    }
    END {
        printf "%s", lines
        printf "tests: %d passed, %d failed, %d skipped\n", all_passed, all_failed, all_skipped
        exit all_passed == 0
    }
'
