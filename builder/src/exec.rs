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

/// The command line for messages, cut after 300 characters.
pub fn show(command: &Command) -> String {
    shell_line(command).chars().take(300).collect()
}

/// The command line whole, quoted so that a shell takes it as it is.
pub fn shell_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| layers::template::shell(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
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

/// Runs a command on our own terminal to its end; it ends with us, too.
pub fn foreground(command: &mut Command) -> Result<()> {
    let line = show(command);
    crate::sys::end_with_parent(command);
    let ended = command.status().fault(Fault::Environment, || format!("starting `{line}`"))?;
    if ended.success() {
        return Ok(());
    }
    Err(Error::environment(format!("running `{line}`: {}", status(ended))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_means_the_same_to_a_shell() {
        let words = ["plain=1,x", "two words", "it's", "", "$HOME `id`"];
        let mut command = Command::new("printf");
        command.arg("<%s>").args(words);
        let said = run(Command::new("sh").arg("-c").arg(shell_line(&command))).unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), words.map(|w| format!("<{w}>")).concat());
    }
}
