//! Other tools' chains at the forward hook: Docker's, ufw's, firewalld's.

mod support;

use meshd_core::KernelOp::PassForward;
use meshd_model::kernel::ForwardChain;
use nlink::netlink::nftables::{BaseChain, Chain, Family, FilterHook, Policy, Priority, Rule, RuleInfo};
use nlink::{Connection, Nftables};
use std::net::SocketAddr;
use std::process::Command;
use support::{BRIEFLY, DEVICE, Node, PATIENCE, Site, node, open_firewall, site};

/// Runs iptables' own programs, or says that they are not there.
struct Iptables;

impl Iptables {
    fn find(test: &str) -> Option<Self> {
        let there = |name| Command::new(name).arg("--version").output().is_ok();
        if there("iptables-nft") && there("ip6tables-nft") {
            return Some(Self);
        }
        let reason = format_args!("iptables-nft is not there (Debian: apt install iptables)");
        meshd_skip::skip(test, reason);
        None
    }

    /// Of both families.
    fn run(&self, arguments: &str) -> [String; 2] {
        ["iptables-nft", "ip6tables-nft"].map(|program| {
            let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "{program} {arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

/// Whether the pod reaches the neighbour and gets its answers, in both families.
fn passes(site: &Site, patience: std::time::Duration) -> [bool; 2] {
    ["192.0.2.2:0", "[2001:db8::2]:0"].map(|at| {
        let echo: SocketAddr = site.neighbour.echo(at);
        site.pod.run(move || support::ask_within(echo, patience))
    })
}

fn iptables_chain(family: &str, passes: bool) -> ForwardChain {
    ForwardChain {
        family: family.to_owned(),
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        passes,
    }
}

async fn pass(node: &mut Node) {
    let device = DEVICE.to_owned();
    node.apply(PassForward { device }).await;
}

#[test]
fn pods_pass_a_forward_policy_of_drop_and_a_reject_at_the_end() {
    const TEST: &str = "pods_pass_a_forward_policy_of_drop";
    let Some(iptables) = Iptables::find(TEST) else {
        return;
    };
    node(TEST, |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        assert_eq!(node.observe().await.forward_chains, [].into());
        assert_eq!(passes(&site, PATIENCE), [true, true]);

        for (set, reset) in [
            ("-P FORWARD DROP", "-P FORWARD ACCEPT"),
            ("-A FORWARD -j REJECT", "-D FORWARD -j REJECT"),
        ] {
            iptables.run(set);
            let blocked = ["ip", "ip6"].map(|family| iptables_chain(family, false));
            assert_eq!(node.observe().await.forward_chains, blocked.into(), "{set}");
            assert_eq!(passes(&site, BRIEFLY), [false, false], "{set}");
            pass(&mut node).await;
            let passed = ["ip", "ip6"].map(|family| iptables_chain(family, true));
            assert_eq!(
                node.observe().await.forward_chains,
                passed.clone().into(),
                "{set}"
            );
            assert_eq!(passes(&site, PATIENCE), [true, true], "{set}");
            // Twice is once.
            pass(&mut node).await;
            for text in iptables.run("-S FORWARD") {
                for rule in ["-i mshp+", "-o mshp+", "-i wg0", "-o wg0"] {
                    let rule = format!("-A FORWARD {rule} -m comment --comment meshd -j ACCEPT");
                    assert_eq!(text.matches(&rule).count(), 1, "{rule} in {text}");
                }
                let last = text.lines().last().unwrap();
                assert_eq!(last.contains("meshd"), set.contains("DROP"), "{text}");
            }
            // Docker puts itself before all others; what it writes there returns.
            iptables.run("-N USER");
            iptables.run("-I FORWARD -j USER");
            assert_eq!(node.observe().await.forward_chains, passed.into(), "{set}");
            iptables.run("-F FORWARD");
            iptables.run("-X USER");
            if set.contains("DROP") {
                assert_eq!(passes(&site, BRIEFLY), [false, false], "flushed");
                pass(&mut node).await;
                assert_eq!(passes(&site, PATIENCE), [true, true], "after a flush");
                iptables.run(reset);
                iptables.run("-F FORWARD");
            }
        }
    });
}

/// What an operator, or kube-proxy, drops or refuses stays so.
#[test]
fn what_others_decide_before_the_end_counts() {
    const TEST: &str = "what_others_decide_before_the_end_counts";
    let Some(iptables) = Iptables::find(TEST) else {
        return;
    };
    node(TEST, |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let hosts = ["192.0.2.2", "[2001:db8::2]"];
        let echoes =
            [7777, 7778, 7779].map(|port| hosts.map(|h| site.neighbour.echo(&format!("{h}:{port}"))));
        for end in ["-P FORWARD DROP", "-A FORWARD -j REJECT"] {
            iptables.run("-N OPERATOR");
            iptables.run("-A OPERATOR -p udp --dport 7777 -j DROP");
            iptables.run("-A FORWARD -j OPERATOR");
            iptables.run("-A FORWARD -p udp --dport 7778 -j DROP");
            iptables.run(end);
            pass(&mut node).await;
            let expected = [(BRIEFLY, false), (BRIEFLY, false), (PATIENCE, true)];
            for (echoes, (patience, passes)) in echoes.into_iter().zip(expected) {
                for echo in echoes {
                    let asked = site.pod.run(move || support::ask_within(echo, patience));
                    assert_eq!(asked, passes, "{end}: {echo}");
                }
            }
            for undo in ["-P FORWARD ACCEPT", "-F FORWARD", "-F OPERATOR", "-X OPERATOR"] {
                iptables.run(undo);
            }
        }
    });
}

#[test]
fn teardown_takes_our_rules_out_of_iptables_chains() {
    const TEST: &str = "teardown_takes_our_rules_out";
    let Some(iptables) = Iptables::find(TEST) else {
        return;
    };
    node(TEST, |mut node| async move {
        iptables.run("-P FORWARD DROP");
        iptables.run("-A FORWARD -i eth7 -j ACCEPT");
        let before = iptables.run("-S FORWARD");
        pass(&mut node).await;
        assert_ne!(iptables.run("-S FORWARD"), before);
        let config = meshd_kernel::DriverConfig {
            uapi_dir: node.dir.path().to_owned(),
            ..meshd_kernel::DriverConfig::new(DEVICE)
        };
        let done = meshd_kernel::teardown(&config, false).await;
        assert_eq!(iptables.run("-S FORWARD"), before);
        assert_eq!(
            done.removed,
            ["ip", "ip6"].map(|f| format!("our rules of nftables chain {f} filter FORWARD"))
        );
        assert!(done.failed.is_empty(), "{done:?}");
    });
}

/// kube-proxy's table is not even read, which takes long where there are many Services.
#[test]
fn the_table_of_kube_proxy_is_passed_over() {
    node("the_table_of_kube_proxy", |mut node| async move {
        let nft = Connection::<Nftables>::new().unwrap();
        for (table, told) in [("kube-proxy", 0), ("kube-proxy2", 1)] {
            nft.add_table(table, Family::Ip).await.unwrap();
            let chain = Chain::new(table, "filter-forward").unwrap().family(Family::Ip);
            let base = BaseChain::filter(FilterHook::Forward, Priority::Filter).policy(Policy::Drop);
            nft.add_chain(chain.base(base)).await.unwrap();
            assert_eq!(node.observe().await.forward_chains.len(), told, "{table}");
        }
    });
}

#[test]
fn a_chain_of_an_unknown_tool_is_told_and_left_alone() {
    node("a_chain_of_an_unknown_tool", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let nft = Connection::<Nftables>::new().unwrap();
        nft.add_table("strict", Family::Inet).await.unwrap();
        let chain = Chain::new("strict", "fwd").unwrap().family(Family::Inet);
        let base = BaseChain::filter(FilterHook::Forward, Priority::Custom(10)).policy(Policy::Drop);
        nft.add_chain(chain.base(base)).await.unwrap();
        let told = |passes| ForwardChain {
            family: "inet".to_owned(),
            table: "strict".to_owned(),
            chain: "fwd".to_owned(),
            passes,
        };
        assert_eq!(node.observe().await.forward_chains, [told(false)].into());
        pass(&mut node).await;
        let rules: Vec<RuleInfo> = nft.list_rules("strict", Family::Inet).await.unwrap();
        assert_eq!(rules.len(), 0);
        assert_eq!(passes(&site, BRIEFLY), [false, false]);

        // Its owner lets pods through.
        let rule = || Rule::new("strict", "fwd").family(Family::Inet);
        for rule in [
            rule().match_iif_prefix("mshp"),
            rule().match_oif_prefix("mshp"),
            rule().match_iif(DEVICE),
            rule().match_oif(DEVICE),
        ] {
            nft.add_rule(rule.counter().accept()).await.unwrap();
        }
        assert_eq!(node.observe().await.forward_chains, [told(true)].into());
        assert_eq!(passes(&site, PATIENCE), [true, true]);
    });
}
