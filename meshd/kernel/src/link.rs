//! Waiting for an interface.

use crate::error::{Context, OpError, Result};
use nlink::netlink::types::link::OperState;
use nlink::{Connection, Route};
use std::time::Duration;
use tokio::time::sleep;

/// The kernel notices a carrier in the background, mostly within a millisecond; until it has, it drops what is sent.
pub(crate) const PAUSES: u32 = 8;
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Waits until the interface carries packets.
pub(crate) async fn wait_operational(conn: &Connection<Route>, index: u32, name: &str) -> Result<()> {
    for pause in 0..=PAUSES {
        let link = conn.get_link_by_index(index).await;
        let link = link.doing(|| format!("look for {name}"))?;
        let link = link.ok_or_else(|| OpError::new(libc::ENODEV, format!("{name} is gone")))?;
        if link.operstate() == Some(OperState::Up) {
            return Ok(());
        }
        sleep(FIRST_PAUSE * 2u32.pow(pause)).await;
    }
    let message = format!("{name} is up but has no carrier: is its other end down?");
    Err(OpError::new(libc::ENETDOWN, message))
}
