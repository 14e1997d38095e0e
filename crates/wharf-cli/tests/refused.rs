//! The program on machines that refuse io_uring: it starts on epoll, says why, and works.
//!
//! A server is started through this test's own program, which gives something up for good before
//! it becomes the server.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Child, Command, Output, Stdio},
    thread,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, kill_process, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::Value;

const ROLE: &str = "WHARF_TEST_ROLE";
const PROGRAM: &str = env!("CARGO_BIN_EXE_wharf");
/// io_uring_setup, on every processor.
const IO_URING_SETUP: i64 = 425;

/// Says that a test did not run, where the harness does not swallow it.
fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {name}: {reason}");
}

/// Refuses io_uring_setup from now on, as a container's profile does.
fn refuse_io_uring() {
    let filter = SeccompFilter::new(
        [(IO_URING_SETUP, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(1),
        env::consts::ARCH.try_into().expect("a processor that it knows"),
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    apply_filter(&program).expect("it is put in force");
}

/// In the child that `launch` has started: gives something up, and becomes the program.
fn become_program() {
    let Ok(role) = env::var(ROLE) else { return };
    let (role, arguments) = role.split_once(' ').expect("a role and arguments");
    let mut command = Command::new(env::var_os("WHARF_TEST_PROGRAM").expect("a program"));
    command.args(arguments.split(' ')).env_remove(ROLE);
    match role {
        "refused" => refuse_io_uring(),
        "poor" => {
            let limit = Some(64 << 10);
            setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit })
                .expect("less than before");
            // An id that nobody else uses: the memory of all processes of a user counts.
            let id = 20_000 + std::process::id() % 40_000;
            command.uid(id).gid(id);
        }
        other => panic!("no such role: {other}"),
    }
    panic!("not started: {}", command.exec());
}

/// The program, with less than others have. `test` calls `become_program` first.
fn launch(test: &str, role: &str, arguments: &str, program: &str) -> Running {
    let mut command = Command::new(env::current_exe().expect("the path of this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(ROLE, format!("{role} {arguments}")).env("WHARF_TEST_PROGRAM", program);
    command.env_remove("WHARF_DRIVER").env_remove("WHARF_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running(command.spawn().expect("it starts"))
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Does nothing to a child that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn load(address: &str) -> Output {
    let load = ["load", "tcp", address, "--connections", "40", "--size", "1500"];
    let more = ["--depth", "3", "--seconds", "0.5", "--verify", "--json"];
    Command::new(PROGRAM).args(load).args(more).output().expect("it starts")
}

/// Has a server serve, with every byte compared, and end. Returns what it said.
fn serves(mut server: Running) -> String {
    let out = server.0.stdout.take().expect("piped");
    let mut err = server.0.stderr.take().expect("piped");
    let said = thread::spawn(move || {
        let mut said = String::new();
        err.read_to_string(&mut said).expect("text");
        said
    });
    // The harness of this test has its say before it becomes the server.
    let address = BufReader::new(out).lines().find_map(|line| {
        let line = line.expect("text");
        line.split_once("listening tcp ").map(|(_, address)| address.to_owned())
    });
    let Some(address) = address else {
        let _ = server.0.wait();
        panic!("it does not listen: {}", said.join().expect("no panic"));
    };
    let output = load(&address);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(output.status.success(), "{output:?}");
    assert!(report["requests"].as_u64() > Some(0), "{report}");
    assert_eq!((&report["errors"], &report["mismatches"]), (&0.into(), &0.into()), "{report}");
    kill_process(Pid::from_child(&server.0), Signal::TERM).expect("our own child");
    let status = server.0.wait().expect("our own child");
    let said = said.join().expect("no panic");
    assert!(status.success(), "{status}: {said}");
    said
}

/// Would catch: a server that does not start where a container refuses io_uring, that does not say
/// why it is on epoll, or that garbles what it echoes.
#[test]
fn a_server_works_where_io_uring_is_refused() {
    become_program();
    let test = "a_server_works_where_io_uring_is_refused";
    let said = serves(launch(test, "refused", "serve --tcp 127.0.0.1:0", PROGRAM));
    assert!(said.contains("using epoll") && said.contains("seccomp"), "{said}");
    // Who insists on io_uring is told why it cannot be had.
    let arguments = "serve --tcp 127.0.0.1:0 --driver uring";
    let mut refused = launch(test, "refused", arguments, PROGRAM);
    let mut said = String::new();
    refused.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(!refused.0.wait().expect("our own child").success(), "{said}");
    assert!(said.contains("seccomp"), "{said}");
}

/// Would catch: the same where an unprivileged user may lock 64 KiB of memory; a server that
/// gives up io_uring although smaller rings can be had.
#[test]
fn a_server_works_where_little_memory_may_be_locked() {
    become_program();
    let test = "a_server_works_where_little_memory_may_be_locked";
    if !geteuid().is_root() {
        return skip(test, "only root can become somebody else, whose memory is counted");
    }
    // Where the other user may come to.
    let folder = env::temp_dir().join(format!("wharf-refused-{}", std::process::id()));
    // What a process of the same number has left that was killed.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("our own folder");
    let program = folder.join("wharf");
    fs::copy(PROGRAM, &program).expect("a copy");
    let program = program.to_str().expect("text");
    let serve = |rest: &str| {
        let arguments = format!("serve --tcp 127.0.0.1:0 {rest}");
        serves(launch(test, "poor", &arguments, program))
    };
    let small = serve("--concurrency 3");
    let large = serve("--concurrency 64");
    fs::remove_dir_all(&folder).expect("our own folder");
    assert!(!small.contains("using epoll") && small.contains("RLIMIT_MEMLOCK"), "{small}");
    assert!(large.contains("using epoll") && large.contains("RLIMIT_MEMLOCK"), "{large}");
}

/// Would catch: a doctor who does not say what a port would be carried by, or why.
#[test]
fn the_doctor_says_why_it_is_epoll() {
    become_program();
    let test = "the_doctor_says_why_it_is_epoll";
    for arguments in ["doctor", "doctor --json"] {
        let mut doctor = launch(test, "refused", arguments, PROGRAM);
        let mut said = String::new();
        doctor.0.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(doctor.0.wait().expect("our own child").success(), "{said}");
        assert!(said.contains("epoll") && said.contains("a seccomp filter"), "{said}");
        if arguments.ends_with("--json") {
            let report: Value =
                serde_json::from_str(&said[said.find('{').expect("JSON")..]).expect("JSON");
            assert_eq!(report["driver"], "epoll");
            let registered = &report["registered_io"];
            assert_eq!(registered["driver"], "epoll");
            for reason in [&report["reason"], &registered["reason"]] {
                assert!(reason.as_str().expect("text").contains("io_uring is refused"), "{reason}");
            }
        } else {
            assert!(said.contains("wharf::rio   epoll: "), "{said}");
        }
    }
}

/// Would catch: an option that is not heeded, and a name that is taken for another.
#[test]
fn the_driver_can_be_chosen() {
    let doctor = |driver: &str| {
        let mut command = Command::new(PROGRAM);
        let output = command.args(["doctor", "--json"]).env("WHARF_DRIVER", driver).output();
        String::from_utf8(output.expect("it starts").stdout).expect("text")
    };
    assert!(doctor("epoll").contains("WHARF_DRIVER asks for it"));
    assert!(doctor("eepoll").contains("WHARF_DRIVER: invalid"));
    let serve = ["serve", "--tcp", "127.0.0.1:0", "--driver", "eepoll"];
    let output = Command::new(PROGRAM).args(serve).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    for driver in ["epoll", "auto"] {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--tcp", "127.0.0.1:0", "--driver", driver]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
        let said = serves(Running(command.spawn().expect("it starts")));
        assert!(driver == "auto" || !said.contains("using epoll"), "{said}");
    }
}
