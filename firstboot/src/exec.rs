//! The only place that starts processes: a failure shows the command line, the decoded status and the end of stderr.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Output, Stdio};

use layers::{Context, Error, Fault, Result};

/// Runs a command to its end without stdin and returns its output; any other status than 0 is an error.
pub fn run(command: &mut Command) -> Result<Output> {
    let line = show(command);
    let output = command.stdin(Stdio::null()).output().fault(Fault::Environment, || format!("starting `{line}`"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::environment(format!("running `{line}`: {}{}", status(output.status), tail(&output.stderr))))
}

/// Replaces this process by the command; returns only when that fails.
pub fn replace(command: &mut Command) -> Error {
    let line = show(command);
    Error::environment(format!("starting `{line}`: {}", command.exec()))
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
