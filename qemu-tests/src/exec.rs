//! The only place of the harness that starts processes.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use layers::{Context, Error, Fault, Result};

/// Runs a program to its end and returns its output; any other status than 0 is an error that shows its stderr.
pub fn run(program: impl AsRef<Path>, args: &[&str]) -> Result<Output> {
    run_in(program, args, Path::new("."), &[])
}

/// Like [`run`], in a folder and with additional environment.
pub fn run_in(program: impl AsRef<Path>, args: &[&str], folder: &Path, env: &[(&str, &str)]) -> Result<Output> {
    let program = program.as_ref();
    let line = format!("{} {}", program.display(), args.join(" "));
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).envs(env.iter().copied()).stdin(Stdio::null());
    let output = command.output().fault(Fault::Environment, || format!("starting `{line}`"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::environment(format!("running `{line}`: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr))))
}

/// Starts a program whose standard input and output we hold; its stderr goes to ours.
pub fn start(program: &str, args: &[String]) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().fault(Fault::Environment, || format!("starting `{program}`"))
}
