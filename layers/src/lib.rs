//! What an image is: profile, layer definitions, plan, lock and the records that builder and node share. Pure: no I/O, no unsafe.
#![forbid(unsafe_code)]

pub mod bootstate;
pub mod chart;
pub mod error;
mod expression;
pub mod fatnames;
pub mod frames;
pub mod graph;
pub mod image;
pub mod layer;
pub mod lock;
pub mod manifest;
pub mod medium;
pub mod membership;
pub mod node;
pub mod plan;
pub mod platform;
pub mod pool;
pub mod profile;
pub mod range;
pub mod reference;
pub mod seed;
pub mod selector;
pub mod settings;
pub mod source;
pub mod template;
pub mod units;

pub use error::{Context, Error, Fault, Result};
