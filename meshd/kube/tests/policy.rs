//! Identity on a real kube-apiserver: whom it takes the daemon for, and under the admission policies of the chart, who
//! may write what of a Node.
//!
//! Needs `etcd` and `kube-apiserver`, in the folder that `MESHD_KUBERNETES_BIN` names or in `PATH`. Without them its
//! trials are skipped by name, or fail where `MESHD_REQUIRE_ARMS` names `kubernetes`.

#[path = "policy/access.rs"]
mod access;
#[path = "policy/chart.rs"]
mod chart;
#[path = "policy/cluster.rs"]
mod cluster;
#[path = "policy/trials.rs"]
mod trials;

use cluster::Cluster;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use meshd_control_plane::{ControlPlane, Trouble};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

type Body = fn(Cluster) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! bodies {
    ($($module:ident::$name:ident),+ $(,)?) => { [$((stringify!($name), |cluster| Box::pin($module::$name(cluster)))),+] };
}

const TRIALS: [(&str, Body); 13] = bodies![
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
    access::the_servers_address_comes_from_the_kubelets_file_and_the_rights_from_the_token,
    access::the_servers_address_may_be_given,
    access::a_certificate_that_is_replaced_counts_at_once,
];

/// Started by the first trial that needs it; one trial at a time has it.
static KUBERNETES: Mutex<Option<Result<ControlPlane, Trouble>>> = Mutex::new(None);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TRIALS
        .iter()
        .map(|(name, body)| Trial::ignorable_test(*name, move || on_kubernetes(*body)));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(KUBERNETES.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn on_kubernetes(body: Body) -> Result<Completion, Failed> {
    let mut state = KUBERNETES.lock().unwrap_or_else(PoisonError::into_inner);
    match state.get_or_insert_with(ControlPlane::start) {
        Ok(control_plane) => {
            run(control_plane.clone(), body)?;
            Ok(Completion::Completed)
        }
        Err(Trouble::Failed(why)) => Err(why.clone().into()),
        Err(Trouble::Unable(reason)) => {
            if meshd_skip::is_required("kubernetes") {
                return Err(
                    format!("MESHD_REQUIRE_ARMS names kubernetes, which cannot run: {reason}").into(),
                );
            }
            Ok(Completion::ignored_with(format!("arm kubernetes: {reason}")))
        }
    }
}

fn run(control_plane: ControlPlane, body: Body) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| format!("start a runtime: {e}"))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { body(Cluster::new(control_plane).await).await });
    }));
    runtime.shutdown_background();
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        Failed::from(text.unwrap_or("panicked").to_owned())
    })
}
