//! The conformance suite on epoll.

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Epoll)
}
