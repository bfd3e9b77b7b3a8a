//! An ADD and a DEL, killed at each system call in turn: of the daemon, and of the plugin.
//!
//! After each kill the daemon is started again, and held to this: the pod beside it keeps its addresses and answers; the
//! runtime's retry works; an address has one route; after DEL of all, everything is as it was before.

use crate::place::Place;
use crate::plugin::{Call, Outcome, Plugin, addresses, traced};
use crate::random::{Random, seed};
use crate::sandbox::Sandbox;
use crate::trace::Counts;
use crate::{Common, ping, remains, store};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use meshd_model::cni::code;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long what is left may take to go.
const AFTERWARDS: Duration = Duration::from_secs(20);
/// How long a runtime tries again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// A stop that is never reached.
const NEVER: u64 = u64::MAX;

/// What is killed, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Seconds for each of the four walks, which takes stops at random; 0 to take every one.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Only this walk.
    #[arg(long)]
    only: Option<Walk>,
    /// Only this stop.
    #[arg(long)]
    at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Walk {
    DaemonAdd,
    DaemonDel,
    PluginAdd,
    PluginDel,
}

impl Walk {
    fn verb(self) -> &'static str {
        match self {
            Walk::DaemonAdd | Walk::PluginAdd => "ADD",
            Walk::DaemonDel | Walk::PluginDel => "DEL",
        }
    }

    fn is_daemon(self) -> bool {
        matches!(self, Walk::DaemonAdd | Walk::DaemonDel)
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// Runs the walks; an error at the first thing that is wrong.
pub(crate) fn run(options: &Options) -> Result<()> {
    let seed = seed(options.common.seed)?;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let place = Place::make(&options.common, 0)?;
    let mut crash = Crash {
        place: &place,
        before: remains::lines(&place)?,
        neighbour: Pod::new(&place, "neighbour")?,
        number: 0,
    };
    crash.neighbour.add(&place)?;
    crash.before = remains::lines(&place)?;
    let mut told = Vec::new();
    if options.only.is_none() {
        let stops = store::walk(&place.path(""))?;
        told.push(json!({"walk": "store", "stops": stops, "killed_at": stops}));
        if !options.common.json {
            println!("store: {stops} stops, killed at each, nothing lost");
        }
    }
    for walk in Walk::value_variants() {
        if options.only.is_none_or(|only| only == *walk) {
            let (stops, taken) = crash.walk(*walk, options, &mut random).with_context(|| {
                format!(
                    "{}, seed {seed}; the daemon said:\n{}",
                    walk.name(),
                    place.last_words()
                )
            })?;
            if options.common.json {
                told.push(json!({"walk": walk.name(), "stops": stops, "killed_at": taken}));
            } else {
                println!(
                    "{}: {stops} stops, killed at {taken} of them, nothing lost and nothing left",
                    walk.name()
                );
            }
        }
    }
    if options.common.json {
        println!("{}", json!({"seed": seed, "walks": told}));
    }
    Ok(())
}

/// A pod, as its runtime knows it.
struct Pod {
    container: String,
    sandbox: Sandbox,
    addresses: Vec<IpAddr>,
}

impl Pod {
    fn new(place: &Place, container: &str) -> Result<Self> {
        Ok(Self {
            container: container.to_owned(),
            sandbox: Sandbox::create(place.path("netns").join(container))?,
            addresses: Vec::new(),
        })
    }

    fn call(&self, place: &Place, command: Vec<OsString>, verb: &str) -> Result<Outcome> {
        let plugin = Plugin {
            command,
            socket: &place.socket(),
        };
        let netns = self.sandbox.path().display().to_string();
        let (outcome, _) = plugin.call(Call::new(verb, &self.container, &netns))?;
        Ok(outcome)
    }

    /// Until it succeeds; error codes beside "try again" are none that a restart may show.
    fn until(&self, place: &Place, verb: &str) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.call(place, vec![place.plugin().into()], verb)? {
                Outcome::Done(result) => return Ok(result),
                Outcome::Error(found, said)
                    if found != u64::from(code::TRY_AGAIN) || Instant::now() > end =>
                {
                    bail!("{verb} of {}: {said}", self.container)
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    fn add(&mut self, place: &Place) -> Result<()> {
        self.addresses = addresses(&self.until(place, "ADD")?);
        Ok(())
    }
}

struct Crash<'a> {
    place: &'a Place,
    /// What the kernel and the store hold beside the pods that are tried.
    before: BTreeSet<String>,
    /// Lives through it all.
    neighbour: Pod,
    number: u64,
}

impl Crash<'_> {
    /// How many stops there are, and at how many it was killed.
    fn walk(&mut self, walk: Walk, options: &Options, random: &mut Random) -> Result<(u64, u64)> {
        let Counts { stops, syncs } = self.trial(walk, NEVER)?;
        if syncs > 0 {
            bail!(
                "{} waits {syncs} times for the disk, which can take seconds",
                walk.name()
            );
        }
        eprintln!("{}: {stops} stops", walk.name());
        // No run is quite like the next: some are longer.
        let mut all: Vec<u64> = (1..=stops + stops / 10).collect();
        if let Some(at) = options.at {
            all = vec![at];
        }
        if options.seconds > 0 {
            random.shuffle(&mut all);
        }
        let end = (options.seconds > 0).then(|| Instant::now() + Duration::from_secs(options.seconds));
        let mut taken = 0;
        for at in all {
            if end.is_some_and(|end| Instant::now() > end) {
                break;
            }
            self.trial(walk, at).with_context(|| {
                format!(
                    "killed at stop {at} of {stops} (--only {} --at {at})",
                    walk.name()
                )
            })?;
            taken += 1;
            if taken % 100 == 0 {
                eprintln!("{}: killed at {taken} stops", walk.name());
            }
        }
        Ok((stops, taken))
    }

    /// One ADD or DEL that is killed at a stop, and what comes of it.
    fn trial(&mut self, walk: Walk, at: u64) -> Result<Counts> {
        self.number += 1;
        let mut victim = Pod::new(self.place, &format!("victim-{}", self.number))?;
        if walk.verb() == "DEL" {
            victim.add(self.place)?;
        }
        let (outcome, count) = match walk.is_daemon() {
            true => self.kill_daemon(&victim, walk.verb(), at)?,
            false => self.kill_plugin(&victim, walk.verb(), at)?,
        };
        self.check_neighbour()?;
        match walk.verb() {
            "ADD" => self.after_add(&mut victim, &outcome)?,
            _ => self.after_del(&mut victim)?,
        }
        victim.until(self.place, "DEL")?;
        let left = self.place.until_clean(&self.before, AFTERWARDS)?;
        if !left.is_empty() {
            bail!("after the last DEL: {}", left.join("; "));
        }
        Ok(count)
    }

    /// The daemon is traced from before the call, and killed at the stop, or after the answer. It is started again while
    /// the plugin still waits for it.
    fn kill_daemon(&self, victim: &Pod, verb: &str, at: u64) -> Result<(Outcome, Counts)> {
        let pid = self.place.pid().context("meshd does not run")?;
        let mut tracer = Tracer::of(pid, at)?;
        std::thread::scope(|scope| {
            let call = scope.spawn(|| victim.call(self.place, vec![self.place.plugin().into()], verb));
            while !call.is_finished() && !self.place.has_ended()? {
                std::thread::sleep(Duration::from_millis(1));
            }
            let count = tracer.end()?;
            self.place.kill()?;
            self.place.start()?;
            self.place.until_ready()?;
            let outcome = call
                .join()
                .map_err(|_| anyhow!("the plugin's thread has panicked"))??;
            Ok((outcome, count))
        })
    }

    fn kill_plugin(&self, victim: &Pod, verb: &str, at: u64) -> Result<(Outcome, Counts)> {
        let own = std::env::current_exe().context("find this program")?;
        let count = self.place.path("count");
        let mut command = traced(&own, at, &count);
        command.push(self.place.plugin().into());
        let outcome = victim.call(self.place, command, verb)?;
        let count = std::fs::read_to_string(count).context("read the count of system calls")?;
        Ok((outcome, Counts::parse(&count)?))
    }

    fn check_neighbour(&self) -> Result<()> {
        for address in &self.neighbour.addresses {
            if !ping::answers(*address)? {
                bail!("the neighbour does not answer at {address}");
            }
        }
        Ok(())
    }

    /// The runtime asks again: DEL, and ADD in a new namespace, or ADD alone.
    fn after_add(&mut self, victim: &mut Pod, outcome: &Outcome) -> Result<()> {
        match outcome {
            Outcome::Done(result) => victim.addresses = addresses(result),
            Outcome::Killed | Outcome::Error(11, _) => {
                if self.number.is_multiple_of(2) {
                    victim.until(self.place, "DEL")?;
                    let container = victim.container.clone();
                    victim.sandbox.remove()?;
                    *victim = Pod::new(self.place, &container)?;
                    victim.add(self.place)?;
                } else {
                    self.add_again(victim)?;
                }
            }
            Outcome::Error(_, said) => bail!("ADD says {said}"),
        }
        self.check_alive(victim)
    }

    /// Where the answer alone was lost, the attachment is there.
    fn add_again(&self, victim: &mut Pod) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match victim.call(self.place, vec![self.place.plugin().into()], "ADD")? {
                Outcome::Done(result) => {
                    victim.addresses = addresses(&result);
                    return Ok(());
                }
                Outcome::Error(found, _) if found == u64::from(code::EXISTS) => {
                    victim.until(self.place, "DEL")?;
                }
                Outcome::Error(found, said) if found != u64::from(code::TRY_AGAIN) => {
                    bail!("ADD says {said}")
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
        bail!("no ADD succeeds within {} s", PATIENCE.as_secs())
    }

    /// Another pod is added while the victim may be half gone: the two share no address.
    fn after_del(&mut self, victim: &mut Pod) -> Result<()> {
        let mut next = Pod::new(self.place, &format!("next-{}", self.number))?;
        next.add(self.place)?;
        self.check_alive(&next)?;
        victim.until(self.place, "DEL")?;
        self.check_alive(&next)?;
        next.until(self.place, "DEL").map(drop)
    }

    /// It has both its addresses to itself, and answers.
    fn check_alive(&self, pod: &Pod) -> Result<()> {
        if pod.addresses.len() != 2 {
            bail!("{} has the addresses {:?}", pod.container, pod.addresses);
        }
        let routes = remains::lines(self.place)?;
        for address in &pod.addresses {
            if self.neighbour.addresses.contains(address) {
                bail!("{address} of the neighbour was given to {} too", pod.container);
            }
            let begin = format!("route {address}/");
            let count = routes.iter().filter(|line| line.starts_with(&begin)).count();
            if count != 1 {
                bail!("{address} of {} has {count} routes", pod.container);
            }
            if !ping::answers(*address)? {
                bail!("{} does not answer at {address}", pod.container);
            }
        }
        Ok(())
    }
}

/// A process that traces the daemon.
struct Tracer(Child);

impl Tracer {
    fn of(pid: u32, at: u64) -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let mut child = Command::new(own)
            .args(["trace", "--pid", &pid.to_string(), "--at", &at.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the tracer")?;
        let mut line = String::new();
        let stdout = child.stdout.as_mut().context("the tracer's stdout")?;
        // One byte at a time, so that what follows stays in the pipe.
        BufReader::with_capacity(1, stdout)
            .read_line(&mut line)
            .context("read from the tracer")?;
        if line != "traced\n" {
            bail!("the tracer says {line:?}");
        }
        Ok(Self(child))
    }

    /// Ends it, and the process that it traces with it; what it counted.
    fn end(&mut self) -> Result<Counts> {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let mut stdout = self.0.stdout.take().context("the tracer's stdout")?;
        stdout.read_to_string(&mut said).context("read from the tracer")?;
        self.0.wait().context("wait for the tracer")?;
        Counts::parse(&said)
    }
}
