//! From verified packages and a plan to a configured image tree, without root: read each .deb, keep its files in the store, merge the trees,
//! run the maintainer scripts in a namespace sandbox, read back what they changed, and put the layers' own content on top.

pub mod apply;
pub mod configure;
pub mod database;
pub mod deb;
pub mod editor;
pub mod finalize;
pub mod glob;
pub mod lint;
pub mod merge;
pub mod modules;
pub mod readback;
pub mod sandbox;
pub mod scratch;
pub mod unit_links;
pub mod unpack;
pub mod users;
pub mod zones;
