//! tokio's multi-thread runtime: an echo with one task per connection, as in its own `echo`
//! example, and a task that counts datagrams.

#![forbid(unsafe_code)]

use std::io;

use rival_common::{BUFFER, Datagrams, Handler, Options, Service, Task, listen, ready};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

fn main() -> io::Result<()> {
    let task = Task::parse("tokio");
    let threads = if let Task::Streams(options) = &task { options.threads } else { 1 };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_io()
        .build()?
        // Accepting happens on a worker too: the thread in `block_on` would poll the listener
        // besides the workers.
        .block_on(async move {
            match task {
                Task::Streams(options) => tokio::spawn(accept(options)).await?,
                Task::Datagrams(datagrams) => tokio::spawn(count(*datagrams)).await?,
            }
        })
}

/// Counts datagrams, as in its `echo-udp` example.
async fn count(datagrams: Datagrams) -> io::Result<()> {
    let socket = datagrams.bind()?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let mut room = vec![0; datagrams.counter.options().room()];
    let tally = datagrams.counter.thread();
    loop {
        let (length, _) = socket.recv_from(&mut room).await?;
        tally.notified();
        if !tally.datagram(&room[..length]) {
            return datagrams.report();
        }
    }
}

async fn accept(options: Options) -> io::Result<()> {
    let listener = listen(options.tcp, false)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    ready(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A connection that breaks is over; there is nobody to tell.
        match options.service {
            Service::Echo => drop(tokio::spawn(async move { echo(stream).await.ok() })),
            Service::Messages { size, handler } => {
                drop(tokio::spawn(async move { messages(stream, size, handler).await.ok() }));
            }
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        stream.write_all(&buffer).await?;
        // Otherwise the next read would make it grow.
        buffer.clear();
    }
}

async fn messages(mut stream: TcpStream, size: usize, handler: Handler) -> io::Result<()> {
    let mut message = vec![0; size];
    loop {
        stream.read_exact(&mut message).await?;
        handler.handle(&message);
        stream.write_all(&message).await?;
    }
}
