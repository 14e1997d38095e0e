//! Talks to the echo server: a few connections, all on one port and one thread, each of which
//! sends messages and compares what comes back.
//!
//!     cargo run --release -p wharf --example echo_client -- 127.0.0.1:7000
//!
//! More arguments: how many connections (8), and how many messages on each (100).

use std::{net::ToSocketAddrs, process::ExitCode, time::Instant};

use wharf::{Buf, Op, Port, Result, Stream, Wait};

/// Per-handle data: which connection it is. Per-operation data: which message, from 1 on.
type Connection = Stream<usize, usize>;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7000".into());
    let mut number = |usual| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (connections, messages): (usize, usize) = (number(8), number(100));
    let Some(server) = address.to_socket_addrs()?.next() else {
        eprintln!("{address} is no address");
        return Ok(ExitCode::from(2));
    };

    let port = Port::<usize, usize>::new(1)?;
    let began = Instant::now();
    for connection in 0..connections {
        // Only begins to connect. The packet says how it went, and brings the stream.
        port.connect(server, connection)?;
    }

    let (mut open, mut right, mut wrong) = (connections, 0, 0);
    while open > 0 {
        let Wait::Packet(packet) = port.wait() else { break };
        let result = packet.result;
        // A message's send is counted when its echo is here.
        let outcome = match packet.op {
            Op::Connect { stream } => result.and_then(|_| say(&stream, 1)),
            Op::Send { .. } => result.map(drop),
            Op::Recv { stream, buf } => {
                let said = packet.context.unwrap_or(0);
                let same = *buf == *message(*stream.key(), said).as_bytes();
                *if same { &mut right } else { &mut wrong } += 1;
                if same && said < messages {
                    say(&stream, said + 1)
                } else {
                    // Dropping the stream closes it: no operation of it is in flight any more.
                    open -= 1;
                    result.map(drop)
                }
            }
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            eprintln!("{server}: {error}; is echo_server running?");
            return Ok(ExitCode::FAILURE);
        }
    }

    let took = began.elapsed();
    println!("{connections} connections: {right} echoes right, {wrong} wrong, in {took:.1?}");
    let all = right == connections * messages;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn message(connection: usize, number: usize) -> String {
    format!("This is message {number} of connection {connection}.")
}

/// Starts the send of a message and, without waiting for that, the receive of its echo.
fn say(stream: &Connection, number: usize) -> Result<()> {
    let message = message(*stream.key(), number);
    let length = message.len();
    stream.send(message.into_bytes())?;
    stream.start().context(number).recv_exact(Buf::with_capacity(length), length)?;
    Ok(())
}
