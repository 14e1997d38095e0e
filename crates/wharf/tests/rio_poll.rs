//! Registered I/O by plain calls, as it is where io_uring is refused.
#![cfg(target_os = "linux")]

mod rio;

/// What only this engine has: a thread that looks out where a notification has to be waited for.
mod lookout {
    use std::{thread, time::Instant};

    use wharf::rio::Region;

    use super::rio::support::*;

    /// How many threads have its name.
    fn lookouts() -> usize {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let names = threads.filter_map(|it| std::fs::read(it.ok()?.path().join("comm")).ok());
        names.filter(|name| name == b"wharf rio\n").count()
    }

    /// A thread has its name, or is gone, a moment after it has been started or has ended.
    #[track_caller]
    fn become_lookouts(count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while lookouts() != count {
            assert!(Instant::now() < deadline, "{} threads", lookouts());
            thread::yield_now();
        }
    }

    /// Would catch: a thread that nobody needs, one for each notification, or one that is left.
    #[test]
    fn it_comes_with_the_first_wait_and_goes_with_its_queue() {
        if !in_child(module_path!(), "it_comes_with_the_first_wait_and_goes_with_its_queue") {
            return;
        }
        let region = Region::new(2, 64).unwrap();
        let mut queue = crate::builder(4).event().unwrap();
        let (socket, address) = socket(&mut queue, 2, 0);
        receives(&mut queue, socket, &region, 0..2);
        let peer = peer();
        peer.send_to(b"here", address).unwrap();
        queue.notify().unwrap();
        assert!(queue.wait(Some(PATIENCE)).unwrap());
        assert_eq!(lookouts(), 0, "the notification could be made at once");
        next(&mut queue);
        for _ in 0..3 {
            queue.notify().unwrap();
            assert!(!queue.wait(Some(MOMENT)).unwrap());
            become_lookouts(1);
            peer.send_to(b"there", address).unwrap();
            assert!(queue.wait(Some(PATIENCE)).unwrap());
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
        }
        queue.notify().unwrap();
        drop(queue);
        assert_eq!(region.in_use(), 0);
        become_lookouts(0);
    }
}

fn builder(capacity: usize) -> wharf::rio::Builder {
    wharf::rio::Builder::new(capacity).driver(wharf::Driver::Epoll)
}
