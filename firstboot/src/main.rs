//! Entry point: the initramfs's `init` when it is process 1 and called so, containerd's OCI runtime by its name, else the node's command.

use std::path::Path;
use std::process::ExitCode;

use firstboot::{cli, init, oci_runtime};

fn main() -> ExitCode {
    let path = std::env::args_os().next().unwrap_or_default();
    match Path::new(&path).file_name().and_then(|name| name.to_str()) {
        Some("init") if std::process::id() == 1 => init::main(),
        Some(oci_runtime::NAME) => oci_runtime::main(),
        _ => cli::main(),
    }
}
