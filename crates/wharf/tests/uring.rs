//! The conformance suite on io_uring, with all that this kernel's has.

#![cfg(target_os = "linux")]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Uring)
}
