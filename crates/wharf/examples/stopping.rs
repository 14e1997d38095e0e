//! Two ways to stop: after everything in flight is done, and at once.
//!
//!     cargo run --release -p wharf --example stopping
//!
//! `Stats::in_flight` counts the operations whose packet nobody has taken yet. A program that
//! starts nothing more and takes packets until it is zero has lost nothing. A program that cannot
//! wait closes the port: then operations are cancelled, and nobody hears of them.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use wharf::{Op, Port, Result, Stream, Wait};

const SENDS: usize = 8;
const BYTES: usize = 2 << 20;

fn main() -> Result<()> {
    println!("Stopping after everything in flight is done:");
    gently()?;
    println!("Stopping at once:");
    at_once()
}

fn gently() -> Result<()> {
    let (port, stream, mut peer) = connection()?;
    let data = start_sends(&stream)?;
    // The peer reads a little at a time, so that the sends are in flight for a while.
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; BYTES / 4];
        let mut received = 0;
        loop {
            match peer.read(&mut buffer) {
                Ok(0) | Err(_) => return received,
                Ok(bytes) => received += bytes,
            }
            thread::sleep(Duration::from_millis(1));
        }
    });

    // From here on nothing is started; what has been is waited for.
    println!("  {} operations in flight", port.stats().in_flight);
    while port.stats().in_flight > 0 {
        let Wait::Packet(packet) = port.wait() else { break };
        let (bytes, left) = (packet.bytes()?, port.stats().in_flight);
        println!("  a send of {bytes} bytes is done, {left} operations in flight");
    }
    drop((stream, port));
    let received = reader.join().expect("it does not panic");
    println!("  the peer has all: {}", received == SENDS * data.len());
    Ok(())
}

fn at_once() -> Result<()> {
    let (port, stream, _peer) = connection()?;
    // The peer never reads: this could take for ever.
    let data = start_sends(&stream)?;
    println!("  {} operations in flight", port.stats().in_flight);

    let began = Instant::now();
    port.close();
    println!("  waits say that the port is closed: {}", matches!(port.wait(), Wait::Closed));
    println!("  nothing more can be started: {}", stream.send(data.clone()).is_err());
    // The last clone of the port waits until the kernel has let go of every buffer.
    drop((stream, port));
    println!("  the buffers are ours again: {}", data.is_unique());
    println!("  it took less than a second: {}", began.elapsed() < Duration::from_secs(1));
    Ok(())
}

/// A port with a connection, and the connection's other end, outside of the port.
fn connection() -> Result<(Port<()>, Stream<()>, TcpStream)> {
    let port = Port::new(1)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    port.connect(listener.local_addr()?, ())?;
    let (peer, _) = listener.accept()?;
    let Wait::Packet(packet) = port.wait() else { unreachable!("the port is open") };
    let Op::Connect { stream } = packet.op else { unreachable!("nothing else was started") };
    packet.result?;
    Ok((port, stream, peer))
}

/// Starts several sends, which share one buffer.
fn start_sends(stream: &Stream<()>) -> Result<Bytes> {
    let data = Bytes::from(vec![7; BYTES]);
    for _ in 0..SENDS {
        stream.send(data.clone())?;
    }
    Ok(data)
}
