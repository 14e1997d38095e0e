//! Machines that refuse: a port that cannot be made says why, and what to do; one that can be made
//! smaller is.
//!
//! Each runs in a process of its own, which gives something up for good.

use std::io::Write;

use wharf::{Buf, ErrorKind, Port};

use super::support::{child_has_run, in_child, skip};

/// Refuses a system call in this process from now on, as a container's profile does.
fn refuse(call: libc::c_long, errno: i32) {
    let call = u32::try_from(call).unwrap();
    let errno = u32::try_from(errno).unwrap();
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // Load the number of the call; if it is this one, go on to the refusal, else let it be.
    let mut filter = [
        statement(0x20, 0),
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: call },
        statement(0x06, libc::SECCOMP_RET_ERRNO | errno),
        statement(0x06, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the filter lives across the calls, which copy it; the process is this test's own.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

fn refusal(errno: i32) -> wharf::Error {
    refuse(libc::SYS_io_uring_setup, errno);
    crate::builder().build::<(), ()>().unwrap_err()
}

/// Would catch: a panic, a hang, or an error that does not name the remedy.
#[test]
fn a_seccomp_profile_that_refuses_io_uring_is_named() {
    if !in_child(module_path!(), "a_seccomp_profile_that_refuses_io_uring_is_named") {
        return;
    }
    let error = refusal(libc::EPERM);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let said = error.to_string();
    assert!(said.contains("seccomp") && said.contains("io_uring_disabled"), "{said}");
    assert!(wharf::probe().is_err());
    child_has_run();
}

/// Would catch: the same where the profile hides the call.
#[test]
fn a_kernel_without_io_uring_is_named() {
    if !in_child(module_path!(), "a_kernel_without_io_uring_is_named") {
        return;
    }
    let error = refusal(libc::ENOSYS);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("no io_uring"), "{error}");
    child_has_run();
}

/// Would catch: a port that gives up because its first rings have taken all the memory that may
/// be locked, or one that works no more with the small ones it can have.
#[test]
fn little_locked_memory_makes_smaller_rings() {
    const NAME: &str = "little_locked_memory_makes_smaller_rings";
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return skip(NAME, "only root can become somebody else, whose memory is counted");
    }
    if !in_child(module_path!(), NAME) {
        return;
    }
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // An id that nobody else uses, not even this test where it runs twice at once: the memory of
    // all processes of a user counts. Small enough for a container that has 65,536 ids.
    let id = 20_000 + std::process::id() % 40_000;
    // SAFETY: the limit lives across the call. The process is this test's own.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert_eq!(libc::setgid(id), 0);
        assert_eq!(libc::setuid(id), 0);
    }
    let port: Port<()> = crate::builder().concurrency(3).build().unwrap();
    let listener = port.listen("127.0.0.1:0", ()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut peers: Vec<_> =
        (0..40).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    listener.accept().unwrap();
    for peer in &mut peers {
        peer.write_all(b"hello").unwrap();
    }
    let mut received = 0;
    while received < peers.len() {
        let packet = port.wait().packet().unwrap();
        packet.result.unwrap();
        match packet.op {
            wharf::Op::Accept { incoming: Some(new), .. } => {
                new.associate(()).unwrap().recv(Buf::pooled()).unwrap();
            }
            wharf::Op::Recv { buf, .. } => {
                assert_eq!(&buf[..], b"hello");
                received += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    // So many do not fit, however small: the limit is in force, and the error names it.
    let error = crate::builder().concurrency(64).build::<(), ()>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
    child_has_run();
}
