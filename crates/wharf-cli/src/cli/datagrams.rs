//! What the command line says about datagrams, and about ports side by side.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::ensure;
use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;

use super::{address, bytes, number, seconds_to_run, size};

/// The largest buffer of the system's, in bytes.
const BUFFER_MAX: usize = 256 << 20;

/// Where something is served: at one place at least.
pub(super) fn places() -> ArgGroup {
    let all = ["tcp", "udp", "broadcast", "multicast"];
    ArgGroup::new("listen").args(all).multiple(true).required(true)
}

#[derive(Args, Debug)]
pub(crate) struct Datagrams {
    /// Where to receive datagrams; this and the next two may be given more than once
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) udp: Vec<String>,

    /// Where to receive broadcasts: all addresses (0.0.0.0), or a broadcast address
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) broadcast: Vec<String>,

    /// A group to join, on an interface if one is named: 239.1.2.3%eth0:7003, [ff02::1%eth0]:7003
    #[arg(long, value_name = "GROUP:PORT", value_parser = group)]
    pub(crate) multicast: Vec<Group>,

    /// Workers, concurrency value and processors of a kind's port, as in
    /// udp:workers=2,concurrency=1,cpus=0+2-3. Each of TCP, UDP, broadcast and multicast has a
    /// completion port of its own, so that a flood of one does not slow the others
    #[arg(long, value_name = "KIND:...", value_parser = tuning, conflicts_with = "one_port")]
    pub(crate) tune: Vec<Tuning>,

    /// All of them on one port
    #[arg(long)]
    pub(crate) one_port: bool,

    /// Let the system give several datagrams of one sender at once (GRO)
    #[arg(long)]
    pub(crate) coalesce: bool,

    /// Bytes of datagrams, overhead included, that may wait in the system for each socket, at most
    /// 256M [default: the system's]
    #[arg(long, value_name = "BYTES", value_parser = buffer)]
    pub(crate) receive_buffer: Option<usize>,
}

impl Datagrams {
    /// Which kinds share a port.
    pub(crate) fn groups(&self, tcp: bool) -> anyhow::Result<Vec<Vec<Kind>>> {
        let kinds: Vec<_> = [
            (Kind::Tcp, tcp),
            (Kind::Udp, !self.udp.is_empty()),
            (Kind::Broadcast, !self.broadcast.is_empty()),
            (Kind::Multicast, !self.multicast.is_empty()),
        ]
        .into_iter()
        .filter_map(|(kind, served)| served.then_some(kind))
        .collect();
        for Tuning { kind, .. } in &self.tune {
            let name = kind.name();
            ensure!(kinds.contains(kind), "--tune {name}: nothing is served there (--{name})");
        }
        if self.one_port {
            return Ok(vec![kinds]);
        }
        Ok(kinds.into_iter().map(|kind| vec![kind]).collect())
    }

    /// What is different for a port: what was said last.
    pub(crate) fn tuning(&self, kinds: &[Kind]) -> Tuning {
        let mut all = Tuning { kind: kinds[0], workers: None, concurrency: None, cpus: None };
        for tuning in self.tune.iter().filter(|tuning| kinds.contains(&tuning.kind)) {
            all.workers = tuning.workers.or(all.workers);
            all.concurrency = tuning.concurrency.or(all.concurrency);
            all.cpus = tuning.cpus.clone().or(all.cpus);
        }
        all
    }
}

/// What is served, each kind on a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Broadcast,
    Multicast,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Broadcast => "broadcast",
            Self::Multicast => "multicast",
        }
    }
}

/// A group to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) address: SocketAddr,
    /// None: the one that the system chooses.
    pub(crate) interface: Option<String>,
}

/// How a kind is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    pub(crate) kind: Kind,
    pub(crate) workers: Option<usize>,
    pub(crate) concurrency: Option<usize>,
    /// The processors on which its workers run. None: on all.
    pub(crate) cpus: Option<Vec<usize>>,
}

/// Send numbered datagrams, and count what comes back
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  wharf load udp 127.0.0.1:7001 --rate 20000 --seconds 5
  wharf load udp 127.0.0.1:7001 --size 1200 --gso --one-way --json

Every datagram carries a number and the time when it was due. With --rate they are due at fixed
times whatever the server does; without it --depth of them are on the way at most, and those that
have not come back in 200 ms are taken for lost. With --one-way nothing is expected back, and
without --rate they go as fast as the system takes them: what the server says at its end tells
what was lost.

When the time is over it waits for 500 ms for what is still on the way. Losses are counted, and are
no failure: the exit code is 1 if nothing was sent or (without --one-way) nothing came back.")]
pub(crate) struct LoadUdp {
    /// The server, a broadcast address or a group
    #[arg(value_name = "TARGET", value_parser = address)]
    pub(crate) target: String,

    /// Bytes in a datagram, from 16 to 65,507
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = datagram_size)]
    pub(crate) size: usize,

    /// For how long
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds_to_run)]
    pub(crate) seconds: Duration,

    /// Datagrams per second
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) rate: Option<u64>,

    /// Datagrams on the way at most, without --rate
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = number(1, 65_536))]
    pub(crate) depth: usize,

    /// Give the system many datagrams at once, to be cut apart as late as possible
    #[arg(long)]
    pub(crate) gso: bool,

    /// Expect nothing back
    #[arg(long)]
    pub(crate) one_way: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A group, an interface if one is named, and a port.
fn group(text: &str) -> Result<Group, String> {
    let wrong = || {
        "give a group, perhaps an interface, and a port, like 239.1.2.3:7003, \
         239.1.2.3%eth0:7003 or [ff02::1%eth0]:7003"
            .to_owned()
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let open = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let (ip, interface) = match open.unwrap_or(host).split_once('%') {
        Some((_, "")) => return Err(wrong()),
        Some((ip, interface)) => (ip, Some(interface.to_owned())),
        None => (open.unwrap_or(host), None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
    if ip.is_ipv6() != open.is_some() {
        return Err(wrong());
    }
    if !ip.is_multicast() {
        return Err(format!(
            "{ip} is no group: those are from 224.0.0.0 to 239.255.255.255, and in ff00::/8"
        ));
    }
    Ok(Group { address: SocketAddr::new(ip, port.parse().map_err(|_| wrong())?), interface })
}

fn tuning(text: &str) -> Result<Tuning, String> {
    let wrong = || {
        "give a kind and what is different for it, like udp:workers=4,concurrency=2,cpus=0+2-3"
            .to_owned()
    };
    let (kind, settings) = text.split_once(':').ok_or_else(wrong)?;
    let kind = <Kind as ValueEnum>::from_str(kind, false).map_err(|_| wrong())?;
    let mut tuning = Tuning { kind, workers: None, concurrency: None, cpus: None };
    for setting in settings.split(',') {
        match setting.split_once('=').ok_or_else(wrong)? {
            ("workers", value) => tuning.workers = Some(number(1, 10_000)(value)?),
            ("concurrency", value) => tuning.concurrency = Some(number(0, 1024)(value)?),
            ("cpus", value) => tuning.cpus = Some(processors(value)?),
            _ => return Err(wrong()),
        }
    }
    Ok(tuning)
}

/// Processors: numbers and ranges with a + between them.
fn processors(text: &str) -> Result<Vec<usize>, String> {
    const MOST: usize = 1023;
    let mut processors = Vec::new();
    for part in text.split('+') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(0, MOST)(first)?, number(0, MOST)(last)?);
        if first > last {
            return Err(format!("{part}: the first is greater than the last"));
        }
        processors.extend(first..=last);
    }
    Ok(processors)
}

fn datagram_size(text: &str) -> Result<usize, String> {
    match size(text) {
        Ok(size) if (16..=65_507).contains(&size) => Ok(size),
        _ => Err("give a number of bytes from 16 to 65507".to_owned()),
    }
}

fn buffer(text: &str) -> Result<usize, String> {
    bytes(text)
        .filter(|size| (1..=BUFFER_MAX).contains(size))
        .ok_or_else(|| "give a number of bytes from 1 to 256M, like 64K or 4M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_may_name_an_interface() {
        let group = |text| group(text).map(|group| (group.address.to_string(), group.interface));
        let good = |address: &str, interface: Option<&str>| {
            Ok((address.to_owned(), interface.map(str::to_owned)))
        };
        assert_eq!(group("239.1.2.3:7003"), good("239.1.2.3:7003", None));
        assert_eq!(group("239.1.2.3%eth0:0"), good("239.1.2.3:0", Some("eth0")));
        assert_eq!(group("[ff02::1%lo]:7003"), good("[ff02::1]:7003", Some("lo")));
        for bad in ["239.1.2.3", "10.0.0.1:1", "[::1]:1", "ff02::1:1", "239.1.2.3%:1", "x:1", ""] {
            assert!(group(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tuning_names_what_is_different() {
        let all = tuning("udp:workers=4,concurrency=2,cpus=0+2-3").unwrap();
        let cpus = Some(vec![0, 2, 3]);
        let expected = Tuning { kind: Kind::Udp, workers: Some(4), concurrency: Some(2), cpus };
        assert_eq!(all, expected);
        for bad in [
            "udp",
            "udp:",
            "sctp:workers=1",
            "udp:workers",
            "udp:workers=0",
            "udp:cpus=3-2",
            "udp:cpus=",
            "udp:cpus=x",
            "udp:speed=1",
        ] {
            assert!(tuning(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn datagrams_have_room_for_a_number() {
        assert_eq!(datagram_size("16"), Ok(16));
        assert_eq!(datagram_size("65507"), Ok(65_507));
        assert!(datagram_size("15").is_err() && datagram_size("65508").is_err());
    }
}
