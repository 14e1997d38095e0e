//! Which worker runs, and how many: newest first, no more than the limit, another one when one
//! blocks.

use std::{
    io::{Read, Write},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use wharf::{Buf, Wait};

use super::support::*;

fn posted(packet: Packet) -> u64 {
    match packet.op {
        Op::Posted(token) => token.id,
        other => panic!("not posted: {other:?}"),
    }
}

/// Starts workers one after the other, so that the order in which they wait is known. Each does
/// what it is told with every packet, until told to leave.
fn in_order(
    port: &Port,
    count: usize,
    handle: impl Fn(usize, Packet) -> bool + Send + Sync + 'static,
) -> Vec<JoinHandle<()>> {
    let handle = Arc::new(handle);
    let before = port.stats().waiting;
    (0..count)
        .map(|number| {
            let (port, handle) = (port.clone(), handle.clone());
            let worker = {
                let port = port.clone();
                thread::spawn(move || {
                    while let Wait::Packet(packet) = port.wait() {
                        if !handle(number, packet) {
                            return;
                        }
                    }
                })
            };
            until("it waits", || {
                let stats = port.stats();
                stats.waiting == before + number + 1 && stats.running == 0
            });
            worker
        })
        .collect()
}

/// A port that takes no worker for blocked. For tests of what is right without that: on a busy
/// machine a worker may well be seen waiting for a lock, and lose its place to another.
fn unwatched(concurrency: usize) -> Port {
    build(crate::builder().concurrency(concurrency).watch(false))
}

fn lifo_of_leaving(concurrency: usize) {
    let port = unwatched(concurrency);
    let (sender, who) = mpsc::channel();
    let workers = in_order(&port, 5, move |number, _| {
        sender.send(number).unwrap();
        false
    });
    let mut workers: Vec<_> = workers.into_iter().map(Some).collect();
    let mut order = Vec::new();
    for left in (0..5).rev() {
        port.post(Token::from(0)).unwrap();
        let number = receive(&who);
        order.push(number);
        join(workers[number].take().expect("each takes one packet"));
        // Its leaving may wake a waiter for a moment, to see to the place that is free now: who is
        // awake is not the newest waiter. So look until that is over.
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(3));
            until("it has left", || {
                let stats = port.stats();
                stats.waiting == left && stats.running == 0
            });
        }
    }
    assert_eq!(order, [4, 3, 2, 1, 0], "the newest first, at most {concurrency} running");
}

/// Would catch: waiters released oldest first, as a condition variable does, or all at once.
#[test]
fn the_newest_waiter_is_released_first() {
    if not_shown_by_wine(
        "the_newest_waiter_is_released_first",
        "Wine releases waiters oldest first",
    ) {
        return;
    }
    run(|| lifo_of_leaving(1));
}

/// Would catch: the same where several run: a worker that only moved into a freed slot and counts
/// as the newest for it.
#[test]
fn the_newest_waiter_is_released_first_of_several() {
    if not_shown_by_wine(
        "the_newest_waiter_is_released_first_of_several",
        "Wine releases waiters oldest first",
    ) {
        return;
    }
    run(|| lifo_of_leaving(2));
    run(|| lifo_of_leaving(3));
}

/// Would catch: work that goes round all workers, whose caches are then all cold, instead of
/// staying with the newest.
#[test]
fn one_after_the_other_all_posts_go_to_the_same_worker() {
    if not_shown_by_wine(
        "one_after_the_other_all_posts_go_to_the_same_worker",
        "Wine releases waiters oldest first",
    ) {
        return;
    }
    run(|| {
        for concurrency in [1, 2] {
            let port = unwatched(concurrency);
            let (sender, who) = mpsc::channel();
            let workers = in_order(&port, 4, move |number, _| {
                sender.send(number).unwrap();
                true
            });
            for _ in 0..50 {
                port.post(Token::from(0)).unwrap();
                assert_eq!(receive(&who), 3);
                until("it waits again", || port.stats().waiting == 4);
            }
            port.close();
            workers.into_iter().for_each(join);
        }
    });
}

/// Runs packets on many workers and says how many ran at once at most.
fn most_at_once(port: &Port, workers: usize, packets: usize) -> usize {
    let running = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (done, over) = mpsc::channel();
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (port, running, done) = (port.clone(), running.clone(), done.clone());
            thread::spawn(move || {
                while let Wait::Packet(packet) = port.wait() {
                    let now = running[0].fetch_add(1, Ordering::SeqCst) + 1;
                    running[1].fetch_max(now, Ordering::SeqCst);
                    for _ in 0..20 {
                        thread::yield_now();
                    }
                    running[0].fetch_sub(1, Ordering::SeqCst);
                    done.send(()).unwrap();
                    drop(packet);
                }
            })
        })
        .collect();
    for id in 0..packets {
        port.post(Token::from(u64::try_from(id).unwrap_or(0))).unwrap();
    }
    for _ in 0..packets {
        receive(&over);
    }
    port.close();
    threads.into_iter().for_each(join);
    running[1].load(Ordering::SeqCst)
}

/// Would catch: a limit that is ignored, as it is in some re-implementations. Where the watch has
/// taken a worker for blocked (it may wait for a lock for a moment), one more is right.
#[test]
fn no_more_workers_run_than_the_limit() {
    if not_shown_by_wine(
        "no_more_workers_run_than_the_limit",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        for (limit, watch) in [(1, false), (2, false), (3, false), (1, true), (2, true)] {
            let port = build(crate::builder().concurrency(limit).watch(watch));
            let most = most_at_once(&port, 8, 1000);
            let noticed = port.stats().blocks_noticed;
            assert!(watch || noticed == 0);
            assert!(most <= limit || noticed > 0, "{most} ran, the limit being {limit}");
        }
    });
}

/// Would catch: a block that does not give its place to another worker. Without the
/// watch: it is the declaration that does it.
#[test]
fn a_declared_block_releases_another_worker() {
    if not_shown_by_wine(
        "a_declared_block_releases_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        let port = unwatched(1);
        let (free, freed) = mpsc::channel::<()>();
        let freed = Mutex::new(freed);
        let (sender, order) = mpsc::channel();
        let inner = port.clone();
        let workers = in_order(&port, 2, move |_, packet| {
            match posted(packet) {
                1 => {
                    inner.blocking(|| receive(&freed.lock().unwrap()));
                    sender.send(1).unwrap();
                }
                id => {
                    sender.send(id).unwrap();
                    free.send(()).unwrap();
                }
            }
            true
        });
        port.post(Token::from(1)).unwrap();
        port.post(Token::from(2)).unwrap();
        assert_eq!((receive(&order), receive(&order)), (2, 1));
        assert_eq!(port.stats().blocks_noticed, 0);
        port.close();
        workers.into_iter().for_each(join);
    });
}

/// Would catch: what a worker has started and not submitted yet when it declares a block, on
/// whose outcome the block may wait.
#[test]
fn a_declared_block_submits_what_was_started() {
    run(|| {
        let port = unwatched(1);
        let (stream, mut peer) = pair(&port);
        // Bound, with a place of its own: what it starts is submitted with its next wait.
        assert!(poll(&port).is_none());
        stream.send("ping").unwrap();
        stream.recv(Vec::with_capacity(4)).unwrap();
        port.blocking(|| {
            let mut text = [0; 4];
            peer.read_exact(&mut text).unwrap();
            peer.write_all(&text).unwrap();
        });
        assert_eq!((next(&port).result, next(&port).result), (Ok(4), Ok(4)));
    });
}

/// Would catch: a panic inside a declared block that leaves the worker without a place for good.
#[test]
fn a_panic_in_a_declared_block_is_survived() {
    run(|| {
        let port = unwatched(1);
        port.post(Token::from(1)).unwrap();
        drop(next(&port));
        let blocking = || {
            let panic: Box<dyn std::any::Any + Send> = Box::new("on purpose");
            port.blocking(|| std::panic::resume_unwind(panic))
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(blocking)).unwrap_err();
        assert_eq!(port.stats().running, 1);
        port.post(Token::from(2)).unwrap();
        assert_eq!(posted(next(&port)), 2);
    });
}

/// Would catch: `blocking` that does something to a thread that is no worker, or hides its value.
#[test]
fn blocking_on_a_thread_that_is_no_worker_just_runs() {
    run(|| {
        let port = port(1);
        assert_eq!(port.blocking(|| 5), 5);
        assert_eq!(port.stats().running, 0);
    });
}

/// A block that nobody declares: of `how`'s making, until the other end is dropped or written to.
fn an_undeclared_block(block: impl Fn(&AtomicBool) + Send + Sync + 'static, end: impl FnOnce()) {
    let port = port(1);
    let over = Arc::new(AtomicBool::new(false));
    let (sender, order) = mpsc::channel();
    let workers = {
        let over = over.clone();
        in_order(&port, 2, move |_, packet| {
            let id = posted(packet);
            if id == 1 {
                block(&over);
            }
            sender.send(id).unwrap();
            true
        })
    };
    port.post(Token::from(1)).unwrap();
    port.post(Token::from(2)).unwrap();
    assert_eq!(receive(&order), 2, "another worker takes what waits");
    // Where the kernel notices, it does not say so.
    assert!(cfg!(windows) || port.stats().blocks_noticed >= 1);
    over.store(true, Ordering::SeqCst);
    end();
    assert_eq!(receive(&order), 1);
    port.close();
    workers.into_iter().for_each(join);
}

/// Would catch: packets that wait for a worker that sleeps.
#[test]
fn a_sleep_releases_another_worker() {
    if not_shown_by_wine(
        "a_sleep_releases_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        an_undeclared_block(
            |over| {
                while !over.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
            },
            || {},
        );
    });
}

/// Would catch: a watch that was sent to sleep while nobody ran, and that nobody has woken since.
#[test]
fn a_sleep_after_pauses_of_any_length_releases_another_worker() {
    if not_shown_by_wine(
        "a_sleep_after_pauses_of_any_length_releases_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        const NOTHING: u64 = 1;
        const SLEEP: u64 = 2;
        const WAKE: u64 = 3;
        for limit in [1, 2] {
            let port = port(limit);
            let (wake, woken) = mpsc::channel();
            let (wake, woken) = (Mutex::new(wake), Mutex::new(woken));
            let (sender, order) = mpsc::channel();
            let workers = in_order(&port, limit + 2, move |_, packet| {
                match posted(packet) {
                    SLEEP => receive(&woken.lock().unwrap()),
                    WAKE => wake.lock().unwrap().send(()).unwrap(),
                    _ => {}
                }
                sender.send(()).unwrap();
                true
            });
            let post = |kind| port.post(Token::from(kind)).unwrap();
            let mut random = Random::new(7);
            for _ in 0..12 {
                // Until no block was noticed for a while, whose looks are others.
                let calm = Instant::now() + Duration::from_millis(40);
                while Instant::now() < calm {
                    post(NOTHING);
                    receive(&order);
                    let pause = u64::try_from(random.below(3000)).unwrap_or(0);
                    thread::sleep(Duration::from_micros(pause));
                }
                (0..limit).for_each(|_| post(SLEEP));
                (0..limit).for_each(|_| post(WAKE));
                (0..2 * limit).for_each(|_| receive(&order));
            }
            port.close();
            workers.into_iter().for_each(join);
        }
    });
}

/// Would catch: packets that wait for a worker that waits for a lock.
#[test]
fn a_lock_releases_another_worker() {
    if not_shown_by_wine(
        "a_lock_releases_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        let mutex = Arc::new(Mutex::new(()));
        let held = mutex.clone();
        let guard = held.lock().unwrap();
        an_undeclared_block(move |_| drop(mutex.lock()), move || drop(guard));
    });
}

/// Would catch: packets that wait for a worker that reads from a pipe.
#[test]
fn a_pipe_releases_another_worker() {
    if not_shown_by_wine(
        "a_pipe_releases_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        let (reader, writer) = std::io::pipe().unwrap();
        an_undeclared_block(
            move |_| {
                let _ = (&reader).read(&mut [0; 1]);
            },
            move || drop(writer),
        );
    });
}

/// Would catch: completions, other than posts, that wait for a worker that sleeps.
#[test]
fn completions_too_release_another_worker() {
    if not_shown_by_wine(
        "completions_too_release_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let (free, freed) = mpsc::channel::<()>();
        let freed = Mutex::new(freed);
        let (sender, order) = mpsc::channel();
        let started = stream.clone();
        let workers = in_order(&port, 2, move |_, packet| {
            match packet.op {
                Op::Posted(_) => {
                    started.recv(Buf::pooled()).unwrap();
                    sender.send("asleep").unwrap();
                    receive(&freed.lock().unwrap());
                    sender.send("awake").unwrap();
                }
                Op::Recv { .. } => {
                    sender.send("received").unwrap();
                    free.send(()).unwrap();
                }
                other => panic!("{other:?}"),
            }
            true
        });
        port.post(Token::from(1)).unwrap();
        assert_eq!(receive(&order), "asleep");
        // The receive was started by a worker that sleeps before it has entered the kernel.
        peer.write_all(b"x").unwrap();
        assert_eq!((receive(&order), receive(&order)), ("received", "awake"));
        port.close();
        workers.into_iter().for_each(join);
    });
}

/// A worker that starts a receive and then does `busy` until another worker has its packet.
fn a_busy_worker(limit: usize, workers: usize, busy: fn(&Port, &AtomicBool)) {
    let port = port(limit);
    let (stream, mut peer) = pair(&port);
    let over = Arc::new(AtomicBool::new(false));
    let (sender, order) = mpsc::channel();
    let threads = {
        let (stream, over, inner) = (stream.clone(), over.clone(), port.clone());
        in_order(&port, workers, move |_, packet| {
            match packet.op {
                Op::Posted(_) => {
                    stream.recv(Buf::pooled()).unwrap();
                    sender.send("busy").unwrap();
                    busy(&inner, &over);
                    sender.send("over").unwrap();
                }
                Op::Recv { .. } => sender.send("received").unwrap(),
                other => panic!("{other:?}"),
            }
            true
        })
    };
    port.post(Token::from(1)).unwrap();
    assert_eq!(receive(&order), "busy");
    peer.write_all(b"x").unwrap();
    assert_eq!(receive(&order), "received");
    over.store(true, Ordering::SeqCst);
    assert_eq!(receive(&order), "over");
    port.close();
    threads.into_iter().for_each(join);
}

fn compute(_: &Port, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        std::hint::spin_loop();
    }
}

fn sleep(_: &Port, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(1));
    }
}

fn declared(port: &Port, over: &AtomicBool) {
    port.blocking(|| sleep(port, over));
}

/// Would catch: the packets of a connection that wait for the worker that serves it, which
/// computes, while another worker has nothing to do.
#[test]
fn a_computing_worker_does_not_hold_up_others() {
    run(|| {
        a_busy_worker(2, 2, compute);
        a_busy_worker(2, 3, compute);
    });
}

/// Would catch: the same for one that sleeps, with one worker in each place and with more.
#[test]
fn a_sleeping_worker_does_not_hold_up_others() {
    run(|| {
        a_busy_worker(2, 2, sleep);
        a_busy_worker(2, 3, sleep);
    });
}

/// Would catch: the same for one that has declared it.
#[test]
fn a_worker_in_a_declared_block_does_not_hold_up_others() {
    run(|| {
        a_busy_worker(2, 2, declared);
        a_busy_worker(2, 3, declared);
    });
}

/// Would catch: the same without the watch, which a declared block does not need.
#[test]
fn a_declared_block_does_not_hold_up_others_without_the_watch() {
    run(|| {
        let port = unwatched(2);
        let (stream, mut peer) = pair(&port);
        let (free, freed) = mpsc::channel::<()>();
        let freed = Mutex::new(freed);
        let (sender, order) = mpsc::channel();
        let (inner, started) = (port.clone(), stream.clone());
        let workers = in_order(&port, 2, move |_, packet| {
            match packet.op {
                Op::Posted(_) => {
                    started.recv(Buf::pooled()).unwrap();
                    sender.send("blocked").unwrap();
                    inner.blocking(|| receive(&freed.lock().unwrap()));
                }
                Op::Recv { .. } => sender.send("received").unwrap(),
                other => panic!("{other:?}"),
            }
            true
        });
        port.post(Token::from(1)).unwrap();
        assert_eq!(receive(&order), "blocked");
        peer.write_all(b"x").unwrap();
        assert_eq!(receive(&order), "received");
        drop(free);
        port.close();
        // The worker in the block ends with a panic of its receive, or without.
        workers.into_iter().for_each(|worker| drop(worker.join()));
    });
}

/// Would catch: packets that wait behind others, whose handlers compute for long, while another
/// worker has nothing to do. They are too few for that one to take them of itself, and nobody
/// watches: the worker that has them must have found out what they cost, and call.
#[test]
fn what_waits_behind_long_handlers_is_taken_by_another_worker() {
    if not_shown_by_wine(
        "what_waits_behind_long_handlers_is_taken_by_another_worker",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        const CONNECTIONS: usize = 3;
        let port = unwatched(2);
        let (streams, peers): (Vec<_>, Vec<_>) = (0..CONNECTIONS).map(|_| pair(&port)).unzip();
        // Who has taken a packet of this round, as bits.
        let takers = Arc::new(AtomicUsize::new(0));
        let (sender, taken) = mpsc::channel();
        let threads = {
            let takers = takers.clone();
            in_order(&port, 2, move |number, packet| {
                match packet.op {
                    Op::Posted(_) => {
                        takers.store(0, Ordering::SeqCst);
                        // All are over as soon as this worker submits them.
                        for (stream, mut peer) in streams.iter().zip(&peers) {
                            peer.write_all(b"x").unwrap();
                            stream.recv(Buf::pooled()).unwrap();
                        }
                    }
                    Op::Recv { .. } => {
                        takers.fetch_or(1 << number, Ordering::SeqCst);
                        let end = Instant::now() + Duration::from_millis(1);
                        while takers.load(Ordering::SeqCst) != 0b11 && Instant::now() < end {
                            std::hint::spin_loop();
                        }
                        sender.send(()).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
                true
            })
        };
        until("another worker helps", || {
            until("both wait", || port.stats().waiting == 2);
            port.post(Token::from(1)).unwrap();
            (0..CONNECTIONS).for_each(|_| receive(&taken));
            takers.load(Ordering::SeqCst) == 0b11
        });
        // Where the kernel has one queue, nothing is stolen.
        assert!(cfg!(windows) || port.stats().stolen > 0);
        assert_eq!(port.stats().blocks_noticed, 0);
        port.close();
        threads.into_iter().for_each(join);
    });
}

/// Would catch: a cancelled operation whose packet never comes because the worker that started it
/// is blocked: a cancellation is asked for from any thread, and its packet goes to any worker.
#[test]
fn a_cancellation_does_not_wait_for_a_blocked_worker() {
    for block in [declared, sleep, compute] {
        run(move || {
            let port = port(2);
            let (stream, _peer) = pair(&port);
            let over = Arc::new(AtomicBool::new(false));
            let (sender, order) = mpsc::channel();
            let threads = {
                let (stream, over, inner) = (stream.clone(), over.clone(), port.clone());
                in_order(&port, 2, move |_, packet| {
                    match packet.op {
                        Op::Posted(_) => {
                            stream.recv(Buf::pooled()).unwrap();
                            sender.send(None).unwrap();
                            block(&inner, &over);
                        }
                        Op::Recv { .. } => sender.send(Some(packet.result)).unwrap(),
                        other => panic!("{other:?}"),
                    }
                    true
                })
            };
            port.post(Token::from(1)).unwrap();
            assert!(receive(&order).is_none());
            assert_eq!(stream.cancel_all(), 1);
            let result = receive(&order).expect("a receive");
            assert!(result.unwrap_err().is_cancelled());
            over.store(true, Ordering::SeqCst);
            port.close();
            threads.into_iter().for_each(join);
        });
    }
}

/// Would catch: a worker back from a block that must wait for its place (it runs at once, beyond
/// the limit), and a limit that stays exceeded afterwards.
#[test]
fn a_worker_that_is_back_runs_beyond_the_limit_until_it_waits() {
    if not_shown_by_wine(
        "a_worker_that_is_back_runs_beyond_the_limit_until_it_waits",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        let port = unwatched(1);
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let (back, returned) = mpsc::channel::<()>();
        let returned = Mutex::new(returned);
        let over = Arc::new(AtomicBool::new(false));
        let running = AtomicUsize::new(0);
        let (sender, order) = mpsc::channel();
        let workers = {
            let (inner, over) = (port.clone(), over.clone());
            in_order(&port, 3, move |_, packet| {
                match posted(packet) {
                    1 => {
                        inner.blocking(|| receive(&gone.lock().unwrap()));
                        back.send(()).unwrap();
                        compute(&inner, &over);
                    }
                    2 => {
                        go.send(()).unwrap();
                        // Both run now, this one in the place it was given.
                        compute_until(&returned.lock().unwrap());
                        sender.send(inner.stats().running).unwrap();
                        compute(&inner, &over);
                    }
                    _ => {
                        sender.send(running.fetch_add(1, Ordering::SeqCst) + 1).unwrap();
                        (0..20).for_each(|_| thread::yield_now());
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                }
                true
            })
        };
        port.post(Token::from(1)).unwrap();
        port.post(Token::from(2)).unwrap();
        assert_eq!(receive(&order), 2, "both run");
        over.store(true, Ordering::SeqCst);
        until("all wait", || {
            let stats = port.stats();
            (stats.running, stats.waiting) == (0, 3)
        });
        // And the limit holds again.
        (0..300).for_each(|_| port.post(Token::from(3)).unwrap());
        assert_eq!((0..300).map(|_| receive(&order)).max(), Some(1), "as many ran at once");
        port.close();
        workers.into_iter().for_each(join);
    });
}

fn compute_until(channel: &Receiver<()>) {
    while channel.try_recv().is_err() {
        std::hint::spin_loop();
    }
}

/// Would catch: a worker released although the one that is back from a block runs, and as many run
/// as may. Where the watch has taken that one for blocked, releasing another is right.
#[test]
fn nobody_is_released_while_one_is_back_from_a_block() {
    if not_shown_by_wine(
        "nobody_is_released_while_one_is_back_from_a_block",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    for watch in [false, true] {
        run(move || {
            let port = build(crate::builder().concurrency(1).watch(watch));
            let over = Arc::new(AtomicBool::new(false));
            let (sender, order) = mpsc::channel();
            let workers = {
                let (inner, over) = (port.clone(), over.clone());
                in_order(&port, 2, move |number, packet| {
                    if posted(packet) == 1 {
                        // Meanwhile the other one waits in the place.
                        inner.blocking(|| {
                            until("the other waits", || inner.stats().waiting == 1);
                            thread::sleep(Duration::from_millis(2));
                        });
                        sender.send((1, number)).unwrap();
                        compute(&inner, &over);
                        sender.send((2, number)).unwrap();
                    } else {
                        sender.send((3, number)).unwrap();
                    }
                    true
                })
            };
            port.post(Token::from(1)).unwrap();
            let (_, worker) = receive(&order);
            let running = port.stats().running;
            port.post(Token::from(2)).unwrap();
            // Give the other one time to do the wrong thing.
            thread::sleep(Duration::from_millis(20));
            over.store(true, Ordering::SeqCst);
            let ends = [receive(&order), receive(&order)];
            let noticed = port.stats().blocks_noticed;
            assert!(watch || noticed == 0);
            if noticed == 0 {
                assert_eq!((running, ends[0], ends[1].0), (1, (2, worker), 3));
            }
            port.close();
            workers.into_iter().for_each(join);
        });
    }
}

/// Would catch: a place that is lost with the worker that had it. Without the watch: it is the
/// exit that gives it back.
#[test]
fn a_worker_that_exits_gives_its_place_back() {
    if not_shown_by_wine(
        "a_worker_that_exits_gives_its_place_back",
        "Wine does not keep the concurrency value",
    ) {
        return;
    }
    run(|| {
        for panics in [false, true] {
            let port = unwatched(1);
            let (sender, who) = mpsc::channel();
            let workers = in_order(&port, 3, move |number, packet| {
                sender.send((number, posted(packet))).unwrap();
                if panics {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
                false
            });
            for id in 0..3 {
                port.post(Token::from(id)).unwrap();
            }
            // All at once, so the second waits for the first to be gone.
            let order: Vec<_> = (0..3).map(|_| receive(&who)).collect();
            assert_eq!(order, [(2, 0), (1, 1), (0, 2)]);
            assert_eq!(workers.into_iter().filter_map(|worker| worker.join().err()).count(), {
                if panics { 3 } else { 0 }
            });
            assert_eq!((port.stats().running, port.stats().waiting), (0, 0));
        }
    });
}

/// Would catch: operations that die with the thread that started them: the kernel cancels them.
#[test]
fn operations_survive_the_thread_that_started_them() {
    run(|| {
        for (limit, worker) in [(1, true), (1, false), (2, true), (2, false)] {
            let port = port(limit);
            let (stream, mut peer) = pair(&port);
            let starter = {
                let (port, stream) = (port.clone(), stream.clone());
                thread::spawn(move || {
                    if worker {
                        assert_eq!(posted(next(&port)), 1);
                    }
                    for id in 0..3 {
                        let start = stream.start().context(Token::from(id));
                        start.recv_exact(Vec::with_capacity(8), 4).unwrap();
                    }
                    // Larger than the sockets hold: it ends after the thread has.
                    stream.start().context(Token::from(3)).send(vec![7; 8 << 20]).unwrap();
                })
            };
            if worker {
                port.post(Token::from(1)).unwrap();
            }
            join(starter);
            let pump = Pump::new(&port, 2);
            peer.write_all(b"one.two.thr.").unwrap();
            let mut texts = vec![];
            for _ in 0..3 {
                let packet = pump.next();
                assert_eq!(packet.result, Ok(4));
                let Op::Recv { buf, .. } = packet.op else { panic!("not a receive") };
                texts.push((packet.context.unwrap().id, buf.to_vec()));
            }
            texts.sort();
            let texts: Vec<_> = texts.into_iter().map(|(_, text)| text).collect();
            assert_eq!(texts, [b"one.", b"two.", b"thr."]);
            let mut sink = vec![0; 8 << 20];
            peer.read_exact(&mut sink).unwrap();
            assert!(sink.iter().all(|&byte| byte == 7));
            assert_eq!(pump.next().result, Ok(8 << 20));
        }
    });
}

/// Would catch: an operation of which a part was done when its thread went: the kernel reports the
/// part, and the rest is still to be done.
#[test]
fn a_part_that_is_done_when_a_thread_exits_is_not_all() {
    run(|| {
        const HALF: usize = 4 << 20;
        let port = port(1);
        let (plain, mut plain_peer) = pair(&port);
        let (gathered, mut gathered_peer) = pair(&port);
        let (exact, mut exact_peer) = pair(&port);
        exact_peer.write_all(b"par").unwrap();
        join(thread::spawn(move || {
            // The sockets hold less than this.
            plain.send(pattern(0, 2 * HALF)).unwrap();
            let halves = vec![pattern(0, HALF).into(), pattern(HALF, HALF).into()];
            gathered.send_vectored(halves).unwrap();
            exact.recv_exact(Vec::with_capacity(8), 8).unwrap();
        }));
        let pump = Pump::new(&port, 1);
        exact_peer.write_all(b"tial!").unwrap();
        for peer in [&mut plain_peer, &mut gathered_peer] {
            let mut got = vec![0; 2 * HALF];
            peer.read_exact(&mut got).unwrap();
            assert!(got == pattern(0, 2 * HALF));
        }
        for _ in 0..3 {
            let packet = pump.next();
            match packet.op {
                Op::Recv { buf, .. } => assert_eq!(&buf[..], b"partial!"),
                Op::Send { .. } | Op::SendVectored { .. } => {
                    assert_eq!(packet.result, Ok(2 * HALF));
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

/// Would catch: the packets of an exited worker's operations that nobody looks for, when the
/// workers that stay wait elsewhere and the one that kept watch is gone too.
#[test]
fn a_worker_that_is_left_alone_serves_all_places() {
    for watch in [true, false] {
        run(move || {
            let port = build(crate::builder().concurrency(2).watch(watch));
            let (stream, mut peer) = pair(&port);
            let (leave, left) = mpsc::channel::<()>();
            let (sender, order) = mpsc::channel();
            // It has the first place, and starts a receive there.
            let first = {
                let (port, stream, sender) = (port.clone(), stream.clone(), sender.clone());
                thread::spawn(move || {
                    assert_eq!(posted(next(&port)), 1);
                    stream.recv(Buf::pooled()).unwrap();
                    sender.send("started").unwrap();
                    // A declared block would give the place away: compute instead.
                    compute_until(&left);
                })
            };
            port.post(Token::from(1)).unwrap();
            assert_eq!(receive(&order), "started");
            // It has the second place until the next one comes, and then times out.
            let second = {
                let port = port.clone();
                thread::spawn(move || {
                    assert!(matches!(port.wait_for(Duration::from_millis(300)), Wait::TimedOut));
                })
            };
            until("the second waits", || port.stats().waiting == 1);
            let third = {
                let port = port.clone();
                thread::spawn(move || matches!(next(&port).op, Op::Recv { .. }))
            };
            until("the third waits", || port.stats().waiting == 2);
            join(second);
            leave.send(()).unwrap();
            join(first);
            peer.write_all(b"x").unwrap();
            assert!(join(third));
        });
    }
}

/// Would catch: operations started by a thread that is no worker, in a place that no worker has.
#[test]
fn one_worker_serves_all_places() {
    for watch in [true, false] {
        run(move || {
            let port = build(crate::builder().concurrency(4).watch(watch));
            let pump = Pump::new(&port, 1);
            until("it waits", || port.stats().waiting == 1);
            for _ in 0..8 {
                let (stream, mut peer) = pair(&port);
                stream.recv(Buf::pooled()).unwrap();
                peer.write_all(b"x").unwrap();
                assert!(matches!(pump.next().op, Op::Recv { .. }));
            }
        });
    }
}

/// Would catch: a thread that still counts on the port it has left for another.
#[test]
fn a_thread_that_waits_on_another_port_leaves_the_first() {
    run(|| {
        let first = unwatched(1);
        let second = port(1);
        let (sender, order) = mpsc::channel();
        let mover = {
            let (first, second, sender) = (first.clone(), second.clone(), sender.clone());
            thread::spawn(move || {
                assert_eq!(posted(next(&first)), 1);
                sender.send(0).unwrap();
                // It leaves the first one here, and sleeps in the second.
                sender.send(10 + posted(next(&second))).unwrap();
            })
        };
        first.post(Token::from(1)).unwrap();
        assert_eq!(receive(&order), 0);
        let stayer = {
            let (first, sender) = (first.clone(), sender.clone());
            thread::spawn(move || sender.send(20 + posted(next(&first))).unwrap())
        };
        first.post(Token::from(2)).unwrap();
        assert_eq!(receive(&order), 22);
        second.post(Token::from(3)).unwrap();
        assert_eq!(receive(&order), 13);
        join(mover);
        join(stayer);
        assert_eq!((first.stats().running, second.stats().running), (0, 0));
    });
}

/// Would catch: a batch that counts as several running workers, or as none.
#[test]
fn a_batch_counts_as_one_worker() {
    if not_shown_by_wine("a_batch_counts_as_one_worker", "Wine does not keep the concurrency value")
    {
        return;
    }
    run(|| {
        let port = unwatched(2);
        for id in 0..6 {
            port.post(Token::from(id)).unwrap();
        }
        let mut packets = Vec::new();
        assert!(matches!(port.wait_many(&mut packets, 4, None), Wait::Packet(4)));
        assert_eq!(port.stats().running, 1);
        let other = {
            let port = port.clone();
            thread::spawn(move || (posted(next(&port)), port.stats().running))
        };
        assert_eq!(join(other), (4, 2));
    });
}

/// Would catch: packets that wait for ever because the only worker that ran is blocked, and the
/// one that comes polls instead of waiting.
#[test]
fn a_poll_too_gets_the_place_of_a_blocked_worker() {
    run(|| {
        let port = port(1);
        port.post(Token::from(1)).unwrap();
        assert_eq!(posted(next(&port)), 1);
        // This thread has the only place, and now blocks until the other one is over.
        port.post(Token::from(2)).unwrap();
        let other = {
            let port = port.clone();
            thread::spawn(move || {
                let mut got = None;
                until("the poll has it", || {
                    got = poll(&port).map(posted);
                    got.is_some()
                });
                got
            })
        };
        assert_eq!(join(other), Some(2));
    });
}

/// Would catch: a worker that timed out and went away, and still has a place kept for it.
#[test]
fn workers_that_time_out_are_not_missed() {
    run(|| {
        let port = unwatched(1);
        let stay = Pump::new(&port, 1);
        until("it waits", || port.stats().waiting == 1);
        for _ in 0..20 {
            let port = port.clone();
            join(thread::spawn(move || {
                assert!(matches!(port.wait_for(Duration::from_millis(1)), Wait::TimedOut));
                assert!(poll(&port).is_none());
            }));
        }
        port.post(Token::from(1)).unwrap();
        assert_eq!(posted(stay.next()), 1);
    });
}

/// Would catch: wake-ups lost between workers that wait only for a moment and posts that come
/// just then.
#[test]
fn short_waits_and_posts_do_not_miss_each_other() {
    run(|| {
        const POSTS: u64 = 2000;
        for limit in [1, 2] {
            let port = port(limit);
            let (sender, taken) = mpsc::channel();
            let workers: Vec<_> = (0..4u64)
                .map(|number| {
                    let (port, sender): (_, Sender<u64>) = (port.clone(), sender.clone());
                    thread::spawn(move || {
                        let mut random = Random::new(number + 1);
                        loop {
                            let timeout = u64::try_from(random.below(900)).unwrap_or(0);
                            match port.wait_for(Duration::from_micros(timeout)) {
                                Wait::Packet(packet) => sender.send(posted(packet)).unwrap(),
                                Wait::TimedOut => {}
                                Wait::Closed => return,
                                Wait::Broken(error) => panic!("{error}"),
                            }
                        }
                    })
                })
                .collect();
            let mut sum = 0;
            for id in 1..=POSTS {
                port.post(Token::from(id)).unwrap();
                if id % 8 == 0 {
                    thread::sleep(Duration::from_micros(100));
                }
            }
            for _ in 0..POSTS {
                sum += receive(&taken);
            }
            assert_eq!(sum, POSTS * (POSTS + 1) / 2);
            port.close();
            workers.into_iter().for_each(join);
        }
    });
}

/// Would catch: workers that come and go in crowds, and a packet that none of them takes.
#[test]
fn workers_may_come_and_go() {
    run(|| {
        let port = port(2);
        let start = Arc::new(Barrier::new(5));
        let crowd: Vec<_> = (0..4)
            .map(|_| {
                let (port, start) = (port.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    let mut taken = 0;
                    for _ in 0..25 {
                        let port = port.clone();
                        taken += join(thread::spawn(move || {
                            u64::from(posted(next(&port)) > 0) + u64::from(posted(next(&port)) > 0)
                        }));
                    }
                    taken
                })
            })
            .collect();
        start.wait();
        for id in 1..=200 {
            port.post(Token::from(id)).unwrap();
            if id % 16 == 0 {
                thread::sleep(Duration::from_micros(300));
            }
        }
        assert_eq!(crowd.into_iter().map(join).sum::<u64>(), 200);
        assert_eq!((port.stats().running, port.stats().waiting), (0, 0));
    });
}
