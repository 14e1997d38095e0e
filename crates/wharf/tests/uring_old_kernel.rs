//! The conformance suite on io_uring as kernels before Linux 5.19 have it.

#![cfg(target_os = "linux")]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Uring).pretend_old_kernel()
}
