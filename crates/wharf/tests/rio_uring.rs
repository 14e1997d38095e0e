//! Registered I/O on io_uring.
#![cfg(target_os = "linux")]

mod rio;

fn builder(capacity: usize) -> wharf::rio::Builder {
    wharf::rio::Builder::new(capacity).driver(wharf::Driver::Uring)
}
