//! The harness that boots images in virtual machines: vm, serial line, packages of the tested Debian release.

pub mod build;
pub mod debs;
pub mod exec;
pub mod grub;
pub mod node;
pub mod serial;
pub mod slots;
pub mod uml;
pub mod vm;
