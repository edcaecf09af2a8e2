//! What a build would do, found without fetching or writing anything.

use std::fmt;
use std::path::PathBuf;

use layers::Result;
use layers::lock::Lock;
use layers::profile::Profile;
use layers::units::Bytes;
use serde::Serialize;

use super::locking::{self, Found};
use super::output::Staging;
use super::{Build, Key, Network, file_name, finished, folder, holds, key, node, plan};
use crate::emit::OutputFormat;
use crate::store::Store;

/// What a build would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// Folder of the artifacts.
    pub folder: PathBuf,
    /// The lock.
    pub lock: LockPreview,
    /// The lock's packages; none before there is a lock.
    pub packages: Option<Packages>,
    /// The artifacts asked for.
    pub outputs: Vec<Output>,
}

/// What would become of the lock.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LockPreview {
    /// The file.
    pub path: PathBuf,
    /// Whether it answers what the profile asks.
    pub state: LockState,
    /// Why it would be made anew.
    pub reason: Option<&'static str>,
}

/// Whether a lock answers what the profile asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockState {
    /// It does.
    Current,
    /// It would be made anew; the packages counted are those of the old one.
    Outdated,
    /// It would be made.
    Missing,
}

/// Packages of a lock by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Packages {
    /// In the store already.
    pub stored: Amount,
    /// To be fetched.
    pub to_fetch: Amount,
}

/// Files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Number of files.
    pub count: u64,
    /// Bytes of all.
    pub size: Bytes,
}

impl Amount {
    /// Counts one more file.
    pub fn add(&mut self, size: Bytes) {
        self.count += 1;
        self.size.0 += size.0;
    }
}

/// An artifact that was asked for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The file.
    pub file: PathBuf,
    /// What would happen to it.
    pub state: OutputState,
    /// Bytes that it takes on disk, roughly, when it would be written and that can be told.
    pub about: Option<Bytes>,
}

/// What would happen to an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputState {
    /// It is as a build would make it.
    UpToDate,
    /// It would be written.
    WouldWrite,
}

/// Where a lock's packages are.
pub fn packages(lock: &Lock, store: &Store) -> Packages {
    let mut out = Packages::default();
    let all = lock.blobs();
    for (digest, size) in all {
        let there = std::fs::metadata(store.blob(&digest)).is_ok_and(|m| m.len() == size.0);
        if there { out.stored.add(size) } else { out.to_fetch.add(size) }
    }
    out
}

/// Says what a build would do; fails where the build would fail before it fetches anything.
pub fn preview(request: &Build, store: &Store) -> Result<Preview> {
    let planned = plan(&request.profile)?;
    let signing = request.signing(&planned)?;
    let node = node::programs(request.node_binary.as_deref())?;
    let target = folder(request, &planned.profile);
    let found = locking::found(&planned)?;
    locking::check_allowed(&planned, &found, request.locking, request.reach.network)?;
    let lock = LockPreview { path: locking::path_of(&planned.path), state: state(&found), reason: found.why() };
    let packages = found.lock().map(|lock| packages(lock, store));
    if let (Network::Offline, Some(lock)) = (request.reach.network, found.lock()) {
        locking::check_stored(&planned, lock, store)?;
    }
    let packed = |lock: &Lock| lock.packages.iter().map(|p| p.size.0).chain(lock.images.iter().flat_map(|i| &i.layers).map(|l| l.size.0)).sum();
    let sizes: u64 = found.lock().map_or(0, packed);
    let key: Option<Key<'_>> = found.current().map(|lock| key(&planned, signing, lock.clone(), &node)).transpose()?;
    let record = key.map(|key| finished(&key, &target, store)).transpose()?.flatten();
    let output = |format: &OutputFormat| {
        let up_to_date = record.as_ref().is_some_and(|r| holds(r, &planned.profile, *format, request));
        Output {
            file: target.join(file_name(&planned.profile, *format)),
            state: if up_to_date { OutputState::UpToDate } else { OutputState::WouldWrite },
            about: (!up_to_date && sizes > 0).then(|| about(*format, sizes, &planned.profile)),
        }
    };
    let outputs: Vec<_> = request.formats.iter().map(output).collect();
    if outputs.iter().any(|o| o.state == OutputState::WouldWrite) {
        Staging::check(&target)?;
    }
    Ok(Preview { folder: target, lock, packages, outputs })
}

fn state(found: &Found) -> LockState {
    match found {
        Found::Current(_) => LockState::Current,
        Found::Outdated(_) => LockState::Outdated,
        Found::Missing => LockState::Missing,
    }
}

/// Measured on the shipped profile: packages unpack to 3.5 times their size, of which QCOW2's compression leaves 1.3 times.
fn about(format: OutputFormat, packages: u64, profile: &Profile) -> Bytes {
    let tenths = match format {
        OutputFormat::Raw | OutputFormat::Vhdx => 35,
        OutputFormat::Qcow2 | OutputFormat::RawZst | OutputFormat::Vma | OutputFormat::Iso | OutputFormat::Pxe => 13,
        OutputFormat::Vmdk | OutputFormat::Ova => 15,
    };
    // Rounded, because it is not known better.
    Bytes((packages * tenths / 10).next_multiple_of(10 << 20).min(profile.disk.size.0))
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lock = self.lock.path.display();
        match self.lock.reason {
            None => writeln!(f, "lock       {lock} is current")?,
            Some(why) => writeln!(f, "lock       {lock} would be made anew: {why}")?,
        }
        match &self.packages {
            None => writeln!(f, "packages   known after locking")?,
            Some(p) => {
                let of = if self.lock.state == LockState::Outdated { "of the old lock, " } else { "" };
                let (have, want) = (p.stored, p.to_fetch);
                writeln!(f, "packages   {of}{} ({}) in the store, {} ({}) to fetch", have.count, have.size, want.count, want.size)?;
            }
        }
        for output in &self.outputs {
            let file = output.file.display();
            match (output.state, output.about) {
                (OutputState::UpToDate, _) => writeln!(f, "up to date {file}")?,
                (OutputState::WouldWrite, Some(size)) => writeln!(f, "would write {file} (about {size})")?,
                (OutputState::WouldWrite, None) => writeln!(f, "would write {file}")?,
            }
        }
        writeln!(f, "dry run: nothing was written or fetched; `chasi-bod plan` shows what the image would hold")
    }
}
