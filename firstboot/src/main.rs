//! Entry point: containerd's OCI runtime by its name, else the node's command.

use std::path::Path;
use std::process::ExitCode;

use firstboot::{cli, oci_runtime};

fn main() -> ExitCode {
    let path = std::env::args_os().next().unwrap_or_default();
    match Path::new(&path).file_name().and_then(|name| name.to_str()) {
        Some(oci_runtime::NAME) => oci_runtime::main(),
        _ => cli::main(),
    }
}
