//! Other machines: what is fetched from servers and pushed to registries, by the workstation's builds and by the verbs of day 2.

pub mod auth;
pub mod http;
mod names;
pub mod oci;
pub mod redirect;
