//! What runs on the node: init of the initramfs, first-boot agent, status screen and node CLI.

pub mod config;
pub mod exec;
pub mod host;
pub mod init;
pub mod sys;
