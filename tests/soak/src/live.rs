//! Which address belongs to whom: an address in an answer of ADD belongs to nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// The attachments that a runtime holds to be alive.
#[derive(Default)]
pub(crate) struct Live(Mutex<BTreeMap<IpAddr, String>>);

impl Live {
    /// Takes the addresses of an answer in; says what is wrong with it.
    pub(crate) fn add(&self, container: &str, addresses: &[IpAddr]) -> Result<(), String> {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            if let Some(holder) = live.insert(*address, container.to_owned()) {
                return Err(format!("{address} was given to {container}, and {holder} has it"));
            }
        }
        Ok(())
    }

    /// To be called before DEL, or whatever else frees them, begins.
    pub(crate) fn remove(&self, addresses: &[IpAddr]) {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            live.remove(address);
        }
    }

    /// Whom they belong to.
    pub(crate) fn containers(&self) -> BTreeSet<String> {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.values().cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
