//! What tests need of the system beyond what wharf itself does, found out by making the very calls,
//! without wharf. Every Linux has all of it; one that an emulator plays may not.

use super::support::skip;

/// Something that a test needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// Appending to a file that was not opened for it: pwritev2 with RWF_APPEND.
    Appends,
    /// To be told of descriptors that came and did not fit: MSG_CTRUNC.
    #[cfg(unix)]
    LostDescriptors,
    /// To be told how many datagrams were thrown away: SO_MEMINFO.
    Drops,
    /// A socket that does not hear the groups of others: IP_MULTICAST_ALL.
    OwnGroups,
    /// Control messages that mean to the kernel what they mean to the program.
    Marks,
    /// The control message that asks for several datagrams: UDP_SEGMENT.
    Cutting,
    /// The control message of datagrams that were joined: UDP_GRO.
    Joining,
}

/// Whether the system lacks what a test needs: then the test is skipped.
pub(crate) fn lacks(need: Need, test: &str) -> bool {
    missing(need).inspect(|what| skip(test, &format!("this system {what}"))).is_some()
}

/// The same for a part of a test.
pub(crate) fn lacks_in_part(need: Need, test: &str) -> bool {
    missing(need).inspect(|what| skip(test, &format!("in part: this system {what}"))).is_some()
}

/// Whether it is there.
pub(crate) fn has(need: Need) -> bool {
    missing(need).is_none()
}

/// What the system does instead, if it does not do what it should.
fn missing(need: Need) -> Option<&'static str> {
    cfg_select! {
        target_os = "linux" => {
            let (has, what) = match need {
                Need::Appends => (linux::appends(), "has no pwritev2 that appends"),
                Need::LostDescriptors => {
                    (linux::tells_of_lost_descriptors(), "hides that descriptors were lost")
                }
                Need::Drops => (linux::tells_of_drops(), "has no SO_MEMINFO of nine numbers"),
                Need::OwnGroups => (linux::has_own_groups(), "has no IP_MULTICAST_ALL"),
                Need::Marks => (linux::passes_marks_on(), "garbles control messages"),
                Need::Cutting => (linux::cuts_datagrams(), "garbles UDP_SEGMENT"),
                Need::Joining => (linux::joins_datagrams(), "garbles UDP_GRO"),
            };
            (!has).then_some(what)
        }
        _ => {
            let _ = need;
            None
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        mem::{size_of, zeroed},
        net::{SocketAddr, UdpSocket},
        os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        os::unix::net::UnixDatagram,
        ptr,
    };

    use libc::{c_int, socklen_t};
    use socket2::{SockAddr, SockRef};

    use super::super::support::PATIENCE;

    pub(super) fn appends() -> bool {
        let slice = libc::iovec { iov_base: c"x".as_ptr().cast_mut().cast(), iov_len: 1 };
        // SAFETY: the name is a string, the slice lives across the call, and nobody else has the
        // descriptor.
        unsafe {
            let file = libc::memfd_create(c"appends".as_ptr(), libc::MFD_CLOEXEC);
            assert!(file >= 0, "{}", std::io::Error::last_os_error());
            let file = OwnedFd::from_raw_fd(file);
            libc::pwritev2(file.as_raw_fd(), &raw const slice, 1, 0, libc::RWF_APPEND) == 1
        }
    }

    pub(super) fn tells_of_drops() -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut numbers = [0_u32; 9];
        let mut length = size::<[u32; 9]>();
        // SAFETY: the numbers and their length live across the call.
        let asked = unsafe {
            let into = numbers.as_mut_ptr().cast();
            let (level, option) = (libc::SOL_SOCKET, libc::SO_MEMINFO);
            libc::getsockopt(socket.as_raw_fd(), level, option, into, &raw mut length)
        };
        asked == 0 && length == size::<[u32; 9]>()
    }

    pub(super) fn has_own_groups() -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        SockRef::from(&socket).set_multicast_all_v4(false).is_ok()
    }

    pub(super) fn tells_of_lost_descriptors() -> bool {
        let (one, other) = UnixDatagram::pair().expect("two sockets");
        // Where there is room for one, padding may make room for another one.
        let three = [one.as_raw_fd(); 3];
        assert!(send(&one, None, libc::SOL_SOCKET, libc::SCM_RIGHTS, &three));
        let heard = receive(other.as_raw_fd(), room::<RawFd>());
        for (_, _, data) in &heard.controls {
            let descriptors = data.chunks_exact(size_of::<RawFd>());
            for descriptor in
                descriptors.map(|bytes| RawFd::from_ne_bytes(bytes.try_into().unwrap()))
            {
                // SAFETY: it has just come, so nobody else has it.
                drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        heard.flags & libc::MSG_CTRUNC != 0
    }

    pub(super) fn passes_marks_on() -> bool {
        const HOPS: c_int = 33;
        let (one, other, to) = sockets();
        for option in [libc::IP_PKTINFO, libc::IP_RECVTTL] {
            assert!(set(&other, libc::IPPROTO_IP, option, 1));
        }
        if !send(&one, Some(&to), libc::IPPROTO_IP, libc::IP_TTL, &HOPS) {
            return false;
        }
        // SAFETY: the name is a string.
        let lo = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
        let heard = receive(other.as_raw_fd(), 256);
        let is = |kind, number: [u8; 4]| {
            heard.controls.iter().any(|(level, found, data)| {
                *level == libc::IPPROTO_IP && *found == kind && data.starts_with(&number)
            })
        };
        is(libc::IP_TTL, HOPS.to_ne_bytes()) && is(libc::IP_PKTINFO, lo.to_ne_bytes())
    }

    pub(super) fn cuts_datagrams() -> bool {
        let (one, other, to) = sockets();
        send(&one, Some(&to), libc::SOL_UDP, libc::UDP_SEGMENT, &1_u16)
            && receive(other.as_raw_fd(), 0).bytes == 1
    }

    pub(super) fn joins_datagrams() -> bool {
        let (one, other, to) = sockets();
        if !set(&other, libc::SOL_UDP, libc::UDP_GRO, 1) {
            // Then wharf says so.
            return true;
        }
        assert!(set(&one, libc::SOL_UDP, libc::UDP_SEGMENT, 1));
        one.send_to(MESSAGE, to.as_socket().expect("an address")).expect("sent");
        let heard = receive(other.as_raw_fd(), 256);
        let size: c_int = 1;
        heard.controls.contains(&(libc::SOL_UDP, libc::UDP_GRO, size.to_ne_bytes().to_vec()))
    }

    // ---- Helpers ------------------------------------------------------------------------------

    const MESSAGE: &[u8] = b"abc";

    fn size<T>() -> socklen_t {
        socklen_t::try_from(size_of::<T>()).expect("small")
    }

    /// What a control message takes that carries this.
    fn room<T>() -> usize {
        // SAFETY: plain arithmetic.
        unsafe { libc::CMSG_SPACE(size::<T>()) as usize }
    }

    fn sockets() -> (UdpSocket, UdpSocket, SockAddr) {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        other.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let to: SocketAddr = other.local_addr().expect("an address");
        (one, other, to.into())
    }

    fn set(socket: &impl AsRawFd, level: c_int, option: c_int, value: c_int) -> bool {
        // SAFETY: the number lives across the call.
        unsafe {
            let from = (&raw const value).cast();
            libc::setsockopt(socket.as_raw_fd(), level, option, from, size::<c_int>()) == 0
        }
    }

    /// Words, for their alignment.
    type Control = [u64; 32];

    /// Sends a message with one control message. False: the system does not take it.
    fn send<T: Copy>(
        socket: &impl AsRawFd,
        to: Option<&SockAddr>,
        level: c_int,
        kind: c_int,
        data: &T,
    ) -> bool {
        let mut control: Control = [0; 32];
        assert!(room::<T>() <= size_of::<Control>());
        let mut slice =
            libc::iovec { iov_base: MESSAGE.as_ptr().cast_mut().cast(), iov_len: MESSAGE.len() };
        // SAFETY: plain integers and pointers, for which zero is a value; the pointers lead to what
        // lives across the call, and the control message fits, as was asserted.
        unsafe {
            let mut header: libc::msghdr = zeroed();
            if let Some(to) = to {
                header.msg_name = to.as_ptr().cast_mut().cast();
                header.msg_namelen = to.len();
            }
            header.msg_iov = &raw mut slice;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = room::<T>() as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = level;
            (*first).cmsg_type = kind;
            (*first).cmsg_len = libc::CMSG_LEN(size::<T>()) as _;
            ptr::copy_nonoverlapping(
                ptr::from_ref(data).cast::<u8>(),
                libc::CMSG_DATA(first),
                size_of::<T>(),
            );
            libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) >= 0
        }
    }

    struct Heard {
        bytes: usize,
        flags: c_int,
        /// Level, kind and data.
        controls: Vec<(c_int, c_int, Vec<u8>)>,
    }

    /// Receives a message, with so much room for control messages.
    fn receive(socket: RawFd, room: usize) -> Heard {
        let mut control: Control = [0; 32];
        assert!(room <= size_of::<Control>());
        let mut bytes = [0_u8; 64];
        let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut controls = Vec::new();
        // SAFETY: plain integers and pointers, for which zero is a value; the pointers lead to what
        // lives across the call. What the system says of the control messages lies in their room.
        unsafe {
            let mut header: libc::msghdr = zeroed();
            header.msg_iov = &raw mut slice;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = room as _;
            let length = libc::recvmsg(socket, &raw mut header, 0);
            let mut next = libc::CMSG_FIRSTHDR(&raw const header);
            while !next.is_null() {
                let length = ((*next).cmsg_len as usize)
                    .saturating_sub(libc::CMSG_LEN(0) as usize)
                    .min(size_of::<Control>());
                let data = std::slice::from_raw_parts(libc::CMSG_DATA(next), length).to_vec();
                controls.push(((*next).cmsg_level, (*next).cmsg_type, data));
                next = libc::CMSG_NXTHDR(&raw const header, next);
            }
            let bytes = usize::try_from(length).expect("a message");
            Heard { bytes, flags: header.msg_flags, controls }
        }
    }
}
