//! One suite as it is now: its verified InRelease and the parsed indices of the wanted components.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, UNIX_EPOCH};

use layers::lock::{Index as LockedIndex, Lock};
use layers::units::Digest;
use layers::{Context, Error, Result};
use serde::{Deserialize, Serialize};

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

/// A suite as it was last read, from which `lock --offline` reads it again. The store keeps one for each suite with its components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Digest of its InRelease among the blobs.
    pub signed: Digest,
    /// Seconds since 1970 at which that was judged to be valid.
    pub seen: u64,
    /// Its lists of packages.
    pub lists: Vec<List>,
}

/// A list of packages: the download, and what the store keeps of it. One of the two is enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// Digest of the download among the blobs.
    pub blob: Digest,
    /// Key of the parsed list.
    pub key: Digest,
}

/// Kinds of derived results: suites as they were last read, parsed lists.
pub const KNOWN: &str = "suite";
/// See [`KNOWN`].
pub const PARSED: &str = "deb-index";

fn known_key(suite: &str, components: &[String], architecture: &str) -> Digest {
    let words = [suite, architecture].into_iter().chain(components.iter().map(String::as_str));
    Digest::of_parts(words.map(str::as_bytes))
}

/// Fetches and verifies a suite, offline from what the store holds of it; an InRelease older than the one `previous` was made from is a replay. When the archive changes under our hands
/// everything is read once more.
pub fn load(archive: &Archive, suite: &str, components: &[String], architecture: &str, previous: Option<&Lock>) -> Result<Suite> {
    let keyring = Keyring::open(&archive.keyring)?;
    let keyed = known_key(suite, components, architecture);
    if archive.offline == Offline::Required {
        return stored(archive, suite, components, architecture, previous, &keyring, &keyed)
            .context(|| format!("reading suite {suite} in the store"));
    }
    let base = format!("{}/dists/{suite}", archive.mirrors.base(suite)?);
    let read = || read(archive, suite, &base, components, architecture, previous, &keyring);
    let result = match read() {
        Ok(None) => read(),
        other => other,
    };
    let name = || format!("reading suite {suite} at {}", crate::source::http::show(&base));
    let read = result.context(name)?;
    let (suite, known) = read.ok_or_else(|| Error::environment(format!("{}: its indices do not match its InRelease", name())))?;
    archive.store.save(KNOWN, &keyed, &known)?;
    Ok(suite)
}

/// The suite as it was last read.
fn stored(
    archive: &Archive,
    suite: &str,
    components: &[String],
    architecture: &str,
    previous: Option<&Lock>,
    keyring: &Keyring,
    key: &Digest,
) -> Result<Suite> {
    let absent = |what: &str| {
        Error::environment(format!("the store {} does not hold {what}", archive.store.root().display())).with_hint(
            "`chasi-bod lock PROFILE` with network puts it there; for another machine, `chasi-bod cache export PROFILE DIR` copies it, to be used with `--cache DIR`",
        )
    };
    let known = archive.store.load::<Known>(KNOWN, key)?.ok_or_else(|| absent("its signed index"))?;
    let signed = std::fs::read(archive.store.blob(&known.signed)).map_err(|_| absent("its signed index"))?;
    // Nothing newer can be had: it is judged at the moment when it was.
    let release = release::open(&signed, suite, keyring, UNIX_EPOCH + Duration::from_secs(known.seen)).context(|| "verifying InRelease".into())?;
    check_replay(&release, previous)?;
    let mut indices = Vec::new();
    for component in components {
        let (list, want, form) = list(&release, "", component, architecture)?;
        let there = archive.store.load::<Index>(PARSED, &list.key)?;
        let there = there.map(Ok).unwrap_or_else(|| match archive.store.blob(&list.blob).exists() {
            true => parse(archive, &release, &list, &want, form, architecture),
            false => Err(absent(&format!("the packages of component {component}"))),
        });
        indices.push(there.context(|| format!("reading component {component}"))?);
    }
    Ok(Suite { locked: LockedIndex { suite: suite.into(), sha256: known.signed, date: release.date, signed_by: release.signed_by }, indices })
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
) -> Result<Option<(Suite, Known)>> {
    let url = format!("{base}/InRelease");
    let signed = archive.http.get(&url, release::LIMIT)?;
    let signed = signed.ok_or_else(|| {
        Error::environment("there is no InRelease").with_hint(
            "check the suite's name and the mirror's base URL; a suite without updates of its own, such as sid, needs `debian.updates: false`",
        )
    })?;
    let release = release::open(&signed, suite, keyring, archive.now).context(|| "verifying InRelease".into())?;
    check_replay(&release, previous)?;
    let (mut indices, mut lists) = (Vec::new(), Vec::new());
    for component in components {
        match index(archive, base, &release, component, architecture).context(|| format!("reading component {component}"))? {
            Some((index, list)) => {
                indices.push(index);
                lists.push(list);
            }
            None => return Ok(None),
        }
    }
    let locked = LockedIndex { suite: suite.into(), sha256: archive.store.put_blob(&signed)?, date: release.date, signed_by: release.signed_by };
    let seen = archive.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let known = Known { signed: locked.sha256, seen, lists };
    Ok(Some((Suite { locked, indices }, known)))
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

/// The list of a component that InRelease speaks of, in its best form.
fn list(release: &Release, base: &str, component: &str, architecture: &str) -> Result<(List, Want, &'static str)> {
    let plain = format!("{component}/binary-{architecture}/Packages");
    let listed = FORMS.iter().find_map(|form| Some((*form, *release.files.get(&format!("{plain}{form}"))?)));
    let (form, entry) = listed.ok_or_else(|| Error::input(format!("its InRelease lists no {plain}")))?;
    let key = Digest::of_parts([SHAPE, architecture.as_bytes(), entry.sha256.0.as_slice()]);
    Ok((List { blob: entry.sha256, key }, want(base, release, &format!("{plain}{form}"), entry), form))
}

fn index(archive: &Archive, base: &str, release: &Release, component: &str, architecture: &str) -> Result<Option<(Index, List)>> {
    let (list, want, form) = list(release, base, component, architecture)?;
    if let Some(index) = archive.store.load(PARSED, &list.key)? {
        return Ok(Some((index, list)));
    }
    match obtain(archive, &want)? {
        Got::Present => {}
        Got::Missing | Got::Wrong(_) => return Ok(None),
    }
    Ok(Some((parse(archive, release, &list, &want, form, architecture)?, list)))
}

/// Reads a list out of the store and keeps what it says.
fn parse(archive: &Archive, release: &Release, list: &List, want: &Want, form: &str, architecture: &str) -> Result<Index> {
    let plain = want.label.strip_suffix(form).unwrap_or(&want.label);
    let limit = release.files.get(plain).map_or(UNPACKED_LIMIT, |e| e.size);
    let file = File::open(archive.store.blob(&list.blob)).context(|| format!("opening {}", want.label))?;
    let index = Index::read(Bounded { inner: unpacked(file, form), left: limit }, architecture)?;
    archive.store.save(PARSED, &list.key, &index)?;
    Ok(index)
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
