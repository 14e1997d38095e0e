//! The traditional polled server: one thread, and a receive that blocks until a datagram is there.

use std::net::UdpSocket;

use super::count::Counter;

pub(super) fn serve(socket: &UdpSocket, counter: &Counter) -> wharf::Result<()> {
    let mut room = vec![0; counter.options().room()];
    let tally = counter.thread();
    loop {
        let (length, _) = socket.recv_from(&mut room)?;
        tally.notified();
        if !tally.datagram(&room[..length]) {
            return Ok(());
        }
    }
}
