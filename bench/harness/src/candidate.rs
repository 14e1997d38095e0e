//! The servers that are compared, and how each of them is started.
//!
//! A *program* offers *services*. Where it offers one in several *designs* (`datagrams:polled`,
//! `datagrams:event`), each of them is a candidate of its own, called `PROGRAM:DESIGN`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Failure;
use crate::child::{Running, Stop};
use crate::launch;
use crate::make::{Sources, names};

/// The name of our own program among the candidates.
pub const WHARF: &str = "wharf";

/// The services that wharf's program offers, and what it is started with for each. What it has no
/// command for, `rival-wharf` offers. Design `epoll` is the same on the driver for machines that
/// refuse io_uring; `unwatched` has no worker beyond those that may run: nobody keeps watch.
const WHARF_SERVICES: &[(&str, &[&str])] = &[
    ("echo", &["serve", "--tcp", "127.0.0.1:0", "--service", "echo"]),
    ("block", &["serve", "--tcp", "127.0.0.1:0", "--service", "block"]),
    ("echo:epoll", &["serve", "--tcp", "127.0.0.1:0", "--service", "echo"]),
    ("echo:unwatched", &["serve", "--tcp", "127.0.0.1:0", "--service", "echo"]),
    ("block:epoll", &["serve", "--tcp", "127.0.0.1:0", "--service", "block"]),
    ("work", &["serve", "--tcp", "127.0.0.1:0", "--service", "work"]),
    // The scenario adds the folder.
    ("files", &["serve", "--tcp", "127.0.0.1:0"]),
    ("files:epoll", &["serve", "--tcp", "127.0.0.1:0"]),
    ("flood:separate", FLOODED),
    ("flood:one-port", FLOODED),
    ("copy", &["copy"]),
];

/// Two kinds of service. Whether they share a port the scenario says.
const FLOODED: &[&str] =
    &["serve", "--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--service", "work"];

/// The services of wharf's example `datagrams`: a program of its own, built beside the other, that
/// ends by itself.
const EXAMPLE_SERVICES: &[(&str, &[&str])] = &[
    ("datagrams:rio-polled", &["rio-polled"]),
    ("datagrams:rio-polled:epoll", &["rio-polled"]),
    ("datagrams:rio-event", &["rio-event"]),
    ("datagrams:rio-port", &["rio-port"]),
    ("datagrams:rio-port-many", &["rio-port-many"]),
    ("datagrams:blocking", &["blocking"]),
    ("datagrams:port", &["port"]),
    ("datagrams:port-many", &["port-many"]),
    ("datagrams-rate:rio-polled", &["rio-polled"]),
    ("datagrams-rate:rio-polled-coalesced", &["rio-polled", "--coalesce"]),
    ("datagrams-rate:port", &["port"]),
];

/// How long a server may take until it is ready.
const START_MAX: Duration = Duration::from_secs(5);

/// How long a server may take to say what it is.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long a server may take for its last words.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// A program with servers.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it is called.
    pub name: String,
    /// What it is built on, with the version.
    pub version: Option<String>,
    /// The services that it offers, each perhaps with `:DESIGN`.
    pub services: Vec<String>,
    /// Why it cannot be used.
    pub failure: Option<Failure>,
    path: PathBuf,
}

/// One that takes part: a program, in one of its designs.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What it is called in the tables.
    pub name: String,
    /// What it is built on.
    pub version: Option<String>,
    /// Why it cannot take part.
    pub failure: Option<Failure>,
    /// The service with its design, as its program knows it.
    service: String,
    path: PathBuf,
    wharf: bool,
}

/// What a rival answers to `--describe`.
#[derive(Deserialize)]
struct Description {
    version: String,
    services: Vec<String>,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The harness itself, or a program that has its helpers.
    pub harness: PathBuf,
    /// The folder with the programs called `rival-*`.
    pub rivals: PathBuf,
    /// The sources of the rivals, if they are there.
    pub sources: Option<Sources>,
    /// The program with wharf's servers.
    pub wharf: PathBuf,
}

impl Places {
    /// Everything where cargo puts it.
    pub fn find() -> Result<Self, Failure> {
        let harness = std::env::current_exe()?;
        let rivals = harness.parent().map(Path::to_owned).unwrap_or_default();
        let sources = Sources::find(&harness);
        // bench/target/release -> target/release
        let root = rivals.ancestors().nth(3).unwrap_or(&rivals);
        let wharf = root.join("target/release/wharf");
        Ok(Self { harness, rivals, sources, wharf })
    }

    /// The names of all rivals: those that have sources, and those that are built. So one that is
    /// not built is reported, and not passed over.
    #[must_use]
    pub fn rivals(&self) -> Vec<String> {
        let mut found: BTreeSet<_> = self.sources.iter().flat_map(Sources::rivals).collect();
        for file in names(&self.rivals) {
            // Cargo puts lists of dependencies there too, and they have an extension.
            if let Some(name) = file.strip_prefix("rival-").filter(|it| !it.contains('.')) {
                found.insert(name.to_owned());
            }
        }
        found.remove(WHARF);
        found.into_iter().collect()
    }

    /// Asks those programs what they offer that are wanted and not known to have failed; wharf is
    /// the first.
    #[must_use]
    pub fn programs(
        &self,
        failed: &BTreeMap<String, Failure>,
        wanted: impl Fn(&str) -> bool,
        stop: &Stop,
    ) -> Vec<Program> {
        let names = std::iter::once(WHARF.to_owned()).chain(self.rivals());
        let ask = |name: String| match failed.get(&name) {
            Some(failure) => Program {
                name,
                version: None,
                services: Vec::new(),
                failure: Some(failure.clone()),
                path: PathBuf::new(),
            },
            None if name == WHARF => self.wharf(stop),
            None => self.rival(name, stop),
        };
        names.filter(|it| wanted(it)).map(ask).collect()
    }

    fn wharf(&self, stop: &Stop) -> Program {
        let version = self.ask(&self.wharf, "--version", stop);
        let own = WHARF_SERVICES.iter().chain(EXAMPLE_SERVICES);
        let mut services: Vec<_> = own.map(|(it, _)| (*it).to_owned()).collect();
        // In a folder of somebody else's rivals it may be missing.
        let more = self.rivals.join(format!("rival-{WHARF}"));
        let described = match more.is_file() || self.sources.is_some() {
            true => self.describe(&more, stop).map(|it| services.extend(it.services)),
            false => Ok(()),
        };
        Program {
            name: WHARF.to_owned(),
            version: version.as_ref().ok().map(|it| it.trim().to_owned()),
            services,
            failure: version.err().or_else(|| described.err()),
            path: self.wharf.clone(),
        }
    }

    fn rival(&self, name: String, stop: &Stop) -> Program {
        let path = self.rivals.join(format!("rival-{name}"));
        match self.describe(&path, stop) {
            Ok(Description { version, services }) => {
                Program { name, version: Some(version), services, failure: None, path }
            }
            Err(failure) => {
                Program { name, version: None, services: Vec::new(), failure: Some(failure), path }
            }
        }
    }

    fn describe(&self, rival: &Path, stop: &Stop) -> Result<Description, Failure> {
        let line = self.ask(rival, "--describe", stop)?;
        serde_json::from_str(&line)
            .map_err(|error| Failure(format!("does not describe itself: {error}")))
    }

    fn ask(&self, program: &Path, question: &str, stop: &Stop) -> Result<String, Failure> {
        if !program.is_file() {
            return Err(Failure(format!("not built: no {}", program.display())));
        }
        let mut command = launch::command(&self.harness, &[], program);
        command.arg(question);
        Running::start(command, stop)?.line(ANSWER_MAX)
    }
}

impl Program {
    /// Those that can take part where this service is needed. One of which nobody knows what it
    /// offers (it is not built) counts, so that it is reported.
    #[must_use]
    pub fn candidates(&self, service: &str) -> Vec<Candidate> {
        let candidate = |service: &str, design: Option<&str>| Candidate {
            name: match design {
                Some(design) => format!("{}:{design}", self.name),
                None => self.name.clone(),
            },
            version: self.version.clone(),
            failure: self.failure.clone(),
            service: service.to_owned(),
            path: self.path.clone(),
            wharf: self.name == WHARF,
        };
        if self.failure.is_some() {
            return vec![candidate(service, None)];
        }
        let offered = |entry: &String| {
            let (offered, design) = match entry.split_once(':') {
                Some((offered, design)) => (offered, Some(design)),
                None => (&**entry, None),
            };
            (offered == service).then(|| candidate(entry, design))
        };
        self.services.iter().filter_map(offered).collect()
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

/// How a server is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The CPUs that it may use, as the system numbers them. It has as many threads that serve at
    /// the same time.
    pub cpus: &'a [usize],
    /// Wharf's threads, of which only as many serve at the same time as there are CPUs.
    pub wharf_workers: usize,
    /// The size of a message, for services that know messages.
    pub size: usize,
}

impl Candidate {
    /// Starts the server, with more arguments when it needs them.
    pub fn serve(
        &self,
        places: &Places,
        start: Start<'_>,
        more: &[&str],
        stop: &Stop,
    ) -> Result<Server, Failure> {
        let mut running = self.start(places, start, more, stop)?;
        let addr = listening(&mut running)?;
        Ok(Server { running, addr })
    }

    /// Starts the program, with more arguments when it needs them. For scenarios that have no
    /// connections; others `serve`.
    pub fn start(
        &self,
        places: &Places,
        start: Start<'_>,
        more: &[&str],
        stop: &Stop,
    ) -> Result<Running, Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let threads = start.cpus.len();
        let size = start.size.to_string();
        let known = |services: &[(&str, &'static [&'static str])]| {
            let found = services.iter().find(|(service, _)| *service == self.service);
            found.filter(|_| self.wharf).map(|(_, args)| *args)
        };
        let (own, example) = (known(WHARF_SERVICES), known(EXAMPLE_SERVICES));
        let path = match (own, example) {
            (None, None) if self.wharf => places.rivals.join(format!("rival-{WHARF}")),
            (None, Some(_)) => self.path.with_file_name("examples").join("datagrams"),
            _ => self.path.clone(),
        };
        let mut command = launch::command(&places.harness, start.cpus, &path);
        if self.wharf && self.service.ends_with(":epoll") {
            command.env("WHARF_DRIVER", "epoll");
        }
        if let Some(args) = example {
            command.args(args).arg("--json");
        } else if let Some(args) = own {
            let spare = if self.service.ends_with(":unwatched") { 0 } else { start.wharf_workers };
            let workers = spare.max(threads).to_string();
            command.args(args).arg("--json");
            if args[0] == "serve" {
                command.args(["--concurrency", &threads.to_string(), "--workers", &workers]);
                command.args(["--size", &size]);
            }
        } else {
            command.args(["--tcp", "127.0.0.1:0", "--service", &self.service]);
            command.args(["--threads", &threads.to_string(), "--size", &size]);
        }
        command.args(more);
        Running::start(command, stop)
    }
}

/// Where a server listens, by the next line that it says.
fn listening(running: &mut Running) -> Result<SocketAddr, Failure> {
    let line =
        running.line(START_MAX).map_err(|reason| Failure(format!("does not listen: {reason}")))?;
    let mut words = line.split_whitespace();
    let addr = match (words.next(), words.next(), words.next()) {
        (Some("listening"), Some("tcp" | "udp"), Some(addr)) => addr.parse().ok(),
        _ => None,
    };
    addr.ok_or_else(|| Failure(format!("does not listen, but says: {line}")))
}

impl Server {
    /// Where else it listens.
    pub fn next_addr(&mut self) -> Result<SocketAddr, Failure> {
        listening(&mut self.running)
    }

    /// Asks the server to end, and returns how often it entered the kernel, if it counts that.
    #[must_use]
    pub fn end(self) -> Option<u64> {
        /// The part of the last words that matters here.
        #[derive(Deserialize)]
        struct Entries {
            kernel_entries: Option<u64>,
        }
        self.last_words::<Entries>()?.kernel_entries
    }

    /// Asks the server to end, and returns what it says then, if that can be understood.
    #[must_use]
    pub fn last_words<T: DeserializeOwned>(mut self) -> Option<T> {
        self.running.ask_to_end();
        let mut last = None;
        while let Ok(line) = self.running.line(LAST_WORDS_MAX) {
            last = Some(line);
        }
        serde_json::from_str(&last?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(services: &[&str], failure: Option<&str>) -> Program {
        Program {
            name: "one".to_owned(),
            version: None,
            services: services.iter().map(|&it| it.to_owned()).collect(),
            failure: failure.map(|it| Failure(it.to_owned())),
            path: PathBuf::new(),
        }
    }

    fn names(candidates: &[Candidate]) -> Vec<&str> {
        candidates.iter().map(|it| &*it.name).collect()
    }

    #[test]
    fn each_design_is_a_candidate() {
        let program = program(&["echo", "datagrams:polled", "datagrams:event"], None);
        assert_eq!(names(&program.candidates("echo")), ["one"]);
        let found = program.candidates("datagrams");
        assert_eq!(names(&found), ["one:polled", "one:event"]);
        assert_eq!(found[0].service, "datagrams:polled");
        assert!(program.candidates("block").is_empty());
    }

    #[test]
    fn wharf_offers_each_service_once() {
        let names: BTreeSet<_> = WHARF_SERVICES.iter().map(|(service, _)| service).collect();
        assert_eq!(names.len(), WHARF_SERVICES.len());
    }

    #[test]
    fn one_that_failed_is_not_passed_over() {
        let program = program(&[], Some("not built"));
        assert_eq!(names(&program.candidates("echo")), ["one"]);
    }
}
