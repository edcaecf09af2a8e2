//! Where the archive is: the profile's word first, else the machine's own apt sources (sources.list(5), deb822 and one-line form).

use std::fs;
use std::path::{Path, PathBuf};

use deb822_fast::borrowed::{BorrowedParagraph, BorrowedParser};
use layers::profile::Debian;
use layers::{Context, Error, Result};

/// Base URLs without trailing slash; each has `dists/` and `pool/` below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// The archive.
    pub archive: String,
    /// The security archive, if one is known.
    pub security: Option<String>,
    /// A snapshot archive that keeps what the others dropped.
    pub snapshot: Option<String>,
    /// A shared store that serves `blobs/<sha256>`.
    pub cache: Option<String>,
}

impl Mirrors {
    /// Finds the base URLs for a profile; `root` is the machine's `/` (another folder in tests).
    pub fn find(root: &Path, debian: &Debian) -> Result<Self> {
        let entries = if debian.mirror.is_some() && debian.security_mirror.is_some() { Vec::new() } else { entries(root)? };
        let archive = debian.mirror.clone().or_else(|| archive(&entries, &debian.suite)).ok_or_else(|| {
            Error::environment(format!("finding the Debian archive for {}: no apt source of this machine serves one", debian.suite))
                .with_hint("name its base URL with `debian.mirror` in the profile")
        })?;
        let security = debian.security_mirror.clone().or_else(|| security(&entries));
        let trim = |url: String| url.trim_end_matches('/').to_string();
        Ok(Self { archive: trim(archive), security: security.map(trim), snapshot: debian.snapshot.clone().map(trim), cache: None })
    }

    /// The base URL that serves a suite.
    pub fn base(&self, suite: &str) -> Result<&str> {
        if !is_security(suite) {
            return Ok(&self.archive);
        }
        self.security.as_deref().ok_or_else(|| {
            Error::environment(format!("finding the archive of {suite}: no security archive is known"))
                .with_hint("name its base URL with `debian.securityMirror` in the profile, or set `debian.updates: false`")
        })
    }
}

/// Whether a suite is served by the security archive.
pub fn is_security(suite: &str) -> bool {
    suite.ends_with("-security")
}

/// One line or stanza of apt's configuration.
#[derive(Debug)]
struct Entry {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    debian_key: bool,
}

fn security(entries: &[Entry]) -> Option<String> {
    let serves = |e: &&Entry| e.suites.iter().any(|s| is_security(s));
    entries.iter().filter(serves).max_by_key(|e| e.debian_key).map(|e| e.uri.clone())
}

/// The likeliest archive: signed by Debian's keys, serving the suite or at least a Debian release with its `-updates`.
fn archive(entries: &[Entry], suite: &str) -> Option<String> {
    let pockets = ["-security", "-updates", "-backports"];
    let codenames: Vec<_> = entries.iter().flat_map(|e| &e.suites).filter_map(|s| pockets.iter().find_map(|p| s.strip_suffix(p))).collect();
    let score = |entry: &Entry| {
        let own = |s: &String| !is_security(s);
        let known = |s: &String| codenames.iter().any(|c| s.strip_prefix(c).is_some_and(|rest| rest.is_empty() || pockets.contains(&rest)));
        let rolling = |s: &String| ["sid", "unstable", "testing", "stable"].contains(&s.as_str());
        let mains = entry.suites.iter().any(own) && entry.components.iter().any(|c| c == "main");
        let points = 4 * i32::from(entry.debian_key)
            + 2 * i32::from(entry.suites.iter().any(|s| own(s) && (known(s) || rolling(s))))
            + i32::from(entry.suites.iter().any(|s| s == suite));
        if mains { points } else { 0 }
    };
    // The first of the best: `max_by_key` would give the last.
    let best = entries.iter().rev().max_by_key(|e| score(e))?;
    (score(best) > 0).then(|| best.uri.clone())
}

fn entries(root: &Path) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    let main = root.join("etc/apt/sources.list");
    for path in std::iter::once(main).chain(parts(&root.join("etc/apt/sources.list.d"))?).filter(|p| p.is_file()) {
        let bytes = fs::read(&path).context(|| format!("reading apt source {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        match path.extension().is_some_and(|e| e == "sources") {
            true => out.extend(stanzas(&text)),
            false => out.extend(text.lines().filter_map(line)),
        }
    }
    Ok(out)
}

fn parts(dir: &Path) -> Result<Vec<PathBuf>> {
    let Ok(read) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let all = read.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().context(|| format!("listing {}", dir.display()))?;
    let mut parts: Vec<_> = all.into_iter().filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources")).collect();
    parts.sort();
    Ok(parts)
}

/// deb822 form. A file that apt itself would refuse counts as empty: it is not ours to judge.
fn stanzas(text: &str) -> Vec<Entry> {
    let paragraphs = BorrowedParser::new(text).parse_all().unwrap_or_default();
    paragraphs.iter().flat_map(stanza).collect()
}

fn stanza(paragraph: &BorrowedParagraph) -> Vec<Entry> {
    let words = |name: &str| -> Vec<String> {
        let lines = paragraph.get(name).unwrap_or_default().iter();
        lines.filter(|l| !l.trim_start().starts_with('#')).flat_map(|l| l.split_whitespace()).map(str::to_string).collect()
    };
    let enabled = !matches!(words("Enabled").first().map(String::as_str), Some("no" | "false" | "0"));
    if !enabled || !words("Types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    let debian_key = words("Signed-By").iter().any(|k| k.contains("debian-archive"));
    let entry = |uri| Entry { uri, suites: words("Suites"), components: words("Components"), debian_key };
    words("URIs").into_iter().filter(|u| usable(u)).map(entry).collect()
}

/// One-line form: `deb [options] uri suite component…`.
fn line(line: &str) -> Option<Entry> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_string);
    let (uri, suite) = (words.next()?, words.next()?);
    let entry = Entry { uri, suites: vec![suite], components: words.collect(), debian_key: options.contains("debian-archive") };
    usable(&entry.uri).then_some(entry)
}

fn usable(uri: &str) -> bool {
    ["http://", "https://", "file:/"].iter().any(|s| uri.starts_with(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("etc/apt").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn deb822_sources_of_another_release_name_both_archives() {
        let text = "Types: deb deb-src\n# old\nURIs: http://m.test/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\
            Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://m.test/sec\nSuites: bookworm-security\nComponents: main\n\n\
            Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: trixie\nComponents: main\n";
        let other = "Types: deb\nURIs: https://third.test/node\nSuites: nodistro\nComponents: main\n";
        let root = machine(&[("sources.list.d/debian.sources", text), ("sources.list.d/a.sources", other)]);
        let mirrors = Mirrors::find(root.path(), &Debian::default()).unwrap();
        assert_eq!((mirrors.archive.as_str(), mirrors.security.as_deref()), ("http://m.test/debian", Some("http://m.test/sec")));
        assert_eq!(mirrors.base("trixie-security").unwrap(), "http://m.test/sec");
    }

    #[test]
    fn one_line_sources_are_read_and_third_parties_passed_over() {
        let text = "deb https://third.test/pg trixie-pgdg main\n#deb http://no.test/d trixie main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://m.test/debian trixie main contrib # here\ndeb http://m.test/sec trixie-security main\n\
            deb-src http://src.test/debian trixie main\n";
        let root = machine(&[("sources.list", text)]);
        let mirrors = Mirrors::find(root.path(), &Debian::default()).unwrap();
        assert_eq!((mirrors.archive.as_str(), mirrors.security.as_deref()), ("http://m.test/debian", Some("http://m.test/sec")));
    }

    #[test]
    fn the_profile_wins_and_nothing_found_is_an_error_with_a_hint() {
        let root = machine(&[]);
        let error = Mirrors::find(root.path(), &Debian::default()).unwrap_err();
        assert!(error.hint().unwrap().contains("debian.mirror"), "{error}");
        let debian = Debian { mirror: Some("http://mine.test/d/".into()), ..Debian::default() };
        let mirrors = Mirrors::find(root.path(), &debian).unwrap();
        assert_eq!(mirrors.archive, "http://mine.test/d");
        assert!(mirrors.base("trixie-security").unwrap_err().hint().unwrap().contains("securityMirror"));
    }
}
