//! Registered I/O on Windows: by overlapped calls; and by the system's own, where it has that.
#![cfg(windows)]

mod rio;

use std::{env, process::Command};

use wharf::{
    Driver, ErrorKind,
    rio::{Builder, Region},
};

use self::rio::support::{next, quota, receives, skip};

/// Says what carries the queues, for the same tests once more.
const DRIVER: &str = "WHARF_TEST_RIO_DRIVER";

fn builder(capacity: usize) -> Builder {
    let driver = env::var(DRIVER).map_or(Driver::Iocp, |name| name.parse().unwrap());
    Builder::new(capacity).driver(driver)
}

/// Every test of this file by the system's own Registered I/O. Its sockets are those that the
/// queues bind; those that the tests bring along are not made for it.
#[test]
fn by_the_systems_own() {
    if env::var_os(DRIVER).is_some() {
        return;
    }
    match Builder::new(1).driver(Driver::Rio).polled() {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let reason = error.to_string();
            assert!(reason.contains("Wine"), "{reason}");
            skip("by_the_systems_own", "this system has none");
        }
        Ok(_) => {
            let again = Command::new(env::current_exe().unwrap()).env(DRIVER, "rio").status();
            assert!(again.unwrap().success());
        }
    }
}

/// Would catch: a queue that says nothing of what carries it, or something else.
#[test]
fn a_queue_says_what_carries_it() {
    let overlapped = Builder::new(1).driver(Driver::Iocp).polled().unwrap();
    assert_eq!((overlapped.driver(), overlapped.fallback()), (Driver::Iocp, None));
    let queue = Builder::new(1).polled().unwrap();
    match queue.fallback() {
        Some(reason) => {
            assert_eq!((queue.driver(), reason.kind()), (Driver::Iocp, ErrorKind::Unsupported));
        }
        None => assert_eq!(queue.driver(), Driver::Rio),
    }
    for other in [Driver::Uring, Driver::Epoll] {
        let error = Builder::new(1).driver(other).polled().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    let error = wharf::Builder::new().driver(Driver::Rio).build::<(), ()>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("no port"), "{error}");
}

/// Would catch: calls that belong to the thread that made them, and end with it (Wine ends them).
#[test]
fn requests_outlive_the_thread_that_started_them() {
    let region = Region::new(4, 64).unwrap();
    let mut queue = builder(4).polled().unwrap();
    let socket = queue.udp("127.0.0.1:0", quota(4, 0)).unwrap();
    let address = queue.local_addr(socket).unwrap();
    let mut queue = std::thread::spawn(move || {
        receives(&mut queue, socket, &region, 0..4);
        queue
    })
    .join()
    .unwrap();
    let peer = rio::support::peer();
    for number in 0..4_u8 {
        peer.send_to(&[number], address).unwrap();
        assert_eq!(&next(&mut queue).slice[..], [number]);
    }
}
