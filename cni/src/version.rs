//! Versions of the CNI specification.

use crate::error;
use meshd_model::cni::{CniError, code};

/// A version whose configuration is read and whose result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0 brought CHECK.
    V0_4_0,
    /// 1.0.0 took the family out of the result's addresses.
    V1_0_0,
    /// 1.1.0 brought an interface's MTU.
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Version; 5] = [
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    /// Spoken where none was agreed on.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Error code 1 for every other text.
    pub fn parse(text: &str) -> Result<Version, CniError> {
        let found = Version::ALL.into_iter().find(|version| version.as_str() == text);
        found.ok_or_else(|| {
            error(
                code::VERSION,
                format!("cniVersion {} is not supported", crate::quoted(text)),
                format!("use one of {}", Version::ALL.map(Version::as_str).join(", ")),
            )
        })
    }
}
