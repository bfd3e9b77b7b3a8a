//! Chains with the reference plugins behind meshd-cni, driven by the CNI project's own cnitool through a list of plugins:
//! all verbs, a runtime's wishes, and whether what each plugin promises holds for real packets.

use crate::arms::{Trouble, trial};
use crate::bad_days::{node, nothing_is_left, with_cluster};
use crate::{programs, sandboxed};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use meshd_lab::cluster::cni;
use meshd_lab::netns::Netns;
use meshd_lab::plan::{ECHO_PORT, Plan};
use meshd_lab::process;
use meshd_lab::sandbox::{Entry, Inside};
use meshd_lab::traffic::echo::Echo;
use meshd_lab::traffic::probe::Try;
use meshd_lab::{Binaries, NetnsArm};
use meshd_model::cni::notes_folder;
use meshd_scenario::{Arm, Outcome, ProbeKind, Site};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Names the folder of cnitool and the reference plugins.
const VARIABLE: &str = "MESHD_CNI_TOOLS";
/// The port of the node that is the pod's echo server.
const HOST_PORT: u16 = 8080;
/// What the pod may send and receive, in bits a second, and at once, in bits.
const RATE: u64 = 8_000_000;
const BURST: u64 = 400_000;
/// At that rate so many bytes take a second, there and back at the same time; without, some milliseconds.
const BYTES: usize = 1_000_000;
const AT_LEAST: Duration = Duration::from_millis(700);
/// What the tuning plugin is to set in the pod.
const SYSCTL: &str = "net/ipv4/conf/eth0/arp_notify";
/// How long a call may take, and how long anything may take to be well.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Serialize, Deserialize)]
struct Input {
    binaries: Binaries,
    tools: PathBuf,
}

pub(crate) const ENTRY: Entry = Entry {
    name: "chains",
    run: inside,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "cnitool",
        "a_chain_of_the_reference_plugins_keeps_what_it_promises",
        run,
    )]
}

fn run() -> Result<(), Trouble> {
    let Some(tools) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        let advice = format!("set {VARIABLE} to what hack/cnitool/build prints");
        return Err(Trouble::Unable(advice));
    };
    let binaries = programs::find()?;
    sandboxed::run(ENTRY.name, &Input { binaries, tools }, drop)
}

fn inside(inside: Inside) -> Result<()> {
    let input: Input = serde_json::from_value(inside.input).context("the programs' paths")?;
    // cnitool keeps results there; what is mounted here shows nowhere else.
    let covered = nix::mount::mount(
        Some("tmpfs"),
        "/var/lib",
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    );
    covered.context("cover /var/lib")?;
    let lab = Inside {
        input: serde_json::to_value(&input.binaries)?,
        reporter: inside.reporter,
    };
    with_cluster(lab, 2, |arm| {
        let tool = Tool::new(arm, &input)?;
        let addresses = every_verb(arm, &tool)?;
        wished_for(arm, &tool, &addresses)?;
        collected(arm, &tool)?;
        without_the_daemon(arm, &tool)?;
        // Empty, and the reference plugins leave them.
        for table in ["ip filter", "ip nat", "ip6 filter", "ip6 nat"] {
            on_node(arm, 1, "nft", &["delete", "table", table])?;
        }
        Ok(())
    })
}

/// cnitool on the first node.
struct Tool {
    program: PathBuf,
    path: String,
    /// Where the lists of plugins are.
    lists: PathBuf,
}

/// A container without a runtime.
struct Container {
    name: String,
    uid: String,
    netns: Netns,
    /// The capabilities `ips` and `mac`, if it has any.
    wishes: Value,
    _echo: Echo,
}

impl Tool {
    fn new(arm: &mut NetnsArm, input: &Input) -> Result<Tool> {
        let paths = arm.cluster().node(&node(1))?.paths();
        let lists = paths.folder.join("net.d");
        std::fs::create_dir_all(&lists)?;
        let versions = ["1.0.0", "1.1.0"];
        let list = json!({ "cniVersion": versions[0], "cniVersions": versions, "name": "meshd", "plugins": [
            { "type": "meshd-cni", "socket": paths.socket, "capabilities": { "ips": true, "mac": true } },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "tuning", "sysctl": { SYSCTL.replace('/', "."): "1" } },
            { "type": "firewall" },
        ]});
        std::fs::write(lists.join("10-meshd.conflist"), list.to_string())?;
        let loopback = json!({ "cniVersion": "1.0.0", "name": "lo", "plugins": [{ "type": "loopback" }] });
        std::fs::write(lists.join("99-lo.conflist"), loopback.to_string())?;
        let own = input.binaries.meshd_cni.parent().context("the plugin's folder")?;
        Ok(Tool {
            program: input.tools.join("cnitool"),
            path: format!("{}:{}", own.display(), input.tools.display()),
            lists,
        })
    }

    /// Gives what it printed, on an error, too.
    fn call(&self, arm: &mut NetnsArm, verb: &str, network: &str, of: &Container) -> Result<String> {
        let mut capabilities = json!({
            "portMappings": [{ "hostPort": HOST_PORT, "containerPort": ECHO_PORT, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST },
        });
        let (all, wishes) = (capabilities.as_object_mut(), of.wishes.as_object());
        all.into_iter()
            .for_each(|all| all.extend(wishes.cloned().unwrap_or_default()));
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_UID={}",
            of.name, of.uid
        );
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_PATH", &self.path)
            .env("NETCONFPATH", &self.lists)
            .env("CNI_IFNAME", if network == "lo" { "lo" } else { cni::IFNAME })
            .env("CNI_ARGS", arguments)
            .env("CAP_ARGS", capabilities.to_string())
            .args([verb, network])
            .arg(of.netns.path());
        let on = &arm.cluster().node(&node(1))?.netns;
        let done = process::run(on, command, "", PATIENCE)?;
        let said = format!("{}{}", done.stdout, done.stderr);
        ensure!(
            done.status.success(),
            "cnitool {verb} {network} of {}: {said}",
            of.name
        );
        Ok(done.stdout)
    }

    /// ADD, again while it is told to try again.
    fn add(&self, arm: &mut NetnsArm, of: &Container) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.call(arm, "add", "meshd", of) {
                Ok(result) => return serde_json::from_str(&result).context("the result of ADD"),
                Err(error) if Instant::now() > deadline || !format!("{error}").contains("seen yet") => {
                    return Err(error);
                }
                // As a runtime does.
                Err(_) => drop(self.call(arm, "del", "meshd", of)?),
            }
        }
    }
}

fn container(arm: &mut NetnsArm, name: &str) -> Result<Container> {
    let runtime = arm.runtime();
    let uid = runtime.block_on(arm.cluster().kubernetes.create_pod(&node(1), name))?;
    let netns = Netns::create(&format!("cni-{name}"))?;
    let echo = runtime.block_on(async { Echo::start(&netns) })?;
    Ok(Container {
        name: name.to_owned(),
        uid,
        netns,
        wishes: Value::Null,
        _echo: echo,
    })
}

/// Gives the addresses that the container had.
fn every_verb(arm: &mut NetnsArm, tool: &Tool) -> Result<Vec<IpAddr>> {
    let pod = container(arm, "chained")?;
    tool.call(arm, "status", "meshd", &pod)?;
    tool.call(arm, "add", "lo", &pod)?;
    let result = tool.add(arm, &pod)?;
    ensure!(
        result["cniVersion"] == "1.1.0",
        "of cniVersions the newest: {result}"
    );
    let addresses = cni::addresses(&result)?;
    ensure!(addresses.len() == 2, "{result}");
    let again = tool.call(arm, "add", "meshd", &pod).err();
    let again = again.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(again.contains("attached already"), "a second ADD: {again:?}");
    tool.call(arm, "check", "meshd", &pod)?;
    tool.call(arm, "check", "lo", &pod)?;

    pods_reach_it(arm, &addresses)?;
    limited_and_mapped(arm, &pod, &addresses, &result)?;
    let sysctl = pod
        .netns
        .run(|| std::fs::read_to_string(Path::new("/proc/sys").join(SYSCTL)))??;
    ensure!(sysctl.trim() == "1", "tuning has not set {SYSCTL}: {sysctl}");

    tool.call(arm, "check", "meshd", &pod)?;
    for _ in 0..2 {
        tool.call(arm, "del", "meshd", &pod)?;
        nothing_is_left(arm, "DEL")?;
    }
    let rules = on_node(arm, 1, "iptables-save", &[])?;
    ensure!(
        !addresses.iter().any(|a| rules.contains(&a.to_string())),
        "rules are left: {rules}"
    );
    gone(arm, pod)?;
    Ok(addresses)
}

/// A container gets the addresses and the MAC that its runtime names, and by them it is reached.
fn wished_for(arm: &mut NetnsArm, tool: &Tool, like: &[IpAddr]) -> Result<()> {
    const FURTHER: u8 = 0x40;
    const MAC: &str = "02:6d:73:68:00:07";
    let wished: Vec<IpAddr> = like.iter().map(|address| further(*address, FURTHER)).collect();
    let mut pod = container(arm, "wishful")?;
    pod.wishes = json!({ "ips": wished, "mac": MAC });
    let result = tool.add(arm, &pod)?;
    ensure!(
        BTreeSet::from_iter(cni::addresses(&result)?) == BTreeSet::from_iter(wished.clone()),
        "{wished:?} were asked for: {result}"
    );
    let mut command = Command::new("ip");
    command.args(["-o", "address", "show", "dev", cni::IFNAME]);
    let inside = process::run(&pod.netns, command, "", PATIENCE)?.stdout;
    let mut command = Command::new("ip");
    command.args(["-o", "link", "show", "dev", cni::IFNAME]);
    let link = process::run(&pod.netns, command, "", PATIENCE)?.stdout;
    ensure!(link.contains(MAC), "{MAC} was asked for: {link}");
    for address in &wished {
        ensure!(
            inside.contains(&format!("{address}/")),
            "{address} is not there: {inside}"
        );
    }
    tool.call(arm, "check", "meshd", &pod)?;
    pods_reach_it(arm, &wished)?;
    tool.call(arm, "del", "meshd", &pod)?;
    nothing_is_left(arm, "DEL of a container with wishes")?;
    gone(arm, pod)
}

/// An address of the same prefix: none that the allocator comes to by itself here.
fn further(address: IpAddr, by: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d.wrapping_add(by)].into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = octets[15].wrapping_add(by);
            octets.into()
        }
    }
}

fn gone(arm: &mut NetnsArm, pod: Container) -> Result<()> {
    let runtime = arm.runtime();
    runtime.block_on(arm.cluster().kubernetes.delete_pod(&pod.name))
}

/// The firewall plugin has let it in, and so have we.
fn pods_reach_it(arm: &mut NetnsArm, addresses: &[IpAddr]) -> Result<()> {
    let other = arm.add_pod(&node(2), "other")?;
    for address in addresses {
        for kind in [ProbeKind::Udp, ProbeKind::Tcp, ProbeKind::Icmp] {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let runtime = arm.runtime();
                let from = arm.cluster().netns(&Site::Pod(other.clone()))?;
                let outcome = runtime.block_on(async {
                    Try::open(from, *address, kind, 300, Duration::from_secs(1))
                        .run()
                        .await
                });
                if matches!(outcome, Outcome::Answered(_)) {
                    break;
                }
                ensure!(Instant::now() < deadline, "{kind:?} to {address}: {outcome:?}");
            }
        }
    }
    arm.delete_pod(&other)?;
    Ok(())
}

/// Through the port of the node, from another node, at the rate that was asked for.
fn limited_and_mapped(
    arm: &mut NetnsArm,
    pod: &Container,
    addresses: &[IpAddr],
    result: &Value,
) -> Result<()> {
    let host = cni::host_interfaces(result);
    let host = host.iter().find(|name| name.starts_with("mshp"));
    let host = host.with_context(|| format!("no interface of ours in {result}"))?;
    let shaped = on_node(arm, 1, "tc", &["qdisc", "show", "dev", host])?;
    ensure!(
        shaped.contains("tbf"),
        "bandwidth has not limited {host}: {shaped}"
    );
    let (v4, _) = Plan::node(1);
    let at = SocketAddr::new(v4.into(), HOST_PORT);
    let took = arm.cluster().node(&node(2))?.netns.run(move || echoed(at))?;
    let took =
        took.with_context(|| format!("{addresses:?} of {} by port {HOST_PORT} of its node", pod.name))?;
    ensure!(
        took > AT_LEAST,
        "{BYTES} bytes took {took:?}: nothing limits {host}"
    );
    Ok(())
}

/// Sends and receives [`BYTES`] at the same time; how long it took.
fn echoed(at: SocketAddr) -> Result<Duration> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let begin = Instant::now();
    let mut writer = stream.try_clone()?;
    let sent = std::thread::spawn(move || writer.write_all(&vec![b'x'; BYTES]));
    let mut back = vec![0; BYTES];
    stream.read_exact(&mut back).context("read what was echoed")?;
    sent.join().expect("a writer does not panic").context("send")?;
    Ok(begin.elapsed())
}

fn on_node(arm: &mut NetnsArm, number: usize, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let on = &arm.cluster().node(&node(number))?.netns;
    let done = process::run(on, command, "", PATIENCE)?;
    ensure!(done.status.success(), "{program}: {}", done.stderr);
    Ok(done.stdout)
}

/// cnitool names no attachment that stays: GC takes all of the network, and only of it.
fn collected(arm: &mut NetnsArm, tool: &Tool) -> Result<()> {
    let others = arm.add_pod(&node(1), "kept")?;
    let pod = container(arm, "forgotten")?;
    tool.add(arm, &pod)?;
    let leases = arm.cluster().node(&node(1))?.leases()?;
    ensure!(leases.len() == 2, "{leases:?}");
    // As a runtime that has lost its memory.
    let _ = std::fs::remove_dir_all("/var/lib/cni/results");
    tool.call(arm, "gc", "meshd", &pod)?;
    arm.delete_pod(&others)?;
    nothing_is_left(arm, "GC")?;
    // What the bandwidth plugin has made, which knows no GC.
    tool.call(arm, "del", "meshd", &pod)?;
    gone(arm, pod)
}

/// DEL while no daemon runs: the interface goes at once, the rest with the daemon's next start.
fn without_the_daemon(arm: &mut NetnsArm, tool: &Tool) -> Result<()> {
    let pod = container(arm, "orphaned")?;
    let result = tool.add(arm, &pod)?;
    let host = cni::host_interfaces(&result);
    arm.cluster().node_mut(&node(1))?.kill_agent()?;
    let away = tool.call(arm, "status", "meshd", &pod).err();
    ensure!(away.is_some(), "STATUS succeeds with no daemon");
    for _ in 0..2 {
        tool.call(arm, "del", "meshd", &pod)?;
    }
    let links = on_node(arm, 1, "ip", &["-o", "link", "show"])?;
    ensure!(
        !host.iter().any(|name| links.contains(name.as_str())),
        "it is still there: {links}"
    );
    let notes = notes_folder(&arm.cluster().node(&node(1))?.paths().socket);
    ensure!(
        std::fs::read_dir(&notes)?.count() == 1,
        "there is no note in {}",
        notes.display()
    );
    ensure!(
        arm.cluster().node(&node(1))?.leases()?.len() == 1,
        "the lease went without a daemon"
    );

    arm.cluster().node_mut(&node(1))?.start_agent()?;
    arm.wait_ready(&node(1), PATIENCE)?;
    ensure!(
        std::fs::read_dir(&notes)?.count() == 0,
        "the daemon is ready before it has finished what was deleted"
    );
    nothing_is_left(arm, "the daemon's start")?;
    // And it can come again.
    tool.add(arm, &pod)?;
    tool.call(arm, "check", "meshd", &pod)?;
    tool.call(arm, "del", "meshd", &pod)?;
    nothing_is_left(arm, "the second DEL")?;
    gone(arm, pod)
}
