//! Serial mode: never two packets of one connection at once.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use wharf::{Buf, Wait};

use super::support::*;

/// Would catch: a second packet of a connection that is handed out while the first is out, and
/// packets of a connection out of order; with eight workers, both directions, repeated receives.
#[test]
fn packets_of_a_serial_connection_come_one_at_a_time() {
    run(|| {
        const ROUNDS: usize = 300;
        let port = port(4);
        let connections: Vec<_> = (0..3).map(|_| pair(&port)).collect();
        let state: Arc<Vec<[AtomicUsize; 3]>> =
            Arc::new((0..3).map(|_| std::array::from_fn(|_| AtomicUsize::new(0))).collect());
        let (sender, done) = mpsc::channel();
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (port, state, sender) = (port.clone(), state.clone(), sender.clone());
                thread::spawn(move || {
                    while let Wait::Packet(packet) = port.wait() {
                        let number = packet.context.as_ref().map(|token| token.id);
                        let number = usize::try_from(number.unwrap()).unwrap();
                        let [out, last_received, last_sent] = &state[number % 3];
                        assert_eq!(out.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                        let turn = number / 3;
                        let last = match &packet.op {
                            Op::Recv { .. } => last_received,
                            _ => last_sent,
                        };
                        assert_eq!(last.swap(turn + 1, Ordering::SeqCst), turn, "out of order");
                        for _ in 0..10 {
                            thread::yield_now();
                        }
                        out.fetch_sub(1, Ordering::SeqCst);
                        drop(packet);
                        sender.send(()).unwrap();
                    }
                })
            })
            .collect();
        for (stream, _) in &connections {
            stream.set_serial(true);
        }
        for turn in 0..ROUNDS {
            for (number, (stream, peer)) in connections.iter().enumerate() {
                let token = || Token::from(u64::try_from(turn * 3 + number).unwrap());
                stream.start().context(token()).recv_exact(Vec::with_capacity(4), 4).unwrap();
                stream.start().context(token()).send("four").unwrap();
                (&*peer).write_all(b"four").unwrap();
            }
        }
        for _ in 0..ROUNDS * 6 {
            receive(&done);
        }
        port.close();
        workers.into_iter().for_each(join);
    });
}

/// Would catch: a packet that comes before the turn is dropped, or not after.
#[test]
fn the_next_packet_comes_when_the_turn_is_dropped() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.set_serial(true);
        stream.recv_each().unwrap();
        stream.send("a").unwrap();
        stream.send("b").unwrap();
        peer.write_all(b"x").unwrap();
        let first = next(&port);
        assert!(poll(&port).is_none());
        // Another connection is not held up.
        let (other, _other_peer) = pair(&port);
        other.send("c").unwrap();
        let packet = next(&port);
        assert!(matches!(&packet.op, Op::Send { stream, .. } if *stream == other));
        assert!(poll(&port).is_none());
        // The parts of a packet may go one by one: it is the turn that counts.
        let turn = first.turn;
        drop(first.op);
        assert!(poll(&port).is_none());
        drop(turn);
        let second = next(&port);
        assert!(poll(&port).is_none());
        drop(second);
        let third = next(&port);
        drop(third);
        stream.cancel_all();
        assert!(next(&port).result.unwrap_err().is_cancelled());
    });
}

/// Would catch: a repeated receive in serial mode that loses or doubles data, or stops.
#[test]
fn repeated_receives_work_in_serial_mode() {
    run(|| {
        const BYTES: usize = 500_000;
        let port = build(crate::builder().concurrency(2).pool(4, 500));
        let (stream, mut peer) = pair(&port);
        stream.set_serial(true);
        stream.recv_each().unwrap();
        drop(stream);
        let writer = thread::spawn(move || peer.write_all(&pattern(0, BYTES)).unwrap());
        let (sender, parts) = mpsc::channel();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (port, sender) = (port.clone(), sender.clone());
                thread::spawn(move || {
                    while let Wait::Packet(packet) = port.wait() {
                        let Op::Recv { buf, .. } = &packet.op else { panic!("not a receive") };
                        sender.send((packet.more, buf.to_vec())).unwrap();
                    }
                })
            })
            .collect();
        let mut got = Vec::new();
        loop {
            let (more, part) = receive(&parts);
            got.extend_from_slice(&part);
            if !more {
                break;
            }
        }
        // Sent under the turn, so it came in order.
        assert!(got == pattern(0, BYTES));
        join(writer);
        port.close();
        workers.into_iter().for_each(join);
    });
}

/// Would catch: a cancelled or closed serial connection whose packets stay behind the one that is
/// out.
#[test]
fn a_serial_connection_can_be_closed_and_cancelled() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let (stream, _peer) = pair(&port);
        stream.set_serial(true);
        for number in 0..4 {
            stream.start().context(tally.token(number)).send("x").unwrap();
            stream.start().context(tally.token(number)).recv(Vec::with_capacity(1)).unwrap();
        }
        let first = next(&port);
        assert!(stream.cancel_all() >= 4);
        stream.close();
        assert!(poll(&port).is_none());
        drop(first);
        for _ in 0..7 {
            drop(next(&port));
        }
        assert!(poll(&port).is_none());
        assert_eq!(port.stats().in_flight, 0);
        tally.assert_even();
    });
}

/// Would catch: a mode that cannot be left, or that strands packets when it is.
#[test]
fn serial_mode_can_be_left() {
    run(|| {
        let port = port(1);
        let (stream, _peer) = pair(&port);
        stream.set_serial(true);
        for _ in 0..3 {
            stream.send("x").unwrap();
        }
        let first = next(&port);
        assert!(poll(&port).is_none());
        stream.set_serial(false);
        drop(first);
        let held: Vec<_> = (0..2).map(|_| next(&port)).collect();
        stream.send("y").unwrap();
        let last = next(&port);
        drop((held, last));
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: a port that cannot be dropped while a packet of a serial connection is out: it
/// would wait for the operations behind it, and in the end leak them.
#[test]
fn a_port_can_be_dropped_while_a_turn_is_out() {
    run(|| {
        let tally = Tally::default();
        let size = Size::new();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.set_serial(true);
        stream.start().context(tally.token(1)).send(tally.bytes(vec![1; 10])).unwrap();
        let first = next(&port);
        stream.start().context(tally.token(2)).recv(size.vec()).unwrap();
        stream.start().context(tally.token(3)).send(tally.bytes(vec![1; 10])).unwrap();
        peer.write_all(b"x").unwrap();
        // Both are over and wait for their turn.
        until("they are", || poll(&port).is_none() && port.stats().queued == 0);
        thread::sleep(Duration::from_millis(5));
        assert!(poll(&port).is_none());
        drop(port);
        drop((first, stream));
        tally.assert_even();
        assert_eq!(size.alive(), 0);
    });
}

/// Would catch: a silent operation that takes a turn nobody gives back.
#[test]
fn silent_operations_take_no_turn() {
    run(|| {
        let port = port(1);
        let (stream, _peer) = pair(&port);
        stream.set_serial(true);
        for _ in 0..3 {
            stream.start().silent().send("x").unwrap();
            stream.send("y").unwrap();
        }
        for _ in 0..3 {
            assert_eq!(next(&port).result, Ok(1));
        }
        stream.start().silent().recv(Buf::pooled()).unwrap();
        stream.cancel_all();
        until("it is over", || poll(&port).is_none() && port.stats().in_flight == 0);
    });
}
