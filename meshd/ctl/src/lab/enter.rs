//! Runs a program inside a lab, on the caller's own terminal: joins the sandbox's namespaces, as `nsenter` does.

use super::place::State;
use anyhow::{Context, Result};
use meshd_lab::cluster::node::Paths;
use meshd_model::NodeName;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

pub(super) fn run(state: &State, site: &str, netns: &Path, command: &[String]) -> Result<ExitCode> {
    // Inside, /proc tells nothing of this process any more.
    let path = path_with_own()?;
    join(state.init)?;
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("enter the network namespace {}", netns.display()))?;
    usual_places(site)?;
    let shell = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let command = if command.is_empty() { &shell[..] } else { command };
    let status = Command::new(&command[0])
        .args(&command[1..])
        .env("MESHD_LAB_SITE", site)
        .env("PATH", path)
        .status();
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            // As a shell says it, so that it is not taken for the program's own status.
            eprintln!("meshctl: run {} on {site}: {error}", command[0]);
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if is_missing { 127 } else { 126 }));
        }
    };
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// So that `meshctl status` works inside also where meshctl is run from the folder that it was built in.
fn path_with_own() -> Result<OsString> {
    let own = std::env::current_exe().context("find the own program")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(own.parent().map(Path::to_owned));
    std::env::join_paths(folders).context("add the own program's folder to PATH")
}

/// User namespace first, where there is one of its own: it gives the right to join the others.
fn join(init: u32) -> Result<()> {
    let path = |space: &str| format!("/proc/{init}/ns/{space}");
    let open = |space: &str| File::open(path(space)).with_context(|| format!("open {}", path(space)));
    let spaces = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut files = Vec::new();
    for (space, kind) in spaces {
        let own = fs::metadata(format!("/proc/self/ns/{space}"))?.ino();
        let file = open(space)?;
        if file.metadata()?.ino() != own {
            files.push((file, kind, space));
        }
    }
    for (file, kind, space) in files {
        setns(&file, kind).with_context(|| format!("join the lab's {space} namespace"))?;
    }
    Ok(())
}

/// On a node, what is in the node's folder appears where programs look for it.
fn usual_places(site: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    // /sys/class/net shows the namespace's own; where that is refused, only it is missing.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none);
    let paths = Paths::of(&NodeName(site.to_owned()));
    if !paths.folder.is_dir() {
        return Ok(());
    }
    let socket_folder = paths.socket.parent().unwrap_or(Path::new("/run"));
    for (source, target) in [
        (socket_folder, "/run/meshd"),
        (&paths.wireguard, "/run/wireguard"),
    ] {
        fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
        mount(Some(source), target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("show {target}"))?;
    }
    Ok(())
}
