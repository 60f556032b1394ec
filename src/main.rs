//! The program `authsock`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    authsock::cli::main()
}
