//! Notifications: once each, not for quiet requests, through an event or a port.

use std::{
    io::{Read, Write},
    net::UdpSocket,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use wharf::{
    ErrorKind, Op, Port, Wait,
    rio::{CompletionQueue, Direction, Event, Options, Region, Through},
};

use super::support::*;

fn with_event(capacity: usize) -> CompletionQueue<Event> {
    crate::builder(capacity).event().expect("a queue")
}

/// The event is not signalled, and will not be for no reason.
#[track_caller]
fn quiet(queue: &mut CompletionQueue<Event>) {
    assert!(!queue.wait(Some(MOMENT)).unwrap(), "signalled");
}

#[track_caller]
fn signalled(queue: &mut CompletionQueue<Event>) {
    assert!(queue.wait(Some(PATIENCE)).unwrap(), "not signalled");
}

/// Whether the event is signalled, for who looks at it himself.
fn readable(queue: &CompletionQueue<Event>) -> bool {
    Signal::of(queue).is_there(0)
}

/// The event as the system knows it: a descriptor, or a handle.
#[cfg(unix)]
struct Signal(std::os::fd::OwnedFd);

#[cfg(unix)]
impl Signal {
    fn of(queue: &CompletionQueue<Event>) -> Self {
        Self(std::os::fd::AsFd::as_fd(queue).try_clone_to_owned().unwrap())
    }

    /// Whether it is signalled, or will be within so many milliseconds.
    fn is_there(&self, patience: i32) -> bool {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: the structure lives across the call.
        unsafe { libc::poll(&raw mut poll, 1, patience) == 1 }
    }

    fn take(self) {
        let _ = std::fs::File::from(self.0).read(&mut [0; 8]);
    }
}

#[cfg(windows)]
struct Signal(std::os::windows::io::OwnedHandle);

#[cfg(windows)]
impl Signal {
    fn of(queue: &CompletionQueue<Event>) -> Self {
        Self(std::os::windows::io::AsHandle::as_handle(queue).try_clone_to_owned().unwrap())
    }

    fn raw(&self) -> std::os::windows::io::RawHandle {
        std::os::windows::io::AsRawHandle::as_raw_handle(&self.0)
    }

    fn is_there(&self, patience: u32) -> bool {
        use windows_sys::Win32::System::Threading::WaitForSingleObject;
        // SAFETY: an open handle.
        unsafe { WaitForSingleObject(self.raw(), patience) == 0 }
    }

    fn take(self) {
        // SAFETY: an open handle.
        unsafe { windows_sys::Win32::System::Threading::ResetEvent(self.raw()) };
    }
}

/// Would catch: an event that is signalled unasked, more than once, or never.
#[test]
fn a_notification_happens_once_each_time_it_is_asked_for() {
    run(|| {
        let region = Region::new(8, 64).unwrap();
        let mut queue = with_event(8);
        let (socket, address) = socket(&mut queue, 8, 0);
        receives(&mut queue, socket, &region, 0..8);
        let peer = peer();
        for _ in 0..5 {
            // Not before it is asked for.
            assert!(queue.dequeue().unwrap().is_none());
            peer.send_to(b"unasked", address).unwrap();
            quiet(&mut queue);
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
            // Not before something completes, then at once.
            queue.notify().unwrap();
            quiet(&mut queue);
            peer.send_to(b"asked", address).unwrap();
            signalled(&mut queue);
            assert!(readable(&queue));
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
            // Asking again resets it.
            queue.notify().unwrap();
            assert!(!readable(&queue));
            peer.send_to(b"again", address).unwrap();
            signalled(&mut queue);
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
            // A last one to start the next round without one outstanding.
            queue.notify().unwrap();
            peer.send_to(b"last", address).unwrap();
            signalled(&mut queue);
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
            reset(&queue);
        }
    });
}

/// Takes the signal off the event, as a program may that polls it with others.
fn reset(queue: &CompletionQueue<Event>) {
    Signal::of(queue).take();
}

#[test]
fn asking_twice_is_an_error() {
    run(|| {
        let region = Region::new(2, 64).unwrap();
        let mut queue = with_event(2);
        let (socket, address) = socket(&mut queue, 2, 0);
        receives(&mut queue, socket, &region, 0..2);
        queue.notify().unwrap();
        for _ in 0..3 {
            let error = queue.notify().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("outstanding"), "{error}");
        }
        peer().send_to(b"x", address).unwrap();
        signalled(&mut queue);
        next(&mut queue);
        queue.notify().unwrap();
        assert_eq!(queue.notify().unwrap_err().kind(), ErrorKind::Busy);
    });
}

/// Would catch: a completion that is there already and that nobody is told of.
#[test]
fn what_is_complete_already_notifies_at_once() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = with_event(8);
        let (socket, address) = socket(&mut queue, 4, 4);
        receives(&mut queue, socket, &region, 0..3);
        let peer = peer();
        peer.send_to(b"one", address).unwrap();
        peer.send_to(b"two", address).unwrap();
        queue.notify().unwrap();
        signalled(&mut queue);
        assert_eq!(&next(&mut queue).slice[..], b"one");
        // The other one is left.
        queue.notify().unwrap();
        signalled(&mut queue);
        assert_eq!(&next(&mut queue).slice[..], b"two");
        // A send completes at once.
        queue.send_to(socket, filled(&region, b"x"), peer.local_addr().unwrap()).unwrap();
        queue.notify().unwrap();
        signalled(&mut queue);
        assert_eq!(next(&mut queue).direction, Direction::Send);
    });
}

/// Would catch: a quiet receive or send that notifies, or one that is lost.
#[test]
fn quiet_requests_do_not_notify() {
    run(|| {
        let region = Region::new(8, 64).unwrap();
        let mut queue = with_event(16);
        let (socket, address) = socket(&mut queue, 8, 8);
        let peer = peer();
        let to = peer.local_addr().unwrap();
        for slice in region.slices().take(3) {
            queue.start(socket).quiet().context(1).receive(slice).unwrap();
        }
        queue.notify().unwrap();
        peer.send_to(b"quiet", address).unwrap();
        queue.start(socket).quiet().to(to).context(2).send(filled(&region, b"hush")).unwrap();
        quiet(&mut queue);
        let done = take(&mut queue, 2);
        assert_eq!(done.iter().map(|done| done.context).sum::<u64>(), 3);
        quiet(&mut queue);
        // The notification is still outstanding: a loud send ends it.
        assert_eq!(queue.notify().unwrap_err().kind(), ErrorKind::Busy);
        queue.send_to(socket, filled(&region, b"loud"), to).unwrap();
        signalled(&mut queue);
        assert_eq!(next(&mut queue).direction, Direction::Send);
    });
}

/// Would catch: a run of quiet receives that notifies early, or whose loud end notifies nobody.
#[test]
fn a_loud_receive_behind_quiet_ones_notifies_when_it_completes() {
    run(|| {
        let region = Region::new(16, 64).unwrap();
        let mut queue = with_event(16);
        let (socket, address) = socket(&mut queue, 16, 0);
        let peer = peer();
        for early in [true, false, true] {
            // Three quiet ones, then a loud one, then two quiet ones.
            for (context, slice) in (0..6_u64).zip(region.slices()) {
                let start = queue.start(socket).context(context);
                let start = if context == 3 { start } else { start.quiet() };
                start.receive(slice).unwrap();
            }
            if !early {
                // Armed before a notification was wanted, and partly used.
                peer.send_to(&[0], address).unwrap();
                assert_eq!(next(&mut queue).context, 0);
            }
            queue.notify().unwrap();
            for number in u8::from(!early)..3 {
                peer.send_to(&[number], address).unwrap();
                quiet(&mut queue);
            }
            peer.send_to(&[3], address).unwrap();
            signalled(&mut queue);
            let first = if early { 0 } else { 1 };
            for expected in first..4_u8 {
                let done = next(&mut queue);
                assert_eq!((done.context, &done.slice[..]), (expected.into(), &[expected][..]));
            }
            queue.notify().unwrap();
            for number in 4..6_u8 {
                peer.send_to(&[number], address).unwrap();
            }
            quiet(&mut queue);
            for expected in 4..6_u8 {
                assert_eq!(&next(&mut queue).slice[..], [expected]);
            }
            // End the one that is outstanding.
            queue.receive(socket, region.slices().next().unwrap()).unwrap();
            peer.send_to(b"end", address).unwrap();
            let done = next(&mut queue);
            assert_eq!(&done.slice[..], b"end");
            drop(done);
            signalled(&mut queue);
        }
    });
}

/// Would catch: a notification for something that is not a completion: a datagram that finds
/// nothing posted.
#[test]
fn a_datagram_without_a_receive_does_not_notify() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = with_event(4);
        let (socket, address) = socket(&mut queue, 4, 0);
        receives(&mut queue, socket, &region, 0..1);
        let peer = peer();
        peer.send_to(b"first", address).unwrap();
        let done = next(&mut queue);
        queue.notify().unwrap();
        peer.send_to(b"second", address).unwrap();
        quiet(&mut queue);
        // Posting one while the notification is outstanding is enough.
        queue.receive(socket, done.slice).unwrap();
        signalled(&mut queue);
        assert_eq!(&next(&mut queue).slice[..], b"second");
    });
}

/// Would catch: the same for a receive of a whole slice that is not full.
#[test]
fn a_part_of_a_whole_does_not_notify() {
    run(|| {
        let region = Region::new(4, 1000).unwrap();
        let mut queue = with_event(4);
        let (stream, mut peer) = connection();
        let socket = queue.tcp_stream(stream, quota(4, 0)).unwrap();
        queue.start(socket).wait_all().receive(region.slice(0).unwrap()).unwrap();
        queue.notify().unwrap();
        for _ in 0..3 {
            peer.write_all(&[1; 300]).unwrap();
            quiet(&mut queue);
        }
        assert!(queue.dequeue().unwrap().is_none());
        peer.write_all(&[1; 100]).unwrap();
        signalled(&mut queue);
        assert_eq!(&next(&mut queue).slice[..], [1; 1000]);
    });
}

/// Would catch: the same for a send of which a part is sent.
#[test]
fn a_part_of_a_send_does_not_notify() {
    run(|| {
        const BYTES: usize = 8_000_000;
        let region = Region::new(1, BYTES).unwrap();
        let mut queue = with_event(4);
        let (stream, mut peer) = connection();
        // So that the system's buffers do not take all of it.
        socket2::SockRef::from(&stream).set_send_buffer_size(100_000).unwrap();
        socket2::SockRef::from(&peer).set_recv_buffer_size(100_000).unwrap();
        let socket = queue.tcp_stream(stream, quota(0, 1)).unwrap();
        let mut slice = region.slice(0).unwrap();
        slice.set_len(BYTES).unwrap();
        queue.send(socket, slice).unwrap();
        queue.notify().unwrap();
        quiet(&mut queue);
        let mut rest = vec![0; BYTES / 4];
        peer.read_exact(&mut rest).unwrap();
        quiet(&mut queue);
        let reader = thread::spawn(move || peer.read_exact(&mut vec![0; BYTES - BYTES / 4]));
        signalled(&mut queue);
        assert_eq!(next(&mut queue).bytes().unwrap(), BYTES);
        join(reader).unwrap();
    });
}

/// Would catch: requests that a close ends, and of whose end nobody is told.
#[test]
fn what_a_close_cancels_notifies() {
    run(|| {
        let region = Region::new(8, 64).unwrap();
        let mut queue = with_event(16);
        for armed in [true, false] {
            let (socket, _) = socket(&mut queue, 4, 0);
            if armed {
                receives(&mut queue, socket, &region, 0..2);
            } else {
                for slice in region.slices().take(2) {
                    queue.start(socket).quiet().receive(slice).unwrap();
                }
                queue.receive(socket, region.slice(5).unwrap()).unwrap();
            }
            queue.notify().unwrap();
            quiet(&mut queue);
            queue.close(socket).unwrap();
            signalled(&mut queue);
            let count = if armed { 2 } else { 3 };
            for done in take(&mut queue, count) {
                assert!(done.bytes().unwrap_err().is_cancelled());
            }
        }
    });
}

/// Would catch: a quiet send in the way of a loud one, of whose completion nobody would be told.
#[test]
fn a_loud_send_behind_a_quiet_one_notifies() {
    run(|| {
        let region = Region::new(8, 4_000_000).unwrap();
        let mut queue = with_event(8);
        let (stream, mut peer) = connection();
        // So that the system's buffers do not take all of it.
        socket2::SockRef::from(&stream).set_send_buffer_size(100_000).unwrap();
        socket2::SockRef::from(&peer).set_recv_buffer_size(100_000).unwrap();
        let socket = queue.tcp_stream(stream, quota(0, 8)).unwrap();
        let mut slice = region.slice(0).unwrap();
        slice.room().fill(1);
        slice.set_len(4_000_000).unwrap();
        queue.start(socket).quiet().context(1).send(slice).unwrap();
        queue.start(socket).context(2).send(filled(&region, &[2; 10])).unwrap();
        queue.notify().unwrap();
        quiet(&mut queue);
        let mut rest = vec![0; 2_000_000];
        peer.read_exact(&mut rest).unwrap();
        let reader = thread::spawn(move || {
            let mut rest = vec![0; 2_000_010];
            peer.read_exact(&mut rest).unwrap();
            assert!(rest[..2_000_000].iter().all(|&byte| byte == 1));
            assert!(rest[2_000_000..].iter().all(|&byte| byte == 2));
        });
        signalled(&mut queue);
        let done = take(&mut queue, 2);
        assert_eq!((done[0].context, done[1].context), (1, 2));
        assert_eq!(done[0].bytes().unwrap(), 4_000_000);
        join(reader);
    });
}

/// Would catch: an outstanding notification that stands still after an ICMP error.
#[test]
fn an_icmp_error_does_not_end_notifications() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = with_event(8);
        let nobody = peer();
        let there = nobody.local_addr().unwrap();
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        ours.connect(there).unwrap();
        drop(nobody);
        let socket = queue.udp_socket(ours, quota(2, 2), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..2);
        queue.notify().unwrap();
        queue.start(socket).quiet().send(filled(&region, b"anybody?")).unwrap();
        thread::sleep(MOMENT);
        let name = "an_icmp_error_does_not_end_notifications";
        if not_shown_by_wine(name, "Wine wakes no receive after that") {
            return;
        }
        let somebody = UdpSocket::bind(there).unwrap();
        // The error may have ended the notification: then there is nothing, and we ask again.
        loop {
            somebody.send_to(b"yes", address).unwrap();
            signalled(&mut queue);
            let mut found = false;
            while let Some(done) = queue.dequeue().unwrap() {
                found |= done.direction == Direction::Receive;
            }
            if found {
                return;
            }
            queue.notify().unwrap();
        }
    });
}

/// A thread may wait for the event while another thread owns the queue.
#[test]
fn the_event_can_be_polled_elsewhere() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = with_event(4);
        let (socket, address) = socket(&mut queue, 4, 0);
        receives(&mut queue, socket, &region, 0..4);
        queue.notify().unwrap();
        let event = Signal::of(&queue);
        let waiter = thread::spawn(move || event.is_there(20_000));
        thread::sleep(Duration::from_millis(10));
        peer().send_to(b"wake", address).unwrap();
        // This thread armed the receive, and sleeps: it is lent to the kernel for it.
        assert!(join(waiter));
        assert_eq!(&next(&mut queue).slice[..], b"wake");
    });
}

// ---- Through a port ---------------------------------------------------------------------------

type Queue = CompletionQueue<Through<(), Message>>;

#[derive(Debug)]
enum Message {
    Look(u32),
    Other,
}

fn through(capacity: usize) -> (Port<(), Message>, Queue) {
    let port = Port::new(1).expect("a port");
    let queue = crate::builder(capacity).through(&port).expect("a queue");
    (port, queue)
}

/// The next packet's number.
#[track_caller]
fn look(port: &Port<(), Message>) -> u32 {
    match port.wait_for(PATIENCE) {
        Wait::Packet(packet) => {
            packet.bytes().unwrap();
            match packet.op {
                Op::Posted(Message::Look(number)) => number,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn no_packet(port: &Port<(), Message>) {
    let waited = port.wait_for(MOMENT);
    assert!(matches!(waited, Wait::TimedOut), "{waited:?}");
}

#[test]
fn a_port_is_told_once_each_time() {
    run(|| {
        let (port, mut queue) = through(8);
        let region = Region::new(8, 64).unwrap();
        let (socket, address) = socket(&mut queue, 8, 0);
        receives(&mut queue, socket, &region, 0..8);
        let peer = peer();
        for round in 0..20 {
            queue.notify(Message::Look(round)).unwrap();
            let refused = queue.notify(Message::Look(1000)).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::Busy);
            assert!(matches!(refused.value, Message::Look(1000)), "the value comes back");
            if round == 0 {
                no_packet(&port);
            }
            peer.send_to(b"a", address).unwrap();
            peer.send_to(b"b", address).unwrap();
            assert_eq!(look(&port), round);
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
            if round == 0 {
                no_packet(&port);
            }
            // The other one is there already, or comes.
            queue.notify(Message::Look(round + 100)).unwrap();
            assert_eq!(look(&port), round + 100);
            let done = next(&mut queue);
            queue.receive(socket, done.slice).unwrap();
        }
        port.post(Message::Other).unwrap();
        assert!(matches!(
            port.wait_for(PATIENCE).packet().map(|it| it.op),
            Some(Op::Posted(Message::Other))
        ));
    });
}

#[test]
fn quiet_requests_post_nothing() {
    run(|| {
        let (port, mut queue) = through(8);
        let region = Region::new(8, 64).unwrap();
        let (socket, address) = socket(&mut queue, 8, 0);
        for (context, slice) in (0..4_u64).zip(region.slices()) {
            let start = queue.start(socket).context(context);
            if context == 2 { start } else { start.quiet() }.receive(slice).unwrap();
        }
        queue.notify(Message::Look(1)).unwrap();
        let peer = peer();
        for _ in 0..2 {
            peer.send_to(b"quiet", address).unwrap();
            no_packet(&port);
        }
        peer.send_to(b"loud", address).unwrap();
        assert_eq!(look(&port), 1);
        assert_eq!(&take(&mut queue, 3)[2].slice[..], b"loud");
    });
}

/// Would catch: a value that is lost when the queue goes first, or the port.
#[test]
fn a_notification_ends_with_its_queue_or_its_port() {
    run(|| {
        let (port, mut queue) = through(4);
        let region = Region::new(4, 64).unwrap();
        let (socket, _) = socket(&mut queue, 4, 0);
        receives(&mut queue, socket, &region, 0..4);
        queue.notify(Message::Look(7)).unwrap();
        drop(queue);
        let packet = port.wait_for(PATIENCE).packet().expect("a packet");
        assert!(packet.bytes().unwrap_err().is_cancelled());
        assert!(matches!(packet.op, Op::Posted(Message::Look(7))));
        assert_eq!(region.in_use(), 0);
    });
    run(|| {
        let (port, mut queue) = through(4);
        let region = Region::new(4, 64).unwrap();
        let (socket, address) = socket(&mut queue, 4, 0);
        receives(&mut queue, socket, &region, 0..4);
        queue.notify(Message::Look(7)).unwrap();
        drop(port);
        // The queue goes on, only nobody is told.
        peer().send_to(b"still", address).unwrap();
        assert_eq!(&next(&mut queue).slice[..], b"still");
        let refused = queue.notify(Message::Look(8)).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Closed);
        assert!(matches!(refused.value, Message::Look(8)));
    });
    run(|| {
        let (port, queue) = through(4);
        port.close();
        let error = crate::builder(4).through(&port).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        drop(queue);
    });
}

/// Would catch: a datagram counted twice or never where many workers share a queue.
#[test]
fn many_workers_take_each_datagram_once() {
    run(|| {
        const DATAGRAMS: u32 = 20_000;
        let port: Port<(), Message> = Port::new(2).unwrap();
        let mut queue: Queue = crate::builder(256).through(&port).unwrap();
        let region = Region::new(256, 16).unwrap();
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&ours).set_recv_buffer_size(4 << 20).unwrap();
        let address = ours.local_addr().unwrap();
        let socket = queue.udp_socket(ours, quota(256, 0), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..256);
        queue.notify(Message::Look(0)).unwrap();
        let queue = Arc::new(Mutex::new(queue));
        let seen = Arc::new(Mutex::new(vec![0_u8; DATAGRAMS as usize]));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (port, queue, seen) = (port.clone(), queue.clone(), seen.clone());
                thread::spawn(move || {
                    let mut batch = Vec::new();
                    while let Wait::Packet(_) = port.wait() {
                        let mut queue_of_all = queue.lock().unwrap();
                        let most = 20;
                        while queue_of_all.dequeue_many(&mut batch, most).unwrap() == most {}
                        queue_of_all.notify(Message::Look(0)).unwrap();
                        drop(queue_of_all);
                        for done in &batch {
                            let number: [u8; 4] = done.slice[..].try_into().unwrap();
                            seen.lock().unwrap()[u32::from_le_bytes(number) as usize] += 1;
                        }
                        let mut queue = queue.lock().unwrap();
                        for done in batch.drain(..) {
                            queue.receive(socket, done.slice).unwrap();
                        }
                    }
                })
            })
            .collect();
        let peer = peer();
        for number in 0..DATAGRAMS {
            peer.send_to(&number.to_le_bytes(), address).unwrap();
            if number % 500 == 499 {
                // Not faster than the workers, as what does not fit is dropped.
                let deadline = std::time::Instant::now() + PATIENCE;
                while seen.lock().unwrap()[..=number as usize].contains(&0) {
                    assert!(std::time::Instant::now() < deadline, "datagrams are missing");
                    thread::sleep(Duration::from_micros(200));
                }
            }
        }
        assert!(seen.lock().unwrap().iter().all(|&times| times == 1));
        port.close();
        workers.into_iter().for_each(join);
    });
}
