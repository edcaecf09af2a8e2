//! Plan → lock: the lock beside the profile is used as it is, made anew when the profile asks for something else or when the archive has
//! moved on, and never touched with `--locked`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use layers::lock::{Lock, Package};
use layers::plan::Plan;
use layers::{Context, Error, Fault, Result};
use serde::Serialize;

use super::pulls::Renewal;
use super::{Locking, Network, Planned, Reach, grub, pulls, seed, sources};
use crate::assemble::scratch;
use crate::progress::Progress;
use crate::source::deb::{self, Archive, Fetched, Mirrors, Offline, Request, Update, Updates};
use crate::source::http::{Client, Limits};
use crate::store::Store;

/// Path of the lock of a profile: `site.yaml` → `site.lock`.
pub fn path_of(profile: &Path) -> PathBuf {
    profile.with_extension("lock")
}

/// The lock of a profile, as it is on disk; an input error when there is none.
pub fn read_lock(profile: &Path) -> Result<Lock> {
    let path = path_of(profile);
    existing(&path)?.ok_or_else(|| {
        Error::input(format!("reading {}: there is no lock yet", path.display())).with_hint(format!("run `chasi-bod lock {}`", profile.display()))
    })
}

fn existing(path: &Path) -> Result<Option<Lock>> {
    match fs::read_to_string(path) {
        Ok(text) => Lock::from_yaml(&text, &path.display().to_string()).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("reading {}", path.display())),
    }
}

/// Writes the lock beside the profile in one step.
pub fn write_lock(planned: &Planned, lock: &Lock) -> Result<()> {
    let path = path_of(&planned.path);
    let shown = || format!("writing {}", path.display());
    let part = path.with_extension("lock.partial");
    let written = fs::write(&part, lock.to_yaml()?).fault(Fault::Environment, shown);
    written
        .map_err(|e| e.with_hint("the lock lies beside its profile, in a folder that you must be able to write; `build --locked` never writes it"))?;
    fs::rename(&part, &path).fault(Fault::Environment, shown)
}

/// All locks below folders.
pub fn locks_below(folders: &[PathBuf]) -> Result<Vec<Lock>> {
    let mut out = Vec::new();
    let mut todo = folders.to_vec();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).context(|| format!("reading {}", dir.display()))? {
            let path = entry.context(|| format!("reading {}", dir.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() && name != "target" && name != ".git" {
                todo.push(path);
            } else if name == "lock" || name.ends_with(".lock") {
                // Other programs name files `.lock` too; what is not ours names no package of ours.
                out.extend(fs::read_to_string(&path).ok().and_then(|text| Lock::from_yaml(&text, &name).ok()));
            }
        }
    }
    Ok(out)
}

/// What the archive is asked for.
pub fn request(planned: &Planned) -> Request {
    let debian = &planned.profile.debian;
    Request {
        suite: debian.suite.clone(),
        components: debian.components.clone(),
        updates: if debian.updates { Updates::Taken } else { Updates::Ignored },
        architecture: planned.profile.architecture.debian().into(),
        base: deb::solve::Base::Minbase,
        packages: planned.plan.packages(),
        tools: grub::tools(planned.profile.boot.secure_boot),
        assumed: planned
            .plan
            .assumed()
            .into_iter()
            .map(|a| deb::Assumed { name: a.name, version: ASSUMED_VERSION.into(), provides: a.provides })
            .collect(),
        profile: planned.document.path().into(),
        asked_at: planned.plan.asked_at(),
    }
}

/// Version of a package that stands for something the image has by other means.
pub const ASSUMED_VERSION: &str = "1";

fn archive<'a>(planned: &Planned, store: &'a Store, network: Network, progress: &'a Progress) -> Result<Archive<'a>> {
    let root = Path::new("/");
    let debian = &planned.profile.debian;
    let offline = if network == Network::Offline { Offline::Required } else { Offline::Allowed };
    let mut mirrors = match Mirrors::find(root, debian) {
        Ok(mirrors) => mirrors,
        // Without network no mirror is needed.
        Err(_) if network == Network::Offline => Mirrors::default(),
        Err(e) => return Err(e),
    };
    mirrors.cache = std::env::var("CHASI_BOD_REMOTE_CACHE").ok().filter(|url| !url.is_empty());
    let keyring = match offline {
        // Packages are known by the digests of the lock.
        Offline::Required => PathBuf::new(),
        Offline::Allowed => keyring(planned)?,
    };
    Ok(Archive { store, mirrors, keyring, http: Client::new(Limits::default()), offline, progress, now: SystemTime::now() })
}

fn keyring(planned: &Planned) -> Result<PathBuf> {
    deb::keyring(Path::new("/"), planned.profile.debian.keyring.as_deref().map(Path::new))
}

/// Makes the lock anew, offline from the indices that the store holds; returns the former one too. Without `update` packages keep their versions
/// and images their digests where that is possible; with names those move that are named, with none all.
pub fn relock(planned: &Planned, update: Option<&[String]>, reach: &Reach, store: &Store, progress: &Progress) -> Result<(Option<Lock>, Lock)> {
    scratch::remove_stale(store);
    let before = existing(&path_of(&planned.path))?;
    let renewal = Renewal::of(update);
    let packages = update.map(|names| names.iter().filter(|name| !pulls::is_image(name)).cloned().collect::<Vec<_>>());
    let update = match packages {
        Some(names) if !names.is_empty() => Update::Packages(names),
        Some(_) if renewal == Renewal::All => Update::All,
        _ => Update::None,
    };
    let archive = Archive { keyring: keyring(planned)?, ..archive(planned, store, reach.network, progress)? };
    let mut after = deb::lock(&archive, &request(planned), before.as_ref(), &update)?;
    after.sources = sources::lock(&archive, &planned.plan, before.as_ref())?;
    after.images = pulls::lock(&archive, &reach.registries, planned, before.as_ref(), &renewal)?;
    after.charts = seed::lock(&archive, &reach.registries, &planned.plan, before.as_ref())?;
    seed::lock_images(&archive, &reach.registries, planned, &mut after, (before.as_ref(), &renewal))?;
    Ok((before, after))
}

/// The lock to build from, with every package of it in the store.
pub fn ensure(planned: &Planned, locking: Locking, reach: &Reach, store: &Store, progress: &Progress) -> Result<Lock> {
    let lock = current(planned, locking, reach, store, progress)?;
    if reach.network == Network::Offline {
        check_stored(planned, &lock, store)?;
    }
    let archive = archive(planned, store, reach.network, progress)?;
    sources::fetch(&archive, &lock)?;
    seed::fetch(&archive, &reach.registries, &lock)?;
    pulls::fetch(&archive, &reach.registries, &lock)?;
    let Fetched::Gone(gone) = deb::fetch(&archive, &lock)? else { return Ok(lock) };
    if locking == Locking::Locked {
        return Err(gone);
    }
    eprintln!("NOTICE: {gone}");
    eprintln!("NOTICE: locking all packages anew; the image will differ from earlier ones of this profile. `--locked` refuses this.");
    // All of them by name, because images stay as they are.
    let all: Vec<_> = lock.packages.iter().chain(&lock.tools).map(|package| package.name.clone()).collect();
    let (before, lock) = relock(planned, Some(&all), reach, store, progress)?;
    announce(before.as_ref(), &lock);
    write_lock(planned, &lock)?;
    match deb::fetch(&archive, &lock)? {
        Fetched::Complete => Ok(lock),
        Fetched::Gone(gone) => Err(gone),
    }
}

/// How the lock on disk stands to what the profile asks.
#[derive(Debug)]
pub enum Found {
    /// It answers that.
    Current(Lock),
    /// It answers something else.
    Outdated(Lock),
    /// There is none.
    Missing,
}

impl Found {
    /// Why a lock has to be made; none for a current one.
    pub fn why(&self) -> Option<&'static str> {
        match self {
            Self::Current(_) => None,
            Self::Outdated(_) => Some("the profile asks for something else than the lock was made for"),
            Self::Missing => Some("there is no lock yet"),
        }
    }

    /// The lock on disk, current or not.
    pub fn lock(&self) -> Option<&Lock> {
        match self {
            Self::Current(lock) | Self::Outdated(lock) => Some(lock),
            Self::Missing => None,
        }
    }

    /// The lock if it is current.
    pub fn current(&self) -> Option<&Lock> {
        if let Self::Current(lock) = self { Some(lock) } else { None }
    }
}

/// Reads the lock beside a profile.
pub fn found(planned: &Planned) -> Result<Found> {
    let asked = request(planned).digest()?;
    Ok(match existing(&path_of(&planned.path))? {
        Some(lock) if lock.request == Some(asked) && answers(&planned.plan, &lock) => Found::Current(lock),
        Some(lock) => Found::Outdated(lock),
        None => Found::Missing,
    })
}

fn answers(plan: &Plan, lock: &Lock) -> bool {
    sources::answers(plan, lock) && pulls::answers(plan, lock) && seed::answers(plan, lock)
}

/// Refuses to go on where a lock has to be made and may not be.
pub fn check_allowed(planned: &Planned, found: &Found, locking: Locking, network: Network) -> Result<()> {
    let refused = locking == Locking::Locked || network == Network::Offline;
    let Some(why) = found.why().filter(|_| refused) else { return Ok(()) };
    let offline = if network == Network::Offline { " with network, or with --offline from what the store holds" } else { "" };
    let hint = format!("run `chasi-bod lock {}`{offline}", planned.path.display());
    Err(Error::input(format!("using {}: {why}", path_of(&planned.path).display())).with_hint(hint))
}

/// Refuses a lock whose packages are not all in the store.
pub fn check_stored(planned: &Planned, lock: &Lock, store: &Store) -> Result<()> {
    let super::Packages { stored, to_fetch } = super::packages(lock, store);
    if to_fetch.count == 0 {
        return Ok(());
    }
    let profile = planned.path.display();
    let all = stored.count + to_fetch.count;
    Err(Error::environment(format!(
        "building offline: the store {} lacks {} of {all} downloads of the lock ({})",
        store.root().display(),
        to_fetch.count,
        to_fetch.size
    ))
    .with_hint(format!(
        "`chasi-bod build {profile}` with network fills the store; for another machine, `chasi-bod cache export {profile} DIR` copies it, to be used with `--cache DIR`"
    )))
}

/// The lock on disk if it answers what the plan asks, else a new one.
fn current(planned: &Planned, locking: Locking, reach: &Reach, store: &Store, progress: &Progress) -> Result<Lock> {
    let found = found(planned)?;
    check_allowed(planned, &found, locking, reach.network)?;
    let why = match found {
        Found::Current(lock) => return Ok(lock),
        other => other.why().unwrap_or_default(),
    };
    eprintln!("locking packages: {why}");
    let (before, lock) = relock(planned, None, reach, store, progress)?;
    announce(before.as_ref(), &lock);
    write_lock(planned, &lock)?;
    Ok(lock)
}

fn announce(before: Option<&Lock>, after: &Lock) {
    // A first lock changes everything: listing it says nothing.
    for change in before.map(|b| changes(Some(b), after)).unwrap_or_default() {
        eprintln!("  {change}");
    }
}

/// One package or image that differs between two locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Package or image name.
    pub name: String,
    /// Version before, for an image the digest; none for what is new.
    pub before: Option<String>,
    /// Version after; none for one that left.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{} {before} -> {after}", self.name),
            (None, Some(after)) => write!(f, "{} {after} (new)", self.name),
            (Some(before), None) => write!(f, "{} {before} (gone)", self.name),
            (None, None) => f.write_str(&self.name),
        }
    }
}

/// Packages and container images that differ between two locks, by name.
pub fn changes(before: Option<&Lock>, after: &Lock) -> Vec<Change> {
    let versions = |lock: Option<&Lock>| -> BTreeMap<String, String> {
        let packages = lock.iter().flat_map(|l| &l.packages).map(|p: &Package| (p.name.clone(), p.version.clone()));
        packages.chain(lock.iter().flat_map(|l| &l.images).map(|i| (i.name.clone(), i.target.digest.to_string()))).collect()
    };
    let (old, new) = (versions(before), versions(Some(after)));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let change = |name: &String| Change { name: name.clone(), before: old.get(name).cloned(), after: new.get(name).cloned() };
    names.into_iter().map(change).filter(|c| c.before != c.after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::units::{Bytes, Digest};

    fn lock(packages: &[(&str, &str)]) -> Lock {
        let one = |(name, version): &(&str, &str)| Package {
            name: (*name).into(),
            version: (*version).into(),
            architecture: "all".into(),
            sha256: Digest::of(name.as_bytes()),
            size: Bytes(1),
            suite: "trixie".into(),
            path: "pool/x".into(),
            source: None,
            wanted_by: Vec::new(),
        };
        Lock { packages: packages.iter().map(one).collect(), ..Lock::default() }
    }

    #[test]
    fn changes_name_moved_new_and_gone_packages() {
        let (before, after) = (lock(&[("a", "1"), ("b", "1"), ("c", "1")]), lock(&[("a", "1"), ("b", "2"), ("d", "1")]));
        let shown: Vec<_> = changes(Some(&before), &after).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["b 1 -> 2", "c 1 (gone)", "d 1 (new)"]);
    }

    #[test]
    fn locks_are_found_and_foreign_lock_files_ignored() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("profiles")).unwrap();
        fs::write(dir.path().join("profiles/site.lock"), Lock { lock_version: Lock::VERSION, ..lock(&[("a", "1")]) }.to_yaml().unwrap()).unwrap();
        fs::write(dir.path().join("Cargo.lock"), "version = 4").unwrap();
        assert_eq!(locks_below(&[dir.path().into()]).unwrap().len(), 1);
    }
}
