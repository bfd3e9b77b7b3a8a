//! Real Kubernetes clusters with meshd installed in them, each shared by the trials that want its kind: it comes up with
//! the first of these.

mod firewalls;
mod hosts;
mod lifecycle;
mod nics;
mod traffic;
mod uninstall;
mod workloads;

use crate::arms::{Trouble, trial};
use crate::scenarios::{OUTSIDE, judge, table_is_true};
use anyhow::{Context, Result};
use libtest_mimic::Trial;
use meshd_kubernetes_arm::{Family, Image, KubernetesArm, Lab, Shape, StartError, TAG};
use meshd_scenario::Scenario;
use std::sync::{Mutex, PoisonError};
use tempfile::TempDir;

/// Of its namespaces and its state; a run that was cut off is cleaned up by the next.
const NAME: &str = "meshd-arms";
/// What most trials run on.
const DUAL: Shape = Shape {
    nodes: 3,
    family: Family::Dual,
    second_nic: false,
};
/// IPv6 alone, and nodes with two interfaces whose endpoints are those of the second.
const IPV6: Shape = Shape {
    nodes: 3,
    family: Family::Ipv6,
    second_nic: true,
};
/// Names a cluster that is up, with meshd of this tree installed: for whoever changes these trials.
const ATTACH: &str = "MESHD_ARMS_CLUSTER";

static SHARED: Mutex<Shared> = Mutex::new(Shared::NotYet);

/// One at a time: two clusters would take the cores from each other.
enum Shared {
    NotYet,
    Up(Box<Cluster>),
    /// Why there is none of this kind: the machine cannot, or it failed.
    No(Shape, Result<String, String>),
}

impl Shared {
    fn shape(&self) -> Option<Shape> {
        match self {
            Shared::NotYet => None,
            Shared::Up(cluster) => Some(cluster.arm.lab().shape()),
            Shared::No(shape, _) => Some(*shape),
        }
    }

    /// Brings a cluster of this kind up, in the place of another.
    fn become_one_of(&mut self, shape: Shape) {
        if self.shape() == Some(shape) {
            return;
        }
        let down = match std::mem::replace(self, Shared::NotYet) {
            Shared::Up(cluster) => cluster.arm.shut_down(),
            Shared::NotYet | Shared::No(..) => Ok(()),
        };
        *self = match down {
            Ok(()) => start(shape),
            Err(left) => Shared::No(
                shape,
                Err(format!("the cluster before is not taken down: {left:#}")),
            ),
        };
    }
}

/// A cluster, and what was built for it.
pub(crate) struct Cluster {
    pub(crate) arm: KubernetesArm,
    pub(crate) image: Image,
    pub(crate) folder: TempDir,
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        on_cluster(DUAL, "first_light", first_light),
        on_cluster(DUAL, "workloads", workloads::run),
        on_cluster(DUAL, "outside", outside),
        on_cluster(DUAL, "network_unavailable", hosts::network_unavailable),
        on_cluster(DUAL, "macs_changed_by_another_hand", hosts::macs),
        on_cluster(DUAL, "scale", lifecycle::scale),
        on_cluster(DUAL, "restarts", lifecycle::restarts),
        on_cluster(DUAL, "device_pod_deleted", lifecycle::device_deleted),
        on_cluster(DUAL, "upgrade_and_rollback", lifecycle::upgrade),
        on_cluster(DUAL, "values_changed_live", lifecycle::values_changed),
        on_cluster(DUAL, "drain", lifecycle::drain),
        on_cluster(DUAL, "cut_off_from_the_api_server", lifecycle::cut_off),
        on_cluster(DUAL, "node_joins_again", lifecycle::join_again),
        on_cluster(DUAL, "strict_reverse_path_filter", hosts::rp_filter),
        on_cluster(DUAL, "other_firewalls", firewalls::reloaded),
        on_cluster(DUAL, "all_nodes_reboot", lifecycle::reboot),
        on_cluster(DUAL, "uninstall_and_install_again", uninstall::run),
        on_cluster(IPV6, "ipv6_alone::first_light", first_light),
        on_cluster(IPV6, "ipv6_alone::workloads", workloads::run),
        on_cluster(IPV6, "ipv6_alone::outside", outside),
        on_cluster(IPV6, "second_nic", nics::second),
    ]
}

/// What this machine lacks for a trial.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unable(String);

/// A trial on a shared cluster. Where it fails, the cluster's logs are kept.
fn on_cluster(shape: Shape, name: &'static str, body: fn(&mut Cluster) -> Result<()>) -> Trial {
    trial("kubernetes", name, move || {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.become_one_of(shape);
        match &mut *shared {
            Shared::Up(cluster) => body(cluster).map_err(|error| match error.downcast::<Unable>() {
                Ok(Unable(why)) => Trouble::Unable(why),
                Err(error) => {
                    let trouble = keep_logs(cluster, name, &error);
                    cluster.arm.clear();
                    trouble
                }
            }),
            Shared::No(_, Ok(unable)) => Err(Trouble::Unable(unable.clone())),
            Shared::No(_, Err(failed)) => Err(Trouble::Failed(failed.clone())),
            Shared::NotYet => unreachable!("it was just started"),
        }
    })
}

fn start(shape: Shape) -> Shared {
    let no = |error: anyhow::Error| Shared::No(shape, Err(format!("{error:#}")));
    if let Ok(name) = std::env::var(ATTACH) {
        return match attach(&name, shape) {
            Ok(Some(cluster)) => Shared::Up(Box::new(cluster)),
            Ok(None) => Shared::No(shape, Ok(format!("the cluster {name} is no {shape:?}"))),
            Err(error) => no(error),
        };
    }
    let lab = match Lab::up(NAME, shape) {
        Ok(lab) => lab,
        Err(StartError::Unable(why)) => return Shared::No(shape, Ok(why)),
        Err(StartError::Failed(error)) => return no(error),
    };
    let installed = || {
        let folder = TempDir::with_prefix("meshd-images-").context("make a folder")?;
        let image = Image::build(TAG, folder.path())?;
        lab.install(&image)?;
        Ok((folder, image))
    };
    let failed = |lab: &Lab, error: anyhow::Error| {
        let kept = logs(lab).unwrap_or_else(|error| format!("(no logs: {error:#})"));
        Shared::No(shape, Err(format!("meshd is not installed: {error:#}\n{kept}")))
    };
    let (folder, image) = match installed() {
        Ok(installed) => installed,
        Err(error) => return failed(&lab, error),
    };
    match KubernetesArm::new(lab) {
        Ok(arm) => Shared::Up(Box::new(Cluster { arm, image, folder })),
        Err(error) => no(error),
    }
}

/// None where the cluster is of another kind.
fn attach(name: &str, shape: Shape) -> Result<Option<Cluster>> {
    let lab = Lab::attach(name)?;
    if lab.shape() != shape {
        return Ok(None);
    }
    let folder = TempDir::with_prefix("meshd-images-").context("make a folder")?;
    let image = Image::build(TAG, folder.path())?;
    lab.install(&image)?;
    let arm = KubernetesArm::new(lab)?;
    Ok(Some(Cluster { arm, image, folder }))
}

/// Takes the cluster down, if there is one; an error says what is left.
pub(crate) fn shut_down() -> Result<()> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *shared, Shared::NotYet) {
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

fn first_light(cluster: &mut Cluster) -> Result<()> {
    scenario(cluster, Scenario::FIRST_LIGHT)
}

fn outside(cluster: &mut Cluster) -> Result<()> {
    scenario(cluster, OUTSIDE)
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
