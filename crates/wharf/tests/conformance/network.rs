//! UDP between two hosts: network namespaces of the test's own, joined by a pair of virtual
//! interfaces. They need root and iproute2.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use socket2::SockRef;
use wharf::{Buf, Envelope, ErrorKind, Interface, Received};

use super::{needs::*, support::*};

type Socket = wharf::UdpSocket<u32, Token>;

/// Two hosts, 0 and 1, each with one interface. Their addresses end with 1 and 2.
struct Network {
    names: [String; 2],
}

impl Network {
    /// None, and a skip is printed, where it cannot be made.
    fn new(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |host| format!("wharf-{}-{number}-{host}", std::process::id());
        let network = Self { names: [name(0), name(1)] };
        if let Err(error) = network.build() {
            skip(test, &format!("no network namespaces here: {error}"));
            return None;
        }
        Some(network)
    }

    fn build(&self) -> Result<(), String> {
        let [one, two] = &self.names;
        ip(&["netns", "add", one])?;
        ip(&["netns", "add", two])?;
        let pair = ["type", "veth", "peer", "name", "net", "netns", two];
        ip(&[&["-n", one, "link", "add", "net"][..], &pair].concat())?;
        for (name, last) in self.names.iter().zip(["1", "2"]) {
            let add =
                |address: &str| ip(&["-n", name, "addr", "add", address, "dev", "net", "nodad"]);
            ip(&[
                "-n",
                name,
                "addr",
                "add",
                &format!("10.77.0.{last}/24"),
                "brd",
                "+",
                "dev",
                "net",
            ])?;
            add(&format!("fd77::{last}/64"))?;
            // A second one, to send from.
            ip(&["-n", name, "addr", "add", &format!("10.77.0.10{last}/24"), "dev", "net"])?;
            add(&format!("fd77::10{last}/64"))?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "net", "up"])?;
        }
        // An interface is up before its own address is usable.
        for name in &self.names {
            let found = || ip(&["-n", name, "-6", "addr", "show", "dev", "net", "tentative"]);
            while !found()?.is_empty() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Makes something on a host: what sockets are made there stay there.
    fn on<T: Send>(&self, host: u8, make: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.names[usize::from(host)]);
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                let namespace = File::open(path).expect("a namespace");
                // SAFETY: takes a descriptor and no pointers, and changes this thread only.
                let moved = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(moved, 0, "{}", std::io::Error::last_os_error());
                make()
            });
            there.join().expect("it is made")
        })
    }

    fn bind(&self, host: u8, port: &Port, address: &str) -> (Socket, u16) {
        let socket = self.on(host, || port.bind_udp(address, host.into()).expect("a socket"));
        let number = socket.local_addr().expect("an address").port();
        (socket, number)
    }

    fn interface(&self, host: u8) -> Interface {
        self.on(host, || Interface::named("net").expect("an interface"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<String, String> {
    run_tool("ip", arguments)
}

fn run_tool(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(tool).args(arguments).output();
    let output = output.map_err(|error| format!("{tool}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{tool} {}: {said}", arguments.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), port)
}

#[track_caller]
fn datagram(packet: Packet) -> (Buf, Received) {
    assert!(packet.result.is_ok(), "{:?}", packet.result);
    match packet.op {
        Op::RecvFrom { buf, received: Some(received), .. } => (buf, received),
        other => panic!("not a datagram: {other:?}"),
    }
}

fn send(socket: &Socket, text: &'static str, to: impl Into<Envelope>) {
    socket.start().silent().send_to(text, to).expect("it is sent");
}

/// Would catch: a group that is not joined or left over a network, on either family; hop limits and
/// interfaces that are not those of the network; copies of its own that a sender did not want.
#[test]
fn a_group_is_heard_over_a_network() {
    run(|| {
        const TEST: &str = "a_group_is_heard_over_a_network";
        if lacks(Need::OwnGroups, TEST) || lacks(Need::Marks, TEST) {
            return;
        }
        let Some(network) = Network::new(TEST) else { return };
        let port = port(1);
        let (here, there) = (network.interface(0), network.interface(1));
        for (any, group, other, from) in [
            ("0.0.0.0:0", "239.77.0.1", "239.77.0.2", "10.77.0.1"),
            ("[::]:0", "ff02::77:1", "ff02::77:2", "fd77::1"),
            ("[::]:0", "ff15::77:1", "ff15::77:2", "fd77::1"),
        ] {
            let (sender, _) = network.bind(0, &port, any);
            let (receiver, number) = network.bind(1, &port, any);
            let [group, other] = [address(group, number), address(other, number)];
            let from: IpAddr = from.parse().unwrap();
            sender.set_multicast_interface(here).unwrap();
            receiver.set_packet_info(true).unwrap();
            receiver.set_recv_hop_limit(true).unwrap();
            receiver.recv_each().unwrap();
            receiver.join(group.ip(), there).unwrap();
            send(&sender, "to nobody", other);
            send(&sender, "to the group", Envelope::to(group).source(from));
            let (buf, received) = datagram(next(&port));
            assert_eq!((&buf[..], received.to), (&b"to the group"[..], Some(group.ip())));
            assert_eq!((received.from.ip(), received.hop_limit), (from, Some(1)));
            assert_eq!(received.interface, Some(there.index()));
            // The envelope may say through which interface, and how far.
            let (plain, _) = network.bind(0, &port, any);
            send(&plain, "far", Envelope::to(group).interface(here.index()).hop_limit(9));
            assert_eq!(datagram(next(&port)).1.hop_limit, Some(9));
            sender.set_multicast_hop_limit(5).unwrap();
            send(&sender, "farther", group);
            assert_eq!(datagram(next(&port)).1.hop_limit, Some(5));
            // An answer goes to the sender alone, from the receiver's own address.
            sender.recv(Buf::pooled()).unwrap();
            send(&receiver, "heard", Envelope::reply(&received).segments(0));
            send(&receiver, "heard", SocketAddr::new(from, sender.local_addr().unwrap().port()));
            let (buf, answer) = datagram(next(&port));
            assert_eq!((&buf[..], answer.from.port()), (&b"heard"[..], number));
            // A copy of its own for who has joined, unless it wants none.
            let own = network.on(0, || port.bind_multicast(group, here, 3).unwrap());
            own.recv_each().unwrap();
            send(&sender, "with a copy", group);
            let mut keys: Vec<u32> = (0..2).map(|_| key(next(&port))).collect();
            keys.sort_unstable();
            assert_eq!(keys, [1, 3]);
            sender.set_multicast_loop(false).unwrap();
            send(&sender, "without", group);
            assert_eq!(key(next(&port)), 1);
            sender.set_multicast_loop(true).unwrap();
            // Nothing more for who has left.
            receiver.leave(group.ip(), there).unwrap();
            receiver.join(other.ip(), there).unwrap();
            send(&sender, "left", group);
            assert_eq!(key(next(&port)), 3);
            send(&sender, "joined", other);
            let (buf, received) = datagram(next(&port));
            assert_eq!((&buf[..], received.to), (&b"joined"[..], Some(other.ip())));
            for socket in [own, receiver] {
                socket.close();
                assert!(next(&port).result.unwrap_err().is_cancelled());
            }
            sender.close();
            assert!(poll(&port).is_none());
        }
    });
}

#[track_caller]
fn key(packet: Packet) -> u32 {
    match packet.op {
        Op::RecvFrom { socket, received: Some(_), .. } => *socket.key(),
        other => panic!("not a datagram: {other:?}"),
    }
}

/// Would catch: a membership for one sender that lets others in, or is not left.
#[test]
fn a_group_is_heard_from_one_source() {
    run(|| {
        const TEST: &str = "a_group_is_heard_from_one_source";
        if lacks(Need::OwnGroups, TEST) || lacks(Need::Marks, TEST) {
            return;
        }
        let Some(network) = Network::new(TEST) else { return };
        let port = port(1);
        let (here, there) = (network.interface(0), network.interface(1));
        for (any, group, one, two) in [
            ("0.0.0.0:0", "232.77.0.1", "10.77.0.1", "10.77.0.101"),
            ("[::]:0", "ff35::8000:1", "fd77::1", "fd77::101"),
        ] {
            let (sender, _) = network.bind(0, &port, any);
            sender.set_multicast_interface(here).unwrap();
            let (receiver, number) = network.bind(1, &port, any);
            let group = address(group, number);
            let [one, two]: [IpAddr; 2] = [one, two].map(|text| text.parse().unwrap());
            let from = |source| send(&sender, "x", Envelope::to(group).source(source));
            receiver.recv_each().unwrap();
            receiver.join_source(one, group.ip(), there).unwrap();
            from(two);
            from(one);
            assert_eq!(datagram(next(&port)).1.from.ip(), one);
            receiver.join_source(two, group.ip(), there).unwrap();
            from(two);
            assert_eq!(datagram(next(&port)).1.from.ip(), two);
            receiver.leave_source(one, group.ip(), there).unwrap();
            from(one);
            from(two);
            assert_eq!(datagram(next(&port)).1.from.ip(), two);
            assert!(poll(&port).is_none());
            receiver.close();
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
    });
}

/// Would catch: a broadcast that is sent without leave, not sent with it, or not received.
#[test]
fn broadcasts_are_heard_over_a_network() {
    run(|| {
        const TEST: &str = "broadcasts_are_heard_over_a_network";
        if lacks(Need::Marks, TEST) {
            return;
        }
        let Some(network) = Network::new(TEST) else { return };
        let port = port(1);
        let (sender, _) = network.bind(0, &port, "10.77.0.1:0");
        let (receiver, number) = network.bind(1, &port, "0.0.0.0:0");
        receiver.set_packet_info(true).unwrap();
        receiver.recv_each().unwrap();
        // Bound to one address, it hears nothing.
        let deaf = network.on(1, || port.bind_udp(address("10.77.0.2", number), 9));
        assert_eq!(deaf.unwrap_err().kind(), ErrorKind::AddressInUse);
        for to in ["10.77.0.255", "255.255.255.255"] {
            let envelope =
                Envelope::to(address(to, number)).interface(network.interface(0).index());
            sender.set_broadcast(false).unwrap();
            sender.send_to("not allowed", envelope).unwrap();
            let error = next(&port).result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("set_broadcast"), "{error}");
            sender.set_broadcast(true).unwrap();
            send(&sender, "to everybody", envelope);
            let (buf, received) = datagram(next(&port));
            assert_eq!((&buf[..], received.to), (&b"to everybody"[..], Some(to.parse().unwrap())));
            // An answer does not come from the broadcast address.
            sender.recv(Buf::pooled()).unwrap();
            send(&receiver, "heard", Envelope::reply(&received));
            assert_eq!(datagram(next(&port)).1.from, address("10.77.0.2", number));
        }
    });
}

/// Would catch: sends that are lost or overtake each other where the system's buffer is full, or a
/// full buffer that holds up the receives, or memory that grows instead.
#[test]
fn sends_wait_for_a_slow_network_in_order() {
    run(|| {
        const COUNT: u32 = 100;
        const TEST: &str = "sends_wait_for_a_slow_network_in_order";
        let Some(network) = Network::new(TEST) else { return };
        let slow = ["qdisc", "add", "dev", "net", "root", "tbf", "rate", "8mbit", "burst", "2kb"];
        let slow = [&["-n", &network.names[0]], &slow[..], &["limit", "1mb"]].concat();
        if let Err(error) = run_tool("tc", &slow) {
            return skip(TEST, &error);
        }
        let port = port(1);
        let (sender, own) = network.bind(0, &port, "10.77.0.1:0");
        let (receiver, number) = network.bind(1, &port, "10.77.0.2:0");
        sender.set_send_buffer(4096).unwrap();
        receiver.set_recv_buffer(1 << 20).unwrap();
        let to = address("10.77.0.2", number);
        for number in 0..COUNT {
            let mut data = vec![0; 1200];
            data[..4].copy_from_slice(&number.to_le_bytes());
            let start = sender.start().context(Token::from(u64::from(number)));
            // Some of them as several.
            start
                .send_to(data, Envelope::to(to).segments(if number % 10 == 9 { 300 } else { 0 }))
                .unwrap();
        }
        receiver.recv_each().unwrap();
        sender.recv_each().unwrap();
        let (mut over, mut came, mut bytes) = (0, 0, 0);
        let mut beside = false;
        while bytes < COUNT as usize * 1200 || over < COUNT {
            let packet = next(&port);
            match packet.op {
                Op::SendTo { .. } => {
                    assert_eq!(packet.result, Ok(1200));
                    assert_eq!(packet.context.unwrap().id, u64::from(over));
                    over += 1;
                }
                Op::RecvFrom { socket, buf, .. } if *socket.key() == 1 => {
                    bytes += buf.len();
                    if buf.len() == 1200 || bytes % 1200 == 300 {
                        assert_eq!(buf[..4], u32::to_le_bytes(came));
                        came += 1;
                    }
                    if came == 20 && !beside {
                        assert!(over < COUNT, "nothing has had to wait");
                        send(&receiver, "beside", address("10.77.0.1", own));
                        beside = true;
                    }
                }
                Op::RecvFrom { buf, .. } => {
                    assert_eq!(&buf[..], b"beside");
                    assert!(over < COUNT, "it had to wait for the sends");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(came, COUNT);
        // What waits can be given up.
        for _ in 0..20 {
            sender.send_to(vec![0; 1200], to).unwrap();
        }
        sender.close();
        let mut cancelled = 0;
        for _ in 0..21 {
            let Packet { op, result, .. } = next(&port);
            let late = matches!(&op, Op::RecvFrom { socket, .. } if *socket.key() == 1);
            cancelled += usize::from(!late && result.is_err_and(|error| error.is_cancelled()));
        }
        assert!(cancelled > 0);
    });
}

/// Would catch: what another host says that is not told, or as if this one had said it; sizes that
/// do not fit the way.
#[test]
fn icmp_errors_come_over_a_network() {
    run(|| {
        let Some(network) = Network::new("icmp_errors_come_over_a_network") else { return };
        let port = port(1);
        for (own, host) in [("10.77.0.1:0", "10.77.0.2"), ("[fd77::1]:0", "fd77::2")] {
            let (socket, _) = network.bind(0, &port, own);
            socket.recv_errors().unwrap();
            socket.recv_each().unwrap();
            let to = address(host, 9);
            send(&socket, "anybody there?", to);
            let packet = next(&port);
            assert!(packet.more);
            let Op::Icmp { error: Some(error), .. } = packet.op else { panic!("{:?}", packet.op) };
            assert!(error.error.is_connection_refused());
            assert_eq!((error.to, error.reporter), (to, Some(host.parse().unwrap())));
            assert_eq!(error.icmp, Some(if to.is_ipv4() { (3, 3) } else { (1, 4) }));
            // Not to be taken apart, and too large: this machine says so.
            let (level, option) = if to.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
            };
            let always = libc::IP_PMTUDISC_DO;
            // SAFETY: the option is a number, which lives across the call.
            let set = unsafe {
                let fd = SockRef::from(&socket).as_raw_fd();
                libc::setsockopt(fd, level, option, (&raw const always).cast(), 4)
            };
            assert_eq!(set, 0);
            socket.send_to(vec![0; 3000], to).unwrap();
            let mut told = 0;
            for _ in 0..2 {
                let packet = next(&port);
                match packet.op {
                    Op::SendTo { buf, .. } => {
                        let error = packet.result.unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                        assert_eq!(buf.len(), 3000);
                    }
                    Op::Icmp { error: Some(error), .. } => {
                        assert_eq!((error.mtu, error.icmp), (Some(1500), None));
                        assert_eq!(error.reporter, None);
                        told += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(told, 1);
            socket.close();
            for _ in 0..2 {
                while !next(&port).result.is_err_and(|error| error.is_cancelled()) {}
            }
        }
    });
}
