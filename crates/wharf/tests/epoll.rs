//! The conformance suite on epoll.

#![cfg(target_os = "linux")]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Epoll)
}
