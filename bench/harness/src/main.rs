//! The program around the library of the same name.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    wharf_bench_harness::run(std::env::args_os())
}
