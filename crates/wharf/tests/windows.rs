//! The conformance suite on the completion ports of Windows.

#![cfg(windows)]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new()
}
