//! The port as a queue: what a wait gives, what a post does, what closing leaves.

use std::{
    collections::HashSet,
    net::{Shutdown, TcpListener},
    num::NonZero,
    sync::mpsc,
    thread,
    time::Duration,
};

use wharf::{Buf, ErrorKind, Refused, Wait, raw};

#[cfg(unix)]
use std::os::fd::OwnedFd as OwnedSocket;
#[cfg(windows)]
use std::os::windows::io::OwnedSocket;

use super::support::*;

/// Would catch: a packet, a failed operation's packet, a time-out and a closed port that cannot be
/// told apart.
#[test]
fn the_outcomes_of_a_wait_are_distinct() {
    run(|| {
        let port = port(1);
        assert!(matches!(port.wait_for(Duration::ZERO), Wait::TimedOut));
        assert!(matches!(port.wait_for(Duration::from_millis(5)), Wait::TimedOut));

        port.post(Token::from(1)).unwrap();
        let Wait::Packet(posted) = port.wait_for(PATIENCE) else { panic!("no packet") };
        assert!(matches!(posted.op, Op::Posted(Token { id: 1, .. })));

        let (stream, peer) = pair(&port);
        stream.recv(Vec::with_capacity(8)).unwrap();
        assert!(poll(&port).is_none());
        reset(peer);
        let Wait::Packet(failed) = port.wait_for(PATIENCE) else { panic!("no packet") };
        assert!(failed.result.unwrap_err().is_connection_reset());
        assert!(matches!(failed.op, Op::Recv { .. }));

        port.close();
        assert!(port.is_closed());
        assert!(matches!(port.wait(), Wait::Closed));
        assert!(matches!(port.wait_for(Duration::ZERO), Wait::Closed));
        assert!(matches!(port.wait_many(&mut Vec::new(), 4, None), Wait::Closed));
    });
}

/// Would catch: a poll that sleeps (this would hang where it had no deadline), or that misses what
/// is there.
#[test]
fn a_poll_takes_what_is_there() {
    run(|| {
        let port = port(1);
        assert!(poll(&port).is_none());
        port.post(Token::from(7)).unwrap();
        assert!(poll(&port).is_some());
        assert!(poll(&port).is_none());
        let (stream, peer) = pair(&port);
        stream.recv(Vec::with_capacity(8)).unwrap();
        drop(peer);
        until("the poll has it", || poll(&port).is_some());
    });
}

/// Would catch: a deadline beyond what a clock can say, that overflows or is over at once.
#[test]
fn a_wait_may_be_longer_than_any_clock() {
    run(|| {
        let port = port(1);
        let waiter = {
            let port = port.clone();
            thread::spawn(move || matches!(port.wait_for(Duration::MAX), Wait::Packet(_)))
        };
        until("it waits", || port.stats().waiting == 1);
        port.post(Token::from(1)).unwrap();
        assert!(join(waiter));
    });
}

/// Would catch: a queue that is a stack, or one per thread.
#[test]
fn posted_packets_leave_in_order() {
    run(|| {
        let port = port(2);
        for id in 0..1000 {
            port.post(Token::from(id)).unwrap();
        }
        for id in 0..1000 {
            let Op::Posted(token) = next(&port).op else { panic!("not posted") };
            assert_eq!(token.id, id);
        }
    });
}

/// Would catch: a post that is lost or doubled when many post and many take.
#[test]
fn every_post_is_taken_once() {
    run(|| {
        const EACH: u64 = 5000;
        let port = port(2);
        let pump = Pump::new(&port, 5);
        let posters: Vec<_> = (0..4)
            .map(|poster| {
                let port = port.clone();
                thread::spawn(move || {
                    for id in 0..EACH {
                        port.post(Token::from(poster * EACH + id)).unwrap();
                    }
                })
            })
            .collect();
        let mut seen = HashSet::new();
        for _ in 0..4 * EACH {
            let Op::Posted(token) = pump.next().op else { panic!("not posted") };
            assert!(seen.insert(token.id), "{} came twice", token.id);
        }
        posters.into_iter().for_each(join);
        assert!(pump.is_empty());
        assert_eq!((port.stats().posted, port.stats().packets), (4 * EACH, 4 * EACH));
    });
}

/// Would catch: a limit that is not kept, off by one, or that loses the value; one that never
/// opens again.
#[test]
fn a_full_queue_gives_the_value_back() {
    run(|| {
        let tally = Tally::default();
        let port = build(crate::builder().concurrency(1).post_limit(4));
        for id in 0..4 {
            port.post(tally.token(id)).unwrap();
        }
        let refused = port.post(tally.token(4)).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.id), (ErrorKind::QueueFull, 4));
        drop(next(&port));
        port.post(refused.value).unwrap();
        for id in 1..=4 {
            let Op::Posted(token) = next(&port).op else { panic!("not posted") };
            assert_eq!(token.id, id);
        }
        drop(port);
        tally.assert_even();
    });
}

/// Would catch: a batch in the wrong order or larger than asked for, or one that waits until it
/// is full.
#[test]
fn a_batch_wait_takes_what_is_there() {
    run(|| {
        let port = port(1);
        let mut packets = Vec::new();
        assert!(matches!(port.wait_many(&mut packets, 4, Some(Duration::ZERO)), Wait::TimedOut));
        assert!(packets.is_empty());
        for id in 0..6 {
            port.post(Token::from(id)).unwrap();
        }
        assert!(matches!(port.wait_many(&mut packets, 4, Some(PATIENCE)), Wait::Packet(4)));
        // Fewer than asked for: it does not wait for the rest.
        assert!(matches!(port.wait_many(&mut packets, 4, Some(PATIENCE)), Wait::Packet(2)));
        let ids: Vec<_> = packets
            .iter()
            .map(|packet| match &packet.op {
                Op::Posted(token) => token.id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
    });
}

/// Would catch: entries of a batch that share one status.
#[test]
fn each_packet_of_a_batch_has_its_own_result() {
    run(|| {
        let port = port(1);
        let (good, mut peer) = pair(&port);
        let (bad, gone) = pair(&port);
        good.start().context(Token::from(1)).recv(Vec::with_capacity(8)).unwrap();
        bad.start().context(Token::from(2)).recv(Vec::with_capacity(8)).unwrap();
        std::io::Write::write_all(&mut peer, b"abc").unwrap();
        reset(gone);
        until("both are there", || port.stats().queued >= 2);
        let mut packets = Vec::new();
        while packets.len() < 2 {
            let Wait::Packet(_) = port.wait_many(&mut packets, 8, Some(PATIENCE)) else {
                panic!("no packet")
            };
        }
        for packet in packets {
            match packet.context.map(|token| token.id) {
                Some(1) => assert_eq!(packet.result, Ok(3)),
                Some(2) => assert!(packet.result.unwrap_err().is_connection_reset()),
                other => panic!("{other:?}"),
            }
        }
    });
}

/// Would catch: a kind of waiter that sleeps through the closing: in a running slot, waiting for
/// one, with a time-out, for a batch; and one that comes only afterwards.
#[test]
fn closing_wakes_every_waiter() {
    run(|| {
        for concurrency in [1, 2, 4] {
            let port = port(concurrency);
            let waiters: Vec<_> = (0..9)
                .map(|number| {
                    let port = port.clone();
                    thread::spawn(move || match number % 3 {
                        0 => matches!(port.wait(), Wait::Closed),
                        1 => matches!(port.wait_for(PATIENCE * 9), Wait::Closed),
                        _ => matches!(port.wait_many(&mut Vec::new(), 4, None), Wait::Closed),
                    })
                })
                .collect();
            until("all wait", || port.stats().waiting == 9);
            port.close();
            assert!(waiters.into_iter().all(join));
            assert!(matches!(port.wait(), Wait::Closed));
            assert_eq!(port.stats().waiting, 0);
        }
    });
}

/// Would catch: a wake-up lost where closing meets threads that are just coming to wait or to
/// leave.
#[test]
fn closing_wakes_those_who_are_on_their_way() {
    run(|| {
        for round in 0..60 {
            let port = port(1 + round % 2);
            let waiters: Vec<_> = (0..4)
                .map(|_| {
                    let port = port.clone();
                    thread::spawn(move || while let Wait::Packet(_) = port.wait() {})
                })
                .collect();
            for id in 0..10 {
                port.post(Token::from(id)).unwrap();
            }
            port.close();
            waiters.into_iter().for_each(join);
        }
    });
}

/// Would catch: an operation that closing cancels, given to a worker that is just coming to wait as
/// if it were an error of its own. Anybody who passes errors on would end with it.
#[test]
fn what_closing_cancels_has_no_packet() {
    run(|| {
        for _ in 0..100 {
            let port = port(2);
            let pairs: Vec<_> = (0..8).map(|_| pair(&port)).collect();
            for (stream, _) in &pairs {
                (0..8).for_each(|_| stream.recv(Buf::pooled()).unwrap());
            }
            let workers: Vec<_> = (0..4)
                .map(|number| {
                    let port = port.clone();
                    let mut packets = Vec::new();
                    thread::spawn(move || {
                        let most = 1 + number % 2 * 3;
                        while let Wait::Packet(_) = port.wait_many(&mut packets, most, None) {
                            for packet in packets.drain(..) {
                                packet.result.unwrap();
                                let Op::Posted(token) = packet.op else { continue };
                                // Refused, it is over.
                                let _ = port.post(token);
                            }
                        }
                    })
                })
                .collect();
            (0..8).for_each(|id| port.post(Token::from(id)).unwrap());
            until("they work", || port.stats().packets > 200);
            port.close();
            workers.into_iter().for_each(join);
        }
    });
}

/// Would catch: a packet that is taken back from the worker that has it, or a buffer freed under
/// it.
#[test]
fn a_worker_keeps_its_packet_when_the_port_closes() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.recv(Buf::pooled()).unwrap();
        std::io::Write::write_all(&mut peer, b"kept").unwrap();
        let packet = next(&port);
        port.close();
        drop((port, stream));
        let Op::Recv { buf, stream } = packet.op else { panic!("not a receive") };
        assert_eq!(&buf[..], b"kept");
        // And the handle is still there, but closed.
        assert!(stream.recv(Buf::pooled()).unwrap_err().error.is_closed());
        drop(stream);
        assert_eq!(&buf[..], b"kept");
    });
}

/// Would catch: anything that a closed port still accepts, and what is refused and lost.
#[test]
fn a_closed_port_accepts_nothing() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let listener = port.listen("127.0.0.1:0", 0).unwrap();
        let (stream, _peer) = pair(&port);
        let address = listener.local_addr().unwrap();
        port.close();

        let given_back = |refused: Refused<Buf>, bytes: &[u8]| {
            assert!(refused.error.is_closed());
            assert_eq!(&refused.value[..], bytes);
        };
        let refused = port.post(tally.token(3)).unwrap_err();
        assert!(refused.error.is_closed() && refused.value.id == 3);
        drop(refused);
        given_back(stream.send(tally.bytes(vec![1, 2, 3])).unwrap_err(), &[1, 2, 3]);
        given_back(stream.recv(b"text".to_vec()).unwrap_err(), b"text");
        given_back(stream.recv_exact(b"text".to_vec(), 2).unwrap_err(), b"text");
        let bufs = vec![tally.bytes(vec![4]), tally.bytes(vec![5])];
        let refused = stream.send_vectored(bufs).unwrap_err();
        assert!(refused.error.is_closed() && refused.value.len() == 2);
        drop(refused);
        given_back(listener.accept_first(b"text".to_vec(), PATIENCE).unwrap_err(), b"text");
        assert!(stream.recv_each().unwrap_err().is_closed());
        assert!(stream.shutdown(Shutdown::Both).unwrap_err().is_closed());
        assert!(stream.connect(address).unwrap_err().is_closed());
        assert!(listener.accept().unwrap_err().is_closed());
        assert!(listener.accept_one().unwrap_err().is_closed());
        assert!(port.listen("127.0.0.1:0", 0).unwrap_err().is_closed());
        assert!(port.connect(address, 0).unwrap_err().is_closed());
        given_back(port.connect_with(address, 0, tally.bytes(vec![9])).unwrap_err(), &[9]);
        let (socket, _other) = sockets();
        let refused = port.associate(socket, 0).unwrap_err();
        assert!(refused.error.is_closed());
        // The descriptor came back: it is open and its own.
        #[cfg_attr(unix, expect(clippy::useless_conversion, reason = "elsewhere there are two"))]
        let socket = OwnedSocket::try_from(refused.value).unwrap();
        assert!(std::net::TcpStream::from(socket).peer_addr().is_ok());
        drop((port, stream, listener));
        tally.assert_even();
    });
}

/// Would catch: leftover packets that leak or are dropped twice; a handle that keeps what was
/// posted alive.
#[test]
fn dropping_a_port_frees_what_is_left() {
    run(|| {
        let tally = Tally::default();
        let size = Size::new();
        let port = port(2);
        let (stream, peer) = pair(&port);
        for id in 0..100 {
            port.post(tally.token(id)).unwrap();
        }
        // In flight, waiting behind it, over but not taken.
        for id in 0..3 {
            stream.start().context(tally.token(id)).recv(size.vec()).unwrap();
            stream.start().context(tally.token(id)).send(tally.bytes(vec![1; 9])).unwrap();
        }
        until("some are over", || port.stats().queued > 100);
        drop(port);
        tally.assert_even();
        assert_eq!(size.alive(), 0);
        drop((stream, peer));
        tally.assert_even();
    });
}

/// Would catch: a port that lives on in the threads or handles that knew it.
#[test]
fn the_last_clone_ends_the_port_and_handles_do_not_keep_it() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.start().context(tally.token(1)).recv_each().unwrap();
        let other = port.clone();
        drop(port);
        other.post(tally.token(2)).unwrap();
        assert!(!other.is_closed());
        drop(other);
        tally.assert_even();
        // The peer learns of it although we hold the handle.
        assert_eq!(std::io::Read::read(&mut peer, &mut [0; 8]).unwrap(), 0);
        assert!(stream.send(vec![1]).unwrap_err().error.is_closed());
    });
}

/// Would catch: a worker asleep in a port whose owner is gone, or a port that never goes because
/// an accepted connection, not associated yet, holds it.
#[test]
fn what_was_accepted_outlives_its_port() {
    run(|| {
        let port = port(1);
        let listener = port.listen("127.0.0.1:0", 0).unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept_one().unwrap();
        let Op::Accept { incoming: Some(incoming), .. } = next(&port).op else {
            panic!("not accepted")
        };
        drop((port, listener));
        let socket = std::net::TcpStream::from(OwnedSocket::from(incoming));
        std::io::Write::write_all(&mut &socket, b"still here").unwrap();
        let mut text = [0; 10];
        std::io::Read::read_exact(&mut client, &mut text).unwrap();
        assert_eq!(&text, b"still here");
    });
}

/// Would catch: 0 taken literally, or as some fixed number.
#[test]
fn a_concurrency_of_zero_means_the_processors() {
    run(|| {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        assert_eq!(port(0).stats().concurrency, processors);
        assert_eq!(port(3).stats().concurrency, 3);
    });
}

/// Would catch: counters that drift: operations counted as in flight for ever, packets not
/// counted, handles not forgotten.
#[test]
fn the_counters_agree_with_what_happened() {
    run(|| {
        let port = port(2);
        let (stream, peer) = pair(&port);
        let mut echo = peer.try_clone().unwrap();
        let mut handed_out = 0;
        for _ in 0..50 {
            stream.send(vec![5; 100]).unwrap();
            stream.recv(Buf::pooled()).unwrap();
            drop(next(&port));
            handed_out += 1;
            std::io::Write::write_all(&mut echo, b"x").unwrap();
            drop(next(&port));
            handed_out += 1;
        }
        stream.recv_each().unwrap();
        stream.recv(Vec::with_capacity(1)).unwrap();
        assert_eq!(port.stats().in_flight, 2);
        assert_eq!(stream.cancel_all(), 2);
        for _ in 0..2 {
            drop(next(&port));
            handed_out += 1;
        }
        assert!(poll(&port).is_none());
        let stats = port.stats();
        assert_eq!((stats.in_flight, stats.queued, stats.packets), (0, 0, handed_out));
        assert_eq!((port.handles(), stats.running, stats.waiting), (1, 1, 0));
        drop((stream, peer));
        assert_eq!(port.handles(), 0);
    });
}

/// Would catch: operations without a packet that are counted as packets, or never as finished.
#[test]
fn silent_operations_leave_no_packet_and_no_trace() {
    run(|| {
        let port = port(1);
        let (stream, _peer) = pair(&port);
        for _ in 0..10 {
            stream.start().silent().send(vec![1; 10]).unwrap();
        }
        stream.send(vec![2]).unwrap();
        assert!(matches!(next(&port).op, Op::Send { .. }));
        assert!(poll(&port).is_none());
        assert_eq!(port.stats().in_flight, 0);
        assert_eq!(port.stats().packets, 1, "packets handed out");
    });
}

/// Would catch: a time-out that begins again with every operation that ends without a packet.
#[test]
fn silent_operations_do_not_stretch_a_time_out() {
    run(|| {
        let port = port(1);
        let (stream, _peer) = pair(&port);
        let (done, over) = mpsc::channel();
        let waiter = {
            let port = port.clone();
            thread::spawn(move || {
                let waited = port.wait_for(Duration::from_millis(300));
                done.send(()).unwrap();
                assert!(matches!(waited, Wait::TimedOut));
            })
        };
        // One every 20 ms, for as long as the wait goes on.
        let mut rounds = 0;
        while over.try_recv().is_err() {
            assert!(rounds < 500, "the wait never times out");
            rounds += 1;
            stream.start().silent().send(vec![1]).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        join(waiter);
    });
}

/// Would catch: posted values that are examined or changed on the way, in the raw layer.
#[test]
fn a_raw_post_passes_its_three_values_through() {
    run(|| {
        let port = crate::builder().concurrency(1).build_raw().unwrap();
        let operation = std::ptr::without_provenance_mut(0xdead_0001);
        port.post(usize::MAX, 42, operation).unwrap();
        port.post(0, 0, std::ptr::null_mut()).unwrap();
        let Wait::Packet(first) = port.wait(Some(PATIENCE)) else { panic!("no packet") };
        assert_eq!((first.bytes, first.key, first.operation), (usize::MAX, 42, operation));
        assert_eq!((first.status, first.more), (0, false));
        let Wait::Packet(second) = port.wait(Some(PATIENCE)) else { panic!("no packet") };
        assert_eq!((second.bytes, second.key, second.operation), (0, 0, std::ptr::null_mut()));
        assert!(matches!(port.wait(Some(Duration::ZERO)), Wait::TimedOut));
        port.close();
        assert_eq!(port.post(0, 0, operation).unwrap_err().kind(), ErrorKind::Closed);
        assert!(matches!(port.wait(None), Wait::Closed));
    });
}

/// Would catch: an operation that can be started twice at once; a key that gets lost; a silent
/// operation whose end cannot be seen.
#[test]
fn a_raw_operation_is_in_flight_once() {
    run(|| {
        let port = crate::builder().concurrency(1).build_raw().unwrap();
        let (socket, peer) = sockets();
        let socket = port.associate(socket.into(), 9).unwrap();
        let operation = Box::into_raw(Box::new(raw::Operation::new(raw::Request::Readable)));
        let silent = raw::Operation::new(raw::Request::Shutdown { how: Shutdown::Write });
        let silent = Box::into_raw(Box::new(silent.without_packet()));
        // SAFETY: both operations and the handle stay until nothing is pending, below.
        unsafe {
            socket.start(operation).unwrap();
            assert!((*operation).is_pending());
            assert_eq!(socket.start(operation).unwrap_err().kind(), ErrorKind::Busy);
            socket.start(silent).unwrap();
        }
        drop(peer);
        let Wait::Packet(done) = port.wait(Some(PATIENCE)) else { panic!("no packet") };
        assert_eq!((done.operation, done.key, done.result()), (operation, 9, Ok(0)));
        until("the silent one is over", || {
            assert!(matches!(port.wait(Some(Duration::ZERO)), Wait::TimedOut));
            // SAFETY: the operation is alive.
            unsafe { !(*silent).is_pending() }
        });
        // SAFETY: neither is in flight; both were made by `into_raw`.
        unsafe {
            assert!(!(*operation).is_pending());
            drop(Box::from_raw(operation));
            drop(Box::from_raw(silent));
        }
        port.close();
        assert_eq!(port.drain(PATIENCE, &mut |_| panic!("nothing is left")), 0);
    });
}

/// Would catch: a child that works on its parent's rings.
#[cfg(unix)]
#[test]
fn a_forked_child_is_refused_and_does_no_harm() {
    if !in_child(module_path!(), "a_forked_child_is_refused_and_does_no_harm") {
        return;
    }
    let port = port(1);
    let (stream, peer) = pair(&port);
    stream.recv(Vec::with_capacity(8)).unwrap();
    port.post(Token::from(1)).unwrap();
    let forked = |error: wharf::Error| error.kind() == ErrorKind::Forked;
    // SAFETY: the child only makes system calls and allocates little, and ends with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let waited = matches!(port.wait_for(Duration::ZERO), Wait::Broken(error) if forked(error));
        let posted = port.post(Token::from(2)).is_err_and(|refused| forked(refused.error));
        let started = stream.recv(Vec::new()).is_err_and(|refused| forked(refused.error));
        // Dropping it must not reach the parent's kernel side either.
        drop((stream, port));
        // SAFETY: ends the child at once.
        unsafe {
            libc::_exit(i32::from(!waited) + i32::from(!posted) * 2 + i32::from(!started) * 4)
        };
    }
    let mut status = 0;
    // SAFETY: the status lives across the call, and the child is ours.
    unsafe { assert_eq!(libc::waitpid(child, &raw mut status, 0), child) };
    assert!(libc::WIFEXITED(status), "the child ended with {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "which of the child's checks failed");
    // The parent's operations are as they were.
    assert!(matches!(next(&port).op, Op::Posted(Token { id: 1, .. })));
    std::io::Write::write_all(&mut &peer, b"on").unwrap();
    assert_eq!(next(&port).result, Ok(2));
    assert!(poll(&port).is_none());
    child_has_run();
}

/// Would catch: a socket that belongs to two ports, or to one twice; an association that outlives
/// its handle; a refused descriptor that is lost or closed.
#[test]
fn a_socket_belongs_to_one_port_until_it_is_closed() {
    run(|| {
        let (first, second) = (port(1), port(1));
        let (socket, peer) = sockets();
        let twin = socket.try_clone().unwrap();
        let stream = first.associate(socket, 1).unwrap();
        let refused = first.associate(twin, 2).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Associated);
        let refused = second.associate(refused.value, 3).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Associated);
        assert_eq!((first.handles(), second.handles()), (1, 0));
        drop(stream);
        if cfg!(windows) {
            // There the twin keeps the socket open, and with it the association.
            let refused = second.associate(refused.value, 4).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::Associated);
        } else {
            let stream = second.associate(refused.value, 4).unwrap();
            assert_eq!(*stream.key(), 4);
            stream.send("moved").unwrap();
            assert_eq!(next(&second).result, Ok(5));
        }
        drop(peer);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let twin = listener.try_clone().unwrap();
        let _listener = first.associate_listener(listener, 0).unwrap();
        let refused = second.associate_listener(twin, 0).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Associated);
    });
}

/// Would catch: streams that are not visited, or dead ones that are.
#[test]
fn every_live_handle_is_visited() {
    run(|| {
        let port = port(1);
        let (one, _peer_one) = pair(&port);
        let (two, _peer_two) = pair(&port);
        let mut seen = Vec::new();
        port.each_stream(|stream| seen.push(stream.clone()));
        assert!(seen.len() == 2 && seen.contains(&one) && seen.contains(&two));
        seen.clear();
        drop(one);
        port.each_stream(|stream| seen.push(stream.clone()));
        assert!(seen == [two]);
    });
}

/// Would catch: a panic or an error in a handler that ends the worker, or the packet's connection
/// that is not closed by it; a run that does not end with the port.
#[test]
fn workers_survive_their_handlers() {
    run(|| {
        let port = port(2);
        let (stream, mut peer) = pair(&port);
        let (failing, mut failed_peer) = pair(&port);
        stream.recv(Vec::with_capacity(8)).unwrap();
        failing.recv(Vec::with_capacity(8)).unwrap();
        drop((stream, failing));
        let runner = {
            let port = port.clone();
            thread::spawn(move || {
                port.workers(3).run(|packet| {
                    let bytes = packet.bytes()?;
                    match packet.op {
                        Op::Recv { buf, .. } if bytes > 0 && buf[0] == b'p' => {
                            // Not through the panic hook: its output says nothing here.
                            std::panic::resume_unwind(Box::new("a handler's panic"))
                        }
                        Op::Recv { .. } => Err(std::io::Error::other("a handler's error").into()),
                        _ => Ok(()),
                    }
                })
            })
        };
        std::io::Write::write_all(&mut peer, b"p").unwrap();
        std::io::Write::write_all(&mut failed_peer, b"e").unwrap();
        assert_eq!(std::io::Read::read(&mut peer, &mut [0; 8]).unwrap(), 0);
        assert_eq!(std::io::Read::read(&mut failed_peer, &mut [0; 8]).unwrap(), 0);
        until("all three wait again", || port.stats().waiting == 3);
        port.close();
        join(runner).unwrap();
    });
}
