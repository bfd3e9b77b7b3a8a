//! Prints the effective configuration as a file that could be read again.

use super::Settings;
use super::keys::KEYS;
use std::fmt::Write as _;

const WIDTH: usize = 100;

/// The effective configuration as TOML, each key with its documentation; what is not set is commented out.
#[must_use]
pub fn show(settings: &Settings) -> String {
    let values = toml::Table::try_from(settings).expect("the settings are TOML values");
    let mut out = String::new();
    let mut current = "";
    for key in KEYS {
        let (table, name) = key.path.split_once('.').unwrap_or(("", key.path));
        if table != current {
            let _ = writeln!(out, "[{table}]");
            current = table;
        }
        for line in wrap(key.doc) {
            let _ = writeln!(out, "# {line}");
        }
        let value = if table.is_empty() {
            values.get(name)
        } else {
            values.get(table).and_then(|inner| inner.get(name))
        };
        let _ = match value {
            Some(value) => writeln!(out, "{name} = {value}\n"),
            None => writeln!(out, "# {name} =\n"),
        };
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the start");
        if !line.is_empty() && line.len() + word.len() >= WIDTH {
            lines.push(word.to_owned());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}
