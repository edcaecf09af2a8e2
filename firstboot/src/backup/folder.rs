//! Where backups lie on a node, and which of them stay.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use layers::profile::suggest;
use layers::{Context as _, Error, Result};
use tempfile::TempDir;

use super::Manifest;
use crate::config;
use crate::host::{Host, RUN};

/// Where backups lie.
pub const FOLDER: &str = "var/lib/chasi-bod/backups";
const SUFFIX: &str = ".age";
/// What a run leaves that was killed begins so.
const SCRATCH: &str = ".run-";
/// Room that others shall still have.
const SPARE: u64 = 64 << 20;

/// A file of the folder, or one that a person names.
#[derive(Clone, Debug)]
pub struct Backup {
    pub name: String,
    pub path: PathBuf,
    pub size: u64,
    /// When it was written.
    pub made: Option<SystemTime>,
}

impl Backup {
    fn at(path: PathBuf) -> std::io::Result<Self> {
        let found = fs::metadata(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_suffix(SUFFIX).unwrap_or(&name).to_string();
        Ok(Self { name, size: found.len(), made: found.modified().ok(), path })
    }
}

/// Backups are made one after the other.
pub fn lock(host: &Host) -> Result<File> {
    let naming = || "waiting for another backup".to_string();
    fs::create_dir_all(host.path(RUN)).context(naming)?;
    let lock = File::create(host.path(RUN).join("backup.lock")).context(naming)?;
    lock.lock().context(naming)?;
    Ok(lock)
}

/// A folder of the same disk that goes with its value; what killed ones have left goes first.
pub fn scratch(host: &Host) -> Result<TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    let making = || format!("making a folder in /{FOLDER}");
    let folder = host.path(FOLDER);
    fs::create_dir_all(&folder).context(making)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).context(making)?;
    for name in host.names(FOLDER).iter().filter(|name| name.starts_with(SCRATCH)) {
        let path = folder.join(name);
        // One that is in use was changed a moment ago.
        let is_old = fs::metadata(&path).and_then(|found| found.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 3600));
        if is_old {
            fs::remove_dir_all(&path).context(|| format!("removing {}", path.display()))?;
        }
    }
    tempfile::Builder::new().prefix(SCRATCH).tempdir_in(folder).context(making)
}

/// Refuses to begin what the disk has no room for: etcd's snapshot, and the backup, which is smaller.
pub fn check_room(host: &Host) -> Result<()> {
    let database = fs::metadata(host.path("var/lib/etcd/member/snap/db")).map_or(0, |found| found.len());
    need(host, 2 * database + SPARE)
}

/// Refuses when the disk has less room than this.
pub fn need(host: &Host, wanted: u64) -> Result<()> {
    let found = rustix::fs::statvfs(host.path(FOLDER)).context(|| format!("looking for room in /{FOLDER}"))?;
    let free = found.f_bavail * found.f_frsize;
    if free >= wanted {
        return Ok(());
    }
    let error = Error::environment(format!("its disk has {} MiB left, {} are wanted", free >> 20, wanted.div_ceil(1 << 20)));
    Err(error.with_hint(format!("nothing was changed; what lies in /{FOLDER} may be removed, and `backup.keep` be less")))
}

/// Gives a whole file its name among the others, and returns when that is on the disk.
pub fn keep(host: &Host, file: &Path, name: &str) -> Result<Backup> {
    let path = host.path(FOLDER).join(format!("{name}{SUFFIX}"));
    let keeping = || format!("keeping {}", path.display());
    fs::rename(file, &path).context(keeping)?;
    File::open(host.path(FOLDER)).and_then(|folder| folder.sync_all()).context(keeping)?;
    Backup::at(path.clone()).context(keeping)
}

/// Removes this node's oldest backups of the same cluster beyond the number that is kept; `newest` stays whatever the clock says.
pub fn forget(host: &Host, newest: &Backup, manifest: &Manifest) -> Result<()> {
    let keep = config::published(host).map_or(layers::settings::BACKUPS, |settings| settings.backups());
    let mut own = own(host, &manifest.cluster, &manifest.node);
    own.retain(|backup| backup.name != newest.name);
    let surplus = (own.len() + 1).saturating_sub(usize::from(keep));
    own.iter().take(surplus).try_for_each(|old| host.remove(&format!("{FOLDER}/{}{SUFFIX}", old.name)).map(drop))
}

/// This node's own backups of a cluster, oldest first.
pub fn own(host: &Host, cluster: &str, node: &str) -> Vec<Backup> {
    let prefix = format!("{}-{node}-", &cluster[..8]);
    all(host).into_iter().filter(|backup| backup.name.strip_prefix(&prefix).is_some_and(|time| !time.contains('-'))).collect()
}

/// All that lie in the folder, oldest first.
pub fn all(host: &Host) -> Vec<Backup> {
    let names = host.names(FOLDER).into_iter().filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.'));
    let mut all: Vec<_> = names.filter_map(|name| Backup::at(host.path(FOLDER).join(name)).ok()).collect();
    // Names end with the time.
    all.sort_by(|a, b| time(&a.name).cmp(time(&b.name)));
    all
}

fn time(name: &str) -> &str {
    name.rsplit('-').next().unwrap_or_default()
}

/// The backup that a person means: a file, a name, or the newest.
pub fn find(host: &Host, wanted: Option<&str>) -> Result<Backup> {
    let all = all(host);
    let Some(wanted) = wanted else {
        let none = || {
            Error::input(format!("looking for a backup in /{FOLDER}: there is none")).with_hint("name a file, or make one: `chasi-bod backup run`")
        };
        return all.last().cloned().ok_or_else(none);
    };
    if let Some(found) = all.iter().find(|backup| backup.name == wanted.strip_suffix(SUFFIX).unwrap_or(wanted)) {
        return Ok(found.clone());
    }
    Backup::at(PathBuf::from(wanted)).map_err(|error| {
        let near = suggest(wanted, all.iter().map(|backup| backup.name.as_str()));
        let error = Error::input(format!("looking for the backup `{wanted}`: there is none of this name in /{FOLDER}, and no such file ({error})"));
        match near {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(names: &[&str]) -> (TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        for name in names {
            host.write(&format!("{FOLDER}/{name}"), b"x", 0o600).unwrap();
        }
        (dir, host)
    }

    fn manifest() -> Manifest {
        serde_json::from_str(
            r#"{"version":1,"cluster":"0123456789","time":"","node":"n1","image":"","kubernetes":"","revision":1,"virtualClusters":[],"left":[],"parts":[]}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_oldest_of_this_node_and_cluster_go_and_nothing_else() {
        let own: Vec<_> = (1..=10).map(|n| format!("01234567-n1-202601{n:02}T000000Z.age")).collect();
        let others = ["01234567-n1-x-20260101T000000Z.age", "76543210-n1-20260101T000000Z.age", "notes.txt"];
        let (_dir, host) = host(&own.iter().map(String::as_str).chain(others).collect::<Vec<_>>());
        // A clock that went back: the newest is the oldest by its name.
        let newest = find(&host, Some("01234567-n1-20260101T000000Z")).unwrap();
        forget(&host, &newest, &manifest()).unwrap();
        let left = host.names(FOLDER);
        assert!(others.iter().all(|name| left.contains(&(*name).to_string())), "{left:?}");
        let left: Vec<_> = super::own(&host, "0123456789", "n1").into_iter().map(|backup| backup.name).collect();
        assert_eq!((left.len(), left[0].as_str(), left[1].as_str()), (8, "01234567-n1-20260101T000000Z", "01234567-n1-20260104T000000Z"));
    }

    #[test]
    fn a_backup_is_found_by_name_file_or_as_the_newest() {
        let (dir, host) = host(&["a-n-20260102T000000Z.age", "b-n-20260101T000000Z.age"]);
        assert_eq!(find(&host, None).unwrap().name, "a-n-20260102T000000Z");
        assert_eq!(find(&host, Some("b-n-20260101T000000Z.age")).unwrap().name, "b-n-20260101T000000Z");
        std::fs::write(dir.path().join("copy"), "x").unwrap();
        assert_eq!(find(&host, dir.path().join("copy").to_str()).unwrap().name, "copy");
        let error = find(&host, Some("b-n-20260101T000001Z")).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("b-n-20260101T000000Z")), "{error}");
    }

    #[test]
    fn g6_a_disk_without_room_is_named_before_anything_is_written() {
        let (_dir, host) = host(&["a-n-20260102T000000Z.age"]);
        let error = need(&host, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("MiB left") && error.hint().is_some_and(|hint| hint.contains("nothing was changed")), "{error}");
        need(&host, 1).unwrap();
    }
}
