//! UDP: datagrams with their addresses and marks, several at once, groups, and what the network
//! says. Between network namespaces: `network.rs`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use wharf::{Buf, Ecn, Envelope, ErrorKind, Interface, Received, Wait};

use super::{needs::*, support::*};

type Socket = wharf::UdpSocket<u32, Token>;

fn bound(port: &Port) -> (Socket, SocketAddr) {
    let socket = port.bind_udp("127.0.0.1:0", 7).expect("a socket");
    let address = socket.local_addr().expect("an address");
    (socket, address)
}

/// A socket without a port.
fn peer(address: &str) -> (UdpSocket, SocketAddr) {
    let peer = UdpSocket::bind(address).expect("a socket");
    peer.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let address = peer.local_addr().expect("an address");
    (peer, address)
}

fn local() -> (UdpSocket, SocketAddr) {
    peer("127.0.0.1:0")
}

/// The datagram that a packet brings.
#[track_caller]
fn datagram(packet: Packet) -> (Buf, Received) {
    let bytes = packet.result.expect("a datagram");
    match packet.op {
        Op::RecvFrom { buf, received: Some(received), .. } => {
            assert_eq!(buf.len(), bytes);
            (buf, received)
        }
        other => panic!("not a datagram: {other:?}"),
    }
}

#[track_caller]
fn sent(packet: Packet) -> Buf {
    assert!(packet.result.is_ok(), "{:?}", packet.result);
    match packet.op {
        Op::SendTo { buf, .. } => buf,
        other => panic!("not a send: {other:?}"),
    }
}

#[track_caller]
fn heard(peer: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let length = peer.recv(&mut buffer).expect("a datagram");
    buffer.truncate(length);
    buffer
}

/// Packets of receives and of sends, apart.
fn sort(port: &Port, count: usize) -> (Vec<Packet>, Vec<Packet>) {
    let packets = (0..count).map(|_| next(port));
    packets.partition(|packet| matches!(packet.op, Op::RecvFrom { .. }))
}

/// The loopback interface.
fn loopback() -> Interface {
    cfg_select! {
        // Always the first.
        windows => Interface::from_index(1),
        _ => Interface::named("lo").expect("a loopback interface"),
    }
}

/// How many datagrams the system has thrown away. None: it does not tell for a socket.
#[track_caller]
fn dropped(socket: &Socket) -> Option<u32> {
    match socket.dropped() {
        Err(error) if cfg!(windows) || !has(Need::Drops) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            None
        }
        dropped => Some(dropped.expect("a number")),
    }
}

/// Listens for what the network says. False, and one line that says so: nothing does here.
#[track_caller]
fn hears_errors(socket: &Socket) -> bool {
    match socket.recv_errors() {
        Err(error) if cfg!(windows) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("go on without"), "{error}");
            false
        }
        started => {
            started.expect("started");
            true
        }
    }
}

// ---- Receiving and sending --------------------------------------------------------------------

/// Would catch: a kind of buffer that is not filled or not sent, a sender that is not told, a
/// datagram that is joined with the next, or whose bytes are kept from the one before.
#[test]
fn datagrams_come_with_their_senders() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        assert_eq!(*socket.key(), 7);
        let (client, from) = local();
        for buf in [
            Buf::with_capacity(16),
            Buf::from(vec![9; 40]),
            Buf::from(vec![9; 16].into_boxed_slice()),
            Buf::from(BytesMut::with_capacity(16)),
            Buf::pooled(),
        ] {
            let kind = format!("{buf:?}");
            socket.recv(buf).unwrap();
            assert!(poll(&port).is_none(), "{kind}");
            client.send_to(b"hello", address).unwrap();
            let (buf, received) = datagram(next(&port));
            assert_eq!((&buf[..], received.from), (&b"hello"[..], from), "{kind}");
            assert_eq!((received.length, received.is_truncated(5)), (5, false), "{kind}");
            assert_eq!((received.to, received.ecn(), received.hop_limit), (None, None, None));
            assert_eq!(received.datagrams(&buf).collect::<Vec<_>>(), [b"hello"]);
            // And back with it.
            socket.send_to(buf, received.from).unwrap();
            assert_eq!(&sent(next(&port))[..], b"hello", "{kind}");
            assert_eq!(heard(&client), b"hello", "{kind}");
        }
        for buf in [Buf::from("static"), Buf::from(Bytes::from_static(b"static"))] {
            let refused = socket.recv(buf).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
            socket.send_to(refused.value, from).unwrap();
            assert_eq!(&sent(next(&port))[..], b"static");
            assert_eq!(heard(&client), b"static");
        }
        assert!(poll(&port).is_none());
    });
}

/// Would catch: an empty datagram that is taken for an end, or not sent.
#[test]
fn a_datagram_may_have_no_bytes() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let (client, from) = local();
        socket.recv(vec![1; 9]).unwrap();
        client.send_to(b"", address).unwrap();
        let (buf, received) = datagram(next(&port));
        assert_eq!((buf.len(), received.from), (0, from));
        assert_eq!(received.datagrams(&buf).count(), 1);
        socket.recv_each().unwrap();
        for text in [&b""[..], b"then some", b"", b""] {
            client.send_to(text, address).unwrap();
            let packet = next(&port);
            assert!(packet.more);
            assert_eq!(&datagram(packet).0[..], text);
        }
        socket.send_to("", from).unwrap();
        assert_eq!(sent(next(&port)).len(), 0);
        assert_eq!(heard(&client), b"");
    });
}

/// Would catch: receives that get the datagrams in another order than they were started in, one
/// that gets none, or packets that overtake each other: with datagrams there before and after.
#[test]
fn several_receives_get_the_datagrams_in_order() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let (client, _) = local();
        let mut next_number = 0u32;
        let mut send = |count: u32| {
            for _ in 0..count {
                client.send_to(&next_number.to_le_bytes(), address).unwrap();
                next_number += 1;
            }
        };
        let mut expected = 0;
        let mut random = Random::new(Random::seed("several_receives_get_the_datagrams_in_order"));
        let mut waiting = 0u32;
        let mut there = 0u32;
        for _ in 0..200 {
            let mut some = || u32::try_from(random.below(50)).unwrap();
            let (receives, datagrams) = (some(), some());
            for id in 0..receives {
                let start = socket.start().context(Token::from(u64::from(expected + waiting + id)));
                if random.below(2) == 0 {
                    start.recv(Buf::pooled()).unwrap();
                } else {
                    start.recv(Buf::with_capacity(4)).unwrap();
                }
            }
            waiting += receives;
            send(datagrams);
            there += datagrams;
            for _ in 0..waiting.min(there) {
                let packet = next(&port);
                assert_eq!(packet.context.as_ref().unwrap().id, u64::from(expected));
                assert_eq!(&datagram(packet).0[..], expected.to_le_bytes());
                expected += 1;
                waiting -= 1;
                there -= 1;
            }
            assert!(poll(&port).is_none());
            if there > 60 {
                // The system's buffer must not overflow.
                for id in 0..there {
                    let token = Token::from(u64::from(expected + waiting + id));
                    socket.start().context(token).recv(Buf::pooled()).unwrap();
                }
                waiting += there;
                for _ in 0..there {
                    assert_eq!(&datagram(next(&port)).0[..], expected.to_le_bytes());
                    expected += 1;
                }
                waiting -= there;
                there = 0;
            }
        }
        assert_eq!(socket.cancel_all(), waiting as usize);
        for _ in 0..waiting {
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
    });
}

/// Would catch: sends that overtake each other, or packets of sends that do.
#[test]
fn sends_go_out_in_order() {
    run(|| {
        const COUNT: u32 = 500;
        let port = port(1);
        let (socket, _) = bound(&port);
        let (client, to) = local();
        SockRef::from(&client).set_recv_buffer_size(4 << 20).unwrap();
        let reader = thread::spawn(move || {
            for number in 0..COUNT {
                assert_eq!(heard(&client)[..4], number.to_le_bytes());
            }
        });
        for number in 0..COUNT {
            let mut data = vec![0; 1200];
            data[..4].copy_from_slice(&number.to_le_bytes());
            socket.start().context(Token::from(u64::from(number))).send_to(data, to).unwrap();
            if number >= 16 {
                let packet = next(&port);
                assert_eq!(packet.context.as_ref().unwrap().id, u64::from(number - 16));
                sent(packet);
            }
        }
        for number in COUNT - 16..COUNT {
            let packet = next(&port);
            assert_eq!(packet.context.as_ref().unwrap().id, u64::from(number));
            sent(packet);
        }
        join(reader);
    });
}

/// Would catch: a datagram that is cut without a word, with the wrong length, or beyond its buffer.
#[test]
fn truncation_is_told_with_the_true_size() {
    run(|| {
        let port = build(crate::builder().concurrency(1).datagram_pool(4, 4096));
        let (socket, address) = bound(&port);
        let (client, _) = local();
        let own = || Buf::from(vec![9; 10].into_boxed_slice());
        for (make, room) in [(&own as &dyn Fn() -> Buf, 10), (&Buf::pooled, 4096)] {
            for length in [room - 1, room, room + 1, 3 * room] {
                socket.recv(make()).unwrap();
                client.send_to(&pattern(0, length), address).unwrap();
                let packet = next(&port);
                assert_eq!(packet.result, Ok(length.min(room)));
                let bytes = packet.bytes;
                let (buf, received) = datagram(packet);
                // Not every system tells how long it was.
                let told = if cfg!(windows) { length.min(room + 1) } else { length };
                assert_eq!((received.length, received.is_truncated(bytes)), (told, length > room));
                assert_eq!(buf[..], pattern(0, length.min(room)));
                // The rest is lost, and not the next one's.
                assert!(poll(&port).is_none());
            }
        }
    });
}

/// Would catch: a pool whose buffers do not hold every datagram.
#[test]
fn every_datagram_fits_into_the_pool() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let (client, _) = local();
        socket.recv_each().unwrap();
        for length in [1, 1472, 9000, 65_507] {
            client.send_to(&pattern(1, length), address).unwrap();
            let (buf, received) = datagram(next(&port));
            assert_eq!((received.length, received.is_truncated(buf.len())), (length, false));
            assert_eq!(buf[..], pattern(1, length));
        }
    });
}

/// Would catch: a zero-byte receive that takes a datagram, or never comes.
#[test]
fn a_receive_without_room_takes_nothing() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let (client, _) = local();
        socket.recv(Buf::with_capacity(0)).unwrap();
        assert!(poll(&port).is_none());
        client.send_to(b"here", address).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result, Ok(0));
        assert!(matches!(packet.op, Op::RecvFrom { received: None, .. }));
        socket.recv(Buf::pooled()).unwrap();
        assert_eq!(&datagram(next(&port)).0[..], b"here");
    });
}

/// Would catch: a repeated receive that ends by itself, or does not end, or loses its context.
#[test]
fn a_repeated_receive_goes_on_until_it_is_cancelled() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let (client, _) = local();
        let id = socket.start().context(Token::from(5)).recv_each().unwrap();
        for number in 0..100u32 {
            client.send_to(&number.to_le_bytes(), address).unwrap();
            if number % 3 == 0 {
                assert_eq!(client.send_to(b"and", address).unwrap(), 3);
                let packet = next(&port);
                assert!(packet.more && packet.context.is_none());
                assert_eq!(&datagram(packet).0[..], number.to_le_bytes());
                assert_eq!(&datagram(next(&port)).0[..], b"and");
            } else {
                assert_eq!(&datagram(next(&port)).0[..], number.to_le_bytes());
            }
        }
        assert!(socket.cancel(id));
        let last = next(&port);
        assert!(!last.more && last.result.unwrap_err().is_cancelled());
        assert_eq!(last.context.unwrap().id, 5);
        assert!(matches!(last.op, Op::RecvFrom { received: None, .. }));
        assert!(!socket.cancel(id));
        assert!(poll(&port).is_none());
    });
}

/// Would catch: datagrams that are taken when the pool is empty and lost, a receive that is not
/// resumed, or memory that grows instead.
#[test]
fn receives_wait_for_buffers_of_the_pool() {
    run(|| {
        let port = build(crate::builder().concurrency(1).datagram_pool(2, 2048));
        let (socket, address) = bound(&port);
        let (client, _) = local();
        socket.recv_each().unwrap();
        for number in 0..6u8 {
            client.send_to(&[number], address).unwrap();
        }
        let mut held = Vec::new();
        for number in 0..2 {
            let (buf, _) = datagram(next(&port));
            assert_eq!(buf[..], [number]);
            held.push(buf);
        }
        assert!(poll(&port).is_none());
        until("it waits", || {
            assert!(poll(&port).is_none());
            port.stats().starving == 1
        });
        for number in 2..6 {
            drop(held.remove(0));
            let (buf, _) = datagram(next(&port));
            assert_eq!(buf[..], [number]);
            held.push(buf);
        }
        // One that waits can be cancelled, and closed.
        until("it waits", || {
            assert!(poll(&port).is_none());
            client.send_to(b"x", address).unwrap();
            port.stats().starving == 1
        });
        socket.close();
        assert!(next(&port).result.unwrap_err().is_cancelled());
    });
}

/// Would catch: an operation that outlives its end, or a buffer that is lost with it.
#[test]
fn operations_end_early() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let size = Size::new();
        // One by one: the one in the kernel, one behind it, and one of the pool.
        let ids: Vec<_> = (0..4).map(|_| socket.start().recv(size.vec()).unwrap()).collect();
        assert_eq!(size.alive(), 4);
        for at in [2, 0, 3, 1] {
            assert!(socket.cancel(ids[at]));
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
        assert_eq!(size.alive(), 0);
        let short = Duration::from_millis(5);
        socket.start().deadline(short).recv(size.vec()).unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        socket.start().deadline(short).recv_each().unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        socket.start().deadline(PATIENCE).recv(size.vec()).unwrap();
        local().0.send_to(b"in time", address).unwrap();
        assert_eq!(&datagram(next(&port)).0[..], b"in time");
        // All at once, also those of the error queue.
        let errors = usize::from(hears_errors(&socket));
        for _ in 0..3 {
            socket.recv(size.vec()).unwrap();
        }
        socket.close();
        for _ in 0..3 + errors {
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
        let refused = socket.recv(size.vec()).unwrap_err();
        assert!(refused.error.is_closed());
        assert!(socket.send_to(refused.value, address).unwrap_err().error.is_closed());
        // And with the port.
        let (other, _) = bound(&port);
        for _ in 0..3 {
            other.recv(size.vec()).unwrap();
        }
        hears_errors(&other);
        drop((other, socket, port));
        assert_eq!(size.alive(), 0);
    });
}

/// Would catch: a silent send that leaves a packet, or a silent failure that breaks something.
#[test]
fn sends_may_be_silent() {
    run(|| {
        let port = port(1);
        let (socket, _) = bound(&port);
        let (client, to) = local();
        for number in 0..50u8 {
            socket.start().silent().send_to(vec![number], to).unwrap();
        }
        socket.start().silent().send("to nobody").unwrap();
        until("all are over", || {
            assert!(poll(&port).is_none());
            port.stats().in_flight == 0
        });
        for number in 0..50 {
            assert_eq!(heard(&client), [number]);
        }
    });
}

/// Would catch: two packets of a serial socket at once, or none after the first.
#[test]
fn a_serial_socket_has_one_packet_out() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        socket.set_serial(true);
        socket.recv_each().unwrap();
        hears_errors(&socket);
        let (client, to) = local();
        for number in 0..5u8 {
            client.send_to(&[number], address).unwrap();
            socket.send_to(vec![number], to).unwrap();
        }
        let mut numbers = Vec::new();
        for _ in 0..10 {
            let packet = next(&port);
            assert!(poll(&port).is_none());
            if let Op::RecvFrom { buf, .. } = &packet.op {
                numbers.push(buf[0]);
            }
        }
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        assert!(poll(&port).is_none());
    });
}

// ---- Many workers -----------------------------------------------------------------------------

/// Would catch: a datagram that two workers get, or none, by any way of receiving.
#[test]
fn workers_share_a_socket_and_each_datagram_is_counted_once() {
    lacks_in_part(Need::Drops, "workers_share_a_socket_and_each_datagram_is_counted_once");
    run(|| {
        const COUNT: u64 = 20_000;
        for (each, depth) in [(true, 1), (false, 1), (false, 16)] {
            let port = port(2);
            let (socket, address) = bound(&port);
            socket.set_recv_buffer(4 << 20).unwrap();
            let seen: Vec<AtomicU64> = (0..COUNT).map(|_| AtomicU64::new(0)).collect();
            let total = AtomicU64::new(0);
            for _ in 0..depth {
                if each {
                    socket.recv_each().unwrap();
                } else {
                    socket.recv(Buf::with_capacity(64)).unwrap();
                }
            }
            let mut threads = HashSet::new();
            thread::scope(|scope| {
                let workers: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut mine = 0u64;
                            while let Wait::Packet(packet) = port.wait() {
                                let Op::RecvFrom { socket, buf, received: Some(_) } = packet.op
                                else {
                                    continue;
                                };
                                let number = u64::from_le_bytes(buf[..8].try_into().unwrap());
                                seen[usize::try_from(number).unwrap()]
                                    .fetch_add(1, Ordering::Relaxed);
                                mine += 1;
                                total.fetch_add(1, Ordering::SeqCst);
                                if !packet.more
                                    && let Err(refused) = socket.recv(buf)
                                {
                                    // All have come, and the port has been closed meanwhile.
                                    assert!(refused.error.is_closed(), "{refused}");
                                }
                            }
                            mine
                        })
                    })
                    .collect();
                let (client, _) = local();
                for number in 0..COUNT {
                    // Never more on the way than the system holds.
                    until("there is room", || number - total.load(Ordering::SeqCst) < 256);
                    client.send_to(&number.to_le_bytes(), address).unwrap();
                }
                until("all have come", || total.load(Ordering::SeqCst) == COUNT);
                port.close();
                for worker in workers {
                    threads.insert(worker.join().unwrap());
                }
            });
            assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1));
            assert_eq!(dropped(&socket).unwrap_or(0), 0);
        }
    });
}

/// Would catch: a socket whose next datagram waits until a worker has handled the one before.
#[test]
fn workers_handle_datagrams_of_one_socket_at_the_same_time() {
    run(|| {
        for each in [true, false] {
            let port = port(2);
            let (socket, address) = bound(&port);
            for _ in 0..if each { 1 } else { 4 } {
                if each { socket.recv_each().unwrap() } else { socket.recv(vec![0; 9]).unwrap() }
            }
            let meeting = std::sync::Barrier::new(2);
            thread::scope(|scope| {
                let workers: Vec<_> = (0..2)
                    .map(|_| {
                        scope.spawn(|| {
                            for _ in 0..20 {
                                datagram(next(&port));
                                if !each {
                                    socket.recv(vec![0; 9]).unwrap();
                                }
                                // Both have one, or they wait for ever.
                                meeting.wait();
                            }
                        })
                    })
                    .collect();
                let (client, _) = local();
                for _ in 0..40 {
                    client.send_to(b"meet", address).unwrap();
                }
                workers.into_iter().for_each(|worker| worker.join().unwrap());
            });
        }
    });
}

// ---- Bad input --------------------------------------------------------------------------------

/// Would catch: bad input that is accepted, that costs a buffer, or that does not say what to do.
#[test]
fn bad_input_is_refused_and_gives_its_buffer_back() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let (client, to) = local();
        let refuse = |buf: Vec<u8>, envelope: Envelope, word: &str| {
            let (start, length) = (buf.as_ptr(), buf.len());
            let refused = socket.send_to(buf, envelope).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
            assert!(refused.error.to_string().contains(word), "{}", refused.error);
            assert_eq!((refused.value.as_ptr(), refused.value.len()), (start, length));
        };
        refuse(vec![1; 65_508], to.into(), "65,507");
        refuse(vec![1; 90_000], Envelope::to(to).segments(65_508), "65,507");
        refuse(vec![1; 65_528], Envelope::connected(), "65,527");
        refuse(vec![1], Envelope::to(to).hop_limit(0), "1 to 255");
        refuse(vec![1], Envelope::to(to).source(Ipv6Addr::LOCALHOST.into()), "one family");
        // What only the system knows fails in its packet, with the buffer.
        let fails = |envelope: Envelope| {
            socket.send_to("stays", envelope).unwrap();
            let packet = next(&port);
            let error = packet.result.unwrap_err();
            let Op::SendTo { buf, .. } = packet.op else { panic!("{:?}", packet.op) };
            assert_eq!(&buf[..], b"stays");
            error
        };
        assert!(fails(Envelope::connected()).to_string().contains("connect the socket"));
        let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
        let error = fails(everybody.into());
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("set_broadcast"), "{error}");
        let six = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        assert!(fails(six.into()).to_string().contains("family"));
        let name = "bad_input_is_refused_and_gives_its_buffer_back";
        let reason = "in part: Wine sends without the marks, and binds to any address";
        let lax = not_shown_by_wine(name, reason);
        if !lax {
            fails(Envelope::to(to).interface(999_999));
            fails(Envelope::to(to).source(Ipv4Addr::new(192, 0, 2, 1).into()));
        }
        if cfg!(unix) {
            // Windows sends it.
            assert!(
                !fails(Envelope::to(SocketAddr::from(([127, 0, 0, 1], 0)))).to_string().is_empty()
            );
        }
        // Sockets that are none, or taken.
        let kind = |result: wharf::Result<Socket>| result.map(drop).unwrap_err().kind();
        assert_eq!(kind(port.bind_udp(address, 1)), ErrorKind::AddressInUse);
        if !lax {
            assert_eq!(kind(port.bind_udp("192.0.2.1:0", 1)), ErrorKind::AddressNotAvailable);
        }
        assert_eq!(kind(port.bind_udp("nonsense", 1)), ErrorKind::InvalidInput);
        let refused = port.associate_udp(sockets().0, 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        let refused = port.associate_udp(client.try_clone().unwrap(), 1);
        assert!(refused.is_ok());
        let refused = port.associate_udp(client.try_clone().unwrap(), 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Associated);
        // All else goes on.
        socket.recv(vec![0; 9]).unwrap();
        socket.send_to("still here", address).unwrap();
        let (receives, sends) = sort(&port, 2);
        assert_eq!((receives.len(), sends.len()), (1, 1));
    });
}

/// Would catch: a group that is none, an interface that is not there, or a membership that is not.
#[test]
fn bad_groups_are_refused() {
    if lacks(Need::OwnGroups, "bad_groups_are_refused") {
        return;
    }
    run(|| {
        let port = port(1);
        let (socket, _) = bound(&port);
        let group = IpAddr::from(Ipv4Addr::new(239, 1, 2, 3));
        let any = Interface::ANY;
        let nowhere = Interface::from_index(999_999);
        let refused = |result: wharf::Result<()>, word: &str| {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            error.kind()
        };
        let one = IpAddr::from(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(refused(socket.join(one, any), "224.0.0.0"), ErrorKind::InvalidInput);
        let six = IpAddr::from(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 9));
        assert_eq!(refused(socket.join(six, any), "family"), ErrorKind::InvalidInput);
        let list = if cfg!(windows) { "ipconfig" } else { "ip link" };
        refused(socket.join(group, nowhere), list);
        refused(socket.join_source(one, group, nowhere), "");
        refused(socket.set_multicast_interface(nowhere), "");
        refused(socket.leave(group, loopback()), "leave only what was joined");
        assert!(Interface::named("no such one").is_err());
        assert!(Interface::named("with\0zero").is_err());
        let address = SocketAddr::new(one, 0);
        assert!(port.bind_multicast(address, any, 1).is_err());
        assert!(port.bind_multicast(SocketAddr::new(group, 0), nowhere, 1).is_err());
        let lo = loopback();
        socket.join(group, lo).unwrap();
        assert_eq!(refused(socket.join(group, lo), "already"), ErrorKind::AddressInUse);
        socket.leave(group, lo).unwrap();
        assert_eq!(socket.set_hop_limit(0).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

/// Would catch: losses that are not counted, memory that grows, or a socket that a flood ends.
#[test]
fn a_flood_is_counted_and_bounded() {
    lacks_in_part(Need::Drops, "a_flood_is_counted_and_bounded");
    run(|| {
        let port = build(crate::builder().concurrency(1).datagram_pool(8, 2048));
        let (socket, address) = bound(&port);
        socket.set_recv_buffer(8192).unwrap();
        assert_eq!(dropped(&socket).unwrap_or(0), 0);
        let (client, _) = local();
        socket.recv_each().unwrap();
        for number in 0..1000u32 {
            client.send_to(&[number.to_le_bytes(), [0; 4]].concat(), address).unwrap();
        }
        let mut got = 0;
        let mut last = None;
        while let Some(packet) = poll(&port) {
            let (buf, _) = datagram(packet);
            let number = u32::from_le_bytes(buf[..4].try_into().unwrap());
            assert!(last.is_none_or(|last| number > last));
            last = Some(number);
            got += 1;
        }
        assert!(got < 1000);
        assert_eq!(dropped(&socket).unwrap_or(1000 - got), 1000 - got);
        client.send_to(b"afterwards", address).unwrap();
        assert_eq!(&datagram(next(&port)).0[..], b"afterwards");
    });
}

// ---- What the network says --------------------------------------------------------------------

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    let (socket, address) = local();
    drop(socket);
    address
}

/// Would catch: an ICMP error that ends a receive, or fails a send that has nothing to do with it.
#[test]
fn icmp_errors_do_not_end_receives() {
    run(|| {
        let port = port(1);
        let (client, to) = local();
        let reason = "in part: Wine wakes no receive after that";
        let deaf = not_shown_by_wine("icmp_errors_do_not_end_receives", reason);
        // A connected socket is told; the peer comes and goes.
        let (socket, address) = bound(&port);
        let nobody = nobody();
        socket.connect(nobody).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), nobody);
        socket.recv_each().unwrap();
        for _ in 0..20 {
            socket.send("anybody there?").unwrap();
            sent(next(&port));
            assert!(poll(&port).is_none());
        }
        socket.connect(to).unwrap();
        if deaf {
            assert_eq!(socket.cancel_all(), 1);
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
        client.send_to(b"I am", address).unwrap();
        if deaf {
            socket.recv_each().unwrap();
        }
        assert_eq!(&datagram(next(&port)).0[..], b"I am");
        // Single receives, several of them.
        let (socket, address) = bound(&port);
        socket.connect(nobody).unwrap();
        for _ in 0..3 {
            socket.recv(vec![0; 9]).unwrap();
        }
        for _ in 0..5 {
            socket.send("anybody there?").unwrap();
            sent(next(&port));
        }
        assert!(poll(&port).is_none());
        socket.connect(to).unwrap();
        if deaf {
            assert_eq!(socket.cancel_all(), 3);
            for _ in 0..3 {
                assert!(next(&port).result.unwrap_err().is_cancelled());
            }
        }
        for text in [b"one", b"two", b"thr"] {
            client.send_to(text, address).unwrap();
            if deaf {
                socket.recv(vec![0; 9]).unwrap();
            }
            assert_eq!(&datagram(next(&port)).0[..], text);
        }
    });
}

/// Would catch: ICMP errors that are not told to who asks, or without their address.
#[test]
fn icmp_errors_are_told_to_who_asks() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        let nobody = nobody();
        if cfg!(windows) {
            assert!(!hears_errors(&socket));
            return skip("icmp_errors_are_told_to_who_asks", "not there on Windows");
        }
        let id = socket.start().context(Token::from(3)).recv_errors().unwrap();
        socket.recv_each().unwrap();
        for round in 0..3 {
            socket.send_to("anybody there?", nobody).unwrap();
            let mut told = 0;
            let mut over = 0;
            while (told, over) != (1, 1) {
                let packet = next(&port);
                match packet.op {
                    Op::Icmp { error: Some(error), .. } => {
                        assert!(packet.more);
                        assert!(error.error.is_connection_refused(), "{error:?}");
                        assert_eq!(error.to, nobody);
                        assert_eq!(error.reporter, Some(Ipv4Addr::LOCALHOST.into()));
                        assert_eq!((error.icmp, error.mtu), (Some((3, 3)), None));
                        told += 1;
                    }
                    Op::SendTo { .. } => {
                        assert!(packet.result.is_ok(), "{round}: {:?}", packet.result);
                        over += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        // Receives go on beside.
        local().0.send_to(b"data", address).unwrap();
        assert_eq!(&datagram(next(&port)).0[..], b"data");
        assert!(socket.cancel(id));
        let last = next(&port);
        assert!(last.result.unwrap_err().is_cancelled() && !last.more);
        assert_eq!(last.context.unwrap().id, 3);
        assert!(matches!(last.op, Op::Icmp { error: None, .. }));
        // Nobody asks any more.
        for _ in 0..3 {
            socket.send_to("anybody there?", nobody).unwrap();
            sent(next(&port));
        }
        assert!(poll(&port).is_none());
        local().0.send_to(b"data", address).unwrap();
        assert_eq!(&datagram(next(&port)).0[..], b"data");
    });
}

/// Would catch: a worker that turns round and round because of errors that nobody takes.
#[cfg(unix)]
#[test]
fn an_error_queue_that_nobody_reads_does_no_harm() {
    run(|| {
        let port = port(1);
        let (raw, address) = local();
        // Switched on behind the port's back.
        let on = 1i32;
        // SAFETY: the option is a number, which lives across the call.
        let done = unsafe {
            use std::os::fd::AsRawFd;
            let (level, option) = (libc::IPPROTO_IP, libc::IP_RECVERR);
            libc::setsockopt(raw.as_raw_fd(), level, option, (&raw const on).cast(), 4)
        };
        assert_eq!(done, 0);
        let socket: Socket = port.associate_udp(raw, 1).unwrap();
        socket.recv_each().unwrap();
        for _ in 0..5 {
            socket.send_to("anybody there?", nobody()).unwrap();
            sent(next(&port));
        }
        assert!(poll(&port).is_none());
        let before = port.stats().kernel_entries;
        assert!(matches!(port.wait_for(Duration::from_millis(200)), Wait::TimedOut));
        assert!(port.stats().kernel_entries - before < 100, "{:?}", port.stats());
        local().0.send_to(b"data", address).unwrap();
        assert_eq!(&datagram(next(&port)).0[..], b"data");
    });
}

/// Would catch: a connected socket that receives from others, or cannot be connected anew.
#[test]
fn a_connected_socket_has_one_peer() {
    run(|| {
        let port = port(1);
        let (socket, address) = bound(&port);
        assert!(socket.peer_addr().is_err());
        let ((one, first), (other, second)) = (local(), local());
        socket.recv_each().unwrap();
        for (peer, stranger, to) in [(&one, &other, first), (&other, &one, second)] {
            socket.connect(to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), to);
            socket.send("to the peer").unwrap();
            sent(next(&port));
            assert_eq!(heard(peer), b"to the peer");
            stranger.send_to(b"strange", address).unwrap();
            peer.send_to(b"known", address).unwrap();
            let (buf, received) = datagram(next(&port));
            assert_eq!((&buf[..], received.from), (&b"known"[..], to));
            // To another one all the same.
            socket.send_to("aside", if to == first { second } else { first }).unwrap();
            sent(next(&port));
            assert_eq!(heard(stranger), b"aside");
        }
    });
}

// ---- Marks ------------------------------------------------------------------------------------

/// Would catch: an address, interface, hop limit or mark that is not told, told wrongly, or told
/// though nobody asked.
#[test]
fn what_is_in_the_header_is_told() {
    if lacks(Need::Marks, "what_is_in_the_header_is_told") {
        return;
    }
    run(|| {
        let port = port(1);
        let lo = loopback().index();
        let mut cases = vec![("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")];
        if !cfg!(windows) {
            // There, a socket of IPv6 receives nothing of IPv4 unless it is told to.
            cases.push(("[::]:0", "::ffff:127.0.0.1"));
        }
        for (own, to) in cases {
            let socket = port.bind_udp(own, 1).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), socket.local_addr().unwrap().port());
            let (client, _) =
                peer(if to.ip().to_canonical().is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" });
            let client_to = SocketAddr::new(to.ip().to_canonical(), to.port());
            let sock = SockRef::from(&client);
            // Windows lets nobody set it so.
            let classes = cfg!(unix) || is_wine() && client_to.is_ipv4();
            if client_to.is_ipv4() {
                sock.set_ttl_v4(33).unwrap();
                if classes {
                    sock.set_tos_v4(0xb8 | 2).unwrap();
                }
            } else {
                sock.set_unicast_hops_v6(33).unwrap();
                #[cfg(unix)]
                sock.set_tclass_v6(0xb8 | 2).unwrap();
            }
            let ask = || {
                client.send_to(b"x", client_to).unwrap();
                socket.recv(Buf::pooled()).unwrap();
                datagram(next(&port)).1
            };
            let plain = ask();
            assert_eq!((plain.to, plain.interface), (None, None), "{own}");
            assert_eq!((plain.hop_limit, plain.traffic_class), (None, None), "{own}");
            socket.set_packet_info(true).unwrap();
            let told = ask();
            assert_eq!(told.to.map(|to| to.to_canonical()), Some(client_to.ip()), "{own}");
            assert_eq!((told.interface, told.hop_limit), (Some(lo), None), "{own}");
            socket.set_recv_hop_limit(true).unwrap();
            socket.set_recv_traffic_class(true).unwrap();
            let told = ask();
            let (class, ecn) = if classes { (0xba, Ecn::Ect0) } else { (0, Ecn::NotEct) };
            assert_eq!((told.hop_limit, told.traffic_class), (Some(33), Some(class)), "{own}");
            assert_eq!(told.ecn(), Some(ecn), "{own}");
            socket.set_packet_info(false).unwrap();
            assert_eq!(ask().to, None, "{own}");
        }
    });
}

/// Would catch: marks of an envelope that are not set, set on the next datagram too, or for the
/// wrong family.
#[test]
fn an_envelope_sets_what_is_in_the_header() {
    if lacks(Need::Marks, "an_envelope_sets_what_is_in_the_header") {
        return;
    }
    run(|| {
        let port = port(1);
        let lo = loopback();
        let reason = "in part: Wine sends without the marks";
        let unmarked = not_shown_by_wine("an_envelope_sets_what_is_in_the_header", reason);
        for (own, other) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:0", "127.0.0.1:0"),
            ("[::1]:0", "[::1]:0"),
            ("[::]:0", "[::1]:0"),
        ] {
            let socket = port.bind_udp(own, 1).unwrap();
            let receiver = port.bind_udp(other, 2).unwrap();
            let to = receiver.local_addr().unwrap();
            receiver.set_packet_info(true).unwrap();
            receiver.set_recv_hop_limit(true).unwrap();
            receiver.set_recv_traffic_class(true).unwrap();
            let send = |envelope: Envelope| {
                socket.send_to("marked", envelope).unwrap();
                sent(next(&port));
                receiver.recv(Buf::pooled()).unwrap();
                let (buf, received) = datagram(next(&port));
                assert_eq!(&buf[..], b"marked");
                received
            };
            let plain = send(to.into());
            let hops = if cfg!(windows) && !is_wine() { 128 } else { 64 };
            assert_eq!((plain.hop_limit, plain.ecn()), (Some(hops), Some(Ecn::NotEct)), "{own}");
            if !unmarked {
                let envelope = Envelope::to(to).hop_limit(9).ecn(Ecn::Ect1).interface(lo.index());
                let marked = send(envelope.source(to.ip()));
                assert_eq!((marked.hop_limit, marked.ecn()), (Some(9), Some(Ecn::Ect1)), "{own}");
                assert_eq!(marked.from.ip(), to.ip(), "{own}");
                assert_eq!(send(to.into()), plain, "{own}");
                assert_eq!(send(Envelope::to(to).traffic_class(0xb9)).traffic_class, Some(0xb9));
            }
            // Connected, it is the socket that says where to.
            socket.connect(to).unwrap();
            if !unmarked {
                let marked = send(Envelope::connected().hop_limit(7).ecn(Ecn::Ce));
                assert_eq!((marked.hop_limit, marked.ecn()), (Some(7), Some(Ecn::Ce)), "{own}");
            }
            socket.set_hop_limit(5).unwrap();
            assert_eq!(send(Envelope::connected()).hop_limit, Some(5), "{own}");
        }
        if unmarked {
            return;
        }
        // An answer comes from where the question went to.
        let server = port.bind_udp("0.0.0.0:0", 3).unwrap();
        server.set_packet_info(true).unwrap();
        let (client, _) = local();
        let to = SocketAddr::from(([127, 0, 0, 53], server.local_addr().unwrap().port()));
        client.send_to(b"who?", to).unwrap();
        server.recv(Buf::pooled()).unwrap();
        let (_, received) = datagram(next(&port));
        assert_eq!(received.to, Some(to.ip()));
        server.send_to("me", Envelope::reply(&received)).unwrap();
        sent(next(&port));
        let mut buffer = [0; 9];
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (2, to));
    });
}

// ---- Several at once --------------------------------------------------------------------------

/// Would catch: boundaries that are not kept, bytes that are lost or doubled, by the kernel's
/// cutting and by ours.
#[test]
fn a_buffer_is_sent_as_several_datagrams() {
    if lacks(Need::Cutting, "a_buffer_is_sent_as_several_datagrams") {
        return;
    }
    run(|| {
        let port = port(1);
        let (socket, _) = bound(&port);
        let (client, to) = local();
        SockRef::from(&client).set_recv_buffer_size(4 << 20).unwrap();
        for (bytes, segment) in [
            (0, 100),
            (1, 100),
            (100, 100),
            (101, 100),
            (6400, 100),
            (6500, 100),
            (150_000, 1400),
            (5, 1),
        ] {
            let data = pattern(bytes, bytes);
            socket.send_to(data.clone(), Envelope::to(to).segments(segment)).unwrap();
            let packet = next(&port);
            assert_eq!(packet.bytes, bytes, "{bytes} / {segment}");
            sent(packet);
            if bytes == 0 {
                assert_eq!(heard(&client), b"");
            }
            for part in data.chunks(usize::from(segment)) {
                assert_eq!(heard(&client), part, "{bytes} / {segment}");
            }
        }
        // Larger than any interface takes in one piece: still sent, one by one.
        let data = pattern(0, 150_000);
        socket.send_to(data.clone(), Envelope::to(to).segments(65_507)).unwrap();
        sent(next(&port));
        for part in data.chunks(65_507) {
            assert_eq!(heard(&client), part);
        }
    });
}

/// Would catch: datagrams that come several at once without their boundaries, or are lost to a
/// small buffer.
#[test]
fn datagrams_may_come_several_at_once() {
    run(|| {
        let port = port(1);
        let (socket, to) = bound(&port);
        socket.set_recv_buffer(4 << 20).unwrap();
        let refused = build(crate::builder().concurrency(1).datagram_pool(4, 2048));
        let small = refused.bind_udp("127.0.0.1:0", 1).unwrap();
        assert_eq!(small.set_coalescing(true).unwrap_err().kind(), ErrorKind::InvalidInput);
        small.recv(vec![0; 100]).unwrap();

        if let Err(error) = socket.set_coalescing(true) {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            return skip("datagrams_may_come_several_at_once", "the system does not join them");
        }
        let refused = socket.recv(vec![0; 65_534]).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        assert_eq!(refused.value.len(), 65_534);
        const TEST: &str = "datagrams_may_come_several_at_once";
        let (sender, _) = bound(&port);
        if lacks(Need::Cutting, TEST) || lacks(Need::Joining, TEST) {
            return;
        }
        for buf in [None, Some(65_535)] {
            let (bytes, segment) = (120_000, 1200);
            let data = pattern(3, bytes);
            sender.send_to(data.clone(), Envelope::to(to).segments(segment)).unwrap();
            sent(next(&port));
            let mut parts = data.chunks(usize::from(segment));
            let mut packets = 0;
            while parts.len() > 0 {
                socket.recv(buf.map_or_else(Buf::pooled, |size| vec![0; size].into())).unwrap();
                let (buf, received) = datagram(next(&port));
                packets += 1;
                assert_eq!(received.length, buf.len());
                assert!(received.segment_size() == usize::from(segment));
                for datagram in received.datagrams(&buf) {
                    assert_eq!(Some(datagram), parts.next());
                }
            }
            assert!(packets <= 100);
            println!("{} datagrams in {packets} packets", bytes / usize::from(segment));
        }
        socket.set_coalescing(false).unwrap();
        socket.recv(vec![0; 10]).unwrap();
        sender.send_to("alone", to).unwrap();
        let (receives, _) = sort(&port, 2);
        assert_eq!(receives[0].bytes, 5);
    });
}

// ---- Groups -----------------------------------------------------------------------------------

// On IPv4 only: the loopback interface has no way to a group of IPv6. Both: `network.rs`.

/// Would catch: a group that is not joined or not left, or one joined by others that comes all the
/// same.
#[test]
fn groups_are_joined_and_left() {
    const TEST: &str = "groups_are_joined_and_left";
    if lacks(Need::OwnGroups, TEST) || lacks(Need::Marks, TEST) {
        return;
    }
    run(|| {
        let port = port(1);
        let lo = loopback();
        let [group, other] = [[239, 77, 1, 1], [239, 77, 1, 2]].map(IpAddr::from);
        let socket = port.bind_udp("0.0.0.0:0", 1).unwrap();
        let number = socket.local_addr().unwrap().port();
        let sender = port.bind_udp("0.0.0.0:0", 2).unwrap();
        sender.set_multicast_interface(lo).unwrap();
        sender.set_multicast_hop_limit(3).unwrap();
        socket.set_recv_hop_limit(true).unwrap();
        socket.set_packet_info(true).unwrap();
        // Somebody else of this machine has joined the other one.
        let reason = "in part: in Wine a socket hears what others have joined";
        if !not_shown_by_wine(TEST, reason) {
            let stranger = port.bind_udp("0.0.0.0:0", 3).unwrap();
            stranger.join(other, lo).unwrap();
        }
        socket.recv_each().unwrap();
        let send = |to| {
            let to = SocketAddr::new(to, number);
            sender.start().silent().send_to("to all", to).unwrap();
        };
        socket.join(group, lo).unwrap();
        send(other);
        send(group);
        let (buf, received) = datagram(next(&port));
        assert_eq!((&buf[..], received.to), (&b"to all"[..], Some(group)));
        assert_eq!((received.interface, received.hop_limit), (Some(lo.index()), Some(3)));
        socket.join(other, lo).unwrap();
        send(other);
        assert_eq!(datagram(next(&port)).1.to, Some(other));
        socket.leave(group, lo).unwrap();
        send(group);
        send(other);
        assert_eq!(datagram(next(&port)).1.to, Some(other));
        assert!(poll(&port).is_none());
    });
}

/// Would catch: sockets of one group that shut each other out, or what is sent to their port alone
/// and comes all the same.
#[test]
fn sockets_share_a_group_and_its_port() {
    if lacks(Need::OwnGroups, "sockets_share_a_group_and_its_port") {
        return;
    }
    run(|| {
        let port = port(1);
        let lo = loopback();
        let group = SocketAddr::from(([239, 77, 2, 1], 0));
        let first = port.bind_multicast(group, lo, 1).unwrap();
        let to = SocketAddr::new(group.ip(), first.local_addr().unwrap().port());
        let second = port.bind_multicast(to, lo, 2).unwrap();
        let (sender, address) = bound(&port);
        sender.set_multicast_interface(lo).unwrap();
        first.recv_each().unwrap();
        second.recv_each().unwrap();
        if cfg!(unix) {
            // On Windows this comes: no socket is bound to a group there.
            let alone = SocketAddr::new(address.ip(), to.port());
            sender.start().silent().send_to("not to the group", alone).unwrap();
        }
        sender.start().silent().send_to("to the group", to).unwrap();
        let mut keys = HashSet::new();
        for _ in 0..2 {
            let Op::RecvFrom { socket, buf, .. } = next(&port).op else { panic!() };
            assert_eq!(&buf[..], b"to the group");
            keys.insert(*socket.key());
        }
        assert_eq!(keys, HashSet::from([1, 2]));
        assert!(poll(&port).is_none());
    });
}

/// Would catch: a source that is not joined, or another one that comes too.
#[test]
fn groups_are_joined_for_one_source() {
    let reason = "Wine takes the source for the interface";
    const TEST: &str = "groups_are_joined_for_one_source";
    if not_shown_by_wine(TEST, reason) || lacks(Need::OwnGroups, TEST) {
        return;
    }
    run(|| {
        let port = port(1);
        let lo = loopback();
        let group = IpAddr::from(Ipv4Addr::new(232, 77, 1, 1));
        let [wanted, other] = [[127, 0, 0, 2], [127, 0, 0, 3]].map(IpAddr::from);
        let socket = port.bind_udp("0.0.0.0:0", 1).unwrap();
        let to = SocketAddr::new(group, socket.local_addr().unwrap().port());
        let sender = |source: IpAddr| {
            let sender = port.bind_udp(SocketAddr::new(source, 0), 2).unwrap();
            sender.set_multicast_interface(lo).unwrap();
            sender
        };
        let (one, two) = (sender(wanted), sender(other));
        let send = |sender: &Socket| {
            sender.start().silent().send_to("x", to).unwrap();
        };
        socket.recv_each().unwrap();
        // As a whole at first: then for one source only.
        socket.join(group, lo).unwrap();
        send(&two);
        assert_eq!(datagram(next(&port)).1.from.ip(), other);
        socket.join_source(wanted, group, lo).unwrap();
        send(&two);
        send(&one);
        assert_eq!(datagram(next(&port)).1.from.ip(), wanted);
        socket.join_source(other, group, lo).unwrap();
        send(&two);
        assert_eq!(datagram(next(&port)).1.from.ip(), other);
        socket.leave_source(wanted, group, lo).unwrap();
        send(&one);
        send(&two);
        assert_eq!(datagram(next(&port)).1.from.ip(), other);
        assert!(poll(&port).is_none());
    });
}
