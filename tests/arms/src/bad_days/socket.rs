//! Strangers at the daemon's local socket.

use super::{everyone_reaches_everyone, node, tried, with_cluster};
use anyhow::{Context, Result, ensure};
use meshd_lab::cluster::agent;
use meshd_lab::sandbox::{Inside, Reporter};
use meshd_model::cni::{REQUEST_MAX, Response, code};
use meshd_scenario::Arm;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// First argument of the own binary when it asks as another user.
pub(crate) const HELPER: &str = "__ask-as-another";
/// Nobody.
const OTHER: u32 = 65534;

pub(super) fn inside(inside: Inside) -> Result<()> {
    let reporter = inside.reporter;
    with_cluster(inside, 2, |arm| {
        let pods = vec![
            tried("ADD", arm.add_pod(&node(1), "a"))?,
            tried("ADD", arm.add_pod(&node(2), "b"))?,
        ];
        let socket = arm.cluster().node(&node(1))?.paths().socket.clone();
        nonsense_gets_an_answer(&socket)?;
        silence_blocks_nobody(&socket)?;
        another_user_is_refused(&socket, reporter)?;
        // The daemon lives, and so do its pods.
        agent::status(&socket, Duration::from_secs(2)).context("the daemon afterwards")?;
        everyone_reaches_everyone(arm, &pods)
    })
}

fn nonsense_gets_an_answer(socket: &Path) -> Result<()> {
    let mut long = vec![b' '; REQUEST_MAX + 1];
    long.push(b'\n');
    let cases: [(&str, &[u8]); 5] = [
        ("too long", &long),
        ("not JSON", b"hello\n"),
        ("not UTF-8", b"\xff\xfe\n"),
        ("no request", b"{\"deadline_ms\":1000}\n"),
        (
            "an unknown key",
            b"{\"deadline_ms\":1000,\"call\":\"status\",\"more\":1}\n",
        ),
    ];
    for (what, bytes) in cases {
        let answer = agent::raw(socket, bytes, Duration::from_secs(5)).with_context(|| what.to_owned())?;
        let answer: Response = serde_json::from_slice(&answer).with_context(|| what.to_owned())?;
        let Response::Error(error) = &answer else {
            anyhow::bail!("{what} was answered {answer:?}");
        };
        ensure!(error.code == code::DECODE, "{what}: {error:?}");
        ensure!(!error.msg.is_empty(), "{what}: an error without words");
    }
    Ok(())
}

/// Half a request, kept open: others are served meanwhile.
fn silence_blocks_nobody(socket: &Path) -> Result<()> {
    let mut quiet = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(socket).context("connect")?;
        stream
            .write_all(b"{\"deadline_ms\"")
            .context("write half a request")?;
        quiet.push(stream);
    }
    agent::status(socket, Duration::from_secs(2)).context("beside silent callers")?;
    Ok(())
}

/// Where there is another user: in a user namespace of one's own there is none.
fn another_user_is_refused(socket: &Path, reporter: Reporter) -> Result<()> {
    let folders = socket.ancestors().skip(1).take_while(|f| *f != Path::new("/run"));
    let mut ways = Vec::new();
    for folder in folders {
        ways.push((folder.to_owned(), std::fs::metadata(folder)?.permissions()));
    }
    let closed = ask_as_another(socket)?;
    // The folder keeps others out; with the door open, the daemon itself must.
    for (folder, _) in &ways {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    }
    let before = std::fs::metadata(socket)?.permissions();
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777))?;
    let open = ask_as_another(socket);
    std::fs::set_permissions(socket, before)?;
    for (folder, permissions) in ways {
        std::fs::set_permissions(folder, permissions)?;
    }
    let (Some(closed), Some(open)) = (closed, open?) else {
        reporter
            .send(&"skipped: another user at the socket, because there is no other in this user namespace");
        return Ok(());
    };
    ensure!(
        closed.contains("Permission denied"),
        "through a closed folder: {closed}"
    );
    ensure!(
        open.contains("not permitted") && open.contains(&OTHER.to_string()),
        "through an open one: {open}"
    );
    Ok(())
}

/// What another user hears; None if there is no other.
fn ask_as_another(socket: &Path) -> Result<Option<String>> {
    let asked = Command::new("/proc/self/exe")
        .arg(HELPER)
        .arg(socket)
        .uid(OTHER)
        .gid(OTHER)
        .output();
    match asked {
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Err(error) if error.raw_os_error() == Some(libc_einval()) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error).context("start a process as another user"),
    }
}

/// What setuid says of a user that is not mapped.
fn libc_einval() -> i32 {
    nix::errno::Errno::EINVAL as i32
}

/// The own binary, asking as the user it was started as.
pub(crate) fn helper() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(HELPER) {
        return None;
    }
    let socket = arguments.next()?;
    let mut answer = String::new();
    let outcome = UnixStream::connect(socket).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let _ = stream.write_all(b"{\"deadline_ms\":1000,\"call\":\"status\"}\n");
        stream.read_to_string(&mut answer)
    });
    match outcome {
        Ok(_) => println!("{answer}"),
        Err(error) => println!("{error}"),
    }
    Some(ExitCode::SUCCESS)
}
