//! References to container images: `registry/repository:tag`, `registry/repository@sha256:…`, or with both.

use std::fmt;
use std::str::FromStr;

use crate::units::Digest;

/// A whole reference to an image; a tag, a digest or both are there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host with its port: `registry.k8s.io`, `localhost:5000`.
    pub registry: String,
    /// Path below it: `library/nginx`.
    pub repository: String,
    /// Tag.
    pub tag: Option<String>,
    /// Digest; where one is given, the tag is for people.
    pub digest: Option<Digest>,
}

impl Reference {
    /// The reference that container engines take a short one for: `nginx` stands for `docker.io/library/nginx:latest`. Of tag and digest the digest
    /// counts. None where it cannot be one.
    pub fn canonical(text: &str) -> Option<Self> {
        let (first, rest) = text.split_once('/').unwrap_or(("", text));
        let (registry, rest) = if is_registry(first) { (first, rest) } else { ("docker.io", text) };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let library = if registry == "docker.io" && !rest.contains('/') { "library/" } else { "" };
        let named = rest.contains('@') || rest.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let whole: Self = format!("{registry}/{library}{rest}{}", if named { "" } else { ":latest" }).parse().ok()?;
        Some(Self { tag: whole.tag.filter(|_| whole.digest.is_none()), ..whole })
    }

    /// The same with the tag that stands beside a digest: two who ask for one tag by two digests are told apart.
    pub fn with_tag(text: &str) -> Option<Self> {
        let whole = Self::canonical(text)?;
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let tag = Self::canonical(name).and_then(|named| named.tag).filter(|_| tagged || whole.digest.is_none());
        Some(Self { tag, ..whole })
    }

    /// What a registry is asked for: the digest where one is given, else the tag.
    pub fn wanted(&self) -> String {
        self.digest.map_or_else(|| self.tag.clone().unwrap_or_default(), |digest| digest.to_string())
    }

    /// Registry and repository without tag and digest.
    pub fn place(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| format!("`{text}` is not a whole image reference such as registry.k8s.io/pause:3.10.2"))
    }
}

fn parse(text: &str) -> Option<Reference> {
    let (registry, rest) = text.split_once('/')?;
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.strip_prefix("sha256:").and_then(|_| digest.parse().ok())?)),
        None => (rest, None),
    };
    let (repository, tag) = rest.rsplit_once(':').map_or((rest, None), |(repository, tag)| (repository, Some(tag.to_string())));
    let sound = is_registry(registry) && repository.len() < 256 && repository.split('/').all(is_part) && tag.iter().all(|tag| is_tag(tag));
    let named = tag.is_some() || digest.is_some();
    (sound && named).then(|| Reference { registry: registry.into(), repository: repository.into(), tag, digest })
}

/// A host with a dot or a port, or `localhost`: what tells a registry from the first part of a path.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    (host.contains('.') || port.is_some() || host == "localhost")
        && host.chars().all(plain)
        && host.starts_with(ends)
        && host.ends_with(ends)
        && !host.contains("..")
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|n| n > 0))
}

fn is_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    part.chars().all(plain) && part.starts_with(ends) && part.ends_with(ends)
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len()) && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_whole() {
        let digest = format!("a.b/c@{}", Digest::of(b"x"));
        for good in ["registry.k8s.io/pause:3.10.2", "localhost:5000/a/b-c:v1_2", "docker.io/rancher/local-path-provisioner:v0.0.30", &digest] {
            assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        }
        let bad = ["pause:3.10", "registry.k8s.io/pause", "registry.k8s.io/Pause:1", "registry.k8s.io//x:1", "a.b/c:", "a.b/../c:1", "a.b/c:.x"];
        for bad in bad.into_iter().chain(["a.b/c@sha256:12", "a.b/c@md5:12", "a.b:0/c:1", ".b/c:1", "a..b/c:1", "a.b/c:1@", "user@a.b/c:1"]) {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tag_beside_a_digest_is_kept_where_it_is_asked_for() {
        let digest = Digest::of(b"x");
        for (text, whole) in [("nginx", "docker.io/library/nginx:latest".to_string()), ("a.b/c:1", "a.b/c:1".into())] {
            assert_eq!(Reference::with_tag(text).unwrap().to_string(), whole);
        }
        assert_eq!(Reference::with_tag(&format!("nginx:1@{digest}")).unwrap().to_string(), format!("docker.io/library/nginx:1@{digest}"));
        assert_eq!(Reference::with_tag(&format!("a.b/c@{digest}")).unwrap().to_string(), format!("a.b/c@{digest}"));
        assert_eq!(Reference::with_tag("{{ x }}"), None);
    }

    #[test]
    fn short_references_are_what_engines_take_them_for() {
        let digest = Digest::of(b"x");
        for (short, whole) in [
            ("nginx", "docker.io/library/nginx:latest".into()),
            ("nginx:1.29", "docker.io/library/nginx:1.29".into()),
            ("rancher/x:1", "docker.io/rancher/x:1".into()),
            ("index.docker.io/nginx:1", "docker.io/library/nginx:1".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("quay.io/a/b", "quay.io/a/b:latest".into()),
            ("localhost:5000/a", "localhost:5000/a:latest".into()),
            (&format!("quay.io/a/b:1@{digest}"), format!("quay.io/a/b@{digest}")),
        ] {
            assert_eq!(Reference::canonical(short).unwrap().to_string(), whole, "{short}");
        }
        assert_eq!(["", "A", "a b", "-x:1", "x@sha256:1"].map(Reference::canonical), [const { None }; 5]);
    }
}
