//! `wharf doctor`: what this machine offers, and what is in the way.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use serde::Serialize;
use wharf::{
    Buf, Builder, Driver, Op, Port, Wait,
    rio::{CompletionQueue, Event, Quota, Region},
};

use crate::{cli::Doctor, output, system};

/// How long a step of the trial may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks, and prints. False: no port can be made.
pub(crate) fn run(options: &Doctor) -> anyhow::Result<bool> {
    let report = Report::new();
    if options.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    Ok(report.driver.is_some())
}

/// What was found, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    /// The driver that a port uses here, if one can be made.
    driver: Option<&'static str>,
    /// Why this driver, or why none.
    reason: String,
    kernel: String,
    /// The concurrency value of a port that asks for none.
    concurrency: Option<usize>,
    registered_io: Carrier,
    /// Empty where the kernel cannot be asked; the reason then says why.
    features: Vec<Feature>,
    limits: Vec<Limit>,
}

/// What carries Registered I/O.
#[derive(Debug, Serialize)]
struct Carrier {
    /// None: it cannot be had here.
    driver: Option<&'static str>,
    /// Why this driver, or why none.
    reason: String,
}

/// What the system may have, as [`wharf::probe`] found it.
#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
    /// The release of the system that brought it.
    since: &'static str,
    /// What it gives, and what is done without it.
    gives: &'static str,
}

impl From<wharf::Feature> for Feature {
    fn from(found: wharf::Feature) -> Self {
        let wharf::Feature { name, present, since, gives, .. } = found;
        Self { name, present, since, gives }
    }
}

/// Something that the system may let a program have too little of.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    name: &'static str,
    value: String,
    /// Nothing needs to be done about it.
    good: bool,
    /// What it means, or what to do about it.
    advice: String,
}

impl Limit {
    pub(crate) fn good(name: &'static str, value: String, meaning: &str) -> Self {
        Self { name, value, good: true, advice: meaning.to_owned() }
    }

    pub(crate) fn bad(name: &'static str, value: String, advice: &str) -> Self {
        Self { name, value, good: false, advice: advice.to_owned() }
    }
}

impl Report {
    fn new() -> Self {
        let (driver, reason, concurrency) = match trial() {
            Ok(trial) => (Some(trial.driver), trial.reason, Some(trial.concurrency)),
            Err(reason) => (None, reason, None),
        };
        // Its error is the trial's, too, and stands in the reason.
        let features = wharf::probe().unwrap_or_default();
        Self {
            driver,
            reason,
            concurrency,
            registered_io: Carrier::of_registered_io(),
            features: features.into_iter().map(Feature::from).collect(),
            limits: system::limits(),
            kernel: system::release(),
        }
    }

    fn print(&self) -> anyhow::Result<()> {
        let line = |name: &str, text: &str| output::line(&format!("{name:<12} {text}"));
        line("driver", &format!("{}: {}", self.driver.unwrap_or("none"), self.reason))?;
        let Carrier { driver, reason } = &self.registered_io;
        line("wharf::rio", &format!("{}: {reason}", driver.unwrap_or("none")))?;
        line("kernel", &format!("{} {}", system::NAME, self.kernel))?;
        if let Some(concurrency) = self.concurrency {
            line("concurrency", &format!("{concurrency}, for a port that asks for no other"))?;
        }
        if !self.features.is_empty() {
            output::line("\nFeatures")?;
        }
        for Feature { name, present, since, gives } in &self.features {
            let mark = if *present { "yes" } else { "NO" };
            output::line(&format!("  {mark:<4} {name} ({} {since}): {gives}", system::NAME))?;
        }
        output::line("\nLimits")?;
        for Limit { name, value, good, advice } in &self.limits {
            let mark = if *good { "ok" } else { "LOOK" };
            output::line(&format!("  {mark:<4} {name} = {value}: {advice}"))?;
        }
        Ok(())
    }
}

/// A port that was made, and moved some data.
struct Trial {
    driver: &'static str,
    reason: String,
    concurrency: usize,
}

/// Makes a port as a program would and moves some data through it.
fn trial() -> Result<Trial, String> {
    let port: Port<()> = match Builder::new().build() {
        Ok(port) => port,
        Err(error) => {
            return Err(match Builder::new().concurrency(1).build::<(), ()>() {
                Ok(_) => format!("only a port with concurrency 1 can be made: {error}"),
                Err(error) => error.to_string() + system::refusal_hint(),
            });
        }
    };
    round_trip(&port).map_err(|error| format!("a port was made, but does not work: {error}"))?;
    let works = "a port was made, and moved data over a TCP connection";
    let (driver, reason) = chosen(port.driver(), port.fallback().as_ref(), works);
    Ok(Trial { driver, reason, concurrency: port.stats().concurrency })
}

/// Names a driver, and says why it was chosen and what has been seen to work on it.
fn chosen(driver: Driver, fallback: Option<&wharf::Error>, works: &str) -> (&'static str, String) {
    match (driver, fallback) {
        (Driver::Epoll, Some(refused)) => {
            ("epoll", format!("{}. On epoll {works}", refusal(refused)))
        }
        (Driver::Epoll, None) => ("epoll", format!("WHARF_DRIVER asks for it; {works}")),
        (Driver::Uring, _) => ("io_uring", works.to_owned()),
        (driver, Some(refused)) => (driver.name(), format!("{refused}. So {works}")),
        (driver, _) => (driver.name(), works.to_owned()),
    }
}

impl Carrier {
    /// Makes a completion queue as a program would, and has a datagram come through it.
    fn of_registered_io() -> Self {
        let works = "a completion queue was made, and told of a datagram";
        let mut queue = match CompletionQueue::event(1) {
            Ok(queue) => queue,
            Err(error) => return Self { driver: None, reason: refusal(&error) },
        };
        match datagram(&mut queue) {
            Ok(()) => {
                let (driver, reason) = chosen(queue.driver(), queue.fallback().as_ref(), works);
                Self { driver: Some(driver), reason }
            }
            Err(error) => {
                let reason = format!("a completion queue was made, but does not work: {error}");
                Self { driver: None, reason }
            }
        }
    }
}

/// Has a datagram come through a queue.
fn datagram(queue: &mut CompletionQueue<Event>) -> Result<(), Box<dyn std::error::Error>> {
    const GREETING: &[u8] = b"how do you do";
    let region = Region::new(1, GREETING.len())?;
    let socket = queue.udp((Ipv4Addr::LOCALHOST, 0), Quota { receives: 1, sends: 0 })?;
    queue.receive(socket, region.slice(0)?)?;
    queue.notify()?;
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    peer.send_to(GREETING, queue.local_addr(socket)?)?;
    if !queue.wait(Some(PATIENCE))? {
        return Err("it does not tell of a datagram".into());
    }
    let done = queue.dequeue()?.ok_or("it tells of a datagram that is not there")?;
    done.bytes()?;
    if done.slice[..] == *GREETING { Ok(()) } else { Err("it garbles datagrams".into()) }
}

/// Says why a driver cannot be had, with what the system tells beside the error.
fn refusal(error: &wharf::Error) -> String {
    error.to_string() + system::refusal_hint()
}

/// Sends a greeting through a connection of the port, to a thread that sends it back.
fn round_trip(port: &Port<()>) -> Result<(), String> {
    const GREETING: &[u8] = b"how do you do";
    let text = |error: std::io::Error| error.to_string();
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
    let address = peer.local_addr().map_err(text)?;
    let stream = port.connect(address, ()).map_err(|error| error.to_string())?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut greeting = [0; GREETING.len()];
            let (mut stream, _) = peer.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_exact(&mut greeting)?;
            stream.write_all(&greeting)
        });
        let exchange = || {
            stream.send(GREETING)?;
            stream.recv_exact(Buf::with_capacity(GREETING.len()), GREETING.len())?;
            loop {
                match port.wait_for(PATIENCE) {
                    Wait::Packet(packet) => {
                        packet.bytes()?;
                        if let Op::Recv { buf, .. } = packet.op {
                            return Ok(buf[..] == *GREETING);
                        }
                    }
                    Wait::Broken(error) => return Err(error),
                    Wait::TimedOut | Wait::Closed => return Ok(false),
                }
            }
        };
        let outcome = exchange();
        // Should ours never have stood, the thread still waits for a connection.
        drop(TcpStream::connect(address));
        match outcome {
            Ok(true) => Ok(()),
            Ok(false) => Err("what came back is not what was sent".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}
