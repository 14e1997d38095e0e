//! Registered I/O through a port: a packet says that there is something, and one thread takes all
//! there is.

use std::net::UdpSocket;

use wharf::{
    Builder, Port, Wait,
    rio::{CompletionQueue, Options, Quota, Region},
};

use super::count::Counter;

pub(super) fn serve(socket: UdpSocket, counter: &Counter) -> wharf::Result<()> {
    let options = counter.options();
    let receives = options.outstanding();
    let port: Port<()> = Builder::new().concurrency(1).build()?;
    let region = Region::new(receives, options.room())?;
    let mut queue = CompletionQueue::through(&port, receives)?;
    let traits = if options.coalesce { Options::new().coalesce() } else { Options::new() };
    let socket = queue.udp_socket(socket, Quota { receives, sends: 0 }, traits)?;
    for slice in region.slices() {
        queue.receive(socket, slice)?;
    }
    let tally = counter.thread();
    loop {
        queue.notify(())?;
        match port.wait() {
            Wait::Packet(packet) => packet.result?,
            Wait::Broken(error) => return Err(error),
            Wait::TimedOut | Wait::Closed => return Ok(()),
        };
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
