//! Reads the configuration file and lays the flags over it.

use super::keys::{KEYS, nearest};
use super::value::{LogFormat, WireguardMode};
use super::{Problems, Settings};
use std::path::{Path, PathBuf};

/// Longest configuration file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}; name another with --config")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("the configuration {path} does not parse: {error}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// It has a key that meshd does not know.
    #[error("the configuration {path} has an unknown key {key:?}; did you mean {nearest:?}?")]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// Path of the key.
        key: String,
        /// The known key that is most like it.
        nearest: &'static str,
    },
    /// Values that do not fit.
    #[error("the configuration {path} is not valid:{problems}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// All that is wrong.
        problems: Problems,
    },
}

/// What flags and variables say of this node; each that is given wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--node-name`
    pub node_name: Option<String>,
    /// `--kubeconfig`
    pub kubeconfig: Option<PathBuf>,
    /// `--api-server`
    pub api_server: Option<String>,
    /// `--api-server-from`
    pub api_server_from: Option<PathBuf>,
    /// `--service-account-dir`
    pub service_account_dir: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--wireguard`
    pub wireguard: Option<WireguardMode>,
    /// `--wireguard-socket-dir`
    pub wireguard_socket_dir: Option<PathBuf>,
    /// `--recording-dir`
    pub recording_dir: Option<PathBuf>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
}

/// Reads the file, lays the overrides over it and validates the whole.
pub fn load(path: &Path, overrides: Overrides) -> Result<Settings, LoadError> {
    let text = read(path).map_err(|error| LoadError::Read {
        path: path.to_owned(),
        error,
    })?;
    let mut settings = parse(path, &text)?;
    overrides.apply(&mut settings);
    settings.validate().map_err(|problems| LoadError::Invalid {
        path: path.to_owned(),
        problems,
    })?;
    Ok(settings)
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(std::io::Error::other(format!(
            "it is longer than {FILE_MAX} bytes"
        )));
    }
    Ok(text)
}

/// Parses a file's text; nothing is validated yet.
pub fn parse(path: &Path, text: &str) -> Result<Settings, LoadError> {
    let parse_error = |error| LoadError::Parse {
        path: path.to_owned(),
        error: Box::new(error),
    };
    let table: toml::Table = toml::from_str(text).map_err(parse_error)?;
    if let Some(key) = unknown_key(&table) {
        return Err(LoadError::UnknownKey {
            path: path.to_owned(),
            nearest: nearest(&key),
            key,
        });
    }
    toml::from_str(text).map_err(parse_error)
}

/// The first key that is not in [`KEYS`]; tables are one deep.
fn unknown_key(table: &toml::Table) -> Option<String> {
    let known = |path: &str| KEYS.iter().any(|key| key.path == path);
    let is_table = |name: &str| {
        KEYS.iter()
            .any(|key| key.path.split_once('.').is_some_and(|(t, _)| t == name))
    };
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) if is_table(name) => {
                let paths = inner.keys().map(|key| format!("{name}.{key}"));
                if let Some(path) = paths.into_iter().find(|path| !known(path)) {
                    return Some(path);
                }
            }
            // Of the wrong type: parsing says so better.
            _ if known(name) || is_table(name) => {}
            _ => return Some(name.clone()),
        }
    }
    None
}

impl Overrides {
    fn apply(self, settings: &mut Settings) {
        let optional = |to: &mut Option<PathBuf>, from: Option<PathBuf>| {
            if from.is_some() {
                *to = from;
            }
        };
        let always = |to: &mut PathBuf, from: Option<PathBuf>| {
            if let Some(from) = from {
                *to = from;
            }
        };
        if self.node_name.is_some() {
            settings.node_name = self.node_name;
        }
        optional(&mut settings.kubeconfig, self.kubeconfig);
        if self.api_server.is_some() {
            settings.api_server = self.api_server;
        }
        optional(&mut settings.api_server_from, self.api_server_from);
        always(&mut settings.service_account_dir, self.service_account_dir);
        always(&mut settings.state_dir, self.state_dir);
        always(&mut settings.socket, self.socket);
        always(&mut settings.wireguard.socket_dir, self.wireguard_socket_dir);
        optional(&mut settings.recording.dir, self.recording_dir);
        if let Some(mode) = self.wireguard {
            settings.wireguard.mode = mode;
        }
        if let Some(format) = self.log_format {
            settings.log.format = format;
        }
    }
}
