//! The agent's numbers as metrics. They are made anew for each request: they are read off the agent, not kept beside it.

use super::Calls;
use meshd_core::{Abandoned, Numbers};
use meshd_model::net::Family;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Metrics;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// One label and its value.
type Label = [(&'static str, &'static str); 1];
/// Of 64 bits, unsigned: a /64 has more addresses than an i64 can count. What is more yet is as good as that.
type Amount = Gauge<u64, AtomicU64>;

/// The whole of `/metrics`.
pub(super) fn render(numbers: &Numbers, calls: &Calls) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("meshd");
    calls.register(&mut registry);
    node(&mut registry, numbers);
    addresses(&mut registry, numbers);
    failures(&mut registry, numbers);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn node(registry: &mut Registry, numbers: &Numbers) {
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("agent", "The agent", version);
    let one = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        let gauge = Amount::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    one(
        registry,
        "ready",
        "Whether pods can be attached",
        numbers.ready.into(),
    );
    let help = "Whether the API server was reached when it was last asked";
    one(
        registry,
        "api_server_reachable",
        help,
        numbers.api_reachable.into(),
    );
    let help = "Calls that have not been answered yet";
    one(registry, "cni_calls_pending", help, numbers.pending);
    let help = "Lines of meshctl status that say what is wrong";
    one(registry, "problems", help, numbers.problems);
    let help = "Leases that could not be read when the agent started";
    one(registry, "leases_damaged", help, numbers.damaged_leases);
    let attachments = Metrics::<Label, Amount>::default();
    for (phase, count) in &numbers.attachments {
        attachments.get_or_create(&[("phase", phase)]).set(*count);
    }
    registry.register(
        "attachments",
        "Attachments of pods, each with a lease",
        attachments,
    );
}

fn addresses(registry: &mut Registry, numbers: &Numbers) {
    let [capacity, in_use, freed] = [(); 3].map(|()| Metrics::<Label, Amount>::default());
    for (family, counts) in &numbers.addresses {
        let label = [("family", name(*family))];
        capacity.get_or_create(&label).set(amount(counts.capacity));
        in_use.get_or_create(&label).set(amount(counts.in_use));
        freed.get_or_create(&label).set(amount(counts.freed));
    }
    let help = "Addresses that the node's pod CIDRs can hand out, without those that are reserved";
    registry.register("ipam_addresses_capacity", help, capacity);
    let help = "Addresses in use, also reserved ones and those of former pod CIDRs";
    registry.register("ipam_addresses_in_use", help, in_use);
    let help = "Addresses that were freed and not handed out again, resting or not";
    registry.register("ipam_addresses_freed", help, freed);
    let exhausted = Metrics::<Label, Counter>::default();
    // Those that did not happen are there too, so that the first one is an increase.
    for family in numbers.addresses.keys() {
        let count = numbers.counters.exhausted.get(family);
        let counter = exhausted.get_or_create_owned(&[("family", name(*family))]);
        counter.inc_by(count.copied().unwrap_or_default());
    }
    let help = "ADDs that were refused because no address was free";
    registry.register("ipam_exhausted", help, exhausted);
    let collected = Metrics::<Label, Counter>::default();
    let reasons = [
        Abandoned::Namespace,
        Abandoned::HalfDone,
        Abandoned::Pod,
        Abandoned::Replaced,
    ];
    for why in reasons {
        let count = numbers.counters.collected.get(&why);
        let counter = collected.get_or_create_owned(&[("reason", reason(why))]);
        counter.inc_by(count.copied().unwrap_or_default());
    }
    let help = "Attachments that were taken down without a DEL, by what was gone";
    registry.register("attachments_collected", help, collected);
}

fn failures(registry: &mut Registry, numbers: &Numbers) {
    let counters = &numbers.counters;
    let failures = Metrics::<Label, Counter>::default();
    for (part, count) in [
        ("kernel", counters.kernel_failures),
        ("store", counters.store_failures),
        ("api-server", counters.kube_failures),
    ] {
        failures.get_or_create_owned(&[("part", part)]).inc_by(count);
    }
    let help =
        "What was asked of the kernel, the lease store and the API server, and failed; it is tried again";
    registry.register("failures", help, failures);
    let dropped = Counter::<u64>::default();
    dropped.inc_by(counters.events_dropped);
    let help = "Events on pods that were not told, because there were too many";
    registry.register("events_dropped", help, dropped);
}

fn amount(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn reason(why: Abandoned) -> &'static str {
    match why {
        Abandoned::Namespace => "namespace",
        Abandoned::HalfDone => "half-done-add",
        Abandoned::Pod => "pod",
        Abandoned::Replaced => "replaced",
    }
}
