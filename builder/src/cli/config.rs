//! `chasi-bod config image`: settings of a site on one small medium, for a stick or as a disk of virtual machines.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use layers::node::ImageRecord;
use layers::profile::{Console, Diagnostic, Diagnostics, Disk, Network, Time};
use layers::settings::{Item, Role, SECRET_KEY, Settings, parse, shown_key};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};
use serde::Serialize;

use super::args::Global;
use super::{given, new, show};
use crate::disk::ReadAt;
use crate::fs::fat;

/// What nodes look for: the volume, and its file with the digest beside it.
const LABEL: &str = "CHASI";
const DOCUMENT: &str = "chasi-bod.yaml";
/// Nodes read no longer document, in bytes.
const LIMIT: u64 = 1 << 20;
/// FAT16 wants 4085 clusters, which are two megabytes and its tables; FAT32 would want more than thirty.
const SIZE: Bytes = Bytes::mib(4);

/// Commands on what nodes are told.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Write one medium with a site's settings, for all its nodes: a FAT volume `CHASI`, for a USB stick or as a disk of virtual machines.
    #[command(after_help = "Examples:\n  chasi-bod config image site.yaml    # chasi-config.img\n  \
        chasi-bod config image site.yaml --dry-run    # only checks the settings\n  \
        gpg -d site.gpg | chasi-bod config image - --output /dev/shm/site.img    # the secret is on no disk here\n  \
        dd if=chasi-config.img of=/dev/sdX bs=1M conv=fsync\n\n\
        Every setting is checked as nodes check it, and nothing is written as long as one is wrong. Equal settings give equal bytes.")]
    Image(ImageArgs),
}

/// Options of `config image`.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {
    /// YAML file with settings, as `docs/node-config.md` lists them; `-` is standard input.
    #[arg(value_name = "SETTINGS")]
    pub settings: PathBuf,
    /// File of the medium, for its owner alone.
    #[arg(long, short, value_name = "FILE", default_value = "chasi-config.img")]
    pub output: PathBuf,
    /// Replace a file that is there already.
    #[arg(long)]
    pub force: bool,
    /// Check the settings, say what would be written, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// A medium that was or would be written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Medium {
    dry_run: bool,
    file: PathBuf,
    size: Bytes,
    sha256: Digest,
    settings: Vec<String>,
}

/// Runs a command on what nodes are told.
pub fn run(command: &ConfigCommand, global: &Global) -> Result<()> {
    let ConfigCommand::Image(args) = command;
    let place = if is_stdin(&args.settings) { "standard input".into() } else { args.settings.display().to_string() };
    let document = read(&args.settings, &place)?;
    let (items, probe) = checked(&document, &place)?;
    free(args)?;
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    given(folder)?;
    let bytes = volume(document, folder)?;
    if !args.dry_run {
        write(&bytes, args, folder)?;
    }
    let settings = items.into_iter().map(|item| item.key).collect();
    let medium = Medium { dry_run: args.dry_run, file: args.output.clone(), size: SIZE, sha256: Digest::of(&bytes), settings };
    show(global, &medium, || told(&medium))?;
    // A founder that is given no secret makes one.
    let founds = probe.role.as_ref().is_some_and(|role| role.value == Role::Founder);
    if probe.expected.is_some() && probe.secret.is_none() && !founds {
        eprintln!("notice: it has nodes.expected and no {SECRET_KEY}: a node that is given no secret elsewhere waits for one");
    }
    Ok(())
}

fn told(medium: &Medium) -> String {
    let verb = if medium.dry_run { "would write " } else { "" };
    let count = if medium.settings.len() == 1 { "1 setting".into() } else { format!("{} settings", medium.settings.len()) };
    let keys = medium.settings.join(", ");
    let secret = medium.settings.iter().any(|key| key == SECRET_KEY);
    let secret = if secret { "it holds the cluster's secret: keep it like a key\n" } else { "" };
    format!("{verb}{}: {}, FAT volume {LABEL} with {count}: {keys}\n{secret}", medium.file.display(), medium.size)
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn read(path: &Path, place: &str) -> Result<String> {
    let reading = || format!("reading {place}");
    let source: Box<dyn Read> = match is_stdin(path) {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(File::open(path).fault(Fault::Input, reading)?),
    };
    let mut bytes = Vec::new();
    source.take(LIMIT + 1).read_to_end(&mut bytes).fault(Fault::Input, reading)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::input(format!("{}: it has more than {}, which no node reads", reading(), Bytes(LIMIT))));
    }
    String::from_utf8(bytes).map_err(|_| Error::input(format!("{}: it is not UTF-8", reading())))
}

/// The settings of a document, and a node that has taken them. All mistakes are told at once, none with a value that may be a secret.
fn checked(document: &str, place: &str) -> Result<(Vec<Item>, Settings)> {
    let items = parse(document, place).map_err(|why| Diagnostics { file: place.into(), list: vec![of_document(&why, place)] })?;
    if items.is_empty() {
        return Err(Error::input(format!("checking {place}: it has no setting")).with_hint("docs/node-config.md lists the keys"));
    }
    let mut probe = probe();
    let problem = |item: &Item| probe.set(item).err().map(|why| of_item(item, why, document, place));
    let problems = items.iter().filter_map(problem).collect();
    Diagnostics::gather(place, problems)?;
    Ok((items, probe))
}

/// A node whose image has the defaults of a profile.
fn probe() -> Settings {
    Settings::of_image(&ImageRecord {
        name: "site".into(),
        version: "0.0.0".into(),
        epoch: 0,
        hostname: "node".into(),
        network: Network::default(),
        disk: Disk::default(),
        time: Time::default(),
        console: Console::default(),
    })
}

/// What is wrong with a document as a whole: `place[:line:column]: reason`.
fn of_document(why: &str, place: &str) -> Diagnostic {
    let rest = why.strip_prefix(place).unwrap_or(why).trim_start_matches(':');
    let mut parts = rest.splitn(3, ':');
    let mut number = || parts.next()?.parse().ok();
    let (line, column, reason) = match (number(), number(), parts.next()) {
        (Some(line), Some(column), Some(reason)) => (line, column, reason),
        _ => (0, 0, rest),
    };
    Diagnostic { file: place.into(), line, column, message: reason.trim().into(), source: None, hint: None }
}

/// What is wrong with a setting, at its key; the line itself is not shown, as it may hold a secret.
fn of_item(item: &Item, why: String, document: &str, place: &str) -> Diagnostic {
    let line = item.source.rsplit_once(':').and_then(|(_, line)| line.parse().ok()).unwrap_or(0);
    let name = item.key.rsplit('.').next().unwrap_or_default();
    let text = document.lines().nth(line.max(1) - 1).unwrap_or_default();
    let column = text.find(name).map_or(1, |at| text[..at].chars().count() + 1);
    let why = if item.key.contains(':') { "no blank follows its `:`".into() } else { why };
    Diagnostic { file: place.into(), line, column, message: format!("{}: {why}", shown_key(&item.key)), source: None, hint: None }
}

/// Refuses a file that is there already; with `--force` only what is no file, such as the stick itself.
fn free(args: &ImageArgs) -> Result<()> {
    let path = &args.output;
    match path.symlink_metadata() {
        Ok(meta) if !meta.is_file() => Err(Error::input(format!("writing {}: it is there already and no file", path.display()))
            .with_hint("name a file; `dd if=FILE of=DEVICE bs=1M conv=fsync` brings it to a stick")),
        Ok(_) if !args.force => Err(taken(path)),
        _ => Ok(()),
    }
}

fn taken(path: &Path) -> Error {
    new::taken(path).with_hint("name another file with --output, or add --force")
}

/// The medium's bytes, which follow from the document alone; `scratch` is where it will lie, so that a secret gets to no other file system.
fn volume(document: String, scratch: &Path) -> Result<Vec<u8>> {
    let Digest(digest) = Digest::of(document.as_bytes());
    // As sha256sum(1) writes it, for people; nodes look at the digest.
    let sum = format!("{}  {DOCUMENT}\n", Digest(digest).hex());
    let serial = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let mut files = fat::Files::new();
    files.insert(DOCUMENT.into(), Arc::new(document.into_bytes()));
    files.insert(format!("{DOCUMENT}.sha256"), Arc::new(sum.into_bytes()));
    let options = fat::Options { kind: fat::FatKind::Fat16, size: SIZE, label: LABEL.into(), serial, epoch: 0, offset: 0 };
    let image = fat::build(&options, &files, scratch)?;
    let mut bytes = vec![0; SIZE.0 as usize];
    image.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a file that only its owner reads and gives it its name when it is whole.
fn write(bytes: &[u8], args: &ImageArgs, folder: &Path) -> Result<()> {
    let path = &args.output;
    let writing = || format!("writing {}", path.display());
    let mut part = tempfile::Builder::new().prefix(".chasi-config-").tempfile_in(folder).fault(Fault::Environment, writing)?;
    part.write_all(bytes).fault(Fault::Environment, writing)?;
    match if args.force { part.persist(path) } else { part.persist_noclobber(path) } {
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Err(taken(path)),
        other => other.fault(Fault::Environment, writing).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(document: &str) -> Vec<(usize, usize, String)> {
        let error = checked(document, "a: b.yaml").unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        error.diagnostics().iter().map(|d| (d.line, d.column, d.message.clone())).collect()
    }

    #[test]
    fn mistakes_have_their_places_whatever_the_file_is_called() {
        let found = wrong("time: {zone: /etc/shadow}\nhostnam: a\nnodes:\n  expected: 0\n");
        let places: Vec<_> = found.iter().map(|(line, column, message)| (*line, *column, message.split(':').next().unwrap_or_default())).collect();
        assert_eq!(places, [(1, 8, "time.zone"), (2, 1, "hostnam"), (4, 3, "nodes.expected")]);
        assert!(found[1].2.contains("did you mean `hostname`?"), "{found:?}");
        for (document, line) in [("hostname: a\ntime: {zo", 2), ("- a\n", 1), ("", 0), ("hostname: a\0", 0)] {
            let found = wrong(document);
            assert!(found.len() == 1 && found[0].0 == line && !found[0].2.is_empty() && !found[0].2.starts_with(':'), "{document:?}: {found:?}");
        }
    }

    #[test]
    fn no_secret_is_told_however_it_was_mistyped() {
        let canary = "0123456789abcdef0123456789abcdef";
        for document in [
            format!("cluster: {{secret:{canary}}}\n"),
            format!("cluster:\n  secret:{canary}\n"),
            format!("cluster: {{secret={canary}}}\n"),
            format!("cluster: {{secret {canary}}}\n"),
            format!("cluster: {{secre: {canary}}}\n"),
            format!("cluster: {{secret: [{canary}]}}\n"),
            format!("cluster: {{secret: {{{canary}}}}}\n"),
            format!("cluster: {{secret: \"{canary}\n"),
            format!("cluster: {{secret: !{canary} x}}\n"),
            format!("cluster: {{secret: *{canary}}}\n"),
            format!("cluster: {{secret: \"\\q{canary}\"}}\n"),
            format!("cluster: {{secret: \"{canary} {canary}\"}}\n"),
            format!("cluster: {canary}\n"),
            format!("cluster.secret:{canary}\n"),
            format!("cluster.secret={canary}\n"),
            format!("{canary}\n"),
            format!("{canary}: 1\n{canary}: 1\n"),
        ] {
            let found = wrong(&document);
            assert!(!found.is_empty() && !format!("{found:?}").contains("0123456789abc"), "{document}: {found:?}");
        }
        for document in
            ["cluster: {secret: 1234567890e123456789012345678901}\n", "console: {passwordHash:hunter2}\n", "console: {passwordHash: hunter2}\n"]
        {
            let found = format!("{:?}", wrong(document));
            assert!(!found.contains("1234567890e1") && !found.contains("hunter2"), "{document}: {found}");
        }
    }
}
