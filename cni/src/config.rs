//! The network configuration that a runtime gives on stdin (CNI specification 1.1.0, section 1, "Plugin
//! configuration objects").

use crate::environment::is_identifier;
use crate::version::Version;
use crate::{error, quoted};
use meshd_model::AttachmentId;
use meshd_model::attachment::MacAddr;
use meshd_model::cni::{CniError, SOCKET, code};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Longest configuration that is read, in bytes.
pub const MAX: usize = 1 << 20;
/// How long an invocation may take where the configuration does not say.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest and the longest `timeoutSeconds`.
const TIMEOUTS: (f64, f64) = (0.1, 300.0);
/// Key of the attachments that GC is to leave.
pub const VALID: &str = "cni.dev/valid-attachments";
/// Longest path that a Unix socket address holds, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Keys that need not mean anything to this plugin: the specification's, and what runtimes add.
const TOLERATED: [&str; 8] = [
    "capabilities",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "ipMasq",
    "loadOnlyInlinedPlugins",
    "name",
    "type",
];

/// Keys of `runtimeConfig` that plugins behind us in the list serve.
const OTHERS_CAPABILITIES: [&str; 2] = ["bandwidth", "portMappings"];

/// A network configuration, as far as this plugin uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `cniVersion`
    pub version: Version,
    /// `name` of the network; empty where it is none, which is refused for all but DEL.
    pub network: String,
    /// `socket`: path of the daemon's socket.
    pub socket: PathBuf,
    /// `timeoutSeconds`: how long an invocation may take.
    pub timeout: Duration,
    /// `dns`, passed through to the result; an object.
    pub dns: Value,
    /// `prevResult`
    pub prev_result: Option<Value>,
    /// `runtimeConfig` and `args.cni`.
    pub asked: Asked,
    /// `cni.dev/valid-attachments`, for GC.
    pub valid: Vec<AttachmentId>,
}

/// What `runtimeConfig` (capabilities `ips` and `mac`) and `args.cni` ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Addresses; a prefix length is passed over.
    pub ips: Vec<IpAddr>,
    /// `runtimeConfig` goes before `args.cni`, as with the reference plugins.
    pub mac: Option<MacAddr>,
}

/// What a configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To attach: whatever is wrong is refused.
    Attach,
    /// To detach: only what DEL needs must be right, so that a configuration which went bad in the meantime leaks
    /// nothing.
    Detach,
    /// To collect: as to detach, but the network must have its name.
    Collect,
}

/// Reads a configuration. Errors: 6 for what is no JSON, 1 for the version, 2 for a key that would be ignored, 7 for
/// all else.
pub fn parse(bytes: &[u8], purpose: Purpose) -> Result<Config, CniError> {
    let object = object(bytes)?;
    let attach = purpose == Purpose::Attach;
    let config = Config {
        network: name(&object).unwrap_or_default(),
        asked: if attach { asked(&object)? } else { Asked::default() },
        valid: if purpose == Purpose::Collect {
            valid(&object)?
        } else {
            Vec::new()
        },
        version: version(&object)?,
        socket: socket(&object)?,
        timeout: timeout(&object)?,
        dns: object
            .get("dns")
            .cloned()
            .unwrap_or_else(|| Value::Object(Map::new())),
        prev_result: object.get("prevResult").filter(|value| !value.is_null()).cloned(),
    };
    if purpose != Purpose::Detach {
        name(&object)?;
    }
    if attach {
        check_keys(&object)?;
        check_dns(&config.dns)?;
    }
    Ok(config)
}

/// The version to speak in an error, from whatever came on stdin.
#[must_use]
pub fn version_or_newest(bytes: &[u8]) -> Version {
    object(bytes)
        .and_then(|object| version(&object))
        .unwrap_or(Version::NEWEST)
}

/// The version to speak in VERSION's result: the one asked with, where it is spoken. VERSION is how a runtime finds out,
/// so that no version is an error here, and nothing on stdin neither; what is no JSON object is.
pub fn version_asked_with(bytes: &[u8]) -> Result<Version, CniError> {
    if !bytes.trim_ascii().is_empty() {
        object(bytes)?;
    }
    Ok(version_or_newest(bytes))
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    if bytes.len() > MAX {
        let limit = format!("at most {MAX} bytes are read");
        return Err(error(
            code::DECODE,
            "the network configuration on stdin is too long",
            limit,
        ));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|reason| {
        let msg = "the network configuration on stdin is no JSON";
        error(code::DECODE, msg, crate::reason(&reason))
    })?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(invalid("it must be a JSON object")),
    }
}

fn invalid(details: impl Into<String>) -> CniError {
    error(code::CONFIG, "invalid network configuration", details)
}

fn version(object: &Map<String, Value>) -> Result<Version, CniError> {
    match object.get("cniVersion") {
        Some(Value::String(text)) => Version::parse(text),
        // The specification's meaning of an absent version.
        None => Version::parse("0.1.0"),
        Some(other) => {
            let found = quoted(&other.to_string());
            Err(invalid(format!("cniVersion is {found}, and must be a text")))
        }
    }
}

fn socket(object: &Map<String, Value>) -> Result<PathBuf, CniError> {
    match object.get("socket") {
        None => Ok(PathBuf::from(SOCKET)),
        Some(Value::String(path)) if path.starts_with('/') && path.len() <= SOCKET_PATH_MAX => {
            Ok(PathBuf::from(path))
        }
        Some(_) => Err(invalid(format!(
            "socket must be an absolute path of at most {SOCKET_PATH_MAX} bytes: where meshd listens"
        ))),
    }
}

fn timeout(object: &Map<String, Value>) -> Result<Duration, CniError> {
    let Some(value) = object.get("timeoutSeconds") else {
        return Ok(TIMEOUT);
    };
    let (shortest, longest) = TIMEOUTS;
    let seconds = value
        .as_f64()
        .filter(|seconds| (shortest..=longest).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        invalid(format!(
            "timeoutSeconds must be a number from {shortest} to {longest}"
        ))
    })
}

fn name(object: &Map<String, Value>) -> Result<String, CniError> {
    match object.get("name") {
        Some(Value::String(name)) if is_identifier(name) => Ok(name.clone()),
        Some(_) => Err(invalid(
            "name must be letters, digits, '_', '.' and '-', and begin with a letter or digit",
        )),
        None => Err(invalid(
            "name is missing: the network's name, the same on every node",
        )),
    }
}

fn check_keys(object: &Map<String, Value>) -> Result<(), CniError> {
    for (key, value) in object {
        let known = match key.as_str() {
            "args" | "cniVersion" | "socket" | "timeoutSeconds" | "dns" | "prevResult" | "runtimeConfig" => {
                true
            }
            // Addresses are meshd's own matter; an empty object asks for nothing.
            "ipam" => value.as_object().is_some_and(Map::is_empty) || value.is_null(),
            key => TOLERATED.contains(&key) || key.starts_with("cni.dev/"),
        };
        if !known {
            return Err(error(
                code::UNSUPPORTED,
                format!("unsupported key {} in the network configuration", quoted(key)),
                format!("its value is {}; remove the key", quoted(&value.to_string())),
            ));
        }
    }
    Ok(())
}

/// Capabilities are for the plugin that declares them, so that what is none of ours is refused. What `args.cni` has
/// besides is for whom it concerns (CNI conventions, "args").
fn asked(object: &Map<String, Value>) -> Result<Asked, CniError> {
    let mut asked = Asked::default();
    let from_args = object.get("args").and_then(|args| args.get("cni"));
    let from_runtime = object.get("runtimeConfig");
    for (place, keys) in [("args.cni", from_args), ("runtimeConfig", from_runtime)] {
        for (key, value) in keys.and_then(Value::as_object).into_iter().flatten() {
            match key.as_str() {
                _ if value.is_null() => {}
                "ips" => asked.ips.extend(ips(place, value)?),
                "mac" => asked.mac = mac(place, value)?.or(asked.mac),
                key if place == "args.cni" || OTHERS_CAPABILITIES.contains(&key) => {}
                key => {
                    return Err(error(
                        code::UNSUPPORTED,
                        format!("unsupported key {} in runtimeConfig", quoted(key)),
                        format!(
                            "its value is {}; take the capability from this plugin",
                            quoted(&value.to_string())
                        ),
                    ));
                }
            }
        }
    }
    Ok(asked)
}

fn ips(place: &str, value: &Value) -> Result<Vec<IpAddr>, CniError> {
    let wrong = |found: &Value| {
        let found = quoted(&found.to_string());
        invalid(format!(
            "{place}.ips has {found}: it is a list of IP addresses, each a text"
        ))
    };
    let list = value.as_array().ok_or_else(|| wrong(value))?;
    list.iter()
        .map(|ip| {
            ip.as_str()
                .and_then(|text| crate::address(text).ok())
                .ok_or_else(|| wrong(ip))
        })
        .collect()
}

fn mac(place: &str, value: &Value) -> Result<Option<MacAddr>, CniError> {
    let text = value.as_str().unwrap_or("?");
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|why| invalid(format!("{place}.mac is {}: {why}", quoted(&value.to_string()))))
}

/// What GC is to leave (CNI specification 1.1.0, section 2, "GC"). The reference library writes null for an empty list, and
/// cnitool gives none for the same.
fn valid(object: &Map<String, Value>) -> Result<Vec<AttachmentId>, CniError> {
    #[derive(Deserialize)]
    struct Attachment {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let Some(list) = object.get(VALID).filter(|list| !list.is_null()) else {
        return Ok(Vec::new());
    };
    let list: Vec<Attachment> = Deserialize::deserialize(list).map_err(|found: serde_json::Error| {
        let found = crate::reason(&found);
        invalid(format!(
            "{VALID} is a list of attachments, each with containerID and ifname: {found}"
        ))
    })?;
    let ids = list.into_iter().map(|attachment| AttachmentId {
        container_id: attachment.container_id,
        ifname: attachment.ifname,
    });
    Ok(ids.collect())
}

fn check_dns(dns: &Value) -> Result<(), CniError> {
    let texts = |value: &Value| {
        value
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string))
    };
    let right = dns.as_object().is_some_and(|dns| {
        dns.iter().all(|(key, value)| match key.as_str() {
            "domain" => value.is_string(),
            "nameservers" | "search" | "options" => texts(value),
            _ => false,
        })
    });
    if right {
        Ok(())
    } else {
        Err(invalid(
            "dns must be an object of nameservers, search and options (lists of texts) and domain (a text)",
        ))
    }
}
