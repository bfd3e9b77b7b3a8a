//! The lab itself, without meshd: it leaves nothing, however it ends.

use crate::arms::{Trouble, trial};
use crate::sandboxed::{nothing_is_left, run, with_folder};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use meshd_lab::netns::Netns;
use meshd_lab::plan::Plan;
use meshd_lab::sandbox::{Entry, Inside, Sandbox};
use meshd_lab::underlay::Underlay;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// First argument of the own binary when it plays a parent that is killed.
const HELPER: &str = "__start-a-sandbox";
/// First argument of the own binary when it joins a sandbox from outside.
const STRANGER: &str = "__join-a-sandbox";

pub(crate) const ENTRIES: [Entry; 5] = [
    Entry {
        name: "busy",
        run: busy,
    },
    Entry {
        name: "panicking",
        run: panicking,
    },
    Entry {
        name: "lasting",
        run: lasting,
    },
    Entry {
        name: "passing",
        run: passing,
    },
    Entry {
        name: "reusing",
        run: reusing,
    },
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("netns", "a_sandbox_leaves_nothing", || run("busy", &(), drop)),
        trial(
            "netns",
            "a_sandbox_that_panics_leaves_nothing",
            panic_leaves_nothing,
        ),
        trial(
            "netns",
            "a_sandbox_that_is_stopped_leaves_nothing",
            stop_leaves_nothing,
        ),
        trial("netns", "a_sandbox_dies_with_its_parent", parent_is_killed),
        trial("netns", "a_process_left_in_a_sandbox_is_named", left_is_named),
        trial(
            "netns",
            "a_sandbox_beside_is_not_taken_for_what_is_left",
            beside_is_not_left,
        ),
    ]
}

/// Namespaces, links, processes and threads, all of them left as they are.
fn make_things() -> Result<(Vec<Netns>, Child)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let machines = runtime.block_on(async {
        let underlay = Underlay::create().await?;
        let mut machines = Vec::new();
        for number in 1..=2 {
            let netns = Netns::create(&Plan::node_name(number).0)?;
            let (v4, v6) = Plan::node(number);
            underlay.plug(&netns, v4, &[v4.into(), v6.into()]).await?;
            machines.push(netns);
        }
        anyhow::Ok(machines)
    })?;
    let child = machines[0].run(|| Command::new("/proc/self/exe").arg("__sleep").spawn())?;
    Ok((machines, child.context("start a process inside")?))
}

fn busy(inside: Inside) -> Result<()> {
    let (machines, child) = make_things()?;
    machines.iter().for_each(|_| inside.reporter.namespace());
    std::mem::forget((machines, child));
    Ok(())
}

fn panicking(inside: Inside) -> Result<()> {
    busy(inside)?;
    panic!("on purpose");
}

fn lasting(inside: Inside) -> Result<()> {
    let reporter = inside.reporter;
    busy(inside)?;
    reporter.send(&"ready");
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

/// Its namespaces are gone before it is; tells which they were.
fn passing(inside: Inside) -> Result<()> {
    // Many: others on this machine may be faster to take their numbers.
    let machines = (0..32).map(|_| Netns::unmounted("passing"));
    let machines = machines.collect::<Result<Vec<_>>>()?;
    let former = machines.iter().map(|m| number(m.path()));
    let former = former.collect::<Result<Vec<_>>>()?;
    drop(machines);
    inside.reporter.send(&former);
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

/// Lives in a namespace that has the number of one that is gone, and tells whether there is such a one.
fn reusing(inside: Inside) -> Result<()> {
    let former: Vec<u64> = serde_json::from_value(inside.input)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let spaces = ["mnt", "pid", "net", "ipc"].map(|space| number(format!("/proc/self/ns/{space}").as_ref()));
    let mut numbers = spaces.into_iter().collect::<Result<Vec<_>>>()?;
    while numbers.iter().all(|n| !former.contains(n)) {
        // Another than those before may have become free meanwhile.
        let netns = Netns::unmounted("again")?;
        netns.run(|| Command::new("/proc/self/exe").arg("__sleep").spawn())??;
        numbers.push(number(netns.path())?);
        if Instant::now() > deadline {
            inside.reporter.send(&false);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    inside.reporter.send(&true);
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

/// What the kernel tells a namespace by, while it is there.
fn number(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path);
    let metadata = metadata.with_context(|| format!("look at {}", path.display()))?;
    Ok(metadata.ino())
}

fn panic_leaves_nothing() -> Result<(), Trouble> {
    with_folder(|folder| {
        let mut sandbox = Sandbox::start("panicking", &(), folder)?;
        while sandbox.message().is_some() {}
        let ended = sandbox.finish();
        if ended.failure.is_none() {
            return Err(Trouble::Failed("the panic was not reported".into()));
        }
        nothing_is_left(&ended)
    })
}

fn stop_leaves_nothing() -> Result<(), Trouble> {
    with_folder(|folder| {
        let mut sandbox = Sandbox::start("lasting", &(), folder)?;
        let _ready = sandbox.message();
        nothing_is_left(&sandbox.stop())
    })
}

/// The search finds what there is to be found.
fn left_is_named() -> Result<(), Trouble> {
    with_folder(|folder| {
        let mut sandbox = Sandbox::start("lasting", &(), folder)?;
        let _ready = sandbox.message();
        let init = sandbox
            .init_pid()
            .context("the sandbox does not say who its init is")?;
        let mut stranger = Command::new("/proc/self/exe")
            .args([STRANGER, &init.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .context("start a process that joins the sandbox")?;
        let mut line = String::new();
        let said = stranger.stdout.take().context("no stdout")?;
        BufReader::new(said).read_line(&mut line).context("hear of it")?;
        let ended = sandbox.stop();
        stranger.kill().context("end it")?;
        stranger.wait().context("wait for it")?;
        let wanted = format!("process {} in the sandbox's net namespace", stranger.id());
        if ended.remains.contains(&wanted) {
            return Ok(());
        }
        Err(Trouble::Failed(format!(
            "{wanted} ({}) was not found: {:?}",
            line.trim_end(),
            ended.remains
        )))
    })
}

/// The kernel gives a namespace the number of one that is gone: here one of a sandbox that goes on.
fn beside_is_not_left() -> Result<(), Trouble> {
    with_folder(|folder| {
        let mut first = Sandbox::start("passing", &(), folder)?;
        let former = first.message().context("the first has passed nothing on")?;
        with_folder(|beside| {
            let mut second = Sandbox::start("reusing", &former, beside)?;
            match second.message() {
                Some(serde_json::Value::Bool(true)) => {}
                Some(serde_json::Value::Bool(false)) => {
                    println!("this kernel gives no number again so soon: the trial proves nothing");
                }
                other => {
                    let ended = second.finish().failure;
                    return Err(Trouble::Failed(format!(
                        "the second said {other:?}, and {ended:?}"
                    )));
                }
            }
            nothing_is_left(&first.stop())?;
            nothing_is_left(&second.stop())
        })
    })
}

/// Joins a sandbox's network namespace, and stays; its user namespace first, which gives the right to.
fn join(init: &str) -> Result<()> {
    let space = |name: &str| -> Result<(File, u64)> {
        let file = File::open(format!("/proc/{init}/ns/{name}"))?;
        let inode = file.metadata()?.ino();
        Ok((file, inode))
    };
    let (user, inode) = space("user")?;
    let (net, _) = space("net")?;
    if std::fs::metadata("/proc/self/ns/user")?.ino() != inode {
        setns(user, CloneFlags::CLONE_NEWUSER).context("join the user namespace")?;
    }
    setns(net, CloneFlags::CLONE_NEWNET).context("join the network namespace")?;
    println!("joined");
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

/// What the own binary does when it was started as a helper.
pub(crate) fn helper() -> Option<ExitCode> {
    match std::env::args().nth(1)?.as_str() {
        HELPER => {
            let folder = std::env::args().nth(2)?;
            let mut sandbox = Sandbox::start("lasting", &(), folder.as_ref()).ok()?;
            sandbox.message();
            println!("{}", sandbox.init_pid()?);
            std::thread::sleep(Duration::from_secs(600));
            Some(ExitCode::FAILURE)
        }
        STRANGER => {
            if let Err(error) = join(&std::env::args().nth(2)?) {
                println!("{error:#}");
            }
            Some(ExitCode::FAILURE)
        }
        "__sleep" => {
            std::thread::sleep(Duration::from_secs(600));
            Some(ExitCode::FAILURE)
        }
        _ => None,
    }
}

/// kill -9 of whoever started a sandbox: its init, and so everything inside, ends by itself.
fn parent_is_killed() -> Result<(), Trouble> {
    // Says whether sandboxes are possible here at all.
    run("busy", &(), drop)?;
    with_folder(|folder| Ok(parent_is_killed_in(folder)?))
}

fn parent_is_killed_in(folder: &Path) -> Result<()> {
    let mut parent = Command::new("/proc/self/exe")
        .arg(HELPER)
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()
        .context("start a parent")?;
    let mut line = String::new();
    BufReader::new(parent.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let init: u32 = line
        .trim()
        .parse()
        .with_context(|| format!("the parent said {line:?}"))?;
    let inside = members(init)?;
    ensure!(
        inside.len() >= 3,
        "init, worker and a process are expected, not {inside:?}"
    );
    kill(Pid::from_raw(i32::try_from(parent.id())?), Signal::SIGKILL)?;
    parent.wait()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left: Vec<_> = inside.iter().filter(|pid| is_alive(**pid)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "after kill -9 of their parent there are still {left:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The processes in the pid namespace of a process.
fn members(of: u32) -> Result<Vec<u32>> {
    let space = std::fs::read_link(format!("/proc/{of}/ns/pid")).context("init's pid namespace")?;
    let pids = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    Ok(pids
        .filter(|pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|s| s == space))
        .collect())
}

/// A zombie that nobody has waited for yet is dead all the same.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .and_then(|s| s.chars().next())
        .is_some_and(|state| state != 'Z' && state != 'X')
}
