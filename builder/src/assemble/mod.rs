//! From a plan to the image tree.

pub mod apply;
pub mod editor;
pub mod finalize;
pub mod glob;
pub mod lint;
pub mod modules;
pub mod unit_links;
pub mod users;
