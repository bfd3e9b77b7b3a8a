//! `meshctl lab`.

mod enter;
mod kubeconfig;
mod place;
pub(crate) mod supervisor;

use crate::cli::{LabCommand, PodCommand, UpArgs};
use crate::table;
use anyhow::{Context, Result, bail};
use meshd_lab::Binaries;
use meshd_lab::keep::{LabStatus, Order, PodLine, Request, Response, ask};
use place::{Place, State};
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use supervisor::Job;

/// How long the supervisor may take to end, once everything inside is down.
const END: Duration = Duration::from_secs(15);

pub(crate) fn run(command: LabCommand) -> Result<ExitCode> {
    let place = Place::of_user()?;
    match command {
        LabCommand::Up(args) => up(&place, &args),
        LabCommand::Status { json } => status(&place, json),
        LabCommand::Exec { site, command } => exec(&place, &site, &command),
        LabCommand::Pod(PodCommand::Add { node, name, json }) => pod_add(&place, node, name, json),
        LabCommand::Pod(PodCommand::Del { name }) => {
            place.running()?;
            ask(place.folder(), &Request::PodDel { name: name.clone() })?;
            crate::print(format!("pod {name} is deleted\n").as_bytes())
        }
        LabCommand::Down => down(&place),
    }
}

fn up(place: &Place, args: &UpArgs) -> Result<ExitCode> {
    let kubeconfig = args.kubeconfig.as_deref().map(kubeconfig::read).transpose()?;
    let binaries = Binaries::find()?;
    place.claim()?;
    let job = Job {
        folder: place.folder().to_owned(),
        order: Order {
            nodes: args.nodes.into(),
            binaries,
            kubeconfig: kubeconfig.as_ref().map(|k| k.inside.clone()),
        },
        api_server: kubeconfig.map(|k| (k.host, k.port)),
    };
    if let Err(error) = supervisor::start(&job, &mut |what| eprintln!("{what}")) {
        return Err(error.context(format!(
            "the lab is not up; logs are in {}",
            place.folder().display()
        )));
    }
    let status = lab_status(place)?;
    let text = format!(
        "{}\nthe lab is up: `meshctl lab exec node-1 -- meshctl status`, `meshctl lab pod add node-1`, `meshctl lab \
         down`\n",
        text(&status, place)
    );
    crate::print(text.as_bytes())
}

fn lab_status(place: &Place) -> Result<LabStatus> {
    place.running()?;
    match ask(place.folder(), &Request::Status)? {
        Response::Status(status) => Ok(status),
        other => bail!("the lab answered {other:?} when asked for its status"),
    }
}

fn exec(place: &Place, site: &str, command: &[String]) -> Result<ExitCode> {
    let state = place.running()?;
    let status = lab_status(place)?;
    let of_node = status.nodes.iter().find(|n| n.name == site).map(|n| &n.netns);
    let of_pod = status.pods.iter().find(|p| p.name == site).map(|p| &p.netns);
    let netns = of_node
        .or(of_pod)
        .with_context(|| format!("the lab has no node and no pod {site}: `meshctl lab status` lists them"))?;
    enter::run(&state, site, netns, command)
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    status: &'a LabStatus,
    #[serde(flatten)]
    state: &'a State,
    logs: &'a std::path::Path,
}

fn status(place: &Place, json: bool) -> Result<ExitCode> {
    let state = place.running()?;
    let status = lab_status(place)?;
    if json {
        return crate::print_json(&Shown {
            status: &status,
            state: &state,
            logs: place.folder(),
        });
    }
    crate::print(text(&status, place).as_bytes())
}

fn text(status: &LabStatus, place: &Place) -> String {
    let mut nodes = table::new(&["node", "addresses", "ready", "peers", "problems"]);
    for node in &status.nodes {
        nodes.add_row([
            node.name.clone(),
            table::lines(&node.addresses),
            if node.ready { "yes" } else { "no" }.to_owned(),
            node.peers.to_string(),
            table::lines(&node.problems),
        ]);
    }
    let mut text = format!("{nodes}\n");
    if !status.pods.is_empty() {
        let mut pods = table::new(&["pod", "node", "addresses"]);
        for pod in &status.pods {
            pods.add_row([pod.name.clone(), pod.node.clone(), table::lines(&pod.addresses)]);
        }
        text += &format!("{pods}\n");
    }
    let kind = if status.own_api_server {
        "a relay to your own"
    } else {
        "embedded"
    };
    text += &format!("API server {} ({kind}), as the nodes see it\n", status.api_server);
    text + &format!("logs in {}\n", place.folder().display())
}

fn pod_add(place: &Place, node: String, name: Option<String>, json: bool) -> Result<ExitCode> {
    place.running()?;
    let PodLine {
        name,
        node,
        addresses,
        ..
    } = match ask(place.folder(), &Request::PodAdd { node, name })? {
        Response::Pod(pod) if json => return crate::print_json(&pod),
        Response::Pod(pod) => pod,
        other => bail!("the lab answered {other:?} when asked for a pod"),
    };
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    crate::print(format!("pod {name} on {node}: {}\n", addresses.join(", ")).as_bytes())
}

fn down(place: &Place) -> Result<ExitCode> {
    let state = place.running()?;
    let outcome = ask(place.folder(), &Request::Down);
    if outcome.is_err() {
        // It cannot be done in order, so the kernel does it.
        state.kill();
    }
    let deadline = Instant::now() + END;
    while state.is_alive() {
        if Instant::now() > deadline {
            bail!(
                "the lab's supervisor, process {}, has not ended",
                state.supervisor
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let outside = place.left_outside();
    let left = match outcome.context("the lab was killed, because it could not be taken down in order")? {
        Response::Down(inside) => [inside, outside].concat(),
        other => bail!("the lab answered {other:?} when taken down"),
    };
    if left.is_empty() {
        place.remove();
        return crate::print(b"the lab is down; nothing is left\n");
    }
    bail!("the lab is down, but left:\n  {}", left.join("\n  "))
}
