//! Whole runs of the program, with what can go wrong: rivals that fail in every way, too little of
//! everything, files that cannot be read or written, and signals. Nothing here depends on how fast
//! the machine is.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longer than anything here takes on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that works: the rival that is built in no time.
fn good_rival() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let harness = Path::new(env!("CARGO_BIN_EXE_wharf-bench-harness"));
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--package", "rival-epoll"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().expect("cargo runs this test").success());
        harness.with_file_name("rival-epoll")
    })
}

/// A folder with rivals of our own making, and with what a run needs. Gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wharf-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for temporary files");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A rival that describes itself, and then does what the script says; `$good` is a server that
    /// works.
    fn rival(&self, name: &str, script: &str) {
        let describe = r#"{"version": "a test", "services": ["echo"]}"#;
        let good = good_rival().display();
        let answer = format!("if [ \"$1\" = --describe ]; then echo '{describe}'; exit; fi");
        self.program(name, &format!("good={good}\n{answer}\n{script}"));
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.file(&format!("rival-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a file of ours");
    }

    /// A run of the rivals here, short and without wharf.
    fn run(&self, rivals: &str, arguments: &[&str]) -> Command {
        let mut command = harness(&["echo", "--candidates", rivals, "--baseline", "good"]);
        command.arg("--rivals").arg(&self.0).arg("--lock").arg(self.file("lock"));
        command.arg("--json").arg(self.file("report.json"));
        command.args(["--quick", "--rounds", "1", "--window", "50", "--warm-up", "10"]);
        command.args(["--set", "connections=4"]).args(arguments);
        command
    }

    fn report(&self) -> Value {
        let text = fs::read_to_string(self.file("report.json")).expect("a report was written");
        serde_json::from_str(&text).expect("it is JSON")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn harness(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharf-bench-harness"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The row of a candidate in the first table.
fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["outcomes"][0]["rows"].as_array().expect("a table");
    rows.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn failure<'a>(report: &'a Value, name: &str) -> &'a str {
    row(report, name)["failure"].as_str().unwrap_or_else(|| panic!("{name} has not failed"))
}

fn good(report: &Value, name: &str) {
    let row = row(report, name);
    assert!(row["failure"].is_null(), "{row}");
    assert!(row["figures"]["cpu_ns"]["median"].as_f64() > Some(0.0), "{row}");
}

/// Waits until something is true.
fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that descend from a process, as far as that can be seen.
fn descendants(of: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").expect("Linux").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // PID (NAME) STATE PARENT ...
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        if let Some(parent) = after.split(' ').nth(1).and_then(|it| it.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![of];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, it)| *it == parent).map(|(pid, _)| pid));
        next += 1;
    }
    found.split_off(1)
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, after)| !after.starts_with('Z'))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), signal).expect("ours");
}

/// Waits for the end of a child that says little.
fn end(mut child: Child) -> Output {
    until("the end", || child.try_wait().expect("ours").is_some());
    child.wait_with_output().expect("it has ended")
}

#[test]
fn each_failure_is_a_row_and_the_others_go_on() {
    let folder = Folder::new("failures");
    folder.rival("good", "exec $good \"$@\"");
    folder.rival("dies", "exec timeout 0.03 $good \"$@\"");
    folder.rival("silent", "sleep 1000");
    folder.rival("babbles", "echo hello; sleep 1000");
    folder.rival("refuses", "echo 'first line' >&2; echo 'no memory for rings' >&2; exit 3");
    folder.program("nameless", "exit 0");

    // Its window is longer than it lives.
    let output = folder
        .run("good,dies,silent,babbles,refuses,nameless", &["--window", "400"])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report = folder.report();
    good(&report, "good");
    // On a busy machine it is dead before somebody connects.
    let words = ["end", "close", "refused", "reset"];
    assert!(words.iter().any(|it| failure(&report, "dies").contains(it)), "{report}");
    assert!(failure(&report, "silent").contains("does not listen"));
    assert_eq!(failure(&report, "babbles"), "does not listen, but says: hello");
    assert_eq!(failure(&report, "refuses"), "does not listen: no memory for rings");
    assert!(failure(&report, "nameless").contains("ended"), "{}", failure(&report, "nameless"));
    let table = text(&output.stdout);
    for name in ["dies", "silent", "babbles", "refuses", "nameless"] {
        assert!(table.contains(&format!("{name}: failed: ")), "{table}");
    }
    assert_eq!(report["interrupted"], false);
}

#[test]
fn a_generator_that_is_not_installed_is_said_so() {
    let folder = Folder::new("no-wrk");
    let describe = r#"{"version": "a test", "services": ["files"]}"#;
    folder.program("good", &format!("echo '{describe}'"));
    let mut run = harness(&["transmit", "--candidates", "good", "--baseline", "good", "--quick"]);
    run.arg("--rivals").arg(&folder.0).arg("--lock").arg(folder.file("lock"));
    run.arg("--json").arg(folder.file("report.json")).env("PATH", &folder.0);
    let output = run.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let expected = "wrk is not installed (Debian: apt-get install wrk)";
    assert_eq!(failure(&folder.report(), "good"), expected);
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let folder = Folder::new("taken");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    // The last option wins.
    folder.rival("taken", &format!("exec $good \"$@\" --tcp {addr}"));
    folder.rival("good", "exec $good \"$@\"");
    let output = folder.run("good,taken", &[]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let report = folder.report();
    good(&report, "good");
    let reason = failure(&report, "taken");
    assert!(reason.contains("AddrInUse") || reason.contains("already in use"), "{reason}");
}

#[test]
fn wrong_echoes_are_a_failure() {
    let folder = Folder::new("wrong");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let mut bytes = [0; 64];
                while stream.read_exact(&mut bytes).is_ok() {
                    bytes[63] ^= 1;
                    if stream.write_all(&bytes).is_err() {
                        break;
                    }
                }
            });
        }
    });
    folder.rival("wrong", &format!("echo listening tcp {addr}; exec sleep 1000"));
    let output = folder.run("wrong", &[]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(failure(&folder.report(), "wrong").contains("wrong echoes"));
}

#[test]
fn wrong_reads_are_a_failure() {
    let folder = Folder::new("reads");
    let reads = |name: &str, script: &str| {
        let describe = r#"{"version": "a test", "services": ["read"]}"#;
        let answer = format!("if [ \"$1\" = --describe ]; then echo '{describe}'; exit; fi");
        folder.program(name, &format!("{answer}\n{script}"));
    };
    reads("good", r#"echo '{"reads": 50, "nanos": 1000000, "cpu_ns": 500000}'"#);
    reads("wrong", "echo 'read 4096 bytes at 0, which say Some(1)' >&2; exit 1");
    reads("nothing", r#"echo '{"reads": 0, "nanos": 1000000, "cpu_ns": 500000}'"#);
    let mut command = harness(&["reads", "--candidates", "good,wrong,nothing", "--quick"]);
    command.arg("--rivals").arg(&folder.0).arg("--lock").arg(folder.file("lock"));
    command.arg("--json").arg(folder.file("report.json")).args(["--rounds", "1"]);
    let output = command.env("TMPDIR", &folder.0).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report = folder.report();
    assert_eq!(row(&report, "good")["figures"]["cpu_ns"]["median"], 10_000.0);
    assert!(failure(&report, "wrong").contains("which say"), "{}", failure(&report, "wrong"));
    assert_eq!(failure(&report, "nothing"), "nothing was read");
}

#[test]
fn a_rival_that_is_not_built_is_not_passed_over() {
    let folder = Folder::new("unbuilt");
    let mut command = harness(&["echo", "--quick", "--no-build", "--candidates", "tokio"]);
    command.arg("--wharf").arg(folder.file("no-wharf")).arg("--lock").arg(folder.file("lock"));
    // Where the harness looks by itself, in a folder without rivals.
    let copy = folder.file("harness");
    fs::copy(env!("CARGO_BIN_EXE_wharf-bench-harness"), &copy).expect("a copy");
    let mut moved = Command::new(&copy);
    let output = moved.args(command.get_args()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("tokio: failed: not built"), "{output:?}");
}

#[test]
fn a_rival_that_does_not_build_fails_alone() {
    let folder = Folder::new("unbuildable");
    // A cargo that builds one of two, as it would go on after the first error.
    let built = good_rival().display();
    let path = folder.file("cargo");
    let script = format!(
        r#"#!/bin/sh
case "$*" in
*rival-monoio*rival-epoll*|*rival-epoll*rival-monoio*)
    echo '{{"target":{{"name":"rival-epoll"}},"executable":"{built}"}}'; exit 101;;
*rival-monoio*) echo 'error: could not compile rival-monoio' >&2; exit 101;;
esac
exit 1
"#
    );
    fs::write(&path, script).expect("a file");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a file of ours");
    let mut command = harness(&["echo", "--candidates", "monoio,epoll", "--quick"]);
    command.args(["--rounds", "1", "--window", "50"]).env("CARGO", &path);
    command.arg("--json").arg(folder.file("report.json")).arg("--lock").arg(folder.file("lock"));
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report = folder.report();
    good(&report, "epoll");
    let reason = failure(&report, "monoio");
    assert_eq!(reason, "does not build: error: could not compile rival-monoio");
}

#[test]
fn too_little_is_said_before_anything_starts() {
    let folder = Folder::new("little");
    folder.rival("good", "touch $0.started; exec $good \"$@\"");
    for (setting, reason) in [
        ("cpus=5000", "it needs 5000 CPUs, and only"),
        ("connections=9000000000", "it needs 9,000,000,200 descriptors, and a process may have"),
    ] {
        let output = folder.run("good", &["--set", setting]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let report = folder.report();
        let found = failure(&report, "good");
        assert!(found.starts_with(reason), "{found}");
    }
    assert!(!folder.file("rival-good.started").exists());
    // One point that is too much does not take the others down.
    let output = folder.run("good", &["--set", "cpus=1,5000"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    good(&folder.report(), "good");
}

#[test]
fn a_report_that_cannot_be_written_is_said_before_anything_starts() {
    let folder = Folder::new("unwritable");
    folder.rival("good", "touch $0.started; exec $good \"$@\"");
    let mut command = folder.run("good", &[]);
    let nowhere = folder.file("no/such/folder/page.html");
    let output = command.arg("--html").arg(&nowhere).output().expect("it runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no/such/folder/page.html: No such file"), "{said}");
    // The other file was not left behind empty.
    assert!(!folder.file("report.json").exists());
    assert!(!folder.file("rival-good.started").exists());
}

#[test]
fn a_page_is_written_beside_the_figures() {
    let folder = Folder::new("page");
    folder.rival("good", "exec $good \"$@\"");
    let page = folder.file("page.html");
    let mut command = folder.run("good", &[]);
    let output = command.arg("--html").arg(&page).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let page = fs::read_to_string(page).expect("it was written");
    assert!(page.contains("<svg") && page.contains("wharf bench echo --set"), "{page}");
}

#[test]
fn broken_reports_are_named() {
    let folder = Folder::new("broken");
    let write = |name: &str, text: &str| {
        let path = folder.file(name);
        fs::write(&path, text).expect("a file");
        path
    };
    folder.rival("good", "exec $good \"$@\"");
    let output = folder.run("good", &[]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let whole = fs::read_to_string(folder.file("report.json")).expect("a report");
    let cases = [
        (write("half.json", &whole[..whole.len() / 2]), "not a report of this program"),
        (write("other.json", "{\"a\": 1}"), "not a report of this program"),
        (write("empty.json", ""), "not a report of this program"),
        (
            write("newer.json", &whole.replacen("\"format\": 1", "\"format\": 99", 1)),
            "a report of format 99",
        ),
        (folder.file("missing.json"), "No such file"),
    ];
    let report = folder.file("report.json");
    for (path, reason) in cases {
        for arguments in [vec!["report"], vec!["compare", report.to_str().expect("ASCII")]] {
            let output = harness(&arguments).arg(&path).output().expect("it runs");
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(path.to_str().expect("ASCII")), "{said}");
            assert!(said.contains(reason), "{said}");
        }
    }
    // With itself, there is nothing but noise.
    let output = harness(&["compare"]).arg(&report).arg(&report).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("+0.0 %  inside the noise"), "{output:?}");
}

#[test]
fn two_runs_at_once_are_refused() {
    let folder = Folder::new("twice");
    folder.rival("good", "exec $good \"$@\"");
    let long = ["--rounds", "1000", "--set", "size=64"];
    let first = folder.run("good", &long).spawn().expect("it runs");
    until("the lock", || fs::read_to_string(folder.file("lock")).is_ok_and(|it| !it.is_empty()));
    let output = folder.run("good", &[]).output().expect("it runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("another run goes on (process {})", first.id())), "{said}");
    let waiting = folder.run("good", &["--wait"]).spawn().expect("it runs");
    signal(&first, Signal::SIGTERM);
    assert_eq!(end(first).status.code(), Some(130));
    assert_eq!(end(waiting).status.code(), Some(0));
    good(&folder.report(), "good");
}

#[test]
fn an_interrupt_writes_what_there_is_and_leaves_nobody_behind() {
    let folder = Folder::new("interrupt");
    folder.rival("good", "exec $good \"$@\"");
    let mut run = folder.run("good", &["--set", "size=64,65,66,67,68,69,70,71,72"]);
    let child = run.arg("--html").arg(folder.file("page.html")).spawn().expect("it runs");
    // The first table is there, and somebody is at work on another.
    until("a table", || folder.file("report.json").exists());
    let mut family = Vec::new();
    until("servers", || {
        family = descendants(child.id());
        !family.is_empty()
    });
    signal(&child, Signal::SIGINT);
    let output = end(child);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let report = folder.report();
    assert_eq!(report["interrupted"], true);
    good(&report, "good");
    assert!(folder.file("page.html").exists());
    until("nobody", || !family.iter().any(|it| alive(*it)));
}

#[test]
fn nobody_outlives_a_run_that_is_killed() {
    let folder = Folder::new("killed");
    folder.rival("good", "exec $good \"$@\"");
    let mut run = folder.run("good", &["--set", "size=64,65,66,67,68,69,70,71,72"]);
    let child = run.spawn().expect("it runs");
    let mut family = Vec::new();
    until("a server and a generator", || {
        family = descendants(child.id());
        family.len() >= 2
    });
    signal(&child, Signal::SIGKILL);
    end(child);
    until("nobody", || !family.iter().any(|it| alive(*it)));
}

#[test]
fn wrong_usage_is_two() {
    for arguments in [
        &["ehco"][..],
        &["--explain", "nothing"],
        &["echo", "--set", "speed=1"],
        &["echo", "--rounds", "0"],
        &["compare", "one.json"],
    ] {
        let output = harness(arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
    let output = harness(&["--no-build", "--candidates", "nobody"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no candidate is called nobody; there are wharf, "));
}
