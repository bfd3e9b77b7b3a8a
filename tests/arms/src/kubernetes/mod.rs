//! A real Kubernetes cluster with meshd installed in it, shared by all of these trials: it comes up with the first.

mod hosts;
mod lifecycle;
mod traffic;
mod uninstall;
mod workloads;

use crate::arms::{Trouble, trial};
use crate::first_light::{judge, table_is_true};
use anyhow::{Context, Result};
use libtest_mimic::Trial;
use meshd_kubernetes_arm::{Family, Image, KubernetesArm, Lab, StartError, TAG};
use meshd_scenario::Scenario;
use std::sync::{Mutex, PoisonError};
use tempfile::TempDir;

/// Of its namespaces and its state; a run that was cut off is cleaned up by the next.
const NAME: &str = "meshd-arms";
const NODES: usize = 3;
/// Names a cluster that is up, with meshd of this tree installed: for whoever changes these trials.
const ATTACH: &str = "MESHD_ARMS_CLUSTER";

static SHARED: Mutex<Shared> = Mutex::new(Shared::NotYet);

enum Shared {
    NotYet,
    Up(Box<Cluster>),
    /// Why there is none: the machine cannot, or it failed.
    No(Result<String, String>),
}

/// The cluster, and what was built for it.
pub(crate) struct Cluster {
    pub(crate) arm: KubernetesArm,
    pub(crate) image: Image,
    pub(crate) folder: TempDir,
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        on_cluster("first_light", |cluster| scenario(cluster, Scenario::FIRST_LIGHT)),
        on_cluster("workloads", workloads::run),
        on_cluster("outside", hosts::outside),
        on_cluster("scale", lifecycle::scale),
        on_cluster("restarts", lifecycle::restarts),
        on_cluster("upgrade_and_rollback", lifecycle::upgrade),
        on_cluster("drain", lifecycle::drain),
        on_cluster("cut_off_from_the_api_server", lifecycle::cut_off),
        on_cluster("node_joins_again", lifecycle::join_again),
        on_cluster("strict_reverse_path_filter", hosts::rp_filter),
        on_cluster("other_firewalls", hosts::other_firewalls),
        on_cluster("all_nodes_reboot", lifecycle::reboot),
        on_cluster("uninstall_and_install_again", uninstall::run),
    ]
}

/// A trial on the shared cluster. Where it fails, the cluster's logs are kept.
fn on_cluster(name: &'static str, body: fn(&mut Cluster) -> Result<()>) -> Trial {
    trial("kubernetes", name, move || {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Shared::NotYet = *shared {
            *shared = start();
        }
        match &mut *shared {
            Shared::Up(cluster) => body(cluster).map_err(|error| {
                let trouble = keep_logs(cluster, name, &error);
                cluster.arm.clear();
                trouble
            }),
            Shared::No(Ok(unable)) => Err(Trouble::Unable(unable.clone())),
            Shared::No(Err(failed)) => Err(Trouble::Failed(failed.clone())),
            Shared::NotYet => unreachable!("it was just started"),
        }
    })
}

fn start() -> Shared {
    if let Ok(name) = std::env::var(ATTACH) {
        return match attach(&name) {
            Ok(cluster) => Shared::Up(Box::new(cluster)),
            Err(error) => Shared::No(Err(format!("{error:#}"))),
        };
    }
    let lab = match Lab::up(NAME, NODES, Family::Dual) {
        Ok(lab) => lab,
        Err(StartError::Unable(why)) => return Shared::No(Ok(why)),
        Err(StartError::Failed(error)) => return Shared::No(Err(format!("{error:#}"))),
    };
    let installed = || {
        let folder = TempDir::with_prefix("meshd-images-").context("make a folder")?;
        let image = Image::build(TAG, folder.path())?;
        lab.install(&image)?;
        Ok((folder, image))
    };
    let failed = |lab: &Lab, error: anyhow::Error| {
        let kept = logs(lab).unwrap_or_else(|error| format!("(no logs: {error:#})"));
        Shared::No(Err(format!("meshd is not installed: {error:#}\n{kept}")))
    };
    let (folder, image) = match installed() {
        Ok(installed) => installed,
        Err(error) => return failed(&lab, error),
    };
    match KubernetesArm::new(lab) {
        Ok(arm) => Shared::Up(Box::new(Cluster { arm, image, folder })),
        Err(error) => Shared::No(Err(format!("{error:#}"))),
    }
}

fn attach(name: &str) -> Result<Cluster> {
    let folder = TempDir::with_prefix("meshd-images-").context("make a folder")?;
    let image = Image::build(TAG, folder.path())?;
    let arm = KubernetesArm::new(Lab::attach(name)?)?;
    Ok(Cluster { arm, image, folder })
}

/// Takes the cluster down, if there is one; an error says what is left.
pub(crate) fn shut_down() -> Result<()> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *shared, Shared::No(Ok("it was taken down".to_owned()))) {
        Shared::Up(cluster) => cluster.arm.shut_down(),
        _ => Ok(()),
    }
}

fn keep_logs(cluster: &Cluster, name: &str, error: &anyhow::Error) -> Trouble {
    let kept = logs(cluster.arm.lab()).unwrap_or_else(|error| format!("(no logs: {error:#})"));
    Trouble::Failed(format!("{name}: {error:#}\n{kept}"))
}

fn logs(lab: &Lab) -> Result<String> {
    let folder = TempDir::with_prefix("meshd-kubernetes-")
        .context("make a folder")?
        .keep();
    lab.keep_logs(&folder)?;
    Ok(format!("logs are kept in {}", folder.display()))
}

/// Runs a scenario's text.
fn scenario(cluster: &mut Cluster, text: &str) -> Result<()> {
    let scenario = Scenario::parse(text)?;
    let report = meshd_scenario::run(&scenario, &mut cluster.arm, &mut |_| {});
    for verdict in [judge(&report), table_is_true(&report)] {
        if let Err(Trouble::Failed(why) | Trouble::Unable(why)) = verdict {
            anyhow::bail!("{why}");
        }
    }
    Ok(())
}
