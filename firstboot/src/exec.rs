//! The only place of the node that starts processes.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use layers::{Context, Error, Fault, Result};

use crate::sys;

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
    use std::os::unix::process::ExitStatusExt;
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

/// Becomes another program; returns only when that fails.
pub fn replace(program: &str, args: &[String]) -> io::Error {
    Command::new(program).args(args).env_clear().exec()
}
