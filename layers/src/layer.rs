//! A layer as its author writes it: `layer.yaml` and the files beside it. Built-in layers and a user's own have the same shape.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chart::ChartSpec;
use crate::image::{ImageLayer, ImageUse};
use crate::profile::{Diagnostics, Document, FileSpec, Scalar, parse_layer};
use crate::source::Source;

/// Name of the file that makes a folder a layer.
pub const LAYER_FILE: &str = "layer.yaml";

/// `source` of a file that stands for this program's node binary instead of a file of the layer's folder.
pub const NODE_BINARY: &str = "builtin:node";

/// A layer of the image, declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Definition {
    /// Name by which profiles and other layers refer to this one. Lower-case letters, digits and `-`.
    pub name: String,
    /// What the layer is for, in one sentence.
    pub summary: String,
    /// Layers that must lie below this one; those that the profile does not list are taken in by themselves.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Roles that only one layer of an image can have, such as `kernel`.
    #[serde(default)]
    pub provides: Vec<String>,
    /// Values that a profile may set.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// Debian packages.
    #[serde(default)]
    pub packages: Vec<Item>,
    /// Packages to treat as installed, because the image does their job in another way.
    #[serde(default)]
    pub assume: Vec<Assumed>,
    /// What files come from beside Debian packages, by name.
    #[serde(default)]
    pub sources: BTreeMap<String, Source>,
    /// Layers of container images, by name.
    #[serde(default)]
    pub image_layers: BTreeMap<String, ImageLayer>,
    /// Container images that the root carries, made of image layers or pulled from a registry.
    #[serde(default)]
    pub images: Vec<ImageUse>,
    /// Helm charts that the cluster gets when it is founded; folders are relative to the layer's.
    #[serde(default)]
    pub charts: Vec<ChartSpec>,
    /// Plain manifests that the cluster gets, files of the layer's folder.
    #[serde(default)]
    pub manifests: Vec<String>,
    /// Files to put into the image; `source` is relative to the layer's folder, `builtin:node` is the node binary.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Paths to remove after packages are configured: `*` within a name, `**` across folders; `!` in front keeps what an earlier
    /// pattern would remove.
    #[serde(default)]
    pub remove: Vec<String>,
    /// systemd units to switch on or off.
    #[serde(default)]
    pub units: Units,
    /// Kernel parameters by their dotted name.
    #[serde(default)]
    pub sysctl: BTreeMap<String, Scalar>,
    /// Scripts to run in the build sandbox when all packages are configured, before any layer's files are put in place.
    #[serde(default)]
    pub scripts: Vec<Script>,
    /// Kernel modules that the initramfs must have.
    #[serde(default)]
    pub initrd_modules: Vec<Item>,
}

/// A value that a profile may set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parameter {
    /// Type of the value.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// Value when the profile gives none; without it the profile must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// What it does.
    pub description: String,
}

/// Type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number,
    /// Text.
    Text,
    /// A list of texts.
    List,
}

impl ParameterType {
    /// True when the value is of this type.
    pub fn accepts(self, value: &serde_json::Value) -> bool {
        match self {
            Self::Bool => value.is_boolean(),
            Self::Number => value.is_i64() || value.is_u64(),
            Self::Text => value.is_string(),
            Self::List => value.as_array().is_some_and(|list| list.iter().all(serde_json::Value::is_string)),
        }
    }

    /// A value of the type that says nothing.
    pub fn empty(self) -> serde_json::Value {
        match self {
            Self::Bool => false.into(),
            Self::Number => 0.into(),
            Self::Text => "".into(),
            Self::List => serde_json::Value::Array(Vec::new()),
        }
    }

    /// The type in words, with its article.
    pub fn words(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Number => "a whole number",
            Self::Text => "text",
            Self::List => "a list of texts",
        }
    }
}

/// A package or kernel module: its name alone, its name under a condition, or all names in a list parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Item {
    /// Always.
    Name(String),
    /// Only when the condition holds.
    When(ItemWhen),
    /// All names that a list parameter holds.
    From(ItemFrom),
}

/// An item under a condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemWhen {
    /// The name.
    pub name: String,
    /// A Handlebars expression, such as `parameters.wifi` or `(eq profile.boot.kernel "cloud")`.
    pub when: String,
}

/// Items named by a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemFrom {
    /// Name of a parameter of type `list`.
    pub parameter: String,
}

/// A package that is not installed but counts as such.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assumed {
    /// Its name.
    pub name: String,
    /// Virtual packages that it provides.
    #[serde(default)]
    pub provides: Vec<String>,
}

/// systemd units to switch on or off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Units {
    /// Units to start at boot, as their `[Install]` section says.
    pub enable: Vec<String>,
    /// Units not to start at boot.
    pub disable: Vec<String>,
    /// Units that nothing can start.
    pub mask: Vec<String>,
}

/// A script for the build sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Name for messages.
    pub name: String,
    /// The script, relative to the layer's folder; its first line names the interpreter.
    pub file: String,
}

/// A definition with the files of its folder, read by the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedLayer {
    /// The definition.
    pub definition: Definition,
    /// What problems of the definition point into.
    pub document: Document,
    /// The folder as the user knows it; `(built in)` for ours.
    pub folder: String,
    /// Contents of the folder's files by relative path.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl LoadedLayer {
    /// Reads the text of the `layer.yaml` in a folder; all its problems are told at once.
    pub fn new(folder: &str, text: &str, files: BTreeMap<String, Vec<u8>>) -> Result<Self, Diagnostics> {
        let (definition, document) = parse_layer(&format!("{folder}/{LAYER_FILE}"), text)?;
        Ok(Self { definition, document, folder: folder.into(), files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_read_in_all_three_forms() {
        let text = "name: x\nsummary: s\nparameters: {extras: {type: list, description: d}}\npackages:\n- aa\n- {name: bb, when: parameters.p}\n- {parameter: extras}\n";
        let layer = LoadedLayer::new("x", text, BTreeMap::new()).unwrap().definition;
        assert_eq!(layer.packages[0], Item::Name("aa".into()));
        assert_eq!(layer.packages[1], Item::When(ItemWhen { name: "bb".into(), when: "parameters.p".into() }));
        assert_eq!(layer.packages[2], Item::From(ItemFrom { parameter: "extras".into() }));
    }
}
