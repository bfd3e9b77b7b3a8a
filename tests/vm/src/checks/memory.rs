//! Where in a daemon's memory its private key is.

use super::lab::Prover;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshd_lab::NetnsArm;
use meshd_lab::cluster::node::Node;
use meshd_scenario::Arm;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Copies as bytes, and as text.
const WANTED: (u64, u64) = (1, 0);
const LOOKS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(500);

/// What a daemon writes to its device and reads from it holds the key; what was freed is not to. Stacks are left out:
/// what is moved leaves copies there, until something else is called.
pub(super) fn prove(arm: &mut NetnsArm, prover: Prover) -> Result<()> {
    let mut numbers = Vec::new();
    let mut held = true;
    for name in arm.nodes() {
        let node = arm.cluster().node(&name)?;
        let text =
            fs::read_to_string(node.paths().state.join("wireguard.key")).context("read a node's key")?;
        let text = text.trim();
        let key = STANDARD.decode(text).context("decode a node's key")?;
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let look = || -> Result<(u64, u64)> {
            let heap = heap_of(node)?;
            let as_text = count(&heap, text.as_bytes()) + count(&heap, hex.as_bytes());
            Ok((count(&heap, &key), as_text))
        };
        // An answer of the kernel's that is just being read holds it as well; what was freed stays.
        let mut found = look()?;
        for _ in 1..LOOKS {
            if found == WANTED {
                break;
            }
            std::thread::sleep(BETWEEN);
            found = look()?;
        }
        let (raw, as_text) = found;
        held &= found == WANTED;
        numbers.push((format!("{name}_raw"), raw));
        numbers.push((format!("{name}_as_text"), as_text));
    }
    let numbers: Vec<(&str, u64)> = numbers.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    prover.proof(
        "a daemon's heap holds its private key once, and in no other form",
        held,
        &numbers,
        "",
    );
    Ok(())
}

fn heap_of(node: &Node) -> Result<Vec<u8>> {
    let pid = node.agent_pid()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("read a daemon's maps")?;
    let range = maps.lines().find(|line| line.ends_with("[heap]"));
    let range = range.and_then(|line| line.split_whitespace().next()?.split_once('-'));
    let (start, end) = range.context("a daemon without a heap")?;
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    let mut heap = vec![0; usize::try_from(end - start)?];
    let memory = File::open(format!("/proc/{pid}/mem")).context("open a daemon's memory")?;
    memory
        .read_exact_at(&mut heap, start)
        .context("read a daemon's heap")?;
    Ok(heap)
}

fn count(heap: &[u8], what: &[u8]) -> u64 {
    let is_it = |window: &&[u8]| window[0] == what[0] && *window == what;
    heap.windows(what.len()).filter(is_it).count() as u64
}
