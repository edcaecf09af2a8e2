//! Packages: the list of a component's binary packages (Debian repository format), kept small.
//!
//! All text that is needed lies in one string and records point into it; the parsed form is kept in the store under the digest of what it was
//! read from, so that a second run neither decompresses nor parses.

use std::io::{BufRead, BufReader, Read};

use deb822_fast::borrowed::{BorrowedParagraph, BorrowedParser};
use layers::units::Digest;
use layers::{Context, Error, Fault, Result};
use serde::{Deserialize, Serialize};

/// Shape of the parsed form; part of its key in the store.
pub const SHAPE: &[u8] = b"deb index 2";

/// Longest stanza; Debian's longest has some 100 KiB.
const STANZA_LIMIT: usize = 4 << 20;

/// The packages of one component of one suite.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Index {
    text: String,
    records: Vec<Record>,
}

/// A part of the index's text: start and length.
type Span = (u32, u32);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    spans: [Span; KEPT.len()],
    size: u64,
    sha256: [u8; 32],
    rank: Rank,
}

/// Fields that are kept as text, in the order of `Record::spans`.
const KEPT: [&str; 11] =
    ["Package", "Version", "Architecture", "Source", "Filename", "Pre-Depends", "Depends", "Provides", "Conflicts", "Breaks", "Multi-Arch"];

/// How much a package is wanted by default; earlier is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rank {
    /// `Essential: yes`.
    Essential,
    /// `Priority: required`.
    Required,
    /// `Priority: important`.
    Important,
    /// `Priority: standard`.
    Standard,
    /// All others.
    Optional,
}

/// One package of an index.
#[derive(Clone, Copy, Debug)]
pub struct Package<'a> {
    text: &'a str,
    record: &'a Record,
}

impl<'a> Package<'a> {
    fn field(&self, n: usize) -> &'a str {
        let (start, length) = self.record.spans[n];
        self.text.get(start as usize..(start + length) as usize).unwrap_or_default()
    }

    /// Name.
    pub fn name(&self) -> &'a str {
        self.field(0)
    }

    /// Version.
    pub fn version(&self) -> &'a str {
        self.field(1)
    }

    /// Architecture, `all` included.
    pub fn architecture(&self) -> &'a str {
        self.field(2)
    }

    /// Source package, when it differs by name or version.
    pub fn source(&self) -> Option<&'a str> {
        Some(self.field(3)).filter(|s| !s.is_empty())
    }

    /// Path below the archive's base.
    pub fn filename(&self) -> &'a str {
        self.field(4)
    }

    /// Pre-Depends and Depends.
    pub fn depends(&self) -> [&'a str; 2] {
        [self.field(5), self.field(6)]
    }

    /// Provides.
    pub fn provides(&self) -> &'a str {
        self.field(7)
    }

    /// Conflicts and Breaks.
    pub fn conflicts(&self) -> [&'a str; 2] {
        [self.field(8), self.field(9)]
    }

    /// Multi-Arch.
    pub fn multi_arch(&self) -> &'a str {
        self.field(10)
    }

    /// Size of the .deb in bytes.
    pub fn size(&self) -> u64 {
        self.record.size
    }

    /// Digest of the .deb.
    pub fn sha256(&self) -> Digest {
        Digest(self.record.sha256)
    }

    /// How much it is wanted by default.
    pub fn rank(&self) -> Rank {
        self.record.rank
    }
}

impl Index {
    /// All packages, in the order of the file.
    pub fn packages(&self) -> impl Iterator<Item = Package<'_>> {
        self.records.iter().map(|record| Package { text: &self.text, record })
    }

    /// The package at a position.
    pub fn package(&self, position: usize) -> Package<'_> {
        Package { text: &self.text, record: &self.records[position] }
    }

    /// Number of packages.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no package.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Reads a Packages file stanza by stanza; `architecture` is the machine's, and packages of others are passed over.
    pub fn read(from: impl Read, architecture: &str) -> Result<Self> {
        let mut index = Self::default();
        let mut reader = BufReader::with_capacity(1 << 20, from);
        let (mut stanza, mut line) = (String::new(), 1);
        loop {
            stanza.clear();
            let lines = next_stanza(&mut reader, &mut stanza).context(|| format!("reading line {line} and on"))?;
            if lines == 0 {
                index.text.shrink_to_fit();
                return Ok(index);
            }
            index.add(&stanza, architecture).context(|| format!("reading the stanza at line {line}"))?;
            line += lines;
        }
    }

    fn add(&mut self, stanza: &str, architecture: &str) -> Result<()> {
        let paragraphs = BorrowedParser::new(stanza).parse_all().fault(Fault::Input, || "reading fields".into())?;
        for paragraph in &paragraphs {
            let record = self.record(paragraph)?;
            let position = self.records.len();
            self.records.push(record);
            let package = self.package(position);
            check(&package)?;
            if ![architecture, "all"].contains(&package.architecture()) {
                self.records.pop();
            }
        }
        Ok(())
    }

    fn record(&mut self, paragraph: &BorrowedParagraph) -> Result<Record> {
        let name = paragraph.get_single("Package").ok_or_else(|| Error::input("a package has no name"))?;
        let missing = |field: &str| Error::input(format!("package {name}: {field} is missing or unreadable"));
        let size = paragraph.get_single("Size").and_then(|s| s.parse().ok()).ok_or_else(|| missing("Size"))?;
        let sha256: Digest = paragraph.get_single("SHA256").and_then(|s| s.parse().ok()).ok_or_else(|| missing("SHA256"))?;
        let mut spans = [(0, 0); KEPT.len()];
        for (span, field) in spans.iter_mut().zip(KEPT) {
            *span = self.keep(paragraph.get(field).unwrap_or_default())?;
        }
        Ok(Record { spans, size, sha256: sha256.0, rank: rank(paragraph) })
    }

    fn keep(&mut self, lines: &[&str]) -> Result<Span> {
        let start = self.text.len();
        for (n, line) in lines.iter().enumerate() {
            self.text.push_str(if n > 0 { " " } else { "" });
            self.text.push_str(line.trim());
        }
        let end = u32::try_from(self.text.len()).map_err(|_| Error::input("the index holds more than 4 GiB"))?;
        Ok((start as u32, end - start as u32))
    }
}

/// Appends lines up to and without the next empty one; returns how many were read, 0 at the end.
fn next_stanza(reader: &mut impl BufRead, stanza: &mut String) -> Result<usize> {
    let (mut lines, mut bytes) = (0, Vec::new());
    loop {
        let before = bytes.len();
        let n = reader.by_ref().take(STANZA_LIMIT as u64).read_until(b'\n', &mut bytes).fault(Fault::Input, || "decompressing".into())?;
        lines += usize::from(n > 0);
        let line = &bytes[before..];
        if bytes.len() >= STANZA_LIMIT {
            return Err(Error::input(format!("a stanza has more than {STANZA_LIMIT} bytes")));
        }
        if n == 0 || line == b"\n" || line == b"\r\n" {
            break;
        }
    }
    stanza.push_str(std::str::from_utf8(&bytes).fault(Fault::Input, || "reading text".into())?);
    Ok(lines)
}

/// What is used as a name, version or path must look like one: it becomes part of addresses, of the lock and of messages.
fn check(package: &Package) -> Result<()> {
    let name = package.name();
    let plain = |text: &str, more: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    if !plain(name, "+-.") || name.starts_with(['-', '.', '+']) {
        return Err(Error::input(format!("`{}` is not a package name", name.escape_debug())));
    }
    let version = package.version();
    if super::relation::parts(version).is_none() {
        return Err(Error::input(format!("package {name}: `{}` is not a version", version.escape_debug())));
    }
    if !plain(package.architecture(), "-") {
        return Err(Error::input(format!("package {name}: `{}` is not an architecture", package.architecture().escape_debug())));
    }
    if !layers::lock::is_pool_path(package.filename()) {
        return Err(Error::input(format!("package {name}: `{}` is not a path below the archive", package.filename().escape_debug())));
    }
    Ok(())
}

fn rank(paragraph: &BorrowedParagraph) -> Rank {
    match paragraph.get_single("Priority") {
        _ if paragraph.get_single("Essential") == Some("yes") => Rank::Essential,
        Some("required") => Rank::Required,
        Some("important") => Rank::Important,
        Some("standard") => Rank::Standard,
        _ => Rank::Optional,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(more: &str) -> String {
        format!("Package: a\nVersion: 1.0-1\nArchitecture: amd64\nFilename: pool/a.deb\nSize: 10\nSHA256: {}\n{more}\n", "1".repeat(64))
    }

    #[test]
    fn stanzas_read_and_survive_the_store() {
        let text = stanza("Depends: b (>= 2),\n c | d\nEssential: yes\nSource: s (3)\nDescription: x\n y\n .\n z\n")
            + "\n\n"
            + &stanza("Priority: required\nArchitecture: x\n");
        let text = text + &stanza("").replace("amd64", "armhf") + &stanza("").replace("amd64", "all");
        let index = Index::read(text.as_bytes(), "amd64").unwrap();
        assert_eq!(index.len(), 3);
        let first = index.package(0);
        assert_eq!((first.name(), first.version(), first.depends()[1], first.source()), ("a", "1.0-1", "b (>= 2), c | d", Some("s (3)")));
        assert_eq!((first.rank(), index.package(1).rank(), index.package(2).architecture()), (Rank::Essential, Rank::Required, "all"));
        let again: Index = postcard::from_bytes(&postcard::to_stdvec(&index).unwrap()).unwrap();
        assert_eq!(again, index);
    }

    #[test]
    fn hostile_stanzas_are_refused_by_name() {
        let table = [
            ("Package: a", "Package: ../a", "`../a` is not a package name"),
            ("Version: 1.0-1", "Version: 1 0", "package a: `1 0` is not a version"),
            ("pool/a.deb", "pool/../../etc/x", "not a path below the archive"),
            ("pool/a.deb", "/etc/x", "not a path below the archive"),
            ("Size: 10", "Size: -1", "package a: Size"),
            ("SHA256: 1", "SHA256: x", "package a: SHA256"),
            ("Package: a\n", "", "no name"),
        ];
        for (from, to, says) in table {
            let error = Index::read(stanza("").replace(from, to).as_bytes(), "amd64").unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("line 1"), "{error}");
        }
    }
}
