//! The servers that are compared, and how each of them is started.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Failure;
use crate::child::{Running, Stop};
use crate::launch;

/// The rivals that ought to be there. One that is not built is reported, not passed over. Others
/// are found by their name, `rival-*`, in the same folder.
const RIVALS: &[&str] = &["tokio", "compio", "monoio", "epoll", "uring"];

/// The name of our own server among the candidates.
pub const WHARF: &str = "wharf";

/// How long a server may take until it listens.
const START_MAX: Duration = Duration::from_secs(5);

/// What a server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Echo whatever arrives.
    Echo,
    /// Messages of a fixed size, whose first byte says for how long the handler sleeps.
    Block,
}

/// A server that can be started.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What it is called in the tables.
    pub name: String,
    program: PathBuf,
    /// The threads that wharf may block; those that run at the same time are given per start.
    wharf_workers: Option<usize>,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The harness itself, or a program that has its helpers.
    pub harness: PathBuf,
    /// The folder with the programs called `rival-*`.
    pub rivals: PathBuf,
    /// The program with wharf's servers.
    pub wharf: PathBuf,
}

impl Places {
    /// Everything where cargo puts it.
    pub fn find() -> Result<Self, Failure> {
        let harness = std::env::current_exe()?;
        let rivals = harness.parent().map(Path::to_owned).unwrap_or_default();
        // bench/target/release -> target/release
        let root = rivals.ancestors().nth(3).unwrap_or(&rivals);
        let wharf = root.join("target/release/wharf");
        Ok(Self { harness, rivals, wharf })
    }

    /// All candidates, wharf first.
    #[must_use]
    pub fn candidates(&self, wharf_workers: usize) -> Vec<Candidate> {
        let wharf = Candidate {
            name: WHARF.to_owned(),
            program: self.wharf.clone(),
            wharf_workers: Some(wharf_workers),
        };
        let known = RIVALS.iter().copied().map(str::to_owned);
        let rivals = known.chain(self.others()).map(|name| Candidate {
            program: self.rivals.join(format!("rival-{name}")),
            name,
            wharf_workers: None,
        });
        std::iter::once(wharf).chain(rivals).collect()
    }

    fn others(&self) -> BTreeSet<String> {
        let Ok(files) = self.rivals.read_dir() else { return BTreeSet::new() };
        files
            .filter_map(|file| {
                let name = file.ok()?.file_name().into_string().ok()?;
                let rival = name.strip_prefix("rival-")?;
                // Cargo puts lists of dependencies there too, and they have an extension.
                let other = !rival.contains('.') && !RIVALS.contains(&rival);
                other.then(|| rival.to_owned())
            })
            .collect()
    }
}

/// A server that takes connections. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub running: Running,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Candidate {
    /// What the server is built on and the version, when it says so.
    #[must_use]
    pub fn version(&self, places: &Places, stop: &Stop) -> Option<String> {
        const ANSWER_MAX: Duration = Duration::from_secs(1);
        let mut command = launch::command(&places.harness, &[0], &self.program);
        command.arg("--version");
        let version = Running::start(command, stop).ok()?.line(ANSWER_MAX).ok()?;
        Some(version.trim().to_owned()).filter(|it| !it.is_empty())
    }

    /// Starts the server on the given CPUs, with as many threads serving at the same time.
    pub fn start(
        &self,
        places: &Places,
        cpus: &[usize],
        service: Service,
        size: usize,
        stop: &Stop,
    ) -> Result<Server, Failure> {
        if !self.program.is_file() {
            return Err(Failure(format!("not built: no {}", self.program.display())));
        }
        let threads = cpus.len().to_string();
        let mut command = launch::command(&places.harness, cpus, &self.program);
        match self.wharf_workers {
            Some(workers) => {
                command.args(["serve", "--tcp", "127.0.0.1:0", "--concurrency", &threads]);
                command.args(["--workers", &workers.max(cpus.len()).to_string()]);
            }
            None => {
                command.args(["--tcp", "127.0.0.1:0", "--threads", &threads]);
                command.args(["--size", &size.to_string()]);
            }
        }
        command.arg("--service").arg(match service {
            Service::Echo => "echo",
            Service::Block => "block",
        });
        let mut running = Running::start(command, stop)?;
        let line = running
            .line(START_MAX)
            .map_err(|Failure(reason)| Failure(format!("does not listen: {reason}")))?;
        let addr = line.strip_prefix("listening tcp ").and_then(|addr| addr.trim().parse().ok());
        let addr = addr.ok_or_else(|| Failure(format!("does not listen, but says: {line}")))?;
        Ok(Server { running, addr })
    }
}
