//! Why a machine does not let us build a cluster of namespaces, and how to allow it.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the system refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was tried: `a user namespace`, `/dev/net/tun`, ...
    pub what: String,
    /// What came of it.
    pub why: String,
    /// How to allow it.
    pub how: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} refused: {}. To allow it: {}",
            self.what, self.why, self.how
        )
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// A refusal with this machine's remedy for it.
    #[must_use]
    pub fn new(step: Step, errno: Errno) -> Self {
        Self {
            what: step.name().to_owned(),
            why: errno.desc().to_owned() + " (" + &format!("{errno:?}") + ")",
            how: step.remedy(errno),
        }
    }
}

/// The steps that a system may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `unshare(CLONE_NEWUSER)` and its maps.
    UserNamespace,
    /// Mount, pid and network namespaces.
    Namespaces,
    /// Mounts inside.
    Mounts,
    /// `/proc` for the new pid namespace.
    Proc,
    /// Opening `/dev/net/tun` and making an interface with it.
    Tun,
    /// A bridge and a veth pair.
    Links,
    /// AF_PACKET.
    Capture,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::UserNamespace => "a user namespace",
            Step::Namespaces => "mount, pid and network namespaces",
            Step::Mounts => "private mounts in a new mount namespace",
            Step::Proc => "mounting /proc for a new pid namespace",
            Step::Tun => "/dev/net/tun",
            Step::Links => "a bridge and veth pairs in a new network namespace",
            Step::Capture => "a packet capture in a new network namespace",
        }
    }

    fn remedy(self, errno: Errno) -> String {
        match self {
            Step::UserNamespace | Step::Namespaces | Step::Mounts => namespaces_remedy(errno),
            Step::Proc => {
                "a container masks parts of /proc: run it with --privileged, or on the host".to_owned()
            }
            Step::Tun => tun_remedy(errno),
            Step::Links => {
                "load the kernel's modules: `sudo modprobe -a veth bridge`, or run a kernel that has them"
                    .to_owned()
            }
            Step::Capture => "load the kernel's module: `sudo modprobe af_packet`".to_owned(),
        }
    }
}

/// The sysctls that forbid user namespaces, those that are set so on this machine.
fn namespaces_remedy(errno: Errno) -> String {
    let mut remedies = Vec::new();
    if sysctl("kernel/unprivileged_userns_clone") == Some(0) {
        remedies.push("`sudo sysctl kernel.unprivileged_userns_clone=1`".to_owned());
    }
    if sysctl("kernel/apparmor_restrict_unprivileged_userns").is_some_and(|v| v != 0) {
        remedies.push("`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`".to_owned());
    }
    for name in ["user", "mnt", "pid", "net"] {
        let limit = sysctl(&format!("user/max_{name}_namespaces"));
        if limit == Some(0) || (errno == Errno::ENOSPC && limit.is_some_and(|v| v < 1024)) {
            remedies.push(format!("`sudo sysctl user.max_{name}_namespaces=15000`"));
        }
    }
    // Inside a user namespace of our own the sysctls show its limits; it is those outside that are reached.
    if remedies.is_empty() && errno == Errno::ENOSPC {
        return "a limit on namespaces is reached: raise user.max_mnt_namespaces, user.max_pid_namespaces, \
                user.max_net_namespaces and user.max_ipc_namespaces (`sysctl user` shows them), or run it as root"
            .to_owned();
    }
    if remedies.is_empty() {
        return "run it as root with CAP_SYS_ADMIN; inside a container, with --privileged; or look at the sysctls \
                kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns and \
                user.max_user_namespaces"
            .to_owned();
    }
    remedies.join(" and ") + ", or run it as root"
}

fn tun_remedy(errno: Errno) -> String {
    match errno {
        Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => {
            "`sudo modprobe tun` (a container needs --device /dev/net/tun)".to_owned()
        }
        Errno::EACCES => format!(
            "it is {}, ordinary distributions have it 0666: `sudo chmod 0666 /dev/net/tun`, or run it as root",
            mode_of("/dev/net/tun")
        ),
        _ => "run it as root; inside a container, with --device /dev/net/tun and --privileged".to_owned(),
    }
}

/// Not its owner: inside a user namespace everybody else is nobody.
fn mode_of(path: &str) -> String {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or_else(
        |_| "of unknown mode".to_owned(),
        |m| format!("of mode {:04o}", m.mode() & 0o7777),
    )
}

fn sysctl(name: &str) -> Option<i64> {
    std::fs::read_to_string(format!("/proc/sys/{name}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_and_how() {
        let tun = Refusal::new(Step::Tun, Errno::EACCES).to_string();
        assert!(tun.contains("/dev/net/tun refused: Permission denied"), "{tun}");
        assert!(tun.contains("chmod 0666 /dev/net/tun"), "{tun}");
        let gone = Refusal::new(Step::Tun, Errno::ENOENT).to_string();
        assert!(gone.contains("modprobe tun"), "{gone}");
        let limit = Refusal::new(Step::Namespaces, Errno::ENOSPC).to_string();
        assert!(limit.contains("max_net_namespaces"), "{limit}");
        let full = Refusal::new(Step::UserNamespace, Errno::EPERM).to_string();
        assert!(full.contains("a user namespace refused"), "{full}");
        assert!(full.contains("sysctl"), "{full}");
    }
}
