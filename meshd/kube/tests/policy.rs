//! Identity on a real kube-apiserver: whom it takes the daemon for, and under the admission policies of the chart, who
//! may write what of a Node.
//!
//! Needs `etcd` and `kube-apiserver`, in the folder that `MESHD_KUBERNETES_BIN` names or in `PATH`. Without them its
//! trials are skipped by name, or fail where `MESHD_REQUIRE_ARMS` names `kubernetes`.

#[path = "policy/access.rs"]
mod access;
#[path = "policy/blocks.rs"]
mod blocks;
#[path = "policy/chart.rs"]
mod chart;
#[path = "policy/cluster.rs"]
mod cluster;
#[path = "policy/trials.rs"]
mod trials;

use cluster::Cluster;
use libtest_mimic::{Arguments, Trial};
use meshd_control_plane::trial::Shared;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;

type Body = fn(Cluster) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! bodies {
    ($($module:ident::$name:ident),+ $(,)?) => { [$((stringify!($name), |cluster| Box::pin($module::$name(cluster)))),+] };
}

const TRIALS: [(&str, Body); 16] = bodies![
    trials::without_the_policies_anyone_with_the_right_writes_anything,
    trials::only_the_node_writes_its_annotations,
    trials::no_node_is_created_with_annotations,
    trials::what_is_claimed_is_what_the_node_has,
    trials::what_others_write_is_not_in_the_way,
    trials::the_account_changes_nothing_else,
    trials::the_account_clears_the_network_condition_and_nothing_beside_it,
    trials::what_uninstalls_takes_our_annotations_off_its_own_node_and_changes_nothing_else,
    trials::what_uninstalls_may_see_whether_meshd_is_installed,
    trials::the_daemon_publishes_under_the_policies,
    blocks::a_block_is_what_its_name_says_and_stays_so,
    blocks::only_the_node_claims_marks_and_deletes_its_blocks,
    blocks::no_node_claims_the_block_of_another,
    access::the_servers_address_comes_from_the_kubelets_file_and_the_rights_from_the_token,
    access::the_servers_address_may_be_given,
    access::a_certificate_that_is_replaced_counts_at_once,
];

static KUBERNETES: Shared = Shared::new();

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TRIALS.iter().map(|(name, body)| {
        Trial::ignorable_test(*name, move || {
            KUBERNETES.run(async |control_plane| body(Cluster::new(control_plane).await).await)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    KUBERNETES.shut_down();
    conclusion.exit_code()
}
