//! The profile's path: as written → merged → valid. Only the valid [`Profile`] leaves this module.

mod types;

pub use types::*;
