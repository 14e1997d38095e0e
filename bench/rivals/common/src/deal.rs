//! Dealing accepted connections out, one after the other.

use std::io;
use std::net::{TcpListener, TcpStream};

/// Accepts for ever, and gives each of the `workers` in turn a connection.
pub fn deal<W>(
    listener: &TcpListener,
    workers: &[W],
    give: impl Fn(&W, TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    for worker in workers.iter().cycle() {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        give(worker, stream)?;
    }
    Ok(())
}
