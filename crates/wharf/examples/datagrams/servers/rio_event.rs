//! Registered I/O, driven by an event: one thread waits until it is signalled, and takes all there
//! is.

use std::net::UdpSocket;

use wharf::rio::{CompletionQueue, Options, Quota, Region};

use super::count::Counter;

pub(super) fn serve(socket: UdpSocket, counter: &Counter) -> wharf::Result<()> {
    let options = counter.options();
    let receives = options.outstanding();
    let region = Region::new(receives, options.room())?;
    let mut queue = CompletionQueue::event(receives)?;
    let traits = if options.coalesce { Options::new().coalesce() } else { Options::new() };
    let socket = queue.udp_socket(socket, Quota { receives, sends: 0 }, traits)?;
    for slice in region.slices() {
        queue.receive(socket, slice)?;
    }
    let tally = counter.thread();
    loop {
        queue.notify()?;
        queue.wait(None)?;
        tally.notified();
        while let Some(done) = queue.dequeue()? {
            done.bytes()?;
            for datagram in done.datagrams() {
                if !tally.datagram(datagram) {
                    return Ok(());
                }
            }
            queue.receive(socket, done.slice)?;
        }
    }
}
