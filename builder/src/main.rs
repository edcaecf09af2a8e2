//! The `chasi-bod` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    builder::cli::main()
}
