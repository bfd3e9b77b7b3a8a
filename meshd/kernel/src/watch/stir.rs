//! What the kernel itself tells of a pod's link that is made, and of which nothing is observed: each pod would cost a look at
//! all of the node otherwise. Only what no socket asked for (port id 0) can be such.

use meshd_model::kernel::POD_IFNAME_PREFIX;

const HEADER: usize = 16;
const NEWLINK: u16 = 16;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const NEWNETCONF: u16 = 80;
const DELNETCONF: u16 = 81;
const IFLA_IFNAME: u16 = 3;
/// `IFF_UP` and `IFF_LOWER_UP`
const WELL: u32 = 0x1_0001;
/// `RT_TABLE_LOCAL` and `RTPROT_KERNEL`
const LOCAL: u8 = 255;
const KERNEL: u8 = 2;
const NETCONFA_IFINDEX: u16 = 1;
/// `NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN`
const IGNORE_ROUTES: u16 = 6;
/// `NETCONFA_FORWARDING`, `NETCONFA_RP_FILTER`: what is observed of the device's own parameters.
const OBSERVED: [u16; 2] = [2, 3];

/// Whether every message is such.
pub(super) fn is_all(mut messages: &[u8]) -> bool {
    while !messages.is_empty() {
        let Some(header) = messages.first_chunk::<HEADER>() else {
            return false;
        };
        let [a, b, c, d, low, high, _, _, _, _, _, _, port @ ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(body) = messages.get(HEADER..length) else {
            return false;
        };
        if port != [0; 4] || !is_one(u16::from_ne_bytes([low, high]), body) {
            return false;
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

fn is_one(kind: u16, body: &[u8]) -> bool {
    match kind {
        NEWLINK => is_pods_and_well(body),
        // The kernel's own routes to a link's addresses and groups: `rtm_table` and `rtm_protocol`.
        NEWROUTE | DELROUTE => body.get(4..6) == Some(&[LOCAL, KERNEL]),
        NEWNETCONF | DELNETCONF => is_no_change(body),
        _ => false,
    }
}

/// A pod's link that has come up. One that is not up any more is news.
fn is_pods_and_well(body: &[u8]) -> bool {
    let flags = body
        .get(8..12)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_ne_bytes);
    let name = body.get(16..).and_then(|b| attribute(b, IFLA_IFNAME));
    flags.is_some_and(|f| f & WELL == WELL)
        && name.is_some_and(|n| n.starts_with(POD_IFNAME_PREFIX.as_bytes()))
}

/// Parameters of one interface of which none is observed, or all of them at once, as they are told of one that is new or
/// gone: that is told as a link besides.
fn is_no_change(body: &[u8]) -> bool {
    let attributes = body.get(4..).unwrap_or_default();
    let index = attribute(attributes, NETCONFA_IFINDEX).and_then(|b| b.try_into().ok());
    let is_one_interfaces = index.map(i32::from_ne_bytes).is_some_and(|i| i > 0);
    let has = |kind: u16| attribute(attributes, kind).is_some();
    is_one_interfaces && (OBSERVED.iter().all(|kind| !has(*kind)) || (has(OBSERVED[0]) && has(IGNORE_ROUTES)))
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some([a, b, c, d]) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([*c, *d]) & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, port: u32, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = fixed.to_vec();
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn link(port: u32, flags: u32, name: &[u8]) -> Vec<u8> {
        let mut fixed = [0; 16];
        fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
        message(NEWLINK, port, &fixed, &[(4, &[0; 4]), (IFLA_IFNAME, name)])
    }

    #[test]
    fn what_the_kernel_tells_of_a_pods_link_that_comes_up_is_no_news() {
        assert!(is_all(&link(0, WELL, b"mshp1\0")));
        assert!(!is_all(&link(0, 1, b"mshp1\0")), "its carrier is gone");
        assert!(!is_all(&link(7, WELL, b"mshp1\0")), "another hand's");
        assert!(!is_all(&link(0, WELL, b"eth0\0")));
        let route = |table, protocol| {
            message(
                NEWROUTE,
                0,
                &[10, 8, 0, 0, table, protocol, 0, 1, 0, 0, 0, 0],
                &[],
            )
        };
        assert!(is_all(&route(LOCAL, KERNEL)));
        assert!(!is_all(&route(254, KERNEL)) && !is_all(&route(LOCAL, 109)));
        assert!(!is_all(&[route(LOCAL, KERNEL), route(254, KERNEL)].concat()));
        let parameters = |index: i32, kinds: &[u16]| {
            let index = index.to_ne_bytes();
            let kinds = kinds.iter().map(|k| (*k, &[1, 0, 0, 0][..]));
            let all: Vec<_> = [(NETCONFA_IFINDEX, &index[..])]
                .into_iter()
                .chain(kinds)
                .collect();
            message(NEWNETCONF, 0, &[2, 0, 0, 0], &all)
        };
        assert!(is_all(&parameters(9, &[5])) && is_all(&parameters(9, &[2, 3, 6])));
        assert!(!is_all(&parameters(9, &[2])) && !is_all(&parameters(9, &[3])));
        assert!(!is_all(&parameters(-1, &[5])), "all interfaces");
        assert!(!is_all(&message(17, 0, &[0; 16], &[])));
        assert!(!is_all(&[16, 0, 0, 0, 1]));
    }
}
