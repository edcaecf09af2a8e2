//! Sources: where an image's parts come from. Each locks to a digest and fills the store with verified blobs.

pub mod deb;
pub mod http;
