//! File systems and their relatives, each written and read by us.

pub mod fat;
