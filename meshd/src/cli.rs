//! The command line.

use crate::settings::value::{LogFormat, WireguardMode};
use crate::settings::{DEFAULT_PATH, Overrides, Settings, file, load, show};
use crate::{cni_files, daemon, log, own_address, record, socket::client, teardown, uninstall};
use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The node daemon of meshd: gives this node's pods their network, and encrypts it.
///
/// Without a verb the daemon runs until SIGTERM or SIGINT. Stopping it changes nothing for running pods.
/// `meshd --print-config` shows every key of the configuration with its meaning, default and effective value.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Print the effective configuration and exit.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Args)]
struct Options {
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Name of the Node that the daemon runs on.
    #[arg(long, global = true, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Kubeconfig; without one, the pod's service account.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where the API server is, with the service account's credentials: https://HOST:PORT or HOST:PORT.
    #[arg(long, global = true, value_name = "URL", env = "MESHD_API_SERVER")]
    api_server: Option<String>,
    /// Kubeconfig whose server and authority are used with the service account's credentials, as the kubelet's own.
    #[arg(long, global = true, value_name = "FILE", env = "MESHD_API_SERVER_FROM")]
    api_server_from: Option<PathBuf>,
    /// Folder of the service account [default: /var/run/secrets/kubernetes.io/serviceaccount].
    #[arg(long, global = true, value_name = "DIR")]
    service_account_dir: Option<PathBuf>,
    /// Folder of the node's key, the leases and the recording [default: /var/lib/meshd].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Path of the local socket [default: /run/meshd/meshd.sock].
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// What carries the tunnel [default: auto].
    #[arg(long, global = true, value_name = "KIND")]
    wireguard: Option<WireguardMode>,
    /// Folder of the userspace device's control sockets [default: /var/run/wireguard].
    #[arg(long, global = true, value_name = "DIR")]
    wireguard_socket_dir: Option<PathBuf>,
    /// Folder of the recording [default: recording under the state folder].
    #[arg(long, global = true, value_name = "DIR")]
    recording_dir: Option<PathBuf>,
    /// How a line of the log looks [default: text].
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon (the same as no verb).
    Run,
    /// Exit with 0 if the daemon is ready to attach pods, with 1 if not. For probes; asks the running daemon only.
    Ready,
    /// Exit with 0 if the daemon answers, ready or not, with 1 if not. For liveness probes.
    Alive,
    /// Put the plugin into cni.bin_dir, where the container runtime looks for it, and check the configuration.
    ///
    /// Refuses pod CIDRs that hold this node's own address, before anything is changed.
    /// Written beside, flushed, renamed: a runtime never finds half a plugin. The CNI configuration is the daemon's to
    /// put in place, once it is ready.
    Install {
        /// The plugin [default: meshd-cni beside this program].
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
    },
    /// Replay a recording through this version's agent and compare every action.
    ///
    /// Exits with 0 if the agent decides the same throughout; otherwise says where it decides otherwise.
    Replay {
        /// A segment, or a folder of them.
        path: PathBuf,
    },
    /// Remove from this node what meshd has set up: tunnel, routes, rules, firewall table. The daemon must be stopped.
    ///
    /// Key, leases and recording stay in the state folder. Goes on past failures and names them all.
    Teardown {
        /// Also remove the interfaces of pods that are still running: they lose their network.
        #[arg(long)]
        force: bool,
    },
    /// Take meshd off this node for good: what teardown removes, also from running pods, and the plugin, its
    /// configuration, the node's key, leases and recording.
    Uninstall {
        /// Namespace of meshd's pods: first wait until none of them is on this node, and last remove meshd's
        /// annotations from the Node.
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
        /// When all is done, stay until SIGTERM: a pod that runs says so.
        #[arg(long)]
        stay: bool,
        /// Leave this node alone, and wait until all pods of this DaemonSet of the namespace are ready.
        #[arg(long, value_name = "DAEMONSET", requires = "namespace")]
        wait_for: Option<String>,
        /// Longest wait, in seconds.
        #[arg(long, value_name = "SECONDS", default_value = "120")]
        timeout: u64,
    },
}

impl Options {
    fn load(self) -> anyhow::Result<Settings> {
        let overrides = Overrides {
            node_name: self.node_name,
            kubeconfig: self.kubeconfig,
            api_server: self.api_server,
            api_server_from: self.api_server_from,
            service_account_dir: self.service_account_dir,
            state_dir: self.state_dir,
            socket: self.socket,
            wireguard: self.wireguard,
            wireguard_socket_dir: self.wireguard_socket_dir,
            recording_dir: self.recording_dir,
            log_format: self.log_format,
        };
        Ok(load(&self.config, overrides)?)
    }
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(Verb::Replay { path }) = &cli.verb {
        return replay(path);
    }
    if let Some(Verb::Ready | Verb::Alive) = cli.verb {
        let socket = cli
            .options
            .socket
            .unwrap_or_else(|| configured_socket(&cli.options.config));
        return Ok(match cli.verb {
            Some(Verb::Ready) => ready(&socket),
            _ => alive(&socket),
        });
    }
    let settings = cli.options.load()?;
    if cli.print_config {
        print!("{}", show::show(&settings));
        return Ok(ExitCode::SUCCESS);
    }
    log::init(&settings.log.filter, settings.log.format)?;
    if let Some(Verb::Teardown { force }) = cli.verb {
        return teardown::run(&settings, force);
    }
    if let Some(Verb::Uninstall {
        namespace,
        stay,
        wait_for,
        timeout,
    }) = cli.verb
    {
        let options = uninstall::Uninstall {
            namespace,
            stay,
            wait_for,
            timeout: Duration::from_secs(timeout),
        };
        return uninstall::run(&settings, &options);
    }
    if let Some(Verb::Install { plugin }) = cli.verb {
        return install(&settings, plugin);
    }
    log::abort_on_panic();
    daemon::run(&settings)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the configuration has the socket. A probe is no place to judge a configuration: where there is none that
/// can be read, it is the default.
fn configured_socket(config: &Path) -> PathBuf {
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let settings = file::parse(config, &text).unwrap_or_default();
    settings.socket
}

/// One line says why not.
fn ready(socket: &Path) -> ExitCode {
    match client::ready(socket, Duration::from_secs(2)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(lacks)) => {
            eprintln!("not ready: {lacks}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("not ready: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the event loop answers. That the API server is away, or a pod cannot be attached, ends no daemon.
fn alive(socket: &Path) -> ExitCode {
    match client::status(socket, Duration::from_secs(4)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not alive: {error}");
            ExitCode::FAILURE
        }
    }
}

fn install(settings: &Settings, plugin: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(own_address::check(settings))?;
    let plugin = match plugin {
        Some(plugin) => plugin,
        None => std::env::current_exe()
            .context("cannot find out where this program is; name the plugin with --plugin")?
            .with_file_name(cni_files::PLUGIN),
    };
    for line in cni_files::install(&settings.cni, &plugin)? {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn replay(path: &Path) -> anyhow::Result<ExitCode> {
    for report in record::replay_path(path)? {
        println!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}
