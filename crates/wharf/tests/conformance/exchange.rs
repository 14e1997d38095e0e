//! A send and the receive after it as one operation with one packet.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use wharf::{
    Buf, ErrorKind, Wait,
    raw::{Operation, Request},
};

use super::support::*;

fn hears(peer: &mut impl Read, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    peer.read_exact(&mut heard).unwrap();
    assert_eq!(heard, expected);
}

/// Would catch: a packet for the send, a buffer that is lost or kept, an answer in a wrong place.
#[test]
fn there_is_one_packet_with_what_was_received() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let own: [Buf; 3] = [
            b"request".to_vec().into(),
            b"request".to_vec().into_boxed_slice().into(),
            bytes::BytesMut::from(&b"request"[..]).into(),
        ];
        for (number, buf) in (0..).zip(own) {
            let (kind, address) = (format!("{buf:?}"), buf.as_ptr());
            stream.start().context(tally.token(number)).exchange(buf).unwrap();
            until("it is sent", || poll(&port).is_none() && stream.pending().sends == 0);
            hears(&mut peer, b"request");
            assert_eq!(stream.pending().receives, 1);
            peer.write_all(b"answer").unwrap();
            let packet = next(&port);
            assert_eq!((packet.bytes, packet.result.is_ok()), (6, true), "{kind}");
            assert_eq!(packet.context.as_ref().unwrap().id, number);
            let buf = received(packet);
            assert_eq!((&buf[..], buf.as_ptr()), (&b"answer"[..], address), "{kind}");
        }
        // What cannot be written to, and what is of the pool already, is answered into the pool.
        let foreign = [Buf::from("request"), tally.bytes(b"request".to_vec())];
        let mut pooled = None;
        for buf in foreign.into_iter().chain([Buf::default()]) {
            let buf = if buf.is_empty() { pooled.take().unwrap() } else { buf };
            stream.exchange(buf).unwrap();
            until("it is sent", || poll(&port).is_none() && stream.pending().sends == 0);
            hears(&mut peer, b"request");
            peer.write_all(b"request").unwrap();
            let buf = received(next(&port));
            assert_eq!((&buf[..], buf.capacity() > 7), (&b"request"[..], true));
            pooled = Some(buf);
        }
        drop(pooled);
        assert!(poll(&port).is_none());
        tally.assert_even();
    });
}

/// Would catch: an exchange that ends with a part of its answer, or takes too much.
#[test]
fn exactly_so_many_bytes_are_received() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let mut buf = Vec::with_capacity(8);
        buf.extend_from_slice(b"to send");
        stream.exchange_exact(buf, 6).unwrap();
        until("it is sent", || poll(&port).is_none() && stream.pending().sends == 0);
        peer.write_all(b"ans").unwrap();
        assert!(poll(&port).is_none());
        peer.write_all(b"wer and more").unwrap();
        assert_eq!(&received(next(&port))[..], b"answer");
        stream.exchange_exact(vec![1; 9], 9).unwrap();
        assert_eq!(&received(next(&port))[..], b" and more");
        // Into what cannot be written to, nothing can.
        for (buf, bytes) in
            [(Buf::from("static"), 1), (Buf::from(vec![1; 4]), 5), (vec![1].into(), 0)]
        {
            let refused = stream.exchange_exact(buf, bytes).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
            assert!(!refused.value.is_empty());
        }
        stream.recv(Buf::pooled()).unwrap();
        peer.write_all(b"x").unwrap();
        let refused = stream.exchange_exact(received(next(&port)), 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        assert_eq!(&refused.value[..], b"x");
    });
}

/// Would catch: large sends that are cut, or a receive that begins before they are over.
#[test]
fn large_messages_go_both_ways() {
    run(|| {
        const SIZE: usize = 4 << 20;
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let echo = thread::spawn(move || {
            for _ in 0..3 {
                let mut all = vec![0; SIZE];
                peer.read_exact(&mut all).unwrap();
                peer.write_all(&all).unwrap();
            }
        });
        let mut buf = Buf::from(pattern(0, SIZE));
        for _ in 0..3 {
            stream.exchange_exact(buf, SIZE).unwrap();
            buf = received(next(&port));
            assert!(buf[..] == pattern(0, SIZE)[..], "not what was sent");
        }
        join(echo);
    });
}

/// Would catch: a receive that overtakes one that was started before, or a send that does.
#[test]
fn both_halves_keep_their_order() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let start = |number| stream.start().context(tally.token(number));
        start(0).recv_exact(vec![0; 1], 1).unwrap();
        for number in 1..=3_u8 {
            start(number.into()).exchange_exact(vec![number; 1], 1).unwrap();
        }
        until("all are sent", || poll(&port).is_none() && stream.pending().sends == 0);
        assert_eq!(stream.pending().receives, 4);
        hears(&mut peer, &[1, 2, 3]);
        peer.write_all(b"abcd").unwrap();
        for (number, byte) in (0..).zip(*b"abcd") {
            let packet = next(&port);
            assert_eq!(packet.context.as_ref().unwrap().id, number);
            assert_eq!(&received(packet)[..], &[byte]);
        }
    });
}

/// Would catch: a failed send that receives all the same, or whose buffer or bytes are lost; and an
/// operation in the same memory that does what the exchange has not done.
#[test]
fn what_cannot_be_sent_is_not_answered() {
    run(|| {
        let port = port(1);
        let (stream, _peer) = pair(&port);
        stream.shutdown(Shutdown::Write).unwrap();
        drop(next(&port));
        stream.exchange("too late").unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.as_ref().unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(&sent(packet)[..], b"too late");
        assert_eq!(stream.pending(), wharf::Pending::default());
        let (other, _peer) = pair(&port);
        other.send("alone").unwrap();
        assert_eq!(&sent(next(&port))[..], b"alone");
    });
}

/// Would catch: a cancellation, an end or a deadline that meets the wrong half.
#[test]
fn each_half_can_end_it() {
    run(|| {
        let large = || Buf::from(pattern(0, 16 << 20));
        let port = port(1);

        // While it sends.
        let (stream, mut peer) = pair(&port);
        stream.exchange(large()).unwrap();
        assert!(poll(&port).is_none());
        assert_eq!((stream.pending().sends, stream.cancel_all()), (1, 1));
        let packet = next(&port);
        assert!(packet.result.as_ref().unwrap_err().is_cancelled());
        let bytes = packet.bytes;
        drop(sent(packet));
        stream.close();
        drop(stream);
        let mut heard = Vec::new();
        peer.read_to_end(&mut heard).unwrap();
        assert!(heard[..] == pattern(0, bytes)[..], "not what it says it has sent");

        // While it receives.
        let (stream, mut peer) = pair(&port);
        stream.exchange("x").unwrap();
        until("it is sent", || poll(&port).is_none() && stream.pending().sends == 0);
        assert_eq!(stream.cancel_all(), 1);
        let packet = next(&port);
        assert!(packet.result.as_ref().unwrap_err().is_cancelled());
        received(packet);
        hears(&mut peer, b"x");

        // The peer ends, and the end is what is received.
        stream.exchange("y").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let packet = next(&port);
        assert_eq!((packet.bytes, packet.result.is_ok()), (0, true));
        received(packet);

        // A deadline for each.
        let soon = Duration::from_millis(20);
        let (stream, _peer) = pair(&port);
        stream.start().deadline(soon).exchange(large()).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.as_ref().unwrap_err().kind(), ErrorKind::TimedOut);
        sent(packet);
        let (stream, _peer) = pair(&port);
        stream.start().deadline(soon).exchange("x").unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.as_ref().unwrap_err().kind(), ErrorKind::TimedOut);
        received(packet);
    });
}

/// Would catch: an exchange that was cancelled when it had sent, and waits for its turn to receive.
#[test]
fn cancelled_between_its_halves_it_is_over() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.recv(vec![0; 8]).unwrap();
        let id = stream.start().exchange("x").unwrap();
        // It has sent, and nobody has taken notice of that.
        hears(&mut peer, b"x");
        assert!(stream.cancel(id));
        let packet = next(&port);
        assert!(packet.result.as_ref().unwrap_err().is_cancelled(), "{packet:?}");
        assert!(matches!(packet.op, Op::Recv { .. }), "{packet:?}");
        assert_eq!(stream.pending().receives, 1);
        peer.write_all(b"y").unwrap();
        assert_eq!(&received(next(&port))[..], b"y");
    });
}

/// Would catch: an exchange that is refused and sends all the same, or keeps its buffer.
#[test]
fn a_refused_exchange_gives_its_buffer_back() {
    run(|| {
        let port = build(crate::builder().concurrency(1).queue_limit(1));
        let (stream, _peer) = pair(&port);
        for _ in 0..2 {
            stream.send(pattern(0, 16 << 20)).unwrap();
        }
        let refused = stream.exchange("text").unwrap_err();
        assert_eq!(
            (refused.error.kind(), &refused.value[..]),
            (ErrorKind::QueueFull, &b"text"[..])
        );
        stream.close();
        let refused = stream.exchange("text").unwrap_err();
        assert_eq!((refused.error.kind(), &refused.value[..]), (ErrorKind::Closed, &b"text"[..]));
    });
}

/// Would catch: a connection that waits for its next request and holds a buffer of the pool.
#[test]
fn while_it_waits_it_holds_no_buffer() {
    run(|| {
        let port = build(crate::builder().concurrency(1).pool(2, 512));
        let mut pairs: Vec<_> = (0..6).map(|_| pair(&port)).collect();
        for round in 0..3 {
            for (stream, peer) in &mut pairs {
                if round == 0 {
                    stream.recv(Buf::pooled()).unwrap();
                }
                peer.write_all(b"echo").unwrap();
                stream.exchange(received(next(&port))).unwrap();
                until("it is sent", || poll(&port).is_none() && stream.pending().sends == 0);
                hears(peer, b"echo");
            }
        }
    });
}

/// Would catch: two workers, each with a half of the same operation.
#[test]
fn many_connections_are_served_by_many_workers() {
    run(|| {
        let port = port(2);
        let (streams, peers): (Vec<_>, Vec<_>) = (0..20).map(|_| pair(&port)).unzip();
        for stream in &streams {
            stream.recv(Buf::pooled()).unwrap();
        }
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Wait::Packet(packet) = port.wait() {
                        let ended = packet.bytes == 0;
                        if let (Op::Recv { stream, buf }, false) = (packet.op, ended) {
                            stream.exchange(buf).unwrap();
                        }
                    }
                });
            }
            let clients = peers.into_iter().map(|mut peer| {
                thread::spawn(move || {
                    for round in 0..200_u16 {
                        peer.write_all(&round.to_le_bytes()).unwrap();
                        hears(&mut peer, &round.to_le_bytes());
                    }
                })
            });
            clients.collect::<Vec<_>>().into_iter().for_each(join);
            port.close();
        });
    });
}

/// Would catch: a raw operation whose two requests cannot be told apart, or that takes any two.
#[test]
fn a_raw_operation_has_two_requests() {
    run(|| {
        let port = crate::builder().concurrency(1).build_raw().unwrap();
        let (socket, mut peer) = sockets();
        let handle = port.associate(socket.into(), 7).unwrap();
        let request = *b"request";
        let mut answer = [0_u8; 16];
        let send = Request::Send { buffer: request.as_ptr(), length: request.len() };
        let receive =
            Request::Receive { buffer: answer.as_mut_ptr(), length: answer.len(), exact: false };
        let operation = Box::into_raw(Box::new(Operation::new(send).with_second(receive)));
        // SAFETY: the operation, what it points to and the handle stay until its completion.
        unsafe { handle.start(operation) }.unwrap();
        let asks = thread::spawn(move || {
            hears(&mut peer, b"request");
            peer.write_all(b"answer").unwrap();
            peer
        });
        let Wait::Packet(done) = port.wait(Some(PATIENCE)) else { panic!("no packet") };
        assert_eq!((done.key, done.bytes, done.status, done.operation), (7, 6, 0, operation));
        // SAFETY: the completion has given the operation back.
        let mut operation = unsafe { Box::from_raw(operation) };
        assert!(operation.is_second());
        assert_eq!(&answer[..6], b"answer");
        let peer = join(asks);

        // Sending fails: the second request has not begun.
        drop(peer);
        handle.close();
        *operation = Operation::new(send).with_second(receive);
        // SAFETY: as above; it is refused.
        let refused = unsafe { handle.start(&raw mut *operation) };
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Closed);

        let (socket, _peer) = sockets();
        let handle = port.associate(socket.into(), 8).unwrap();
        for (first, second) in [(receive, receive), (send, send), (Request::Readable, send)] {
            let mut operation = Operation::new(first).with_second(second);
            // SAFETY: as above; it is refused.
            let refused = unsafe { handle.start(&raw mut operation) };
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        port.close();
    });
}
