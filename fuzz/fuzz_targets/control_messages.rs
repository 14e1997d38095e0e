//! Control messages and addresses: any bytes are read without harm, and what is written is read.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

// The library's own source: it uses the standard library and libc only, and is not public.
#[path = "../../crates/wharf/src/sys/control.rs"]
#[allow(dead_code, reason = "not all of it is called here")]
mod control;

use control::{ADDRESS_ROOM, Control, Facts, ROOM, Reader, Writer, read_address, write_address};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// What the kernel might have written.
    bytes: &'a [u8],
    /// What is to be written: level, type, data.
    messages: Vec<(i32, i32, &'a [u8])>,
    ip: IpAddr,
    port: u16,
}

fuzz_target!(|input: Input<'_>| {
    let header = size_of::<usize>() + 8;
    let mut read = 0;
    for message in Reader::new(input.bytes) {
        read += header + message.data.len();
        assert!(read <= input.bytes.len());
    }
    let _ = Facts::read(input.bytes);
    let _ = read_address(input.bytes);

    let mut room = [0xa5; ROOM];
    let mut writer = Writer::new(&mut room);
    let mut written = Vec::new();
    for &(level, kind, data) in &input.messages {
        let before = writer.used();
        if writer.put(level, kind, data) {
            written.push(Control { level, kind, data });
        } else {
            assert_eq!(writer.used(), before);
        }
    }
    let used = writer.used();
    assert!(used <= ROOM);
    assert!(room[used..].iter().all(|&byte| byte == 0xa5));
    assert!(Reader::new(&room[..used]).eq(written));
    let _ = Facts::read(&room[..used]);

    let address = SocketAddr::new(input.ip, input.port);
    let mut room = [0xa5; ADDRESS_ROOM];
    let length = write_address(address, &mut room);
    assert_eq!(read_address(&room[..length]), Some(address));
});
