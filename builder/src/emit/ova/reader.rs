//! Reads the disk of an OVA, ours or foreign, after its manifest and the manifest's signature have been compared.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use layers::units::Digest;
use layers::{Context, Error, Fault, Result};

use super::{certificate, descriptor, parse_line};
use crate::disk::file::Window;
use crate::disk::{ReadAt, sha256};
use crate::emit::archive;
use crate::emit::vmdk::reader::Reader as Vmdk;

/// Largest descriptor or manifest, in bytes.
const LARGEST_TEXT: u64 = 4 << 20;

/// The disk inside a file.
pub fn open(file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
    let files = archive::files(&file).context(|| "reading the OVA".into())?;
    let of_kind = |ending: &str| files.iter().find(|(name, _)| name.to_ascii_lowercase().ends_with(ending));
    let (_, descriptor) = of_kind(".ovf").ok_or_else(|| Error::input("reading the OVA: it has no descriptor, a file that ends in .ovf"))?;
    let disk = descriptor::disk_file(&text(file.as_ref(), descriptor)?)?;
    let part = files.get(&disk).ok_or_else(|| Error::input(format!("reading the OVA: `{disk}`, which its descriptor names, is missing")))?;
    if let Some((name, manifest)) = of_kind(".mf") {
        let manifest = text(file.as_ref(), manifest).context(|| format!("reading {name}"))?;
        if let Some((_, signed)) = of_kind(".cert") {
            certificate::compare(&text(file.as_ref(), signed)?, name, &manifest)?;
        }
        compare(file.as_ref(), &files, &manifest)?;
    }
    let window = Window::new(file, part.start, part.end - part.start);
    Ok(Arc::new(Vmdk::open(Arc::new(window)).context(|| format!("reading `{disk}` of the OVA"))?))
}

fn text(file: &dyn ReadAt, part: &Range<u64>) -> Result<String> {
    let size = part.end - part.start;
    if size > LARGEST_TEXT {
        return Err(Error::input(format!("{size} bytes are too many, {LARGEST_TEXT} are read")));
    }
    let mut bytes = vec![0; size as usize];
    file.read_at(&mut bytes, part.start)?;
    String::from_utf8(bytes).fault(Fault::Input, || "reading the OVA's text".into())
}

/// Compares the files with the manifest's SHA256 lines; other digests are not known and not compared.
fn compare(file: &dyn ReadAt, files: &BTreeMap<String, Range<u64>>, manifest: &str) -> Result<()> {
    for line in manifest.lines() {
        let Some((name, digest)) = parse_line(line) else { continue };
        let refused = |why: String| Err(Error::input(format!("reading the OVA: {why}")));
        let Some(part) = files.get(name) else { return refused(format!("`{name}`, which its manifest names, is missing")) };
        let found = sha256(&Window::new(file, part.start, part.end - part.start))?;
        match digest.parse::<Digest>() {
            Ok(expected) if expected == found => {}
            Ok(expected) => return refused(format!("`{name}` has SHA-256 {}, its manifest says {}", found.hex(), expected.hex())),
            Err(why) => return refused(format!("the manifest's digest of `{name}` is none: {why}")),
        }
    }
    Ok(())
}
