//! Servers that count datagrams, one design beside the other:
//!
//!     cargo run --release -p wharf --example datagrams -- rio-polled --listen 127.0.0.1:7001
//!
//! | Design, a file each in `servers` | How it learns of datagrams |
//! |---|---|
//! | `rio-polled` | Registered I/O: looks, again and again |
//! | `rio-event` | Registered I/O: waits for an event |
//! | `rio-port` | Registered I/O: a packet of a port, for one thread |
//! | `rio-port-many` | the same, for several threads |
//! | `blocking` | a receive that blocks |
//! | `port` | a completion port with a packet for each receive, one thread |
//! | `port-many` | the same, several threads |
//!
//! All of them count in the same way (`servers/count.rs`, which also has what they are tuned with):
//! the clock starts at the first datagram, and stops at a small one, of fewer than 16 bytes. Then
//! the server says how many came, how fast, for how much CPU time, and how many were there whenever
//! it learned that there are some. To send some, and a small one after them:
//!
//!     wharf load udp 127.0.0.1:7001 --size 1024 --one-way --gso --seconds 5
//!     echo end | nc -u -w 1 127.0.0.1 7001
//!
//! `wharf bench datagrams` compares them, also with the servers of others.

mod servers;

fn main() -> std::process::ExitCode {
    servers::main()
}
