//! Registered I/O by overlapped calls, as it is where Windows has no functions for it.
#![cfg(windows)]

mod rio;

fn builder(capacity: usize) -> wharf::rio::Builder {
    wharf::rio::Builder::new(capacity).driver(wharf::Driver::Iocp)
}
