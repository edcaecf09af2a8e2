//! What a root is made of: Debian packages by dpkg's database, container images and charts by the image's own lists.

use std::fmt;

use deb822_fast::borrowed::BorrowedParser;
use layers::seed::{DOCUMENTS, INDEX, Image, ImageIndex, SEED, Seed, chain_ids};
use layers::units::Digest;
use layers::{Context, Fault, Result};
use serde::Serialize;

use super::files::{Root, visible};

/// Where dpkg's database lies: in our images, and everywhere else.
pub const DPKG: [&str; 2] = ["/usr/lib/sysimage/dpkg", "/var/lib/dpkg"];

/// Databases of packages that are not read.
const OTHERS: [(&str, &str); 5] = [
    ("/usr/lib/sysimage/rpm", "an RPM database"),
    ("/var/lib/rpm", "an RPM database"),
    ("/lib/apk/db/installed", "apk's database"),
    ("/usr/lib/apk/db/installed", "apk's database"),
    ("/var/lib/pacman/local", "pacman's database"),
];

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// Name.
    pub name: String,
    /// Architecture.
    pub architecture: String,
    /// Version.
    pub version: String,
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", visible(&self.name), visible(&self.version), visible(&self.architecture))
    }
}

/// What a root says of its packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packages {
    /// Those of dpkg's database, sorted; none when there is no database of any kind.
    Known(Vec<Package>),
    /// They are in a database that is not read; the text names it.
    Unread(String),
}

/// The packages of a root.
pub fn packages(root: &Root) -> Result<Packages> {
    for folder in DPKG {
        let place = format!("{folder}/status");
        if let Some(text) = root.text(&place)? {
            return parse(&text).map(Packages::Known).context(|| format!("reading {place}"));
        }
    }
    Ok(match OTHERS.iter().find(|(place, _)| root.has(place)) {
        Some((place, what)) => Packages::Unread(format!("packages are in {what}, {place}, which chasi-bod does not read")),
        None => Packages::Known(Vec::new()),
    })
}

fn parse(status: &str) -> Result<Vec<Package>> {
    let stanzas = BorrowedParser::new(status).parse_all().fault(Fault::Input, || "reading its stanzas".into())?;
    let mut out = Vec::new();
    for stanza in stanzas {
        let field = |name| stanza.get_single(name).unwrap_or_default().to_string();
        // What was removed and left its configuration behind is not installed (dpkg-query(1)).
        if !field("Status").ends_with("not-installed") && !field("Status").ends_with("config-files") {
            out.push(Package { name: field("Package"), architecture: field("Architecture"), version: field("Version") });
        }
    }
    out.sort();
    Ok(out)
}

/// The container images of a root; empty when it has none.
pub fn images(root: &Root) -> Result<ImageIndex> {
    Ok(root.json(INDEX)?.unwrap_or_default())
}

/// The charts of a root and what is made of them; empty when it has none.
pub fn seed(root: &Root) -> Result<Seed> {
    Ok(root.json(SEED)?.unwrap_or_default())
}

/// Folders of an image's layers.
pub fn layers_of(root: &Root, index: &ImageIndex, image: &Image) -> Result<Vec<String>> {
    let config: serde_json::Value = root.json(&format!("{DOCUMENTS}/{}", image.config.hex()))?.unwrap_or_default();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(|id| id.as_str()?.parse().ok());
    let chains = chain_ids(&diff_ids.collect::<Vec<Digest>>());
    Ok(chains.iter().filter_map(|id| Some(index.chains.get(id)?.layer.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_gone_do_not_count() {
        let status = "Package: b\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\nDescription: x\n more\n\n\
                      Package: a\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: a\nStatus: install ok unpacked\nArchitecture: all\nVersion: 2\n";
        let found: Vec<_> = parse(status).unwrap().into_iter().map(|p| (p.name, p.architecture, p.version)).collect();
        let package = |name: &str, architecture: &str, version: &str| (name.to_string(), architecture.to_string(), version.to_string());
        assert_eq!(found, [package("a", "all", "2"), package("b", "amd64", "1:2-3")]);
    }
}
