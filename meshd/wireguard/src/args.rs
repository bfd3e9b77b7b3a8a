//! The command line.

use clap::Parser;
use std::path::PathBuf;

/// A userspace WireGuard device.
///
/// Makes the TUN interface IFNAME, or takes over the one that an earlier meshd-wg left, and answers `wg show` and
/// `wg set` on the socket DIR/IFNAME.sock. The interface is persistent: it keeps its addresses and routes when
/// meshd-wg ends, in whatever way, and drops packets until meshd-wg runs again. SIGTERM and SIGINT end meshd-wg and
/// remove the socket; `meshd-wg --delete IFNAME` removes the interface.
///
/// Needs CAP_NET_ADMIN in the network namespace, and permission to open /dev/net/tun.
#[derive(Debug, Parser)]
#[command(name = "meshd-wg", version)]
pub(crate) struct Args {
    /// Stay in the foreground and log to standard error [else: goes to the background once it answers]
    #[arg(short, long)]
    pub(crate) foreground: bool,

    /// Folder of the control socket; made if it is not there
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/run/wireguard",
        env = "MESHD_WG_SOCKET_DIR"
    )]
    pub(crate) socket_dir: PathBuf,

    /// Touch nothing, and only wait to be ended, where the kernel has WireGuard of its own and IFNAME is no TUN
    /// interface; needs --foreground, unless with --answers
    #[arg(long, conflicts_with = "delete")]
    pub(crate) unless_kernel: bool,

    /// Exit with 0 if a meshd-wg answers on its socket, or with --unless-kernel is not needed; with 1 if not. For
    /// probes
    #[arg(long, conflicts_with_all = ["foreground", "delete"])]
    pub(crate) answers: bool,

    /// Remove the interface, with its addresses and routes; no meshd-wg may be running on it
    #[arg(long, conflicts_with = "foreground")]
    pub(crate) delete: bool,

    /// Read and write TUN packets one by one, without segmentation offload
    #[arg(long)]
    pub(crate) no_offload: bool,

    /// Says "ready" on standard output, then closes it: how the background process reports to its parent
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) report: bool,

    /// Name of the interface, at most 15 bytes
    #[arg(value_parser = ifname)]
    pub(crate) ifname: String,
}

/// What Linux takes for a name (dev_valid_name), and no `%`, which it would fill in.
fn ifname(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 {
        return Err("an interface name has 1 to 15 bytes".into());
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    if text == "." || text == ".." || text.chars().any(bad) {
        return Err(
            "an interface name has no slash, colon, percent sign or blank, and is not . or ..".into(),
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        for bad in ["", "a/b", "a b", "..", "wg%d", "sixteen-bytes-xx"] {
            assert!(ifname(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ifname("mesh0").as_deref(), Ok("mesh0"));
    }
}
