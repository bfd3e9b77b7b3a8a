//! `meshctl`, as a person or a program runs it.

use crate::arms::{Trouble, trial};
use crate::programs;
use crate::sandboxed::with_folder;
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use meshd_apiserver::{ApiServer, Config, Request, Time};
use meshd_apiserver_http::{Running, Shared, serve};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("sim", "meshctl_sim_says_the_same_twice", || Ok(sim_twice()?)),
        trial("netns", "meshctl_demo_proves_it_in_json", || in_folder(demo)),
        trial("netns", "meshctl_demo_cleans_up_after_ctrl_c", || {
            in_folder(interrupted)
        }),
        trial("netns", "meshctl_lab_goes_up_and_down", || in_folder(lab)),
        trial("netns", "meshctl_lab_up_that_is_killed_leaves_no_lab", || {
            in_folder(lab_abandoned)
        }),
        trial("netns", "meshctl_lab_uses_an_api_server_of_ones_own", || {
            in_folder(own_api_server)
        }),
    ]
}

/// Where the machine refuses sandboxes, the trial is skipped before meshctl says so in its own way.
fn in_folder(body: fn(&Path) -> Result<()>) -> Result<(), Trouble> {
    crate::sandboxed::run("busy", &(), drop)?;
    with_folder(|folder| Ok(body(folder)?))
}

fn meshctl(folder: &Path, arguments: &[&str]) -> Result<Command> {
    let path = programs::meshctl()?;
    let mut command = Command::new(&path);
    command
        .args(arguments)
        .env("XDG_RUNTIME_DIR", folder)
        .env("TMPDIR", folder);
    command.env("MESHD_BIN_DIR", path.parent().unwrap_or(Path::new("/")));
    Ok(command)
}

fn run(folder: &Path, arguments: &[&str]) -> Result<Output> {
    meshctl(folder, arguments)?
        .output()
        .with_context(|| format!("run meshctl {arguments:?}"))
}

/// What it prints, if it succeeds.
fn said(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = run(folder, arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "meshctl {arguments:?}: {}: {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

fn sim_twice() -> Result<()> {
    let folder = Path::new("/");
    let of = |seed: &str| {
        said(
            folder,
            &[
                "sim",
                "--nodes",
                "4",
                "--seed",
                seed,
                "--duration",
                "30s",
                "--json",
            ],
        )
    };
    let first = of("7")?;
    ensure!(first == of("7")?, "the same seed gave another report");
    let first: Value = serde_json::from_str(&first).context("meshctl sim --json")?;
    let other: Value = serde_json::from_str(&of("8")?)?;
    ensure!(
        first["trace"] != other["trace"],
        "another seed gave the same trace"
    );
    for count in ["packets", "handshakes", "watch_events", "invariant_checks"] {
        ensure!(
            first[count].as_u64().is_some_and(|n| n > 0),
            "{count}: {}",
            first[count]
        );
    }
    Ok(())
}

fn demo(folder: &Path) -> Result<()> {
    let report: Value =
        serde_json::from_str(&said(folder, &["demo", "--json"])?).context("meshctl demo --json")?;
    ensure!(report["held"] == true && report["arm"] == "netns", "{report}");
    let proofs = report["report"]["proofs"].as_array().context("proofs")?;
    ensure!(
        proofs.len() >= 14 && proofs.iter().all(|p| p["held"] == true),
        "{report}"
    );
    is_empty(folder)
}

fn is_empty(folder: &Path) -> Result<()> {
    let left: Vec<_> = std::fs::read_dir(folder)?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    ensure!(left.is_empty(), "left in {}: {left:?}", folder.display());
    Ok(())
}

fn interrupted(folder: &Path) -> Result<()> {
    let mut child = meshctl(folder, &["demo"])?
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    let pods = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("adding pod")));
    pods.context("the demo adds no pods")??;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait()?;
    ensure!(status.code() == Some(130), "{status}: {rest:?}");
    ensure!(
        rest.iter().any(|l| l.contains("everything was taken down")),
        "{rest:?}"
    );
    is_empty(folder)
}

fn lab(folder: &Path) -> Result<()> {
    ensure!(
        !run(folder, &["lab", "status"])?.status.success(),
        "a lab that is not up has a status"
    );
    said(folder, &["lab", "up", "--nodes", "2"])?;
    let outcome = lab_in_use(folder);
    let down = said(folder, &["lab", "down"]);
    outcome?;
    ensure!(down?.contains("nothing is left"), "down says something else");
    ensure!(!folder.join("meshd-lab").exists(), "the lab's folder is left");
    Ok(())
}

/// `lab up` is killed while the lab comes up: it goes down, and the next one comes up.
fn lab_abandoned(folder: &Path) -> Result<()> {
    let mut child = meshctl(folder, &["lab", "up", "--nodes", "8"])?
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    lines
        .find(|l| l.as_ref().is_ok_and(|l| l.contains("starting node-2")))
        .context("the lab starts no node-2")??;
    child.kill()?;
    child.wait()?;
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let status = run(folder, &["lab", "status"])?;
        let said = String::from_utf8_lossy(&status.stderr).into_owned();
        if said.contains("no lab is up") {
            break;
        }
        ensure!(
            !status.status.success() && Instant::now() < deadline,
            "a lab that nobody waits for: {said}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    said(folder, &["lab", "up", "--nodes", "1"])?;
    said(folder, &["lab", "down"]).map(drop)
}

fn lab_in_use(folder: &Path) -> Result<()> {
    ensure!(
        !run(folder, &["lab", "up"])?.status.success(),
        "a second lab went up"
    );
    said(folder, &["lab", "pod", "add", "node-1", "web"])?;
    for wrong in [
        &["node-9"][..],
        &["node-1", "web"],
        &["node-1", "node-2"],
        &["node-1", "A/b"],
    ] {
        let tried = run(folder, &[&["lab", "pod", "add"], wrong].concat())?;
        let said = String::from_utf8_lossy(&tried.stderr);
        ensure!(
            !tried.status.success() && said.lines().count() == 1 && !said.contains("Some("),
            "{wrong:?}: {said}"
        );
    }
    // What was refused has left nothing that stands in the way of this one's name.
    let pod: Value = serde_json::from_str(&said(folder, &["lab", "pod", "add", "node-2", "--json"])?)?;
    ensure!(pod["addresses"].as_array().is_some_and(|a| a.len() == 2), "{pod}");
    let status: Value = serde_json::from_str(&said(
        folder,
        &["lab", "exec", "node-1", "--", "meshctl", "status", "--json"],
    )?)?;
    ensure!(status["ready"] == true && status["node"] == "node-1", "{status}");
    let failed = run(folder, &["lab", "exec", "web", "--", "sh", "-c", "exit 7"])?;
    ensure!(
        failed.status.code() == Some(7),
        "the program's exit status became {}",
        failed.status
    );
    ensure!(
        run(folder, &["lab", "exec", "web", "--", "/no/such/program"])?
            .status
            .code()
            == Some(127),
        "a program that is not there has another exit status than a shell gives"
    );
    ensure!(
        !run(folder, &["lab", "exec", "nobody", "--", "true"])?
            .status
            .success(),
        "nobody ran a program"
    );
    said(folder, &["lab", "pod", "del", "web"])?;
    let status: Value = serde_json::from_str(&said(folder, &["lab", "status", "--json"])?)?;
    ensure!(
        status["pods"].as_array().is_some_and(|p| p.len() == 1),
        "{status}"
    );
    Ok(())
}

/// An API server outside the lab, which its nodes reach through the relay.
fn own_api_server(folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (shared, running) = outside(&runtime)?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "mine",
        "clusters": [{"name": "mine", "cluster": {"server": running.url()}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "mine", "context": {"cluster": "mine", "user": "me"}}],
    });
    let path = folder.join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string())?;
    let path = path.to_str().context("a path")?;
    said(folder, &["lab", "up", "--nodes", "2", "--kubeconfig", path])?;
    let outcome = said(folder, &["lab", "pod", "add", "node-1", "web"]).and_then(|_| {
        let node = shared
            .request(Request::get("/api/v1/nodes/node-2"))
            .body
            .to_value();
        ensure!(
            node["metadata"]["annotations"]["meshd.dev/public-key"].is_string(),
            "{node}"
        );
        let pod = shared
            .request(Request::get("/api/v1/namespaces/default/pods/web"))
            .body
            .to_value();
        ensure!(pod["spec"]["nodeName"] == "node-1", "{pod}");
        Ok(())
    });
    let down = said(folder, &["lab", "down"]);
    outcome?;
    down?;
    for path in ["/api/v1/nodes", "/api/v1/pods"] {
        let left = shared.request(Request::get(path)).body;
        ensure!(left.items().is_empty(), "left at {path}: {}", left.to_value());
    }
    drop(running);
    Ok(())
}

fn outside(runtime: &Runtime) -> Result<(Shared, Running)> {
    let _entered = runtime.enter();
    let shared = Shared::new(ApiServer::new(Config::default(), Time(0)));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let running = serve(listener, shared.clone())?;
    Ok((shared, running))
}
