//! The `chasi-bod` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().collect();
    // Before anything else: this process must have one thread when it leaves its namespaces.
    if args.get(1).is_some_and(|a| a == "sandbox") {
        return builder::assemble::sandbox::main(&args[2..]);
    }
    builder::cli::main()
}
