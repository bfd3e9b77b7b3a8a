//! What daemons have recorded: the agent does the same again, and no secret is in it.

use super::{everyone_reaches_everyone, node, tried, with_cluster};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshd_lab::sandbox::{HOST, Inside};
use meshd_scenario::Arm;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) fn inside(inside: Inside) -> Result<()> {
    with_cluster(inside, 2, |arm| {
        let pods = vec![
            tried("ADD", arm.add_pod(&node(1), "a"))?,
            tried("ADD", arm.add_pod(&node(2), "b"))?,
        ];
        everyone_reaches_everyone(arm, &pods)?;
        arm.kill_agent(&node(1))?;
        arm.start_agent(&node(1))?;
        arm.wait_ready(&node(1), super::PATIENCE)?;
        let status = serde_json::to_string(&arm.status(&node(2))?)?;
        for pod in &pods {
            tried("DEL", arm.delete_pod(pod))?;
        }
        for number in 1..=2 {
            let node = arm.cluster().node(&node(number))?;
            let paths = node.paths();
            let done = node.run_meshd(&["replay", &paths.recording.to_string_lossy()])?;
            ensure!(done.status.success(), "replay: {}{}", done.stdout, done.stderr);
            no_secret_in(&paths.state, &status)?;
        }
        Ok(())
    })
}

/// The node's private key, as it is written and as bytes, in no recording, log or status.
fn no_secret_in(state: &Path, status: &str) -> Result<()> {
    let file = state.join("wireguard.key");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let text = text.trim();
    ensure!(text.len() >= 43, "{} holds no key", file.display());
    let needles = [
        text.as_bytes().to_vec(),
        STANDARD.decode(text).context("the key is not base64")?,
    ];
    ensure!(!status.contains(text), "the private key is in the status");
    let mut searched = 0;
    for path in files(Path::new(HOST))? {
        let bytes = fs::read(&path)?;
        searched += bytes.len();
        for needle in &needles {
            let found = bytes.windows(needle.len()).any(|w| w == needle);
            ensure!(
                !found,
                "the private key of {} is in {}",
                state.display(),
                path.display()
            );
        }
    }
    ensure!(searched > 1000, "there was nothing to search");
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    Ok(found)
}
