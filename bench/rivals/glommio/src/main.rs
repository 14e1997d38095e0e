//! Echo on glommio: an executor per thread, each pinned to a CPU and with a listener on the same
//! port (`SO_REUSEPORT`, always on in glommio), so that the kernel deals the connections out.

#![forbid(unsafe_code)]

use std::io;
use std::sync::mpsc::channel;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{CpuSet, LocalExecutorPoolBuilder, PoolPlacement, spawn_local};
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use rival_common::{BUFFER, Handler, Options, Service, listen, ready};

fn main() -> io::Result<()> {
    let options = Options::parse("glommio");
    // Bound, but never accepted from: it finds a port that all can share. It is closed before
    // anybody is told of the port, lest the kernel deal connections to it.
    let reserved = listen(options.tcp, true)?;
    let addr = reserved.local_addr()?;
    let (listening, listeners) = channel();
    let executors = LocalExecutorPoolBuilder::new(placement(options.threads)?)
        .on_all_shards(move || {
            let listening = listening.clone();
            async move {
                let listener = TcpListener::bind(addr)?;
                // The receiver is gone only when another executor has failed already.
                listening.send(()).ok();
                drop(listening);
                accept(listener, options.service).await
            }
        })
        .map_err(io::Error::from)?;
    if listeners.iter().take(options.threads).count() == options.threads {
        drop(reserved);
        ready(addr)?;
    }
    for outcome in executors.join_all() {
        outcome.map_err(io::Error::from)??;
    }
    Ok(())
}

/// On the CPUs that we may use: glommio by itself would take any that there are.
fn placement(threads: usize) -> io::Result<PoolPlacement> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus = CpuSet::online().map_err(io::Error::from)?;
    let cpus = cpus.filter(|it| allowed.is_set(it.cpu).unwrap_or(false));
    Ok(PoolPlacement::MaxSpread(threads, Some(cpus)))
}

async fn accept(listener: TcpListener, service: Service) -> io::Result<()> {
    loop {
        let stream = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A connection that breaks is over; there is nobody to tell.
        match service {
            Service::Echo => spawn_local(async move { echo(stream).await.ok() }).detach(),
            Service::Messages { size, handler } => {
                spawn_local(async move { messages(stream, size, handler).await.ok() }).detach()
            }
        };
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
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
