//! InRelease: the signed table of contents of a suite (Debian repository format). Only bytes that the verifier returned are parsed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deb822_fast::borrowed::BorrowedParser;
use layers::units::Digest;
use layers::{Context, Error, Fault, Result};
use sequoia_openpgp::cert::CertParser;
use sequoia_openpgp::parse::Parse;
use sequoia_openpgp::parse::stream::{MessageLayer, MessageStructure, VerificationError, VerificationHelper, VerifierBuilder};
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::{Cert, KeyHandle};

/// Most that an InRelease may hold; Debian's largest has a quarter of a mebibyte.
pub const LIMIT: u64 = 16 << 20;

/// A verified table of contents.
#[derive(Clone, Debug)]
pub struct Release {
    /// Suite or code name that was asked for.
    pub suite: String,
    /// `Date` in seconds since 1970.
    pub date: i64,
    /// Whether files can be had by their digest.
    pub by_hash: ByHash,
    /// Files below the suite's folder.
    pub files: BTreeMap<String, FileEntry>,
    /// Fingerprints of the certificates whose signatures were good.
    pub signed_by: Vec<String>,
}

/// One file of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Digest.
    pub sha256: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// `Acquire-By-Hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByHash {
    /// Files are also served as `by-hash/SHA256/<digest>`.
    Served,
    /// Only by name.
    Absent,
}

/// The certificates that may sign.
#[derive(Debug)]
pub struct Keyring(Vec<Cert>);

impl Keyring {
    /// Reads a file of certificates, binary or armoured.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).context(|| format!("reading keyring {}", path.display()))?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads certificates, binary or armoured; `name` is for messages.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        let broken = |e| Error::input(format!("reading keyring {name}: {e:#}"));
        let certs = CertParser::from_bytes(bytes).and_then(Iterator::collect::<sequoia_openpgp::Result<Vec<_>>>).map_err(broken)?;
        if certs.is_empty() {
            return Err(Error::input(format!("reading keyring {name}: it holds no certificate")));
        }
        Ok(Self(certs))
    }

    /// Checks a clear-signed text and returns what was signed and by whom; one good signature of a known certificate is needed.
    pub fn verify(&self, signed: &[u8], now: SystemTime) -> Result<(String, Vec<String>)> {
        let refused = |e| Error::input(format!("checking the signature: {e:#}"));
        let policy = StandardPolicy::at(now);
        let helper = Helper { certs: &self.0, good: Vec::new() };
        let builder = VerifierBuilder::from_bytes(signed).map_err(refused)?;
        let mut verifier = builder.with_policy(&policy, now, helper).map_err(refused)?;
        let mut text = Vec::new();
        verifier.read_to_end(&mut text).map_err(|e| Error::input(format!("checking the signature: {e}")))?;
        if !verifier.message_processed() {
            return Err(Error::internal("checking the signature: the message was not read to its end"));
        }
        let good = verifier.into_helper().good;
        Ok((String::from_utf8(text).fault(Fault::Input, || "reading the signed text".into())?, good))
    }
}

struct Helper<'a> {
    certs: &'a [Cert],
    good: Vec<String>,
}

impl VerificationHelper for Helper<'_> {
    fn get_certs(&mut self, ids: &[KeyHandle]) -> sequoia_openpgp::Result<Vec<Cert>> {
        let wanted = |cert: &&Cert| cert.keys().any(|key| ids.iter().any(|id| id.aliases(key.key().key_handle())));
        Ok(self.certs.iter().filter(wanted).cloned().collect())
    }

    fn check(&mut self, structure: MessageStructure) -> sequoia_openpgp::Result<()> {
        let mut failures = Vec::new();
        for layer in structure {
            let MessageLayer::SignatureGroup { results } = layer else { continue };
            for result in results {
                match result {
                    Ok(good) => self.good.push(good.ka.cert().fingerprint().to_hex()),
                    Err(error) => failures.push(describe(&error)),
                }
            }
        }
        self.good.sort();
        self.good.dedup();
        match (self.good.is_empty(), failures.is_empty()) {
            (false, _) => Ok(()),
            (true, true) => Err(sequoia_openpgp::Error::InvalidOperation("it carries no signature".into()).into()),
            (true, false) => Err(sequoia_openpgp::Error::InvalidOperation(failures.join("; ")).into()),
        }
    }
}

fn describe(error: &VerificationError) -> String {
    match error {
        VerificationError::MissingKey { sig } => {
            let ids: Vec<_> = sig.get_issuers().iter().map(KeyHandle::to_hex).collect();
            format!("the keyring has no key {}", ids.join(", "))
        }
        other => other.to_string(),
    }
}

/// Verifies an InRelease and reads it: the suite must be the one asked for and still be valid.
pub fn open(signed: &[u8], asked: &str, keyring: &Keyring, now: SystemTime) -> Result<Release> {
    let (text, signed_by) = keyring.verify(signed, now)?;
    parse(&text, asked, signed_by, now)
}

fn parse(text: &str, asked: &str, signed_by: Vec<String>, now: SystemTime) -> Result<Release> {
    let paragraphs = BorrowedParser::new(text).parse_all().fault(Fault::Input, || "reading the signed fields".into())?;
    let [fields] = paragraphs.as_slice() else {
        return Err(Error::input(format!("reading the signed fields: {} paragraphs instead of one", paragraphs.len())));
    };
    let field = |name| fields.get_single(name);
    let names: Vec<_> = ["Suite", "Codename"].into_iter().filter_map(field).collect();
    if !names.contains(&asked) {
        return Err(Error::input(format!("it is signed for {}, not for {asked}", names.join(" / "))));
    }
    let date = field("Date").and_then(parse_date).ok_or_else(|| Error::input("its Date is missing or unreadable"))?;
    if let Some(until) = field("Valid-Until") {
        check_valid(until, now)?;
    }
    let by_hash = if field("Acquire-By-Hash") == Some("yes") { ByHash::Served } else { ByHash::Absent };
    let listed = fields.get("SHA256").ok_or_else(|| Error::input("it lists no SHA256 digests, and weaker ones are not accepted"))?;
    let files = listed.iter().filter(|l| !l.trim().is_empty()).map(|l| entry(l)).collect::<Result<_>>()?;
    Ok(Release { suite: asked.into(), date, by_hash, files, signed_by })
}

fn check_valid(until: &str, now: SystemTime) -> Result<()> {
    let end = parse_date(until).ok_or_else(|| Error::input(format!("its Valid-Until `{until}` is unreadable")))?;
    let end = UNIX_EPOCH + Duration::from_secs(end.max(0).unsigned_abs());
    if end >= now {
        return Ok(());
    }
    Err(Error::input(format!("it expired at {until}"))
        .with_hint("the mirror is stale or this machine's clock is wrong: check the clock, or use another mirror"))
}

fn entry(line: &str) -> Result<(String, FileEntry)> {
    let mut words = line.split_whitespace();
    let mut read = || {
        let sha256 = words.next()?.parse().ok()?;
        let size = words.next()?.parse().ok()?;
        Some((words.next()?.to_string(), FileEntry { sha256, size }))
    };
    read().ok_or_else(|| Error::input(format!("its SHA256 line `{}` is unreadable", line.trim())))
}

/// Seconds since 1970 of a date such as `Sat, 12 Sep 2026 07:55:41 UTC` (RFC 5322 with the zone that the repository format prescribes).
pub fn parse_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<_> = text.split_whitespace().collect();
    let [_, day, month, year, time, "UTC" | "GMT" | "Z" | "+0000"] = words.as_slice() else { return None };
    let (day, year) = (number(day, 1, 31)?, number(year, 1970, 9999)?);
    let month = MONTHS.iter().position(|m| m == month)? as i64 + 1;
    let clock: Vec<_> = time.split(':').collect();
    let [hour, minute, second] = clock.as_slice() else { return None };
    let seconds = number(hour, 0, 23)? * 3600 + number(minute, 0, 59)? * 60 + number(second, 0, 60)?;
    Some(days(year, month, day) * 86400 + seconds)
}

fn number(text: &str, low: i64, high: i64) -> Option<i64> {
    text.parse().ok().filter(|n| (low..=high).contains(n) && !text.starts_with('+'))
}

/// Days since 1970-01-01 in the Gregorian calendar, counting years from March so that the leap day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read() {
        let table =
            [("Sat, 12 Sep 2026 07:55:41 UTC", 1_789_199_741), ("Thu, 01 Jan 1970 00:00:00 UTC", 0), ("Tue, 29 Feb 2000 12:00:00 GMT", 951_825_600)];
        for (text, seconds) in table {
            assert_eq!(parse_date(text), Some(seconds), "{text}");
        }
        for wrong in ["", "Sat, 12 Sep 2026", "Sat, 12 Sep 2026 07:55:41 CET", "Sat, 40 Sep 2026 07:55:41 UTC", "Sat, 12 Xxx 2026 07:55:41 UTC"] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn b2_fields_that_do_not_fit_are_refused() {
        let now = UNIX_EPOCH + Duration::from_secs(1_789_199_741);
        let sha = "0".repeat(64);
        let good = format!("Suite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\nSHA256:\n {sha} 12 main/binary-amd64/Packages\n");
        let release = parse(&good, "trixie", Vec::new(), now).unwrap();
        assert_eq!(release.files["main/binary-amd64/Packages"].size, 12);
        let refuse = |text: String, asked: &str, says: &str| {
            let error = parse(&text, asked, Vec::new(), now).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refuse(good.clone(), "sid", "signed for stable / trixie, not for sid");
        refuse(good.replace("SHA256", "MD5Sum"), "trixie", "no SHA256");
        refuse(good.replace("Date: ", "Valid-Until: Sat, 12 Sep 2026 07:55:40 UTC\nDate: "), "trixie", "expired");
        refuse(good.replace("Date: Sat", "Date: x Sat"), "trixie", "Date");
        refuse(good.replace(" 12 ", " -12 "), "trixie", "unreadable");
        refuse(format!("{good}\nSuite: more\n"), "trixie", "2 paragraphs");
    }
}
