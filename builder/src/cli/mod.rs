//! The command line: parse, call one function per command, print data on stdout and everything else on stderr.

mod args;
mod cache;
mod config;
mod failure;
mod machine;
mod new;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, ValueEnum};
use firstboot::verbs::{self, Place};
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result, profile};
use serde::Serialize;

use crate::assemble::scratch;
use crate::compare::Level;
use crate::emit::OutputFormat;
use crate::pipeline::{self, Build, Locking, Network, Outcome, RawSum, Reach};
use crate::progress::Progress;
use crate::publish::{self, Published};
use crate::signing::Signer;
use crate::source::oci::Registries;
use crate::store::Store;
use crate::{exec, inspect};
use args::{
    BuildArgs, CacheCommand, Cli, Command, CompareArgs, FileArg, Global, InspectArgs, LockArgs, RegistryArgs, RunArgs, SchemaOf, SeedCommand,
};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(failure::usage(&error)),
    };
    let input = cli.command.input_code();
    dispatch(cli.command, &cli.global).unwrap_or_else(|error| ExitCode::from(failure::report(&error, input, &cli.global)))
}

fn dispatch(command: Command, global: &Global) -> Result<ExitCode> {
    match command {
        Command::Plan(args) => plan(&args.profile, global)?,
        Command::Lock(args) => lock(&args, global)?,
        Command::Build(args) => build(&args, global)?,
        Command::Run(args) => return run(args, global),
        Command::Inspect(args) => inspect(&args, global)?,
        Command::Verify(args) => verify(&args, global)?,
        Command::Compare(args) => return compare(&args, global),
        Command::Push(args) => {
            let done =
                publish::push(&args.folder, &args.reference, &Registries::find(&args.registries.registries)?, args.dry_run, &progress(global))?;
            show(global, &done, || published(&done))?;
        }
        Command::Pull(args) => {
            let registries = Registries::find(&args.registries.registries)?;
            let done = publish::pull(&args.reference, &args.output, &args.files, &registries, &progress(global))?;
            show(global, &done, || published(&done))?;
        }
        Command::Seed(SeedCommand::List { path }) => {
            given(&path)?;
            let listing = pipeline::listing(&path)?;
            show(global, &listing, || listing.to_string())?;
        }
        Command::Day2(command) => return day2(&command, global),
        Command::Schema { of: SchemaOf::Profile } => print_json(&profile::json_schema())?,
        Command::Schema { of: SchemaOf::Layer } => print_json(&profile::layer_schema())?,
        Command::Schema { of: SchemaOf::Object } => print_json(&profile::object_schema())?,
        Command::New { name, output: None } => print(&profile::template(&name)?)?,
        Command::New { name, output: Some(path) } => new::write(&name, &path)?,
        Command::Config(command) => config::run(&command, global)?,
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

fn published(done: &Published) -> String {
    let files = done.files.iter().map(|file| format!("  {file}\n")).collect::<String>();
    format!("{}@{}\n{files}{} went over the network\n", done.repository, done.digest, Bytes(done.transferred))
}

fn plan(path: &Path, global: &Global) -> Result<()> {
    let planned = pipeline::plan(path)?;
    show(global, &planned.plan, || planned.plan.to_text())
}

fn lock(args: &LockArgs, global: &Global) -> Result<()> {
    let planned = pipeline::plan(&args.profile.profile)?;
    let store = store(global)?;
    let reach = reach(args.offline, &args.registries)?;
    let (before, after) = pipeline::relock(&planned, args.update.as_deref(), &reach, &store, &progress(global))?;
    let changes = pipeline::changes(before.as_ref(), &after);
    if !args.dry_run {
        pipeline::write_lock(&planned, &after)?;
    }
    show(global, &changes, || changes.iter().map(|c| format!("{c}\n")).collect())?;
    let dry = if args.dry_run { " (dry run)" } else { "" };
    let pulled = if after.images.is_empty() { String::new() } else { format!(", {} pulled images", after.images.len()) };
    eprintln!("{} packages, {} tools{pulled}, {} changes{dry}", after.packages.len(), after.tools.len(), changes.len());
    let lacking = pipeline::packages(&after, &store).to_fetch;
    if args.offline && lacking.count > 0 {
        eprintln!("notice: {} of them ({}) are not in the store: `build --offline` will miss them", lacking.count, lacking.size);
    }
    Ok(())
}

fn reach(offline: bool, args: &RegistryArgs) -> Result<Reach> {
    let network = if offline { Network::Offline } else { Network::Online };
    Ok(Reach { network, registries: Registries::find(&args.registries)? })
}

fn request(args: &BuildArgs) -> Result<Build> {
    Ok(Build {
        profile: args.profile.profile.clone(),
        formats: args.formats.clone(),
        output: args.output.clone(),
        locking: if args.locked { Locking::Locked } else { Locking::Relock },
        reach: reach(args.offline, &args.registries)?,
        raw_sum: if args.raw_sum { RawSum::Write } else { RawSum::Omit },
        node_binary: args.node_binary.clone(),
        ova_signer: args.ova_key.as_deref().map(|path| Signer::read(path, None)).transpose()?.map(Arc::new),
        boot_signer: args.secure_boot_key.as_deref().map(|path| Signer::read(path, args.secure_boot_command.as_deref())).transpose()?.map(Arc::new),
    })
}

fn build(args: &BuildArgs, global: &Global) -> Result<()> {
    if args.dry_run {
        let preview = pipeline::preview(&request(args)?, &Store::look(&cache_dir(global)?))?;
        return show(global, &preview, || preview.to_string());
    }
    let outcome = built(args, global)?;
    show(global, &outcome, || outcome.to_string())
}

fn built(args: &BuildArgs, global: &Global) -> Result<Outcome> {
    pipeline::build(&request(args)?, store(global)?, &progress(global))
}

fn run(mut args: RunArgs, global: &Global) -> Result<ExitCode> {
    args.build.formats = vec![OutputFormat::Qcow2];
    if args.build.dry_run {
        build(&args.build, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    // What is missing for the start is said before the build, which takes longer.
    let early = machine::command(&args, Path::new("disk"), scratch.path())?;
    if !args.print {
        machine::check(&args, &early)?;
    }
    let image = built(&args.build, global)?.artifact(OutputFormat::Qcow2)?;
    let disk = args.disk.clone().unwrap_or_else(|| image.clone());
    if args.disk.is_some() && disk.exists() {
        eprintln!("notice: booting {} as it is; remove it to start from the image just built", disk.display());
    } else if !disk.exists() {
        fs::copy(&image, &disk).context(|| format!("copying {} to {}", image.display(), disk.display()))?;
    }
    let mut command = machine::command(&args, &disk, scratch.path())?;
    if args.print {
        // The command is for later: what it names must stay.
        let _ = scratch.keep();
        let line = exec::shell_line(&command);
        return show(global, &serde_json::json!({ "command": line }), || format!("{line}\n")).map(|()| ExitCode::SUCCESS);
    }
    eprintln!("booting {}; leave with Ctrl-A X; ssh: ssh -p {} root@127.0.0.1", disk.display(), args.ssh_port);
    exec::foreground(&mut command).map_err(|e| e.with_hint("QEMU's own message stands above"))?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs, global: &Global) -> Result<()> {
    let root = || inspect::files::Root::open(&args.path, args.partition.as_deref());
    if let Some(path) = &args.cat {
        return root()?.cat(path, &mut std::io::stdout().lock());
    }
    if let Some(pattern) = &args.files {
        let files = root()?.list(pattern.as_deref())?;
        return show(global, &files, || files.iter().map(|file| format!("{file}\n")).collect());
    }
    let report = inspect::inspect(&args.path)?;
    if args.packages {
        if report.packages.is_empty() && !report.unread.is_empty() {
            let why = report.unread.join("; ");
            return Err(Error::input(format!("listing the packages of {}: not read: {why}", args.path.display())));
        }
        let lines = || report.packages.iter().map(|package| format!("{package}\n")).collect();
        return show(global, &report.packages, lines);
    }
    show(global, &report, || report.to_string())
}

/// Exit code 1 says that the images differ.
fn compare(args: &CompareArgs, global: &Global) -> Result<ExitCode> {
    [&args.a, &args.b].into_iter().try_for_each(|path| given(path))?;
    let levels = if args.only.is_empty() { Level::value_variants() } else { &args.only };
    let found = crate::compare::compare(&args.a, &args.b, &levels.iter().copied().collect(), &progress(global))?;
    show(global, &found, || found.to_string())?;
    Ok(if found.equal { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn verify(args: &FileArg, global: &Global) -> Result<()> {
    given(&args.path)?;
    let verified = pipeline::verify(&args.path)?;
    show(global, &verified, || verified.iter().map(|line| format!("{line}\n")).collect())
}

fn day2(command: &verbs::Command, global: &Global) -> Result<ExitCode> {
    let say = |line: &str| {
        if !global.quiet {
            eprintln!("{line}");
        }
    };
    let outcome = verbs::run(command, Place::Workstation, &say)?;
    print(&outcome.text)?;
    Ok(ExitCode::from(outcome.code))
}

/// A path that the user gave and that is not there is the user's mistake.
fn given(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => Ok(()),
        Err(e) => Err(e).fault(Fault::Input, || format!("reading {}", path.display())),
    }
}

fn man(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).context(|| format!("creating {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir).context(|| format!("writing man pages to {}", dir.display()))
}

fn cache_command(command: CacheCommand, global: &Global) -> Result<()> {
    match command {
        CacheCommand::List => {
            let usage = cache::usage(&Store::look(&cache_dir(global)?))?;
            show(global, &usage, || cache::table(&usage))
        }
        CacheCommand::Prune { keep, dry_run } => prune(global, &keep, dry_run),
        CacheCommand::Export { profile, dir } => {
            given(&profile)?;
            let lock = pipeline::read_lock(&profile)?;
            let copied = cache::export(&store(global)?, &lock, &dir)?;
            show(global, &serde_json::json!({"folder": dir, "copied": copied}), || format!("copied {copied} to {}\n", dir.display()))?;
            eprintln!("use it there with `chasi-bod build {} --locked --offline --cache {}`", profile.display(), dir.display());
            Ok(())
        }
    }
}

/// What `cache prune` removed or would remove.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pruned {
    dry_run: bool,
    locks: usize,
    folders: Vec<PathBuf>,
    files: Vec<cache::Unneeded>,
    size: Bytes,
}

fn prune(global: &Global, keep: &[PathBuf], dry_run: bool) -> Result<()> {
    keep.iter().try_for_each(|folder| given(folder))?;
    let here = [PathBuf::from(".")];
    let locks = pipeline::locks_below(if keep.is_empty() { &here } else { keep })?;
    let store = if dry_run { Store::look(&cache_dir(global)?) } else { store(global)? };
    if locks.is_empty() {
        return Err(Error::input(format!("pruning {}: no lock lies below the folders to keep, so everything would go", store.root().display()))
            .with_hint("name the folders of your profiles; to empty the store, remove its folder"));
    }
    if !dry_run {
        store.alone()?;
    }
    let folders = if dry_run { scratch::stale(&store) } else { scratch::remove_stale(&store) };
    let files = cache::prunable(&store, &locks)?;
    files.iter().filter(|_| !dry_run).try_for_each(cache::Unneeded::remove)?;
    let pruned = Pruned { dry_run, locks: locks.len(), folders, size: Bytes(files.iter().map(|f| f.size.0).sum()), files };
    show(global, &pruned, || {
        let folders = pruned.folders.iter().map(|path| format!("scratch {}\n", path.display()));
        folders.chain(cache::by_kind(&pruned.files)).collect()
    })?;
    let verb = if dry_run { "would remove" } else { "removed" };
    let locks = if pruned.locks == 1 { "1 lock needs".into() } else { format!("{} locks need", pruned.locks) };
    let count: u64 = pruned.files.iter().map(|file| file.files).sum();
    eprintln!("{verb} {count} files, {}; kept what {locks}", pruned.size);
    Ok(())
}
