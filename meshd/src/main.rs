//! `meshd`, the node daemon. See [`meshd::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    meshd::memory::keep_small();
    meshd::cli::main()
}
