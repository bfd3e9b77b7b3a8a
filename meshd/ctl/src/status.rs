//! `meshctl status`.

use crate::cli::StatusArgs;
use crate::table;
use anyhow::{Context, Result};
use meshd_model::kernel::DeviceKind;
use meshd_model::status::Status;
use meshd_model::time::Wall;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode> {
    let status = crate::client::status(&args.socket, PATIENCE).context(
        "the daemon does not say how it is: does meshd run on this node, and is this its socket (--socket)? Only root \
         may ask",
    )?;
    if args.json {
        crate::print_json(&status)?;
    } else {
        crate::print(text(&status, now())?.as_bytes())?;
    }
    Ok(if status.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn text(status: &Status, now: Wall) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let device = match status.device {
        Some(DeviceKind::Kernel) => "in-kernel WireGuard",
        Some(DeviceKind::Userspace) => "userspace WireGuard",
        None => "no WireGuard device seen yet",
    };
    let ready = if status.ready { "ready" } else { "NOT READY" };
    writeln!(
        text,
        "node       {} (meshd {}), {ready}",
        status.node, status.version
    )?;
    writeln!(text, "key        {}", status.public_key)?;
    let mtu = status.mtu.map_or("not known yet".to_owned(), |m| m.to_string());
    writeln!(
        text,
        "device     {device}, UDP port {}, MTU {mtu}",
        status.listen_port
    )?;
    writeln!(text, "pod CIDRs  {}", list(&status.pod_cidrs))?;
    writeln!(text, "overlay    {}", list(&status.overlay_addresses))?;
    if !status.peers.is_empty() {
        writeln!(text, "\n{}", peers(status, now))?;
    }
    if !status.attachments.is_empty() {
        writeln!(text, "\n{}", attachments(status))?;
    }
    if status.problems.is_empty() {
        writeln!(text, "\nno problems")?;
    }
    for problem in &status.problems {
        writeln!(
            text,
            "\n{}: {}\n  {}",
            problem.subject, problem.message, problem.remedy
        )?;
    }
    Ok(text)
}

fn peers(status: &Status, now: Wall) -> comfy_table::Table {
    let mut table = table::new(&[
        "peer",
        "key",
        "endpoint",
        "last handshake",
        "received",
        "sent",
        "allowed IPs",
    ]);
    for peer in &status.peers {
        let handshake = peer
            .last_handshake
            .map_or("never".to_owned(), |at| ago(now.since(at)));
        table.add_row([
            peer.node.to_string(),
            peer.public_key.to_string(),
            peer.endpoint.map_or("-".to_owned(), |e| e.to_string()),
            handshake,
            table::bytes(peer.rx_bytes),
            table::bytes(peer.tx_bytes),
            table::lines(&peer.allowed_ips),
        ]);
    }
    table
}

fn attachments(status: &Status) -> comfy_table::Table {
    let mut table = table::new(&["pod", "container", "interface", "addresses", "phase"]);
    for attachment in &status.attachments {
        let container: String = attachment.container_id.chars().take(13).collect();
        table.add_row([
            attachment.pod.clone().unwrap_or_else(|| "-".to_owned()),
            container,
            attachment.ifname.clone(),
            table::lines(&attachment.addresses),
            format!("{:?}", attachment.phase).to_lowercase(),
        ]);
    }
    table
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "none yet".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn ago(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s} s ago"),
        s @ 60..3600 => format!("{} min {} s ago", s / 60, s % 60),
        s => format!("{} h {} min ago", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_model::PublicKey;
    use meshd_model::status::{PeerStatus, Problem};

    #[test]
    fn each_problem_is_a_line_with_what_to_do_below() {
        let second = Wall(1_000_000_000);
        let status = Status {
            version: "0.1.0".into(),
            node: "worker-1".into(),
            ready: false,
            public_key: PublicKey([7; 32]),
            device: None,
            listen_port: 51820,
            mtu: None,
            pod_cidrs: Vec::new(),
            overlay_addresses: Vec::new(),
            peers: vec![PeerStatus {
                node: "worker-2".into(),
                public_key: PublicKey([8; 32]),
                endpoint: "192.0.2.1:51820".parse().ok(),
                last_handshake: Some(second),
                rx_bytes: 2048,
                tx_bytes: 0,
                allowed_ips: vec!["10.244.2.0/24".parse().unwrap()],
            }],
            attachments: Vec::new(),
            problems: vec![Problem {
                subject: "node/worker-3".into(),
                message: "no key".into(),
                remedy: "start meshd there".into(),
            }],
        };
        let shown = text(&status, Wall(62_000_000_000)).unwrap();
        for part in [
            "worker-1 (meshd 0.1.0), NOT READY",
            "node/worker-3: no key\n  start meshd there",
            "1 min 1 s ago",
            "2.0 KiB",
            "10.244.2.0/24",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }
}
