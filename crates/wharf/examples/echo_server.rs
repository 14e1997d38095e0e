//! An echo server in the classic shape: worker threads in a loop over packets, data per handle
//! (the connection) and data per operation (what a packet is about).
//!
//!     cargo run --release -p wharf --example echo_server -- 127.0.0.1:7000
//!
//! `echo_client` talks to it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use wharf::{Buf, Op, Packet, Port, Result};

/// Per-handle data: every packet of a connection leads to it.
#[derive(Debug, Default)]
struct Connection {
    peer: Option<SocketAddr>,
    echoed: AtomicU64,
}

/// Per-operation data: comes back with the operation's packet.
#[derive(Debug)]
struct Round(u64);

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".into());

    // Zero: as many workers run at once as there are processors.
    let port = Port::<Connection, Round>::new(0)?;
    let listener = port.listen(&*address, Connection::default())?;
    listener.accept()?; // and goes on accepting
    println!("listening tcp {}", listener.local_addr()?);

    // Twice as many threads as may run at once: when one blocks, another takes its place.
    let threads = 2 * port.stats().concurrency;
    port.workers(threads).run(handle)
}

fn handle(packet: Packet<Connection, Round>) -> Result<()> {
    // A failed operation ends here. Its connection is closed because the packet, which holds the
    // last reference to it, is dropped.
    let bytes = packet.bytes()?;
    match packet.op {
        Op::Accept { incoming: Some(new), .. } => {
            let peer = new.peer_addr().ok();
            let stream = new.associate(Connection { peer, ..Connection::default() })?;
            stream.start().context(Round(1)).recv(Buf::pooled())?;
        }
        Op::Recv { stream, .. } if bytes == 0 => {
            let Connection { peer, echoed } = stream.key();
            println!("{peer:?} is done after {} bytes", echoed.load(Ordering::Relaxed));
        }
        Op::Recv { stream, buf } => {
            let round = packet.context.unwrap_or(Round(0));
            stream.start().context(round).send(buf)?;
        }
        Op::Send { stream, .. } => {
            stream.key().echoed.fetch_add(bytes as u64, Ordering::Relaxed);
            // The buffer goes back to the pool here: a connection that says nothing holds none.
            let Round(number) = packet.context.unwrap_or(Round(0));
            stream.start().context(Round(number + 1)).recv(Buf::pooled())?;
        }
        _ => {}
    }
    Ok(())
}
