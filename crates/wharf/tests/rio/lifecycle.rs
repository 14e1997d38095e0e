//! Closing, dropping, forgetting, moving, forking: every slice comes back or stays where it is, and
//! nothing is written to memory that is somebody else's.

use std::{
    io::Write,
    net::UdpSocket,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread,
};

use wharf::{
    ErrorKind,
    rio::{Completion, CompletionQueue, Direction, Options, Polled, Region, RequestQueue, Slice},
};

use super::support::*;

/// Would catch: a queue or a slice that cannot be moved to another thread.
#[test]
fn queues_and_slices_may_move() {
    fn moves<T: Send>() {}
    moves::<CompletionQueue<Polled>>();
    moves::<CompletionQueue<wharf::rio::Event>>();
    moves::<CompletionQueue<wharf::rio::Through<u32, u32>>>();
    moves::<Slice>();
    moves::<Region>();
    moves::<Completion>();
    moves::<RequestQueue>();
}

#[test]
fn closing_a_socket_completes_everything_as_cancelled() {
    run(|| {
        let region = Region::new(8, 32).unwrap();
        let mut queue = polled(8);
        let (socket, address) = socket(&mut queue, 6, 2);
        receives(&mut queue, socket, &region, 0..6);
        let peer = peer();
        peer.send_to(b"before", address).unwrap();
        let done = next(&mut queue);
        assert_eq!(done.context, 0);
        drop(done);
        queue.close(socket).unwrap();
        assert_eq!(queue.room(), 0, "reserved until everything is dequeued");
        let mut contexts = Vec::new();
        for done in take(&mut queue, 5) {
            assert!(done.bytes().unwrap_err().is_cancelled());
            assert_eq!((done.socket, done.direction), (socket, Direction::Receive));
            assert!(done.slice.is_empty());
            contexts.push(done.context);
        }
        if cfg!(windows) {
            // There the system says in which order.
            contexts.sort_unstable();
        }
        assert_eq!(contexts, [1, 2, 3, 4, 5]);
        assert_eq!((queue.room(), region.in_use()), (8, 0));
        nothing(&mut queue);
        // The address is free.
        UdpSocket::bind(address).unwrap();
    });
}

/// Would catch: what has already arrived lost, or counted twice, at the close.
#[test]
fn what_arrived_before_the_close_is_counted_once() {
    run(|| {
        for _ in 0..50 {
            let region = Region::new(8, 32).unwrap();
            let mut queue = polled(8);
            let (socket, address) = socket(&mut queue, 8, 0);
            receives(&mut queue, socket, &region, 0..8);
            assert!(queue.dequeue().unwrap().is_none());
            let peer = peer();
            for number in 0..3_u8 {
                peer.send_to(&[number], address).unwrap();
            }
            queue.close(socket).unwrap();
            let done = take(&mut queue, 8);
            let arrived: Vec<_> = done.iter().filter(|done| done.bytes().is_ok()).collect();
            for (number, done) in (0..).zip(&arrived) {
                assert_eq!(&done.slice[..], [number]);
            }
            assert!(queue.dequeue().unwrap().is_none());
        }
    });
}

#[test]
fn a_queue_is_dropped_with_everything_outstanding() {
    run(|| {
        let region = Region::new(16, 32).unwrap();
        let mut queue = polled(32);
        let (socket, address) = socket(&mut queue, 8, 0);
        let (stream, mut peer_stream) = connection();
        let stream = queue.tcp_stream(stream, quota(8, 8)).unwrap();
        receives(&mut queue, socket, &region, 0..8);
        receives(&mut queue, stream, &region, 0..8);
        assert!(queue.dequeue().unwrap().is_none(), "all are armed now");
        let peer = peer();
        peer.send_to(b"unseen", address).unwrap();
        peer_stream.write_all(b"unseen").unwrap();
        drop(queue);
        assert_eq!(region.in_use(), 0);
        // The kernel writes to none of it any more.
        let slices: Vec<_> = region.slices().collect();
        let _ = peer.send_to(b"too late", address);
        let _ = peer_stream.write_all(b"too late");
        thread::sleep(MOMENT);
        for mut slice in slices {
            let room = slice.room();
            assert!(!room.windows(8).any(|it| it == b"too late"), "written to after the drop");
        }
    });
}

/// Would catch: a region that is unmapped while slices or requests are left.
#[test]
fn a_region_lives_as_long_as_its_slices() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(4);
        let (socket, address) = socket(&mut queue, 3, 0);
        receives(&mut queue, socket, &region, 0..3);
        let kept = filled(&region, b"kept");
        drop(region);
        let peer = peer();
        for _ in 0..3 {
            peer.send_to(b"into nowhere?", address).unwrap();
        }
        let done = take(&mut queue, 2);
        assert!(done.iter().all(|done| &done.slice[..] == b"into nowhere?"));
        drop(queue);
        assert!(done.iter().all(|done| &done.slice[..] == b"into nowhere?"));
        assert_eq!(&kept[..], b"kept");
    });
}

/// Would catch: memory that is freed under the kernel's hands when nobody drops the queue.
#[test]
fn a_queue_may_be_forgotten() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(4);
        let (socket, address) = socket(&mut queue, 4, 0);
        receives(&mut queue, socket, &region, 0..4);
        assert!(queue.dequeue().unwrap().is_none());
        std::mem::forget(queue);
        assert_eq!(region.in_use(), 4);
        let refused = region.deregister().unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Busy);
        drop(refused);
        // The kernel may write into the region, which stays mapped for ever.
        let peer = peer();
        for _ in 0..4 {
            let _ = peer.send_to(b"anybody?", address);
        }
        thread::sleep(MOMENT);
    });
}

#[test]
fn a_panic_drops_the_queue_in_order() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut queue = polled(4);
            let (socket, _) = socket(&mut queue, 4, 0);
            receives(&mut queue, socket, &region, 0..4);
            assert!(queue.dequeue().unwrap().is_none());
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(panicked.is_err());
        assert_eq!(region.in_use(), 0);
    });
}

/// Would catch: a receive that belongs to the thread that armed it, and stands still elsewhere, or
/// ends with it.
#[test]
fn a_queue_moves_from_thread_to_thread() {
    run(|| {
        let region = Region::new(8, 64).unwrap();
        let mut queue = polled(16);
        let (socket, address) = socket(&mut queue, 8, 8);
        receives(&mut queue, socket, &region, 0..8);
        assert!(queue.dequeue().unwrap().is_none(), "armed by this thread");
        let to_us = peer();
        let to = to_us.local_addr().unwrap();
        for round in 0..20_u8 {
            // The thread exits with receives armed.
            queue = join(thread::spawn(move || {
                let peer = peer();
                for number in 0..30_u8 {
                    peer.send_to(&[round, number], address).unwrap();
                    let done = next(&mut queue);
                    assert_eq!(&done.slice[..], [round, number]);
                    queue.send_to(socket, done.slice, to).unwrap();
                    let done = next(&mut queue);
                    assert_eq!(done.bytes().unwrap(), 2);
                    queue.receive(socket, done.slice).unwrap();
                }
                queue
            }));
        }
        drop(queue);
        assert_eq!(region.in_use(), 0);
    });
}

/// Would catch: two threads that get one datagram, or none that gets it.
#[test]
fn threads_share_a_queue_behind_a_mutex() {
    run(|| {
        const THREADS: usize = 4;
        const DATAGRAMS: u32 = 4_000;
        let region = Region::new(64, 16).unwrap();
        let mut queue = polled(64);
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&ours).set_recv_buffer_size(4 << 20).unwrap();
        let address = ours.local_addr().unwrap();
        let socket = queue.udp_socket(ours, quota(64, 0), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..64);
        let queue = Arc::new(Mutex::new(queue));
        let seen = Arc::new(Mutex::new(vec![0_u8; DATAGRAMS as usize]));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (queue, seen) = (queue.clone(), seen.clone());
                thread::spawn(move || {
                    loop {
                        let done = queue.lock().unwrap().dequeue().unwrap();
                        let Some(done) = done else {
                            thread::yield_now();
                            if seen.lock().unwrap().iter().all(|&times| times > 0) {
                                return;
                            }
                            continue;
                        };
                        let number: [u8; 4] = done.slice[..].try_into().unwrap();
                        seen.lock().unwrap()[u32::from_le_bytes(number) as usize] += 1;
                        queue.lock().unwrap().receive(socket, done.slice).unwrap();
                    }
                })
            })
            .collect();
        let peer = peer();
        for number in 0..DATAGRAMS {
            peer.send_to(&number.to_le_bytes(), address).unwrap();
            if number % 256 == 255 {
                thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        threads.into_iter().for_each(join);
        assert!(seen.lock().unwrap().iter().all(|&times| times == 1));
    });
}

/// Would catch: a child that works on its parent's rings.
#[cfg(unix)]
#[test]
fn a_forked_child_is_refused() {
    if !in_child(module_path!(), "a_forked_child_is_refused") {
        return;
    }
    let region = Region::new(4, 64).unwrap();
    let mut queue = polled(8);
    let (socket, address) = socket(&mut queue, 2, 2);
    receives(&mut queue, socket, &region, 0..2);
    assert!(queue.dequeue().unwrap().is_none());
    // SAFETY: this process has no other thread that matters to the child, which calls only what
    // allocates little, and _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = |kind| i32::from(kind != ErrorKind::Forked);
        let mut wrong = 0;
        wrong += queue.dequeue().map_or_else(|error| refused(error.kind()), |_| 1);
        let slice = region.slice(3).unwrap();
        wrong += queue.receive(socket, slice).map_or_else(|it| refused(it.error.kind()), |()| 1);
        wrong += queue.udp("127.0.0.1:0", quota(1, 1)).map_or_else(|it| refused(it.kind()), |_| 1);
        wrong += queue.commit(socket).map_or_else(|it| refused(it.kind()), |()| 1);
        let less = queue.set_quota(socket, quota(2, 1));
        wrong += less.map_or_else(|it| refused(it.kind()), |()| 1);
        wrong += queue.local_addr(socket).map_or_else(|it| refused(it.kind()), |_| 1);
        wrong += queue.close(socket).map_or_else(|it| refused(it.kind()), |()| 1);
        drop(queue);
        // SAFETY: ends the child.
        unsafe { libc::_exit(wrong) };
    }
    let mut status = 0;
    // SAFETY: the status lives across the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    // The parent has noticed nothing.
    peer().send_to(b"still here", address).unwrap();
    assert_eq!(&next(&mut queue).slice[..], b"still here");
}

/// Would catch: a child that waits for a thread or a lock that it does not have.
#[cfg(unix)]
#[test]
fn a_forked_child_is_refused_while_a_notification_is_outstanding() {
    if !in_child(module_path!(), "a_forked_child_is_refused_while_a_notification_is_outstanding") {
        return;
    }
    let region = Region::new(4, 64).unwrap();
    let mut queue = crate::builder(8).event().unwrap();
    let (socket, address) = socket(&mut queue, 2, 2);
    receives(&mut queue, socket, &region, 0..2);
    queue.notify().unwrap();
    // SAFETY: the child calls only what allocates little, and _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: takes no pointers. A child that hangs ends by that.
        unsafe { libc::alarm(20) };
        let refused = |kind| i32::from(kind != ErrorKind::Forked);
        let mut wrong = 0;
        wrong += queue.notify().map_or_else(|it| refused(it.kind()), |()| 1);
        wrong += queue.wait(None).map_or_else(|it| refused(it.kind()), |_| 1);
        wrong += queue.dequeue().map_or_else(|it| refused(it.kind()), |_| 1);
        wrong += queue.commit(socket).map_or_else(|it| refused(it.kind()), |()| 1);
        wrong += queue.local_addr(socket).map_or_else(|it| refused(it.kind()), |_| 1);
        wrong += queue.close(socket).map_or_else(|it| refused(it.kind()), |()| 1);
        drop(queue);
        // SAFETY: ends the child.
        unsafe { libc::_exit(wrong) };
    }
    let mut status = 0;
    // SAFETY: the status lives across the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    peer().send_to(b"still here", address).unwrap();
    assert!(queue.wait(Some(PATIENCE)).unwrap());
    assert_eq!(&next(&mut queue).slice[..], b"still here");
}
