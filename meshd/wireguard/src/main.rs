//! `meshd-wg`: a userspace WireGuard device as a process of its own.
//!
//! ```text
//! kernel  --TUN-->  tun  --IP packets-->  proto::Device  --datagrams-->  udp  --sockets-->  kernel
//!                                              ^
//!                                   uapi  <-- control  <-- IFNAME.sock
//! ```
//!
//! One thread: [`run`] waits for whatever comes first, hands it to the device, and carries out what the device wants.

mod args;
mod background;
mod checksum;
mod clock;
mod control;
mod links;
mod lock;
mod probe;
mod run;
mod standby;
mod tun;
mod uapi;
mod udp;

use args::Args;
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd-wg: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    if args.delete {
        return tun::delete(&args.ifname);
    }
    if args.answers {
        return probe::answers(args);
    }
    if !args.foreground {
        anyhow::ensure!(!args.unless_kernel, "--unless-kernel needs --foreground");
        return background::start();
    }
    if args.unless_kernel
        && let Some(reason) = standby::reason(&args.ifname)?
    {
        let signals = run::block_signals()?;
        tracing::info!(ifname = args.ifname, "standing by: {reason}");
        return standby::wait(&signals);
    }
    run::Runtime::start(args)?.run()
}
