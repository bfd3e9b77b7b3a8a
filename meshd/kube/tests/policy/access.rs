//! Who the API server takes the daemon for, by which files, and that files which are replaced count at once.

use crate::cluster::{Cluster, ask};
use kube::Client;
use meshd_kube::{Access, Server, connect};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A service account's folder, as the kubelet projects it.
fn account(cluster: &Cluster, token: &str) -> PathBuf {
    let folder = cluster.folder.path().join("account");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(cluster.control_plane.authority(), folder.join("ca.crt")).unwrap();
    replace(&folder.join("token"), token);
    folder
}

/// By a rename, so that no reader meets half a file.
fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn whoami(client: &Client) -> (String, Value) {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = ask(client, "POST", path, "application/json", &body).await;
    let user = answer.allowed("ask who one is")["status"]["userInfo"].clone();
    let name = user["username"].as_str().unwrap().to_owned();
    (
        name,
        user["extra"]["authentication.kubernetes.io/node-name"][0].clone(),
    )
}

const MESHD: &str = "system:serviceaccount:kube-system:meshd";

pub(crate) async fn the_servers_address_comes_from_the_kubelets_file_and_the_rights_from_the_token(
    cluster: Cluster,
) {
    let [one, two] = [cluster.node("one").await, cluster.node("two").await];
    let folder = account(&cluster, &cluster.token_of(&one).await);
    let file = cluster.folder.path().join("kubelet.conf");
    let kubelet = |address| {
        cluster
            .control_plane
            .kubeconfig_with(&cluster.control_plane.kubelet(&one), address)
    };
    let address = cluster.control_plane.address();
    replace(&file, kubelet(address));
    let access = Access::ServiceAccount {
        folder: folder.clone(),
        server: Server::Of(file.clone()),
    };
    let client = connect(&access).await.unwrap();
    assert_eq!(whoami(&client).await, (MESHD.to_owned(), json!(one)));

    replace(&folder.join("token"), cluster.token_of(&two).await);
    assert_eq!(
        whoami(&client).await,
        (MESHD.to_owned(), json!(two)),
        "the token was replaced"
    );

    replace(&file, "no kubeconfig: [");
    assert_eq!(whoami(&client).await.0, MESHD, "what is no use changes nothing");
    replace(&file, kubelet("127.0.0.1:1".parse().unwrap()));
    let request = || http::Request::get("/version").body(Vec::new().into()).unwrap();
    client.send(request()).await.unwrap_err();
    replace(&file, kubelet(address));
    client.send(request()).await.unwrap();
}

pub(crate) async fn the_servers_address_may_be_given(cluster: Cluster) {
    let node = cluster.node("n").await;
    let folder = account(&cluster, &cluster.token_of(&node).await);
    let address = cluster.control_plane.address();
    for text in [format!("https://{address}"), address.to_string()] {
        let access = Access::ServiceAccount {
            folder: folder.clone(),
            server: Server::At(text),
        };
        let client = connect(&access).await.unwrap();
        assert_eq!(whoami(&client).await, (MESHD.to_owned(), json!(node)));
    }
    // A server that the authority does not prove is not told the token.
    std::fs::write(folder.join("ca.crt"), rcgen_authority()).unwrap();
    let access = Access::ServiceAccount {
        folder: folder.clone(),
        server: Server::At(address.to_string()),
    };
    let client = connect(&access).await.unwrap();
    let request = http::Request::get("/version").body(Vec::new().into()).unwrap();
    let refused = format!("{:?}", client.send(request).await.unwrap_err());
    assert!(
        refused.contains("UnknownIssuer") || refused.contains("BadSignature"),
        "{refused}"
    );

    std::fs::remove_file(folder.join("token")).unwrap();
    let error = connect(&access).await.err().unwrap().to_string();
    assert!(
        error.contains("account/token") && error.contains("--kubeconfig"),
        "{error}"
    );
}

/// Of another authority.
fn rcgen_authority() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).unwrap().pem()
}

pub(crate) async fn a_certificate_that_is_replaced_counts_at_once(cluster: Cluster) {
    let folder = cluster.folder.path();
    let (certificate, key) = (folder.join("client.crt"), folder.join("client.key"));
    let put = |node: &str| {
        let kubelet = cluster.control_plane.kubelet(node);
        for (from, to) in [("client-certificate", &certificate), ("client-key", &key)] {
            replace(to, std::fs::read(kubelet[from].as_str().unwrap()).unwrap());
        }
    };
    put("one");
    let user = json!({"client-certificate": certificate, "client-key": key});
    let client = cluster.client(&user).await;
    assert_eq!(whoami(&client).await.0, "system:node:one");
    put("two");
    assert_eq!(whoami(&client).await.0, "system:node:two");
}
