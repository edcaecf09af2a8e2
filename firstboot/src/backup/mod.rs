//! Backups of the cluster: one file with all that a fresh machine needs to bring the same cluster back, enciphered with a key that follows from the
//! cluster's secret. Each control plane makes its own, so a cluster of three has three, on three machines.

mod age;
mod archive;
mod collect;
mod folder;
pub(crate) mod restore;
pub mod schedule;
mod target;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use layers::{Context as _, Error, Fault, Result};
use serde_json::json;

pub use age::Identity;
pub use archive::Manifest;
pub use restore::Options as Restore;

use crate::cluster;
use crate::config;
use crate::host::Host;
use crate::verbs::table;
use folder::Backup;

/// Entry with etcd's snapshot.
const SNAPSHOT: &str = "etcd/snapshot.db";

/// What is done with backups.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List this node's backups.
    #[command(after_help = "Examples:\n  chasi-bod backup list\n  chasi-bod backup list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a backup now; the oldest ones beyond the setting `backup.keep` go when it is whole.
    #[command(after_help = "Example:\n  chasi-bod backup run    # prints the file, which may be copied anywhere: it is enciphered")]
    Run {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read a backup to its end and check every part of it.
    #[command(after_help = "Examples:\n  chasi-bod backup verify\n  chasi-bod backup verify /mnt/stick/backup.age --identity /mnt/key")]
    Verify {
        /// Which one.
        #[command(flatten)]
        which: Which,
        /// Print JSON: the backup's manifest.
        #[arg(long)]
        json: bool,
    },
    /// Print the key that opens this cluster's backups, a secret, in the form of age.
    #[command(after_help = "Example:\n  ssh root@node chasi-bod backup key > key && age --decrypt -i key backup.age | zstd -d | tar -t")]
    Key {
        /// Print the public half, which files are enciphered for.
        #[arg(long)]
        public: bool,
    },
}

/// Which backup is meant, and what opens it.
#[derive(Debug, Args)]
pub struct Which {
    /// Name as in `backup list`, path of a file, or `oci:` and its reference in a registry; the newest of this node when absent.
    #[arg(value_name = "BACKUP")]
    pub backup: Option<String>,
    /// File with a private key of age, beside the one that follows from the cluster's secret.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// Does what a verb asks for; the text is for stdout.
pub fn run(verb: &Verb, host: &Host, say: &dyn Fn(&str)) -> Result<String> {
    match verb {
        Verb::List { json } => list(host, *json),
        Verb::Run { json } => {
            let made = make(host)?;
            made.manifest.left.iter().for_each(|left| say(&format!("not in it: {left}")));
            match target::push(host, &made.backup) {
                Ok(None) => {}
                Ok(Some(reference)) => say(&format!("pushed to {reference}")),
                Err(error) => return Err(Error::environment(format!("the backup is {}, but: {error}", made.backup.path.display()))),
            }
            if has_own_secret(host) {
                say("its key is nowhere but on this machine, which made the cluster's secret by itself: keep `chasi-bod backup key` elsewhere, too");
            }
            Ok(if *json { printed(&shown(&made.backup, Ok(&made.manifest)))? } else { format!("{}\n", made.backup.path.display()) })
        }
        Verb::Verify { which, json } => {
            let scratch = folder::scratch(host)?;
            let backup = wanted(host, which, scratch.path())?;
            let manifest = verify(host, &backup, &identities(host, which)?)?;
            say(&format!("{}: whole; {}", backup.name, told(&manifest)));
            Ok(if *json { printed(&json!(manifest))? } else { String::new() })
        }
        Verb::Key { public } => {
            let key = own_key(host)?;
            Ok(format!("{}\n", if *public { key.recipient().text() } else { key.reveal() }))
        }
    }
}

/// The backup that a person means; one in a registry is fetched into the folder.
fn wanted(host: &Host, which: &Which, scratch: &Path) -> Result<Backup> {
    let Some(reference) = which.backup.as_deref().and_then(|text| text.strip_prefix(target::PREFIX)) else {
        return folder::find(host, which.backup.as_deref());
    };
    let path = scratch.join("pulled");
    target::pull(host, reference, &path)?;
    let named = folder::find(host, path.to_str())?;
    Ok(Backup { name: reference.into(), ..named })
}

fn printed(value: &serde_json::Value) -> Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").fault(Fault::Internal, || "printing JSON".into())
}

/// A backup that was made.
pub struct Made {
    backup: Backup,
    manifest: Manifest,
}

/// Makes a backup and puts it beside the others, when it was read back whole; only then older ones go.
pub fn make(host: &Host) -> Result<Made> {
    let naming = || "making a backup".to_string();
    if !cluster::is_formed(host) || !cluster::etcd::is_here(host) {
        let error = Error::environment("making a backup: this node is no control plane, or has not founded its cluster yet");
        return Err(error.with_hint("control planes make backups, each its own; see `chasi-bod status`"));
    }
    let _lock = folder::lock(host)?;
    let scratch = folder::scratch(host)?;
    folder::check_room(host).context(naming)?;
    let key = own_key(host)?;
    let collected = collect::all(host, scratch.path()).context(naming)?;
    let (now, node) = (Timestamp::now(), cluster::recorded_name(host)?);
    let manifest = Manifest {
        version: archive::VERSION,
        cluster: cluster::authority(host)?.hex(),
        uid: collected.uid,
        time: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        node: node.clone(),
        image: host.image().map(|image| format!("{} {}", image.name, image.version)).unwrap_or_default() + &root_hash(host),
        kubernetes: cluster::kubernetes(host)?,
        revision: collected.revision,
        virtual_clusters: collected.virtual_clusters,
        left: collected.left,
        parts: Vec::new(),
    };
    let name = format!("{}-{node}-{}", &manifest.cluster[..8], now.strftime("%Y%m%dT%H%M%SZ"));
    let path = scratch.path().join("backup");
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path).context(naming)?;
    let manifest = archive::write(host, &[key.recipient()], manifest, &collected.entries, file).context(naming)?;
    archive::read(&[key], &path, |_| Ok(())).context(|| "reading the backup that was just made".into())?;
    let backup = folder::keep(host, &path, &name)?;
    folder::forget(host, &backup, &manifest)?;
    Ok(Made { backup, manifest })
}

fn root_hash(host: &Host) -> String {
    host.word("roothash").map(|hash| format!(" {hash}")).unwrap_or_default()
}

/// Reads a backup to its end, and has etcd's own tool look at the snapshot in it.
fn verify(host: &Host, backup: &Backup, identities: &[Identity]) -> Result<Manifest> {
    let naming = || format!("verifying {}", backup.path.display());
    let scratch = folder::scratch(host)?;
    let manifest = archive::read(identities, &backup.path, |found| match found.part.name.as_str() {
        SNAPSHOT => archive::lay(found, scratch.path()),
        _ => Ok(()),
    });
    let manifest = manifest.context(naming)?;
    let revision = collect::revision(host, &scratch.path().join(SNAPSHOT)).context(naming)?;
    match revision == manifest.revision {
        true => Ok(manifest),
        false => Err(Error::input(format!("{}: etcd's snapshot is at revision {revision}, not {}", naming(), manifest.revision))),
    }
}

/// What a backup holds, in a line.
fn told(manifest: &Manifest) -> String {
    let clusters = match manifest.virtual_clusters.as_slice() {
        [] => "no virtual clusters".to_string(),
        names => format!("virtual clusters {}", names.join(", ")),
    };
    format!("of node {}, {}, Kubernetes {}, etcd at revision {}, {clusters}", manifest.node, manifest.time, manifest.kubernetes, manifest.revision)
}

fn list(host: &Host, json: bool) -> Result<String> {
    let identities = identities(host, &Which { backup: None, identity: None })?;
    let read = |backup: Backup| (archive::manifest(&identities, &backup.path), backup);
    let all: Vec<_> = folder::all(host).into_iter().map(read).collect();
    if json {
        return printed(&all.iter().map(|(manifest, backup)| shown(backup, manifest.as_ref())).collect());
    }
    let rows = all.iter().map(|(manifest, backup)| {
        let size = format!("{:.1} MiB", backup.size as f64 / f64::from(1 << 20));
        match manifest {
            Ok(of) => [backup.name.clone(), of.time.clone(), of.node.clone(), size, of.revision.to_string(), of.virtual_clusters.join(",")],
            Err(error) => [backup.name.clone(), "-".into(), "-".into(), size, "-".into(), format!("cannot be read: {error}")],
        }
    });
    Ok(table(["NAME", "MADE", "NODE", "SIZE", "REVISION", "VIRTUAL CLUSTERS"], rows))
}

fn shown(backup: &Backup, manifest: Result<&Manifest, &Error>) -> serde_json::Value {
    let mut shown = json!({"name": backup.name, "path": backup.path, "size": backup.size});
    match manifest {
        // Names and digests of all parts are for `verify --json`.
        Ok(manifest) => {
            let mut manifest = json!(manifest);
            manifest.as_object_mut().map(|fields| fields.remove("parts"));
            shown["manifest"] = manifest;
        }
        Err(error) => shown["error"] = error.to_string().into(),
    }
    shown
}

/// Whether the node made the cluster's secret by itself.
fn has_own_secret(host: &Host) -> bool {
    config::published(host).is_none_or(|settings| settings.secret.is_none())
}

fn own_key(host: &Host) -> Result<Identity> {
    let secret = cluster::known_secret(host)?;
    let error =
        || Error::environment("looking for the key of backups: this node knows no cluster secret").with_hint("it is the setting cluster.secret");
    secret.as_ref().map(Identity::of_cluster).ok_or_else(error)
}

/// The keys at hand.
fn identities(host: &Host, which: &Which) -> Result<Vec<Identity>> {
    let own = cluster::known_secret(host)?.as_ref().map(Identity::of_cluster);
    let given = which.identity.as_ref().map(|path| {
        let naming = || format!("reading {}", path.display());
        Identity::parse(&std::fs::read_to_string(path).fault(Fault::Input, naming)?).context(naming)
    });
    Ok(own.into_iter().chain(given.transpose()?).collect())
}
