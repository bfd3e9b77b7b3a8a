//! The process that keeps a lab: outside its namespaces, in a session of its own.

use super::place::{Place, State};
use anyhow::{Context, Result, bail};
use meshd_lab::cluster::relay;
use meshd_lab::keep::{ENTRY, Event, Order};
use meshd_lab::sandbox::{Sandbox, StartError};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// First argument of the own program when it is to be a supervisor.
const MAGIC: &str = "__lab-supervisor";
const LOG: &str = "supervisor.log";

/// What a supervisor is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The lab's folder.
    pub(super) folder: PathBuf,
    /// What is to be kept.
    pub(super) order: Order,
    /// Where the user's own API server is.
    pub(super) api_server: Option<(String, u16)>,
}

/// What a supervisor says on the way up, one JSON object on a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Doing(String),
    Up,
    Failed(String),
}

/// Starts a supervisor; returns when the lab is up.
pub(super) fn start(job: &Job, tell: &mut dyn FnMut(String)) -> Result<()> {
    let log = File::create(job.folder.join(LOG)).context("open the supervisor's log")?;
    let mut child = Command::new("/proc/self/exe")
        .arg(MAGIC)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the lab's supervisor")?;
    let mut stdin = child.stdin.take().context("the supervisor has no stdin")?;
    serde_json::to_writer(&stdin, job).context("tell the supervisor what to do")?;
    stdin.write_all(b"\n").context("tell the supervisor what to do")?;
    drop(stdin);
    let stdout = child.stdout.take().context("the supervisor has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        match serde_json::from_str(&line.context("hear the supervisor")?) {
            Ok(Word::Doing(what)) => tell(what),
            Ok(Word::Up) => return Ok(()),
            Ok(Word::Failed(why)) => bail!("{why}"),
            Err(error) => bail!("the supervisor is not understood: {error}"),
        }
    }
    bail!("the lab's supervisor ended without a word")
}

/// Is the supervisor, if this process was started to be one. Call it before any thread is started.
pub(crate) fn enter() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some(MAGIC) {
        return None;
    }
    match keep() {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            let _ = say(&Word::Failed(format!("{error:#}")));
            eprintln!("{error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

/// Whoever started us may be gone, once the lab is up.
fn say(word: &Word) -> std::io::Result<()> {
    let mut text = serde_json::to_string(word)?;
    text.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn keep() -> Result<()> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("hear what to do")?;
    let job: Job = serde_json::from_str(&line).context("what to do is not understood")?;
    // The terminal's signals are not for us, and its end is not ours.
    nix::unistd::setsid().context("begin a session")?;
    let place = Place::at(&job.folder);
    let _lock = place.lock()?;
    if let Some((host, port)) = &job.api_server {
        start_relay(&job.folder, host.clone(), *port)?;
    }
    let mut sandbox = match Sandbox::start(ENTRY.name, &job.order, &job.folder) {
        Ok(sandbox) => sandbox,
        Err(StartError::Refused(refusal)) => bail!("{refusal}"),
        Err(StartError::Failed(error)) => return Err(error),
    };
    let mut is_up = false;
    while let Some(message) = sandbox.message() {
        match serde_json::from_value(message) {
            Ok(Event::Up) => {
                let init = sandbox.init_pid().context("the sandbox has no init")?;
                place.write_state(&State::new(std::process::id(), init)?)?;
                is_up = true;
                let _ = say(&Word::Up);
            }
            // Whoever gave up waiting wants no lab: nobody could take down what is half up.
            Ok(Event::Doing(what)) if !is_up => {
                say(&Word::Doing(what)).context("`meshctl lab up` ended before the lab was up")?;
            }
            Ok(Event::Doing(_)) => {}
            Err(error) => eprintln!("not understood: {error}"),
        }
    }
    let ended = sandbox.finish();
    place.write_left(&ended.remains)?;
    match ended.failure {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}

fn start_relay(folder: &Path, host: String, port: u16) -> Result<()> {
    let folder = folder.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a tokio runtime")?;
    std::thread::Builder::new()
        .name("relay".into())
        .spawn(move || {
            if let Err(error) = runtime.block_on(relay::outside(&folder, &host, port)) {
                eprintln!("the relay to the API server: {error:#}");
            }
        })
        .context("start the relay's thread")?;
    Ok(())
}
