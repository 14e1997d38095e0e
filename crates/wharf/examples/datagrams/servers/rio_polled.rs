//! Registered I/O, polled: one thread looks whether something has come, again and again.

use std::{net::UdpSocket, thread};

use wharf::rio::{CompletionQueue, Options, Quota, Region};

use super::count::Counter;

pub(super) fn serve(socket: UdpSocket, counter: &Counter) -> wharf::Result<()> {
    let options = counter.options();
    let receives = options.outstanding();
    let region = Region::new(receives, options.room())?;
    let mut queue = CompletionQueue::polled(receives)?;
    let traits = if options.coalesce { Options::new().coalesce() } else { Options::new() };
    let socket = queue.udp_socket(socket, Quota { receives, sends: 0 }, traits)?;
    for slice in region.slices() {
        queue.receive(socket, slice)?;
    }
    let tally = counter.thread();
    loop {
        let mut found = false;
        while let Some(done) = queue.dequeue()? {
            found = true;
            done.bytes()?;
            for datagram in done.datagrams() {
                if !tally.datagram(datagram) {
                    return Ok(());
                }
            }
            queue.receive(socket, done.slice)?;
        }
        if found {
            tally.notified();
        } else {
            // Whoever sends may want this CPU.
            thread::yield_now();
        }
    }
}
