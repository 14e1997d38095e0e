//! Becomes Debian's nginx, which serves the files of a folder with one worker for each thread that
//! is asked for. Its own documentation's tuning: `sendfile` and `tcp_nopush`, a listening socket
//! for each worker (`reuseport`), no access log, and connections that are kept.

#![forbid(unsafe_code)]

use std::env::args;
use std::error::Error;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use socket2::{Domain, Protocol, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where the program may be; /usr/sbin is not on everybody's PATH.
const PROGRAMS: [&str; 3] = ["nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"];

/// How long nginx may take until it listens.
const START_MAX: Duration = Duration::from_secs(4);

struct Options {
    tcp: SocketAddr,
    threads: usize,
    files: PathBuf,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<_> = args().skip(1).collect();
    match &arguments[..] {
        [describe] if describe == "--describe" => {
            // Where it is not installed it takes part all the same, and fails with the remedy.
            let version = version().unwrap_or_else(|| "nginx, not installed".to_owned());
            println!(r#"{{"version":"{version}","services":["files"]}}"#);
            Ok(())
        }
        [announce, addr] if announce == "--announce" => announce_when_ready(addr.parse()?),
        _ => become_nginx(&read(&arguments)?),
    }
}

fn read(arguments: &[String]) -> Result<Options> {
    let mut options =
        Options { tcp: SocketAddr::from(([127, 0, 0, 1], 0)), threads: 1, files: PathBuf::new() };
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name == "--tcp" => options.tcp = value.parse()?,
            [name, value] if name == "--threads" => options.threads = value.parse()?,
            [name, value] if name == "--files" => options.files = value.into(),
            [name, _] if name == "--service" || name == "--size" => {}
            _ => return Err(format!("not understood: {}", pair.join(" ")).into()),
        }
    }
    if options.files.as_os_str().is_empty() {
        return Err("usage: --tcp ADDR --threads N --files DIR | --describe".into());
    }
    Ok(options)
}

/// What nginx says that it is.
fn version() -> Option<String> {
    let output = PROGRAMS.iter().find_map(|it| Command::new(it).arg("-v").output().ok())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = said.lines().find_map(|line| line.split_once("nginx/"))?.1;
    Some(format!("nginx {}", version.trim()))
}

fn become_nginx(options: &Options) -> Result<()> {
    // nginx's first process ends its workers when it is asked to end, and not when it is killed.
    let parent = getppid();
    set_pdeathsig(Signal::SIGTERM)?;
    if getppid() != parent {
        return Err("whoever started this is gone already".into());
    }
    let addr = keep_port(options.tcp)?;
    let folder = std::env::temp_dir().join(format!("wharf-bench-nginx-{}", user()?));
    fs::create_dir_all(&folder)?;
    let path = folder.join("nginx.conf");
    fs::write(&path, configuration(&folder, addr, options)?)?;
    Command::new(std::env::current_exe()?)
        .args(["--announce", &addr.to_string()])
        .stdin(Stdio::null())
        .spawn()?;
    let mut last = None;
    for program in PROGRAMS {
        last = Some(Command::new(program).arg("-p").arg(&folder).arg("-c").arg(&path).exec());
        if last.as_ref().is_some_and(|it| it.kind() != std::io::ErrorKind::NotFound) {
            break;
        }
    }
    Err(match last {
        Some(error) if error.kind() != std::io::ErrorKind::NotFound => {
            format!("cannot run nginx: {error}").into()
        }
        _ => "nginx is not installed (Debian: apt-get install nginx-light)".into(),
    })
}

/// The number of the user who runs this.
fn user() -> Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// Takes a port that stays ours until this process ends: nginx's sockets share it, and this one
/// never listens.
fn keep_port(addr: SocketAddr) -> Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    let addr = socket.local_addr()?.as_socket().ok_or("no address of the internet")?;
    socket.set_cloexec(false)?;
    let _ = socket.into_raw_fd();
    Ok(addr)
}

fn configuration(folder: &Path, addr: SocketAddr, options: &Options) -> Result<String> {
    let quoted = |path: &Path| {
        let path = path.to_str().ok_or("a path that is no text")?;
        let plain = !path.contains(['"', '\\', '$', '\n']);
        plain.then(|| format!("\"{path}\"")).ok_or("a path that nginx would misunderstand")
    };
    // Started by root, its workers are to be able to read what root has written.
    let user = if user()? == 0 { "user root;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|it| format!("    {it}_temp_path {it};\n"))
        .collect();
    Ok(format!(
        "daemon off;
{user}
worker_processes {threads};
error_log stderr warn;
pid {pid};
events {{
    worker_connections 16384;
}}
http {{
{temporary}    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    server {{
        listen {addr} reuseport;
        root {files};
    }}
}}
",
        threads = options.threads,
        pid = quoted(&folder.join("nginx.pid"))?,
        files = quoted(&options.files)?,
    ))
}

/// Says that nginx listens, when it does.
fn announce_when_ready(addr: SocketAddr) -> Result<()> {
    let nginx = getppid();
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect(addr).is_err() {
        if getppid() != nginx || Instant::now() >= deadline {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    println!("listening tcp {addr}");
    Ok(())
}
