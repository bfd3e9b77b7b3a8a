//! The image, and its installation with Helm.

use crate::command;
use crate::lab::{Family, Lab, Shape, repository};
use crate::wire;
use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use meshd_lab::plan::Plan;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tag of the image that a cluster starts with.
pub const TAG: &str = "arm";
/// How long the image may take to be built.
const BUILD: Duration = Duration::from_secs(1800);
/// How long an installation may take.
const ROLLOUT: &str = "--timeout=180s";
const NAMESPACE: &str = "kube-system";

/// An image archive.
#[derive(Clone, Debug)]
pub struct Image {
    /// The archive.
    pub path: PathBuf,
    /// The tag under which a node knows it.
    pub tag: String,
}

impl Image {
    /// Builds the debug image into a folder.
    pub fn build(tag: &str, folder: &Path) -> Result<Self> {
        let script = repository().join("hack/image");
        let said = command::run(&script, &["--profile", "dev", "--tag", tag], "", BUILD)?;
        let built = said.split_whitespace().next();
        let built = built.with_context(|| format!("hack/image does not say where the image is: {said}"))?;
        // The next image is written over it.
        let path = folder.join(format!("meshd-{tag}.tar"));
        fs::copy(built, &path).with_context(|| format!("copy {built} to {}", path.display()))?;
        Ok(Self {
            path,
            tag: tag.to_owned(),
        })
    }
}

impl Lab {
    /// Puts the image on every node.
    pub fn load(&self, image: &Image) -> Result<()> {
        let path = image.path.to_str().context("the image's path is not UTF-8")?;
        self.verb(&["load", path]).map(drop)
    }

    /// Installs meshd, or changes what is installed to this image, and waits until every node is Ready.
    pub fn install(&self, image: &Image) -> Result<()> {
        self.load(image)?;
        self.upgrade(image, &[])?;
        let count = format!("--for=jsonpath={{.status.numberReady}}={}", self.nodes().len());
        self.kubectl(&["wait", "-n", NAMESPACE, "daemonset/meshd", &count, ROLLOUT])?;
        self.kubectl(&["wait", "node", "--all", "--for=condition=Ready", ROLLOUT])
            .map(drop)
    }

    /// Tells Helm of this image and of other values (`KEY=VALUE`; all that were given before are forgotten), and waits
    /// until the agents run so. The device's pods stay as they are.
    pub fn upgrade(&self, image: &Image, set: &[&str]) -> Result<()> {
        let values = self.file("values.json", &values(self.shape(), &image.tag).to_string())?;
        let chart = repository().join("deploy/chart");
        let (values, chart) = (values.to_string_lossy(), chart.to_string_lossy());
        let mut arguments = vec!["helm", "upgrade", "--install", "meshd", &chart];
        arguments.extend(["--namespace", NAMESPACE, "--values", &values]);
        arguments.extend(set.iter().flat_map(|value| ["--set", *value]));
        self.verb(&arguments)?;
        self.kubectl(&["rollout", "status", "-n", NAMESPACE, "daemonset/meshd", ROLLOUT])?;
        let running = self.running_tags()?;
        if running.iter().any(|tag| *tag != image.tag) {
            bail!(
                "after the roll-out of {} the agents run {}",
                image.tag,
                running.join(", ")
            );
        }
        Ok(())
    }

    /// Which tags the agents' pods run, one each.
    pub fn running_tags(&self) -> Result<Vec<String>> {
        let pods = self.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=meshd"])?;
        let items = pods["items"].as_array().into_iter().flatten();
        let tag = |pod: &Value| {
            let image = pod["spec"]["containers"][0]["image"].as_str()?;
            Some(image.rsplit_once(':')?.1.to_owned())
        };
        items
            .map(|p| tag(p).context("an agent's pod has no image"))
            .collect()
    }
}

fn values(shape: Shape, tag: &str) -> Value {
    let (services, host) = match shape.family {
        Family::Dual => (vec!["10.96.0.0/16", "fd00:96::/112"], "10.200.0.1"),
        Family::Ipv6 => (vec!["fd00:96::/112"], "fd00:200::1"),
    };
    let excepted = Plan::excepted().into_iter().filter(|a| shape.family.has(*a));
    let excepted: Vec<_> = excepted.map(IpNetwork::from).collect();
    let endpoints = if shape.second_nic {
        "interface:eth1"
    } else {
        "internal-ip"
    };
    json!({
        "image": {"tag": tag, "pullPolicy": "Never"},
        "config": {
            "cluster_pod_cidrs": wire::pod_cidrs(shape.family),
            "service_cidrs": services,
            "outside": {"except": excepted},
            "wireguard": {"endpoints": endpoints},
        },
        "apiServer": {"host": host, "port": 6443},
    })
}
