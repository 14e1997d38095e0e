//! Dealing accepted connections out to the bare loops, one after the other.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Connections on their way from the thread that accepts to a thread that serves.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Mutex<Vec<TcpStream>>>);

impl Inbox {
    /// Adds a connection. The caller wakes the other side.
    pub fn push(&self, stream: TcpStream) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }

    /// Takes what has come since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<TcpStream> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

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
