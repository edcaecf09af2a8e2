//! Volumes: whether the cluster's storage classes give what is asked for.

use serde_json::Value;

use super::objects::{Claim, claims};
use super::report::Finding;
use super::{Class, Ground};

/// The provisioner of the class on the nodes' own disks.
pub const LOCAL: &str = "rancher.io/local-path";
/// What such a volume can be: one node's.
const LOCAL_MODES: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

pub fn findings(objects: &[Value], ground: &Ground) -> Vec<Finding> {
    objects.iter().flat_map(claims).filter_map(|claim| of_claim(&claim, ground)).collect()
}

fn of_claim(claim: &Claim<'_>, ground: &Ground) -> Option<Finding> {
    let fail = |what: String| Some(Finding::fail(&claim.name, what));
    let wanted = claim.spec["storageClassName"].as_str();
    if wanted == Some("") {
        return Some(Finding::warn(&claim.name, "storageClassName is empty: it waits for a PersistentVolume that somebody makes"));
    }
    let class = match (&ground.classes, wanted) {
        (Some(known), Some(name)) => match known.iter().find(|class| class.name == name) {
            Some(class) => Some(class),
            None => {
                let have: Vec<_> = known.iter().map(|class| class.name.as_str()).collect();
                return fail(format!(
                    "storage class {name} is not there; there is {}",
                    if have.is_empty() { "none".into() } else { have.join(", ") }
                ));
            }
        },
        (Some(known), None) => match known.iter().find(|class| class.default) {
            Some(class) => Some(class),
            None => return fail("no storage class is the default one: name one in storageClassName".into()),
        },
        (None, _) => None,
    };
    let local = class.map_or(wanted.is_none_or(|name| matches!(name, "local-path" | "local-path-io")), |class| class.provisioner == LOCAL);
    let modes: Vec<_> = claim.spec["accessModes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if local && let Some(mode) = modes.iter().find(|mode| !LOCAL_MODES.contains(mode)) {
        return fail(format!("access mode {mode}: a volume of the class {} is one node's, {} works", shown(class), LOCAL_MODES[0]));
    }
    if local && claim.spec["volumeMode"] == "Block" {
        return fail(format!("volumeMode Block: a volume of the class {} is a folder", shown(class)));
    }
    match wanted {
        Some(name) if class.is_none() && !local => {
            Some(Finding::warn(&claim.name, format!("whether the cluster has storage class {name} is not known")))
        }
        _ => Some(Finding::pass(
            &claim.name,
            format!("{} of the class {}", modes.join(", "), class.map_or(wanted.unwrap_or("local-path"), |c| &c.name)),
        )),
    }
}

fn shown(class: Option<&Class>) -> &str {
    class.map_or("local-path", |class| &class.name)
}
