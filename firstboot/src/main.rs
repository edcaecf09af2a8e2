//! Entry point: the initramfs's `init` when it is process 1 and called so, else the node's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if std::process::id() == 1 && std::path::Path::new(&name).file_name().is_some_and(|n| n == "init") {
        firstboot::init::main();
    }
    firstboot::cli::main()
}
