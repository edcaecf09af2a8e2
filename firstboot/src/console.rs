//! Status screen of the monitor and login by a one-time code; on a serial line only a prompt, so that the agent's lines stay readable.
//!
//! The code lives in this process alone and is never written anywhere. systemd gives the process its terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use layers::profile::ConsoleLogin;
use layers::units::Digest;
use layers::{Context, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exec;
use crate::host::{Host, STATE};
use crate::status::Status;

const TRIES: u32 = 5;
/// No letters that look like digits.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// How a person may log in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    Password,
    Code,
    Off,
}

/// Shows the status on a terminal and gives a shell to whoever may have one; returns only with an error.
pub fn run(host: &Host, tty: &str) -> Result<()> {
    let path = host.path("dev").join(tty.trim_start_matches("/dev/"));
    let mut terminal = OpenOptions::new().read(true).write(true).custom_flags(0o400).open(&path).context(|| format!("opening {}", path.display()))?;
    let monitor = tty.trim_start_matches("/dev/").strip_prefix("tty").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    let mut shown = String::new();
    loop {
        let login = login(host);
        let text = if monitor { screen(host, login) } else { prompt(login).into() };
        if text != shown {
            say(&mut terminal, &text)?;
            shown = text;
        }
        let Some(line) = line_within(&mut terminal, Duration::from_secs(1))? else { continue };
        shown.clear();
        match login {
            Login::Off => {}
            Login::Password => return Err(exec::replace(on(&terminal, &mut host.program("login"))?)),
            Login::Code if line.is_empty() && code_accepted(host, &mut terminal)? => return Err(shell(host, &terminal)?),
            Login::Code => {}
        }
    }
}

fn login(host: &Host) -> Login {
    match crate::config::published(host) {
        Some(settings) if settings.login.value == ConsoleLogin::Off => Login::Off,
        Some(settings) if settings.password_hash.is_some() => Login::Password,
        _ if host.path(STATE).join("sealed").exists() => Login::Off,
        _ => Login::Code,
    }
}

fn prompt(login: Login) -> &'static str {
    match login {
        Login::Off => "",
        Login::Password => "\r\nPress Enter to log in.\r\n",
        Login::Code => "\r\nPress Enter for a one-time code to log in.\r\n",
    }
}

/// One whole screen: cleared, at most 24 lines of at most 79 columns.
fn screen(host: &Host, login: Login) -> String {
    let lines = match Status::load(host) {
        Ok(status) => status.lines(),
        Err(error) => vec![error.to_string()],
    };
    let cut = |line: &String| line.chars().filter(|c| !c.is_control()).take(78).collect::<String>();
    let body: String = lines.iter().take(20).map(|line| format!(" {}\r\n", cut(line))).collect();
    format!("\x1b[2J\x1b[H\r\n{body}{}", prompt(login))
}

fn say(terminal: &mut File, text: &str) -> Result<()> {
    terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush()).context(|| "writing to the terminal".into())
}

/// A line, if one is finished in time. The terminal edits lines itself.
fn line_within(terminal: &mut File, time: Duration) -> Result<Option<String>> {
    let limit = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::from_borrowed_fd(terminal.as_fd(), PollFlags::IN)], Some(&limit));
    if ready.map_err(std::io::Error::from).context(|| "waiting for the terminal".into())? == 0 {
        return Ok(None);
    }
    let mut bytes = [0; 256];
    match terminal.read(&mut bytes).context(|| "reading from the terminal".into())? {
        0 => Err(Error::environment("reading from the terminal: it was closed")),
        n => Ok(Some(String::from_utf8_lossy(&bytes[..n]).trim().to_string())),
    }
}

/// Shows a new code and takes tries until it is typed; after five wrong ones a pause and no shell.
fn code_accepted(host: &Host, terminal: &mut File) -> Result<bool> {
    let code = code(host.random()?);
    let wanted = Digest::of(code.as_bytes());
    say(terminal, &format!("\r\nOne-time code: {code}\r\n"))?;
    for _ in 0..TRIES {
        say(terminal, "Type the code: ")?;
        match line_within(terminal, Duration::from_secs(60))? {
            None => return Ok(false),
            Some(line) if same(&Digest::of(line.to_lowercase().as_bytes()), &wanted) => return Ok(true),
            Some(_) => say(terminal, "That is not the code.\r\n")?,
        }
    }
    say(terminal, "Too many tries; wait 30 seconds.\r\n")?;
    std::thread::sleep(Duration::from_secs(30));
    Ok(false)
}

fn code(bytes: [u8; 8]) -> String {
    bytes.iter().map(|b| char::from(LETTERS[usize::from(b % 32)])).collect()
}

/// Compares in constant time.
fn same(a: &Digest, b: &Digest) -> bool {
    a.0.iter().zip(&b.0).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

/// Root's shell in place of this process; when it ends systemd starts a new screen.
fn shell(host: &Host, terminal: &File) -> Result<Error> {
    let mut command = host.program("login");
    if Path::new(command.get_program()).exists() {
        command.args(["-f", "root"]);
    } else {
        command = host.program("bash");
        command.arg("-l").envs([("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root"), ("SHELL", "/bin/bash")]).current_dir(host.path("root"));
    }
    Ok(exec::replace(on(terminal, &mut command)?))
}

fn on<'a>(terminal: &File, command: &'a mut Command) -> Result<&'a mut Command> {
    let copy = || terminal.try_clone().context(|| "sharing the terminal".into());
    Ok(command.stdin(copy()?).stdout(copy()?).stderr(copy()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_eight_letters_and_only_itself_matches() {
        let code = code([0, 31, 32, 255, 5, 6, 7, 8]);
        assert_eq!(code, "a9a9fghi");
        let digest = |text: &str| Digest::of(text.as_bytes());
        assert!(same(&digest(&code), &digest("a9a9fghi")) && !same(&digest(&code), &digest("a9a9fgh")));
    }

    #[test]
    fn f3_without_configuration_there_is_the_code_and_after_seal_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(login(&host), Login::Code);
        host.write("var/lib/chasi-bod/sealed", b"", 0o600).unwrap();
        assert_eq!(login(&host), Login::Off);
    }
}
