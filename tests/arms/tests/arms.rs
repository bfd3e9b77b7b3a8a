//! See `meshd_arms`.

fn main() -> std::process::ExitCode {
    meshd_arms::main()
}
