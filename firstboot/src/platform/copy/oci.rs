//! Snapshots in a registry, as an artifact that vcluster's own command reads, too (`pkg/snapshot/oci/store.go` of loft-sh/vcluster 0.33.1).

use layers::reference::Reference;
use layers::{Error, Result};

use crate::images::artifact::Artifact;

/// What a snapshot is to a registry.
pub const SNAPSHOT: Artifact =
    Artifact { what: "snapshot", kind: "application/vnd.loft.vcluster", part: "application/vnd.loft.vcluster.etcd.v1.tar+gzip" };

/// A reference that a snapshot can go to or come from.
pub fn reference(field: &str, text: &str) -> Result<Reference> {
    let found = Reference::with_tag(text).ok_or_else(|| Error::input(format!("{field}: `{text}` is no reference such as registry.example/biz:1")))?;
    match (field, found.digest) {
        ("spec.to.oci", Some(_)) => Err(Error::input(format!("{field}: `{text}`: a digest names what is there already; name a tag"))),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use layers::units::Digest;

    use super::*;

    #[test]
    fn a_snapshot_goes_to_a_tag_and_comes_from_a_tag_or_digest() {
        let digest = format!("registry.example/biz@{}", Digest::of(b"x"));
        assert_eq!(reference("spec.to.oci", "registry.example/biz:1").unwrap().wanted(), "1");
        assert!(reference("spec.from.oci", &digest).is_ok());
        assert!(reference("spec.to.oci", &digest).unwrap_err().to_string().ends_with("name a tag"));
        let said = reference("spec.from.oci", "Registry/Biz").unwrap_err().to_string();
        assert_eq!(said, "spec.from.oci: `Registry/Biz` is no reference such as registry.example/biz:1");
    }
}
