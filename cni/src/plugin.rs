//! One invocation, from the environment to what is printed.

use crate::args::Args;
use crate::client::{self, Failure};
use crate::config::{self, Config, Purpose};
use crate::environment::{self, Invocation};
use crate::note::Note;
use crate::version::Version;
use crate::{deadline, error, link, previous, result};
use meshd_model::AttachmentId;
use meshd_model::cni::{Add, Call, CniError, Gc, Response, Wants, code};
use serde_json::Value;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

/// What an invocation ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// For stdout; DEL, CHECK, GC and STATUS print nothing when they succeed.
    pub output: Option<Value>,
    /// Whether the exit status is 0.
    pub success: bool,
}

/// Does what the variables that `lookup` gives ask for, with the network configuration that `input` gives until its
/// end; None stands for the least that is one. Counted from `started`, it takes no longer than the configuration allows.
pub fn run(
    started: Instant,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    input: Option<impl Read + AsFd>,
) -> Outcome {
    let mut version = Version::NEWEST;
    match invoke(started, lookup, input, &mut version) {
        Ok(output) => Outcome {
            output,
            success: true,
        },
        Err(error) => Outcome {
            output: Some(result::failed(version, &error)),
            success: false,
        },
    }
}

/// Sets `version` as soon as it is known, so that errors are told in it too.
fn invoke(
    started: Instant,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    input: Option<impl Read + AsFd>,
    version: &mut Version,
) -> Result<Option<Value>, CniError> {
    let invocation = environment::parse(lookup)?;
    let bytes = read(started, input)?;
    *version = config::version_or_newest(&bytes);
    if invocation == Invocation::Version {
        return config::version_asked_with(&bytes).map(|version| Some(result::versions(version)));
    }
    let purpose = match invocation {
        Invocation::Del(_) => Purpose::Detach,
        Invocation::Gc => Purpose::Collect,
        _ => Purpose::Attach,
    };
    let config = config::parse(&bytes, purpose)?;
    let deadline = started + config.timeout;
    match invocation {
        Invocation::Add { id, netns, args } => add(&config, id, netns, args, deadline).map(Some),
        Invocation::Del(id) => del(&config, id, deadline),
        Invocation::Check { id, netns } => check(&config, id, netns, deadline),
        Invocation::Gc => gc(config, deadline),
        Invocation::Status => status(&config, deadline),
        Invocation::Version => Ok(None),
    }
}

/// A verb that older versions do not have.
fn since(since: Version, verb: &str, config: &Config) -> Result<(), CniError> {
    if config.version >= since {
        return Ok(());
    }
    let msg = format!("{verb} is not part of CNI {}", config.version.as_str());
    Err(error(
        code::VERSION,
        msg,
        format!("it is from {} on", since.as_str()),
    ))
}

fn add(
    config: &Config,
    id: AttachmentId,
    netns: String,
    args: Args,
    deadline: Instant,
) -> Result<Value, CniError> {
    let previous = config.prev_result.as_ref().map(previous::parse).transpose()?;
    let previous = previous.unwrap_or_default();
    previous.check_free(&id.ifname, &netns)?;
    let call = Call::Add(Add {
        wants: Wants {
            ips: requested(&config.asked.ips, &args.ips)?,
            mac: config.asked.mac.or(args.mac),
            secondary: previous.has_default_route(),
        },
        id: id.clone(),
        netns: netns.clone(),
        pod: args.pod,
        token: token(),
        network: config.network.clone(),
    });
    let Response::Added(added) = client::exchange(&config.socket, &call, deadline)? else {
        return Err(unexpected());
    };
    let asked = result::Asked {
        version: config.version,
        ifname: &id.ifname,
        netns: &netns,
        dns: &config.dns,
        previous: &previous,
    };
    Ok(result::added(&asked, &added))
}

/// What is asked for in several places at once may be the same, not different.
fn requested(config: &[IpAddr], args: &[IpAddr]) -> Result<Vec<IpAddr>, CniError> {
    let mut ips: Vec<IpAddr> = config.iter().chain(args).copied().collect();
    ips.sort_unstable();
    ips.dedup();
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let of_family: Vec<_> = ips.iter().filter(|ip| family(ip)).collect();
        if let [first, second, ..] = of_family[..] {
            return Err(error(
                code::CONFIG,
                format!("{first} and {second} are both asked for"),
                "a pod has one address of each family: see runtimeConfig.ips, args.cni.ips and IP of CNI_ARGS",
            ));
        }
    }
    Ok(ips)
}

/// Drawn for this call. The standard library's hasher takes its keys from the system's randomness.
fn token() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}

/// A daemon that is not there does not keep DEL from succeeding: it finds a note when it starts. One that is there and
/// says nothing does.
fn del(config: &Config, id: AttachmentId, deadline: Instant) -> Result<Option<Value>, CniError> {
    let socket = &config.socket;
    let call = Call::Del(id.clone());
    let mut note = None;
    loop {
        match client::exchange_once(socket, &call, deadline) {
            Err(Failure::Absent(_)) if note.is_none() => note = Some(Note::write(socket, &id)?),
            // It was not there after the note was.
            Err(Failure::Absent(_)) => {
                // What fails here the daemon does when it starts.
                let _ = link::delete(&id.host_ifname(), deadline);
                return Ok(None);
            }
            Err(failure) if failure.is_cut_off() && Instant::now() + client::PAUSE < deadline => {
                std::thread::sleep(client::PAUSE);
            }
            answered => {
                note.take().into_iter().for_each(Note::remove);
                return done(answered.map_err(|failure| failure.at(socket))?);
            }
        }
    }
}

fn check(
    config: &Config,
    id: AttachmentId,
    netns: String,
    deadline: Instant,
) -> Result<Option<Value>, CniError> {
    since(Version::V0_4_0, "CHECK", config)?;
    let Some(value) = &config.prev_result else {
        let details = "CHECK needs prevResult, the result of ADD";
        return Err(error(code::CONFIG, "invalid network configuration", details));
    };
    let check = previous::parse(value)?.check(id, netns)?;
    done(client::exchange(&config.socket, &Call::Check(check), deadline)?)
}

fn gc(config: Config, deadline: Instant) -> Result<Option<Value>, CniError> {
    since(Version::V1_1_0, "GC", &config)?;
    let valid = config.valid;
    let network = config.network;
    done(client::exchange(
        &config.socket,
        &Call::Gc(Gc { network, valid }),
        deadline,
    )?)
}

/// No daemon to ask is as good an answer as its own; but first it is waited for, by the deadline, as is one that is not
/// ready. It may be restarted, and a runtime that hears 50 turns the node NotReady, which takes its pods out of their
/// Services.
fn status(config: &Config, deadline: Instant) -> Result<Option<Value>, CniError> {
    since(Version::V1_1_0, "STATUS", config)?;
    let mut refused = None;
    loop {
        let mut error = match client::exchange_once(&config.socket, &Call::CniStatus, deadline) {
            Ok(Response::Error(error)) => error,
            Ok(response) => return done(response),
            Err(failure) => match (failure, refused.take()) {
                // It said more before.
                (Failure::Silent, Some(before)) => before,
                (failure, _) => failure.at(&config.socket),
            },
        };
        if error.code == code::TRY_AGAIN {
            error.code = code::NOT_AVAILABLE;
        }
        let may_pass = matches!(error.code, code::NOT_AVAILABLE | code::HURT);
        if !may_pass || Instant::now() + client::PAUSE >= deadline {
            return Err(error);
        }
        refused = Some(error);
        std::thread::sleep(client::PAUSE);
    }
}

fn done(response: Response) -> Result<Option<Value>, CniError> {
    match response {
        Response::Done => Ok(None),
        Response::Error(error) => Err(error),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> CniError {
    error(
        code::DECODE,
        "meshd answered another question than was asked",
        "are meshd and meshd-cni of the same version?",
    )
}

/// Reads the configuration to its end, which the runtime may fail to give.
fn read(started: Instant, input: Option<impl Read + AsFd>) -> Result<Vec<u8>, CniError> {
    let Some(mut input) = input else {
        return Ok(format!("{{\"cniVersion\":\"{}\"}}", Version::NEWEST.as_str()).into_bytes());
    };
    // One byte more tells what is too long.
    let read = deadline::read_to_end(&mut input, config::MAX + 1, started + config::TIMEOUT);
    let failed = |details: String| {
        error(
            code::IO,
            "cannot read the network configuration from stdin",
            details,
        )
    };
    match read {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(failed(format!(
            "it did not end within {} s",
            config::TIMEOUT.as_secs()
        ))),
        Err(reason) => Err(failed(reason.to_string())),
    }
}
