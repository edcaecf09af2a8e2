//! From lock to store: every missing .deb is downloaded, checked and only then given its name among the blobs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use layers::lock::{Lock, Package};
use layers::units::Digest;
use layers::{Context, Error, Result};

use super::{Archive, Offline, Want, mirror, relation, suite};
use crate::source::http::Outcome;

/// Downloads at a time.
const CONNECTIONS: usize = 8;

/// How getting a blob ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// It is in the store.
    Present,
    /// No address has it.
    Missing,
    /// Twice other bytes came; this is the digest of the last ones, which lie in quarantine.
    Wrong(Digest),
}

/// How fetching a lock's packages ended.
#[derive(Debug)]
pub enum Fetched {
    /// All of them are in the store.
    Complete,
    /// No address has some of them any more; the error lists them all.
    Gone(Error),
}

/// Makes sure that every package of a lock lies in the store. What is there already is not asked for again.
pub fn fetch(archive: &Archive, lock: &Lock) -> Result<Fetched> {
    let mut missing: BTreeMap<Digest, &Package> = BTreeMap::new();
    for package in lock.packages.iter().chain(&lock.tools) {
        if !present(archive, &package.sha256, package.size.0) {
            missing.insert(package.sha256, package);
        }
    }
    if missing.is_empty() {
        return Ok(Fetched::Complete);
    }
    let mut packages: Vec<_> = missing.into_values().collect();
    if archive.offline == Offline::Required {
        packages.sort();
        return Err(Error::environment(format!("fetching is forbidden, but the store lacks:{}", lines(packages.iter().map(|p| label(p))))));
    }
    // The largest first, so that the end does not wait for one of them alone; from the vector's end, hence ascending.
    packages.sort_by_key(|p| p.size);
    archive.progress.start("fetching packages", packages.len() as u64, packages.iter().map(|p| p.size.0).sum());
    let gone = fetch_all(archive, packages);
    archive.progress.finish();
    match gone? {
        gone if gone.is_empty() => Ok(Fetched::Complete),
        gone => Ok(Fetched::Gone(moved(archive, lock, gone))),
    }
}

/// Runs the downloads; returns the packages that no address has.
fn fetch_all<'a>(archive: &Archive, packages: Vec<&'a Package>) -> Result<Vec<&'a Package>> {
    let (queue, gone, failed) = (Mutex::new(packages), Mutex::new(Vec::new()), Mutex::new(None));
    let stop = AtomicBool::new(false);
    let next = || queue.lock().unwrap_or_else(|e| e.into_inner()).pop();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let Some(package) = next() else { return };
            match fetch_one(archive, package) {
                Ok(Got::Present) => archive.progress.finish_file(),
                Ok(_) => gone.lock().unwrap_or_else(|e| e.into_inner()).push(package),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(work);
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => Ok(gone.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

fn fetch_one(archive: &Archive, package: &Package) -> Result<Got> {
    let mirrors = &archive.mirrors;
    let path = package.path.replace('%', "%25");
    let bases = [Some(mirrors.base(&package.suite)?), mirrors.snapshot.as_deref()];
    let mut urls: Vec<_> = bases.into_iter().flatten().map(|base| format!("{base}/{path}")).collect();
    urls.extend(mirrors.cache.as_ref().map(|base| format!("{}/blobs/{}", base.trim_end_matches('/'), package.sha256.hex())));
    let want = Want { label: label(package), sha256: package.sha256, size: package.size.0, urls };
    match obtain(archive, &want).context(|| format!("fetching package {}", want.label))? {
        Got::Wrong(got) => Err(Error::environment(format!(
            "fetching package {}: the mirror sends other bytes, twice: expected {}, got {got}; the last ones are kept as {}",
            want.label,
            want.sha256,
            archive.store.quarantine(&want.sha256).display()
        ))
        .with_hint("use another mirror; if this one was just updated, run `chasi-bod lock PROFILE --update`")),
        got => Ok(got),
    }
}

fn label(package: &Package) -> String {
    format!("{} {}", package.name, package.version)
}

fn lines(items: impl Iterator<Item = String>) -> String {
    items.map(|item| format!("\n  {item}")).collect()
}

/// One error for all packages that the archive dropped, with the versions that it has now where they can be had.
fn moved(archive: &Archive, lock: &Lock, mut gone: Vec<&Package>) -> Error {
    gone.sort();
    let mut now = BTreeMap::new();
    for index in &lock.indices {
        let components = components(lock, &index.suite);
        let architecture = gone.iter().map(|p| p.architecture.as_str()).find(|a| *a != "all").unwrap_or("amd64");
        // Only for the message: when the index cannot be had either, the names alone must do.
        let Ok(suite) = suite::load(archive, &index.suite, &components, architecture, None) else { continue };
        for package in suite.indices.iter().flat_map(|i| i.packages()) {
            let best = now.entry(package.name().to_string()).or_insert_with(String::new);
            if best.is_empty() || relation::compare(package.version(), best).is_gt() {
                *best = package.version().to_string();
            }
        }
    }
    let line = |p: &&Package| format!("{} -> {}", label(p), now.get(&p.name).map_or("no longer in the archive", String::as_str));
    Error::environment(format!("fetching packages: the archive does not have these versions any more:{}", lines(gone.iter().map(line))))
        .with_hint("run `chasi-bod lock PROFILE --update`, or name a snapshot archive with `debian.snapshot` in the profile")
}

/// Components that a lock's packages of a suite lie in, read from their paths (`pool/<component>/…`).
fn components(lock: &Lock, suite: &str) -> Vec<String> {
    let security = mirror::is_security(suite);
    let own = lock.packages.iter().chain(&lock.tools).filter(|p| p.suite == suite || !security);
    let parts = own.filter_map(|p| p.path.strip_prefix("pool/")).map(|p| p.strip_prefix("updates/").unwrap_or(p));
    let found: std::collections::BTreeSet<_> = parts.filter_map(|p| p.split('/').next()).map(str::to_string).collect();
    if found.is_empty() { vec!["main".into()] } else { found.into_iter().collect() }
}

/// Gets one blob: from the store, else from the first address that has it. Two processes may want the same one: the second waits for the first.
pub fn obtain(archive: &Archive, want: &Want) -> Result<Got> {
    let (store, blob) = (archive.store, archive.store.blob(&want.sha256));
    if present(archive, &want.sha256, want.size) {
        return Ok(Got::Present);
    }
    let mut wrong = None;
    let mut urls = want.urls.iter();
    let mut url = urls.next();
    while let Some(address) = url {
        let mut file = partial(archive, want)?;
        if present(archive, &want.sha256, want.size) {
            let _ = fs::remove_file(store.partial(&want.sha256));
            return Ok(Got::Present);
        }
        if archive.http.download(address, &mut file, want.size, &|n| archive.progress.advance(n))? == Outcome::Missing {
            url = urls.next();
            continue;
        }
        let got = digest(&mut file).context(|| format!("checking {}", want.label))?;
        let target = if got == want.sha256 { blob.clone() } else { store.quarantine(&want.sha256) };
        fs::rename(store.partial(&want.sha256), &target).context(|| format!("naming {}", target.display()))?;
        if got == want.sha256 {
            return Ok(Got::Present);
        }
        if wrong.replace(got).is_some() {
            return Ok(Got::Wrong(got));
        }
    }
    Ok(wrong.map_or(Got::Missing, Got::Wrong))
}

/// Whether the store has a blob. One of another size was cut by a crash of the machine: it counts as absent and is written anew.
fn present(archive: &Archive, sha256: &Digest, size: u64) -> bool {
    fs::metadata(archive.store.blob(sha256)).is_ok_and(|m| m.len() == size)
}

/// The unfinished download, locked for us alone.
fn partial(archive: &Archive, want: &Want) -> Result<File> {
    let path = archive.store.partial(&want.sha256);
    let open = || -> io::Result<Option<File>> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        file.lock()?;
        // While we waited for the lock, the name may have moved to the blobs or to quarantine with the file that we hold.
        let same = fs::metadata(&path).is_ok_and(|m| file.metadata().is_ok_and(|f| (f.dev(), f.ino()) == (m.dev(), m.ino())));
        Ok(same.then_some(file))
    };
    loop {
        if let Some(file) = open().context(|| format!("opening {}", path.display()))? {
            return Ok(file);
        }
    }
}

fn digest(file: &mut File) -> io::Result<Digest> {
    file.rewind()?;
    Digest::of_reader(file)
}
