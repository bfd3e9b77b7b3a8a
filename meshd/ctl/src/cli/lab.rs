//! Clusters on this machine: real ones of namespaces, and simulated ones.

use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Proves on this machine's kernel that meshd does what it promises.
///
/// Makes a cluster out of network namespaces: one real meshd and meshd-wg a node, an API server, and pods that are
/// added by running meshd-cni as a container runtime does. Then it proves, with numbers: every pod reaches every
/// other over IPv4 and IPv6; the underlay carries WireGuard and nothing of a pod in the clear; kill -9 of a daemon
/// loses no packet; a node without a valid key is unreachable rather than unencrypted; plaintext from a neighbour
/// reaches no pod; and nothing is left afterwards.
///
/// The exit status is 0 only if every proof holds. Needs root, or user namespaces and /dev/net/tun; where the system
/// refuses them, it says how to allow it, and runs the same scenario in the simulator instead.
///
/// The programs meshd, meshd-wg and meshd-cni are looked for beside meshctl, or in the folder that MESHD_BIN_DIR
/// names.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// How many nodes, 3 to 30.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=30))]
    pub(crate) nodes: u16,
    /// Print one JSON object on standard output instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep every process's log, and the daemons' recordings, in this folder; else only after a failure.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
}

/// Keeps a cluster of network namespaces to play with.
///
/// There is one lab a user at a time. Its nodes are called node-1, node-2 and so on; it lives until `down`, and
/// however its supervisor ends, the kernel takes everything down.
#[derive(Subcommand)]
#[command(after_help = "\
Example:
  meshctl lab up --nodes 3
  meshctl lab pod add node-1 web
  meshctl lab pod add node-2 client
  meshctl lab exec client -- ping -c 3 10.244.1.2
  meshctl lab exec node-1 -- meshctl status
  meshctl lab down")]
pub(crate) enum LabCommand {
    /// Brings a lab up, and returns when its nodes are ready.
    Up(UpArgs),
    /// Says what there is: nodes, pods, where the logs are.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Runs a program on a node, or in a pod's network namespace.
    ///
    /// The program sees the lab's own /run, with the daemon's socket and the WireGuard device's at their usual
    /// places, so that `meshctl status` and `wg show` work on a node. The exit status is the
    /// program's; 127 if there is no such program, 126 if it cannot be run.
    Exec {
        /// A node, or a pod.
        #[arg(value_name = "NODE")]
        site: String,
        /// The program and its arguments; a shell, if none is given.
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Adds and deletes pods.
    #[command(subcommand)]
    Pod(PodCommand),
    /// Takes the lab down, and says what is left, if anything is.
    Down,
}

#[derive(Args)]
pub(crate) struct UpArgs {
    /// How many nodes, 1 to 100.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) nodes: u16,
    /// Use the API server of this kubeconfig instead of the embedded one.
    ///
    /// The lab's nodes have no way out of their namespaces: they reach the server through a relay, which the lab's
    /// supervisor leads to the address that the kubeconfig's current context names. Certificates and tokens are
    /// copied into the lab; credentials that a program must fetch (exec plugins) cannot be used. The lab creates
    /// Nodes node-1, node-2 and so on there, and pods in the namespace default; `down` deletes them.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum PodCommand {
    /// Adds a pod: an object at the API server, a namespace with echo servers (port 7), and CNI ADD.
    Add {
        /// Where.
        node: String,
        /// Its name; pod-1, pod-2 and so on, if none is given.
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Deletes a pod: CNI DEL, its namespace, its object.
    Del {
        /// Which.
        name: String,
    },
}

/// Runs the demo's scenario in the simulator.
///
/// Simulated are time, the underlay, the kernel's tables and the API server's network; real are the agent, WireGuard's
/// handshakes and cryptography, and every packet's bytes. The same arguments give the same run: compare `trace`, the
/// hash of all events.
///
/// The exit status is 0 only if every proof and every invariant holds.
#[derive(Args)]
pub(crate) struct SimArgs {
    /// How many nodes, 3 to 4000.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) nodes: usize,
    /// What all chance comes from.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How long the cluster runs on before its pods are deleted, in simulated time: 90s, 10m, 2h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Print one JSON object: trace, packets, handshakes, watch_events, invariant_checks and the report.
    #[arg(long)]
    pub(crate) json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| "a time is a number and a unit: 90s, 10m, 2h".to_owned())?;
    let seconds = match unit {
        "s" | "" => number,
        "m" => number.saturating_mul(60),
        "h" => number.saturating_mul(3600),
        _ => return Err(format!("{unit:?} is no unit of time: s, m or h")),
    };
    // A year of simulated time is more than anyone waits for.
    if seconds > 365 * 24 * 3600 {
        return Err("that is more than a year".to_owned());
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "-1s", "1d", "999999999999h", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
