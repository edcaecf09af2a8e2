//! What goes into a backup: etcd's snapshot, the authorities and keys that everything else is made from, and the stores of virtual clusters.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use layers::platform::VirtualCluster;
use layers::units::Digest;
use layers::{Context as _, Error, Result};
use serde_json::Value;

use super::SNAPSHOT;
use super::archive::{Bytes, Entry};
use crate::cluster::{self, api, etcd};
use crate::exec;
use crate::host::Host;

/// Without them there is no cluster to come back.
const NEEDED: [&str; 9] = [
    "etc/kubernetes/pki/ca.crt",
    "etc/kubernetes/pki/ca.key",
    "etc/kubernetes/pki/etcd/ca.crt",
    "etc/kubernetes/pki/etcd/ca.key",
    "etc/kubernetes/pki/front-proxy-ca.crt",
    "etc/kubernetes/pki/front-proxy-ca.key",
    "etc/kubernetes/pki/sa.key",
    "etc/kubernetes/pki/sa.pub",
    "etc/kubernetes/chasi-bod/encryption.yaml",
];
/// Taken along where they are.
const MAY_BE: [&str; 3] = ["var/lib/chasi-bod/cluster-secret", "var/lib/chasi-bod/console.json", "var/lib/chasi-bod/config.json"];
/// Folders of the storage classes on this node's disk.
pub const VOLUMES: [&str; 2] = ["var/lib/chasi-bod/volumes", "var/lib/chasi-bod/volumes-io"];
/// SQLite's file in a virtual cluster's volume, and what else of it is left out: it is made anew.
const STORE: &str = "state.db";
const INDEX: &str = "state.db-shm";
const LOG: &str = "state.db-wal";

/// How long the API may take; a backup without its answer is better than none.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a store is copied again that changed meanwhile.
const TRIES: u32 = 20;

/// What was collected; files lie in the scratch folder.
pub struct Collected {
    pub entries: Vec<Entry>,
    pub revision: u64,
    pub uid: Option<String>,
    pub virtual_clusters: Vec<String>,
    pub left: Vec<String>,
}

/// Collects everything of this control plane.
pub fn all(host: &Host, scratch: &Path) -> Result<Collected> {
    let snapshot = scratch.join("snapshot.db");
    let revision = snapshot_of_etcd(host, &snapshot)?;
    let mut entries = vec![Entry { name: SNAPSHOT.into(), mode: 0o600, owner: (0, 0), bytes: Bytes::File(snapshot) }];
    for path in NEEDED.iter().chain(&MAY_BE) {
        match host.read_bytes(path)? {
            Some(bytes) => entries.push(Entry { name: (*path).into(), mode: 0o600, owner: (0, 0), bytes: Bytes::Here(bytes) }),
            None if NEEDED.contains(path) => return Err(Error::environment(format!("reading /{path}: no such file"))),
            None => {}
        }
    }
    let mut collected = Collected { entries, revision, uid: None, virtual_clusters: Vec::new(), left: Vec::new() };
    stores(host, scratch, &mut collected)?;
    ask(host, &mut collected);
    Ok(collected)
}

/// Takes etcd's snapshot, and its revision by etcd's own tool, which finds what is damaged.
fn snapshot_of_etcd(host: &Host, path: &Path) -> Result<u64> {
    let mut file = File::options().read(true).write(true).create_new(true).open(path).context(|| "writing etcd's snapshot".into())?;
    cluster::runtime()?.block_on(etcd::snapshot(host, &mut file))?;
    check_sum(&mut file)?;
    revision(host, path)
}

/// A snapshot ends with the SHA-256 of what comes before (etcd's `snapshot save` checks no more).
fn check_sum(file: &mut File) -> Result<()> {
    let reading = || "reading etcd's snapshot".to_string();
    let length = file.metadata().context(reading)?.len();
    let cut = || Error::environment("taking a snapshot of etcd: it is cut off");
    let end = length.checked_sub(32).filter(|end| *end > 0 && end % 512 == 0).ok_or_else(cut)?;
    file.rewind().context(reading)?;
    let found = Digest::of_reader(file.by_ref().take(end)).context(reading)?;
    let mut sum = [0; 32];
    file.read_exact(&mut sum).context(reading)?;
    if found.0 == sum { Ok(()) } else { Err(Error::environment("taking a snapshot of etcd: its digest is not the one that etcd sent")) }
}

/// The revision of a snapshot, by etcd's own tool.
pub fn revision(host: &Host, snapshot: &Path) -> Result<u64> {
    let said = exec::run(host.program("etcdutl").args(["snapshot", "status", "--write-out=json"]).arg(snapshot))?.stdout;
    let said: Value = serde_json::from_slice(&said).map_err(|error| Error::environment(format!("reading what etcdutl says: {error}")))?;
    said["revision"].as_u64().ok_or_else(|| Error::environment("reading what etcdutl says: no revision"))
}

/// Copies the stores of the virtual clusters whose control planes have their volumes on this node.
fn stores(host: &Host, scratch: &Path, collected: &mut Collected) -> Result<()> {
    for base in VOLUMES {
        for folder in host.names(base) {
            let Some(name) = virtual_cluster(&folder) else { continue };
            let volume = format!("{base}/{folder}");
            if !host.path(&volume).join(STORE).exists() {
                continue;
            }
            let copies = scratch.join(&folder);
            fs::create_dir_all(&copies).context(|| format!("copying /{volume}"))?;
            copy_store(&host.path(&volume), &copies).context(|| format!("copying the store of virtual cluster {name}, /{volume}"))?;
            walk(&host.path(&volume), &volume, &copies, &mut collected.entries).context(|| format!("copying /{volume}"))?;
            collected.virtual_clusters.push(name.into());
        }
    }
    Ok(())
}

/// The virtual cluster whose control plane a volume is of: the provisioner calls folders `PV_NAMESPACE_CLAIM`.
fn virtual_cluster(folder: &str) -> Option<&str> {
    let (rest, claim) = folder.rsplit_once('_')?;
    let name = rest.rsplit_once('_')?.1.strip_prefix("vcluster-")?;
    (claim == format!("data-{name}-0")).then_some(name)
}

/// Copies a store in which others write. In its mode (WAL, <https://www.sqlite.org/wal.html>) SQLite only appends to its log, and changes the file
/// itself only when it takes over what the log has: as long as the file stays as it is while both are copied, the copies are what a power cut at that
/// moment would have left, and SQLite reads them as such.
fn copy_store(from: &Path, to: &Path) -> Result<()> {
    for _ in 0..TRIES {
        let before = state(&from.join(STORE))?;
        let copied = copy(&from.join(STORE), &to.join(STORE))?;
        if from.join(LOG).exists() {
            copy(&from.join(LOG), &to.join(LOG))?;
        }
        // Times are only as fine as the kernel's clock ticks, hence the digest as well.
        if state(&from.join(STORE))? == before && digest(&from.join(STORE))? == copied {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Err(Error::environment(format!("it changed during each of {TRIES} tries")))
}

fn state(path: &Path) -> Result<(u64, i64, i64)> {
    let found = fs::metadata(path).context(|| format!("reading {}", path.display()))?;
    Ok((found.len(), found.mtime(), found.mtime_nsec()))
}

fn digest(path: &Path) -> Result<Digest> {
    let reading = || format!("reading {}", path.display());
    Digest::of_reader(File::open(path).context(reading)?).context(reading)
}

fn copy(from: &Path, to: &Path) -> Result<Digest> {
    fs::copy(from, to).context(|| format!("copying {}", from.display()))?;
    digest(to)
}

/// Entries of a volume: its folders and files; of the store, the copies.
fn walk(folder: &Path, name: &str, copies: &Path, entries: &mut Vec<Entry>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    let found = fs::metadata(folder).context(reading)?;
    let owner = |found: &fs::Metadata| (found.uid(), found.gid());
    entries.push(Entry { name: format!("{name}/"), mode: found.mode() & 0o7777, owner: owner(&found), bytes: Bytes::Folder });
    let mut inside: Vec<_> = fs::read_dir(folder).context(reading)?.collect::<Result<_, _>>().context(reading)?;
    inside.sort_by_key(fs::DirEntry::file_name);
    for entry in inside {
        let (path, file) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let below = format!("{name}/{file}");
        // Sockets and links are made anew by whoever needs them.
        let Some(found) = fs::symlink_metadata(&path).ok().filter(|found| file != INDEX && (found.is_dir() || found.is_file())) else { continue };
        if found.is_dir() {
            walk(&path, &below, copies, entries)?;
            continue;
        }
        let copied = [STORE, LOG].contains(&file.as_str());
        let bytes = match copied {
            true if copies.join(&file).exists() => Bytes::File(copies.join(&file)),
            // A log that came after the copy is about a later state.
            true => continue,
            false => Bytes::Here(fs::read(&path).context(|| format!("reading {}", path.display()))?),
        };
        entries.push(Entry { name: below, mode: found.mode() & 0o7777, owner: owner(&found), bytes });
    }
    Ok(())
}

/// What the API adds: the cluster's own number, and which virtual clusters are not in the backup. Without a majority of etcd it does not answer.
fn ask(host: &Host, collected: &mut Collected) {
    let asked = cluster::runtime().and_then(|runtime| {
        let look = async {
            let client = api::client(host, PATIENCE).await?;
            let namespace =
                Api::<Namespace>::all(client.clone()).get("kube-system").await.map_err(|error| Error::environment(api::reason(&error)))?;
            // An image without the layer `vcluster` has no such kind.
            let clusters = Api::<VirtualCluster>::all(client).list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
            Ok((namespace.metadata.uid, clusters))
        };
        let limited = async { tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| Err(Error::environment("no answer in time"))) };
        runtime.block_on(limited)
    });
    match asked {
        Ok((uid, clusters)) => {
            collected.uid = uid;
            let names = clusters.into_iter().filter_map(|cluster| cluster.metadata.name);
            let missing = names.filter(|name| !collected.virtual_clusters.contains(name));
            let why = "its store is on another node, or no SQLite: keep a Snapshot of it";
            let missing: Vec<_> = missing.map(|name| format!("virtual cluster {name}: {why} (`chasi-bod vcluster snapshot {name}`)")).collect();
            collected.left.extend(missing);
        }
        Err(error) => collected.left.push(format!("what the API knows: it did not answer ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn volumes_of_control_planes_are_known_by_their_folders() {
        assert_eq!(virtual_cluster("pvc-1-2_vcluster-biz-a_data-biz-a-0"), Some("biz-a"));
        for folder in ["pvc-1_vcluster-biz_data-biz-etcd-0", "pvc-1_vcluster-biz_data-other-0", "pvc-1_default_data-biz-0", "x"] {
            assert_eq!(virtual_cluster(folder), None, "{folder}");
        }
    }

    fn python(script: &str, arguments: &[&Path]) -> Command {
        let mut command = Command::new("python3");
        command.arg("-c").arg(script).args(arguments);
        command
    }

    /// SQLite itself writes while its store is copied, and is the judge of the copies: whole, and nothing missing that was there before.
    #[test]
    fn a_store_in_which_others_write_is_copied_as_of_one_moment() {
        const WRITE: &str = "import sqlite3,sys
c=sqlite3.connect(sys.argv[1],isolation_level=None)
c.execute('pragma journal_mode=wal'); c.execute('pragma wal_autocheckpoint=40')
c.execute('create table t(n integer primary key, v blob)'); print('begun',flush=True)
import time
for n in range(100000):
    c.execute('begin'); c.execute('insert into t values(?,?)',(2*n,b'x'*500)); c.execute('insert into t values(?,?)',(2*n+1,b'y'*500)); c.execute('commit')
    time.sleep(0.02)
";
        const JUDGE: &str = "import sqlite3,sys
c=sqlite3.connect(sys.argv[1])
assert c.execute('pragma integrity_check').fetchall()==[('ok',)]
n,top=c.execute('select count(*),max(n) from t').fetchone()
assert n==top+1 and n%2==0,(n,top)
print(n)
";
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir(&from).unwrap();
        let mut writer = python(WRITE, &[&from.join(STORE)]).stdout(Stdio::piped()).spawn().expect("python3");
        let mut begun = [0; 5];
        writer.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
        let mut last = 0;
        for n in 0..8 {
            let to = folder.path().join(format!("to{n}"));
            fs::create_dir(&to).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            copy_store(&from, &to).unwrap();
            let said = python(JUDGE, &[&to.join(STORE)]).output().unwrap();
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            let rows: u32 = String::from_utf8(said.stdout).unwrap().trim().parse().unwrap();
            assert!(rows > last, "{rows} {last}");
            last = rows;
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
    }
}
