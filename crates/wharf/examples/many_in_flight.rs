//! Several receives and several sends in flight on one connection, and their order.
//!
//!     cargo run --release -p wharf --example many_in_flight
//!
//! Operations of one direction take effect in the order in which they were started, so the first
//! receive gets the first message. Their packets leave the port in that order too; but where two
//! workers take one each, the second may be quicker. A connection in serial mode has one packet
//! out at a time: the next comes when the handler is done with the last.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use wharf::{Buf, Op, Port, Result};

/// Which end of the connection a handle is: our per-handle data.
#[derive(Debug, PartialEq)]
enum End {
    Listener,
    Sender,
    Receiver,
}

const MESSAGES: usize = 12;
const LENGTH: usize = 16;

fn main() -> Result<()> {
    // The per-operation data is a number: this is the receive, or the send, number so and so.
    let port = Port::<End, usize>::new(0)?;
    let listener = port.listen("127.0.0.1:0", End::Listener)?;
    listener.accept_one()?;
    port.connect(listener.local_addr()?, End::Sender)?;

    let sent = AtomicUsize::new(0);
    let order = Mutex::new(Vec::new());
    port.workers(4).run(|packet| {
        packet.result?;
        let number = packet.context.unwrap_or(0);
        match packet.op {
            // The receiving end: all receives are posted ahead.
            Op::Accept { incoming: Some(new), .. } => {
                let stream = new.associate(End::Receiver)?;
                stream.set_serial(true);
                for number in 1..=MESSAGES {
                    let room = Buf::with_capacity(LENGTH);
                    stream.start().context(number).recv_exact(room, LENGTH)?;
                }
            }
            // The sending end: all sends are started without waiting for the one before.
            Op::Connect { stream } => {
                for number in 1..=MESSAGES {
                    let message = format!("{:<LENGTH$}", format!("message {number}"));
                    stream.start().context(number).send(message.into_bytes())?;
                }
                println!("{MESSAGES} sends started");
            }
            Op::Send { .. } => {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Op::Recv { stream, buf } => {
                assert_eq!(*stream.key(), End::Receiver);
                let text = String::from_utf8_lossy(&buf);
                let worker = thread::current().name().unwrap_or("a worker").to_string();
                println!("receive {number:2} got {:<10} ({worker})", text.trim_end());
                let mut order = order.lock().expect("nobody panics");
                order.push(number);
                if order.len() == MESSAGES {
                    port.close();
                }
                // `packet.turn` is dropped at the end of this handler, and lets the next one out.
            }
            _ => {}
        }
        Ok(())
    })?;

    let order = order.into_inner().expect("nobody panics");
    println!("handled in the order of starting: {}", order.is_sorted());
    Ok(())
}
