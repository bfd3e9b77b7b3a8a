//! A real Kubernetes cluster (`hack/kubernetes`) in which meshd is installed as users install it, as an arm of the
//! scenarios: kubelets call the plugin, and probes are sent from inside the pods' network namespaces.

mod agent;
mod arm;
mod command;
mod install;
mod lab;
mod pods;
mod residue;
mod wire;

pub use arm::KubernetesArm;
pub use install::{Image, TAG};
pub use lab::{Family, Lab, Shape, StartError, wait_for};
pub use pods::{NAMESPACE, PodSite};
