//! The container images that Kubernetes manifests name.
//!
//! Looked for are `image` of every container of whatever object has any, `image.reference` of image volumes, and any other `image` that looks
//! like a reference; manifests inside of texts (a ConfigMap with a pod template) count, too. What programs ask for by arguments is not guessed.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::profile::quote;
use crate::reference::Reference;
use crate::{Error, Result};

/// Lists whose items are containers.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// How deep texts within texts are read.
const DEPTH: usize = 3;

/// Full references of all images that a text of YAML documents names.
pub fn images(text: &str) -> Result<BTreeSet<Reference>> {
    let mut out = BTreeSet::new();
    for document in documents(text)? {
        // A schema describes fields; it has none.
        if document["kind"] != "CustomResourceDefinition" {
            walk(&document, DEPTH, &mut out)?;
        }
    }
    Ok(out)
}

/// Documents of a YAML text; of a key that stands twice the last counts, as for helm.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let options = serde_saphyr::options! { with_snippet: false, duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|e| Error::input(format!("reading YAML: {}", e.without_snippet())))
}

fn walk(value: &Value, depth: usize, out: &mut BTreeSet<Reference>) -> Result<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| walk(item, depth, out)),
        Value::Object(fields) => {
            for (key, value) in fields {
                if CONTAINERS.contains(&key.as_str()) {
                    value.as_array().into_iter().flatten().try_for_each(|container| of_container(container, out))?;
                }
                if key == "image" {
                    out.extend(value.as_str().or(value["reference"].as_str()).filter(|text| text.contains(['/', ':'])).and_then(Reference::with_tag));
                }
                walk(value, depth, out)?;
            }
            Ok(())
        }
        // Texts that are no YAML are somebody else's.
        Value::String(text) if depth > 0 && text.contains("image:") && text.contains('\n') => {
            documents(text).unwrap_or_default().iter().try_for_each(|inner| walk(inner, depth - 1, out))
        }
        _ => Ok(()),
    }
}

fn of_container(container: &Value, out: &mut BTreeSet<Reference>) -> Result<()> {
    let Some(text) = container["image"].as_str().filter(|text| !text.is_empty()) else { return Ok(()) };
    let name = || container["name"].as_str().unwrap_or_default();
    let image = Reference::with_tag(text)
        .ok_or_else(|| Error::input(format!("container {} has the image {}, which is no reference", quote(name()), quote(text))))?;
    out.insert(image);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_wherever_an_object_has_them() {
        let text = "kind: Deployment\nspec:\n  template:\n    spec:\n      initContainers: [{name: i, image: busybox}]\n      containers: [{name: a, image: 'quay.io/x/y:1'}]\n\
                    \x20     volumes: [{name: v, image: {reference: registry.test/vol:2}}]\n---\n# nothing\n---\nkind: Prometheus\nspec: {image: 'quay.io/p/p:v3', logo: {image: logo.png}}\n---\n\
                    kind: ConfigMap\ndata:\n  pod.yaml: |\n    kind: Pod\n    spec: {containers: [{image: 'docker.io/a/helper:1'}]}\n  other: |\n    image: [\n---\n\
                    kind: CustomResourceDefinition\nspec: {properties: {image: {default: 'x.test/no:1'}}, image: 'x.test/no:1'}\n";
        let found: Vec<_> = images(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["docker.io/a/helper:1", "docker.io/library/busybox:latest", "quay.io/p/p:v3", "quay.io/x/y:1", "registry.test/vol:2"]);
    }

    #[test]
    fn what_is_no_reference_or_no_yaml_is_named() {
        let error = images("spec: {containers: [{name: web, image: 'My Image'}]}").unwrap_err().to_string();
        assert!(error.contains("`web`") && error.contains("`My Image`"), "{error}");
        assert!(images("a: [").unwrap_err().to_string().contains("reading YAML"));
    }
}
