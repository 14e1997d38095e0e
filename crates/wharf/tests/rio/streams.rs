//! Streams: order, whole slices, ends and failures.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
};

use wharf::rio::{Direction, Region};

use super::support::*;

/// Bytes that tell where they belong.
fn pattern(from: usize, count: usize) -> Vec<u8> {
    let byte = |at: usize| at.to_le_bytes().into_iter().fold(0, |sum, byte| sum ^ byte);
    (from..from + count).map(byte).collect()
}

/// Would catch: receives that are filled in another order than they were started in.
#[test]
fn receives_are_filled_in_order() {
    run(|| {
        const BYTES: usize = 1 << 20;
        let region = Region::new(16, 1000).unwrap();
        let mut queue = polled(16);
        let (stream, mut peer) = connection();
        let socket = queue.tcp_stream(stream, quota(16, 0)).unwrap();
        receives(&mut queue, socket, &region, 0..16);
        let sender = thread::spawn(move || peer.write_all(&pattern(0, BYTES)).map(|()| peer));
        let (mut at, mut context) = (0, 0);
        while at < BYTES {
            let done = next(&mut queue);
            assert_eq!(done.context, context);
            context += 1;
            let bytes = done.bytes().unwrap();
            assert!(bytes > 0);
            assert_eq!(&done.slice[..], pattern(at, bytes));
            at += bytes;
            queue.start(socket).context(context + 15).receive(done.slice).unwrap();
        }
        join(sender).unwrap();
    });
}

/// Would catch: bytes of two sends that mix, a part that is lost where the peer is slow.
#[test]
fn sends_keep_their_order_and_send_everything() {
    run(|| {
        const SENDS: usize = 200;
        let region = Region::new(SENDS, 40_000).unwrap();
        let mut queue = polled(SENDS);
        let (stream, mut peer) = connection();
        let socket = queue.tcp_stream(stream, quota(0, SENDS)).unwrap();
        let mut total = 0;
        for (number, mut slice) in region.slices().enumerate() {
            let bytes = (number * 331) % 40_000;
            slice.copy_from(&pattern(total, bytes)).unwrap();
            total += bytes;
            let start = queue.start(socket).context(number as u64);
            let start = if number % 3 == 0 { start.deferred() } else { start };
            start.send(slice).unwrap();
        }
        queue.commit(socket).unwrap();
        let reader = thread::spawn(move || {
            let mut all = vec![0; total];
            // The sender finds the buffer full again and again.
            for piece in all.chunks_mut(100_000) {
                thread::sleep(std::time::Duration::from_millis(1));
                peer.read_exact(piece).unwrap();
            }
            all
        });
        for (number, done) in take(&mut queue, SENDS).into_iter().enumerate() {
            assert_eq!(done.context, number as u64);
            assert_eq!(
                (done.direction, done.bytes().unwrap()),
                (Direction::Send, done.slice.len())
            );
        }
        assert_eq!(join(reader), pattern(0, total));
    });
}

#[test]
fn a_receive_may_wait_for_all() {
    run(|| {
        let region = Region::new(8, 1000).unwrap();
        let mut queue = polled(8);
        let (stream, mut peer) = connection();
        let socket = queue.tcp_stream(stream, quota(8, 0)).unwrap();
        let mut slices = region.slices();
        let mut slice = || slices.next().unwrap();
        // Some bytes, all, all, some, all: in this order.
        queue.start(socket).context(0).receive(slice()).unwrap();
        queue.start(socket).context(1).wait_all().receive(slice()).unwrap();
        queue.start(socket).context(2).wait_all().receive(slice()).unwrap();
        queue.start(socket).context(3).receive(slice()).unwrap();
        queue.start(socket).context(4).wait_all().receive(slice()).unwrap();
        nothing(&mut queue);
        let mut sent = 0;
        let mut send = |bytes: usize| {
            peer.write_all(&pattern(sent, bytes)).unwrap();
            sent += bytes;
        };
        send(10);
        let done = next(&mut queue);
        assert_eq!((done.context, &done.slice[..]), (0, &pattern(0, 10)[..]));
        send(600);
        nothing(&mut queue);
        send(1300);
        let done = next(&mut queue);
        assert_eq!((done.context, &done.slice[..]), (1, &pattern(10, 1000)[..]));
        nothing(&mut queue);
        send(100);
        let done = next(&mut queue);
        assert_eq!((done.context, &done.slice[..]), (2, &pattern(1010, 1000)[..]));
        send(5);
        let done = next(&mut queue);
        assert_eq!((done.context, &done.slice[..]), (3, &pattern(2010, 5)[..]));
        // The end comes early: what there is.
        send(77);
        nothing(&mut queue);
        peer.shutdown(Shutdown::Write).unwrap();
        let done = next(&mut queue);
        assert_eq!((done.context, &done.slice[..]), (4, &pattern(2015, 77)[..]));
        assert_eq!(done.bytes().unwrap(), 77);
    });
}

#[test]
fn every_receive_is_told_of_the_end() {
    run(|| {
        let region = Region::new(6, 100).unwrap();
        let mut queue = polled(6);
        let (stream, mut peer) = connection();
        let socket = queue.tcp_stream(stream, quota(6, 0)).unwrap();
        receives(&mut queue, socket, &region, 0..4);
        peer.write_all(b"last words").unwrap();
        let done = next(&mut queue);
        assert_eq!(&done.slice[..], b"last words");
        peer.shutdown(Shutdown::Write).unwrap();
        for context in 1..4 {
            let done = next(&mut queue);
            assert_eq!((done.context, done.bytes().unwrap()), (context, 0));
        }
        // And whoever asks later.
        for _ in 0..2 {
            queue.receive(socket, region.slices().next().unwrap()).unwrap();
            assert_eq!(next(&mut queue).bytes().unwrap(), 0);
        }
    });
}

/// Would catch: a reset that nobody hears of, or a receive that waits for ever after it.
#[test]
fn every_receive_is_told_of_a_reset() {
    const NAME: &str = "every_receive_is_told_of_a_reset";
    if polled(1).driver() == wharf::Driver::Rio
        && not_shown_by_wine(NAME, "Wine tells it to calls that do not wait as an end")
    {
        return;
    }
    for posted in [true, false] {
        run(move || {
            let region = Region::new(6, 100).unwrap();
            let mut queue = polled(6);
            let (stream, mut peer) = connection();
            let socket = queue.tcp_stream(stream, quota(6, 0)).unwrap();
            let count = if posted { 4 } else { 1 };
            receives(&mut queue, socket, &region, 0..count);
            peer.write_all(b"x").unwrap();
            drop(next(&mut queue));
            socket2::SockRef::from(&peer).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(peer);
            if !posted {
                if not_shown_by_wine(NAME, "in part: Wine tells who comes later of an end") {
                    return;
                }
                nothing(&mut queue);
                receives(&mut queue, socket, &region, 0..1);
            }
            for _ in 1..count.max(2) {
                let error = next(&mut queue).bytes().unwrap_err();
                assert!(error.is_connection_reset(), "{error}");
            }
        });
    }
}

#[test]
fn sends_to_a_peer_that_is_gone_fail() {
    run(|| {
        let region = Region::new(8, 10_000).unwrap();
        let mut queue = polled(8);
        let (stream, peer) = connection();
        let socket = queue.tcp_stream(stream, quota(0, 8)).unwrap();
        socket2::SockRef::from(&peer).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(peer);
        for slice in region.slices() {
            let mut slice = slice;
            slice.set_len(10_000).unwrap();
            queue.start(socket).deferred().send(slice).unwrap();
        }
        queue.commit(socket).unwrap();
        let done = take(&mut queue, 8);
        assert!(done.iter().skip(1).all(|done| done.bytes().is_err()));
        assert_eq!(region.in_use(), 8);
        drop(done);
        assert_eq!(region.in_use(), 0);
    });
}

/// Would catch: a close that does not end what is under way, or loses what was sent.
#[test]
fn a_connection_is_closed_with_requests_outstanding() {
    run(|| {
        let region = Region::new(40, 100_000).unwrap();
        let mut queue = polled(40);
        let (stream, mut peer) = connection();
        let socket = queue.tcp_stream(stream, quota(10, 30)).unwrap();
        receives(&mut queue, socket, &region, 0..10);
        // More than the peer takes without reading.
        for (number, mut slice) in (0..30).zip(region.slices()) {
            slice.room().fill(number);
            slice.set_len(100_000).unwrap();
            queue.start(socket).context(number.into()).send(slice).unwrap();
        }
        nothing_of(&mut queue, Direction::Receive);
        queue.close(socket).unwrap();
        let mut sent = 0;
        let mut outstanding = (0, 0);
        while let Some(done) = queue.dequeue().unwrap() {
            match done.direction {
                Direction::Receive => {
                    assert!(done.bytes().unwrap_err().is_cancelled());
                    outstanding.0 += 1;
                }
                Direction::Send => {
                    assert!(
                        done.bytes().is_ok_and(|it| it == 100_000) || done.transferred() < 100_000
                    );
                    sent += done.transferred();
                    outstanding.1 += 1;
                }
            }
        }
        assert_eq!(outstanding.0, 10);
        assert_eq!(queue.room(), 40);
        assert_eq!(region.in_use(), 0);
        // What was said to be sent may still be read, unless a reset was faster; no more than that.
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest);
        assert!(rest.len() <= sent + 100_000 * (30 - outstanding.1));
        assert!(rest.iter().zip(0..).all(|(&byte, at)| usize::from(byte) == at / 100_000));
    });
}

/// Lets sends complete, and nothing else.
#[track_caller]
fn nothing_of(queue: &mut wharf::rio::CompletionQueue, direction: Direction) {
    let deadline = std::time::Instant::now() + MOMENT;
    while std::time::Instant::now() < deadline {
        if let Some(done) = queue.dequeue().unwrap() {
            assert_ne!(done.direction, direction);
        }
        thread::yield_now();
    }
}

#[test]
fn a_connection_echoes_with_both_directions_busy() {
    run(|| {
        const BYTES: usize = 3 << 20;
        let region = Region::new(32, 4096).unwrap();
        let mut queue = polled(64);
        let (stream, peer) = connection();
        let socket = queue.tcp_stream(stream, quota(32, 32)).unwrap();
        receives(&mut queue, socket, &region, 0..32);
        let mut writer = peer.try_clone().unwrap();
        let writer = thread::spawn(move || writer.write_all(&pattern(0, BYTES)).unwrap());
        let mut reader = peer;
        let reader = thread::spawn(move || {
            let mut all = vec![0; BYTES];
            reader.read_exact(&mut all).unwrap();
            all
        });
        let mut echoed = 0;
        while echoed < BYTES {
            let done = next(&mut queue);
            match done.direction {
                Direction::Receive => queue.send(socket, done.slice).unwrap(),
                Direction::Send => {
                    echoed += done.bytes().unwrap();
                    queue.receive(socket, done.slice).unwrap();
                }
            }
        }
        join(writer);
        assert!(join(reader) == pattern(0, BYTES));
    });
}
