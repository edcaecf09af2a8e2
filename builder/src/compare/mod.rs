//! `chasi-bod compare`: what two images have differently, level by level. Either may be in any format that is read, ours or foreign; what
//! cannot be read is told by name.

mod change;
mod disk;
mod files;
mod owners;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use layers::node::IMAGE_RECORD;
use layers::{Context, Error, Fault, Result};
use serde::Serialize;
use serde_json::Value;

use crate::disk::gpt;
use crate::emit::OutputFormat;
use crate::inspect::contents::{Package, Packages};
use crate::inspect::files::{Root, artifact, visible};
use crate::inspect::{self, contents};
use crate::progress::Progress;
use crate::tree::TreePath;
pub use change::{Change, Fact, How};
use change::{Facts, Item, between, leaves};
use files::Roots;
use owners::Owners;

/// The resolved profile in a result folder.
const PROFILE: &str = "profile.resolved.yaml";

/// What is compared, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Partition table, loaders, kernels, files and bytes of partitions.
    Disk,
    /// Debian packages.
    Packages,
    /// Container images.
    Images,
    /// Releases of charts, virtual clusters and components.
    Charts,
    /// The profile, and what lies below /etc.
    Config,
    /// All other files of the root.
    Files,
}

/// What comparing two images came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The first image.
    pub a: Name,
    /// The second image.
    pub b: Name,
    /// Whether no level has a difference.
    pub equal: bool,
    /// What was asked for.
    pub levels: Vec<Compared>,
}

/// One of the images.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Name {
    /// The file.
    pub path: PathBuf,
    /// Its format, which is no difference.
    pub format: OutputFormat,
    /// What in it cannot be read, and is compared by its bytes only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

/// One level.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// Which.
    pub level: Level,
    /// How many things are the same; none when the bytes of both disks are, so that none was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same: Option<usize>,
    /// Why nothing could be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
    /// The differences.
    pub changes: Vec<Change>,
}

impl Compared {
    fn found(level: Level, (changes, same): (Vec<Change>, usize)) -> Self {
        Self { level, same: Some(same), not_compared: None, changes }
    }

    fn missed(level: Level, why: String) -> Self {
        Self { level, same: None, not_compared: Some(why), changes: Vec::new() }
    }
}

/// An image under comparison.
struct Side {
    shown: String,
    path: PathBuf,
    /// The result folder that was named.
    folder: Option<PathBuf>,
    image: inspect::Opened,
}

impl Side {
    fn open(given: &Path) -> Result<Self> {
        let folder = given.is_dir().then(|| given.to_path_buf());
        let path = if folder.is_some() { artifact(given)? } else { given.to_path_buf() };
        let (shown, image) = (path.display().to_string(), inspect::open(&path)?);
        if let Some(end) = gpt::lost_end(image.disk.as_ref()) {
            let has = image.disk.len();
            return Err(Error::input(format!("reading {shown}: it is cut off: its disk has {has} bytes, its partition table says {end}")));
        }
        Ok(Self { shown, path, folder, image })
    }

    fn root(&self) -> Result<&Root, String> {
        self.image.root.as_ref().map_err(|error| {
            let unread = self.image.report.unread.iter().filter(|line| **line != error.to_string());
            std::iter::once(error.to_string()).chain(unread.cloned()).collect::<Vec<_>>().join("; not read: ")
        })
    }

    fn name(self) -> Name {
        Name { path: self.path, format: self.image.report.format, unread: self.image.report.unread }
    }
}

/// Compares two images, each a file or a result folder, at some levels. What cannot be read is an input error, and so is a level that cannot be
/// compared when no other level differs: nobody may take that for equal.
pub fn compare(a: &Path, b: &Path, levels: &BTreeSet<Level>, progress: &Progress) -> Result<Comparison> {
    let (a, b) = (Side::open(a)?, Side::open(b)?);
    let mut out = Vec::new();
    let mut equal_bytes = false;
    if levels.contains(&Level::Disk) {
        let found = disk::compare(&a, &b, progress)?;
        equal_bytes = found.equal_bytes;
        out.push(Compared::found(Level::Disk, (found.changes, found.same)));
    }
    let above: Vec<_> = levels.iter().copied().filter(|level| *level != Level::Disk).collect();
    match (a.root(), b.root()) {
        _ if equal_bytes => out.extend(above.into_iter().map(|level| alike(&a, &b, level)).collect::<Result<Vec<_>>>()?),
        (Ok(x), Ok(y)) => out.extend(within(&Roots { a: (&a, x), b: (&b, y) }, &above, progress)?),
        (x, y) => {
            let why: Vec<_> = [x.err(), y.err()].into_iter().flatten().collect();
            out.extend(above.into_iter().map(|level| Compared::missed(level, why.join("; "))));
        }
    }
    let equal = out.iter().all(|level| level.changes.is_empty());
    match out.iter().find_map(|level| Some((level.level, level.not_compared.as_ref()?))) {
        Some((level, why)) if equal => {
            let error = Error::input(format!("comparing the {} of {} and {}: {why}", level.name(), a.shown, b.shown));
            Err(error.with_hint("without --only their bytes are compared, whatever they hold"))
        }
        _ => Ok(Comparison { a: a.name(), b: b.name(), equal, levels: out }),
    }
}

/// A level of disks with the same bytes: only the profile in their folders may still differ.
fn alike(a: &Side, b: &Side, level: Level) -> Result<Compared> {
    let changes = if level == Level::Config { profile(a, b)?.0 } else { Vec::new() };
    Ok(Compared { level, same: None, not_compared: None, changes })
}

/// The levels within two roots.
fn within(roots: &Roots<'_>, levels: &[Level], progress: &Progress) -> Result<Vec<Compared>> {
    let owners = if levels.contains(&Level::Files) { Owners::find(roots.a.1, roots.b.1)? } else { Owners::default() };
    let etc = TreePath::new("etc").map_err(Error::internal)?;
    let one = |level: &Level| {
        Ok(match level {
            // The disk is no part of a root; it has been compared.
            Level::Disk => Compared::found(Level::Disk, (Vec::new(), 0)),
            Level::Packages => packages(roots)?,
            Level::Images => Compared::found(Level::Images, lists(roots, images)?),
            Level::Charts => Compared::found(Level::Charts, lists(roots, charts)?),
            Level::Config => {
                let (mut changes, same) = profile(roots.a.0, roots.b.0)?;
                let (below, more) = files::compare(roots, |path| path.is_within(&etc), &Owners::default(), progress)?;
                changes.extend(below);
                Compared::found(Level::Config, (changes, same + more))
            }
            Level::Files => Compared::found(Level::Files, files::compare(roots, |path| !path.is_within(&etc), &owners, progress)?),
        })
    };
    levels.iter().map(one).collect()
}

fn lists(roots: &Roots<'_>, of: fn(&Root) -> Result<Vec<Item>>) -> Result<(Vec<Change>, usize)> {
    let read = |(side, root): (&Side, &Root)| of(root).context(|| format!("reading {}", side.shown));
    Ok(between(read(roots.a)?, read(roots.b)?))
}

fn packages(roots: &Roots<'_>) -> Result<Compared> {
    let read = |(side, root): (&Side, &Root)| contents::packages(root).context(|| format!("reading {}", side.shown));
    Ok(match (read(roots.a)?, read(roots.b)?) {
        (Packages::Known(a), Packages::Known(b)) => Compared::found(Level::Packages, between(package_items(&a), package_items(&b))),
        (Packages::Unread(why), _) => Compared::missed(Level::Packages, format!("{}: {why}", roots.a.0.shown)),
        (_, Packages::Unread(why)) => Compared::missed(Level::Packages, format!("{}: {why}", roots.b.0.shown)),
    })
}

/// Packages by name, with the architecture where several are installed.
fn package_items(packages: &[Package]) -> Vec<Item> {
    let has_twin =
        |n: usize| [n.checked_sub(1), Some(n + 1)].into_iter().flatten().any(|m| packages.get(m).is_some_and(|p| p.name == packages[n].name));
    let one = |(n, p): (usize, &Package)| {
        let name = if has_twin(n) { format!("{}:{}", p.name, p.architecture) } else { p.name.clone() };
        Item { what: "package", name, facts: vec![("version".into(), p.version.clone()), ("architecture".into(), p.architecture.clone())] }
    };
    packages.iter().enumerate().map(one).collect()
}

fn images(root: &Root) -> Result<Vec<Item>> {
    let found = contents::images(root)?.images.into_iter();
    Ok(found.map(|image| Item { what: "image", name: image.name, facts: vec![("digest".into(), image.digest.to_string())] }).collect())
}

fn charts(root: &Root) -> Result<Vec<Item>> {
    let seed = contents::seed(root)?;
    let mut out = Vec::new();
    for release in seed.releases {
        let name = format!("{}/{}", release.namespace, release.name);
        let mut facts = facts_of(&release)?;
        // Who asks and what its file is called changes nothing on a cluster.
        facts.retain(|(name, _)| !matches!(name.as_str(), "name" | "namespace" | "file" | "wantedBy"));
        facts.sort_by_key(|(name, _)| (name != "chart", name != "version"));
        out.push(Item { what: "release", name, facts });
    }
    for cluster in seed.virtual_clusters {
        let name = cluster.metadata.name.clone().unwrap_or_default();
        out.push(Item { what: "virtual cluster", name, facts: facts_of(&cluster.spec)? });
    }
    for component in seed.components {
        let name = component.metadata.name.clone().unwrap_or_default();
        out.push(Item { what: "component", name, facts: facts_of(&component.spec)? });
    }
    Ok(out)
}

fn facts_of(value: &impl Serialize) -> Result<Facts> {
    serde_json::to_value(value).map(|value| leaves(&value)).map_err(|e| Error::internal(format!("encoding an object of the seed: {e}")))
}

/// The profile, as the result folders have it, or what the images tell their nodes of it.
fn profile(a: &Side, b: &Side) -> Result<(Vec<Change>, usize)> {
    let whole = [a, b].map(|side| side.folder.as_ref().map(|folder| folder.join(PROFILE)).filter(|path| path.is_file()));
    let told = |side: &Side| side.image.root.as_ref().map_or(Ok(None), |root| root.json(&format!("/{IMAGE_RECORD}")));
    let [a, b] = match whole {
        [Some(a), Some(b)] => [Some(document(&a)?), Some(document(&b)?)],
        _ => [told(a)?, told(b)?],
    };
    let one = |(name, value)| Item { what: "setting", name, facts: vec![(String::new(), value)] };
    let items = |document: Option<Value>| document.iter().flat_map(leaves).map(one).collect();
    Ok(between(items(a), items(b)))
}

fn document(path: &Path) -> Result<Value> {
    let reading = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(path).context(reading)?;
    serde_saphyr::from_str(&text).fault(Fault::Input, reading)
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Packages => "packages",
            Self::Images => "images",
            Self::Charts => "charts",
            Self::Config => "config",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, side) in [('A', &self.a), ('B', &self.b)] {
            for line in &side.unread {
                writeln!(f, "{letter}: not read, compared by bytes only: {}", visible(line))?;
            }
        }
        self.levels.iter().try_for_each(|level| write!(f, "{level}"))
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = How::ALL.map(|how| (how, self.changes.iter().filter(|c| c.change == how).count()));
        let mut told: Vec<_> = counted.iter().filter(|(_, n)| *n > 0).map(|(how, n)| format!("{n} {}", how.word())).collect();
        told.push(match (&self.not_compared, self.same) {
            (Some(why), _) => format!("not compared: {}", visible(why)),
            (None, Some(same)) => format!("{same} the same"),
            (None, None) => "the same".into(),
        });
        writeln!(f, "{}: {}", self.level.name(), told.join(", "))?;
        self.changes.iter().filter(|c| c.of.is_none()).try_for_each(|change| writeln!(f, "  {change}"))?;
        for (owner, counts) in files::by_owner(&self.changes) {
            let told: Vec<_> = How::ALL.iter().filter_map(|how| Some(format!("{} {}", counts.get(how)?, how.word()))).collect();
            writeln!(f, "  files of {}: {}", visible(owner), told.join(", "))?;
        }
        Ok(())
    }
}
