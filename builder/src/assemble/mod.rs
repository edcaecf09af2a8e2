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
//! From a plan to the image tree.

pub mod apply;
pub mod editor;
pub mod finalize;
pub mod glob;
pub mod lint;
pub mod modules;
pub mod unit_links;
pub mod users;
