//! Blocks: the parts of the cluster's pod CIDRs that nodes claim for themselves in IPAM's pool mode.
//!
//! A block is claimed by creating an object whose name is the block, so the API server's uniqueness is the lock:
//!
//! ```text
//! 10.244.3.64/26       10-244-3-64-26
//! fd00:244::1:40/122   fd00-244--1-40-122
//! ```

use crate::net::canonical;
use crate::node::{NodeName, NodeUid};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// A block that somebody has claimed, as its object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The block, canonical: it is the object's name.
    pub cidr: IpNetwork,
    /// `metadata.uid` of the object: tells it from one that is made later under its name.
    pub object: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// The Node in its ownerReferences; without one it is nobody's, and taken all the same.
    pub owner: Option<Owner>,
    /// Whether its owner gives it back: nothing is handed out of it any more.
    pub released: bool,
}

/// Whose a block is: one incarnation of a Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `metadata.name` of the Node.
    pub node: NodeName,
    /// Its `metadata.uid`: a Node that is made again under the name is not the owner.
    pub uid: NodeUid,
}

/// A text that is no block's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no block: a block's name is its prefix with '-' for '.', ':' and '/', like 10-244-3-64-26")]
pub struct NoBlock;

/// The name of a block's object; the prefix is canonical.
#[must_use]
pub fn name(cidr: IpNetwork) -> String {
    canonical(cidr).to_string().replace(['.', ':', '/'], "-")
}

/// The block of a name.
///
/// # Errors
/// For every text but the one that [`name`] makes of the block.
pub fn parse(text: &str) -> Result<IpNetwork, NoBlock> {
    let (address, length) = text.rsplit_once('-').ok_or(NoBlock)?;
    let read = |mark: &str| format!("{}/{length}", address.replace('-', mark)).parse().ok();
    let cidr: IpNetwork = read(".").or_else(|| read(":")).ok_or(NoBlock)?;
    if name(cidr) != text {
        return Err(NoBlock);
    }
    Ok(cidr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_block_and_a_block_has_one_name() {
        for (cidr, text) in [
            ("10.244.3.64/26", "10-244-3-64-26"),
            ("10.0.0.0/8", "10-0-0-0-8"),
            ("fd00:244::1:40/122", "fd00-244--1-40-122"),
            ("fd00::/122", "fd00---122"),
            ("fd00:1:2:3:4:5:6:40/122", "fd00-1-2-3-4-5-6-40-122"),
        ] {
            let cidr: IpNetwork = cidr.parse().unwrap();
            assert_eq!(name(cidr), text);
            assert_eq!(parse(text), Ok(cidr));
        }
        for text in [
            "",
            "-",
            "10",
            "10-244-3-64",
            "10-244-3-65-26",
            "10-244-03-64-26",
            "10-244-3-64-026",
            "10-244-3-64-33",
            "10.244.3.64-26",
            "10-244-3-64/26",
            "10-244-3-64-+26",
            "FD00---122",
            "fd00-0--122",
            "fd00--0-0-122",
            "fd00---129",
            "fd00-0-0-0-0-0-0-0-122",
            "--ffff-10-0-0-0-122 ",
            "10-244-3-64-26-",
            "-10-244-3-64-26",
        ] {
            assert_eq!(parse(text), Err(NoBlock), "{text:?}");
        }
    }
}
