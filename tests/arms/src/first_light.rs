//! The scenario of the demo, on each arm.

use crate::arms::{Trouble, trial};
use crate::programs;
use crate::sandboxed::with_folder;
use libtest_mimic::Trial;
use meshd_lab::scenario::{self, Order};
use meshd_scenario::{Report, Scenario};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("netns", "first_light", on_netns)]
}

fn on_netns() -> Result<(), Trouble> {
    let order = Order {
        scenario: Scenario::FIRST_LIGHT.to_owned(),
        nodes: None,
        binaries: programs::find()?,
    };
    with_folder(|folder| judge(&scenario::run(&order, folder, &mut drop)?))
}

/// Every proof must hold.
pub(crate) fn judge(report: &Report) -> Result<(), Trouble> {
    if report.held {
        return Ok(());
    }
    let mut why: Vec<String> = report
        .proofs
        .iter()
        .filter(|p| !p.held)
        .map(|p| format!("{} ({}): {} {:?}", p.name, p.step, p.detail, p.numbers))
        .collect();
    why.extend(report.not_run.iter().map(|step| format!("{step} was not run")));
    Err(Trouble::Failed(why.join("\n")))
}
