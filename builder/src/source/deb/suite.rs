//! One suite as it is now: its verified InRelease and the parsed indices of the wanted components.

use std::fs::File;
use std::io::Read;

use layers::lock::{Index as LockedIndex, Lock};
use layers::units::Digest;
use layers::{Context, Error, Result};

use super::fetch::{Got, obtain};
use super::index::{Index, SHAPE};
use super::release::{self, ByHash, FileEntry, Keyring, Release};
use super::{Archive, Offline, Want};

/// Most that an unpacked Packages file may hold when InRelease does not say; Debian's largest has 60 MB.
const UNPACKED_LIMIT: u64 = 1 << 30;

/// A suite and its packages.
#[derive(Debug)]
pub struct Suite {
    /// What the lock keeps of it.
    pub locked: LockedIndex,
    /// Packages by component, in the order of asking.
    pub indices: Vec<Index>,
}

/// Fetches and verifies a suite; an InRelease older than the one `previous` was made from is a replay. When the archive changes under our hands
/// everything is read once more.
pub fn load(archive: &Archive, suite: &str, components: &[String], architecture: &str, previous: Option<&Lock>) -> Result<Suite> {
    let keyring = Keyring::open(&archive.keyring)?;
    let base = format!("{}/dists/{suite}", archive.mirrors.base(suite)?);
    let read = || read(archive, suite, &base, components, architecture, previous, &keyring);
    let result = match read() {
        Ok(Some(suite)) => return Ok(suite),
        Ok(None) => read(),
        Err(error) => Err(error),
    };
    let name = || format!("reading suite {suite} at {}", crate::source::http::show(&base));
    result.context(name)?.ok_or_else(|| Error::environment(format!("{}: its indices do not match its InRelease", name())))
}

/// Nothing when an index is not the one that InRelease speaks of.
fn read(
    archive: &Archive,
    suite: &str,
    base: &str,
    components: &[String],
    architecture: &str,
    previous: Option<&Lock>,
    keyring: &Keyring,
) -> Result<Option<Suite>> {
    if archive.offline == Offline::Required {
        return Err(Error::environment("locking needs the network, which was forbidden"));
    }
    let url = format!("{base}/InRelease");
    let signed = archive.http.get(&url, release::LIMIT)?;
    let signed = signed.ok_or_else(|| {
        Error::environment("there is no InRelease").with_hint(
            "check the suite's name and the mirror's base URL; a suite without updates of its own, such as sid, needs `debian.updates: false`",
        )
    })?;
    let release = release::open(&signed, suite, keyring, archive.now).context(|| "verifying InRelease".into())?;
    check_replay(&release, previous)?;
    let mut indices = Vec::new();
    for component in components {
        match index(archive, base, &release, component, architecture).context(|| format!("reading component {component}"))? {
            Some(index) => indices.push(index),
            None => return Ok(None),
        }
    }
    let locked = LockedIndex { suite: suite.into(), sha256: archive.store.put_blob(&signed)?, date: release.date, signed_by: release.signed_by };
    Ok(Some(Suite { locked, indices }))
}

fn check_replay(release: &Release, previous: Option<&Lock>) -> Result<()> {
    let known = previous.and_then(|lock| lock.indices.iter().find(|i| i.suite == release.suite));
    match known {
        Some(known) if known.date > release.date => Err(Error::input(format!(
            "its InRelease is older than the one that the lock was made from ({} seconds): a replay or a stale mirror",
            known.date - release.date
        ))
        .with_hint("use another mirror")),
        _ => Ok(()),
    }
}

/// Compressions in order of preference; by the end of the file's name.
const FORMS: [&str; 3] = [".xz", ".gz", ""];

fn index(archive: &Archive, base: &str, release: &Release, component: &str, architecture: &str) -> Result<Option<Index>> {
    let plain = format!("{component}/binary-{architecture}/Packages");
    let listed = FORMS.iter().find_map(|form| Some((*form, *release.files.get(&format!("{plain}{form}"))?)));
    let (form, entry) = listed.ok_or_else(|| Error::input(format!("its InRelease lists no {plain}")))?;
    let key = Digest::of_parts([SHAPE, architecture.as_bytes(), entry.sha256.0.as_slice()]);
    if let Some(index) = archive.store.load("deb-index", &key)? {
        return Ok(Some(index));
    }
    let want = want(base, release, &format!("{plain}{form}"), entry);
    match obtain(archive, &want)? {
        Got::Present => {}
        Got::Missing | Got::Wrong(_) => return Ok(None),
    }
    let limit = release.files.get(&plain).map_or(UNPACKED_LIMIT, |e| e.size);
    let file = File::open(archive.store.blob(&entry.sha256)).context(|| format!("opening {plain}{form}"))?;
    let index = Index::read(Bounded { inner: unpacked(file, form), left: limit }, architecture)?;
    archive.store.save("deb-index", &key, &index)?;
    Ok(Some(index))
}

fn want(base: &str, release: &Release, name: &str, entry: FileEntry) -> Want {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let by_hash = (release.by_hash == ByHash::Served).then(|| format!("{base}/{folder}/by-hash/SHA256/{}", entry.sha256.hex()));
    let urls = by_hash.into_iter().chain([format!("{base}/{name}")]).collect();
    Want { label: name.into(), sha256: entry.sha256, size: entry.size, urls }
}

fn unpacked(file: File, form: &str) -> Box<dyn Read> {
    match form {
        ".xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(file)),
        ".gz" => Box::new(flate2::read::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    }
}

/// A reader that fails, rather than ends, where more bytes come than were declared.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| std::io::Error::other("it unpacks to more bytes than declared"))?;
        Ok(n)
    }
}
