//! Makes of the user's kubeconfig one that works inside a lab: its server is the relay, and all it needs is in it.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshd_lab::plan::{self, Plan};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// Largest file that is read.
const FILE_MAX: u64 = 4 << 20;

/// The kubeconfig for inside, and where the relay must lead.
#[derive(Debug)]
pub(super) struct Kubeconfig {
    pub(super) inside: Value,
    pub(super) host: String,
    pub(super) port: u16,
}

/// Reads the current context of a kubeconfig.
pub(super) fn read(path: &Path) -> Result<Kubeconfig> {
    let shown = || format!("the kubeconfig {}", path.display());
    if fs::metadata(path).with_context(shown)?.len() > FILE_MAX {
        bail!("{} is longer than {FILE_MAX} bytes", shown());
    }
    let text = fs::read_to_string(path).with_context(shown)?;
    let whole: Value = serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", shown()))?;
    convert(&whole, path.parent().unwrap_or(Path::new("."))).with_context(shown)
}

fn convert(whole: &Value, folder: &Path) -> Result<Kubeconfig> {
    let name = whole["current-context"]
        .as_str()
        .context("it names no current-context")?;
    let context = entry(whole, "contexts", name)?
        .get("context")
        .context("the context is empty")?;
    let of = |kind: &str| {
        context[kind]
            .as_str()
            .with_context(|| format!("the context {name} names no {kind}"))
    };
    let (cluster_name, user_name) = (of("cluster")?, of("user")?);
    let mut cluster = object(entry(whole, "clusters", cluster_name)?.get("cluster"));
    let mut user = object(entry(whole, "users", user_name)?.get("user"));
    if user.contains_key("exec") || user.contains_key("auth-provider") {
        bail!(
            "the user {user_name} fetches credentials with a program, which has no way out of a lab: use a token or a certificate"
        );
    }
    let url = cluster
        .get("server")
        .and_then(Value::as_str)
        .context("the cluster names no server")?;
    let server = Server::parse(url)?;
    cluster.insert("server".into(), server.inside().into());
    if server.scheme == "https" && !cluster.contains_key("tls-server-name") {
        cluster.insert("tls-server-name".into(), server.host.clone().into());
    }
    inline(&mut cluster, "certificate-authority", folder)?;
    inline(&mut user, "client-certificate", folder)?;
    inline(&mut user, "client-key", folder)?;
    if let Some(path) = user.remove("tokenFile").as_ref().and_then(Value::as_str) {
        let token = fs::read_to_string(folder.join(path)).with_context(|| format!("read {path}"))?;
        user.insert("token".into(), token.trim().into());
    }
    let inside = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    });
    Ok(Kubeconfig {
        inside,
        host: server.host,
        port: server.port,
    })
}

fn entry<'a>(whole: &'a Value, list: &str, name: &str) -> Result<&'a Value> {
    let entries = whole[list]
        .as_array()
        .with_context(|| format!("it has no {list}"))?;
    let found = entries.iter().find(|e| e["name"].as_str() == Some(name));
    found.with_context(|| format!("{list} has no {name}"))
}

fn object(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// What a key names by path goes in as data.
fn inline(section: &mut Map<String, Value>, key: &str, folder: &Path) -> Result<()> {
    let Some(path) = section
        .remove(key)
        .as_ref()
        .and_then(Value::as_str)
        .map(|p| folder.join(p))
    else {
        return Ok(());
    };
    let bytes = fs::read(&path).with_context(|| format!("read {key} {}", path.display()))?;
    section.insert(format!("{key}-data"), STANDARD.encode(bytes).into());
    Ok(())
}

/// `scheme://host:port/path`
struct Server {
    scheme: String,
    host: String,
    port: u16,
    path: String,
}

impl Server {
    fn parse(url: &str) -> Result<Self> {
        let wrong = || format!("its server {url:?} is no http or https address");
        let (scheme, rest) = url.split_once("://").with_context(wrong)?;
        let default = match scheme {
            "https" => 443,
            "http" => 80,
            _ => bail!("{}", wrong()),
        };
        let (authority, path) = rest
            .split_once('/')
            .map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
        // An IPv6 address is in brackets, so that its colons are not the port's.
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').with_context(wrong)?;
                (host, after.strip_prefix(':'))
            }
            None => authority
                .split_once(':')
                .map_or((authority, None), |(h, p)| (h, Some(p))),
        };
        if host.is_empty() {
            bail!("{}", wrong());
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port: port.map_or(Ok(default), str::parse).with_context(wrong)?,
            path,
        })
    }

    fn inside(&self) -> String {
        format!(
            "{}://{}{}",
            self.scheme,
            Plan::api_server(&plan::both()),
            self.path
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(server: &str) -> Value {
        json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": server, "certificate-authority": "ca.crt"}}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
        })
    }

    #[test]
    fn the_server_becomes_the_relay_and_files_become_data() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.crt"), "CA").unwrap();
        fs::write(folder.path().join("token"), "secret\n").unwrap();
        let made = convert(&kubeconfig("https://[fd00::1]:6444/k8s"), folder.path()).unwrap();
        assert_eq!((made.host.as_str(), made.port), ("fd00::1", 6444));
        let cluster = &made.inside["clusters"][0]["cluster"];
        assert_eq!(cluster["server"], "https://10.200.0.1:6443/k8s");
        assert_eq!(cluster["tls-server-name"], "fd00::1");
        assert_eq!(cluster["certificate-authority-data"], STANDARD.encode("CA"));
        assert!(cluster.get("certificate-authority").is_none());
        assert_eq!(made.inside["users"][0]["user"]["token"], "secret");
    }

    #[test]
    fn what_cannot_work_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let missing = convert(&kubeconfig("https://api:6443"), folder.path()).unwrap_err();
        assert!(format!("{missing:#}").contains("ca.crt"), "{missing:#}");
        let mut exec = kubeconfig("https://api:6443");
        exec["users"][0]["user"] = json!({"exec": {"command": "aws"}});
        assert!(
            convert(&exec, folder.path())
                .unwrap_err()
                .to_string()
                .contains("token")
        );
        for bad in ["api:6443", "ftp://api", "https://", "https://api:port"] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Server::parse("http://api").unwrap().port, 80);
    }
}
