//! `meshd-cni`, as a container runtime starts it.
//!
//! It runs on the host, whose libraries are not ours, once for each call: for an image it is linked statically, and with
//! musl, which starts twice as fast as glibc, `cargo build -p meshd-cni --release --target x86_64-unknown-linux-musl`.

use meshd_cni::plugin;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
The CNI plugin of meshd. A container runtime starts it; it asks the meshd of its node, and prints the result.

It takes no arguments. In the environment:
  CNI_COMMAND       ADD, DEL, CHECK, GC, STATUS or VERSION
  CNI_CONTAINERID   the container (for ADD, DEL and CHECK, as all that follows)
  CNI_IFNAME        name of the interface in the pod
  CNI_NETNS         path of the pod's network namespace (ADD and CHECK)
  CNI_ARGS          K8S_POD_NAMESPACE=..;K8S_POD_NAME=..;K8S_POD_UID=.., and IP=.., MAC=.., IgnoreUnknown=1 (ADD)

On stdin, the network configuration, of which these keys are its own:
  socket            path of meshd's socket (default /run/meshd/meshd.sock)
  timeoutSeconds    how long it may take, 0.1 to 300 (default 10)
Of the capabilities it takes ips and mac; bandwidth and portMappings are for plugins behind it in the list.

On stdout, a result or an error, in JSON; the exit status is 0 or 1. The codes of errors:
    1  the CNI version is none of 0.3.0 to 1.1.0         11  try again later
    2  a key of the configuration is not supported       50  STATUS: no pod can be added
    3  CHECK: the container is not attached              51  the same, and pods that run may be cut off
    4  a variable is missing or wrong                   100  ADD: it is attached already
    5  a file or the socket cannot be used              101  no address is free
    6  what came is no JSON, or of another meshd        102  CHECK: it is not as ADD left it
    7  the configuration is wrong                       103  the kernel refused
    8  the pod's network namespace is gone
Where no meshd runs, DEL deletes the pod's interface and leaves a note, beside the socket, of what else is to be done.

For a node's containerd or CRI-O, in /etc/cni/net.d/10-meshd.conflist:
  {\"cniVersion\": \"1.1.0\", \"name\": \"meshd\", \"plugins\": [{\"type\": \"meshd-cni\"}]}
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
    let stdin = io::stdin();
    // A person who tries it would not end the input.
    let input = (!stdin.is_terminal()).then(|| stdin.lock());
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
