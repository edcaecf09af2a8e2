//! The lock: every package of an image with version, digest, size and origin. Printed as YAML next to the profile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chart::LockedChart;
use crate::image::LockedImage;
use crate::source::LockedSource;
use crate::units::{Bytes, Digest};
use crate::{Error, Result};

/// What one profile resolved to. Two builds with equal locks give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lock {
    /// Version of this file's shape.
    pub lock_version: u32,
    /// Seconds since 1970 of the newest signed index; the image's timestamps.
    pub epoch: i64,
    /// Digest of what was asked for (package lists, suites); differs from the plan's when the profile changed since.
    pub request: Option<Digest>,
    /// The signed indices that the packages were found in.
    pub indices: Vec<Index>,
    /// Packages of the image, by name.
    pub packages: Vec<Package>,
    /// Packages of the tool root (GRUB's image maker), by name; not in the image.
    pub tools: Vec<Package>,
    /// What comes from other sources, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<LockedSource>,
    /// Container images from registries, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<LockedImage>,
    /// Helm charts, in the order in which they are installed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub charts: Vec<LockedChart>,
    /// Digest of what components give to charts when `wanted` was found; none without components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Digest>,
    /// Images that charts, manifests and kubeadm ask for, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<Wanted>,
}

/// A container image that something in the cluster asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    /// Full reference.
    pub image: String,
    /// Who asks: `kubeadm`, or releases and components with the templates that name it.
    pub wanted_by: Vec<String>,
}

/// One signed index (InRelease) at the time of locking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Index {
    /// Suite, such as `trixie-security`.
    pub suite: String,
    /// Digest of the signed text.
    pub sha256: Digest,
    /// The `Date` field in seconds since 1970; an older one is a replay.
    pub date: i64,
    /// Fingerprints of the certificates whose signatures were good.
    pub signed_by: Vec<String>,
}

/// One locked package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Digest of the .deb.
    pub sha256: Digest,
    /// Size of the .deb.
    pub size: Bytes,
    /// Suite it came from.
    pub suite: String,
    /// Path below the archive's base URL (`pool/…`).
    pub path: String,
    /// Source package and its version, `name (version)` where they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Layers that asked for it by name; empty for dependencies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted_by: Vec<String>,
}

/// The line, counted from 1, of a field; of the entry (package, tool, source or image) at that position where one is given: each has one
/// `name:`, its first key.
fn line_of(text: &str, package: Option<usize>, field: &str) -> usize {
    let key = |line: &str, key: &str| line.trim_start_matches([' ', '-']).starts_with(key);
    let lines: Vec<_> = text.lines().collect();
    let start = package.and_then(|n| lines.iter().enumerate().filter(|(_, l)| key(l, "name:")).nth(n)).map_or(0, |(at, _)| at);
    lines[start..].iter().position(|l| key(l, field)).map_or(start, |n| start + n) + 1
}

/// Whether a path stays below the archive's base URL: relative, plain characters, no `..`.
pub fn is_pool_path(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.+-_~%:".contains(c);
    !path.is_empty() && path.chars().all(plain) && path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

impl Lock {
    /// Current shape of the file.
    pub const VERSION: u32 = 1;

    /// The lock as it is kept beside the profile: packages in order of name, so that a diff shows what changed and no more.
    pub fn to_yaml(&self) -> Result<String> {
        let body = serde_saphyr::to_string(self).map_err(|e| Error::internal(format!("writing the lock: {e}")))?;
        Ok(format!("# Made by `chasi-bod lock`; keep it with the profile.\n{body}"))
    }

    /// Reads a lock; `file` is its name for messages.
    pub fn from_yaml(text: &str, file: &str) -> Result<Self> {
        let hint = "undo the change, or remove the file and make it anew with `chasi-bod lock PROFILE`";
        let place = |e: &serde_saphyr::Error| e.location().map_or_else(|| file.to_string(), |l| format!("{file}:{}:{}", l.line(), l.column()));
        let options = serde_saphyr::options! { with_snippet: false };
        let lock: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| Error::input(format!("reading lock {}: {}", place(&e), e.without_snippet())).with_hint(hint))?;
        lock.check().map_err(|(package, field, what)| {
            Error::input(format!("reading lock {file}:{}: {what}", line_of(text, package, field))).with_hint(hint)
        })?;
        Ok(lock)
    }

    /// What the types cannot say; an error carries the position of the package, the field and what is wrong.
    fn check(&self) -> Result<(), (Option<usize>, &'static str, String)> {
        if self.lock_version != Self::VERSION {
            return Err((None, "lockVersion:", format!("this program reads lock version {}, not {}", Self::VERSION, self.lock_version)));
        }
        for (list, before) in [(&self.packages, 0), (&self.tools, self.packages.len())] {
            for (n, package) in list.iter().enumerate() {
                let name = &package.name;
                if n > 0 && list[n - 1].name >= *name {
                    return Err((Some(before + n), "name:", format!("package {name} is out of order or there twice")));
                }
                if !is_pool_path(&package.path) {
                    return Err((Some(before + n), "path:", format!("package {name}: `{}` is not a path below the archive", package.path)));
                }
            }
        }
        self.check_images()
    }

    fn check_images(&self) -> Result<(), (Option<usize>, &'static str, String)> {
        let before = self.packages.len() + self.tools.len() + self.sources.len();
        for (n, image) in self.images.iter().enumerate() {
            let at = Some(before + n);
            if n > 0 && self.images[n - 1].name >= image.name {
                return Err((at, "name:", format!("image {} is out of order or there twice", image.name)));
            }
            image.check().map_err(|(field, what)| (at, field, what))?;
        }
        Ok(())
    }

    /// Everything that the lock names as bytes of the store, with its size; the signed indices are not among it.
    pub fn blobs(&self) -> BTreeMap<Digest, Bytes> {
        let packages = self.packages.iter().chain(&self.tools).map(|p| (p.sha256, p.size));
        let charts = self.charts.iter().filter(|chart| !chart.from.is_empty()).map(|chart| (chart.sha256, chart.size));
        let images = self.images.iter().flat_map(LockedImage::descriptors).map(|d| (d.digest, d.size));
        packages.chain(self.sources.iter().flat_map(LockedSource::blobs)).chain(images).chain(charts).collect()
    }

    /// Image packages by name.
    pub fn by_name(&self) -> BTreeMap<&str, &Package> {
        self.packages.iter().map(|p| (p.name.as_str(), p)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Descriptor;

    fn lock() -> Lock {
        let package = |name: &str| Package {
            name: name.into(),
            version: "1:2.0~rc1-3+b1".into(),
            architecture: "amd64".into(),
            sha256: Digest::of(name.as_bytes()),
            size: Bytes(1 << 20),
            suite: "trixie".into(),
            path: format!("pool/main/{name}_2.0%7erc1.deb"),
            source: (name == "b").then(|| "src (1)".into()),
            wanted_by: if name == "a" { vec!["os".into(), "no".into()] } else { Vec::new() },
        };
        let index = Index { suite: "trixie".into(), sha256: Digest::of(b"i"), date: 12, signed_by: vec!["1234".into()] };
        Lock {
            lock_version: Lock::VERSION,
            epoch: 12,
            request: Some(Digest::of(b"r")),
            indices: vec![index],
            packages: vec![package("a"), package("b")],
            tools: vec![],
            sources: vec![],
            charts: vec![],
            components: Some(Digest::of(b"c")),
            wanted: vec![],
            images: vec![image("r.test/a:1", "r.test/a:1"), image("r.test/b:1", "r.test/c:2")],
        }
    }

    fn image(name: &str, pull: &str) -> LockedImage {
        let one = |media_type: &str| Descriptor { media_type: media_type.into(), digest: Digest::of(media_type.as_bytes()), size: Bytes(77) };
        LockedImage {
            name: name.into(),
            pull: pull.into(),
            target: one("index"),
            manifest: one("manifest"),
            config: one("config"),
            layers: vec![one("layer")],
            wanted_by: vec!["profile".into(), "chart x: templates/y.yaml".into()],
        }
    }

    #[test]
    fn a_lock_survives_its_yaml() {
        let text = lock().to_yaml().unwrap();
        assert_eq!(Lock::from_yaml(&text, "x.lock").unwrap(), lock());
        assert_eq!(Lock::from_yaml(&text, "x.lock").unwrap().to_yaml().unwrap(), text);
    }

    proptest::proptest! {
        #[test]
        fn any_version_survives(version in "[0-9a-zA-Z.+:~-]{1,12}", name in "[a-z0-9][a-z0-9.+-]{1,6}") {
            let mut lock = lock();
            lock.tools = vec![Package { name, version, ..lock.packages[1].clone() }];
            let text = lock.to_yaml().unwrap();
            proptest::prop_assert_eq!(Lock::from_yaml(&text, "x").unwrap(), lock);
        }
    }

    #[test]
    fn b7_a_broken_lock_is_named_by_file_and_line() {
        let text = lock().to_yaml().unwrap();
        let refuse = |from: &str, to: &str, says: &str| {
            assert!(text.contains(from), "{from} in {text}");
            let changed = text.replacen(from, to, 1);
            let line = changed.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap() + 1;
            let error = Lock::from_yaml(&changed, "x.lock").unwrap_err();
            assert!(error.to_string().contains(says) && error.to_string().contains(&format!("x.lock:{line}")), "{line}: {error}");
            assert!(error.hint().is_some());
        };
        refuse("size: 1048576", "size: much", "");
        refuse("lockVersion: 1", "lockVersion: 9", "lock version 1, not 9");
        refuse("path: pool/main/a", "path: ../main/a", "not a path below");
        refuse("name: b", "name: a", "out of order");
        refuse("suite: trixie\n  path", "sweet: trixie\n  path", "sweet");
        refuse("name: r.test/b:1", "name: r.test/a:1", "out of order");
        refuse("name: r.test/b:1", "name: r.test/b", "not a whole image reference");
        refuse("pull: r.test/c:2", "pull: c:2", "image r.test/b:1: `c:2` is not a whole image reference");
        refuse("mediaType: config", "mediatype: config", "mediatype");
        let text = text.replacen("size: 77", "size: 4194305", 1);
        let error = Lock::from_yaml(&text, "x.lock").unwrap_err().to_string();
        assert!(error.contains("image r.test/a:1: sha256:") && error.ends_with("is larger than 4MiB"), "{error}");
    }

    #[test]
    fn the_blobs_of_images_are_among_those_of_the_lock() {
        let blobs = lock().blobs();
        assert_eq!(["index", "manifest", "config", "layer"].map(|name| blobs.get(&Digest::of(name.as_bytes()))), [Some(&Bytes(77)); 4]);
    }
}
