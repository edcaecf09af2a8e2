//! `chasi-bod diag`: one archive of what is needed to find out what is wrong with a node and its cluster, without secrets. What is collected is a list
//! (`plan.rs`), and what was collected is read once more for anything that looks like a secret (`scrub.rs`).

mod known;
mod objects;
mod plan;
mod scrub;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::jiff::Timestamp;
use layers::{Context as _, Error, Fault, Result};
use tar::{Builder, Header};

use crate::cluster::api::ADMIN;
use crate::exec::{self, Trouble};
use crate::host::Host;
use crate::{config, metrics};
use plan::{From, Item};
use scrub::Scrub;

/// Most bytes of one entry.
const MOST: usize = 4 << 20;
/// The entry that tells what could not be collected.
const ERRORS: &str = "errors.txt";

/// What became of a bundle.
#[derive(Debug)]
pub struct Bundle {
    /// Where it is; none when it went to standard output.
    pub path: Option<PathBuf>,
    /// How many entries it has.
    pub entries: usize,
    /// What could not be collected: entry and reason.
    pub troubles: Vec<String>,
}

/// What a bundle of this node would hold: entry and source, a line each.
pub fn listing(host: &Host) -> String {
    plan::plan(host).iter().map(|item| format!("{:<44} {}\n", item.name, item.source())).collect()
}

/// Writes the bundle to `file`, `-` for standard output; to `diag-HOST-TIME.tar.gz` here when there is none. No program takes longer than `limit`.
pub fn run(host: &Host, file: Option<&Path>, limit: Duration) -> Result<Bundle> {
    let now = Timestamp::now();
    let known = Some(host.line("etc/hostname")).filter(|name| !name.is_empty());
    let name = format!("diag-{}-{}", known.as_deref().unwrap_or("node"), now.strftime("%Y%m%dT%H%M%SZ"));
    let path = match file {
        Some(path) if path == Path::new("-") => None,
        Some(path) => Some(path.to_path_buf()),
        None => Some(PathBuf::from(format!("{name}.tar.gz"))),
    };
    let (entries, troubles) = collect(host, limit)?;
    let bytes = pack(&name, now, &entries)?;
    match &path {
        Some(path) => {
            let writing = || format!("writing {}", path.display());
            // Another's file is not written over, nor through a link; logs are root's alone.
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).context(writing)?;
            if let Err(error) = file.write_all(&bytes) {
                // Half a bundle helps nobody.
                let _ = std::fs::remove_file(path);
                return Err(error).context(writing);
            }
        }
        None => std::io::stdout().write_all(&bytes).context(|| "writing to standard output".into())?,
    }
    Ok(Bundle { path, entries: entries.len(), troubles })
}

/// An entry: its path, and its text.
type Entry = (String, String);

/// Every entry without secrets, and what could not be collected; nothing that fails ends it.
fn collect(host: &Host, limit: Duration) -> Result<(Vec<Entry>, Vec<String>)> {
    let mut run = Run { host, limit, silent: BTreeSet::new(), troubles: Vec::new() };
    let known = run.known()?;
    let scrub = Scrub::new(&known)?;
    let mut entries = Vec::new();
    for item in plan::plan(host) {
        if let Some(text) = run.text(&item) {
            entries.push((item.name, scrub.clean(&text)));
        }
    }
    let troubles: Vec<_> = run.troubles.iter().map(|trouble| scrub.clean(trouble)).collect();
    entries.push((ERRORS.into(), troubles.iter().map(|trouble| format!("{trouble}\n")).collect()));
    Ok((entries, troubles))
}

/// One collection.
struct Run<'a> {
    host: &'a Host,
    /// How long one program may take.
    limit: Duration,
    /// Programs that did not end in time; the others of theirs would only take as long again.
    silent: BTreeSet<String>,
    troubles: Vec<String>,
}

impl Run<'_> {
    /// The text of an item, as far as there is one; what was not found is noted.
    fn text(&mut self, item: &Item) -> Option<String> {
        let found = match &item.from {
            From::Versions => self.host.image().map(|image| {
                format!(
                    "chasi-bod {}\nimage {} {}\nroot {}\n",
                    env!("CARGO_PKG_VERSION"),
                    image.name,
                    image.version,
                    self.host.word("roothash").unwrap_or_default()
                )
            }),
            From::Settings => settings(self.host),
            From::Metrics => metrics::text(self.host),
            From::File(path) => self.file(&item.name, path),
            From::Program(words) => self.program(&item.name, self.host.program(&words[0]), words),
            From::Client(words) => self.client(words).and_then(|command| self.program(&item.name, command, words)),
            From::Objects(kind) => self.objects(&item.name, kind),
        };
        match found {
            Ok(text) => Some(text),
            Err(error) => {
                self.note(&item.name, &error.to_string());
                None
            }
        }
    }

    fn note(&mut self, name: &str, trouble: &str) {
        self.troubles.push(format!("{name}: {trouble}"));
    }

    fn file(&mut self, name: &str, path: &str) -> Result<String> {
        let mut bytes = self.host.read_bytes(path)?.ok_or_else(|| Error::environment(format!("reading /{path}: no such file")))?;
        if bytes.len() > MOST {
            exec::keep_lines(&mut bytes, MOST);
            self.note(name, &too_long());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A program that reads the cluster: the operator's credentials on a control plane, the node's own elsewhere.
    fn client(&self, words: &[String]) -> Result<Command> {
        let path = [ADMIN, "etc/kubernetes/kubelet.conf"].into_iter().find(|path| self.host.path(path).exists());
        let path = path.ok_or_else(|| Error::environment("this node belongs to no cluster yet"))?;
        let mut command = self.host.program(&words[0]);
        command.env("KUBECONFIG", self.host.path(path)).env("HOME", "/nonexistent");
        Ok(command)
    }

    /// What a program says; with an end that is not well there may be something of it, too.
    fn program(&mut self, name: &str, mut command: Command, words: &[String]) -> Result<String> {
        if self.silent.contains(&words[0]) {
            return Err(Error::environment(format!("left out: {} did not answer before", words[0])));
        }
        let said = exec::within(command.args(&words[1..]).env("LC_ALL", "C"), self.limit, MOST)?;
        match &said.trouble {
            Some(Trouble::TimedOut) => {
                self.silent.insert(words[0].clone());
                self.note(name, &format!("`{}` did not end within {} s", words.join(" "), self.limit.as_secs()));
            }
            Some(Trouble::Failed(why)) => self.note(name, &format!("`{}`: {why}", words.join(" "))),
            Some(Trouble::Cut) => self.note(name, &too_long()),
            None => {}
        }
        Ok(String::from_utf8_lossy(&said.output).into_owned())
    }

    fn objects(&mut self, name: &str, kind: &str) -> Result<String> {
        let words = ["kubectl", "get", kind, "-o", "json"].map(String::from);
        let text = self.program(name, self.client(&words)?, &words)?;
        if text.is_empty() { Ok(text) } else { objects::clean(text.as_bytes()) }
    }
}

fn too_long() -> String {
    format!("only the lines of the first {MOST} bytes")
}

/// The settings as `chasi-bod config show` prints them.
fn settings(host: &Host) -> Result<String> {
    let settings = config::published(host).ok_or_else(|| Error::environment("the agent has not published any"))?;
    Ok(settings.rows().iter().map(|(key, value, source)| format!("{key:<22} {value}   ({source})\n")).collect())
}

/// A gzipped archive (POSIX ustar) of the entries in their order.
fn pack(folder: &str, now: Timestamp, entries: &[Entry]) -> Result<Vec<u8>> {
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let writing = || "writing the archive".into();
    for (name, text) in entries {
        let mut header = Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or(0));
        archive.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes()).fault(Fault::Internal, writing)?;
    }
    archive.into_inner().and_then(GzEncoder::finish).fault(Fault::Internal, writing)
}
