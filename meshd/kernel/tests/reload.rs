//! Another tool loads its rules anew, and flushes all that there are before: in the middle of traffic.

mod support;

use meshd_kernel::{DriverConfig, KernelDriver, teardown};
use nlink::netlink::nftables::{Family, NFT_MSG_DELTABLE, RawMessage};
use nlink::{Connection, Nftables};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{
    BRIEFLY, DEVICE, Inbox, Keys, Node, PATIENCE, Site, node, node_that_holds, open_firewall, send, site,
};

/// What such a tool does: `flush ruleset`, then its own, in one transaction.
async fn reload(nft: &Connection<Nftables>) {
    // Without a name, it is all tables that nobody holds.
    let flush = RawMessage::new(NFT_MSG_DELTABLE, Family::Inet);
    let batch = nft.transaction().raw(flush);
    batch.add_table("theirs", Family::Inet).commit(nft).await.unwrap();
}

async fn has_table(nft: &Connection<Nftables>) -> bool {
    let tables = nft.list_tables_in(Family::Inet).await.unwrap();
    tables.iter().any(|t| t.name == "meshd")
}

/// Whether this kernel knows tables that are one socket's (2) and are left when that is closed (4).
async fn can_hold(nft: &Connection<Nftables>) -> bool {
    let made = nft.add_table_with_flags("probe", Family::Inet, 2 | 4).await;
    made.is_ok() && nft.del_table("probe", Family::Inet).await.is_ok()
}

/// What came of traffic while something happened.
#[derive(Debug, Default)]
struct Counts {
    asked: usize,
    answered: usize,
    /// Plaintext to the pod that was sent; and that arrived.
    sent: usize,
    arrived: usize,
    /// Packets of the pod that came to the world outside with an address that is not the node's.
    leaked: usize,
}

/// The pod asks the world outside, numbered one after another, and the neighbour sends plaintext to it, until `done`.
async fn traffic_while(site: &Site, during: impl Future<Output = ()>) -> Counts {
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let plaintext = Inbox::within(&site.pod, "0.0.0.0:0");
    let outside = Inbox::within(&site.neighbour, "203.0.113.9:0");
    let (neighbour, pod) = (site.neighbour.try_clone(), site.pod.try_clone());
    let (to_pod, stopped, count) = (
        format!("10.244.1.2:{}", plaintext.port()),
        stop.clone(),
        sent.clone(),
    );
    let leaks = std::thread::spawn(move || {
        neighbour.run(move || {
            while !stopped.load(Relaxed) {
                send("192.0.2.2:0", &to_pod);
                count.fetch_add(1, Relaxed);
            }
        });
    });
    let echo = site.neighbour.echo("203.0.113.9:0");
    let (to_outside, stopped) = (format!("203.0.113.9:{}", outside.port()), stop.clone());
    let asking = std::thread::spawn(move || {
        pod.run(move || {
            let mut counts = Counts::default();
            while !stopped.load(Relaxed) {
                counts.asked += 1;
                counts.answered += usize::from(support::ask_within(echo, BRIEFLY * 5));
                // A flow of its own each time, whose source is looked at.
                send("10.244.1.2:0", &to_outside);
            }
            counts
        })
    });
    during.await;
    stop.store(true, Relaxed);
    leaks.join().unwrap();
    let mut counts = asking.join().unwrap();
    counts.sent = sent.load(Relaxed);
    while plaintext.next(BRIEFLY).is_some() {
        counts.arrived += 1;
    }
    let own: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    while let Some(from) = outside.next(BRIEFLY) {
        counts.leaked += usize::from(from != own);
    }
    counts
}

#[test]
fn a_reload_in_mid_traffic_loses_and_leaks_nothing() {
    const TEST: &str = "a_reload_in_mid_traffic";
    node_that_holds(true, TEST, |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let nft = Connection::<Nftables>::new().unwrap();
        if !can_hold(&nft).await {
            meshd_skip::skip(
                TEST,
                "the kernel has no tables that are held and persist (Linux 6.9)",
            );
            return;
        }
        let control = traffic_while(&site, tokio::time::sleep(Duration::from_secs(1))).await;
        assert_eq!(
            control.answered, control.asked,
            "void: the control lost packets: {control:?}"
        );
        let counts = traffic_while(&site, async {
            for _ in 0..50 {
                reload(&nft).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(counts.asked > 10 && counts.sent > 10, "{counts:?}");
        assert_eq!(counts.answered, counts.asked, "{counts:?}");
        assert_eq!((counts.arrived, counts.leaked), (0, 0), "{counts:?}");
        assert_eq!(node.observe().await.firewall, Some(open_firewall()));

        // Without the driver the table stays, and is anybody's: teardown removes it, and so does a flush.
        drop(node.driver);
        let end = Instant::now() + PATIENCE;
        while nft.del_table("meshd", Family::Inet).await.is_err() {
            assert!(
                has_table(&nft).await && Instant::now() < end,
                "the table is held by nobody"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// A driver takes over what an earlier one has left, and teardown what the last one has.
#[test]
fn a_table_that_was_left_is_held_again() {
    const TEST: &str = "a_table_that_was_left";
    node_that_holds(true, TEST, |mut node| async move {
        node.firewall().await;
        let nft = Connection::<Nftables>::new().unwrap();
        if !can_hold(&nft).await {
            meshd_skip::skip(
                TEST,
                "the kernel has no tables that are held and persist (Linux 6.9)",
            );
            return;
        }
        restart(&mut node, false).await;
        restart(&mut node, true).await;
        node.observe().await;
        reload(&nft).await;
        assert!(has_table(&nft).await, "the new driver does not hold it");

        restart(&mut node, false).await;
        assert!(has_table(&nft).await, "it went with the driver that held it");
        let done = teardown(&config(&node, false), false).await;
        assert!(done.failed.is_empty(), "{done:?}");
        assert!(!has_table(&nft).await);
    });
}

fn config(node: &Node, hold_table: bool) -> DriverConfig {
    DriverConfig {
        uapi_dir: node.dir.path().to_owned(),
        hold_table,
        ..DriverConfig::new(DEVICE)
    }
}

/// The driver ends, and another begins.
async fn restart(node: &mut Node, hold: bool) {
    // One that holds nothing stands in between: two cannot hold.
    for hold in [false, hold] {
        let next = KernelDriver::start(config(node, hold), Arc::new(Keys)).unwrap();
        end(std::mem::replace(&mut node.driver, next)).await;
    }
}

async fn end(driver: KernelDriver) {
    drop((driver.actions, driver.events));
    driver.task.await.unwrap();
}

/// Where the kernel holds no table, a flush is noticed at once.
#[test]
fn a_table_that_another_hand_removes_is_told_at_once() {
    node("a_table_that_another_hand_removes", |mut node| async move {
        node.firewall().await;
        let nft = Connection::<Nftables>::new().unwrap();
        let mut times = Vec::new();
        for _ in 0..9 {
            node.settle().await;
            assert_eq!(node.observe().await.firewall, Some(support::firewall()));
            let began = Instant::now();
            reload(&nft).await;
            assert_eq!(node.unasked().await.firewall, None);
            times.push(began.elapsed());
            node.firewall().await;
        }
        times.sort();
        println!(
            "noticed within {:?} to {:?}, median {:?}",
            times[0], times[8], times[4]
        );
    });
}
