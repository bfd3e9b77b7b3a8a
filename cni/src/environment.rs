//! The `CNI_*` variables (CNI specification 1.1.0, section 2, "Parameters").

use crate::args::{self, Args};
use crate::{error, quoted};
use meshd_model::AttachmentId;
use meshd_model::cni::{CniError, code};
use meshd_model::kernel::IFNAME_MAX;
use std::ffi::OsString;

/// Longest container id, in bytes. Runtimes use 64; the daemon's store makes file names of them.
pub const CONTAINER_ID_MAX: usize = 200;
/// Longest path of a network namespace, in bytes (PATH_MAX).
const NETNS_MAX: usize = 4096;

/// What the runtime asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `CNI_COMMAND=ADD`
    Add {
        /// Container and interface.
        id: AttachmentId,
        /// `CNI_NETNS`
        netns: String,
        /// `CNI_ARGS`
        args: Args,
    },
    /// `CNI_COMMAND=DEL`
    Del(AttachmentId),
    /// `CNI_COMMAND=CHECK`
    Check {
        /// Container and interface.
        id: AttachmentId,
        /// `CNI_NETNS`
        netns: String,
    },
    /// `CNI_COMMAND=GC`
    Gc,
    /// `CNI_COMMAND=STATUS`
    Status,
    /// `CNI_COMMAND=VERSION`
    Version,
}

/// Reads an invocation from variables that `lookup` gives by name. Error code 4 names every variable that is missing
/// or invalid, with the reason.
pub fn parse(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Invocation, CniError> {
    let mut reader = Reader {
        lookup,
        problems: Vec::new(),
    };
    let command = reader.required("CNI_COMMAND", |_| Ok(()));
    let invocation = match command.as_str() {
        "ADD" => Invocation::Add {
            id: reader.attachment(),
            netns: reader.required("CNI_NETNS", netns),
            args: reader.args(),
        },
        "DEL" => Invocation::Del(reader.attachment()),
        "CHECK" => Invocation::Check {
            id: reader.attachment(),
            netns: reader.required("CNI_NETNS", netns),
        },
        "GC" => Invocation::Gc,
        "STATUS" => Invocation::Status,
        "VERSION" => Invocation::Version,
        "" => return Err(reader.error()),
        other => {
            let problem = format!(
                "CNI_COMMAND is {}: this plugin knows ADD, DEL, CHECK, GC, STATUS and VERSION",
                quoted(other)
            );
            reader.problems.push(problem);
            return Err(reader.error());
        }
    };
    if reader.problems.is_empty() {
        Ok(invocation)
    } else {
        Err(reader.error())
    }
}

/// Reads variables and notes what is wrong with them, so that one error names all.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn attachment(&mut self) -> AttachmentId {
        AttachmentId {
            container_id: self.required("CNI_CONTAINERID", container_id),
            ifname: self.required("CNI_IFNAME", ifname),
        }
    }

    fn args(&mut self) -> Args {
        let Some(text) = self.optional("CNI_ARGS") else {
            return Args::default();
        };
        args::parse(&text).unwrap_or_else(|reason| {
            self.problems.push(format!("CNI_ARGS {reason}"));
            Args::default()
        })
    }

    fn required(&mut self, name: &str, check: fn(&str) -> Result<(), &'static str>) -> String {
        let before = self.problems.len();
        let Some(value) = self.optional(name) else {
            if self.problems.len() == before {
                self.problems.push(format!("{name} is missing"));
            }
            return String::new();
        };
        if let Err(reason) = check(&value) {
            self.problems
                .push(format!("{name} is {}: {reason}", quoted(&value)));
        }
        value
    }

    /// Empty is as good as absent: runtimes set what they do not know to nothing.
    fn optional(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name).filter(|value| !value.is_empty())?;
        let text = value.into_string();
        if text.is_err() {
            self.problems.push(format!("{name} is not UTF-8"));
        }
        text.ok()
    }

    fn error(&self) -> CniError {
        error(
            code::ENVIRONMENT,
            format!("invalid environment variables: {}", self.problems.join("; ")),
            "a container runtime sets them (CNI specification, section 2); by hand, set CNI_COMMAND, CNI_CONTAINERID, \
             CNI_NETNS and CNI_IFNAME, and give the network configuration on stdin",
        )
    }
}

/// Of identifiers: alphanumeric, then also `_`, `.` and `-`.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn container_id(text: &str) -> Result<(), &'static str> {
    if !is_identifier(text) {
        return Err("a container id is letters, digits, '_', '.' and '-', and begins with a letter or digit");
    }
    if text.len() > CONTAINER_ID_MAX {
        return Err("a container id has at most 200 bytes");
    }
    Ok(())
}

fn ifname(text: &str) -> Result<(), &'static str> {
    let foreign = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text == "." || text == ".." || text.contains(foreign) {
        return Err(
            "an interface name is not \".\" or \"..\" and holds no '/', ':', space or control character",
        );
    }
    if text.len() > IFNAME_MAX {
        return Err("an interface name has at most 15 bytes");
    }
    Ok(())
}

fn netns(text: &str) -> Result<(), &'static str> {
    if !text.starts_with('/') || text.len() > NETNS_MAX {
        return Err("the path of a network namespace is absolute and has at most 4096 bytes");
    }
    Ok(())
}
