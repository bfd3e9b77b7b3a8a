//! `meshd-cni`, as a container runtime starts it.
//!
//! It runs on the host, whose libraries are not ours: for an image it is linked statically,
//! `cargo rustc -p meshd-cni --release --bin meshd-cni -- -C target-feature=+crt-static`.

use meshd_cni::plugin;
use meshd_cni::version::Version;
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
The CNI plugin of meshd. A container runtime starts it; it asks the meshd of its node, and prints the result.

It takes no arguments. In the environment:
  CNI_COMMAND       ADD, DEL, CHECK or VERSION
  CNI_CONTAINERID   the container (not for VERSION, as all that follows)
  CNI_IFNAME        name of the interface in the pod
  CNI_NETNS         path of the pod's network namespace (ADD and CHECK)
  CNI_ARGS          K8S_POD_NAMESPACE=..;K8S_POD_NAME=..;K8S_POD_UID=.. (ADD)

On stdin, the network configuration, of which these keys are its own:
  socket            path of meshd's socket (default /run/meshd/meshd.sock)
  timeoutSeconds    how long it may take, 0.1 to 300 (default 10)

On stdout, a result or an error, in JSON; the exit status is 0 or 1. Error code 11 says: try again later.

For a node's containerd or CRI-O, in /etc/cni/net.d/10-meshd.conflist:
  {\"cniVersion\": \"1.0.0\", \"name\": \"meshd\", \"plugins\": [{\"type\": \"meshd-cni\"}]}
By hand:
  CNI_COMMAND=VERSION meshd-cni
";

fn main() -> ExitCode {
    let started = Instant::now();
    match std::env::args_os().nth(1) {
        None => {}
        Some(argument) if argument == "--help" || argument == "-h" => return print(HELP, true),
        Some(argument) if argument == "--version" || argument == "-V" => {
            return print(concat!("meshd-cni ", env!("CARGO_PKG_VERSION"), "\n"), true);
        }
        Some(_) => {
            eprint!("meshd-cni takes no arguments.\n\n{HELP}");
            return ExitCode::from(2);
        }
    }
    let input: Box<dyn Read + Send> = if io::stdin().is_terminal() {
        // A person tries it; nobody would end the input.
        let version = format!("{{\"cniVersion\":\"{}\"}}", Version::NEWEST.as_str());
        Box::new(io::Cursor::new(version))
    } else {
        Box::new(io::stdin())
    };
    let outcome = plugin::run(started, &|name| std::env::var_os(name), input);
    match outcome.output {
        Some(output) => print(&format!("{output}\n"), outcome.success),
        None => ExitCode::SUCCESS,
    }
}

fn print(text: &str, success: bool) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match (written, success) {
        (Ok(()), true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
