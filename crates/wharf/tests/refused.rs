//! Machines that refuse: a port that cannot be made says why, and what to do; one that can be made
//! smaller is.
//!
//! Each runs in a process of its own, which gives something up for good.

#![cfg(target_os = "linux")]

use std::{io::Write, time::Duration};

use wharf::{
    Buf, Builder, Driver, ErrorKind, Port, Wait,
    rio::{self, CompletionQueue, Event, Quota, Region},
};

#[expect(dead_code, reason = "the conformance suite uses all of it")]
#[path = "conformance/support.rs"]
mod support;

fn builder() -> Builder {
    Builder::new().driver(Driver::Uring)
}

mod machine {
    use super::{
        support::{child_has_run, in_child, skip},
        *,
    };

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
            let set =
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        }
    }

    fn refusal(errno: i32) -> wharf::Error {
        refuse(libc::SYS_io_uring_setup, errno);
        builder().build::<(), ()>().unwrap_err()
    }

    /// Lets the choice be the library's, or that of the person who runs the program.
    fn automatic(variable: Option<&str>) -> Builder {
        // SAFETY: the process is this test's own, and its other threads do not look.
        unsafe {
            match variable {
                Some(value) => std::env::set_var("WHARF_DRIVER", value),
                None => std::env::remove_var("WHARF_DRIVER"),
            }
        }
        Builder::new()
    }

    /// Lets messages go through a port.
    fn exchange(port: &Port<()>) {
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

    /// Lets this process lock 64 KiB of memory and no more.
    fn lock_little() {
        let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
        // An id that nobody else uses, not even this test where it runs twice at once: the memory
        // of all processes of a user counts. Small enough for a container that has 65,536 ids.
        let id = 20_000 + std::process::id() % 40_000;
        // SAFETY: the limit lives across the call. The process is this test's own.
        unsafe {
            assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
            assert_eq!(libc::setgid(id), 0);
            assert_eq!(libc::setuid(id), 0);
        }
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
        lock_little();
        exchange(&builder().concurrency(3).build().unwrap());
        // So many do not fit, however small: the limit is in force, and the error names it.
        let error = builder().concurrency(64).build::<(), ()>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
        child_has_run();
    }

    /// Would catch: a read or a write that fails because its memory cannot be registered.
    #[test]
    fn memory_that_may_not_be_locked_is_read_into_and_written_all_the_same() {
        const NAME: &str = "memory_that_may_not_be_locked_is_read_into_and_written_all_the_same";
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            return skip(NAME, "only root can become somebody else, whose memory is counted");
        }
        if !in_child(module_path!(), NAME) {
            return;
        }
        let path = std::env::temp_dir().join(format!("wharf-test-memlock-{}", std::process::id()));
        let content: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
        std::fs::write(&path, &content).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        lock_little();
        let port = builder().concurrency(1).ring_entries(8).build::<u32, ()>().unwrap();
        let file = wharf::File::associate(&port, file, 1).unwrap();
        let (large, small) = (Region::new(2, 1 << 20).unwrap(), Region::new(1, 4000).unwrap());
        for _ in 0..100 {
            for region in [&large, &small] {
                let mut slice = region.slice(0).unwrap();
                file.read_at(slice, 0).unwrap();
                let packet = port.wait().packet().unwrap();
                packet.result.unwrap();
                let wharf::Op::Read { buf, .. } = packet.op else { panic!("{:?}", packet.op) };
                assert_eq!(buf[..], content[..region.slice_bytes()]);
                slice = buf.into_slice().unwrap();
                file.write_at(slice, 0).unwrap();
                assert_eq!(port.wait().packet().unwrap().result, Ok(region.slice_bytes()));
            }
        }
        // The limit is in force.
        let rings = std::fs::read_dir("/proc/self/fdinfo").unwrap();
        let rings = rings.map(|entry| std::fs::read_to_string(entry.unwrap().path()));
        let all: String = rings.filter_map(Result::ok).collect();
        assert!(all.contains("UserBufs:") && !all.contains(&large_length(&large)), "{all}");
        child_has_run();
    }

    /// How a ring would name a region.
    fn large_length(region: &Region) -> String {
        let [one, other] = [0, 1].map(|index| region.slice(index).unwrap().as_ptr().addr());
        format!("/{}\n", (other - one) * region.slice_count())
    }

    /// Would catch: a fallback that does not happen, does not work, or does not say why.
    #[test]
    fn where_io_uring_is_refused_epoll_carries_the_port() {
        if !in_child(module_path!(), "where_io_uring_is_refused_epoll_carries_the_port") {
            return;
        }
        refuse(libc::SYS_io_uring_setup, libc::EPERM);
        let port = automatic(None).build().unwrap();
        assert_eq!(port.driver(), Driver::Epoll);
        let reason = port.fallback().unwrap();
        assert_eq!(reason.kind(), ErrorKind::PermissionDenied);
        assert!(reason.to_string().contains("seccomp"), "{reason}");
        exchange(&port);
        // Who insists is told.
        assert!(automatic(Some("uring")).build::<(), ()>().is_err());
        // Who has chosen need not be told.
        assert!(automatic(Some("epoll")).build::<(), ()>().unwrap().fallback().is_none());
        child_has_run();
    }

    /// Has a queue take a datagram, and have itself told of it.
    fn datagram(queue: &mut CompletionQueue<Event>) {
        let region = Region::new(1, 64).unwrap();
        let socket = queue.udp("127.0.0.1:0", Quota { receives: 1, sends: 0 }).unwrap();
        queue.receive(socket, region.slice(0).unwrap()).unwrap();
        queue.notify().unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(b"hello", queue.local_addr(socket).unwrap()).unwrap();
        assert!(queue.wait(Some(Duration::from_secs(20))).unwrap());
        assert_eq!(&queue.dequeue().unwrap().unwrap().slice[..], b"hello");
        queue.close(socket).unwrap();
    }

    /// Would catch: Registered I/O that is not there where io_uring is refused, does not work, or
    /// does not say why it is another; and that is another where it was not asked for.
    #[test]
    fn where_io_uring_is_refused_plain_calls_carry_registered_io() {
        const NAME: &str = "where_io_uring_is_refused_plain_calls_carry_registered_io";
        if !in_child(module_path!(), NAME) {
            return;
        }
        automatic(None);
        assert_eq!(CompletionQueue::event(1).unwrap().driver(), Driver::Uring);
        refuse(libc::SYS_io_uring_setup, libc::EPERM);
        let mut queue = CompletionQueue::event(1).unwrap();
        assert_eq!(queue.driver(), Driver::Epoll);
        let reason = queue.fallback().unwrap();
        assert_eq!(reason.kind(), ErrorKind::PermissionDenied);
        assert!(reason.to_string().contains("seccomp"), "{reason}");
        datagram(&mut queue);
        // A port tells of it, and is itself on epoll.
        let port = Port::<(), u32>::new(1).unwrap();
        let region = Region::new(1, 64).unwrap();
        let mut queue = CompletionQueue::through(&port, 1).unwrap();
        let socket = queue.udp("127.0.0.1:0", Quota { receives: 1, sends: 0 }).unwrap();
        queue.receive(socket, region.slice(0).unwrap()).unwrap();
        queue.notify(7).unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(b"hello", queue.local_addr(socket).unwrap()).unwrap();
        assert!(matches!(port.wait().packet().unwrap().op, wharf::Op::Posted(7)));
        assert_eq!(&queue.dequeue().unwrap().unwrap().slice[..], b"hello");
        // Who insists is told.
        let refused = rio::Builder::new(1).driver(Driver::Uring).polled().unwrap_err();
        assert!(refused.to_string().contains("seccomp"), "{refused}");
        // Who has chosen need not be told.
        automatic(Some("epoll"));
        assert!(CompletionQueue::polled(1).unwrap().fallback().is_none());
        child_has_run();
    }

    /// Would catch: the same where the call is hidden.
    #[test]
    fn where_io_uring_is_hidden_plain_calls_carry_registered_io() {
        const NAME: &str = "where_io_uring_is_hidden_plain_calls_carry_registered_io";
        if !in_child(module_path!(), NAME) {
            return;
        }
        automatic(None);
        refuse(libc::SYS_io_uring_setup, libc::ENOSYS);
        let mut queue = CompletionQueue::event(1).unwrap();
        assert_eq!(queue.driver(), Driver::Epoll);
        assert_eq!(queue.fallback().unwrap().kind(), ErrorKind::Unsupported);
        datagram(&mut queue);
        child_has_run();
    }

    /// Would catch: a notification that is accepted and that nobody would make.
    #[test]
    fn a_notification_that_no_thread_can_look_out_for_is_refused() {
        if !in_child(module_path!(), "a_notification_that_no_thread_can_look_out_for_is_refused") {
            return;
        }
        let mut queue = rio::Builder::new(1).driver(Driver::Epoll).event().unwrap();
        for call in [libc::SYS_clone3, libc::SYS_clone] {
            refuse(call, libc::EAGAIN);
        }
        for _ in 0..2 {
            let refused = queue.notify().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{refused}");
        }
        assert!(queue.dequeue().unwrap().is_none());
        child_has_run();
    }

    /// Would catch: the same where the call is hidden.
    #[test]
    fn where_io_uring_is_hidden_epoll_carries_the_port() {
        if !in_child(module_path!(), "where_io_uring_is_hidden_epoll_carries_the_port") {
            return;
        }
        refuse(libc::SYS_io_uring_setup, libc::ENOSYS);
        let port = automatic(None).build().unwrap();
        assert_eq!(port.driver(), Driver::Epoll);
        assert_eq!(port.fallback().unwrap().kind(), ErrorKind::Unsupported);
        exchange(&port);
        child_has_run();
    }

    /// Would catch: a port that gives up because not even its smallest rings may be had, or that
    /// does not try them.
    #[test]
    fn where_no_memory_may_be_locked_epoll_carries_the_port() {
        const NAME: &str = "where_no_memory_may_be_locked_epoll_carries_the_port";
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            return skip(NAME, "only root can become somebody else, whose memory is counted");
        }
        if !in_child(module_path!(), NAME) {
            return;
        }
        lock_little();
        let small = automatic(None).concurrency(3).build::<(), ()>().unwrap();
        assert_eq!(small.driver(), Driver::Uring, "{:?}", small.fallback());
        let port = automatic(None).concurrency(64).build().unwrap();
        assert_eq!(port.driver(), Driver::Epoll);
        assert_eq!(port.fallback().unwrap().kind(), ErrorKind::OutOfMemory);
        exchange(&port);
        child_has_run();
    }

    /// Would catch: a fallback for a reason that another driver does not help against, and that the
    /// next port may not meet.
    #[test]
    fn a_lack_of_descriptors_is_no_reason_to_fall_back() {
        if !in_child(module_path!(), "a_lack_of_descriptors_is_no_reason_to_fall_back") {
            return;
        }
        let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
        // SAFETY: the limit lives across the call. The process is this test's own.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        for driver in ["auto", "epoll"] {
            let refused = automatic(Some(driver)).concurrency(200).build::<(), ()>().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::OutOfDescriptors, "{driver}");
            assert!(refused.to_string().contains("RLIMIT_NOFILE"), "{refused}");
        }
        assert_eq!(automatic(None).build::<(), ()>().unwrap().driver(), Driver::Uring);
        child_has_run();
    }

    /// Would catch: a name that is taken for another, or for none; a person who runs a program and
    /// overrules what the program cannot do without.
    #[test]
    fn the_environment_decides_where_the_program_does_not() {
        if !in_child(module_path!(), "the_environment_decides_where_the_program_does_not") {
            return;
        }
        let driver = |builder: Builder| builder.concurrency(1).build::<(), ()>().unwrap().driver();
        assert_eq!(driver(automatic(Some("epoll"))), Driver::Epoll);
        assert_eq!(driver(automatic(Some("uring"))), Driver::Uring);
        assert_eq!(driver(automatic(Some("auto"))), Driver::Uring);
        assert_eq!(driver(automatic(Some(""))), Driver::Uring);
        assert_eq!(driver(automatic(Some("epoll")).driver(Driver::Uring)), Driver::Uring);
        assert_eq!(driver(automatic(Some("uring")).driver(Driver::Epoll)), Driver::Epoll);
        let refused = automatic(Some("Epoll!")).build::<(), ()>().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        let said = refused.to_string();
        assert!(said.contains("WHARF_DRIVER") && said.contains("auto, uring"), "{said}");
        child_has_run();
    }

    /// A port on epoll.
    fn on_epoll() -> Port<()> {
        Builder::new().driver(Driver::Epoll).concurrency(1).build().unwrap()
    }

    /// What some systems have in part, or pretend to have: old kernels, sandboxes, emulators.
    const NOT_EVERYWHERE: [libc::c_long; 2] = [libc::SYS_preadv2, libc::SYS_pwritev2];

    fn next(port: &Port<()>) -> wharf::Packet<(), ()> {
        port.wait_for(support::PATIENCE).packet().expect("a packet")
    }

    /// Would catch: a transmission that waits for ever for room that the system does not tell of,
    /// or that fails where the system cannot say what it has in its memory.
    #[test]
    fn files_are_transmitted_where_the_system_tells_little() {
        if !in_child(module_path!(), "files_are_transmitted_where_the_system_tells_little") {
            return;
        }
        support::run(|| {
            let path = std::env::temp_dir().join(format!("wharf-told-{}", std::process::id()));
            let content = support::pattern(0, 3_000_000);
            std::fs::write(&path, &content).unwrap();
            let file = std::sync::Arc::new(std::fs::File::open(&path).unwrap());
            std::fs::remove_file(&path).unwrap();
            let port = on_epoll();
            let (ours, peer) = support::sockets();
            let stream = port.associate(ours, ()).unwrap();
            let reading = std::thread::spawn(move || {
                let mut all = vec![0; 6_000_000];
                std::io::Read::read_exact(&mut &peer, &mut all).map(|()| all)
            });
            let transmit = || {
                stream.transmit(wharf::Transmit::new(file.clone())).unwrap();
                assert_eq!(next(&port).result, Ok(content.len()));
            };
            // The call succeeds, and leaves what was there: zeros, so that no socket ever has room.
            refuse(libc::SYS_getsockopt, 0);
            transmit();
            for call in NOT_EVERYWHERE {
                refuse(call, libc::EOPNOTSUPP);
            }
            transmit();
            assert!(support::join(reading).unwrap() == content.repeat(2));
        });
        child_has_run();
    }

    /// Would catch: appends that fail where the file was opened for them, or that go elsewhere than
    /// to the end; an error that does not name the remedy.
    #[test]
    fn files_that_were_opened_for_it_are_appended_to() {
        if !in_child(module_path!(), "files_that_were_opened_for_it_are_appended_to") {
            return;
        }
        let path = std::env::temp_dir().join(format!("wharf-log-{}", std::process::id()));
        std::fs::write(&path, "begin ").unwrap();
        for (errno, expected) in
            [(libc::EOPNOTSUPP, "begin one two "), (libc::ENOSYS, "begin one two one two ")]
        {
            refuse(libc::SYS_pwritev2, errno);
            // Its threads do as those do that start them.
            let port = on_epoll();
            let options = wharf::OpenOptions::new;
            let log = port.open(&path, options().append(true), ()).unwrap();
            let file = port.open(&path, options().write(true), ()).unwrap();
            log.append("one ").unwrap();
            assert_eq!(next(&port).result, Ok(4));
            log.append_vectored(vec!["t".into(), "wo ".into()]).unwrap();
            assert_eq!(next(&port).result, Ok(4));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
            file.append("lost").unwrap();
            let packet = next(&port);
            let error = packet.result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("OpenOptions::append"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
        std::fs::remove_file(&path).unwrap();
        child_has_run();
    }

    /// Would catch: a child that takes itself for its parent, or a port that cannot be made, where
    /// the kernel wipes no pages.
    #[test]
    fn a_forked_child_is_known_without_the_kernels_help() {
        if !in_child(module_path!(), "a_forked_child_is_known_without_the_kernels_help") {
            return;
        }
        // Refused, and, as emulators do, accepted without doing it: the latest filter counts.
        for errno in [libc::EINVAL, 0] {
            refuse(libc::SYS_madvise, errno);
            let port = on_epoll();
            // SAFETY: the child makes system calls and allocates little, and ends with _exit.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let waited = port.wait_for(Duration::ZERO);
                let refused = matches!(waited, Wait::Broken(it) if it.kind() == ErrorKind::Forked);
                // Its own is another thing.
                let own = matches!(on_epoll().wait_for(Duration::ZERO), Wait::TimedOut);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(i32::from(!refused) + 2 * i32::from(!own)) };
            }
            let mut status = 0;
            // SAFETY: the status lives across the call, and the child is ours.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "{errno}");
            exchange(&port);
        }
        child_has_run();
    }

    /// Would catch: waits that fail, or end early, where the call that takes fractions of a
    /// millisecond is refused.
    #[test]
    fn epoll_does_without_its_newer_call() {
        if !in_child(module_path!(), "epoll_does_without_its_newer_call") {
            return;
        }
        refuse(libc::SYS_epoll_pwait2, libc::ENOSYS);
        let port = Builder::new().driver(Driver::Epoll).concurrency(1).build().unwrap();
        let began = std::time::Instant::now();
        assert!(matches!(port.wait_for(Duration::from_micros(10_300)), Wait::TimedOut));
        assert!(began.elapsed() >= Duration::from_micros(10_300));
        exchange(&port);
        child_has_run();
    }
}
