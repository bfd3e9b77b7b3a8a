//! Whether a device answers, for probes.

use crate::args::Args;
use crate::standby;
use anyhow::{Context, bail};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the device may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// Changes nothing, and tells no key: what answers is the loop that carries the packets.
const QUESTION: &[u8] = b"set=1\n\n";
const ANSWER: &[u8] = b"errno=0\n\n";

pub(crate) fn answers(args: &Args) -> anyhow::Result<()> {
    if args.unless_kernel && standby::reason(&args.ifname)?.is_some() {
        return Ok(());
    }
    let path = args.socket_dir.join(format!("{}.sock", args.ifname));
    let mut stream =
        UnixStream::connect(&path).with_context(|| format!("no device answers on {}", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut answer = [0; ANSWER.len()];
    stream
        .write_all(QUESTION)
        .and_then(|()| stream.read_exact(&mut answer))
        .with_context(|| format!("ask the device on {}", path.display()))?;
    if answer != ANSWER {
        bail!("the device on {} answers something else", path.display());
    }
    Ok(())
}
