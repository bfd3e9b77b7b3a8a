//! The daemon reaches the API server before there is a network: no proxy for service addresses, nothing of the pod
//! network, on first boot, after a reboot, and while the API server is away.

use crate::cluster::Cluster;
use crate::node::{Daemon, isolated, isolated_for, kubeconfig};
use crate::{API, api_server, serve_api};
use meshd_control_plane::{ControlPlane, Trouble};
use meshd_model::status::Status;
use std::time::Duration;

fn is_away(status: &Status) -> bool {
    status.problems.iter().any(|p| p.subject == "api-server")
}

fn says(status: &Status, text: &str) -> bool {
    status.problems.iter().any(|p| p.message.contains(text))
}

#[test]
fn by_the_kubelets_own_file() {
    isolated("the kubelet's own kubeconfig", || async {
        let folder = tempfile::tempdir().unwrap();
        let (account, kubelet) = (folder.path().join("account"), folder.path().join("kubelet.conf"));
        std::fs::create_dir(&account).unwrap();
        std::fs::write(account.join("token"), "a token").unwrap();
        kubeconfig(&kubelet, "http://127.0.0.1:6444");
        let access = format!(
            "service_account_dir = '{}'\napi_server_from = '{}'",
            account.display(),
            kubelet.display()
        );
        let mut daemon = Daemon::with_access(folder, "n1", &access);

        // First boot: nobody answers where the kubelet looks for it; then the kubelet is told another address.
        daemon.start();
        daemon.until("the API server's absence", is_away).await;
        let api = api_server();
        let running = serve_api(&api).await;
        kubeconfig(&kubelet, &format!("http://{API}"));
        daemon
            .until("the peer", |s| !s.peers.is_empty() && !is_away(s))
            .await;

        // Away, and back.
        running.stop().await;
        daemon.until("the second absence", is_away).await;
        let running = serve_api(&api).await;
        daemon.until("its return", |s| !is_away(s)).await;

        // A reboot, with the API server not there yet.
        running.stop().await;
        daemon.kill();
        daemon.start();
        daemon.until("the absence after the reboot", is_away).await;
        let _running = serve_api(&api).await;
        daemon.until("the peer after it", |s| !s.peers.is_empty()).await;
    });
}

#[test]
fn by_a_given_address_with_the_rights_of_the_chart() {
    isolated_for(
        Duration::from_secs(300),
        "kubernetes without a network",
        || async {
            let control_plane = match ControlPlane::start() {
                Ok(control_plane) => control_plane,
                Err(Trouble::Unable(why)) => {
                    return meshd_skip::skip_on("kubernetes", "the API server by address", why);
                }
                Err(Trouble::Failed(why)) => panic!("{why}"),
            };
            let cluster = Cluster::protected(Cluster::new(control_plane.clone()).await).await;
            let [own, other] = [cluster.node("own").await, cluster.node("other").await];

            // As the kubelet projects it into meshd's pod.
            let folder = tempfile::tempdir().unwrap();
            let account = folder.path().join("account");
            std::fs::create_dir(&account).unwrap();
            std::fs::copy(control_plane.authority(), account.join("ca.crt")).unwrap();
            std::fs::write(account.join("token"), cluster.token_of(&own).await).unwrap();
            let access = format!(
                "service_account_dir = '{}'\napi_server = '{}'",
                account.display(),
                control_plane.address()
            );
            let mut daemon = Daemon::with_access(folder, &own, &access);
            let knows_all = |s: &Status| {
                !is_away(s) && !s.pod_cidrs.is_empty() && says(s, &format!("node/{other} has no key"))
            };

            control_plane.stop_server();
            daemon.start();
            daemon.until("the API server's absence", is_away).await;
            control_plane.start_server().unwrap();
            daemon.until("all that the API server has", knows_all).await;
            control_plane.stop_server();
            daemon.until("the second absence", is_away).await;
            daemon.kill();
            daemon.start();
            daemon.until("the absence after the reboot", is_away).await;
            control_plane.start_server().unwrap();
            daemon.until("all of it again", knows_all).await;
        },
    );
}
