//! A pod's attachment to the network, and the lease that makes it durable.

use crate::kernel::POD_IFNAME_PREFIX;
use crate::pod::PodRef;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// What the CNI specification calls an attachment: a container and the name of its interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: String,
}

impl AttachmentId {
    /// Name of the host's end of its veth pair: the prefix and 55 bits of the id's hash in base32. The same in every
    /// version, since interfaces are found again by it.
    #[must_use]
    pub fn host_ifname(&self) -> String {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let hash = self.stable_hash();
        let tail = (0..11).map(|i| char::from(ALPHABET[(hash >> (5 * i)) as usize & 31]));
        POD_IFNAME_PREFIX.chars().chain(tail).collect()
    }

    /// FNV-1a over both parts of the id, then mixed so that all bits depend on all of it. The same in every version.
    #[must_use]
    pub fn stable_hash(&self) -> u64 {
        let bytes = self.container_id.bytes().chain([0]).chain(self.ifname.bytes());
        let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Where an attachment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeasePhase {
    /// Addresses are taken; the kernel's part may be half done.
    Adding,
    /// ADD has succeeded, or was about to say so.
    Ready,
    /// The kernel's part is being taken down; the addresses are still taken.
    Deleting,
}

/// What the store keeps of an attachment. Written before its addresses are handed out, removed after they are
/// truly free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose it is.
    pub id: AttachmentId,
    /// Where it stands.
    pub phase: LeasePhase,
    /// The pod, when the runtime named it.
    pub pod: Option<PodRef>,
    /// `CNI_NETNS`: path of the pod's network namespace.
    pub netns: String,
    /// Name of the host's end of the veth pair.
    pub host_ifname: String,
    /// MAC of the host's end.
    pub host_mac: MacAddr,
    /// MAC of the pod's end.
    pub mac: MacAddr,
    /// The pod's addresses, one a family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// See [`crate::cni::Add::token`].
    #[serde(default)]
    pub token: u64,
    /// Whether the pod had a default route when this was attached, as with the second interface of one container. That
    /// one stays: what the pod sends leaves by this interface only if it is sent from its addresses.
    #[serde(default)]
    pub secondary: bool,
    /// `name` of the network configuration; empty where it is not known.
    #[serde(default)]
    pub network: String,
}

/// An Ethernet address; shown and serialised as `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether one interface can have it: neither a group's nor all zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address is six hexadecimal bytes with colons between them")]
pub struct InvalidMac;

impl std::str::FromStr for MacAddr {
    type Err = InvalidMac;
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(InvalidMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() {
            Err(InvalidMac)
        } else {
            Ok(MacAddr(bytes))
        }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
