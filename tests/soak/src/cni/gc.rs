//! GC, as a runtime asks for it now and then: what it names as valid stays, and all else goes.

use super::Soak;
use crate::plugin::{Call, Outcome, Plugin};
use anyhow::{Context, Result};
use meshd_model::cni::code;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long it may be tried, and what is not valid may take to go.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// While nothing else is asked.
pub(super) fn collect(soak: &Soak<'_>) -> Result<()> {
    let _turn = soak.turns.write().unwrap_or_else(PoisonError::into_inner);
    let valid: Vec<String> = soak.valid().iter().cloned().collect();
    let plugin = Plugin {
        command: vec![soak.place.plugin().into()],
        socket: &soak.place.socket(),
    };
    let end = Instant::now() + PATIENCE;
    let mut call = Call::new("GC", "", "");
    call.valid = Some(&valid);
    loop {
        match plugin.call(call)? {
            (Outcome::Done(_), took) => {
                soak.report.done("GC", took);
                break;
            }
            (Outcome::Error(found, said), _) => {
                soak.report.error("GC", found, &said);
                if found != u64::from(code::TRY_AGAIN) || Instant::now() > end {
                    soak.violated(format!("GC: {said}"));
                    return Ok(());
                }
            }
            (Outcome::Killed, _) => {}
        }
        std::thread::sleep(PAUSE);
    }
    let valid: BTreeSet<String> = valid.into_iter().collect();
    let lost: Vec<String> = soak
        .live
        .containers()
        .difference(&leases(soak)?)
        .cloned()
        .collect();
    if !lost.is_empty() {
        soak.violated(format!("GC has removed what lives: {lost:?}"));
    }
    while Instant::now() < end {
        if leases(soak)?.is_subset(&valid) {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    let left: Vec<String> = leases(soak)?.difference(&valid).cloned().collect();
    soak.violated(format!("GC has left what is not valid: {left:?}"));
    Ok(())
}

/// The containers that have a lease.
fn leases(soak: &Soak<'_>) -> Result<BTreeSet<String>> {
    let folder = soak.place.path("state/store/leases");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let container = |name: String| Some(name.strip_suffix(".lease")?.split('@').next()?.to_owned());
    Ok(entries
        .flatten()
        .filter_map(|entry| container(entry.file_name().to_string_lossy().into_owned()))
        .collect())
}
