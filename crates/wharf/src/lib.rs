//! I/O completion ports: one queue for any number of sockets, and a few threads that take packets
//! off it, of which no more run at once than there are processors.
//!
//! A program starts operations, each of which owns its buffer. Workers take *packets* from the
//! port: which operation is over, on which handle, with which result and with its buffer. The port
//! releases waiting workers newest first, keeps as many running as its concurrency value says, and
//! lets another one go when one blocks.
//!
//! ```
//! use wharf::{Buf, Op, Port};
//!
//! let port = Port::<u32>::new(0)?; // 0: as many running workers as processors; u32: our key
//! let listener = port.listen("127.0.0.1:0", 0)?;
//! let address = listener.local_addr()?;
//! listener.accept()?; // goes on accepting
//! println!("listening on {address}");
//!
//! # let client = std::thread::spawn({ let port = port.clone(); move || {
//! #     use std::io::{Read, Write};
//! #     let mut client = std::net::TcpStream::connect(address).unwrap();
//! #     client.write_all(b"hello").unwrap();
//! #     let mut echo = [0; 5];
//! #     client.read_exact(&mut echo).unwrap();
//! #     assert_eq!(&echo, b"hello");
//! #     port.close();
//! # }});
//! port.workers(4).run(|packet| {
//!     let bytes = packet.bytes()?;
//!     match packet.op {
//!         Op::Accept { incoming: Some(new), .. } => new.associate(1)?.recv(Buf::pooled())?,
//!         Op::Recv { stream, buf } if bytes > 0 => stream.exchange(buf)?, // sends, then receives
//!         _ => {} // dropping the stream closes it
//!     }
//!     Ok(())
//! })?;
//! # client.join().unwrap();
//! # Ok::<(), wharf::Error>(())
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc(test(attr(deny(warnings))))]

mod block;
mod branches;
mod buf;
mod datagram;
mod descriptor;
mod driver;
mod error;
mod file;
mod pipe;
mod port;
mod probe;
pub mod raw;
pub mod rio;
mod start;
mod stats;
mod sync;
mod sys;
mod tcp;
mod transmit;
mod udp;
mod workers;

#[cfg(windows)]
pub use crate::pipe::PipeServer;
/// The tests of registered I/O once more: by the functions of Windows, or where it has none of
/// them, by a stand-in, to test what is made of them.
#[cfg(all(test, windows))]
#[path = "../tests/rio/mod.rs"]
mod by_the_systems_own;
#[cfg(all(test, windows))]
extern crate self as wharf;
#[cfg(all(test, windows))]
fn builder(capacity: usize) -> rio::Builder {
    rio::Builder::new(capacity).driver(Driver::Rio)
}

pub use crate::{
    block::OpId,
    buf::{Buf, Pooled},
    datagram::{Address, Ancillary, Datagram},
    driver::Driver,
    error::{Error, ErrorKind, Refused, Result},
    file::{File, OpenOptions},
    port::{Builder, Op, Packet, Port, Turn},
    probe::{Feature, probe},
    raw::Wait,
    start::Start,
    stats::Stats,
    tcp::{Incoming, Listener, Now, Pending, Stream},
    transmit::Transmit,
    udp::{Datagrams, Ecn, Envelope, IcmpError, Interface, Received, UdpSocket},
    workers::Workers,
};
