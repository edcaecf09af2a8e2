//! The JSON schema that editors use, and the profile as YAML text.

use kube::CustomResourceExt;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::Context as _;
use crate::error::{Fault, Result};
use crate::platform::{
    Component, ComponentSpec, Restore, RestoreSpec, Snapshot, SnapshotSpec, VirtualCluster, VirtualClusterSpec, VirtualClusterTemplate,
    VirtualClusterTemplateSpec,
};

use super::Profile;

/// The JSON schema (2020-12) of a profile as it is written, with `extends`.
pub fn json_schema() -> Value {
    let mut schema = of::<Profile>("chasi-bod profile");
    let extends = json!({
        "description": "Profiles that this one builds on: a path or a list of paths, relative to this file; later ones go over earlier ones.\n\
            Maps merge by key, scalars and lists replace. `packages` appends; `layers`, `users`, `images`, `charts`, `vclusters`, `components`, \
            `interfaces` (by `name`), `files` and `mounts` (by `path`) merge entry by entry.",
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
    });
    if let Some(map) = schema.as_object_mut() {
        if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
            properties.shift_insert(0, "extends".into(), extends);
        }
        // What a profile must have may also come from one that it extends.
        if let Some(required) = map.shift_remove("required") {
            map.insert("if".into(), json!({ "not": { "required": ["extends"] } }));
            map.insert("then".into(), json!({ "required": required }));
        }
    }
    schema
}

/// The JSON schema (2020-12) of a manifest of one of the platform's kinds, as a person or Git writes it: without `status`.
pub fn object_schema() -> Value {
    let mut generator = settings().into_generator();
    let kinds = [
        kind::<VirtualCluster, VirtualClusterSpec>(&mut generator),
        kind::<VirtualClusterTemplate, VirtualClusterTemplateSpec>(&mut generator),
        kind::<Component, ComponentSpec>(&mut generator),
        kind::<Snapshot, SnapshotSpec>(&mut generator),
        kind::<Restore, RestoreSpec>(&mut generator),
    ];
    let draft = "https://json-schema.org/draft/2020-12/schema";
    let mut schema = json_schema!({ "$schema": draft, "title": "chasi-bod object", "oneOf": kinds, "$defs": generator.take_definitions(true) });
    // The kinds' own parts are no definitions, which the generator would have closed.
    RecursiveTransform(close).transform(&mut schema);
    schema.into()
}

fn kind<K: CustomResourceExt, S: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    let resource = K::api_resource();
    json!({
        "type": "object",
        "properties": {
            "apiVersion": { "const": resource.api_version, "description": "Group and version." },
            "kind": { "const": resource.kind, "description": "What the object is." },
            "metadata": {
                "description": "Name, labels and annotations; all kinds are cluster-scoped.",
                "type": "object",
                "properties": { "name": { "type": "string", "description": "The object's name." } },
                "required": ["name"],
                "additionalProperties": true,
            },
            "spec": generator.subschema_for::<S>(),
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
    })
}

/// The JSON schema of a type under a title.
pub(super) fn of<T: JsonSchema>(title: &str) -> Value {
    // Serialising puts the schema's keys in a readable order.
    let mut schema = serde_json::to_value(closed::<T>()).unwrap_or_default();
    if let Some(map) = schema.as_object_mut() {
        map.insert("title".into(), title.into());
    }
    schema
}

/// The schema of a type whose maps take no keys but their own, not even those of Kubernetes' types, which say nothing of that: what is mistyped must not get
/// lost without a word.
pub(super) fn closed<T: JsonSchema>() -> Schema {
    settings().into_generator().into_root_schema_for::<T>()
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().with_transform(RecursiveTransform(close))
}

fn close(schema: &mut Schema) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.contains_key("properties") {
        map.entry("additionalProperties").or_insert(false.into());
    }
    if map.contains_key("x-kubernetes-int-or-string") {
        map.insert("type".into(), json!(["integer", "string"]));
    }
    // Only the API server knows what they mean.
    map.retain(|key, _| !key.starts_with("x-kubernetes-"));
}

/// The profile as YAML that [`load`](super::load) reads back to an equal profile.
pub fn to_yaml(profile: &Profile) -> Result<String> {
    serde_saphyr::to_string(profile).fault(Fault::Internal, || format!("writing profile {}", profile.name))
}
