//! The driver against API servers: the embedded one and, where its binaries are, a real kube-apiserver. The bodies
//! are the same, so what they show of one holds for the other.
//!
//! The real one needs `etcd` and `kube-apiserver`, in the folder that `MESHD_KUBERNETES_BIN` names or in `PATH`.
//! Without them its trials are skipped by name, or fail where `MESHD_REQUIRE_ARMS` names `kubernetes`.

#[path = "servers/bodies.rs"]
mod bodies;
#[path = "servers/counted.rs"]
mod counted;
#[path = "servers/embedded.rs"]
mod embedded;
#[path = "servers/mirror.rs"]
mod mirror;
#[path = "servers/proxy.rs"]
mod proxy;
#[path = "servers/requests.rs"]
mod requests;
#[path = "servers/server.rs"]
mod server;

use libtest_mimic::{Arguments, Trial};
use meshd_control_plane::trial::{Shared, run};
use server::Server;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;

type Body = fn(Server) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! bodies {
    ($($name:ident),+ $(,)?) => { [$((stringify!($name), |server| Box::pin(bodies::$name(server)))),+] };
}

const BODIES: [(&str, Body); 14] = bodies![
    everything_there_is_is_listed_and_then_followed,
    two_nodes_learn_of_each_other,
    fields_of_others_are_left_alone,
    another_manager_meets_a_conflict_and_is_overruled,
    a_node_created_anew_is_not_written_in_the_name_of_the_old,
    what_happens_while_the_server_is_away_is_not_lost,
    the_end_of_an_outage_is_told_whichever_watch_had_it,
    a_server_that_is_away_from_the_start_is_waited_for,
    a_forgotten_history_is_listed_again,
    the_own_node_may_come_later,
    a_block_is_claimed_by_one_node_given_back_and_deleted,
    the_network_condition_is_cleared_and_no_other,
    an_event_is_told_of_a_pod,
    a_large_cluster_is_listed_once_and_written_only_on_change,
];

/// Bodies that need both servers.
const BOTH: (&str, Body) = ("answers_are_the_embedded_servers_too", |server| {
    Box::pin(bodies::answers_are_the_embedded_servers_too(server))
});

static KUBERNETES: Shared = Shared::new();

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let embedded = BODIES.iter().map(|(name, body)| {
        Trial::test(format!("embedded::{name}"), move || {
            run(async || body(Server::embedded().await).await)
        })
    });
    let kubernetes = BODIES.iter().chain([&BOTH]).map(|(name, body)| {
        Trial::ignorable_test(format!("kubernetes::{name}"), move || {
            KUBERNETES.run(async |control_plane| body(Server::real(control_plane).await).await)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, embedded.chain(kubernetes).collect());
    KUBERNETES.shut_down();
    conclusion.exit_code()
}
