//! The profile's path: as written → merged → valid. Only the valid [`Profile`] leaves this module.

mod check;
mod diagnostic;
mod document;
mod layer;
mod merge;
mod network;
mod platform;
mod schema;
mod secret;
mod syntax;
mod template;
mod tree;
mod types;
mod types_network;
mod types_platform;
mod valid;
mod written;

pub use diagnostic::{Diagnostic, Diagnostics, Spot, quote, suggest};
pub use document::Document;
pub use layer::{layer_schema, parse_layer};
pub use network::check_network;
pub use schema::{json_schema, object_schema, to_yaml};
pub use secret::kind as secret_kind;
pub use syntax::{is_host, is_name, is_package, is_user, is_zone};
pub use template::template;
pub use types::*;
pub use types_network::*;
pub use types_platform::Named;
pub use written::{Loaded, load};
