//! Objects of the platform's API as a profile writes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An object without its frame: its name, and beside it the fields of its `spec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Named{S}")]
pub struct Named<S> {
    /// Name of the object.
    pub name: String,
    /// Its specification.
    #[serde(flatten)]
    pub spec: S,
}
