//! The init of the kernel VM, which `hack/vm` boots: it loads the kernel's modules, runs the checks, says what came of
//! them, and ends the machine. Everything that runs in the VM is in its initramfs; nothing of it runs on the host.
//!
//! ```text
//! pid 1     init: mounts, modules, one check after another, the end of the machine
//!   sandbox   of meshd-lab, one a check: a cluster of network namespaces with real daemons
//! ```

mod boot;
mod checks;
mod console;

use console::Console;
use meshd_lab::sandbox;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    if let Some(code) = sandbox::enter(&checks::entries()) {
        return code;
    }
    if std::process::id() != 1 {
        eprintln!("meshd-vm is the init of a virtual machine: hack/vm boots it");
        return ExitCode::FAILURE;
    }
    let begin = Instant::now();
    let mut console = match boot::mounts().and_then(|()| Console::open()) {
        Ok(console) => console,
        Err(error) => {
            eprintln!("meshd-vm: {error:#}");
            boot::end();
        }
    };
    match boot::modules() {
        Ok(count) => console.booted(count),
        Err(error) => {
            console.failed("boot", &error);
            console.end(begin.elapsed());
            boot::end();
        }
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    checks::run(&wanted, &mut console);
    console.end(begin.elapsed());
    boot::end()
}
