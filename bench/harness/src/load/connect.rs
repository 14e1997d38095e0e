//! Connections from the generator to a server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::Failure;

/// How many connections have the same source address. Well below the number of ports that the
/// system gives out by itself.
const CONNECTIONS_PER_SOURCE: usize = 8000;

/// Connects from one of several source addresses, as a single one does not have enough ports.
///
/// Closing is abrupt (it resets the connection): ten thousand ports would otherwise be out of use
/// for a minute after every window.
pub fn connect(target: SocketAddr, number: usize) -> Result<TcpStream, Failure> {
    let failed = |error: io::Error| Failure(format!("connection {number} to {target}: {error}"));
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed)?;
    if target.ip() == Ipv4Addr::LOCALHOST {
        let source = u8::try_from(1 + number / CONNECTIONS_PER_SOURCE)?;
        let source = SocketAddr::from(([127, 0, 0, source], 0));
        socket.bind(&source.into()).map_err(failed)?;
    }
    socket.connect(&target.into()).map_err(failed)?;
    socket.set_tcp_nodelay(true).map_err(failed)?;
    socket.set_linger(Some(Duration::ZERO)).map_err(failed)?;
    Ok(socket.into())
}
