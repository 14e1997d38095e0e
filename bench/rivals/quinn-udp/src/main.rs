//! Counts datagrams with quinn-udp on tokio, as quinn does: up to 32 at once, each of which may be
//! several that the system has put together (which quinn-udp always asks for).

#![forbid(unsafe_code)]

use std::io::{self, IoSliceMut};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use rival_common::{Datagrams, count::ROOM_COALESCED};
use tokio::{io::Interest, net::UdpSocket};

fn main() -> io::Result<()> {
    let datagrams = Datagrams::parse("quinn-udp");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()?
        .block_on(async move { tokio::spawn(count(datagrams)).await? })
}

async fn count(datagrams: Datagrams) -> io::Result<()> {
    let socket = datagrams.bind()?;
    let state = UdpSocketState::new((&socket).into())?;
    let socket = UdpSocket::from_std(socket)?;
    let mut rooms = vec![0; BATCH_SIZE * ROOM_COALESCED];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let tally = datagrams.counter.thread();
    loop {
        let mut slices = rooms.chunks_exact_mut(ROOM_COALESCED).map(IoSliceMut::new);
        let mut slices: [_; BATCH_SIZE] =
            std::array::from_fn(|_| slices.next().expect("room for each"));
        let received = socket
            .async_io(Interest::READABLE, || state.recv((&socket).into(), &mut slices, &mut metas))
            .await?;
        tally.notified();
        for (room, meta) in slices.iter().zip(&metas[..received]) {
            // The stride of an empty one is 0.
            for datagram in room[..meta.len].chunks(meta.stride.max(1)) {
                if !tally.datagram(datagram) {
                    return datagrams.report();
                }
            }
        }
    }
}
