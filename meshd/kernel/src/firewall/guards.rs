//! The entries that let a pod's own packets pass: interface, MAC and address together.

use super::spec::{self, FAMILY, PODS4, PODS6, TABLE};
use crate::error::{Context, OpError, Result, is_gone};
use meshd_model::attachment::MacAddr;
use meshd_model::kernel::PodLink;
use nlink::netlink::nftables::{Set, SetElement};
use nlink::{Connection, Nftables};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Writes the pods' entries.
pub(crate) struct Guards<'a> {
    pub(crate) nft: &'a Connection<Nftables>,
    /// What is there, as far as the last look and all that was written since tell; None where they do not. With it a pod
    /// costs one transaction, however many there are.
    pub(crate) known: &'a mut Option<PodEntries>,
}

/// What may come from each interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodEntries(pub(crate) BTreeMap<String, BTreeSet<(MacAddr, IpAddr)>>);

impl PodEntries {
    /// Whether such a packet passes.
    pub(crate) fn allows(&self, ifname: &str, mac: MacAddr, address: IpAddr) -> bool {
        self.0.get(ifname).is_some_and(|e| e.contains(&(mac, address)))
    }

    pub(super) fn elements(&self, set: &str) -> Vec<SetElement> {
        let of_set = |a: &&(MacAddr, IpAddr)| set_of(a.1) == set;
        let of_pod = |(ifname, entries): (&String, &BTreeSet<(MacAddr, IpAddr)>)| {
            let elements = entries.iter().filter(of_set);
            elements
                .map(|(mac, address)| element(ifname, *mac, *address))
                .collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_pod).collect()
    }
}

impl Guards<'_> {
    /// Lets the pod send from its own addresses and MAC, and nothing else on its interface.
    pub(crate) async fn set(&mut self, link: &PodLink) -> Result<()> {
        let wanted = link.addresses.iter().map(|&a| (link.mac, a)).collect();
        self.replace(&link.host_ifname, wanted).await
    }

    /// Lets nothing pass on the interface.
    pub(crate) async fn remove(&mut self, ifname: &str) -> Result<()> {
        match self.replace(ifname, BTreeSet::new()).await {
            // No table, no entries.
            Err(e) if e.errno == NO_TABLE => Ok(()),
            other => other,
        }
    }

    /// Where what is known turns out to be wrong, it is read anew.
    async fn replace(&mut self, ifname: &str, wanted: BTreeSet<(MacAddr, IpAddr)>) -> Result<()> {
        if self.known.is_some() {
            let done = self.write(ifname, &wanted).await;
            if done.is_err() {
                // Also where only the answer was lost: what was written would be known to nobody.
                *self.known = None;
            }
            match done {
                Err(e) if is_gone(e.errno) => {}
                done => return done,
            }
        }
        *self.known = Some(all(self.nft).await?);
        let done = self.write(ifname, &wanted).await;
        if done.is_err() {
            *self.known = None;
        }
        done
    }

    /// Adds what is wanted, also what is known to be there, which changes nothing, and deletes what is known and not wanted.
    async fn write(&mut self, ifname: &str, wanted: &BTreeSet<(MacAddr, IpAddr)>) -> Result<()> {
        let Some(known) = self.known.as_mut() else {
            return Ok(());
        };
        let there = known.0.get(ifname).cloned().unwrap_or_default();
        let stale: Vec<_> = there.difference(wanted).copied().collect();
        if stale.is_empty() && wanted.is_empty() {
            return Ok(());
        }
        let mut batch = self.nft.transaction();
        for set in pod_sets() {
            let of_set =
                |(m, a): &(MacAddr, IpAddr)| (set_of(*a) == set.name()).then(|| element(ifname, *m, *a));
            let old: Vec<_> = stale.iter().filter_map(of_set).collect();
            let new: Vec<_> = wanted.iter().filter_map(of_set).collect();
            if !old.is_empty() {
                batch = batch.del_set_elements(&set, &old);
            }
            if !new.is_empty() {
                batch = batch.add_set_elements(&set, &new);
            }
        }
        let done = batch.commit(self.nft).await;
        done.doing(|| format!("write the entries of {ifname} in nftables table inet {TABLE}"))?;
        match wanted.is_empty() {
            true => known.0.remove(ifname),
            false => known.0.insert(ifname.to_owned(), wanted.clone()),
        };
        Ok(())
    }
}

/// All of them.
pub(super) async fn all(nft: &Connection<Nftables>) -> Result<PodEntries> {
    let mut entries = PodEntries::default();
    for set in [PODS4, PODS6] {
        let elements = nft.list_set_elements(TABLE, set, FAMILY).await;
        let elements = elements
            .doing(|| format!("read set {set} of nftables table inet {TABLE}"))
            .map_err(|e| if is_gone(e.errno) { no_table() } else { e })?;
        for (ifname, mac, address) in elements.iter().filter_map(|e| parse(e.key())) {
            entries.0.entry(ifname).or_default().insert((mac, address));
        }
    }
    Ok(entries)
}

/// Not ENOENT: that says that the pod's namespace is gone.
const NO_TABLE: Option<i32> = Some(libc::ENOTCONN);

fn no_table() -> OpError {
    OpError {
        errno: NO_TABLE,
        message: format!(
            "nftables table inet {TABLE} is not in force: no pod is attached before the firewall is set"
        ),
    }
}

fn pod_sets() -> impl Iterator<Item = Set> {
    let is_pods = |set: &Set| matches!(set.name(), PODS4 | PODS6);
    spec::sets().into_iter().filter(is_pods)
}

fn set_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { PODS4 } else { PODS6 }
}

/// `"mshp1" . 02:00:00:00:00:01 . 10.244.1.2`
fn element(ifname: &str, mac: MacAddr, address: IpAddr) -> SetElement {
    let mut name = ifname.as_bytes().to_vec();
    name.resize(16, 0);
    let address = match address {
        IpAddr::V4(v4) => SetElement::ipv4(v4),
        IpAddr::V6(v6) => SetElement::ipv6(v6),
    };
    SetElement::concat([SetElement::new(name), SetElement::ether(mac.0), address])
}

/// Reads a key of [`element`]'s shape: 16 bytes of name, 6 of MAC and 2 of padding, the address.
fn parse(key: &[u8]) -> Option<(String, MacAddr, IpAddr)> {
    let (name, rest) = key.split_at_checked(16)?;
    let (mac, address) = rest.split_at_checked(8)?;
    let name = name.split(|b| *b == 0).next()?;
    let mac = MacAddr(mac.get(..6)?.try_into().ok()?);
    let address = match address.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    Some((String::from_utf8(name.to_vec()).ok()?, mac, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_reads_back() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        for address in ["10.244.1.2", "fd00:244::2"] {
            let address = address.parse().unwrap();
            let read = parse(element("mshp0123456789a", mac, address).key());
            assert_eq!(read, Some(("mshp0123456789a".to_owned(), mac, address)));
        }
        assert_eq!(parse(&[0; 27]), None);
    }
}
