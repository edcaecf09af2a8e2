//! The profile's path: as written → merged → valid. Only the valid [`Profile`] leaves this module.

mod check;
mod diagnostic;
mod secret;
mod tree;
mod types;

pub use check::parse_checked;
pub use diagnostic::{Diagnostic, Diagnostics};
pub use secret::kind as secret_kind;
pub use types::*;
