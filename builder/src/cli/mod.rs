//! The command line: parse, call one function per command, print data on stdout and everything else on stderr.

mod args;
mod cache;
mod machine;
mod new;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use layers::lock::Lock;
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result, profile};
use serde::Serialize;

use crate::assemble::scratch;
use crate::emit::OutputFormat;
use crate::pipeline::{self, Build, Locking, Network, Outcome, RawSum};
use crate::progress::Progress;
use crate::store::Store;
use crate::{exec, inspect};
use args::{BuildArgs, CacheCommand, Cli, Command, FileArg, Global, ImageArg, LockArgs, RunArgs, SchemaOf};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(cli.command, &cli.global) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::from(error.fault() as u8)
        }
    }
}

/// Help and version are asked for; anything else that clap says is the user's input.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to tell when the terminal is gone.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Fault::Input as u8 } else { 0 })
}

/// Prints an error with its hint on stderr; a message that starts with a place (`file:line:column`) is left as it is for editors.
fn report(error: &Error) {
    eprintln!("error: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
}

fn dispatch(command: Command, global: &Global) -> Result<ExitCode> {
    match command {
        Command::Plan(args) => plan(&args.profile, global)?,
        Command::Lock(args) => lock(&args, global)?,
        Command::Build(args) => drop(build(&args, global)?),
        Command::Run(args) => return run(args, global),
        Command::Inspect(args) => inspect(&args, global)?,
        Command::Verify(args) => verify(&args, global)?,
        Command::Schema { of: SchemaOf::Profile } => print_json(&profile::json_schema())?,
        Command::Schema { of: SchemaOf::Layer } => print_json(&profile::layer_schema())?,
        Command::New { name, output: None } => print(&profile::template(&name)?)?,
        Command::New { name, output: Some(path) } => new::write(&name, &path)?,
        Command::Cache(command) => cache_command(command, global)?,
        Command::Completions { shell } => clap_complete::generate(shell, &mut Cli::command(), "chasi-bod", &mut std::io::stdout()),
        Command::Man { dir } => man(&dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn store(global: &Global) -> Result<Store> {
    Store::open(&cache_dir(global)?)
}

fn cache_dir(global: &Global) -> Result<PathBuf> {
    if let Some(dir) = &global.cache {
        return Ok(dir.clone());
    }
    let home = |name: &str, below: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(|v| PathBuf::from(v).join(below));
    home("XDG_CACHE_HOME", "chasi-bod")
        .or_else(|| home("HOME", ".cache/chasi-bod"))
        .ok_or_else(|| Error::environment("finding the store: neither --cache nor XDG_CACHE_HOME nor HOME is set"))
}

fn progress(global: &Global) -> Progress {
    if global.quiet { Progress::silent() } else { Progress::stderr() }
}

/// Data goes to stdout; a reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context(|| "writing to stdout".into()),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("encoding JSON: {e}")))?;
    print(&(text + "\n"))
}

fn show(global: &Global, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if global.json { print_json(value) } else { print(&text()) }
}

fn plan(path: &Path, global: &Global) -> Result<()> {
    let planned = pipeline::plan(path)?;
    show(global, &planned.plan, || planned.plan.to_text())
}

fn lock(args: &LockArgs, global: &Global) -> Result<()> {
    let store = store(global)?;
    let planned = pipeline::plan(&args.profile.profile)?;
    let (before, after) = pipeline::relock(&planned, args.update.as_deref(), &store, &progress(global))?;
    let changes = pipeline::changes(before.as_ref(), &after);
    if !args.dry_run {
        pipeline::write_lock(&planned, &after)?;
    }
    show(global, &changes, || changes.iter().map(|c| format!("{c}\n")).collect())?;
    eprintln!(
        "{} packages, {} tools, {} changes{}",
        after.packages.len(),
        after.tools.len(),
        changes.len(),
        if args.dry_run { " (dry run)" } else { "" }
    );
    Ok(())
}

fn request(args: &BuildArgs) -> Build {
    Build {
        profile: args.profile.profile.clone(),
        formats: args.formats.clone(),
        output: args.output.clone(),
        locking: if args.locked { Locking::Locked } else { Locking::Relock },
        network: if args.offline { Network::Offline } else { Network::Online },
        raw_sum: if args.no_raw_sum { RawSum::Omit } else { RawSum::Write },
        node_binary: args.node_binary.clone(),
    }
}

fn build(args: &BuildArgs, global: &Global) -> Result<Outcome> {
    let store = store(global)?;
    let outcome = match args.dry_run {
        true => pipeline::dry_run(&request(args), &store)?,
        false => pipeline::build(&request(args), store, &progress(global))?,
    };
    show(global, &outcome, || outcome.to_string())?;
    Ok(outcome)
}

fn run(mut args: RunArgs, global: &Global) -> Result<ExitCode> {
    args.build.formats = vec![OutputFormat::Qcow2];
    if args.build.dry_run {
        build(&args.build, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = pipeline::build(&request(&args.build), store(global)?, &progress(global))?;
    let built = outcome.artifact(OutputFormat::Qcow2)?;
    let disk = args.disk.clone().unwrap_or_else(|| built.clone());
    if !disk.exists() {
        fs::copy(&built, &disk).context(|| format!("copying {} to {}", built.display(), disk.display()))?;
    }
    let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    let mut command = machine::command(&args, &disk, scratch.path())?;
    if args.print {
        // The command is for later: what it names must stay.
        let _ = scratch.keep();
        print(&(exec::shell_line(&command) + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("booting {}; leave with Ctrl-A X; ssh: ssh -p {} root@127.0.0.1", disk.display(), args.ssh_port);
    exec::foreground(&mut command)
}

fn inspect(args: &ImageArg, global: &Global) -> Result<()> {
    let report = inspect::inspect(&args.path)?;
    show(global, &report, || report.to_string())
}

fn verify(args: &FileArg, global: &Global) -> Result<()> {
    let verified = pipeline::verify(&args.path)?;
    show(global, &verified, || verified.iter().map(|line| format!("{line}\n")).collect())
}

fn man(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).context(|| format!("creating {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir).context(|| format!("writing man pages to {}", dir.display()))
}

fn cache_command(command: CacheCommand, global: &Global) -> Result<()> {
    let store = store(global)?;
    match command {
        CacheCommand::List => {
            let usage = cache::usage(&store)?;
            show(global, &usage, || usage.iter().map(|u| format!("{:<12}{:>8} files {:>10}\n", u.kind, u.files, u.size)).collect())
        }
        CacheCommand::Prune { keep, dry_run } => prune(&store, &keep, dry_run),
        CacheCommand::Export { profile, dir } => {
            let lock = pipeline::read_lock(&profile)?;
            eprintln!("copied {} to {}", cache::export(&store, &lock, &dir)?, dir.display());
            Ok(())
        }
    }
}

fn prune(store: &Store, keep: &[PathBuf], dry_run: bool) -> Result<()> {
    let here = [PathBuf::from(".")];
    let folders = if keep.is_empty() { here.as_slice() } else { keep };
    let locks: Vec<Lock> = pipeline::locks_below(folders)?;
    for path in if dry_run { scratch::stale(store) } else { scratch::remove_stale(store) } {
        print(&format!("{}\n", path.display()))?;
    }
    if locks.is_empty() {
        return Err(Error::input(format!("pruning {}: no lock lies below the folders to keep, so everything would go", store.root().display()))
            .with_hint("name the folders of your profiles; to empty the store, remove its folder"));
    }
    let gone = cache::prunable(store, &locks)?;
    let size = Bytes(gone.iter().map(|(_, s)| s.0).sum());
    for (path, _) in &gone {
        print(&format!("{}\n", path.display()))?;
        if !dry_run {
            fs::remove_file(path).context(|| format!("removing {}", path.display()))?;
        }
    }
    eprintln!("{} files, {size}{}; kept what {} locks name", gone.len(), if dry_run { " (dry run)" } else { "" }, locks.len());
    Ok(())
}
