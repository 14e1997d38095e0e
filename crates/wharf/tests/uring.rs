//! The conformance suite on io_uring, with all that this kernel's has.

#![cfg(target_os = "linux")]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Uring)
}

/// What only this driver has: the kernel knows the memory of a region by a number.
mod registered {
    use std::{fs, path::PathBuf};

    use wharf::{Buf, OpenOptions, Wait, rio::Region};

    use crate::conformance::support::{child_has_run, in_child, pattern, run, until};

    type Port = wharf::Port<u32>;
    type File = wharf::File<u32>;

    fn port() -> Port {
        crate::builder().concurrency(1).build().unwrap()
    }

    /// A file of pages that are not zero.
    fn file(port: &Port, path: &PathBuf) -> File {
        fs::write(path, pattern(1, 64 << 10)).unwrap();
        let file = port.open(path, OpenOptions::new().read(true).write(true), 1).unwrap();
        fs::remove_file(path).unwrap();
        file
    }

    fn next(port: &Port) -> wharf::Packet<u32> {
        match port.wait() {
            Wait::Packet(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    fn read(port: &Port, file: &File, buf: impl Into<Buf>) -> Buf {
        file.read_at(buf, 0).unwrap();
        let packet = next(port);
        packet.result.unwrap();
        let wharf::Op::Read { buf, .. } = packet.op else { panic!("a read") };
        buf
    }

    /// How often rings of this process have the memory at this address.
    fn registrations(address: usize) -> usize {
        let mut count = 0;
        for entry in fs::read_dir("/proc/self/fdinfo").unwrap() {
            let said = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            let Some((_, buffers)) = said.split_once("UserBufs:") else { continue };
            for line in buffers.lines().skip(1) {
                let Some((_, memory)) = line.split_once(": 0x") else { continue };
                let (start, length) = memory.split_once('/').unwrap();
                let start = usize::from_str_radix(start, 16).unwrap();
                let length: usize = length.trim().parse().unwrap();
                count += usize::from((start..start + length).contains(&address));
            }
        }
        count
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("wharf-test-{name}-{}", std::process::id()))
    }

    /// Would catch: memory that is registered and not used so; a region that stays in a ring, is in
    /// one twice, or is put into one that has no use for it.
    #[test]
    fn a_region_is_in_the_rings_that_use_it_until_it_goes() {
        const NAME: &str = "a_region_is_in_the_rings_that_use_it_until_it_goes";
        if !in_child(module_path!(), NAME) {
            return;
        }
        run(|| {
            let (one, other) = (port(), port());
            let [first, second] = [&one, &other].map(|port| file(port, &path("region")));
            let region = Region::aligned(2, 16 << 10, 4096).unwrap();
            let mut slice = region.slice(0).unwrap();
            let address = slice.as_ptr();
            assert_eq!(registrations(address.addr()), 0);
            for _ in 0..100 {
                slice = read(&one, &first, slice).into_slice().unwrap();
            }
            until("it is in one ring", || registrations(address.addr()) == 1);
            slice = read(&other, &second, slice).into_slice().unwrap();
            until("it is in both rings", || registrations(address.addr()) == 2);
            assert_eq!(slice[..], pattern(1, 16 << 10));
            drop((other, second));
            // This thread leaves it.
            slice = read(&one, &first, slice).into_slice().unwrap();
            until("one ring is gone", || registrations(address.addr()) == 1);

            // The kernel has the pages themselves: the program's are others from now on, and what
            // is read goes to the old ones.
            // SAFETY: a page of the slice, which is ours; its bytes become others, as is expected.
            let dropped = unsafe {
                libc::madvise(address.cast_mut().add(4096).cast(), 4096, libc::MADV_DONTNEED)
            };
            assert_eq!(dropped, 0);
            let buf = read(&one, &first, slice);
            let content = pattern(1, 16 << 10);
            assert_eq!(buf[..4096], content[..4096]);
            assert_eq!(buf[4096..8192], [0; 4096], "it was read by its address");
            assert_eq!(buf[8192..], content[8192..]);
            drop((buf, region));
            until("it is in none", || registrations(address.addr()) == 0);
        });
        child_has_run();
    }

    /// Would catch: a region's end in a forked child that takes it out of its parent's ring.
    #[test]
    fn a_forked_child_leaves_the_rings_of_its_parent_alone() {
        const NAME: &str = "a_forked_child_leaves_the_rings_of_its_parent_alone";
        if !in_child(module_path!(), NAME) {
            return;
        }
        let port = port();
        let file = file(&port, &path("fork"));
        let region = Region::new(1, 8192).unwrap();
        let buf = read(&port, &file, region.slice(0).unwrap());
        let address = buf.as_ptr().addr();
        // SAFETY: the child drops what is its own and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(buf);
            drop(region);
            // SAFETY: ends the child without running anything else.
            unsafe { libc::_exit(0) };
        }
        let mut status = 1;
        // SAFETY: the status lives across the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        until("it is there", || registrations(address) == 1);
        let buf = read(&port, &file, buf);
        assert_eq!(buf[..], pattern(1, 8192));
        child_has_run();
    }
}
