//! An echo server in the classic shape: worker threads in a loop over packets, data per handle
//! (the connection) and data per operation (which message it is about).
//!
//!     cargo run --release -p wharf --example echo_server -- 127.0.0.1:7000
//!
//! It serves until Ctrl-C. `echo_client` talks to it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use wharf::{Buf, Op, Packet, Port, Result};

/// Per-handle data, the completion key: every packet of a connection leads to it.
#[derive(Debug, Default)]
struct Connection {
    peer: Option<SocketAddr>,
    echoed: AtomicU64,
}

/// Per-operation data: comes back with the operation's packet.
#[derive(Debug)]
struct Message {
    number: u64,
}

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".into());

    // Zero: as many workers run at once as there are processors.
    let port = Port::<Connection, Message>::new(0)?;
    let listener = port.listen(&*address, Connection::default())?;
    listener.accept()?; // and goes on accepting
    println!("listening tcp {}", listener.local_addr()?);

    // Twice as many threads as may run at once: when one blocks, another takes its place.
    let threads = 2 * port.stats().concurrency;
    port.workers(threads).run(handle)
}

fn handle(packet: Packet<Connection, Message>) -> Result<()> {
    // An operation that failed ends here. Its connection is closed because the packet, which
    // holds the last reference to it, is dropped.
    let bytes = packet.bytes()?;
    let number = packet.context.map_or(1, |message| message.number);
    match packet.op {
        Op::Accept { incoming: Some(new), .. } => {
            let peer = new.peer_addr().ok();
            let stream = new.associate(Connection { peer, ..Connection::default() })?;
            stream.start().context(Message { number: 1 }).recv(Buf::pooled())?;
        }
        // Nothing was received: the peer has ended the connection, and so do we.
        Op::Recv { stream, .. } if bytes == 0 => {
            let Connection { peer, echoed } = stream.key();
            let peer = peer.map_or_else(|| "somebody".into(), |peer| peer.to_string());
            let (messages, bytes) = (number - 1, echoed.load(Ordering::Relaxed));
            println!("{peer} is done: {bytes} bytes echoed, in {messages} messages");
        }
        // The buffer that was received into is the one that is sent.
        Op::Recv { stream, buf } => {
            stream.start().context(Message { number }).send(buf)?;
        }
        // Everything is sent, and the buffer goes back to the pool here: the receive that follows
        // takes one when data is there, so a connection that says nothing holds none.
        Op::Send { stream, .. } => {
            stream.key().echoed.fetch_add(bytes as u64, Ordering::Relaxed);
            stream.start().context(Message { number: number + 1 }).recv(Buf::pooled())?;
        }
        _ => {}
    }
    Ok(())
}
