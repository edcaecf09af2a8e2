//! The levels of configuration and files: entries of two roots by path. Times are not compared: a later build of the same has later ones.

use std::collections::{BTreeMap, BTreeSet};

use layers::units::Digest;
use layers::{Context, Result};
use rayon::prelude::*;

use super::Side;
use super::change::{Change, Facts, How, Item};
use super::owners::Owners;
use crate::fs::erofs::{Entry, What};
use crate::inspect::files::Root;
use crate::progress::Progress;
use crate::tree::TreePath;

/// Bytes of two files that are compared at once.
const PIECE: u64 = 1 << 20;

/// Both roots with what messages call them.
pub struct Roots<'a> {
    /// The first.
    pub a: (&'a Side, &'a Root),
    /// The second.
    pub b: (&'a Side, &'a Root),
}

/// Inode numbers of a file on both sides.
type Twins = (u64, u64);

/// One path on both sides.
struct Pair<'a> {
    path: &'a TreePath,
    a: Option<&'a Entry>,
    b: Option<&'a Entry>,
}

impl Pair<'_> {
    /// Size and inode numbers of two files of one size, whose contents have to be read to tell whether they are the same.
    fn twins(&self) -> Option<(Twins, u64)> {
        let (a, b) = (self.a?, self.b?);
        match (&a.what, &b.what) {
            (What::File(x), What::File(y)) if x == y => Some(((a.nid, b.nid), *x)),
            _ => None,
        }
    }
}

/// Compares the entries that `picked` picks; returns the differences in order of paths and how many entries are the same.
pub fn compare(roots: &Roots<'_>, picked: impl Fn(&TreePath) -> bool, owners: &Owners, progress: &Progress) -> Result<(Vec<Change>, usize)> {
    let (a, b) = (roots.a.1.reader().entries(), roots.b.1.reader().entries());
    let paths: BTreeSet<&TreePath> = a.keys().chain(b.keys()).filter(|path| picked(path)).collect();
    let pairs: Vec<_> = paths.into_iter().map(|path| Pair { path, a: a.get(path), b: b.get(path) }).collect();
    let unlike = unlike(roots, &pairs, progress)?;
    let changes: Vec<_> = pairs.par_iter().filter_map(|pair| change(roots, pair, &unlike, owners).transpose()).collect::<Result<_>>()?;
    let same = pairs.len() - changes.len();
    Ok((changes, same))
}

/// Files of one size with other contents. What has several names is read once.
fn unlike(roots: &Roots<'_>, pairs: &[Pair<'_>], progress: &Progress) -> Result<BTreeSet<Twins>> {
    let twins: BTreeMap<Twins, (&TreePath, u64)> = pairs.iter().filter_map(|p| p.twins().map(|(twins, size)| (twins, (p.path, size)))).collect();
    progress.start("comparing files", twins.len() as u64, twins.values().map(|(_, size)| size).sum());
    let one = |(twins, (path, size)): (Twins, (&TreePath, u64))| {
        let same = is_same(roots, path, size, progress)?;
        progress.finish_file();
        Ok((!same).then_some(twins))
    };
    let found = twins.into_par_iter().map(one).collect::<Result<Vec<Option<Twins>>>>();
    progress.finish();
    Ok(found?.into_iter().flatten().collect())
}

fn is_same(roots: &Roots<'_>, path: &TreePath, size: u64, progress: &Progress) -> Result<bool> {
    let (mut x, mut y) = (vec![0; PIECE.min(size) as usize], vec![0; PIECE.min(size) as usize]);
    for at in (0..size).step_by(PIECE as usize) {
        let length = (size - at).min(PIECE) as usize;
        for ((side, root), buffer) in [(roots.a, &mut x), (roots.b, &mut y)] {
            root.reader().read_at(path, &mut buffer[..length], at).context(|| format!("reading {}", side.shown))?;
        }
        progress.advance(length as u64);
        if x[..length] != y[..length] {
            return Ok(false);
        }
    }
    Ok(true)
}

fn change(roots: &Roots<'_>, pair: &Pair<'_>, unlike: &BTreeSet<Twins>, owners: &Owners) -> Result<Option<Change>> {
    let items = (pair.a.map(|entry| item(pair.path, entry)), pair.b.map(|entry| item(pair.path, entry)));
    let (Some(mut a), Some(mut b)) = items else {
        let change = Change::between(items.0, items.1);
        return Ok(change.map(|change| Change { of: owners.of(pair.path), ..change }));
    };
    let both_files = matches!((pair.a.map(|e| &e.what), pair.b.map(|e| &e.what)), (Some(What::File(_)), Some(What::File(_))));
    if both_files && pair.twins().is_none_or(|(twins, _)| unlike.contains(&twins)) {
        a.facts.push(("sha256".into(), digest(roots.a, pair.path)?.to_string()));
        b.facts.push(("sha256".into(), digest(roots.b, pair.path)?.to_string()));
    }
    // A folder that many packages share is nobody's.
    let of = if b.what == "folder" { None } else { owners.of(pair.path) };
    Ok(Change::between(Some(a), Some(b)).map(|change| Change { of, ..change }))
}

fn digest((side, root): (&Side, &Root), path: &TreePath) -> Result<Digest> {
    root.reader().digest(path).context(|| format!("reading {}", side.shown))
}

fn item(path: &TreePath, entry: &Entry) -> Item {
    let mut facts = Facts::new();
    let mut fact = |name: &str, value: String| facts.push((name.into(), value));
    fact("mode", format!("{:04o}", entry.mode));
    fact("owner", format!("{}:{}", entry.uid, entry.gid));
    let what = match &entry.what {
        What::Directory => "folder",
        What::File(size) => {
            fact("size", size.to_string());
            "file"
        }
        What::Symlink(target) => {
            fact("target", String::from_utf8_lossy(target).into_owned());
            "link"
        }
        What::CharDevice(major, minor) | What::BlockDevice(major, minor) => {
            fact("device", format!("{major},{minor}"));
            if matches!(entry.what, What::CharDevice(..)) { "character device" } else { "block device" }
        }
        What::Fifo => "pipe",
    };
    fact("type", what.into());
    for (name, value) in &entry.xattrs {
        fact(&format!("xattr {}", String::from_utf8_lossy(name)), hex::encode(value));
    }
    Item { what, name: path.to_string(), facts }
}

/// How many entries come with each owner, by what became of them.
pub fn by_owner(changes: &[Change]) -> BTreeMap<&str, BTreeMap<How, usize>> {
    let mut out = BTreeMap::<&str, BTreeMap<How, usize>>::new();
    for change in changes {
        if let Some(of) = &change.of {
            *out.entry(of).or_default().entry(change.change).or_default() += 1;
        }
    }
    out
}
