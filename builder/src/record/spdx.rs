//! The SBOM: an SPDX 2.3 document (ISO/IEC 5962) of the packages in the image, with the licences that their copyright files name.

use std::collections::{BTreeMap, BTreeSet};

use layers::lock::{Lock, Package};
use layers::units::{Digest, Seed};
use serde_json::{Value, json};

/// File name of the SBOM beside the artifacts.
pub const FILE: &str = "sbom.spdx.json";

/// What the SBOM says beside the lock.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Image name.
    pub name: &'a str,
    /// Image version.
    pub version: &'a str,
    /// Digest of the node binary.
    pub node: Digest,
    /// Copyright file of each package, by package name.
    pub copyright: &'a BTreeMap<String, String>,
}

/// The document; equal inputs give equal text.
pub fn document(subject: &Subject<'_>, lock: &Lock, seed: &Seed) -> Value {
    let root = json!({
        "SPDXID": "SPDXRef-image", "name": subject.name, "versionInfo": subject.version, "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false, "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    });
    let node = json!({
        "SPDXID": "SPDXRef-chasi-bod-node", "name": "chasi-bod-node", "versionInfo": env!("CARGO_PKG_VERSION"), "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false, "licenseConcluded": "NOASSERTION", "licenseDeclared": "Apache-2.0", "copyrightText": "NOASSERTION",
        "checksums": [{"algorithm": "SHA256", "checksumValue": subject.node.hex()}],
    });
    let packages: Vec<Value> = [root, node].into_iter().chain(lock.packages.iter().map(|p| package(p, subject.copyright))).collect();
    let relationships: Vec<Value> = packages[1..].iter().map(|p| relation("SPDXRef-image", "CONTAINS", &p["SPDXID"])).collect();
    let describes = relation("SPDXRef-DOCUMENT", "DESCRIBES", &json!("SPDXRef-image"));
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", subject.name, subject.version),
        "documentNamespace": format!("urn:uuid:{}", seed.uuid(&format!("sbom {} {}", subject.version, subject.node))),
        "creationInfo": {"created": timestamp(lock.epoch), "creators": [format!("Tool: chasi-bod-{}", env!("CARGO_PKG_VERSION"))]},
        "packages": packages,
        "relationships": std::iter::once(describes).chain(relationships).collect::<Vec<_>>(),
    })
}

fn relation(from: &str, kind: &str, to: &Value) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn package(package: &Package, copyright: &BTreeMap<String, String>) -> Value {
    let names = copyright.get(&package.name).map(|text| licences(text)).unwrap_or_default();
    let comment = match names.is_empty() {
        true => "the copyright file names no licence in machine-readable form".to_string(),
        false => format!("named by the copyright file: {}", names.into_iter().collect::<Vec<_>>().join(", ")),
    };
    json!({
        "SPDXID": format!("SPDXRef-deb-{}", id(&package.name)), "name": package.name, "versionInfo": package.version,
        "supplier": "Organization: Debian", "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "licenseComments": comment, "copyrightText": "NOASSERTION",
        "sourceInfo": package.source.as_ref().map_or_else(|| package.name.clone(), Clone::clone),
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256.hex()}],
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl(package)}],
    })
}

/// SPDX identifiers allow letters, digits, `.` and `-`.
fn id(name: &str) -> String {
    name.replace('+', ".plus.")
}

/// Package URL of a Debian package (purl-spec, type deb).
pub(crate) fn purl(package: &Package) -> String {
    let escape = |text: &str| text.replace('+', "%2B").replace(':', "%3A").replace('~', "%7E");
    format!("pkg:deb/debian/{}@{}?arch={}", escape(&package.name), escape(&package.version), package.architecture)
}

/// Licence names of a copyright file in Debian's machine-readable format (DEP-5): the first line of each `License:` field.
pub(crate) fn licences(text: &str) -> BTreeSet<String> {
    if !text.trim_start().starts_with("Format:") {
        return BTreeSet::new();
    }
    text.lines().filter_map(|line| line.strip_prefix("License:")).map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect()
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ` (civil-from-days, proleptic Gregorian calendar).
pub fn timestamp(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_match_the_calendar() {
        for (seconds, text) in [(0, "1970-01-01T00:00:00Z"), (951_782_399, "2000-02-28T23:59:59Z"), (951_868_800, "2000-03-01T00:00:00Z")] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn licences_come_from_machine_readable_files_only() {
        let dep5 = "Format: https://example/1.0/\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: x\nLicense: MIT\n";
        assert_eq!(licences(dep5).into_iter().collect::<Vec<_>>(), ["GPL-2+", "MIT"]);
        assert!(licences("This package is free.\nLicense: GPL\n").is_empty());
    }

    #[test]
    fn a_package_has_a_purl_and_a_legal_identifier() {
        let package = Package {
            name: "libstdc++6".into(),
            version: "1:2.0~rc1+b1".into(),
            architecture: "amd64".into(),
            sha256: Digest::of(b"x"),
            size: layers::units::Bytes(1),
            suite: "trixie".into(),
            path: "pool/x.deb".into(),
            source: None,
            wanted_by: Vec::new(),
        };
        let entry = super::package(&package, &BTreeMap::new());
        assert_eq!(entry["SPDXID"], "SPDXRef-deb-libstdc.plus..plus.6");
        assert_eq!(entry["externalRefs"][0]["referenceLocator"], "pkg:deb/debian/libstdc%2B%2B6@1%3A2.0%7Erc1%2Bb1?arch=amd64");
    }
}
