//! Entry point.

fn main() -> std::process::ExitCode {
    firstboot::cli::main()
}
