//! A UDP echo server: datagrams go back to who sent them, from the address they were sent to.
//!
//!     cargo run --release -p wharf --example udp_echo -- 127.0.0.1:7000
//!
//! It serves until Ctrl-C.

use wharf::{Envelope, ErrorKind, Op, Port};

fn main() -> wharf::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".into());

    let port = Port::<()>::new(0)?;
    let socket = port.bind_udp(&*address, ())?;
    // So that a server with several addresses answers from the one that was asked.
    socket.set_packet_info(true)?;
    // What the network says about answers that nobody wanted, where the system tells it.
    match socket.recv_errors() {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        started => started?,
    }
    // Goes on receiving: the next datagram is taken off the socket while this one is handled.
    socket.recv_each()?;
    println!("listening udp {}", socket.local_addr()?);

    let threads = 2 * port.stats().concurrency;
    port.workers(threads).run(|packet| {
        match packet.op {
            Op::RecvFrom { socket, buf, received: Some(received) } => {
                if received.is_truncated(buf.len()) {
                    eprintln!("{} sent {} bytes at once", received.from, received.length);
                }
                // Nobody waits for the packet of this send.
                socket.start().silent().send_to(buf, Envelope::reply(&received))?;
            }
            Op::Icmp { error: Some(error), .. } => eprintln!("{}: {}", error.to, error.error),
            _ => packet.result.map(drop)?,
        }
        Ok(())
    })
}
