//! An operation's life: one packet, its buffer and its context back, cancelled, out of time,
//! without a packet, and through the pool.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use wharf::{Buf, ErrorKind, Now};

use super::support::*;

fn id(packet: &Packet) -> u64 {
    packet.context.as_ref().expect("a context").id
}

/// Buffers that can be received into, by kind, with room for at least 16 bytes.
fn writable() -> Vec<Buf> {
    vec![
        Buf::with_capacity(16),
        Buf::from(vec![9; 40]),
        Buf::from(vec![9; 16].into_boxed_slice()),
        Buf::from(BytesMut::with_capacity(16)),
        Buf::from(BytesMut::from(&b"what a receive replaces"[..])),
        Buf::pooled(),
    ]
}

/// Buffers that cannot.
fn unwritable() -> Vec<Buf> {
    vec![Buf::from("static"), Buf::from(b"static"), Buf::from(Bytes::from_static(b"static"))]
}

/// Would catch: a kind of buffer that is not filled, whose length is wrong, or that keeps what it
/// held before.
#[test]
fn every_kind_of_buffer_receives() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        for buf in writable() {
            let kind = format!("{buf:?}");
            stream.recv(buf).unwrap();
            assert!(poll(&port).is_none(), "{kind}");
            peer.write_all(b"hello").unwrap();
            let packet = next(&port);
            assert_eq!((packet.result, packet.bytes, packet.more), (Ok(5), 5, false), "{kind}");
            assert_eq!(&received(packet)[..], b"hello", "{kind}");
        }
    });
}

/// Would catch: a kind of buffer that is not sent, sent beyond its length, or comes back changed.
#[test]
fn every_kind_of_buffer_is_sent() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        // One of the pool, which has to be received first.
        stream.recv(Buf::pooled()).unwrap();
        peer.write_all(b"static").unwrap();
        let pooled = received(next(&port));
        let mut roomy = BytesMut::with_capacity(100);
        roomy.extend_from_slice(b"static");
        let mut bufs = unwritable();
        bufs.extend([
            Buf::from(b"static".to_vec()),
            Buf::from(b"static".to_vec().into_boxed_slice()),
            Buf::from(roomy),
            pooled,
        ]);
        for buf in bufs {
            let kind = format!("{buf:?}");
            stream.send(buf).unwrap();
            let packet = next(&port);
            assert_eq!((packet.result, packet.bytes), (Ok(6), 6), "{kind}");
            let buf = sent(packet);
            assert_eq!((format!("{buf:?}"), &buf[..]), (kind, &b"static"[..]));
            let mut text = [0; 6];
            peer.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"static");
        }
        drop((stream, port));
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "nothing more was sent");
    });
}

/// Would catch: a buffer lost with the failure of its operation, or a length that is not 0 then.
#[test]
fn buffers_come_back_with_failures_too() {
    run(|| {
        let port = port(1);
        for buf in writable() {
            let kind = format!("{buf:?}");
            let capacity = buf.capacity();
            let (stream, _peer) = pair(&port);
            stream.start().context(Token::from(5)).recv(buf).unwrap();
            assert_eq!(stream.cancel_all(), 1);
            let packet = next(&port);
            assert!(packet.result.unwrap_err().is_cancelled(), "{kind}");
            assert_eq!((packet.bytes, id(&packet)), (0, 5));
            let buf = received(packet);
            assert_eq!((buf.len(), buf.capacity()), (0, capacity), "{kind}");
        }
        for buf in unwritable() {
            let kind = format!("{buf:?}");
            let (stream, _peer) = pair(&port);
            stream.shutdown(Shutdown::Write).unwrap();
            drop(next(&port));
            stream.send(buf).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::BrokenPipe, "{kind}");
            assert_eq!(&sent(packet)[..], b"static", "{kind}");
        }
    });
}

/// Would catch: a refusal that keeps the buffer, gives a packet all the same, or spoils the handle
/// for the next.
#[test]
fn refused_operations_give_their_buffers_back() {
    run(|| {
        let tally = Tally::default();
        let port = build(crate::builder().concurrency(1).queue_limit(2));
        let (stream, mut peer) = pair(&port);
        for buf in unwritable() {
            let refused = stream.recv(buf).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
            assert_eq!(&refused.value[..], b"static");
        }
        for (buf, bytes) in [(vec![1; 4], 0), (vec![1; 4], 5), (vec![], 1)] {
            let length = buf.len();
            let refused = stream.recv_exact(buf, bytes).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
            assert_eq!(refused.value.len(), length);
        }
        let many = (0..1025).map(|_| Buf::from("x")).collect();
        let refused = stream.send_vectored(many).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.len()), (ErrorKind::InvalidInput, 1025));
        let listener = port.listen("127.0.0.1:0", 0).unwrap();
        for buf in [Buf::from("static"), Buf::from(Vec::new())] {
            let refused = listener.accept_first(buf, PATIENCE).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        }

        // One in the kernel, two behind it.
        for number in 0..3 {
            stream.start().context(tally.token(number)).recv(Vec::with_capacity(1)).unwrap();
        }
        let start = stream.start().context(tally.token(3));
        let refused = start.recv(vec![5; 7]).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.len()), (ErrorKind::QueueFull, 7));
        // The other direction has its own queue.
        stream.send(tally.bytes(vec![1])).unwrap();
        assert_eq!(next(&port).result, Ok(1));
        peer.write_all(b"abc").unwrap();
        for number in 0..3 {
            let packet = next(&port);
            assert_eq!((id(&packet), packet.result), (number, Ok(1)));
        }
        assert!(poll(&port).is_none());
        assert_eq!(port.stats().in_flight, 0);
        drop((port, stream));
        tally.assert_even();
    });
}

/// Would catch: a packet too many or too few, for any operation; one that comes with another's
/// context.
#[test]
fn each_operation_gives_one_packet() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        // Immediate ones, ones that wait, ones that fail.
        stream.start().context(tally.token(0)).send("now").unwrap();
        stream.start().context(tally.token(1)).send_vectored(vec![Buf::from("now")]).unwrap();
        stream.start().context(tally.token(2)).recv(Vec::with_capacity(4)).unwrap();
        stream.start().context(tally.token(3)).recv(Vec::with_capacity(4)).unwrap();
        stream.start().context(tally.token(4)).recv(Vec::new()).unwrap();
        stream.start().context(tally.token(5)).shutdown(Shutdown::Write).unwrap();
        stream.start().context(tally.token(6)).send("too late").unwrap();
        peer.write_all(b"12345678").unwrap();
        drop(peer);
        let mut ids: Vec<_> = (0..7).map(|_| id(&next(&port))).collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6]);
        assert!(poll(&port).is_none());
        assert_eq!(port.stats().in_flight, 0);
        tally.assert_even();
    });
}

/// Would catch: a silent operation that posts a packet or keeps its buffer.
#[test]
fn silent_operations_free_their_buffers() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let size = Size::new();
        for _ in 0..20 {
            let start = stream.start().silent().context(tally.token(1));
            start.send(tally.bytes(vec![3; 10])).unwrap();
        }
        stream.start().silent().context(tally.token(2)).recv(size.vec()).unwrap();
        stream.start().silent().context(tally.token(2)).recv(size.vec()).unwrap();
        stream.start().silent().recv(Buf::pooled()).unwrap();
        assert!(poll(&port).is_none());
        peer.read_exact(&mut [0; 200]).unwrap();
        peer.write_all(b"x").unwrap();
        until("the first receive is over", || poll(&port).is_none() && size.alive() == 1);
        assert_eq!(stream.cancel_all(), 2);
        until("all are over", || poll(&port).is_none() && port.stats().in_flight == 0);
        assert_eq!(size.alive(), 0);
        tally.assert_even();
    });
}

/// Would catch: a deadline that never ends its operation, ends another one, or loses its buffer.
#[test]
fn deadlines_end_operations() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let soon = Duration::from_millis(10);
        for buf in writable().into_iter().chain([Buf::from(Vec::new())]) {
            let kind = format!("{buf:?}");
            stream.start().context(Token::from(1)).deadline(soon).recv(buf).unwrap();
            let packet = next(&port);
            assert!(packet.result.unwrap_err().is_timed_out(), "{kind}");
            assert_eq!((packet.bytes, id(&packet), received(packet).len()), (0, 1, 0), "{kind}");
        }
        stream.start().deadline(soon).recv_each().unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        stream.start().deadline(Duration::ZERO).recv(Vec::with_capacity(1)).unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        // A part came in time.
        peer.write_all(b"abc").unwrap();
        stream.start().deadline(soon).recv_exact(Vec::with_capacity(8), 8).unwrap();
        let packet = next(&port);
        assert!(packet.result.unwrap_err().is_timed_out());
        assert_eq!((packet.bytes, &received(packet)[..]), (3, &b"abc"[..]));
        // A send that is stuck.
        stream.start().deadline(soon).send(vec![1; 16 << 20]).unwrap();
        let packet = next(&port);
        assert!(packet.result.unwrap_err().is_timed_out());
        assert!(packet.bytes > 0 && packet.bytes < 16 << 20);
        assert_eq!(sent(packet).len(), 16 << 20);
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: a deadline far away, or beyond what a clock can say, that ends its operation at
/// once, and one that is still counted afterwards.
#[test]
fn deadlines_that_do_not_pass_do_nothing() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        for deadline in [PATIENCE * 100, Duration::MAX] {
            for buf in writable() {
                stream.start().deadline(deadline).recv(buf).unwrap();
                assert!(poll(&port).is_none());
                peer.write_all(b"x").unwrap();
                assert_eq!(next(&port).result, Ok(1));
            }
            stream.start().deadline(deadline).send("x").unwrap();
            assert_eq!(next(&port).result, Ok(1));
        }
        assert!(poll(&port).is_none());
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: a deadline that counts while its operation stands behind another.
#[test]
fn a_deadline_counts_from_when_the_operation_reaches_the_kernel() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.start().context(Token::from(1)).recv(Vec::with_capacity(1)).unwrap();
        let behind = stream.start().context(Token::from(2)).deadline(Duration::from_millis(30));
        behind.recv(Vec::with_capacity(1)).unwrap();
        assert!(poll(&port).is_none());
        thread::sleep(Duration::from_millis(100));
        assert!(poll(&port).is_none());
        peer.write_all(b"x").unwrap();
        let packet = next(&port);
        assert_eq!((id(&packet), packet.result), (1, Ok(1)));
        let packet = next(&port);
        assert_eq!(id(&packet), 2);
        assert!(packet.result.unwrap_err().is_timed_out());
    });
}

/// Would catch: the deadline of one operation that ends the next of its direction.
#[test]
fn deadlines_do_not_reach_the_next_operation() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        for round in 0..50u64 {
            let start = stream.start().deadline(Duration::from_micros(round * 20));
            start.recv(Vec::with_capacity(1)).unwrap();
            stream.start().context(Token::from(1)).recv(Vec::with_capacity(1)).unwrap();
            let first = next(&port);
            assert!(first.result.unwrap_err().is_timed_out() && first.context.is_none());
            assert!(poll(&port).is_none());
            peer.write_all(b"x").unwrap();
            let second = next(&port);
            assert_eq!((second.result, id(&second)), (Ok(1), 1));
        }
    });
}

/// Would catch: a cancellation that hits another operation, that is true for one that is over, or
/// that gives no packet; of the one in the kernel and of those behind it.
#[test]
fn one_operation_is_cancelled() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let start = |number| {
            let start = stream.start().context(Token::from(number));
            start.recv(Vec::with_capacity(1)).unwrap()
        };
        let ids: Vec<_> = (0..4).map(start).collect();
        assert!(poll(&port).is_none());
        // Behind another: in the middle, at the end.
        for behind in [2, 3] {
            assert!(stream.cancel(ids[behind]));
            let packet = next(&port);
            assert!(packet.result.unwrap_err().is_cancelled());
            assert_eq!(id(&packet), u64::try_from(behind).unwrap());
            assert!(!stream.cancel(ids[behind]), "it is over");
        }
        // In the kernel: the one behind it goes on.
        assert!(stream.cancel(ids[0]));
        let packet = next(&port);
        assert!(packet.result.unwrap_err().is_cancelled());
        assert_eq!(id(&packet), 0);
        peer.write_all(b"x").unwrap();
        let packet = next(&port);
        assert_eq!((packet.result, id(&packet)), (Ok(1), 1));
        // Over, and its memory in use again: the old name means nothing.
        let again = start(9);
        assert!(ids.iter().all(|&id| !stream.cancel(id)));
        assert!(!pair(&port).0.cancel(again), "another handle's");
        peer.write_all(b"y").unwrap();
        assert_eq!(next(&port).result, Ok(1));
        assert!(!stream.cancel(again));
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: operations that a cancellation of all leaves out, or counts wrongly, or that start
/// when the one before them ends.
#[test]
fn all_operations_are_cancelled() {
    run(|| {
        let port = port(1);
        let (stream, peer) = pair(&port);
        assert_eq!(stream.cancel_all(), 0);
        for number in 0..3 {
            stream.start().context(Token::from(number)).recv(Vec::with_capacity(1)).unwrap();
            // Larger than the sockets hold.
            stream.start().context(Token::from(number)).send(vec![1; 8 << 20]).unwrap();
        }
        assert!(poll(&port).is_none());
        assert_eq!(stream.cancel_all(), 6);
        for _ in 0..6 {
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
        assert_eq!((port.stats().in_flight, stream.cancel_all()), (0, 0));
        // The handle is as good as before.
        stream.recv(Vec::with_capacity(1)).unwrap();
        (&peer).write_all(b"x").unwrap();
        assert_eq!(next(&port).result, Ok(1));
    });
}

/// Would catch: a cancellation from a thread that is no worker that is never submitted, and one
/// that meets completion and gives two packets or none.
#[test]
fn cancellations_from_other_threads_meet_completions() {
    run(|| {
        let tally = Tally::default();
        let port = port(2);
        let pump = Pump::new(&port, 2);
        let (stream, peer) = pair(&port);
        let mut random = Random::new(5);
        let mut good = 0;
        for number in 0..300 {
            let start = stream.start().context(tally.token(number));
            let name = start.recv(Vec::with_capacity(1)).unwrap();
            let writes = random.below(3) > 0;
            let writer = thread::spawn({
                let mut peer = peer.try_clone().unwrap();
                move || {
                    if writes {
                        peer.write_all(b"x").unwrap();
                    }
                }
            });
            if random.below(2) == 0 {
                thread::yield_now();
            }
            stream.cancel(name);
            let packet = pump.next();
            assert_eq!(id(&packet), number);
            match packet.result {
                Ok(1) => good += 1,
                Err(error) if error.is_cancelled() => {}
                other => panic!("{other:?}"),
            }
            join(writer);
            drop(packet);
            // What was sent and not received by then is taken out of the way.
            let name = stream.start().recv(Vec::with_capacity(9)).unwrap();
            stream.cancel(name);
            drop(pump.next());
        }
        assert!(pump.is_empty());
        assert_eq!(port.stats().in_flight, 0);
        println!("{good} of 300 completed");
        drop((pump, stream, port));
        tally.assert_even();
    });
}

/// Would catch: a zero-byte receive that takes data, holds a buffer of the pool, or misses the end
/// of the stream.
#[test]
fn a_receive_without_room_waits_for_data() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.recv(Vec::new()).unwrap();
        assert!(poll(&port).is_none());
        peer.write_all(b"data").unwrap();
        assert_eq!(next(&port).result, Ok(0));
        stream.recv(Buf::with_capacity(0)).unwrap();
        assert_eq!(next(&port).result, Ok(0), "it is still there");
        stream.recv(Buf::with_capacity(8)).unwrap();
        assert_eq!(&received(next(&port))[..], b"data");
        stream.recv(Vec::new()).unwrap();
        assert!(poll(&port).is_none());
        drop(peer);
        assert_eq!(next(&port).result, Ok(0));
        stream.recv(Buf::with_capacity(8)).unwrap();
        assert_eq!(next(&port).result, Ok(0), "the end");
    });
}

/// Would catch: receives that fail when the pool is empty, or that sleep on when a buffer is back;
/// a buffer that is handed out twice.
#[test]
fn receives_wait_for_buffers_of_the_pool() {
    run(|| {
        let port = build(crate::builder().concurrency(1).pool(2, 64));
        let connections: Vec<_> = (0..6).map(|_| pair(&port)).collect();
        for (number, (stream, peer)) in connections.iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            stream.recv(Buf::pooled()).unwrap();
            (&*peer).write_all(&[number; 10]).unwrap();
        }
        let mut held = vec![received(next(&port)), received(next(&port))];
        assert!(poll(&port).is_none(), "there are two");
        assert!(port.stats().buffers_exhausted > 0);
        let mut seen = Vec::new();
        for _ in 0..4 {
            // Dropped on a thread that knows nothing of the port.
            let buf = held.remove(0);
            seen.push(buf.to_vec());
            join(thread::spawn(move || drop(buf)));
            held.push(received(next(&port)));
            assert!(poll(&port).is_none());
        }
        seen.extend(held.drain(..).map(|buf| buf.to_vec()));
        seen.sort();
        let expected: Vec<_> = (0..6).map(|number| vec![number; 10]).collect();
        assert_eq!(seen, expected);
    });
}

/// Would catch: a pool that stays at the buffers it began with, hands one out twice, or grows past
/// its size.
#[test]
fn a_pool_grows_to_its_size_and_no_further() {
    run(|| {
        const SIZE: u8 = 64;
        let port = build(crate::builder().concurrency(1).pool(SIZE.into(), 64));
        let connections: Vec<_> = (0..SIZE + 3).map(|_| pair(&port)).collect();
        let start = |number: u8| {
            let (stream, peer) = &connections[usize::from(number)];
            stream.recv(Buf::pooled()).unwrap();
            (&*peer).write_all(&[number; 10]).unwrap();
        };
        (0..SIZE).for_each(start);
        let mut held: Vec<_> = (0..SIZE).map(|_| received(next(&port))).collect();
        assert_eq!(port.stats().buffers_exhausted, 0);
        (SIZE..SIZE + 3).for_each(start);
        until("they wait", || poll(&port).is_none() && port.stats().buffers_exhausted == 3);
        let mut seen: Vec<_> = held.drain(..).map(|buf| buf.to_vec()).collect();
        seen.extend((0..3).map(|_| received(next(&port)).to_vec()));
        seen.sort();
        assert_eq!(seen, (0..SIZE + 3).map(|number| vec![number; 10]).collect::<Vec<_>>());
    });
}

/// Would catch: a receive that waits for a buffer and cannot be cancelled or closed, and one whose
/// deadline does not count meanwhile.
#[test]
fn receives_that_wait_for_buffers_can_be_cancelled() {
    run(|| {
        let port = build(crate::builder().concurrency(1).pool(1, 64));
        let (holder, mut holding) = pair(&port);
        holder.recv(Buf::pooled()).unwrap();
        holding.write_all(b"x").unwrap();
        let held = received(next(&port));
        let (stream, mut peer) = pair(&port);
        peer.write_all(b"waiting").unwrap();
        let name = stream.start().context(Token::from(1)).recv(Buf::pooled()).unwrap();
        until("it waits", || poll(&port).is_none() && port.stats().buffers_exhausted == 1);
        assert!(stream.cancel(name));
        let packet = next(&port);
        assert!(packet.result.unwrap_err().is_cancelled() && id(&packet) == 1);
        stream.recv_each().unwrap();
        until("it waits", || poll(&port).is_none() && port.stats().buffers_exhausted == 2);
        assert_eq!(stream.cancel_all(), 1);
        assert!(next(&port).result.unwrap_err().is_cancelled());
        // The data is still there.
        stream.recv(Buf::pooled()).unwrap();
        until("it waits", || poll(&port).is_none() && port.stats().buffers_exhausted == 3);
        drop(held);
        assert_eq!(&received(next(&port))[..], b"waiting");
    });
}

/// Would catch: a pooled buffer that dies with its port.
#[test]
fn a_pooled_buffer_outlives_its_port() {
    run(|| {
        let port = build(crate::builder().concurrency(1).pool(4, 4096));
        let (stream, mut peer) = pair(&port);
        stream.recv(Buf::pooled()).unwrap();
        peer.write_all(&pattern(0, 1000)).unwrap();
        let mut buf = received(next(&port));
        drop((port, stream, peer));
        let at = buf.len();
        assert_eq!(&buf[..], pattern(0, at));
        buf.as_mut().unwrap().fill(7);
        buf.truncate(3);
        assert_eq!(&buf.into_vec()[..], [7, 7, 7]);
    });
}

/// Would catch: a buffer of the pool that belongs to two connections at once, where a worker serves
/// what was started in another's place.
#[test]
fn no_two_connections_share_a_buffer_of_the_pool() {
    run(|| {
        let port = build(crate::builder().concurrency(4).pool(64, 256));
        let pump = Pump::new(&port, 1);
        let connections: Vec<_> = (0..64).map(|_| pair(&port)).collect();
        for round in 0..3 {
            let mut held = Vec::new();
            for (number, (stream, peer)) in connections.iter().enumerate() {
                let token = Token::from(u64::try_from(number).unwrap());
                stream.start().context(token).recv(Buf::pooled()).unwrap();
                (&*peer).write_all(&pattern(number * 100 + round, 200)).unwrap();
            }
            for _ in 0..64 {
                let packet = pump.next();
                let number = usize::try_from(id(&packet)).unwrap();
                held.push((number, received(packet)));
            }
            for (number, buf) in held {
                assert!(buf[..] == pattern(number * 100 + round, 200), "of connection {number}");
            }
        }
    });
}

/// Would catch: more data than a pooled buffer holds that is lost or overruns it.
#[test]
fn pooled_buffers_take_what_fits() {
    run(|| {
        let port = build(crate::builder().concurrency(1).pool(8, 100));
        let (stream, mut peer) = pair(&port);
        peer.write_all(&pattern(0, 1050)).unwrap();
        drop(peer);
        stream.recv_each().unwrap();
        let mut got = Vec::new();
        loop {
            let packet = next(&port);
            if !packet.more {
                assert_eq!(packet.result, Ok(0));
                break;
            }
            let buf = received(packet);
            assert!(buf.len() <= 100);
            got.extend_from_slice(&buf);
        }
        assert_eq!(got, pattern(0, 1050));
    });
}

/// Would catch: a context that comes with the first packet of a repeated receive, or not at all.
#[test]
fn the_context_of_a_repeated_receive_comes_with_its_last_packet() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.start().context(tally.token(8)).recv_each().unwrap();
        for _ in 0..3 {
            assert!(poll(&port).is_none());
            peer.write_all(b"x").unwrap();
            let packet = next(&port);
            assert!(packet.more && packet.context.is_none() && packet.result == Ok(1));
        }
        drop(peer);
        let packet = next(&port);
        assert_eq!((packet.more, packet.result, id(&packet)), (false, Ok(0), 8));
        drop(packet);
        tally.assert_even();
    });
}

/// Would catch: a last packet of a repeated receive that brings data after all, when it is
/// cancelled while data is there: the program would take it for the end and lose the bytes.
#[test]
fn the_last_packet_of_a_repeated_receive_has_no_data() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.recv_each().unwrap();
        assert!(poll(&port).is_none());
        peer.write_all(b"data").unwrap();
        until("it is there", || port.stats().queued > 0);
        stream.cancel_all();
        let mut data = Vec::new();
        loop {
            let packet = next(&port);
            let (more, bytes) = (packet.more, packet.bytes);
            data.extend_from_slice(&received(packet));
            if !more {
                assert_eq!(bytes, 0);
                break;
            }
        }
        if data.is_empty() {
            // Then it is still in the socket.
            stream.recv(Vec::with_capacity(8)).unwrap();
            data.extend_from_slice(&received(next(&port)));
        }
        assert_eq!(data, b"data");
    });
}

/// Would catch: a completion queue, or a submission queue, that is full and loses something; a
/// limit on what is in flight.
#[test]
fn more_is_in_flight_than_the_rings_hold() {
    run(|| {
        let port = build(crate::builder().concurrency(1).ring_entries(8));
        let connections: Vec<_> = (0..300).map(|_| pair(&port)).collect();
        for (number, (stream, _)) in connections.iter().enumerate() {
            let token = Token::from(u64::try_from(number).unwrap());
            stream.start().context(token).recv(Vec::with_capacity(8)).unwrap();
            stream.send("now").unwrap();
        }
        for (number, (_, peer)) in connections.iter().enumerate() {
            (&*peer).write_all(&number.to_le_bytes()).unwrap();
        }
        let (mut receives, mut sends) = (0, 0);
        for _ in 0..600 {
            let packet = next(&port);
            let context = packet.context.as_ref().map(|token| token.id);
            match packet.op {
                Op::Recv { buf, .. } => {
                    assert_eq!(buf[..], context.unwrap().to_le_bytes());
                    receives += 1;
                }
                Op::Send { .. } => {
                    assert_eq!(packet.result, Ok(3));
                    sends += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((receives, sends, port.stats().in_flight), (300, 300, 0));
    });
}

/// Would catch: data that an operation takes with it when it fails, or a connection that a failed
/// receive has spoiled.
#[test]
fn a_cancelled_receive_takes_nothing() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        for round in 0..100 {
            let buf = if round % 2 == 0 { Buf::pooled() } else { Buf::with_capacity(8) };
            stream.recv(buf).unwrap();
            if round % 3 == 0 {
                assert!(poll(&port).is_none());
            }
            peer.write_all(b"x").unwrap();
            stream.cancel_all();
            let packet = next(&port);
            if packet.result.is_err() {
                stream.recv(Vec::with_capacity(8)).unwrap();
                assert_eq!(&received(next(&port))[..], b"x");
            } else {
                assert_eq!(&received(packet)[..], b"x");
            }
        }
    });
}

/// Would catch: a peer's bytes that reach the wrong connection through the pool.
#[test]
fn echo_on_many_connections_keeps_every_byte() {
    run(|| {
        const BYTES: usize = 200_000;
        let port = build(crate::builder().concurrency(2).pool(16, 1000));
        let listener = port.listen("127.0.0.1:0", 0).unwrap();
        let address = listener.local_addr().unwrap();
        listener.accept().unwrap();
        let server = {
            let port = port.clone();
            thread::spawn(move || {
                port.workers(3).run(|packet| {
                    let bytes = packet.bytes()?;
                    match packet.op {
                        Op::Accept { incoming: Some(new), .. } => {
                            new.associate(1)?.recv(Buf::pooled())?;
                        }
                        Op::Recv { stream, buf } if bytes > 0 => stream.send(buf)?,
                        Op::Send { stream, .. } => stream.recv(Buf::pooled())?,
                        _ => {}
                    }
                    Ok(())
                })
            })
        };
        let clients: Vec<_> = (0..8)
            .map(|number| {
                thread::spawn(move || {
                    let mut socket = TcpStream::connect(address).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    let data = pattern(number * 1_000_003, BYTES);
                    let mut back = vec![0; BYTES];
                    let mut at = 0;
                    for part in data.chunks(7001) {
                        socket.write_all(part).unwrap();
                        socket.read_exact(&mut back[at..at + part.len()]).unwrap();
                        at += part.len();
                    }
                    assert!(back == data, "connection {number}");
                    socket.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
                })
            })
            .collect();
        clients.into_iter().for_each(join);
        until("all are closed", || port.handles() == 1);
        port.close();
        join(server).unwrap();
    });
}

/// Would catch: an operation that was done at once and leaves a packet as well, or one that was
/// not and leaves none; bytes that are lost or doubled between the two; a context that is lost.
#[test]
fn what_can_be_done_at_once_has_no_packet() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        // Nothing is there: it is started, and has a packet.
        let started = stream.start().recv_now(Vec::with_capacity(8)).unwrap();
        assert!(matches!(started, Now::Pending(_)), "{started:?}");
        peer.write_all(b"one").unwrap();
        assert_eq!(&received(next(&port))[..], b"one");
        // Something is there: it is over.
        peer.write_all(b"two").unwrap();
        until("it is there", || stream_readable(&stream));
        let now = stream.start().context(Token::from(7)).recv_now(Vec::with_capacity(8)).unwrap();
        let Now::Completed { buf, bytes, context } = now else { panic!("{now:?}") };
        assert_eq!((&buf[..], bytes, context.map(|token| token.id)), (&b"two"[..], 3, Some(7)));
        // Behind another one nothing is done at once.
        stream.recv(Vec::with_capacity(1)).unwrap();
        peer.write_all(b"xy").unwrap();
        let second = stream.start().recv_now(Vec::with_capacity(1)).unwrap();
        assert!(matches!(second, Now::Pending(_)));
        assert_eq!(
            (&received(next(&port))[..], &received(next(&port))[..]),
            (&b"x"[..], &b"y"[..])
        );
        // A send that fits is over; one that does not goes on where it was.
        let sent = stream.start().send_now("fits").unwrap();
        assert!(matches!(sent, Now::Completed { bytes: 4, .. }));
        let large = pattern(0, 8 << 20);
        let started = stream.start().send_now(large.clone()).unwrap();
        assert!(matches!(started, Now::Pending(_)));
        let reader = thread::spawn(move || {
            let mut got = vec![0; 4 + (8 << 20)];
            peer.read_exact(&mut got).unwrap();
            got
        });
        assert_eq!(next(&port).result, Ok(8 << 20));
        let got = join(reader);
        assert!(&got[..4] == b"fits" && got[4..] == large);
        assert!(poll(&port).is_none());
        assert_eq!(port.stats().in_flight, 0);
    });
}

fn stream_readable(stream: &Stream) -> bool {
    let mut byte = [std::mem::MaybeUninit::new(0)];
    let socket = SockRef::from(stream);
    socket.recv_with_flags(&mut byte, codes::PEEK).is_ok()
}
