//! The conformance suite on the completion ports of Windows.

#![cfg(windows)]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Iocp)
}

/// Would catch: a choice of driver that is not heeded, or that takes one of another system.
#[test]
fn the_drivers_of_other_systems_are_refused() {
    use wharf::{Builder, Driver, ErrorKind};
    let driver = |driver| Builder::new().driver(driver).build::<(), ()>().map(|port| port.driver());
    assert_eq!(driver(Driver::Auto), Ok(Driver::Iocp));
    for other in [Driver::Uring, Driver::Epoll] {
        let error = driver(other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("iocp"), "{error}");
    }
}
