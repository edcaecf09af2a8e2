//! Kubernetes versions of virtual clusters: which there are, and which may follow which.

use semver::Version;

use super::values::BINARIES;
use crate::{Error, Result};

/// The version of an image of control planes' programs; nothing for any other image.
pub fn of_image(name: &str) -> Option<&str> {
    let (registry, repository) = BINARIES;
    name.strip_prefix(registry)?.strip_prefix('/')?.strip_prefix(repository)?.strip_prefix(':')
}

/// Versions for people, in their order.
pub fn list<'a>(versions: impl IntoIterator<Item = &'a str>) -> String {
    let mut versions: Vec<_> = versions.into_iter().collect();
    versions.sort_by_key(|version| parsed(version));
    versions.dedup();
    if versions.is_empty() { "none".into() } else { versions.join(", ") }
}

fn parsed(version: &str) -> Option<Version> {
    Version::parse(version.strip_prefix('v')?).ok()
}

/// Refuses a version that the image does not bundle.
pub fn is_bundled(version: &str, bundled: &[String]) -> Result<()> {
    if bundled.iter().any(|known| known == version) {
        return Ok(());
    }
    let have = list(bundled.iter().map(String::as_str));
    Err(Error::input(format!("spec.version: the image has no control plane of {version}; it has {have}")))
}

/// Refuses a version that cannot go on with the data of another one: Kubernetes goes forward, by one minor version at a time.
pub fn follows(version: &str, former: &str) -> Result<()> {
    // What users' own values name need not be a version.
    let (Some(to), Some(from)) = (parsed(version), parsed(former)) else { return Ok(()) };
    if to < from {
        return Err(Error::input(format!("spec.version: {version} is older than {former}, which has written the data; Kubernetes does not go back")));
    }
    if to.major != from.major || to.minor > from.minor + 1 {
        let next = format!("v{}.{}", from.major, from.minor + 1);
        return Err(Error::input(format!(
            "spec.version: {version} is more than one minor version after {former}; Kubernetes goes through each: first to a version of {next}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_the_image_lacks_is_named_with_those_that_it_has() {
        let bundled = ["v1.36.3", "v1.9.0", "v1.35.4"].map(String::from);
        assert!(is_bundled("v1.35.4", &bundled).is_ok());
        let error = is_bundled("v1.34.0", &bundled).unwrap_err();
        let said = "spec.version: the image has no control plane of v1.34.0; it has v1.9.0, v1.35.4, v1.36.3";
        assert_eq!((error.to_string().as_str(), error.fault()), (said, crate::Fault::Input));
        assert!(is_bundled("v1.34.0", &[]).unwrap_err().to_string().ends_with("it has none"));
        assert_eq!(of_image("chasi-bod.internal/vcluster-binaries:v1.35.4"), Some("v1.35.4"));
        assert_eq!((of_image("chasi-bod.internal/vcluster-binaries-x:v1"), of_image("other.test/vcluster-binaries:v1")), (None, None));
    }

    #[test]
    fn kubernetes_goes_forward_by_one_minor_version_at_a_time() {
        for (to, from) in [("v1.36.3", "v1.36.3"), ("v1.36.3", "v1.36.1"), ("v1.36.0", "v1.35.9"), ("latest", "v1.35.4"), ("v1.10.0", "v1.9.9")] {
            assert!(follows(to, from).is_ok(), "{from} → {to}");
        }
        for (to, from, said) in [
            ("v1.35.4", "v1.36.3", "spec.version: v1.35.4 is older than v1.36.3, which has written the data"),
            ("v1.36.2", "v1.36.3", "spec.version: v1.36.2 is older than v1.36.3"),
            ("v1.37.0", "v1.35.4", "v1.37.0 is more than one minor version after v1.35.4; Kubernetes goes through each: first to a version of v1.36"),
            ("v2.0.0", "v1.36.3", "more than one minor version after"),
        ] {
            let error = follows(to, from).unwrap_err().to_string();
            assert!(error.starts_with("spec.version: ") && error.contains(said), "{error}");
        }
    }
}
