//! Registries of container images (OCI distribution specification 1.1, docker's schema 2), asked and filled.
//!
//! What a registry says is not believed: documents end at 4 MiB and must be what they are served as, bytes have the digest and the length that was
//! told of them before, and nobody is followed to addresses that no server is told from outside.

mod copy;
pub mod document;
mod layout;
mod push;
mod registries;
mod repository;

pub use copy::{Content, Platforms};
pub use document::{Document, Kind};
pub use layout::{Entry, Layout};
pub use registries::Registries;
pub use repository::Repository;
