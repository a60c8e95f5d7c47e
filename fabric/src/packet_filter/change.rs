//! What differs between the desired and the observed tables, as operations of one transaction.

use super::{
    Chain, Hook, Observed, ObservedChain, ObservedHook, ObservedRule, ObservedTable, Ownership,
    Rule, Ruleset, Table, TableId,
};

/// Operations that are carried out together or not at all.
/// It displays as the `nft` commands that would do the same, one per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The state that it starts from, see [`Observed::generation`]. In any other state it is not
    /// carried out; zero means that any will do.
    pub generation: u32,
    /// In the order in which they are carried out.
    pub operations: Vec<Operation>,
}

impl Change {
    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// One step of a [`Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a table, unless it exists.
    AddTable {
        /// The new table.
        table: TableId,
        /// A remark for whoever lists the rules.
        comment: Option<String>,
    },
    /// Makes a chain, unless it exists with the same hook.
    AddChain {
        /// The table that gets it.
        table: TableId,
        /// Its name.
        chain: String,
        /// Where packets enter it.
        hook: Option<Hook>,
    },
    /// Makes a rule.
    AddRule {
        /// The table that gets it.
        table: TableId,
        /// The chain that gets it.
        chain: String,
        /// The handle of the rule that it comes before; `None` for the end of the chain.
        before: Option<u64>,
        /// What it says.
        rule: Rule,
    },
    /// Removes a rule.
    DeleteRule {
        /// The table that has it.
        table: TableId,
        /// The chain that has it.
        chain: String,
        /// Its handle.
        handle: u64,
    },
    /// Removes a chain that nothing leads to.
    DeleteChain {
        /// The table that has it.
        table: TableId,
        /// Its name.
        chain: String,
    },
    /// Removes a table with all that it holds.
    DeleteTable {
        /// The table.
        table: TableId,
    },
}

/// Returns what makes the `observed` tables hold what is `desired`.
///
/// A table that is ours as a whole is made anew if it differs in anything; as this is one
/// transaction, no packet meets less than all of the rules. In a table that we share, missing rules
/// are added, each before those that are desired to follow it, and marked ones that are not desired
/// are removed.
pub fn diff(desired: &Ruleset, observed: &Observed) -> Change {
    let operations = desired.tables.iter().flat_map(|table| {
        let observed = observed.tables.get(&table.id);
        match &table.ownership {
            Ownership::Whole => replace(table, observed),
            Ownership::Marked(mark) => complete(table, mark, observed),
        }
    });
    Change { generation: observed.generation, operations: operations.collect() }
}

/// Returns what removes every rule that has a comment which `is_stale`.
pub fn removal(observed: &Observed, is_stale: impl Fn(&str) -> bool) -> Change {
    removal_with_chains(observed, is_stale, |_| false)
}

/// Returns what removes every rule that has a comment which `is_stale`, and then every chain with such
/// a name.
pub fn removal_with_chains(
    observed: &Observed,
    is_stale: impl Fn(&str) -> bool,
    is_stale_chain: impl Fn(&str) -> bool,
) -> Change {
    let mut operations = Vec::new();
    for (id, table) in &observed.tables {
        for (name, chain) in &table.chains {
            let stale = |rule: &&ObservedRule| rule.comment.as_deref().is_some_and(&is_stale);
            operations.extend(chain.rules.iter().filter(stale).map(|rule| {
                let (table, chain) = (id.clone(), name.clone());
                Operation::DeleteRule { table, chain, handle: rule.handle }
            }));
        }
        let chains = table.chains.keys().filter(|name| is_stale_chain(name));
        let delete =
            |name: &String| Operation::DeleteChain { table: id.clone(), chain: name.clone() };
        operations.extend(chains.map(delete));
    }
    Change { generation: observed.generation, operations }
}

fn replace(table: &Table, observed: Option<&ObservedTable>) -> Vec<Operation> {
    let wanted = !table.chains.is_empty();
    if wanted && observed.is_some_and(|observed| holds_exactly(observed, table)) {
        return Vec::new();
    }
    let id = &table.id;
    let delete = observed.map(|_| Operation::DeleteTable { table: id.clone() });
    let add = if wanted { additions(table, None) } else { Vec::new() };
    delete.into_iter().chain(add).collect()
}

fn holds_exactly(observed: &ObservedTable, table: &Table) -> bool {
    let same = |chain: &Chain| {
        observed.chains.get(&chain.name).is_some_and(|observed| {
            has_hook(observed, chain.hook)
                && observed.rules.len() == chain.rules.len()
                && observed
                    .rules
                    .iter()
                    .zip(&chain.rules)
                    .all(|(observed, rule)| is(observed, rule))
        })
    };
    !observed.foreign
        && observed.chains.len() == table.chains.len()
        && table.chains.iter().all(same)
}

fn complete(table: &Table, mark: &str, observed: Option<&ObservedTable>) -> Vec<Operation> {
    let is_marked = |comment: Option<&str>| {
        let rest = comment.and_then(|text| text.strip_prefix(mark));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
    };
    let mut desired_rules = table.chains.iter().flat_map(|chain| &chain.rules);
    let wanted = desired_rules.any(|rule| is_marked(rule.comment.as_deref()));
    let mut operations = if wanted { additions(table, observed) } else { Vec::new() };
    for (name, chain) in observed.into_iter().flat_map(|table| &table.chains) {
        let desired = table.chains.iter().find(|desired| desired.name == *name);
        let is_desired = |observed: &ObservedRule| {
            desired.is_some_and(|chain| chain.rules.iter().any(|rule| is(observed, rule)))
        };
        let ours = chain.rules.iter().filter(|rule| is_marked(rule.comment.as_deref()));
        operations.extend(ours.filter(|rule| !is_desired(rule)).map(|rule| {
            Operation::DeleteRule {
                table: table.id.clone(),
                chain: name.clone(),
                handle: rule.handle,
            }
        }));
    }
    operations
}

/// What of `table` is missing: the table, then all chains, then the rules, which may lead from any
/// chain to any other.
fn additions(table: &Table, observed: Option<&ObservedTable>) -> Vec<Operation> {
    let mut operations = Vec::new();
    if observed.is_none() {
        let comment = table.comment.clone();
        operations.push(Operation::AddTable { table: table.id.clone(), comment });
    }
    let existing = |chain: &Chain| observed?.chains.get(&chain.name);
    for chain in &table.chains {
        // A chain with another hook cannot be had; the kernel then says so.
        if !existing(chain).is_some_and(|existing| has_hook(existing, chain.hook)) {
            operations.push(Operation::AddChain {
                table: table.id.clone(),
                chain: chain.name.clone(),
                hook: chain.hook,
            });
        }
    }
    for chain in &table.chains {
        let existing = existing(chain).map_or(&[][..], |existing| &existing.rules);
        operations.extend(missing_rules(chain, existing).map(|(before, rule)| {
            Operation::AddRule {
                table: table.id.clone(),
                chain: chain.name.clone(),
                before,
                rule: rule.clone(),
            }
        }));
    }
    operations
}

/// The rules that a chain lacks, each with the handle of the one that it must come before.
fn missing_rules<'a>(
    chain: &'a Chain,
    observed: &'a [ObservedRule],
) -> impl Iterator<Item = (Option<u64>, &'a Rule)> {
    let handle =
        |rule: &Rule| observed.iter().find(|observed| is(observed, rule)).map(|o| o.handle);
    chain
        .rules
        .iter()
        .enumerate()
        .filter(move |(_, rule)| handle(rule).is_none())
        .map(move |(place, rule)| (chain.rules[place..].iter().find_map(handle), rule))
}

fn is(observed: &ObservedRule, rule: &Rule) -> bool {
    observed.rule.as_ref() == Some(rule)
}

fn has_hook(observed: &ObservedChain, hook: Option<Hook>) -> bool {
    match observed.hook {
        ObservedHook::Absent => hook.is_none(),
        ObservedHook::Known(observed) => hook == Some(observed),
        ObservedHook::Foreign => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::packet_filter::examples::{agent, attachment, chain, emptied, rule};
    use crate::packet_filter::{Family, Verdict};

    #[test]
    fn empty_kernel_gets_everything_the_agent_desires() {
        let mut desired = agent();
        desired.tables.truncate(1);
        assert_eq!(
            diff(&desired, &Observed::default()).to_string(),
            "\
add table ip flannel-ipv4 { comment \"rules for flannel-ipv4\"; }
add chain ip flannel-ipv4 forward { type filter hook forward priority filter; policy accept; }
add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority srcnat; policy accept; }
add rule ip flannel-ipv4 forward ip saddr 10.244.0.0/16 accept comment \"flanneld forward\"
add rule ip flannel-ipv4 forward ip daddr 10.244.0.0/16 accept comment \"flanneld forward\"
add rule ip flannel-ipv4 postrtg meta mark & 0x00004000 == 0x00004000 return comment \"flanneld masq\"
add rule ip flannel-ipv4 postrtg ip saddr 10.244.3.0/24 ip daddr 10.244.0.0/16 return comment \"flanneld masq\"
add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 ip daddr 10.244.3.0/24 return comment \"flanneld masq\"
add rule ip flannel-ipv4 postrtg ip saddr != 10.244.0.0/16 ip daddr 10.244.3.0/24 return comment \"flanneld masq\"
add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment \"flanneld masq\"
add rule ip flannel-ipv4 postrtg ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random comment \"flanneld masq\"
"
        );
    }

    #[test]
    fn empty_kernel_gets_everything_an_attachment_desires() {
        assert_eq!(
            diff(&attachment("aa-1", 5), &Observed::default()).to_string(),
            "\
add table inet cni_plugins_masquerade { comment \"Masquerading for plugins from github.com/containernetworking/plugins\"; }
add chain inet cni_plugins_masquerade masq_checks
add chain inet cni_plugins_masquerade postrouting { type nat hook postrouting priority srcnat; policy accept; }
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.244.3.5 ip daddr != 10.244.3.0/24 masquerade comment \"aa-1, net: cbr0, if: eth0, id: 5\"
add rule inet cni_plugins_masquerade masq_checks ip6 saddr fd00:10:244:3::5 ip6 daddr != fd00:10:244:3::/64 masquerade comment \"aa-1, net: cbr0, if: eth0, id: 5\"
add rule inet cni_plugins_masquerade postrouting ip daddr 224.0.0.0/4 return
add rule inet cni_plugins_masquerade postrouting ip6 daddr ff00::/8 return
add rule inet cni_plugins_masquerade postrouting goto masq_checks
"
        );
    }

    #[test]
    fn second_attachment_adds_only_its_rules_and_takes_only_them_away() {
        let mut kernel = kernel_with(&attachment("aa-1", 5));
        let change = diff(&attachment("bb-2", 6), &kernel);
        assert_eq!(
            change.to_string(),
            "\
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.244.3.6 ip daddr != 10.244.3.0/24 masquerade comment \"bb-2, net: cbr0, if: eth0, id: 6\"
add rule inet cni_plugins_masquerade masq_checks ip6 saddr fd00:10:244:3::6 ip6 daddr != fd00:10:244:3::/64 masquerade comment \"bb-2, net: cbr0, if: eth0, id: 6\"
"
        );
        carry_out(&mut kernel, &change).unwrap();
        assert_eq!(
            diff(&emptied(attachment("aa-1", 5)), &kernel).to_string(),
            "\
delete rule inet cni_plugins_masquerade masq_checks handle 1
delete rule inet cni_plugins_masquerade masq_checks handle 2
"
        );
    }

    #[test]
    fn stale_rules_go_and_no_others() {
        let mut kernel = kernel_with(&attachment("aa-1", 5));
        let change = diff(&attachment("bb-2", 6), &kernel);
        carry_out(&mut kernel, &change).unwrap();
        assert_eq!(
            removal(&kernel, |comment| comment.starts_with("aa-")).to_string(),
            "\
delete rule inet cni_plugins_masquerade masq_checks handle 1
delete rule inet cni_plugins_masquerade masq_checks handle 2
"
        );
        assert!(removal(&kernel, |_| false).is_empty());
    }

    #[test]
    fn changed_address_replaces_the_rule_of_the_attachment() {
        let kernel = kernel_with(&attachment("aa-1", 5));
        let change = diff(&attachment("aa-1", 6), &kernel);
        let adds = |operation: &&Operation| matches!(operation, Operation::AddRule { .. });
        assert_eq!(change.operations.iter().filter(adds).count(), 2);
        assert!(
            change.to_string().ends_with(
                "handle 1\ndelete rule inet cni_plugins_masquerade masq_checks handle 2\n"
            )
        );
    }

    #[test]
    fn missing_shared_rule_comes_before_its_successor() {
        let desired = attachment("aa-1", 5);
        let mut kernel = kernel_with(&desired);
        let table = kernel.tables.get_mut(&desired.tables[0].id).unwrap();
        table.chains.get_mut("postrouting").unwrap().rules.remove(0);
        assert_eq!(
            diff(&desired, &kernel).to_string(),
            "insert rule inet cni_plugins_masquerade postrouting handle 4 ip daddr 224.0.0.0/4 return\n"
        );
    }

    #[test]
    fn teardown_where_nothing_was_made_is_empty() {
        let desired = attachment("aa-1", 5);
        let mut unmarked = desired.clone();
        unmarked.tables[0].chains[0].rules.clear();
        for nothing in [&emptied(desired), &unmarked] {
            assert!(diff(nothing, &Observed::default()).is_empty());
        }
        assert!(diff(&emptied(agent()), &Observed::default()).is_empty());
    }

    #[test]
    fn whole_table_that_differs_in_anything_is_made_anew() {
        type Damage = fn(&mut ObservedTable);
        let damages: [(&str, Damage); 8] = [
            ("something foreign", |table| table.foreign = true),
            ("chain gone", |table| drop(table.chains.remove("forward"))),
            ("chain too many", |table| drop(table.chains.insert("x".to_owned(), empty(None)))),
            ("hook", |table| forward(table).hook = ObservedHook::Foreign),
            ("rule gone", |table| drop(forward(table).rules.pop())),
            ("rule twice", |table| {
                let rule = forward(table).rules[0].clone();
                forward(table).rules.push(rule);
            }),
            ("order", |table| forward(table).rules.reverse()),
            ("unreadable rule", |table| forward(table).rules[0].rule = None),
        ];
        let mut desired = agent();
        desired.tables.truncate(1);
        let mut fresh = vec![Operation::DeleteTable { table: desired.tables[0].id.clone() }];
        fresh.extend(diff(&desired, &Observed::default()).operations);
        for (name, damage) in damages {
            let mut kernel = kernel_with(&desired);
            damage(kernel.tables.values_mut().next().unwrap());
            assert_eq!(diff(&desired, &kernel).operations, fresh, "{name}");
        }
    }

    #[test]
    fn change_starts_from_the_observed_generation() {
        let observed = Observed { generation: 7, ..Observed::default() };
        assert_eq!(diff(&agent(), &observed).generation, 7);
    }

    proptest! {
        #[test]
        fn carrying_out_a_change_leaves_nothing_to_do(
            before in any_ruleset("m1"),
            marks in prop::collection::vec(any::<bool>(), 8),
            desired in any_ruleset("m2"),
        ) {
            let mut kernel = kernel_with(&before);
            let rules = kernel.tables.values_mut().flat_map(|table| table.chains.values_mut());
            for (rule, foreign) in rules.flat_map(|chain| &mut chain.rules).zip(marks) {
                rule.rule = rule.rule.take().filter(|_| !foreign);
            }
            let unmarked = others(&kernel);
            let change = diff(&desired, &kernel);
            carry_out(&mut kernel, &change).unwrap();
            prop_assert_eq!(diff(&desired, &kernel), Change::default());
            let remaining = others(&kernel);
            prop_assert!(unmarked.iter().all(|handle| remaining.contains(handle)));
        }
    }

    /// A table of our own and a shared one, with rules of one mark, of another, and of none.
    fn any_ruleset(mark: &'static str) -> impl Strategy<Value = Ruleset> {
        let comments = [None, Some("m1, x"), Some("m2, x")];
        let rule = (0..3usize, any::<bool>()).prop_map(move |(comment, accept)| {
            let verdict = if accept { Verdict::Accept } else { Verdict::Return };
            rule(&[], verdict, comments[comment])
        });
        let rules = prop::collection::vec(rule, 0..4);
        let chains = prop::collection::btree_map(prop_oneof![Just("a"), Just("nat")], rules, 0..3);
        let chains = chains.prop_map(|chains| {
            let chains = chains.into_iter().map(|(name, rules)| {
                chain(name, (name == "nat").then_some(Hook::NatPostrouting), rules)
            });
            chains.collect()
        });
        prop::collection::vec(chains, 2).prop_map(move |chains| {
            let ownerships = [Ownership::Whole, Ownership::Marked(mark.to_owned())];
            let tables = chains.into_iter().zip(ownerships).map(|(chains, ownership)| {
                let family = if ownership == Ownership::Whole { Family::Ip } else { Family::Inet };
                let id = TableId { family, name: "t".to_owned() };
                Table { id, ownership, comment: None, chains }
            });
            Ruleset { tables: tables.collect() }
        })
    }

    /// The handles in the shared table of rules that are not of mark `m2`.
    fn others(kernel: &Observed) -> Vec<u64> {
        let shared = kernel.tables.iter().filter(|(id, _)| id.family == Family::Inet);
        let rules = shared.flat_map(|(_, table)| table.chains.values()).flat_map(|c| &c.rules);
        let is_ours =
            |rule: &&ObservedRule| !rule.comment.as_deref().unwrap_or("").starts_with("m2");
        rules.filter(is_ours).map(|rule| rule.handle).collect()
    }

    fn forward(table: &mut ObservedTable) -> &mut ObservedChain {
        table.chains.get_mut("forward").unwrap()
    }

    fn empty(hook: Option<Hook>) -> ObservedChain {
        let hook = hook.map_or(ObservedHook::Absent, ObservedHook::Known);
        ObservedChain { hook, rules: Vec::new() }
    }

    /// A model of the kernel after it was given a ruleset.
    fn kernel_with(ruleset: &Ruleset) -> Observed {
        let mut kernel = Observed::default();
        let operations = ruleset.tables.iter().flat_map(|table| additions(table, None)).collect();
        carry_out(&mut kernel, &Change { generation: 0, operations }).unwrap();
        kernel
    }

    fn carry_out(kernel: &mut Observed, change: &Change) -> Result<(), String> {
        change.operations.iter().try_for_each(|operation| {
            step(&mut kernel.tables, operation).ok_or_else(|| format!("ENOENT: {operation}"))
        })
    }

    fn step(tables: &mut BTreeMap<TableId, ObservedTable>, operation: &Operation) -> Option<()> {
        match operation {
            Operation::AddTable { table, .. } => {
                tables.entry(table.clone()).or_default();
            }
            Operation::AddChain { table, chain, hook } => {
                tables.get_mut(table)?.chains.entry(chain.clone()).or_insert_with(|| empty(*hook));
            }
            Operation::AddRule { table, chain, before, rule } => {
                let table = tables.get_mut(table)?;
                let rules = table.chains.values().flat_map(|chain| &chain.rules);
                let handle = 1 + rules.map(|rule| rule.handle).max().unwrap_or(0);
                let rules = &mut table.chains.get_mut(chain)?.rules;
                let place = match before {
                    Some(before) => rules.iter().position(|rule| rule.handle == *before)?,
                    None => rules.len(),
                };
                let (comment, rule) = (rule.comment.clone(), Some(rule.clone()));
                rules.insert(place, ObservedRule { handle, comment, rule });
            }
            Operation::DeleteRule { table, chain, handle } => {
                let rules = &mut tables.get_mut(table)?.chains.get_mut(chain)?.rules;
                rules.remove(rules.iter().position(|rule| rule.handle == *handle)?);
            }
            Operation::DeleteChain { table, chain } => {
                drop(tables.get_mut(table)?.chains.remove(chain)?);
            }
            Operation::DeleteTable { table } => drop(tables.remove(table)?),
        }
        Some(())
    }
}
