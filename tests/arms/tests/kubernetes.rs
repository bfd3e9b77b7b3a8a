//! Runs the trials on a real Kubernetes cluster: `cargo test --workspace --test kubernetes`.

fn main() -> std::process::ExitCode {
    meshd_arms::kubernetes()
}
