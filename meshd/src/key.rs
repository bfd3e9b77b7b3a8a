//! The node's WireGuard key: generated once with the OS's randomness, kept 0600 under the state folder, never
//! logged, wiped from memory when dropped.

use base64::{Engine, engine::general_purpose::STANDARD};
use meshd_model::PublicKey;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

#[cfg(test)]
mod tests;

/// The key's file under the state folder.
pub const FILE: &str = "wireguard.key";
/// What a start that was killed while it made the key leaves.
pub const TEMPORARY: &str = "wireguard.key.new";
/// 32 bytes in base64.
const TEXT_LEN: usize = 44;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
    /// The file must not be trusted.
    #[error("the key {path} is refused: {reason}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The system has no randomness.
    #[error("the system gives no randomness for a new key: {0}")]
    Random(String),
}

/// The node's private key and its public half.
pub struct NodeKey {
    secret: Zeroizing<[u8; 32]>,
    /// The public half.
    pub public: PublicKey,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl NodeKey {
    fn new(secret: Zeroizing<[u8; 32]>) -> Self {
        let private = StaticSecret::from(*secret);
        let public = PublicKey(x25519_dalek::PublicKey::from(&private).to_bytes());
        Self { secret, public }
    }

    /// The private key, for the driver that keys the device.
    #[must_use]
    pub fn secret(&self) -> &Zeroizing<[u8; 32]> {
        &self.secret
    }
}

/// Reads the node's key, or makes one where there is none yet.
pub fn load_or_generate(state_dir: &Path) -> Result<NodeKey, KeyError> {
    prepare_folder(state_dir)?;
    if let Some(key) = load(state_dir)? {
        return Ok(key);
    }
    let key = generate()?;
    save(state_dir, &key)?;
    tracing::info!(public_key = %key.public, "generated the node's WireGuard key");
    Ok(key)
}

/// Makes the state folder, 0700, or checks that nobody else can put a key of his own into the one that is there.
fn prepare_folder(state_dir: &Path) -> Result<(), KeyError> {
    let io = |what| move |error| io_error(what, state_dir, error);
    let created = DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    created.map_err(io("make the state folder"))?;
    let metadata = std::fs::metadata(state_dir).map_err(io("look at the state folder"))?;
    let owned = metadata.uid() == geteuid().as_raw() || metadata.uid() == 0;
    if owned && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(KeyError::Refused {
        path: state_dir.join(FILE),
        reason: format!(
            "its folder has mode {:o} and belongs to uid {}, so others could replace the key; run: chown {} {dir} && chmod 0700 {dir}",
            metadata.mode() & 0o7777,
            metadata.uid(),
            geteuid(),
            dir = state_dir.display()
        ),
    })
}

/// Reads the key; none if there is no file. A file that others could have read or written is refused: whoever has
/// the key reads the node's traffic.
fn load(state_dir: &Path) -> Result<Option<NodeKey>, KeyError> {
    let path = state_dir.join(FILE);
    let refused = |reason: String| KeyError::Refused {
        path: path.clone(),
        reason,
    };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(refused("it is a symbolic link; put the file itself there".into()));
        }
        Err(error) => return Err(io_error("open the key", &path, error)),
    };
    let metadata = file
        .metadata()
        .map_err(|e| io_error("look at the key", &path, e))?;
    if !metadata.is_file() {
        return Err(refused("it is not a regular file; remove it".into()));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(refused(format!(
            "it belongs to uid {}, the daemon runs as uid {}; if the key is the node's, run: chown {} {}",
            metadata.uid(),
            geteuid(),
            geteuid(),
            path.display()
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refused(format!(
            "its mode is {:04o}, so others may have read it; remove it for a new key (the node's peers learn it by \
             themselves), or if nobody has: chmod 0600 {}",
            metadata.mode() & 0o7777,
            path.display()
        )));
    }
    let secret = read(&file)
        .map_err(|e| io_error("read the key", &path, e))?
        .ok_or_else(|| {
            refused("it does not hold 44 characters of base64 for 32 bytes; remove it for a new key".into())
        })?;
    Ok(Some(NodeKey::new(secret)))
}

fn read(file: &File) -> io::Result<Option<Zeroizing<[u8; 32]>>> {
    // Of full capacity from the start: growing would leave copies behind.
    let mut text = Zeroizing::new([0u8; TEXT_LEN + 2]);
    let mut len = 0;
    let mut file = file;
    while len < text.len() {
        match file.read(&mut text[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let text = text[..len].strip_suffix(b"\n").unwrap_or(&text[..len]);
    if text.len() != TEXT_LEN {
        return Ok(None);
    }
    // The decoder wants room for what 44 characters could hold at most.
    let mut bytes = Zeroizing::new([0u8; 33]);
    let decoded = STANDARD.decode_slice(text, bytes.as_mut_slice());
    if !matches!(decoded, Ok(32)) || bytes.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let mut secret = Zeroizing::new([0u8; 32]);
    secret.copy_from_slice(&bytes[..32]);
    Ok(Some(secret))
}

fn generate() -> Result<NodeKey, KeyError> {
    let mut secret = Zeroizing::new([0u8; 32]);
    getrandom::fill(secret.as_mut_slice()).map_err(|e| KeyError::Random(e.to_string()))?;
    // As `wg genkey` does, so that every tool shows the same key (RFC 7748, section 5).
    secret[0] &= 248;
    secret[31] = (secret[31] & 127) | 64;
    Ok(NodeKey::new(secret))
}

/// Writes beside, flushes, renames: at any moment there is either no key or a whole one.
fn save(state_dir: &Path, key: &NodeKey) -> Result<(), KeyError> {
    let temporary = state_dir.join(TEMPORARY);
    let path = state_dir.join(FILE);
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |error| io_error(what, &path, error)
    };
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove the half-written key", &temporary, error));
        }
        _ => {}
    }
    let mut text = Zeroizing::new([0u8; TEXT_LEN + 1]);
    STANDARD
        .encode_slice(key.secret.as_slice(), text.as_mut_slice())
        .expect("32 bytes are 44 characters");
    text[TEXT_LEN] = b'\n';
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("create the key", &temporary))?;
    // Whatever the umask is.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(text.as_slice()))
        .and_then(|()| file.sync_all())
        .map_err(io("write the key", &temporary))?;
    std::fs::rename(&temporary, &path)
        .and_then(|()| File::open(state_dir)?.sync_all())
        .map_err(io("put in place the key", &path))
}

fn io_error(what: &'static str, path: &Path, error: io::Error) -> KeyError {
    KeyError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}
