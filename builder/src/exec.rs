//! The only place that starts processes: a failure shows the command line, the decoded status and the end of stderr.

use std::fmt::Write as _;
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use layers::{Context, Error, Fault, Result};

/// Runs a command to its end and returns its output; any other status than 0 is an error.
pub fn run(command: &mut Command) -> Result<Output> {
    let line = show(command);
    let output = command.output().fault(Fault::Environment, || format!("starting `{line}`"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::environment(format!("running `{line}`: {}{}", status(output.status), tail(&output.stderr))))
}

/// Starts a command.
pub fn spawn(command: &mut Command) -> Result<Child> {
    let line = show(command);
    command.spawn().fault(Fault::Environment, || format!("starting `{line}`"))
}

/// Waits for a child; after the time limit it is killed and there is no status.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let naming = || "waiting for a child process".to_string();
    let pid = rustix::process::Pid::from_child(child);
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).context(naming)?;
    let limit = rustix::time::Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(limit.subsec_nanos()) };
    let mut poll = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut poll, Some(&limit)).context(naming)? == 0 {
        child.kill().context(naming)?;
        child.wait().context(naming)?;
        return Ok(None);
    }
    child.wait().map(Some).context(naming)
}

/// The command line as a person would type it, cut after 300 characters.
pub fn show(command: &Command) -> String {
    let mut out = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let _ = write!(out, " {}", arg.to_string_lossy());
    }
    out.chars().take(300).collect()
}

/// An exit status in words, signals by number.
pub fn status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended without status".into(),
    }
}

/// The last 20 lines of a program's stderr, indented; empty when it said nothing.
pub fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].iter().fold(String::new(), |mut out, line| {
        let _ = write!(out, "\n  {line}");
        out
    })
}

/// Runs a command on our own terminal and passes its exit code on.
pub fn foreground(command: &mut Command) -> Result<std::process::ExitCode> {
    let line = show(command);
    let status = command.status().fault(Fault::Environment, || format!("starting `{line}`"))?;
    Ok(std::process::ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(Fault::Environment as u8)))
}
