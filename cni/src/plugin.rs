//! One invocation, from the environment to what is printed.

use crate::config::{self, Config, Purpose};
use crate::environment::{self, Invocation};
use crate::version::Version;
use crate::{client, deadline, error, previous, result};
use meshd_model::cni::{Add, Added, Call, Check, CniError, Response, code};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Read};
use std::time::Instant;

/// What an invocation ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// For stdout; DEL and CHECK print nothing when they succeed.
    pub output: Option<Value>,
    /// Whether the exit status is 0.
    pub success: bool,
}

/// Does what the variables that `lookup` gives ask for, with the network configuration that `input` gives until its
/// end. Counted from `started`, it takes no longer than the configuration allows.
pub fn run(
    started: Instant,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    input: impl Read + Send + 'static,
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
    input: impl Read + Send + 'static,
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
        _ => Purpose::Attach,
    };
    let config = config::parse(&bytes, purpose)?;
    let deadline = started + config.timeout;
    match invocation {
        Invocation::Add(call) => add(&config, call, deadline).map(Some),
        Invocation::Del(id) => done(client::exchange(&config.socket, Call::Del(id), deadline)?),
        Invocation::Check { id, netns } => {
            if config.version < Version::V0_4_0 {
                let msg = format!("CHECK is not part of CNI {}", config.version.as_str());
                return Err(error(code::VERSION, msg, "it is from 0.4.0 on"));
            }
            let addresses = previous::addresses(config.prev_result.as_ref(), &id.ifname)?;
            let call = Call::Check(Check {
                id,
                netns,
                addresses,
                mac: None,
                mtu: None,
                host: None,
            });
            done(client::exchange(&config.socket, call, deadline)?)
        }
        Invocation::Version => Ok(None),
    }
}

fn add(config: &Config, call: Add, deadline: Instant) -> Result<Value, CniError> {
    if config.prev_result.is_some() {
        return Err(error(
            code::UNSUPPORTED,
            "unsupported key \"prevResult\" for ADD",
            "meshd-cni makes the pod's interface, so it comes first in the list of plugins",
        ));
    }
    let (ifname, netns) = (call.id.ifname.clone(), call.netns.clone());
    match client::exchange(&config.socket, Call::Add(call), deadline)? {
        Response::Added(added) => Ok(render(config, &added, &ifname, &netns)),
        _ => Err(unexpected()),
    }
}

fn render(config: &Config, added: &Added, ifname: &str, netns: &str) -> Value {
    result::added(config.version, added, ifname, netns, &config.dns)
}

fn done(response: Response) -> Result<Option<Value>, CniError> {
    match response {
        Response::Done => Ok(None),
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
fn read(started: Instant, input: impl Read + Send + 'static) -> Result<Vec<u8>, CniError> {
    let read = deadline::within(started + config::TIMEOUT, move || {
        let mut bytes = Vec::new();
        // One byte more tells what is too long.
        input.take(config::MAX as u64 + 1).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    });
    let failed = |details: String| {
        error(
            code::IO,
            "cannot read the network configuration from stdin",
            details,
        )
    };
    match read {
        Ok(Some(Ok(bytes))) => Ok(bytes),
        Ok(Some(Err(reason))) | Err(reason) => Err(failed(reason.to_string())),
        Ok(None) => Err(failed(format!(
            "it did not end within {} s",
            config::TIMEOUT.as_secs()
        ))),
    }
}
