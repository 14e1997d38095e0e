//! Files: what is read and written where, what is over in which order, and what bad input gets.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Barrier, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use proptest::{prelude::*, test_runner::TestRunner};
use wharf::{Buf, ErrorKind, OpenOptions, Wait, rio::Region};

#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{needs::*, support::*};

type File = wharf::File<u32, Token>;

/// A folder that goes with its test.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("wharf-test-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // What a process of the same number has left that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("a folder: {error}"),
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file with some content.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn to_read() -> OpenOptions {
    OpenOptions::new().read(true)
}

fn to_change() -> OpenOptions {
    OpenOptions::new().read(true).write(true).create(true)
}

/// Opens a file that can be read and written.
fn open(port: &Port, path: &Path) -> File {
    port.open(path, to_change(), 1).expect("opened")
}

/// Opens a file that can be read and appended to, and, unless the system appends only to files that
/// were opened for nothing else, written.
fn open_log(port: &Port, path: &Path) -> File {
    if has(Need::Appends) {
        return open(port, path);
    }
    let options = OpenOptions::new().read(true).append(true).create(true);
    port.open(path, options, 1).expect("opened")
}

/// The same file for appends: itself, unless it has to be opened for them.
fn for_appends(port: &Port, path: &Path, file: &File) -> File {
    if has(Need::Appends) { file.clone() } else { open_log(port, path) }
}

fn was_read(packet: Packet) -> Buf {
    match packet.op {
        Op::Read { buf, .. } => buf,
        other => panic!("not a read: {other:?}"),
    }
}

fn was_written(packet: Packet) -> Buf {
    match packet.op {
        Op::Write { buf, .. } => buf,
        other => panic!("not a write: {other:?}"),
    }
}

/// Has a file leave the page cache, as far as the system does as it is told.
fn leave_cache(file: &File) {
    #[cfg(target_os = "linux")]
    // SAFETY: it takes no pointers.
    unsafe {
        libc::posix_fadvise(file.as_fd().as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Reads at once.
fn read(port: &Port, file: &File, offset: u64, length: usize) -> Vec<u8> {
    file.read_at(Buf::with_capacity(length), offset).expect("started");
    let packet = next(port);
    assert_eq!(packet.result, Ok(packet.bytes));
    was_read(packet).into_vec()
}

// ---- Reading and writing ------------------------------------------------------------------------

/// Would catch: a kind of buffer that is not filled, whose length is wrong, or that keeps what it
/// held before; a position that is not respected.
#[test]
fn every_kind_of_buffer_reads_from_a_file() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 100_000);
        let path = folder.file("content", &content);
        let port = port(1);
        let file = port.open(&path, to_read(), 7).unwrap();
        assert_eq!(*file.key(), 7);
        let region = Region::new(1, 100).unwrap();
        let bufs = [
            Buf::with_capacity(16),
            Buf::from(vec![9; 40]),
            Buf::from(vec![9; 16].into_boxed_slice()),
            Buf::from(BytesMut::with_capacity(16)),
            Buf::aligned(4096, 4096),
            Buf::pooled(),
            region.slice(0).unwrap().into(),
        ];
        for (number, buf) in bufs.into_iter().enumerate() {
            let kind = format!("{buf:?}");
            let from = 1000 * number + 1;
            file.read_at(buf, from as u64).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(packet.bytes), "{kind}");
            let read = was_read(packet);
            assert!(!read.is_empty() && read.len() == read.capacity(), "{kind}: {read:?}");
            assert_eq!(read[..], content[from..from + read.len()], "{kind}");
            // And once more into the same one.
            file.read_at(read, 50_000).unwrap();
            let read = was_read(next(&port));
            assert_eq!(read[..], content[50_000..50_000 + read.len()], "{kind}");
        }
    });
}

/// Would catch: a kind of buffer that is not written, or comes back changed; a position that is
/// not respected, or a gap that is not a hole.
#[test]
fn every_kind_of_buffer_is_written_to_a_file() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let file = open(&port, &folder.path("new"));
        let mut aligned = Buf::aligned(8, 64);
        aligned.as_mut().unwrap().copy_from_slice(b"aligned!");
        let from_pool = {
            let file = port.open(folder.file("eight", b"a buffer"), to_read(), 1).unwrap();
            file.read_at(Buf::pooled(), 0).unwrap();
            was_read(next(&port))
        };
        let region = Region::new(2, 100).unwrap();
        let mut slice = region.slice(1).unwrap();
        slice.copy_from(b"a slice!").unwrap();
        let bufs = [
            Buf::from(slice),
            Buf::from(b"a vector".to_vec()),
            Buf::from(b"a boxed!".to_vec().into_boxed_slice()),
            Buf::from("a static"),
            Buf::from(Bytes::from_static(b"shared..")),
            Buf::from(BytesMut::from(&b"to write"[..])),
            aligned,
            from_pool,
            Buf::from(Vec::new()),
        ];
        let mut expected = Vec::new();
        for (number, buf) in bufs.into_iter().enumerate() {
            let (kind, content) = (format!("{buf:?}"), buf.to_vec());
            let position = number * 16;
            file.write_at(buf, position as u64).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(content.len()), "{kind}");
            assert_eq!(was_written(packet)[..], content, "{kind}");
            if !content.is_empty() {
                expected.resize(position, 0);
                expected.extend(content);
            }
        }
        assert_eq!(fs::read(folder.path("new")).unwrap(), expected);
    });
}

/// Would catch: an end that is not told, or told too early.
#[test]
fn reads_at_the_end_of_a_file_say_so() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("ten", b"0123456789");
        // If a buffer were lost at an end, the third read would wait for ever.
        let port = build(crate::builder().concurrency(1).pool(2, 4096));
        let file = port.open(&path, to_read(), 1).unwrap();
        assert_eq!(read(&port, &file, 0, 10), b"0123456789");
        assert_eq!(read(&port, &file, 4, 100), b"456789");
        for beyond in [10, 11, 1 << 40, i64::MAX as u64 - 100] {
            assert_eq!(read(&port, &file, beyond, 100), b"", "{beyond}");
            file.read_at(Buf::pooled(), beyond.min(1 << 62)).unwrap();
            let packet = next(&port);
            assert_eq!((packet.result, packet.bytes), (Ok(0), 0), "{beyond}");
            assert!(was_read(packet).is_empty());
        }
    });
}

/// Would catch: slices in the wrong order, or lengths that are not those of what was read.
#[test]
fn vectored_operations_take_one_buffer_after_the_other() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let path = folder.path("parts");
        let file = open(&port, &path);
        let parts = || vec!["one ".into(), Buf::default(), "two ".to_owned().into_bytes().into()];
        file.write_vectored_at(parts(), 3).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result, Ok(8));
        let Op::WriteVectored { bufs, .. } = packet.op else { panic!("{:?}", packet.op) };
        assert_eq!(bufs.iter().map(|buf| buf.len()).collect::<Vec<_>>(), [4, 0, 4]);
        assert_eq!(fs::read(folder.path("parts")).unwrap(), b"\0\0\0one two ");

        let rooms = || vec![Buf::from(vec![9; 2]), Buf::aligned(4, 1), Buf::from(vec![9; 7])];
        file.read_vectored_at(rooms(), 2).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result, Ok(9));
        let Op::ReadVectored { bufs, .. } = packet.op else { panic!("{:?}", packet.op) };
        let parts: Vec<_> = bufs.iter().map(|buf| buf.to_vec()).collect();
        assert_eq!(parts, [&b"\0o"[..], b"ne t", b"wo "]);

        // As many as there may be, and one more.
        let many = |count| (0..count).map(|_| Buf::from("x")).collect::<Vec<_>>();
        for_appends(&port, &path, &file).append_vectored(many(1024)).unwrap();
        assert_eq!(next(&port).result, Ok(1024));
        let refused = file.append_vectored(many(1025)).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.len()), (ErrorKind::InvalidInput, 1025));
        let refused = file.read_vectored_at(vec![Buf::pooled()], 0).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.len()), (ErrorKind::InvalidInput, 1));
    });
}

/// Would catch: file operations that stand behind each other, that are lost, done twice, or whose
/// buffers are mixed up; a queue without a bound.
#[test]
fn many_operations_are_in_flight_at_once() {
    run(|| {
        const BLOCK: usize = 512;
        let folder = Folder::new();
        let content = pattern(0, 1000 * BLOCK);
        let path = folder.file("blocks", &content);
        let port = build(crate::builder().concurrency(2).ring_entries(8).queue_limit(1000));
        let file = open(&port, &path);
        for block in 0..1000 {
            let block = (block * 7) % 1000;
            let start = file.start().context(Token::from(block));
            start.read_at(Buf::with_capacity(BLOCK), block * BLOCK as u64).unwrap();
        }
        let refused = file.read_at(vec![0; 3], 0).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.len()), (ErrorKind::QueueFull, 3));
        assert_eq!(port.stats().in_flight, 1000);
        let mut seen = vec![false; 1000];
        for _ in 0..1000 {
            let packet = next(&port);
            let block = usize::try_from(packet.context.as_ref().unwrap().id).unwrap();
            assert!(!std::mem::replace(&mut seen[block], true), "{block} twice");
            assert_eq!(was_read(packet)[..], content[block * BLOCK..(block + 1) * BLOCK]);
        }
        assert_eq!(read(&port, &file, 0, 3), &content[..3]);
    });
}

/// Would catch: writes that reach into each other, and reads that see anything but what was written
/// before.
#[test]
fn a_file_is_what_a_vector_of_bytes_is() {
    #[derive(Clone, Debug)]
    enum Action {
        Write(u64, Vec<u8>),
        Append(Vec<Vec<u8>>),
        Read(u64, usize),
        SetLen(u64),
        Allocate(u64, u64),
    }
    let bytes = || prop::collection::vec(any::<u8>(), 0..3000);
    let action = prop_oneof![
        (0..9000_u64, bytes()).prop_map(|(at, bytes)| Action::Write(at, bytes)),
        prop::collection::vec(bytes(), 0..4).prop_map(Action::Append),
        (0..12_000_u64, 1..5000_usize).prop_map(|(at, length)| Action::Read(at, length)),
        (0..12_000_u64).prop_map(Action::SetLen),
        (0..9000_u64, 1..3000_u64).prop_map(|(at, length)| Action::Allocate(at, length)),
    ];
    let actions = prop::collection::vec(action, 1..30);
    run(move || {
        let folder = Folder::new();
        let port = port(1);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(100));
        let may_allocate = !is_wine();
        let outcome = runner.run(&actions, |actions| {
            let path = folder.path("file");
            let file = port.open(&path, to_change().truncate(true), 1).expect("opened");
            let log = for_appends(&port, &path, &file);
            let mut model = Vec::<u8>::new();
            for action in actions {
                match action {
                    Action::Write(at, bytes) => {
                        let at = usize::try_from(at).expect("small");
                        if !bytes.is_empty() {
                            let end = at + bytes.len();
                            model.resize(model.len().max(end), 0);
                            model[at..end].copy_from_slice(&bytes);
                        }
                        file.write_at(bytes, at as u64).expect("started");
                        prop_assert!(next(&port).result.is_ok());
                    }
                    Action::Append(parts) => {
                        let mut count = parts.len();
                        for part in parts {
                            model.extend(&part);
                            log.append(part).expect("started");
                        }
                        while count > 0 {
                            prop_assert!(next(&port).result.is_ok());
                            count -= 1;
                        }
                    }
                    Action::Read(at, length) => {
                        let from = usize::try_from(at).expect("small").min(model.len());
                        let to = (from + length).min(model.len());
                        prop_assert_eq!(read(&port, &file, at, length), &model[from..to]);
                    }
                    Action::SetLen(length) => {
                        model.resize(usize::try_from(length).expect("small"), 0);
                        file.set_len(length).expect("started");
                        prop_assert!(next(&port).result.is_ok());
                    }
                    Action::Allocate(..) if !may_allocate => {}
                    Action::Allocate(at, length) => {
                        let end = usize::try_from(at + length).expect("small");
                        model.resize(model.len().max(end), 0);
                        file.allocate(at, length).expect("started");
                        prop_assert!(next(&port).result.is_ok());
                    }
                }
                let length = file.metadata().expect("known").len();
                prop_assert_eq!(length, model.len() as u64);
            }
            prop_assert_eq!(fs::read(&path).expect("read"), model);
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// Would catch: appends that overtake each other, or that write where the file ended earlier.
#[test]
fn appends_keep_their_order() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("log", b"begin ");
        let port = port(2);
        let with_flag = port.open(&path, OpenOptions::new().append(true), 1).unwrap();
        let mut files = vec![with_flag];
        if !lacks_in_part(Need::Appends, "appends_keep_their_order") {
            files.push(open(&port, &path));
        }
        for file in files {
            fs::write(&path, b"begin ").unwrap();
            let mut expected = b"begin ".to_vec();
            for number in 0..300 {
                let line = format!("line {number} ");
                expected.extend(line.as_bytes());
                if number % 3 == 0 {
                    let (one, other) = line.split_at(3);
                    let parts = [one, other].map(|part| Buf::from(part.as_bytes().to_vec()));
                    file.append_vectored(parts.into()).unwrap();
                } else {
                    file.append(line.into_bytes()).unwrap();
                }
            }
            for _ in 0..300 {
                assert!(next(&port).result.is_ok());
            }
            assert_eq!(fs::read(&path).unwrap(), expected);
        }
    });
}

/// Would catch: a request that is not done, or one of another kind that is.
#[test]
fn a_file_is_synced_allocated_and_cut() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let file = open(&port, &folder.path("file"));
        file.write_at(vec![1; 5000], 0).unwrap();
        drop(next(&port));

        file.sync_all().unwrap();
        let packet = next(&port);
        assert_eq!(packet.result, Ok(0));
        assert!(matches!(packet.op, Op::Sync { .. }));
        file.sync_data().unwrap();
        assert!(matches!(next(&port).op, Op::Sync { .. }));

        file.allocate(4000, 100_000).unwrap();
        let packet = next(&port);
        assert!(matches!(packet.op, Op::Allocate { .. }));
        if is_wine() {
            assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::Unsupported);
        } else {
            assert_eq!(packet.result, Ok(0));
            let metadata = file.metadata().unwrap();
            assert!(metadata.is_file() && metadata.len() == 104_000);
            #[cfg(unix)]
            assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 >= 104_000);
        }

        for length in [10, 1 << 40, 0] {
            file.set_len(length).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(0));
            assert!(matches!(packet.op, Op::SetLen { .. }));
            assert_eq!(file.metadata().unwrap().len(), length);
        }
    });
}

/// Would catch: direct I/O that is not direct, or whose alignment is not told, or whose errors say
/// nothing.
#[test]
fn direct_files_want_alignment() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 60_000);
        let path = folder.file("content", &content);
        let port = port(1);
        assert_eq!(port.open(&path, to_read(), 1).unwrap().alignment(), Ok(1));
        let file = match port.open(&path, to_change().direct(true), 1) {
            Ok(file) => file,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains("direct I/O"), "{error}");
                return skip(
                    "direct_files_want_alignment",
                    "no direct I/O in the temporary folder",
                );
            }
        };
        let unit = file.alignment().unwrap();
        assert!(unit.is_power_of_two() && unit > 1, "{unit}");
        file.read_at(Buf::aligned(4 * unit, unit), unit as u64).unwrap();
        let read = was_read(next(&port));
        assert_eq!(read[..], content[unit..5 * unit]);
        // The last part of a file need not be whole.
        let end = content.len() / unit * unit;
        file.read_at(read, end as u64).unwrap();
        let mut buf = was_read(next(&port));
        assert_eq!(buf[..], content[end..]);
        // From a buffer of the pool.
        file.read_at(Buf::pooled(), 0).unwrap();
        assert_eq!(was_read(next(&port))[..], content[..8192]);

        file.read_at(Buf::aligned(2 * unit, unit), 0).unwrap();
        buf = was_read(next(&port));
        file.write_at(buf, 8 * unit as u64).unwrap();
        assert_eq!(next(&port).result, Ok(2 * unit));
        let now = fs::read(&path).unwrap();
        assert_eq!(now[8 * unit..10 * unit], content[..2 * unit]);

        if not_shown_by_wine("direct_files_want_alignment", "Wine does not ask for alignment") {
            return;
        }
        file.read_at(Buf::aligned(unit, unit), 1).unwrap();
        let packet = next(&port);
        let error = packet.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("Buf::aligned"), "{error}");
        assert_eq!(was_read(packet).capacity(), unit, "the buffer is back");
    });
}

// ---- Registered memory --------------------------------------------------------------------------

/// Would catch: bytes that land beside their slice, or in another one, or in another region; a
/// length that is not that of what was read; a slice that does not come back.
#[test]
fn files_are_read_into_registered_memory() {
    const SLICE: usize = 5000;
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 200_000);
        let path = folder.file("content", &content);
        let port = port(1);
        let file = open(&port, &path);
        let regions = [Region::new(4, SLICE).unwrap(), Region::aligned(5, SLICE, 512).unwrap()];
        // Often enough for io_uring to know the file by a number, too.
        for round in 0..40 {
            let mut count = 0;
            for mut slice in regions.iter().flat_map(Region::slices) {
                slice.room().fill(0xee);
                let from = (round * 4111 + count * 30_011) % content.len();
                let start = file.start().context(Token::from(from as u64));
                start.read_at(slice, from as u64).unwrap();
                count += 1;
            }
            assert_eq!(count, 9);
            let mut read = Vec::new();
            for _ in 0..count {
                let packet = next(&port);
                let from = usize::try_from(packet.context.as_ref().unwrap().id).unwrap();
                let expected = SLICE.min(content.len() - from);
                assert_eq!((packet.result, packet.bytes), (Ok(expected), expected));
                read.push((from, was_read(packet)));
            }
            // Only now, when all of them are over.
            for (from, buf) in read {
                assert_eq!(buf[..], content[from..from + buf.len()]);
                assert_eq!(buf.capacity(), SLICE);
                let mut slice = buf.into_slice().expect("a slice");
                let length = slice.len();
                assert!(slice.room()[length..].iter().all(|&byte| byte == 0xee));
            }
            assert_eq!(regions.each_ref().map(Region::in_use), [0, 0]);
        }
        let other = Buf::from("of another kind").into_slice().unwrap_err();
        assert_eq!(&other[..], b"of another kind");
    });
}

/// Would catch: a write of all of a slice where a part was to be written, or of what is not in it;
/// an append that goes elsewhere or overtakes another.
#[test]
fn registered_memory_is_written_to_files() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("file", b"begin ");
        let port = port(1);
        let file = open(&port, &path);
        let log = for_appends(&port, &path, &file);
        let regions = [Region::new(3, 4000).unwrap(), Region::aligned(2, 9000, 4096).unwrap()];
        let mut expected = b"begin ".to_vec();
        for round in 0..40_usize {
            let mut count = 0;
            for mut slice in regions.iter().flat_map(Region::slices) {
                let length = (round * 997 + count * 1709) % (slice.capacity() + 1);
                slice.copy_from(&pattern(expected.len(), length)).unwrap();
                expected.extend(&slice[..]);
                log.append(slice).unwrap();
                count += 1;
            }
            for _ in 0..count {
                let packet = next(&port);
                let bytes = packet.bytes;
                assert_eq!(packet.result, Ok(bytes));
                assert_eq!(was_written(packet).len(), bytes);
            }
        }
        assert_eq!(fs::read(&path).unwrap(), expected);
        // At positions, and what was read before.
        for round in 0..40_u64 {
            let timed = file.start().deadline(PATIENCE);
            timed.read_at(regions[1].slice(0).unwrap(), round * 1001).unwrap();
            let mut buf = was_read(next(&port));
            buf.truncate(5000);
            buf.as_mut().unwrap()[4999] = 7;
            file.write_at(buf, round * 2002).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(5000));
            drop(packet);
            let (from, to) =
                (usize::try_from(round * 1001).unwrap(), usize::try_from(round * 2002).unwrap());
            expected.copy_within(from..from + 5000, to);
            expected[to + 4999] = 7;
        }
        assert_eq!(fs::read(&path).unwrap(), expected);
        // With others in one operation.
        let mut slice = regions[0].slice(2).unwrap();
        slice.copy_from(b"two ").unwrap();
        file.write_vectored_at(vec!["one ".into(), slice.into(), "three".into()], 0).unwrap();
        assert_eq!(next(&port).result, Ok(13));
        let parts = vec![Buf::with_capacity(2), regions[0].slice(0).unwrap().into()];
        file.read_vectored_at(parts, 0).unwrap();
        let Op::ReadVectored { bufs, .. } = next(&port).op else { panic!("a vectored read") };
        assert_eq!((&bufs[0][..], &bufs[1][..11]), (&b"on"[..], &b"e two three"[..]));
    });
}

/// Would catch: slices that direct I/O does not take, or that are read and written elsewhere.
#[test]
fn direct_files_take_registered_memory() {
    const NAME: &str = "direct_files_take_registered_memory";
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 1 << 20);
        let path = folder.file("content", &content);
        let port = port(1);
        let Ok(file) = port.open(&path, to_change().direct(true), 1) else {
            return skip(NAME, "no direct I/O in the temporary folder");
        };
        let unit = file.alignment().unwrap();
        let region = Region::aligned(8, 2 * unit, unit).unwrap();
        let blocks = content.len() / unit - 1;
        for round in 0..30 {
            for slice in region.slices() {
                let block = (round * 77 + slice.index() * 31) % blocks;
                let start = file.start().context(Token::from(block as u64));
                start.read_at(slice, (block * unit) as u64).unwrap();
            }
            for _ in 0..8 {
                let packet = next(&port);
                assert_eq!(packet.result, Ok(2 * unit));
                let from = usize::try_from(packet.context.as_ref().unwrap().id).unwrap() * unit;
                assert_eq!(was_read(packet)[..], content[from..from + 2 * unit]);
            }
        }
        let mut slice = region.slice(3).unwrap();
        slice.copy_from(&content[unit..2 * unit]).unwrap();
        file.write_at(slice, 5 * unit as u64).unwrap();
        assert_eq!(next(&port).result, Ok(unit));
        assert_eq!(fs::read(&path).unwrap()[5 * unit..6 * unit], content[unit..2 * unit]);

        if not_shown_by_wine(NAME, "Wine does not ask for alignment") {
            return;
        }
        file.read_at(region.slice(0).unwrap(), 1).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::InvalidInput);
        drop(was_read(packet).into_slice().expect("the slice is back"));
        assert_eq!(region.in_use(), 0);
    });
}

/// Would catch: a region that is taken for another, one that was at its address before say, or that
/// cannot be used because a ring has too many; slots that disagree about them.
#[test]
fn any_number_of_regions_is_read_into() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 100_000);
        let path = folder.file("content", &content);
        let port = port(2);
        let file = open(&port, &path);
        let one = || Region::new(2, 5000).unwrap();
        let mut regions: Vec<_> = (0..100).map(|_| one()).collect();
        for round in 0..6 {
            let slices: Vec<_> = regions.iter().flat_map(Region::slices).collect();
            let from = |number: usize| (number * 463 + round * 1009) % 95_000;
            // Two workers, each with a slot of its own.
            let barrier = Barrier::new(2);
            let slices = Mutex::new(slices.into_iter().enumerate().collect::<Vec<_>>());
            let worker = || {
                assert!(matches!(next(&port).op, Op::Posted(_)));
                barrier.wait();
                for _ in 0..100 {
                    let (number, slice) = slices.lock().unwrap().pop().expect("another");
                    let start = file.start().context(Token::from(number as u64));
                    start.read_at(slice, from(number) as u64).unwrap();
                }
                barrier.wait();
            };
            (0..2).for_each(|_| port.post(Token::from(0)).unwrap());
            thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(worker))));
            let mut read = Vec::new();
            for _ in 0..200 {
                let packet = next(&port);
                assert_eq!(packet.result, Ok(5000));
                let number = packet.context.as_ref().unwrap().id;
                read.push((usize::try_from(number).unwrap(), was_read(packet)));
            }
            for (number, buf) in read {
                assert_eq!(buf[..], content[from(number)..from(number) + 5000], "{number}");
            }
            // Others take their places.
            regions.drain(round * 10..round * 10 + 40);
            regions.extend((0..40).map(|_| one()));
        }
    });
}

/// Would catch: memory that is unmapped while the kernel uses it, a slice that does not come back
/// to its region, or a ring that keeps a region or is asked to let go of it when it is no more.
#[test]
fn regions_may_go_in_any_order() {
    use Event::*;
    run(|| {
        const SLICE: usize = 100_000;
        let folder = Folder::new();
        let content = pattern(0, 3 << 20);
        let path = folder.file("content", &content);
        for event in [DropFile, CloseFile, CancelAll, DropPort, ClosePort] {
            for round in 0..4 {
                let row = format!("{event:?}, {round}");
                let port = port(1);
                let file = open(&port, &path);
                leave_cache(&file);
                let kept = Region::new(20, SLICE).unwrap();
                let dropped = Region::new(20, SLICE).unwrap();
                for (one, other) in kept.slices().zip(dropped.slices()) {
                    let from = one.index() * SLICE;
                    let start = || file.start().context(Token::from(from as u64));
                    start().read_at(one, from as u64).unwrap();
                    start().read_at(other, from as u64).unwrap();
                }
                // Kept in the program beyond the port.
                let last = Region::new(1, SLICE).unwrap();
                file.read_at(last.slice(0).unwrap(), 0).unwrap();
                drop(dropped);
                let (mut file, mut port) = (Some(file), Some(port));
                match event {
                    DropFile => file = None,
                    CloseFile => file.as_ref().unwrap().close(),
                    CancelAll => drop(file.as_ref().unwrap().cancel_all()),
                    DropPort => port = None,
                    ClosePort => port.as_ref().unwrap().close(),
                }
                let mut bufs = Vec::new();
                if let Some(port) = &port
                    && !matches!(event, ClosePort)
                {
                    for _ in 0..41 {
                        let packet = next(port);
                        match &packet.result {
                            Ok(SLICE) => {}
                            Ok(bytes) => panic!("{row}: {bytes}"),
                            Err(error) => assert!(error.is_cancelled(), "{row}: {error}"),
                        }
                        let from = packet.context.as_ref().map_or(0, |token| token.id);
                        bufs.push((usize::try_from(from).unwrap(), was_read(packet)));
                    }
                    assert!(poll(port).is_none(), "{row}");
                }
                let in_use = |region: &Region| (region.in_use(), region.slice_count());
                if round % 2 == 0 {
                    drop(port.take());
                }
                for (from, buf) in bufs {
                    assert_eq!(buf[..], content[from..from + buf.len()], "{row}");
                }
                drop(port);
                drop(file);
                assert_eq!((in_use(&kept), in_use(&last)), ((0, 20), (0, 1)), "{row}");
            }
        }
    });
}

/// Would catch: a handle that does not take a slice, or gives back something else.
#[test]
fn sockets_take_registered_memory() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let region = Region::new(2, 100).unwrap();
        let mut slice = region.slice(1).unwrap();
        stream.recv(slice).unwrap();
        peer.write_all(b"hello").unwrap();
        let Op::Recv { buf, .. } = next(&port).op else { panic!("a receive") };
        slice = buf.into_slice().expect("a slice");
        assert_eq!((&slice[..], slice.index()), (&b"hello"[..], 1));
        stream.send(slice).unwrap();
        let Op::Send { buf, .. } = next(&port).op else { panic!("a send") };
        let mut echo = [0; 5];
        io::Read::read_exact(&mut peer, &mut echo).unwrap();
        assert_eq!(&echo, b"hello");
        stream.recv_exact(buf, 100).unwrap();
        peer.write_all(&[7; 100]).unwrap();
        let Op::Recv { buf, .. } = next(&port).op else { panic!("a receive") };
        assert_eq!(buf[..], [7; 100]);
        drop(buf);
        assert_eq!(region.in_use(), 0);
    });
}

// ---- The life of an operation -------------------------------------------------------------------

/// Would catch: contexts that are lost, silent operations that have packets, deadlines that pass
/// though there is time.
#[test]
fn file_operations_have_contexts_deadlines_and_silence() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let file = open_log(&port, &folder.path("file"));
        let tally = Tally::default();
        let patient = |id| file.start().context(tally.token(id)).deadline(PATIENCE);
        patient(1).write_at(tally.bytes(b"hello".to_vec()), 0).unwrap();
        assert_eq!(next(&port).context.map(|token| token.id), Some(1));
        patient(2).sync_data().unwrap();
        assert_eq!(next(&port).context.map(|token| token.id), Some(2));
        patient(3).silent().append(tally.bytes(b" world".to_vec())).unwrap();
        until("it is written", || {
            assert!(poll(&port).is_none());
            port.stats().in_flight == 0
        });
        patient(4).read_at(Buf::with_capacity(100), 0).unwrap();
        let packet = next(&port);
        assert_eq!(packet.context.as_ref().map(|token| token.id), Some(4));
        assert_eq!(&was_read(packet)[..], b"hello world");
        tally.assert_even();
    });
}

/// Would catch: an append that starts although it was cancelled, or a packet that says another
/// thing than what was done.
#[test]
fn appends_that_wait_can_be_cancelled() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let file = open_log(&port, &folder.path("log"));
        let mut ids = Vec::new();
        for number in 0..50_u8 {
            let start = file.start().context(Token::from(u64::from(number)));
            ids.push(start.append(vec![number; 100]).unwrap());
        }
        assert!(file.cancel(ids[20]));
        let mut done = Vec::new();
        let mut cancelled = Vec::new();
        let mut rest_cancelled = false;
        while done.len() + cancelled.len() < 50 {
            let packet = next(&port);
            let id = packet.context.as_ref().unwrap().id;
            match packet.result {
                Ok(bytes) => {
                    assert_eq!(bytes, 100);
                    done.push(u8::try_from(id).unwrap());
                }
                Err(error) => {
                    assert!(error.is_cancelled() && packet.bytes == 0, "{error}");
                    cancelled.push(id);
                }
            }
            assert_eq!(was_written(packet).len(), 100);
            if done.len() == 10 && !std::mem::replace(&mut rest_cancelled, true) {
                file.cancel_all();
            }
        }
        assert!(cancelled.contains(&20) && done.len() >= 10, "{done:?}");
        let content: Vec<u8> = done.iter().flat_map(|&number| [number; 100]).collect();
        assert_eq!(fs::read(folder.path("log")).unwrap(), content);
        assert!(!file.cancel(ids[0]), "it is over");
    });
}

/// Would catch: an operation that dies with the thread that started it.
#[test]
fn file_operations_survive_the_thread_that_started_them() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 4 << 20);
        let path = folder.file("content", &content);
        let port = port(1);
        let file = open(&port, &path);
        leave_cache(&file);
        let starter = file.clone();
        join(thread::spawn(move || {
            for block in 0..64 {
                let start = starter.start().context(Token::from(block));
                start.read_at(Buf::with_capacity(1 << 16), block << 16).unwrap();
            }
        }));
        for _ in 0..64 {
            let packet = next(&port);
            assert_eq!(packet.result, Ok(1 << 16));
            let from = usize::try_from(packet.context.as_ref().unwrap().id).unwrap() << 16;
            assert_eq!(was_read(packet)[..], content[from..from + (1 << 16)]);
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Event {
    DropFile,
    CloseFile,
    CancelAll,
    DropPort,
    ClosePort,
}

/// Would catch: a buffer that is freed while the kernel uses it, twice or never, whatever happens
/// to operations that are queued, in the kernel, or over.
#[test]
fn files_in_flight_meet_everything_that_can_happen() {
    use Event::*;
    run(|| {
        let folder = Folder::new();
        let path = folder.file("content", &pattern(0, 3 << 20));
        for event in [DropFile, CloseFile, CancelAll, DropPort, ClosePort] {
            for taken in [0, 10] {
                let row = format!("{event:?} after {taken}");
                let size = Size::new();
                let tally = Tally::default();
                let port = port(1);
                let file = open_log(&port, &path);
                leave_cache(&file);
                for number in 0..40_u64 {
                    let start = || file.start().context(tally.token(number));
                    start().read_at(size.vec(), number * 5000).unwrap();
                    start().read_at(Buf::pooled(), number * 5000).unwrap();
                    start().append(tally.bytes(vec![3; 5000])).unwrap();
                    let parts = vec![size.vec(), size.vec()];
                    start().read_vectored_at(parts, number * 7000).unwrap();
                    start().sync_data().unwrap();
                }
                let mut packets = 0;
                for _ in 0..taken {
                    drop(next(&port));
                    packets += 1;
                }
                let mut file = Some(file);
                let mut port = Some(port);
                match event {
                    DropFile => file = None,
                    CloseFile => file.as_ref().unwrap().close(),
                    CancelAll => drop(file.as_ref().unwrap().cancel_all()),
                    DropPort => port = None,
                    ClosePort => port.as_ref().unwrap().close(),
                }
                if let Some(port) = &port
                    && !matches!(event, ClosePort)
                {
                    while packets < 200 {
                        let packet = next(port);
                        let fine = match packet.result {
                            Ok(_) => true,
                            Err(error) => error.is_cancelled(),
                        };
                        assert!(fine, "{row}: {packet:?}");
                        packets += 1;
                    }
                    assert!(poll(port).is_none(), "{row}");
                    assert_eq!(port.stats().in_flight, 0, "{row}");
                }
                drop(port);
                drop(file);
                assert_eq!(size.alive(), 0, "{row}");
                tally.assert_even();
            }
        }
    });
}

/// Would catch: reads that are lost while others have all the buffers of the pool, or a buffer that
/// two of them have.
#[test]
fn reads_wait_for_buffers_of_the_pool() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 64 * 4096);
        let path = folder.file("content", &content);
        let port = build(crate::builder().concurrency(1).pool(4, 4096));
        let file = port.open(&path, to_read(), 1).unwrap();
        for block in 0..64 {
            let start = file.start().context(Token::from(block));
            start.read_at(Buf::pooled(), block * 4096).unwrap();
        }
        let mut held = Vec::new();
        for _ in 0..64 {
            let packet = next(&port);
            assert_eq!(packet.result, Ok(4096));
            let from = usize::try_from(packet.context.as_ref().unwrap().id).unwrap() * 4096;
            held.push((from, was_read(packet)));
            if held.len() == 4 {
                for (from, buf) in held.drain(..) {
                    assert_eq!(buf[..], content[from..from + 4096]);
                }
            }
        }
        assert!(port.stats().buffers_exhausted > 0);
    });
}

// ---- Bad input ----------------------------------------------------------------------------------

/// Would catch: an error without its kind, or a file that is open after all.
#[test]
fn files_that_cannot_be_opened_say_why() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("there", b"");
        let port = port(1);
        let kind = |path: &Path, options: OpenOptions| {
            let error = port.open(path, options, 1).unwrap_err();
            assert!(!error.to_string().is_empty());
            error.kind()
        };
        assert_eq!(kind(&folder.path("missing"), to_read()), ErrorKind::NotFound);
        assert_eq!(kind(&path.join("below"), to_read()), ErrorKind::NotFound);
        let directory =
            if cfg!(windows) { ErrorKind::PermissionDenied } else { ErrorKind::IsADirectory };
        assert_eq!(kind(&folder.0, to_read()), directory);
        assert_eq!(kind(&folder.0, to_change()), directory);
        assert_eq!(kind(&path, to_change().create_new(true)), ErrorKind::AlreadyExists);
        assert_eq!(kind(&path, OpenOptions::new()), ErrorKind::InvalidInput);
        assert_eq!(port.handles(), 0);
        port.close();
        assert_eq!(kind(&path, to_read()), ErrorKind::Closed);
    });
}

/// Would catch: a file whose operations would all fail, or a pipe taken for a file.
#[cfg(windows)]
#[test]
fn only_files_for_overlapped_operations_are_associated() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("there", b"content");
        let port = port(1);
        let (reader, _writer) = std::io::pipe().unwrap();
        let refused = File::associate(&port, reader, 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        let refused = File::associate(&port, fs::File::open(&path).unwrap(), 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        assert!(refused.error.to_string().contains("overlapped"), "{}", refused.error);
        // The handle has come back and works.
        assert_eq!(std::io::read_to_string(fs::File::from(refused.value)).unwrap(), "content");
    });
}

/// Would catch: a handle of the wrong kind, with which nothing can be done.
#[cfg(unix)]
#[test]
fn files_and_streams_are_not_taken_for_each_other() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("there", b"content");
        let port = port(1);
        let (reader, _writer) = io::pipe().unwrap();
        let refused = File::associate(&port, reader, 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        assert!(refused.error.to_string().contains("Port::associate"), "{}", refused.error);
        let refused = port.associate(fs::File::open(&path).unwrap(), 1).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        assert!(refused.error.to_string().contains("File::associate"), "{}", refused.error);
        let folder = fs::File::open(&folder.0).unwrap();
        assert_eq!(
            File::associate(&port, folder, 1).unwrap_err().error.kind(),
            ErrorKind::IsADirectory
        );
        // The descriptor has come back and works.
        let file = File::associate(&port, refused.value, 1).unwrap();
        assert_eq!(read(&port, &file, 3, 10), b"tent");
        // The same file once more, on another port.
        let other = self::port(1);
        let again = File::associate(&other, fs::File::open(&path).unwrap(), 1).unwrap();
        assert_eq!(read(&other, &again, 0, 3), b"con");
    });
}

/// Would catch: a position that wraps round or means "here", an accepted buffer without room, a
/// buffer that does not come back, or a file that is harmed by any of it.
#[test]
fn bad_requests_of_a_file_are_refused() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("there", b"content");
        let port = port(1);
        let file = open(&port, &path);
        for offset in [1 << 63, u64::MAX - 1, u64::MAX, (1 << 63) - 2] {
            let refused = file.read_at(vec![1; 3], offset).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput, "{offset}");
            assert!(refused.error.to_string().contains("2^63"), "{}", refused.error);
            assert_eq!(refused.value.len(), 3);
            let refused = file.write_at("abc", offset).unwrap_err();
            assert_eq!(
                (&refused.value[..], refused.error.kind()),
                (&b"abc"[..], ErrorKind::InvalidInput)
            );
            let parts = file.read_vectored_at(vec![vec![1; 3].into()], offset).unwrap_err();
            assert_eq!(parts.value.len(), 1);
            assert!(file.write_vectored_at(vec!["abc".into()], offset).is_err());
            assert!(file.allocate(offset, 2).is_err());
            assert!(offset < 1 << 63 || file.set_len(offset).is_err());
        }
        for buf in [Buf::with_capacity(0), Buf::from("static"), Buf::from(Bytes::new())] {
            let kind = file.read_at(buf, 0).unwrap_err().error.kind();
            assert_eq!(kind, ErrorKind::InvalidInput);
        }
        // What only the system can say comes with a packet.
        file.allocate(0, 0).unwrap();
        assert_eq!(next(&port).result.unwrap_err().kind(), ErrorKind::InvalidInput);
        let to_read = port.open(&path, to_read(), 1).unwrap();
        to_read.write_at("abc", 0).unwrap();
        let packet = next(&port);
        let error = packet.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("opened"), "{error}");
        assert_eq!(&was_written(packet)[..], b"abc");
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(port.stats().in_flight, 0);
        file.close();
        assert_eq!(file.read_at(vec![1; 3], 0).unwrap_err().error.kind(), ErrorKind::Closed);
    });
}

/// Would catch: a wait for ever, or another operation that suffers.
#[cfg(unix)]
#[test]
fn a_file_closed_elsewhere_fails_alone() {
    if !in_child(module_path!(), "a_file_closed_elsewhere_fails_alone") {
        return;
    }
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let well = open(&port, &folder.file("well", b"content"));
        let ill = open(&port, &folder.file("ill", b"content"));
        let number = ill.as_fd().as_raw_fd();
        // SAFETY: none of what std or wharf relies on: that is what is tested. No other thread of
        // this process opens anything before the descriptor is there again.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        ill.read_at(vec![1; 3], 0).unwrap();
        well.read_at(vec![1; 3], 0).unwrap();
        for _ in 0..2 {
            let packet = next(&port);
            let Op::Read { file, buf } = packet.op else { panic!("{:?}", packet.op) };
            if file == well {
                assert_eq!((packet.result, &buf[..]), (Ok(3), &b"con"[..]));
            } else {
                assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::Closed);
                assert_eq!(buf.capacity(), 3);
            }
        }
        // For those who close it now.
        // SAFETY: it takes no pointers, and nobody owns that number.
        assert_eq!(unsafe { libc::dup2(well.as_fd().as_raw_fd(), number) }, number);
    });
    child_has_run();
}

/// Would catch: a full disk that is not reported, or a part that is not counted.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported() {
    const NAME: &str = "a_full_disk_is_reported";
    if !in_child(module_path!(), NAME) {
        return;
    }
    run(|| {
        let folder = Folder::new();
        let Some(_mounted) = mount_small(&folder.0) else {
            return skip(NAME, "no file system may be mounted here");
        };
        let port = port(1);
        let file = open(&port, &folder.path("large"));
        let size = Size::new();
        let mut large = size.vec().into_vec();
        large.resize(size.bytes(), 7);
        file.write_at(large, 0).unwrap();
        let packet = next(&port);
        let error = packet.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(error.to_string().contains("make room"), "{error}");
        assert!(packet.bytes > 0 && packet.bytes < size.bytes(), "{}", packet.bytes);
        assert_eq!(file.metadata().unwrap().len(), packet.bytes as u64);
        assert_eq!(was_written(packet).len(), size.bytes());
        assert_eq!(size.alive(), 0);

        // From registered memory: a part, and the rest in vain.
        file.set_len(0).unwrap();
        assert_eq!(next(&port).result, Ok(0));
        let region = Region::new(1, 1 << 20).unwrap();
        let mut slice = region.slice(0).unwrap();
        slice.copy_from(&pattern(0, 1 << 20)).unwrap();
        file.write_at(slice, 100).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::StorageFull);
        assert!(packet.bytes > 0 && packet.bytes < 1 << 16, "{}", packet.bytes);
        let written = fs::read(folder.path("large")).unwrap();
        assert_eq!(written[100..], pattern(0, packet.bytes));
        assert_eq!(was_written(packet).len(), 1 << 20);

        file.allocate(0, 1 << 20).unwrap();
        assert_eq!(next(&port).result.unwrap_err().kind(), ErrorKind::StorageFull);
        // With room again everything goes on.
        file.set_len(0).unwrap();
        assert_eq!(next(&port).result, Ok(0));
        file.write_at("fits", 0).unwrap();
        assert_eq!(next(&port).result, Ok(4));
    });
    child_has_run();
}

/// Mounts a file system with room for 64 KiB, which this process alone sees.
#[cfg(target_os = "linux")]
fn mount_small(at: &Path) -> Option<impl Drop> {
    struct Mounted(std::ffi::CString);
    impl Drop for Mounted {
        fn drop(&mut self) {
            // SAFETY: a string that lives across the call.
            unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
        }
    }
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(at.as_os_str().as_bytes()).expect("a path");
    // SAFETY: the strings live across the calls; the process is this test's own.
    let mounted = unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let (none, root, tmpfs) = (std::ptr::null(), c"/".as_ptr(), c"tmpfs".as_ptr());
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, root, none, private, none.cast()) == 0
            && libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, c"size=64k".as_ptr().cast()) == 0
    };
    mounted.then(|| Mounted(path))
}

/// Would catch: a wait that ends before what it waits for, with files beside sockets on one port.
#[test]
fn files_and_sockets_share_a_port() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("content", &pattern(0, 100_000));
        let port = port(2);
        let file = open(&port, &path);
        let (stream, mut peer) = pair(&port);
        stream.recv(Buf::pooled()).unwrap();
        for block in 0..10 {
            file.read_at(Buf::with_capacity(10_000), block * 10_000).unwrap();
        }
        peer.write_all(b"hello").unwrap();
        let (mut read, mut received) = (0, 0);
        for _ in 0..11 {
            match next(&port).op {
                Op::Read { buf, .. } => read += buf.len(),
                Op::Recv { buf, .. } => received += buf.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((read, received), (100_000, 5));
        assert!(matches!(port.wait_for(Duration::from_millis(1)), Wait::TimedOut));
    });
}

/// Would catch: an operation that is not found where another worker has started it, a file that is
/// closed for some of its workers only, or early, or never.
#[test]
fn workers_of_several_slots_share_a_file() {
    const READS: u64 = 200;
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 100_000);
        let path = folder.file("shared", &content);
        let port = port(2);
        let file = open(&port, &path);
        let (arrived, results) = (Barrier::new(2), Barrier::new(2));
        let ids = Mutex::new(Vec::new());
        // Each is in a handler when the other is: so they hold different slots.
        let worker = |number: u64| {
            assert!(matches!(next(&port).op, Op::Posted(_)));
            arrived.wait();
            let id = file.start().context(Token::from(number)).read_at(vec![0; 10], 0).unwrap();
            ids.lock().unwrap().push(id);
            results.wait();
            if number == 0 {
                let found: Vec<_> = ids.lock().unwrap().iter().map(|id| file.cancel(*id)).collect();
                let all = file.cancel_all();
                // Where the system has them at once, they may be over by now.
                assert!((found == [true; 2] && all == 2) || port.driver() != wharf::Driver::Uring);
            }
            results.wait();
        };
        (0..2).for_each(|number| port.post(Token::from(number)).unwrap());
        thread::scope(|scope| (0..2).for_each(|number| drop(scope.spawn(move || worker(number)))));
        for _ in 0..2 {
            let packet = next(&port);
            assert!(packet.result.is_ok() || packet.result.unwrap_err().is_cancelled());
            assert_eq!(was_read(packet).capacity(), 10);
        }
        let reader = |number: u64| {
            let mut left = 0;
            let mut files = Vec::new();
            loop {
                let packet = match port.wait_for(PATIENCE) {
                    Wait::Packet(packet) => packet,
                    Wait::Closed => break,
                    other => panic!("{other:?}"),
                };
                let from = match packet.op {
                    Op::Posted(_) => {
                        arrived.wait();
                        left = READS;
                        file.clone()
                    }
                    Op::Read { file: from, buf } => {
                        assert_eq!(buf[..], content[..buf.len()]);
                        assert!(from == file && *from.key() == 1);
                        files = vec![from.clone()];
                        from
                    }
                    other => panic!("{other:?}"),
                };
                if left == 0 {
                    results.wait();
                    if number == 0 {
                        files[0].close();
                    }
                    results.wait();
                    for file in files.iter().chain([&from, &file]) {
                        let refused = file.read_at(vec![0; 10], 0).unwrap_err();
                        assert_eq!(refused.error.kind(), ErrorKind::Closed);
                    }
                    break;
                }
                left -= 1;
                from.read_at(vec![0; 1000], 0).unwrap();
            }
        };
        (0..2).for_each(|number| port.post(Token::from(number)).unwrap());
        thread::scope(|scope| (0..2).for_each(|number| drop(scope.spawn(move || reader(number)))));
        assert_eq!(port.handles(), 1);
        drop(file);
        assert_eq!(port.handles(), 0);
    });
}

/// Would catch: a file that the system keeps open for the port when nobody has it any more.
#[cfg(unix)]
#[test]
fn a_file_of_many_operations_is_closed_like_any_other() {
    run(|| {
        let folder = Folder::new();
        let path = folder.file("locked", b"locked");
        let port = port(1);
        let other = fs::File::open(&path).unwrap();
        for count in [1, 63, 64, 65, 300] {
            let mine = fs::File::open(&path).unwrap();
            mine.lock().unwrap();
            let file = File::associate(&port, mine, 1).unwrap();
            for _ in 0..count {
                assert_eq!(read(&port, &file, 0, 10), b"locked");
            }
            assert!(other.try_lock().is_err());
            drop(file);
            until("the lock of the file is gone", || other.try_lock().is_ok());
            other.unlock().unwrap();
        }
    });
}
