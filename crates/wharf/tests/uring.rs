//! The conformance suite on io_uring, with all that this kernel's has.

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Uring)
}
