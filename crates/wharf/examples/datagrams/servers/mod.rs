//! The command line of the servers.

mod blocking;
#[expect(unreachable_pub, reason = "the benchmarks have this file in a library")]
mod count;
mod port;
mod rio_event;
mod rio_polled;
mod rio_port;
mod rio_port_many;

use std::{
    net::{SocketAddr, UdpSocket},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use socket2::SockRef;

pub(crate) fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Count datagrams, until a small one comes
#[derive(Parser)]
struct Arguments {
    /// How it learns of datagrams
    design: Design,

    /// Where to receive
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// How many threads those designs have that have several
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,

    /// Let the system give several datagrams of one sender at once (GRO)
    #[arg(long)]
    coalesce: bool,

    /// Microseconds of CPU time that each datagram is worked on
    #[arg(long, default_value_t = 0)]
    work: u64,

    /// The first 8 bytes of each datagram are its number, least significant one first, below this:
    /// note those that come twice
    #[arg(long, default_value_t = 0)]
    numbers: usize,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Design {
    RioPolled,
    RioEvent,
    RioPort,
    RioPortMany,
    Blocking,
    Port,
    PortMany,
}

fn serve(arguments: &Arguments) -> wharf::Result<()> {
    let many = matches!(arguments.design, Design::RioPortMany | Design::PortMany);
    let counter = count::Counter::new(count::Options {
        threads: if many { arguments.threads.into() } else { 1 },
        coalesce: arguments.coalesce,
        work: Duration::from_micros(arguments.work),
        numbers: arguments.numbers,
    });
    let socket = bind(arguments.listen)?;
    println!("listening udp {}", socket.local_addr()?);
    match arguments.design {
        Design::RioPolled => rio_polled::serve(socket, &counter)?,
        Design::RioEvent => rio_event::serve(socket, &counter)?,
        Design::RioPort => rio_port::serve(socket, &counter)?,
        Design::RioPortMany => rio_port_many::serve(socket, &counter)?,
        Design::Blocking => blocking::serve(&socket, &counter)?,
        Design::Port | Design::PortMany => port::serve(socket, &counter)?,
    }
    let report = counter.report();
    if arguments.json {
        println!("{}", report.json())
    } else {
        println!("{report}")
    }
    Ok(())
}

/// On Windows, Registered I/O wants sockets of its own.
fn bind(address: SocketAddr) -> wharf::Result<UdpSocket> {
    if cfg!(not(windows)) {
        return Ok(count::bind(address)?);
    }
    let socket = wharf::rio::bind_udp(address)?;
    SockRef::from(&socket).set_recv_buffer_size(count::RECEIVE_BUFFER)?;
    Ok(socket)
}
