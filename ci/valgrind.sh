#!/usr/bin/env bash
# The library's tests under valgrind, those that work there. Slow, so it is run by hand. Arguments
# are the tests to run instead of those below: ci/valgrind.sh serial_mode_can_be_left
#
# valgrind (3.19, at least) lets one thread run at a time, and holds its lock while a thread is in
# io_uring_enter, because it does not know that this call can block. A test in which a worker sleeps
# in the port until another thread does something therefore hangs for ever. What is left are tests
# that start operations, see to it that they end, and take the packets, on one thread: these are
# about who owns and frees what, which is what valgrind is for. ci/asan.sh runs all tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v valgrind >/dev/null; then
    echo "SKIP valgrind: it is not installed (Debian: apt-get install valgrind)"
    exit 0
fi

# In the order of their files. A name also stands for those that begin with it.
tests=(
    lifecycle::a_handle_is
    lifecycle::a_port_is
    lifecycle::everything_is_cancelled
    lifecycle::the_peer_ends
    lifecycle::the_peer_resets
    operations::a_cancelled_receive_takes_nothing
    operations::a_deadline_counts_from_when_the_operation_reaches_the_kernel
    operations::a_pooled_buffer_outlives_its_port
    operations::a_receive_without_room_waits_for_data
    operations::all_operations_are_cancelled
    operations::buffers_come_back_with_failures_too
    operations::deadlines_
    operations::each_operation_gives_one_packet
    operations::every_kind_of_buffer_
    operations::more_is_in_flight_than_the_rings_hold
    operations::one_operation_is_cancelled
    operations::pooled_buffers_take_what_fits
    operations::receives_that_wait_for_buffers_can_be_cancelled
    operations::refused_operations_give_their_buffers_back
    operations::silent_operations_free_their_buffers
    operations::the_context_of_a_repeated_receive_comes_with_its_last_packet
    port::a_worker_keeps_its_packet_when_the_port_closes
    port::dropping_a_port_frees_what_is_left
    port::the_last_clone_ends_the_port_and_handles_do_not_keep_it
    serial::a_serial_connection_can_be_closed_and_cancelled
    serial::serial_mode_can_be_left
    serial::silent_operations_take_no_turn
    serial::the_next_packet_comes_when_the_turn_is_dropped
)
if (($#)); then
    tests=("$@")
else
    echo "SKIP valgrind: tests with several threads, which hang in it; see the script"
fi

# valgrind does not see what the kernel writes through a ring, and takes every received byte for
# uninitialised: that one check is off. Invalid reads and writes, double frees and leaks stay.
valgrind="valgrind --quiet --error-exitcode=99 --undef-value-errors=no"
valgrind+=" --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite"
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=$valgrind"
# Should one hang all the same: the harness cannot end it.
log=target/valgrind.log
mkdir -p target
timeout --kill-after=10s 15m cargo test -p wharf --test uring --test uring_old_kernel -- \
    --test-threads=1 "${tests[@]}" 2>&1 | tee "$log"

if ! grep -q '^test .* ok$' "$log"; then
    echo "valgrind: no test ran" >&2
    exit 1
fi
