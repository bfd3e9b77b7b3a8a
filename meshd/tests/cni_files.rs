//! The plugin and the CNI configuration in the node's folders: whole or not at all, and put back.

use meshd::cni_files::{self, Keeper, Placed, place};
use meshd::settings::Cni;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;

const CONFLIST: &str =
    r#"{"cniVersion": "1.0.0", "name": "meshd", "plugins": [{"type": "meshd-cni"}, {"type": "portmap"}]}"#;

/// A host's two folders, and what is to be put there.
struct Host {
    folder: TempDir,
    cni: Cni,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["bin", "conf", "image"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("bin/portmap"), "another's").unwrap();
        fs::write(path("image/meshd-cni"), "the plugin").unwrap();
        fs::write(path("image/10-meshd.conflist"), CONFLIST).unwrap();
        let cni = Cni {
            conflist: Some(path("image/10-meshd.conflist")),
            conf_dir: Some(path("conf")),
            bin_dir: Some(path("bin")),
        };
        Self { folder, cni }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn install(&self) -> Result<Vec<String>, cni_files::InstallError> {
        cni_files::install(&self.cni, &self.path("image/meshd-cni"))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_plugin_is_put_in_place_replaced_and_left_alone_where_it_is_the_same() {
    let host = Host::new();
    let plugin = host.path("bin/meshd-cni");
    host.install().unwrap();
    assert_eq!(fs::read(&plugin).unwrap(), b"the plugin");
    assert_eq!(mode(&plugin), 0o755);
    let first = fs::metadata(&plugin).unwrap();

    let again = host.install().unwrap();
    assert!(again[0].ends_with("there already"), "{again:?}");
    let inode = |m: &fs::Metadata| std::os::unix::fs::MetadataExt::ino(m);
    assert_eq!(inode(&fs::metadata(&plugin).unwrap()), inode(&first));

    fs::set_permissions(&plugin, Permissions::from_mode(0o700)).unwrap();
    host.install().unwrap();
    assert_eq!(mode(&plugin), 0o755, "the mode is part of it");

    fs::write(host.path("image/meshd-cni"), "another v.").unwrap();
    host.install().unwrap();
    assert_eq!(fs::read(&plugin).unwrap(), b"another v.", "of the same length");
    assert_eq!(names(&host.path("bin")), ["meshd-cni", "portmap"]);
}

#[test]
fn a_link_is_replaced_and_what_it_leads_to_is_not_written() {
    let host = Host::new();
    fs::write(host.path("precious"), "the plugin").unwrap();
    symlink(host.path("precious"), host.path("bin/meshd-cni")).unwrap();
    host.install().unwrap();
    assert!(
        fs::symlink_metadata(host.path("bin/meshd-cni"))
            .unwrap()
            .is_file()
    );
    assert_eq!(fs::read(host.path("precious")).unwrap(), b"the plugin");
}

#[test]
fn a_chain_that_the_host_cannot_run_is_refused_with_what_to_do() {
    let host = Host::new();
    fs::remove_file(host.path("bin/portmap")).unwrap();
    let error = host.install().unwrap_err().to_string();
    assert!(
        error.contains("portmap") && error.contains("install it there"),
        "{error}"
    );

    for (text, said) in [
        ("{", "EOF"),
        ("{}", "no list"),
        (r#"{"plugins": [{"type": "portmap"}]}"#, "first plugin"),
        (
            r#"{"plugins": [{"type": "meshd-cni"}, {"type": "../../sh"}]}"#,
            "no plugin's name",
        ),
        (r#"{"plugins": [{"type": "meshd-cni"}, {}]}"#, "no \"type\""),
    ] {
        fs::write(host.path("image/10-meshd.conflist"), text).unwrap();
        let error = host.install().unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn all_that_was_put_there_is_removed_and_nothing_else() {
    let host = Host::new();
    host.install().unwrap();
    let conf = host.path("conf");
    place(
        &host.path("image/10-meshd.conflist"),
        &conf,
        "10-meshd.conflist",
        0o644,
    )
    .unwrap();
    fs::write(conf.join("99-loopback.conf"), "another's").unwrap();
    fs::write(host.path("bin/.meshd-cni.meshd-0123"), "half").unwrap();
    let (removed, failed) = cni_files::remove(&host.cni);
    assert_eq!((removed.len(), failed.len()), (2, 0));
    assert_eq!(names(&host.path("bin")), ["portmap"]);
    assert_eq!(names(&conf), ["99-loopback.conf"]);
    assert_eq!(cni_files::remove(&host.cni).0, Vec::<PathBuf>::new());
}

/// `meshd install` of a large plugin.
fn install_large(host: &Host) -> Child {
    let config = host.path("meshd.toml");
    let cni = &host.cni;
    let text = format!(
        "cluster_pod_cidrs = [\"10.244.0.0/16\"]\n[cni]\nconflist = {:?}\nconf_dir = {:?}\nbin_dir = {:?}\n",
        cni.conflist.as_ref().unwrap(),
        cni.conf_dir.as_ref().unwrap(),
        cni.bin_dir.as_ref().unwrap()
    );
    fs::write(&config, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_meshd"))
        .args(["install", "--node-name=node-1", "--plugin"])
        .arg(host.path("image/meshd-cni"))
        .arg("--config")
        .arg(&config)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_at_any_moment_it_leaves_the_old_plugin_or_the_new_and_the_next_run_cleans_up() {
    const SIZE: usize = 48 << 20;
    let host = Host::new();
    let (old, new) = (vec![b'o'; SIZE], vec![b'n'; SIZE]);
    let plugin = host.path("bin/meshd-cni");
    fs::write(host.path("image/meshd-cni"), &new).unwrap();
    let mut left_behind = 0;
    for attempt in 0..12 {
        fs::write(&plugin, &old).unwrap();
        let mut child = install_large(&host);
        // The first attempts are killed as soon as something is written beside, later ones a bit later.
        let end = Instant::now() + Duration::from_secs(60);
        while names(&host.path("bin")).len() < 3 && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "nothing is written");
        }
        std::thread::sleep(Duration::from_millis(attempt * 2));
        child.kill().unwrap();
        child.wait().unwrap();
        let there = fs::read(&plugin).unwrap();
        assert!(there == old || there == new, "attempt {attempt}: half of it");
        left_behind += names(&host.path("bin")).len() - 2;
    }
    assert!(left_behind > 0, "no attempt was killed in the middle");
    assert!(install_large(&host).wait().unwrap().success());
    assert_eq!(names(&host.path("bin")), ["meshd-cni", "portmap"]);
    assert!(fs::read(&plugin).unwrap() == new);
}

/// Waits until it is so.
async fn soon(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_configuration_comes_when_the_daemon_is_ready_and_stays() {
    let host = Host::new();
    let there = host.path("conf/10-meshd.conflist");
    let (ready, told) = watch::channel(false);
    let keeper = Keeper::new(&host.cni).unwrap();
    let problem = keeper.problem();
    let task = tokio::spawn(keeper.run(told));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!there.exists(), "before the daemon was ready");

    // A folder that cannot be written, as root too: it is none.
    fs::remove_dir(host.path("conf")).unwrap();
    fs::write(host.path("conf"), "").unwrap();
    ready.send(true).unwrap();
    soon("the problem is told", || problem.get().is_some()).await;
    fs::remove_file(host.path("conf")).unwrap();
    fs::create_dir(host.path("conf")).unwrap();
    soon("it is put in place", || there.exists() && problem.get().is_none()).await;
    assert_eq!(fs::read_to_string(&there).unwrap(), CONFLIST);
    assert_eq!(mode(&there), 0o644);

    ready.send(false).unwrap();
    fs::remove_file(&there).unwrap();
    soon("it is put back, ready or not", || there.exists()).await;
    drop(ready);
    tokio::time::timeout(Duration::from_secs(10), task)
        .await
        .unwrap()
        .unwrap();
    assert!(there.exists(), "it stays when the daemon ends");
}

#[tokio::test]
async fn a_network_that_comes_first_is_named() {
    let host = Host::new();
    let conf = host.path("conf");
    // One look: the keeper of a daemon that is ready, and ends.
    let look = async || {
        let (_, told) = watch::channel(true);
        let keeper = Keeper::new(&host.cni).unwrap();
        let problem = keeper.problem();
        keeper.run(told).await;
        problem.get()
    };
    // Later names, and one of no ending that runtimes know.
    for name in ["10-other.conflist", "05-cilium.conflist.bak", "99-loopback.conf"] {
        fs::write(conf.join(name), "another's").unwrap();
    }
    assert_eq!(look().await, None);
    assert!(conf.join("10-meshd.conflist").exists());
    for name in ["10-flannel.conflist", "05-cilium.conf", "00.json"] {
        fs::write(conf.join(name), "another's").unwrap();
        let problem = look().await.unwrap();
        assert!(problem.message.starts_with(name), "{problem:?}");
        assert!(problem.remedy.contains("remove"), "{problem:?}");
    }
}

#[test]
fn nothing_is_kept_where_nothing_is_configured() {
    assert!(Keeper::new(&Cni::default()).is_none());
    let error = cni_files::install(&Cni::default(), "/nowhere".as_ref()).unwrap_err();
    assert!(error.to_string().contains("cni.bin_dir"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let gone = place("/nowhere".as_ref(), folder.path(), "x", 0o644);
    assert!(gone.unwrap_err().to_string().contains("/nowhere"));
    fs::write(folder.path().join("from"), "x").unwrap();
    assert_eq!(
        place(&folder.path().join("from"), folder.path(), "to", 0o600).unwrap(),
        Placed::New
    );
}
