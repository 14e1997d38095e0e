//! Echo on monoio: a runtime per thread, and in each a listener on the same port (`SO_REUSEPORT`,
//! on by default in monoio), so that the kernel deals the connections out.

#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use monoio::io::{AsyncReadRent, AsyncReadRentExt, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{FusionDriver, RuntimeBuilder};
use rival_common::{BUFFER, Handler, Options, Service, listen, ready};

/// The completion queue has twice as many entries, and every connection may complete at once.
const ENTRIES: u32 = 4096;

fn main() -> io::Result<()> {
    let options = Options::parse("monoio");
    // Bound, but never accepted from: it finds a port that all can share. It is closed before
    // anybody is told of the port, lest the kernel deal connections to it.
    let reserved = listen(options.tcp, true)?;
    let addr = reserved.local_addr()?;
    let (listening, listeners) = channel();
    let workers: Vec<_> = (0..options.threads)
        .map(|_| {
            let listening = listening.clone();
            thread::spawn(move || work(addr, options.service, &listening))
        })
        .collect();
    drop(listening);
    if listeners.iter().take(options.threads).count() == options.threads {
        drop(reserved);
        ready(addr)?;
    }
    for worker in workers {
        worker.join().map_err(|_| io::Error::other("a worker panicked"))??;
    }
    Ok(())
}

fn work(addr: SocketAddr, service: Service, listening: &Sender<()>) -> io::Result<()> {
    let mut settings = io_uring::IoUring::builder();
    settings.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let mut runtime = RuntimeBuilder::<FusionDriver>::new()
        .with_entries(ENTRIES)
        .uring_builder(settings)
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(addr)?;
        // The receiver is gone only when another worker has failed already.
        listening.send(()).ok();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that breaks is over; there is nobody to tell.
            match service {
                Service::Echo => drop(monoio::spawn(async move { echo(stream).await.ok() })),
                Service::Messages { size, handler } => {
                    let serve = messages(stream, size, handler);
                    drop(monoio::spawn(async move { serve.await.ok() }));
                }
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let (count, filled) = stream.read(buffer).await;
        if count? == 0 {
            return Ok(());
        }
        let (written, mut emptied) = stream.write_all(filled).await;
        written?;
        emptied.clear();
        buffer = emptied;
    }
}

async fn messages(mut stream: TcpStream, size: usize, handler: Handler) -> io::Result<()> {
    let mut message = vec![0; size];
    loop {
        let (read, filled) = stream.read_exact(message).await;
        read?;
        handler.handle(&filled);
        let (written, emptied) = stream.write_all(filled).await;
        written?;
        message = emptied;
    }
}
