//! What runs on the node: init of the initramfs, first-boot agent, status screen and node CLI.

pub mod agent;
pub mod backup;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod console;
pub mod diag;
pub mod disks;
pub mod exec;
pub mod folder;
pub mod host;
pub mod images;
pub mod init;
pub mod install;
pub mod metrics;
pub mod oci_runtime;
mod platform;
pub mod registry;
pub mod remote;
pub mod snapshotter;
pub mod status;
pub mod steps;
pub mod sys;
pub mod verbs;
