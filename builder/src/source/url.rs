//! Downloads that are known by their digest, and single files of archives among them.

use std::fs::File;
use std::io::{BufReader, Read};

use layers::source::{LockedFile, UrlSource};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

use super::deb::fetch::{Got, obtain};
use super::deb::{Archive, Want};
use crate::store::{PackWriter, Store};
use crate::tree::Content;

/// Largest file that one member of an archive may be.
const MEMBER_LIMIT: u64 = 1 << 30;
/// Most bytes that an archive may unpack to before the member is found.
const ARCHIVE_LIMIT: u64 = 8 << 30;

/// Fetches a declared download, so that its size can be locked with its digest.
pub fn lock(site: &Archive<'_>, name: &str, declared: &UrlSource) -> Result<LockedFile> {
    let stored = std::fs::metadata(site.store.blob(&declared.sha256)).ok().map(|meta| meta.len());
    let size = match stored {
        Some(size) => size,
        None => length(site, name, declared)?,
    };
    let locked = LockedFile { from: declared.from.clone(), sha256: declared.sha256, size: Bytes(size) };
    fetch(site, name, &locked)?;
    Ok(locked)
}

/// The size that the first address with the file gives.
fn length(site: &Archive<'_>, name: &str, declared: &UrlSource) -> Result<u64> {
    let mut failed = None;
    for url in &declared.from {
        match site.http.length(url) {
            Ok(Some(size)) => return Ok(size),
            Ok(None) => {}
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| missing(name, &declared.from)))
}

/// Puts a locked download into the store, from the first address that has it; resumed where it broke off.
pub fn fetch(site: &Archive<'_>, name: &str, locked: &LockedFile) -> Result<()> {
    let want = Want { label: format!("source {name}"), sha256: locked.sha256, size: locked.size.0, urls: locked.from.clone() };
    if site.store.blob(&want.sha256).exists() {
        return Ok(());
    }
    site.progress.start(&format!("fetching source {name}"), 1, want.size);
    let got = obtain(site, &want).context(|| format!("fetching source {name}"));
    if matches!(got, Ok(Got::Present)) {
        site.progress.finish_file();
    }
    site.progress.finish();
    match got? {
        Got::Present => Ok(()),
        Got::Missing => Err(missing(name, &locked.from)),
        Got::Wrong(got) => Err(Error::input(format!(
            "fetching source {name}: other bytes came, twice: expected {}, got {got}; the last ones are kept as {}",
            want.sha256,
            site.store.quarantine(&want.sha256).display()
        ))
        .with_hint("correct `sha256` if the file is the one you want")),
    }
}

fn missing(name: &str, urls: &[String]) -> Error {
    Error::input(format!("fetching source {name}: no address has it: {}", urls.join(", ")))
}

/// The whole download as a file's content.
pub fn whole(store: &Store, name: &str, locked: &LockedFile, pack: &mut PackWriter<'_>) -> Result<Content> {
    let path = store.blob(&locked.sha256);
    pack.add(&std::fs::read(&path).context(|| format!("reading source {name} from {}", path.display()))?)
}

/// One file of the download, an archive: tar, alone or compressed with gzip, xz or zstd.
pub fn member(store: &Store, name: &str, locked: &LockedFile, member: &str, pack: &mut PackWriter<'_>) -> Result<Content> {
    let bytes = extract(store, &locked.sha256, member).context(|| format!("reading {member} of source {name}"))?;
    pack.add(&bytes)
}

fn extract(store: &Store, sha256: &Digest, wanted: &str) -> Result<Vec<u8>> {
    let broken = || "reading the archive".to_string();
    let mut file = BufReader::new(File::open(store.blob(sha256)).context(|| "opening the archive".into())?);
    let mut magic = [0; 6];
    let length = std::io::Read::by_ref(&mut file).take(6).read(&mut magic).context(broken)?;
    file.seek_relative(-i64::try_from(length).unwrap_or(0)).context(broken)?;
    let plain: Box<dyn Read> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::read::XzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(file).context(broken)?),
        [b'P', b'K', ..] => return Err(Error::input("zip archives cannot be read").with_hint("name a tar archive")),
        _ => Box::new(file),
    };
    let mut archive = tar::Archive::new(plain.take(ARCHIVE_LIMIT));
    let mut near = Vec::new();
    for entry in archive.entries().context(broken)? {
        let mut entry = entry.context(broken)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
        if path != wanted {
            near.push(path);
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(Error::input("it is no regular file"));
        }
        if entry.size() > MEMBER_LIMIT {
            return Err(Error::input(format!("it has {} bytes, more than {MEMBER_LIMIT}", entry.size())));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).context(broken)?;
        return Ok(bytes);
    }
    let error = Error::input("the archive has no such file");
    Err(match layers::profile::suggest(wanted, near.iter().map(String::as_str)) {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}
