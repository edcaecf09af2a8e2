//! One program of all tests from outside: each of them would be linked with all of the builder again.

mod common;

mod app;
mod apt_solver;
mod bios_boot;
mod chart_source;
mod cli;
mod compare;
mod config_image;
mod container_images;
mod deb_archive;
mod emit_faults;
mod fat;
mod formats;
mod go_source;
mod image;
mod inspect;
mod mmdebstrap;
mod monitoring;
mod oci_faults;
mod oci_source;
mod own_layer;
mod packages;
mod publish;
mod scratch;
mod signing;
mod upstream;
mod url_source;
mod vcluster;
