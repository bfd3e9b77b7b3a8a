//! The command line.

#[cfg(feature = "lab")]
mod lab;

use clap::{Args, Parser, Subcommand};
#[cfg(feature = "lab")]
pub(crate) use lab::{DemoArgs, LabCommand, PodCommand, SimArgs, UpArgs};
use std::path::PathBuf;

/// Looks at meshd, tries it, and plays with it.
///
/// `status` asks the daemon of this node. `demo` and `lab` make a cluster out of network namespaces on this machine,
/// with the real programs; `sim` simulates one. None of the three touches the machine's own network, and none of them
/// is in the container image's meshctl.
#[derive(Parser)]
#[command(name = "meshctl", version, about, long_about, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    #[cfg(feature = "lab")]
    /// Proves on this machine's kernel that meshd does what it promises.
    Demo(DemoArgs),
    #[cfg(feature = "lab")]
    /// Keeps a cluster of network namespaces to play with.
    #[command(subcommand)]
    Lab(LabCommand),
    #[cfg(feature = "lab")]
    /// Runs the demo's scenario in the simulator.
    Sim(SimArgs),
    /// Says how the daemon of this node is, and what to do about each problem.
    Status(StatusArgs),
    /// Prints a completion script for a shell.
    ///
    /// For bash: `source <(meshctl completion bash)`. For zsh: `meshctl completion zsh > "${fpath[1]}/_meshctl"`. For
    /// fish: `meshctl completion fish > ~/.config/fish/completions/meshctl.fish`.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Says how the daemon of this node is, and what to do about each problem.
///
/// The exit status is 0 if the daemon is ready to attach pods.
#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Path of the daemon's socket.
    #[arg(long, value_name = "PATH", default_value = meshd_model::cni::SOCKET, env = "MESHD_SOCKET")]
    pub(crate) socket: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        fn check(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} says nothing");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{path} {} says nothing",
                    argument.get_id()
                );
            }
            for sub in command.get_subcommands() {
                check(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        check(&Cli::command(), "meshctl");
    }
}
