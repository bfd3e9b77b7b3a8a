//! One of those who add and delete, as a runtime does: what fails is deleted, and tried again.

use super::{Soak, gc};
use crate::ping;
use crate::plugin::{Call, Outcome, Plugin, addresses};
use crate::random::Random;
use crate::sandbox::Sandbox;
use anyhow::{Context, Result, bail};
use meshd_model::cni::code;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a runtime tries.
const PATIENCE: Duration = Duration::from_secs(90);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// A plugin is killed so long after its start at most.
const PLUGIN_LIFE: Duration = Duration::from_millis(8);

/// A pod that ADD has succeeded for.
struct Pod {
    container: String,
    sandbox: Sandbox,
    name: Option<String>,
    result: Value,
    addresses: Vec<IpAddr>,
}

pub(super) struct Worker<'a> {
    soak: &'a Soak<'a>,
    random: Random,
    number: u64,
    containers: u64,
    pods: Vec<Pod>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(soak: &'a Soak<'a>, random: Random, number: u64) -> Self {
        Self {
            soak,
            random,
            number,
            containers: 0,
            pods: Vec::new(),
        }
    }

    /// Until all pods have come and gone.
    pub(super) fn run(mut self) -> Result<()> {
        let most = self.soak.options.pods;
        while !self.soak.is_over() && self.soak.next.fetch_add(1, Ordering::SeqCst) < self.soak.options.count
        {
            while self.pods.len() >= most || (!self.pods.is_empty() && self.random.permille(400)) {
                self.delete_one()?;
            }
            self.add_one()?;
            self.look_at_one()?;
            if self.random.permille(self.soak.options.gc) {
                gc::collect(self.soak)?;
            }
        }
        while !self.pods.is_empty() {
            self.delete_one()?;
        }
        Ok(())
    }

    /// 64 digits, as runtimes have them.
    fn container(&mut self) -> String {
        self.containers += 1;
        format!(
            "{:024x}{:08x}{:032x}",
            self.random.next(),
            self.number,
            self.containers
        )
    }

    fn call(&mut self, call: Call<'_>) -> Result<Outcome> {
        let plugin = Plugin {
            command: vec![self.soak.place.plugin().into()],
            socket: &self.soak.place.socket(),
        };
        // While GC is asked for, nobody else asks: what it is told to let be is all that there is.
        let _turn = self.soak.turns.read().unwrap_or_else(PoisonError::into_inner);
        let kill_after = self
            .random
            .permille(self.soak.options.kill_plugin)
            .then(|| self.random.within(PLUGIN_LIFE));
        let (outcome, took) = plugin.call(Call { kill_after, ..call })?;
        match &outcome {
            Outcome::Done(_) => self.soak.report.done(call.verb, took),
            Outcome::Error(code, said) => self.soak.report.error(call.verb, *code, said),
            Outcome::Killed => self.soak.report.count("plugins killed"),
        }
        Ok(outcome)
    }

    fn add_one(&mut self) -> Result<()> {
        let number = self.containers;
        let named = self.random.permille(250);
        let name = named.then(|| format!("pod-{}-{number}", self.number));
        let object = match &name {
            Some(name) => Some((name.as_str(), self.soak.place.create_pod(name)?)),
            None => None,
        };
        let pod = object.as_ref().map(|(name, uid)| (*name, uid.as_str()));
        let end = Instant::now() + PATIENCE;
        let mut container = self.container();
        while Instant::now() < end && !self.soak.is_over() {
            let path = self.soak.place.path("netns").join(&container);
            let mut sandbox = Sandbox::create(path)?;
            let vanishes = self.random.permille(self.soak.options.vanish / 4);
            if vanishes {
                sandbox.remove()?;
                self.soak.report.count("namespaces gone before ADD");
            }
            self.soak.valid().insert(container.clone());
            if let Some(result) = self.try_add(&container, &sandbox, pod)? {
                let addresses = addresses(&result);
                if addresses.len() != 2 {
                    self.soak.violated(format!("{container} has {addresses:?}"));
                }
                if let Err(twice) = self.soak.live.add(&container, &addresses) {
                    self.soak.violated(twice);
                }
                self.pods.push(Pod {
                    container,
                    sandbox,
                    name: name.clone(),
                    result,
                    addresses,
                });
                return Ok(());
            }
            let path = sandbox.path().display().to_string();
            self.delete(&container, &path)?;
            // The kubelet makes a new sandbox; others try with the same again.
            if self.random.permille(500) {
                container = self.container();
            }
            drop(sandbox);
            std::thread::sleep(PAUSE);
        }
        if self.soak.is_over() {
            return Ok(());
        }
        bail!("no ADD of {container} succeeds within {} s", PATIENCE.as_secs())
    }

    /// None where it failed as it may.
    fn try_add(
        &mut self,
        container: &str,
        sandbox: &Sandbox,
        pod: Option<(&str, &str)>,
    ) -> Result<Option<Value>> {
        let path = sandbox.path().display().to_string();
        let outcome = self.call(Call {
            pod,
            ..Call::new("ADD", container, &path)
        })?;
        match outcome {
            Outcome::Done(_) if !sandbox.is_there() => {
                self.soak
                    .violated(format!("ADD of {container} succeeded without its namespace"));
                Ok(None)
            }
            Outcome::Done(result) => Ok(Some(result)),
            Outcome::Killed => Ok(None),
            Outcome::Error(found, said) => {
                let gone = !sandbox.is_there() && found == u64::from(code::NETNS);
                if found != u64::from(code::TRY_AGAIN) && !gone {
                    self.soak.violated(format!("ADD of {container}: {said}"));
                }
                Ok(None)
            }
        }
    }

    /// Until it is said to be done.
    fn delete(&mut self, container: &str, netns: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < end {
            let outcome = self.call(Call::new("DEL", container, netns))?;
            match outcome {
                Outcome::Done(_) => {
                    self.soak.valid().remove(container);
                    return Ok(());
                }
                Outcome::Killed => {}
                Outcome::Error(found, said) => {
                    if found != u64::from(code::TRY_AGAIN) {
                        self.soak.violated(format!("DEL of {container}: {said}"));
                    }
                    last = said;
                }
            }
            std::thread::sleep(PAUSE);
        }
        bail!(
            "DEL of {container} does not succeed within {} s: {last}",
            PATIENCE.as_secs()
        )
    }

    fn delete_one(&mut self) -> Result<()> {
        let which = self.random.below(self.pods.len() as u64) as usize;
        let mut pod = self.pods.swap_remove(which);
        self.soak.live.remove(&pod.addresses);
        if let Some(name) = &pod.name {
            self.soak.place.delete_pod(name);
        }
        let path = pod.sandbox.path().display().to_string();
        if self.random.permille(self.soak.options.vanish) {
            pod.sandbox.remove()?;
            self.soak.report.count("namespaces gone before DEL");
        }
        if self.random.permille(self.soak.options.forget) {
            pod.sandbox.remove()?;
            self.soak.valid().remove(&pod.container);
            self.soak.report.count("pods forgotten without DEL");
            return Ok(());
        }
        // As containerd does after a reboot.
        let nameless = !pod.sandbox.is_there() && self.random.permille(500);
        self.delete(&pod.container, if nameless { "" } else { &path })?;
        if self.random.permille(50) {
            self.delete(&pod.container, &path)?;
        }
        pod.sandbox.remove()
    }

    /// A pod of those that live: it answers, or its namespace goes, or it is checked.
    fn look_at_one(&mut self) -> Result<()> {
        let (pods, vanish) = (self.pods.len() as u64, self.soak.options.vanish / 4);
        let choice = self.random.below(1000);
        let which = self.random.below(pods.max(1)) as usize;
        let Some(pod) = self.pods.get_mut(which) else {
            return Ok(());
        };
        if choice < vanish {
            // Its addresses may be taken back from now on, for nobody has them.
            self.soak.live.remove(&pod.addresses);
            pod.addresses.clear();
            self.soak.report.count("namespaces gone while attached");
            return pod.sandbox.remove();
        }
        if !pod.sandbox.is_there() {
            return Ok(());
        }
        if choice < 150 {
            for address in &pod.addresses {
                if !ping::answers(*address).with_context(|| format!("ping {}", pod.container))? {
                    self.soak
                        .violated(format!("{address} of {} does not answer", pod.container));
                }
                self.soak.report.count("pings answered");
            }
            return Ok(());
        }
        if choice < 200 {
            return self.check(which);
        }
        Ok(())
    }

    fn check(&mut self, which: usize) -> Result<()> {
        let pod = &self.pods[which];
        let (container, result) = (pod.container.clone(), pod.result.clone());
        let path = pod.sandbox.path().display().to_string();
        let outcome = self.call(Call {
            previous: Some(&result),
            ..Call::new("CHECK", &container, &path)
        })?;
        if let Outcome::Error(found, said) = outcome
            && found != u64::from(code::TRY_AGAIN)
        {
            self.soak.violated(format!("CHECK of {container}: {said}"));
        }
        Ok(())
    }
}
