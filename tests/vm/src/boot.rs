//! What an init does before and after everything else.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};

/// The kernel's modules, named `NUMBER-NAME.ko` in the order in which they are to be loaded.
const MODULES: &str = "/modules";

/// Mounts what programs expect to be there.
pub(crate) fn mounts() -> Result<()> {
    for (kind, folder) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
        mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} at {folder}"))?;
    }
    Ok(())
}

/// Loads the modules; gives how many.
pub(crate) fn modules() -> Result<usize> {
    let entries = fs::read_dir(MODULES).with_context(|| format!("list {MODULES}"))?;
    let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in &paths {
        let tried = || format!("load the kernel module {}", path.display());
        let file = File::open(path).with_context(tried)?;
        system::load(&file).with_context(tried)?;
    }
    Ok(paths.len())
}

/// Ends the machine: QEMU was told not to start it again.
pub(crate) fn end() -> ! {
    system::restart();
    // An init that returned would be a kernel panic, which ends the machine too.
    std::process::exit(1)
}

/// Three calls that nothing else here needs.
#[allow(unsafe_code)]
pub(crate) mod system {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsFd, AsRawFd};

    /// finit_module(2), without parameters.
    pub(crate) fn load(module: &File) -> io::Result<()> {
        // SAFETY: the descriptor is open, and the parameters are a string that ends with a zero byte.
        let done = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Waits until a terminal has sent what was written to it.
    pub(crate) fn drain(terminal: impl AsFd) {
        // SAFETY: the descriptor is open as long as it is borrowed.
        let _ = unsafe { libc::tcdrain(terminal.as_fd().as_raw_fd()) };
    }

    /// reboot(2): QEMU ends instead, since it was told so.
    pub(crate) fn restart() {
        // SAFETY: it takes its argument by value.
        let _ = unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    }
}
