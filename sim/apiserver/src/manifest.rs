//! Manifests as users write them.

/// Why a manifest was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("document {document} of the manifest: {message}")]
pub struct ManifestError {
    /// Which, from 1.
    pub document: usize,
    /// What was tried and what came of it.
    pub message: String,
}
