//! Many connections, many threads, and things that happen when nobody expects them.

use std::{
    io::{ErrorKind as IoKind, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use wharf::{Buf, Wait};

use super::support::*;

/// A server that echoes, with workers that block, panic, exit and come anew, while other threads
/// cancel and close at random. Would catch: a hang, a lost or doubled packet, bytes that differ,
/// counters that do not come back.
#[test]
fn an_echo_server_survives_random_events() {
    run(|| {
        let seed = Random::seed("an_echo_server_survives_random_events");
        let tally = Tally::default();
        let port = build(crate::builder().concurrency(2).pool(16, 2000).ring_entries(16));
        let listener = port.listen("127.0.0.1:0", 0).unwrap();
        let address = listener.local_addr().unwrap();
        listener.accept().unwrap();
        let stop = Arc::new(AtomicBool::new(false));

        let workers: Vec<_> = (0..5)
            .map(|number| {
                let (port, tally) = (port.clone(), tally.clone());
                thread::spawn(move || {
                    let mut generation = 0;
                    // Each thread serves for a while, and is followed by a new one.
                    loop {
                        let (port, tally) = (port.clone(), tally.clone());
                        generation += 1;
                        let random = Random::new(seed ^ (number * 1000 + generation) << 7);
                        if thread::spawn(move || serve(&port, &tally, random))
                            .join()
                            .unwrap_or(false)
                        {
                            return;
                        }
                    }
                })
            })
            .collect();

        let clients: Vec<_> = (0..6u64)
            .map(|number| {
                thread::spawn(move || {
                    let mut random = Random::new(seed ^ (number + 1) << 40);
                    (0..25).filter(|_| talk(address, &mut random)).count()
                })
            })
            .collect();
        let troublemaker = {
            let (port, stop) = (port.clone(), stop.clone());
            thread::spawn(move || {
                let mut random = Random::new(seed ^ 77);
                while !stop.load(Ordering::SeqCst) {
                    let mut streams = Vec::new();
                    port.each_stream(|stream| streams.push(stream.clone()));
                    if !streams.is_empty() {
                        let stream = &streams[random.below(streams.len())];
                        // Not the listener, which the visit includes.
                        if stream.key() != &0 {
                            match random.below(6) {
                                0 => stream.close(),
                                1 => drop(stream.cancel_all()),
                                _ => drop(stream.start().silent().recv(Vec::new())),
                            }
                        }
                    }
                    port.post(Token::from(1)).unwrap();
                    thread::sleep(Duration::from_micros(500));
                }
            })
        };
        let good: usize = clients.into_iter().map(join).sum();
        stop.store(true, Ordering::SeqCst);
        join(troublemaker);
        println!("{good} of 150 conversations came to their end");
        until("all connections are closed", || {
            port.each_stream(|stream| {
                if stream.key() != &0 {
                    stream.close()
                }
            });
            port.handles() == 1
        });
        until("only the accept is left", || port.stats().in_flight == 1);
        port.close();
        workers.into_iter().for_each(join);
        let stats = port.stats();
        assert_eq!((stats.running, stats.waiting), (0, 0));
        drop((port, listener));
        tally.assert_even();
    });
}

/// Serves until the port closes (true) or chance ends it (false).
fn serve(port: &Port, tally: &Tally, mut random: Random) -> bool {
    loop {
        let timeout = (random.below(3) == 0).then(|| Duration::from_micros(300));
        let waited = match timeout {
            Some(timeout) => port.wait_for(timeout),
            None => port.wait(),
        };
        let packet = match waited {
            Wait::Packet(packet) => packet,
            Wait::TimedOut => continue,
            Wait::Closed => return true,
            Wait::Broken(error) => panic!("{error}"),
        };
        match random.below(200) {
            0 => port.blocking(|| thread::sleep(Duration::from_micros(500))),
            1 => thread::sleep(Duration::from_millis(2)),
            2 if matches!(packet.op, Op::Recv { .. }) => {
                std::panic::resume_unwind(Box::new("by chance"))
            }
            3 if matches!(packet.op, Op::Posted(_)) => return false,
            _ => {}
        }
        // What fails loses its stream, which closes it.
        let _ = echo(packet, tally, &mut random);
    }
}

fn echo(packet: Packet, tally: &Tally, random: &mut Random) -> wharf::Result<()> {
    let bytes = packet.bytes()?;
    match packet.op {
        Op::Accept { incoming: Some(incoming), .. } => {
            let stream = incoming.associate(1)?;
            stream.set_serial(random.below(2) == 0);
            stream.start().context(tally.token(1)).recv(Buf::pooled())?;
        }
        Op::Recv { stream, buf } if bytes > 0 => {
            let buf = if random.below(2) == 0 { buf } else { tally.bytes(buf.into_vec()) };
            let start = stream.start().context(tally.token(2)).deadline(PATIENCE);
            start.send(buf)?;
        }
        Op::Send { stream, .. } => {
            let start = stream.start().context(tally.token(3));
            if random.below(2) == 0 {
                start.recv(Buf::pooled())?;
            } else {
                start.recv(Vec::with_capacity(3000))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Sends and reads back; false if the server has closed in between. What comes back is right.
fn talk(address: std::net::SocketAddr, random: &mut Random) -> bool {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut at = 0;
    for _ in 0..random.below(20) + 1 {
        let part = pattern(at, 1 + random.below(6000));
        if let Err(error) = socket.write_all(&part) {
            assert!(is_end(&error), "{error}");
            return false;
        }
        let mut back = vec![0; part.len()];
        let mut got = 0;
        while got < back.len() {
            match socket.read(&mut back[got..]) {
                Ok(0) => return false,
                Ok(bytes) => got += bytes,
                Err(error) => {
                    assert!(is_end(&error), "{error}");
                    return false;
                }
            }
            assert!(back[..got] == part[..got], "what came back differs");
        }
        at += part.len();
    }
    if random.below(4) == 0 {
        reset(socket);
    }
    true
}

fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), IoKind::ConnectionReset | IoKind::BrokenPipe)
}

/// Two ports whose workers post to each other's, and wait on either. Would catch: places lost
/// where threads change ports.
#[test]
fn threads_change_ports() {
    run(|| {
        const HOPS: u64 = 3000;
        let ports = [port(1), port(2)];
        let seed = Random::seed("threads_change_ports");
        let threads: Vec<_> = (0..5)
            .map(|number| {
                let ports = ports.clone();
                thread::spawn(move || {
                    let mut random = Random::new(seed ^ (number + 1) << 20);
                    loop {
                        let port = &ports[random.below(2)];
                        match port.wait_for(Duration::from_micros(200)) {
                            Wait::Packet(packet) => {
                                let Op::Posted(token) = packet.op else { panic!("not posted") };
                                if token.id == HOPS {
                                    ports[0].close();
                                    ports[1].close();
                                    return;
                                }
                                let next = Token::from(token.id + 1);
                                ports[random.below(2)].post(next).unwrap();
                            }
                            Wait::TimedOut => {}
                            Wait::Closed => return,
                            Wait::Broken(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        ports[0].post(Token::from(0)).unwrap();
        threads.into_iter().for_each(join);
        let packets: u64 = ports.iter().map(|port| port.stats().packets).sum();
        assert_eq!(packets, HOPS + 1);
    });
}

/// Would catch: packets that are stolen and lost, or taken twice, where idle workers help busy
/// ones.
#[test]
fn stolen_packets_are_taken_once() {
    run(|| {
        let port = port(2);
        let connections: Vec<_> = (0..40).map(|_| pair(&port)).collect();
        let tally = Tally::default();
        let pump: Vec<_> = (0..4u64)
            .map(|number| {
                let port = port.clone();
                thread::spawn(move || {
                    let mut random = Random::new(number + 9);
                    let mut taken = 0;
                    while let Wait::Packet(packet) = port.wait() {
                        taken += usize::from(matches!(packet.op, Op::Recv { .. }));
                        if random.below(50) == 0 {
                            // Long enough for others to help.
                            let end = std::time::Instant::now() + Duration::from_millis(3);
                            while std::time::Instant::now() < end {
                                std::hint::spin_loop();
                            }
                        }
                    }
                    taken
                })
            })
            .collect();
        const ROUNDS: usize = 50;
        for round in 0..ROUNDS {
            for (stream, peer) in &connections {
                stream
                    .start()
                    .context(tally.token(0))
                    .recv_exact(Vec::with_capacity(4), 4)
                    .unwrap();
                (&*peer).write_all(&[round.to_le_bytes()[0]; 4]).unwrap();
            }
        }
        until("all are taken", || port.stats().in_flight == 0);
        port.close();
        assert_eq!(pump.into_iter().map(join).sum::<usize>(), 40 * ROUNDS);
        drop((connections, port));
        tally.assert_even();
    });
}
