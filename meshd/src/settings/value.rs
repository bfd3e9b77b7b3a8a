//! Values of the configuration that have a text form of their own.

use ipnetwork::IpNetwork;
use meshd_model::kernel::Mark;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// What carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WireguardMode {
    /// The kernel's WireGuard where it is there, `meshd-wg` otherwise.
    Auto,
    /// The kernel's.
    Kernel,
    /// `meshd-wg`, or another that speaks the cross-platform userspace protocol.
    Userspace,
}

/// Where a node's pod CIDRs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpamMode {
    /// From its Node's spec.podCIDRs.
    Kubernetes,
    /// It claims blocks for itself.
    Pool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `internal-ip`, `interface:NAME` or `cidr:PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointChoice {
    /// The Node's addresses of type InternalIP.
    InternalIp,
    /// Addresses of an interface.
    Interface(String),
    /// Addresses within a prefix.
    Cidr(IpNetwork),
}

/// Why a text is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl FromStr for EndpointChoice {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text == "internal-ip" {
            return Ok(Self::InternalIp);
        }
        match text.split_once(':') {
            Some(("interface", name)) if !name.is_empty() => Ok(Self::Interface(name.to_owned())),
            Some(("cidr", prefix)) => prefix
                .parse()
                .map(Self::Cidr)
                .map_err(|e| InvalidValue(format!("{prefix:?} is not a prefix like 192.0.2.0/24: {e}"))),
            _ => Err(InvalidValue(format!(
                "{text:?} is none of internal-ip, interface:NAME, cidr:PREFIX"
            ))),
        }
    }
}

impl fmt::Display for EndpointChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InternalIp => f.write_str("internal-ip"),
            Self::Interface(name) => write!(f, "interface:{name}"),
            Self::Cidr(prefix) => write!(f, "cidr:{prefix}"),
        }
    }
}

/// `VALUE/MASK`, both hexadecimal with `0x`, as `ip rule` writes marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkText(pub Mark);

impl Default for MarkText {
    /// One bit that neither kube-proxy (0x4000, 0x8000) nor other known users of marks take.
    fn default() -> Self {
        Self(Mark {
            value: 0x1000_0000,
            mask: 0x1000_0000,
        })
    }
}

impl FromStr for MarkText {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue(format!("{text:?} is not a mark like 0x10000000/0x10000000"));
        let hex = |part: &str| {
            let digits = part.strip_prefix("0x").filter(|d| !d.starts_with('+'));
            u32::from_str_radix(digits.ok_or_else(invalid)?, 16).map_err(|_| invalid())
        };
        let (value, mask) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self(Mark {
            value: hex(value)?,
            mask: hex(mask)?,
        }))
    }
}

impl fmt::Display for MarkText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.0.value, self.0.mask)
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(D::Error::custom)
            }
        }
    };
}

serde_as_text!(EndpointChoice);
serde_as_text!(MarkText);
