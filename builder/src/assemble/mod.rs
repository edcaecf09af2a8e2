//! From verified packages to a configured image tree, without root: read each .deb, keep its files in the store, merge the trees,
//! run the maintainer scripts in a namespace sandbox and read back what they changed.

pub mod configure;
pub mod database;
pub mod deb;
pub mod merge;
pub mod readback;
pub mod sandbox;
pub mod scratch;
pub mod unpack;
