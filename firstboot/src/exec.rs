//! The only place of the node that starts processes: a failure shows the command line, the decoded status and the end of stderr.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use layers::{Context, Error, Fault, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
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

/// What a command with a time limit said.
#[derive(Debug)]
pub struct Said {
    /// Standard output; in whole lines when there was more than was asked for, or it ended otherwise than well.
    pub output: Vec<u8>,
    /// What went wrong.
    pub trouble: Option<Trouble>,
}

/// How a command with limits ended otherwise than well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It was killed with its group when the time was over.
    TimedOut,
    /// Its status, and the end of what it said of it.
    Failed(String),
    /// There was more output than was asked for.
    Cut,
}

/// Most bytes of what a command says of its errors.
const ERRORS: usize = 64 << 10;

/// Runs a command without stdin for `limit` at most and keeps `most` bytes of its output; only one that cannot be started is an error.
pub fn within(command: &mut Command, limit: Duration, most: usize) -> Result<Said> {
    let line = show(command);
    let waiting = || format!("waiting for `{line}`");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().fault(Fault::Environment, || format!("starting `{line}`"))?;
    let (output, errors) = (listen(child.stdout.take(), most + 1), listen(child.stderr.take(), ERRORS));
    let deadline = Instant::now() + limit;
    let ended = loop {
        match child.try_wait().fault(Fault::Environment, waiting)? {
            Some(status) => break Some(status),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            None => {
                // Gone already is as good.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                child.wait().fault(Fault::Environment, waiting)?;
                break None;
            }
        }
    };
    let (mut output, mut errors) = (heard(output), heard(errors));
    let (cut, well) = (output.len() > most, ended.is_some_and(|ended| ended.success()));
    if cut || !well {
        keep_lines(&mut output, most);
    }
    if errors.len() >= ERRORS {
        keep_lines(&mut errors, ERRORS);
    }
    let trouble = match ended {
        None => Some(Trouble::TimedOut),
        Some(ended) if !ended.success() => Some(Trouble::Failed(format!("{}{}", status(ended), tail(&errors)))),
        Some(_) => cut.then_some(Trouble::Cut),
    };
    Ok(Said { output, trouble })
}

/// Keeps the whole lines of the first `most` bytes: half a line may be half a secret, which nobody knows for one.
pub fn keep_lines(bytes: &mut Vec<u8>, most: usize) {
    bytes.truncate(most);
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
}

/// What was read so far, and who reads on.
type Listener = (Arc<Mutex<Vec<u8>>>, JoinHandle<()>);

/// Reads to the end in a thread of its own and keeps the first `most` bytes, so that nobody waits for a full pipe.
fn listen(from: Option<impl Read + Send + 'static>, most: usize) -> Listener {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let sink = kept.clone();
    let thread = std::thread::spawn(move || {
        let (Some(mut from), mut buffer) = (from, vec![0; 64 << 10]) else { return };
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let mut kept = sink.lock().unwrap_or_else(PoisonError::into_inner);
            let room = most.saturating_sub(kept.len()).min(n);
            kept.extend_from_slice(&buffer[..room]);
        }
    });
    (kept, thread)
}

/// What came until now; a descendant that left the group may hold the pipe for ever.
fn heard((kept, thread): Listener) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_millis(500);
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration, most: usize) -> (String, Option<Trouble>) {
        let said = within(Command::new("/bin/sh").args(["-c", script]), limit, most).unwrap();
        (String::from_utf8(said.output).unwrap(), said.trouble)
    }

    #[test]
    fn a_command_is_killed_with_its_children_when_its_time_is_over_and_what_it_said_is_kept() {
        let begun = Instant::now();
        let said = shell("echo a; printf half; sleep 60 & sleep 60", Duration::from_millis(300), 100);
        assert_eq!(said, ("a\n".into(), Some(Trouble::TimedOut)));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn output_is_bounded_in_whole_lines_and_never_blocks_the_command() {
        let long = Duration::from_secs(60);
        assert_eq!(shell("seq 100000", long, 10), ("1\n2\n3\n4\n5\n".into(), Some(Trouble::Cut)));
        assert_eq!(shell("printf 12345", long, 5), ("12345".into(), None));
        assert_eq!(shell("printf 123456", long, 5), (String::new(), Some(Trouble::Cut)));
        let (text, trouble) = shell("echo a; echo why >&2; exit 3", long, 10);
        assert_eq!((text.as_str(), trouble), ("a\n", Some(Trouble::Failed("exit status 3\n  why".into()))));
        assert!(within(&mut Command::new("/no/such/program"), long, 1).unwrap_err().to_string().contains("/no/such/program"));
    }
}
