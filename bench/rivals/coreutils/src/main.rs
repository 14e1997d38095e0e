//! Becomes cp or dd of GNU coreutils, which copies a file.

#![forbid(unsafe_code)]

use std::env::args;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<_> = args().skip(1).collect();
    if arguments == ["--describe"] {
        let version = version().unwrap_or_else(|| "cp, not installed".to_owned());
        println!(r#"{{"version":"{version}","services":["copy:cp","copy:dd"]}}"#);
        return ExitCode::SUCCESS;
    }
    eprintln!("{}", become_it(&arguments));
    ExitCode::FAILURE
}

fn version() -> Option<String> {
    let output = Command::new("cp").arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(said.lines().next()?.trim_start_matches("cp ").replace(['(', ')', '"'], ""))
}

/// Returns only to say why not.
fn become_it(arguments: &[String]) -> String {
    let (mut service, mut files, mut sync) = ("", Vec::new(), false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match &**argument {
            "--service" => service = rest.next().map_or("", |it| it),
            "--tcp" | "--threads" | "--size" => drop(rest.next()),
            "--sync" => sync = true,
            file => files.push(file),
        }
    }
    let [from, to] = files[..] else { return "usage: --service SERVICE FROM TO [--sync]".into() };
    let mut command = match service {
        "copy:dd" => {
            let mut dd = Command::new("dd");
            dd.args([&format!("if={from}"), &format!("of={to}"), "bs=1M", "status=none"]);
            dd.args(sync.then_some("conv=fsync"));
            dd
        }
        "copy:cp" if sync => {
            // cp has no option for it; this is the command for that.
            let mut both = Command::new("sh");
            both.args(["-c", r#"cp -p "$1" "$2" && sync "$2""#, "sh", from, to]);
            both
        }
        "copy:cp" => {
            let mut cp = Command::new("cp");
            cp.args(["-p", from, to]);
            cp
        }
        other => return format!("not offered: {other}"),
    };
    let error = command.exec();
    format!("cannot run {}: {error}", command.get_program().display())
}
