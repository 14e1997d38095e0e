//! The traditional completion port: each receive has a packet of its own, and one thread or several
//! take them.

use std::{net::UdpSocket, thread};

use wharf::{Buf, Builder, Op, Port, Wait};

use super::count::{Counter, OUTSTANDING_PER_THREAD, Tally};

pub(super) fn serve(socket: UdpSocket, counter: &Counter) -> wharf::Result<()> {
    let options = counter.options();
    let port: Port<()> = Builder::new().concurrency(options.threads).build()?;
    let socket = port.associate_udp(socket, ())?;
    socket.set_coalescing(options.coalesce)?;
    for _ in 0..options.threads * OUTSTANDING_PER_THREAD {
        socket.recv(Buf::with_capacity(options.room()))?;
    }
    thread::scope(|scope| {
        let worker = || {
            // One that is over, for whatever reason, ends the others.
            let ended = work(&port, &counter.thread());
            port.close();
            ended
        };
        let workers: Vec<_> = (0..options.threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })
}

fn work(port: &Port<()>, tally: &Tally<'_>) -> wharf::Result<()> {
    loop {
        let packet = match port.wait() {
            Wait::Packet(packet) => packet,
            Wait::Broken(error) => return Err(error),
            Wait::TimedOut | Wait::Closed => return Ok(()),
        };
        packet.bytes()?;
        let Op::RecvFrom { socket, buf, received: Some(received) } = packet.op else { continue };
        tally.notified();
        for datagram in received.datagrams(&buf) {
            if !tally.datagram(datagram) {
                return Ok(());
            }
        }
        match socket.recv(buf) {
            // Another one has seen the end.
            Err(refused) if refused.error.is_closed() => return Ok(()),
            other => other?,
        }
    }
}
