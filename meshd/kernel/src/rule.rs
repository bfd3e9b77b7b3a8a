//! Policy rules. The kernel cannot invert one selector of a rule alone (`not` inverts them all), so
//! `from SRC not fwmark VALUE/MASK lookup TABLE` is written as one rule for each bit of the mask, all of one priority:
//! a mark differs from VALUE under MASK exactly if it differs in one of the bits.

use crate::error::{Context, Result, gone_is_done};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Mark, ROUTE_PROTOCOL, Rule};
use nlink::netlink::messages::RuleMessage;
use nlink::netlink::rule::RuleBuilder;
use nlink::{Connection, Route};
use std::collections::{BTreeMap, BTreeSet};

/// One rule of the kernel's: `from SRC fwmark MARK/MASK lookup TABLE`; no mark at all for a mask of 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    from: IpNetwork,
    mark: Mark,
    table: u32,
    priority: u32,
}

/// Makes the rule so, and removes what an older one of the same source left.
pub(crate) async fn set(conn: &Connection<Route>, rule: &Rule) -> Result<()> {
    let wanted = parts(rule);
    let there = ours(conn).await?;
    for part in wanted.difference(&there) {
        match conn.add_rule(builder(part)).await {
            Err(e) if e.is_already_exists() => Ok(()),
            done => done.doing(|| format!("add rule {}", show(rule))),
        }?;
    }
    for part in there.difference(&wanted).filter(|p| p.from == rule.from) {
        delete(conn, part).await?;
    }
    Ok(())
}

/// Removes the rule.
pub(crate) async fn remove(conn: &Connection<Route>, rule: &Rule) -> Result<()> {
    let wanted = parts(rule);
    for part in ours(conn).await?.intersection(&wanted) {
        delete(conn, part).await?;
    }
    Ok(())
}

/// Removes all of ours, whatever they say, and tells which.
pub(crate) async fn remove_all(conn: &Connection<Route>) -> Result<Vec<String>> {
    let there = ours(conn).await?;
    for part in &there {
        delete(conn, part).await?;
    }
    let sources: BTreeSet<IpNetwork> = there.iter().map(|part| part.from).collect();
    Ok(sources
        .into_iter()
        .map(|from| format!("rule from {from}"))
        .collect())
}

async fn delete(conn: &Connection<Route>, part: &Part) -> Result<()> {
    gone_is_done(conn.del_rule(builder(part)).await).doing(|| format!("remove the rule from {}", part.from))
}

async fn ours(conn: &Connection<Route>) -> Result<BTreeSet<Part>> {
    let rules = conn.get_rules().await.doing(|| "list policy rules")?;
    Ok(rules.iter().filter_map(part_of).collect())
}

/// Reads ours back.
pub(crate) fn read(rules: &[RuleMessage]) -> BTreeSet<Rule> {
    let mut marks: BTreeMap<(IpNetwork, u32, u32), Mark> = BTreeMap::new();
    for part in rules.iter().filter_map(part_of) {
        let key = (part.from, part.table, part.priority);
        let mark = marks.entry(key).or_insert(Mark { value: 0, mask: 0 });
        mark.mask |= part.mark.mask;
        mark.value |= !part.mark.value & part.mark.mask;
    }
    let rule = |((from, table, priority), unless_mark)| Rule {
        from,
        unless_mark,
        table,
        priority,
    };
    marks.into_iter().map(rule).collect()
}

fn parts(rule: &Rule) -> BTreeSet<Part> {
    let Mark { value, mask } = rule.unless_mark;
    let part = |mark| Part {
        from: rule.from,
        mark,
        table: rule.table,
        priority: rule.priority,
    };
    if mask == 0 {
        return BTreeSet::from([part(Mark { value: 0, mask: 0 })]);
    }
    let bits = (0..u32::BITS).map(|n| 1 << n).filter(|bit| mask & bit != 0);
    let differs_in = |bit| Mark {
        value: !value & bit,
        mask: bit,
    };
    bits.map(|bit| part(differs_in(bit))).collect()
}

fn part_of(message: &RuleMessage) -> Option<Part> {
    let ours = message.protocol() == Some(ROUTE_PROTOCOL) && message.is_lookup() && !message.is_invert();
    if !ours {
        return None;
    }
    Some(Part {
        from: IpNetwork::new(message.source()?, message.src_len()).ok()?,
        mark: Mark {
            value: message.fwmark().unwrap_or(0),
            mask: message.fwmask().unwrap_or(0),
        },
        table: message.table_id(),
        priority: message.priority(),
    })
}

fn builder(part: &Part) -> RuleBuilder {
    let builder = match part.from {
        IpNetwork::V4(n) => RuleBuilder::v4().from_v4(n.network(), n.prefix()),
        IpNetwork::V6(n) => RuleBuilder::v6().from_v6(n.network(), n.prefix()),
    };
    let builder = builder
        .priority(part.priority)
        .table(part.table)
        .protocol(ROUTE_PROTOCOL);
    match part.mark {
        Mark { mask: 0, .. } => builder,
        Mark { value, mask } => builder.fwmark_mask(value, mask),
    }
}

fn show(rule: &Rule) -> String {
    let Mark { value, mask } = rule.unless_mark;
    format!(
        "from {} not fwmark {value:#x}/{mask:#x} lookup {} priority {}",
        rule.from, rule.table, rule.priority
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_match_exactly_the_marks_that_are_not_exempt() {
        let rule = Rule {
            from: "10.244.1.0/24".parse().unwrap(),
            unless_mark: Mark {
                value: 0x500,
                mask: 0xf00,
            },
            table: 1,
            priority: 2,
        };
        let parts = parts(&rule);
        for mark in 0..0x2000u32 {
            let matched = parts.iter().any(|p| (mark ^ p.mark.value) & p.mark.mask == 0);
            assert_eq!(matched, mark & 0xf00 != 0x500, "{mark:#x}");
        }
    }
}
