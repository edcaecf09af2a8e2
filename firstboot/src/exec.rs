//! The only place of the node that starts processes: a failure shows the command line, the decoded status and the end of stderr.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use layers::{Context, Error, Fault, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::sys;

/// Runs a command to its end without stdin and returns its output; any other status than 0 is an error.
pub fn run(command: &mut Command) -> Result<Output> {
    let line = show(command);
    let output = command.stdin(Stdio::null()).output().fault(Fault::Environment, || format!("starting `{line}`"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::environment(format!("running `{line}`: {}{}", status(output.status), tail(&output.stderr))))
}

/// Runs a command to its end between two files; any other status than 0 is an error.
pub fn between(command: &mut Command, from: Stdio, to: Stdio) -> Result<()> {
    let line = show(command);
    let child = command.stdin(from).stdout(to).stderr(Stdio::piped()).spawn().fault(Fault::Environment, || format!("starting `{line}`"));
    // The command would keep the files open.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let output = child?.wait_with_output().fault(Fault::Environment, || format!("waiting for `{line}`"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::environment(format!("running `{line}`: {}{}", status(output.status), tail(&output.stderr))))
}

/// Runs a command to its end and hands on each line of its output as it comes; any other status than 0 is an error with the end of it.
pub fn follow(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    let name = show(command);
    let starting = || format!("starting `{name}`");
    let (reader, writer) = std::io::pipe().fault(Fault::Environment, starting)?;
    let errors = writer.try_clone().fault(Fault::Environment, starting)?;
    let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn().fault(Fault::Environment, starting)?;
    // The command keeps the writing ends, without which there is no end of file.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut last = VecDeque::new();
    for text in BufReader::new(reader).split(b'\n').map_while(std::io::Result::ok) {
        let text = String::from_utf8_lossy(&text).into_owned();
        println!("{text}");
        line(&text);
        last.push_back(text);
        if last.len() > 20 {
            last.pop_front();
        }
    }
    let ended = child.wait().fault(Fault::Environment, || format!("waiting for `{name}`"))?;
    if ended.success() {
        return Ok(());
    }
    let last: String = last.iter().map(|line| format!("\n  {line}")).collect();
    Err(Error::environment(format!("running `{name}`: {}{last}", status(ended))))
}

/// Replaces this process by the command; returns only when that fails.
pub fn replace(command: &mut Command) -> Error {
    let line = show(command);
    Error::environment(format!("starting `{line}`: {}", command.exec()))
}

/// Runs a command on our own terminal to its end and gives its exit code, 128 + signal when it was killed. A key that ends the command does not end us,
/// who have to clear up after it; a request to end is passed on.
pub async fn foreground(command: &mut Command) -> Result<u8> {
    let line = show(command);
    let running = || format!("running `{line}`");
    let mut ending = signal(SignalKind::terminate()).fault(Fault::Environment, running)?;
    // Caught, not ignored: the command begins with what is usual.
    let _keys = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()].map(signal);
    let mut child = command.spawn().fault(Fault::Environment, || format!("starting `{line}`"))?;
    let id = Pid::from_child(&child);
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            // One that is gone already needs no request.
            Some(()) = ending.recv() => drop(kill_process(id, Signal::TERM)),
        }
    };
    let ended = ended.fault(Fault::Internal, running)?.fault(Fault::Environment, running)?;
    Ok(ended.code().or(ended.signal().map(|signal| 128 + signal)).and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The command line as a person would type it, cut after 300 characters.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

fn status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended without status".into(),
    }
}

fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].iter().map(|line| format!("\n  {line}")).collect()
}

// --- init --------------------------------------------------------------------------------------------------------------------

/// How a tool ended: exit code (128 + signal when killed) and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Output and errors, in one text.
    pub text: String,
}

/// Runs a tool of the system below `root` (`/` for the running one) to its end.
pub fn in_root(root: &Path, program: &str, args: &[&str]) -> Result<Ended> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    if root != Path::new("/") {
        sys::enter_root(&mut command, root);
    }
    let output = command.output().fault(Fault::Environment, || format!("starting `{program}`"))?;
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_string();
    Ok(Ended { code, text })
}

/// Runs a tool as [`in_root`] does; any other code than 0 is an error.
pub fn in_root_ok(root: &Path, program: &str, args: &[&str]) -> Result<()> {
    let ended = in_root(root, program, args)?;
    if ended.code == 0 {
        return Ok(());
    }
    let said = ended.text.lines().last().unwrap_or("nothing said").to_string();
    Err(Error::environment(format!("running `{program} {}`: exit status {}: {said}", args.join(" "), ended.code)))
}

/// Becomes the system's init with an empty environment; returns only when that fails.
pub fn become_init(program: &str) -> Error {
    replace(Command::new(program).env_clear())
}
