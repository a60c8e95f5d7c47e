//! Examples as text, and that any change does what it is for on a small model of iptables.

use proptest::prelude::*;

use super::*;

fn nat(chains: Vec<Chain>) -> Table {
    Table { name: TableName::Nat, chains }
}

fn chain(name: &str, content: Content) -> Chain {
    Chain { name: name.to_owned(), content }
}

fn rules(text: &[&str]) -> Vec<Rule> {
    text.iter().map(|text| Rule::parse(text)).collect()
}

fn among(rules: &[(Place, &str)]) -> Content {
    let placed = |(place, text): &(Place, &str)| Placed { place: *place, rule: Rule::parse(text) };
    Content::Among(rules.iter().map(placed).collect())
}

fn agent() -> Table {
    nat(vec![
        chain("FLANNEL-POSTRTG", Content::Exactly(rules(&["-s 10.1.0.0/16 -j RETURN"]))),
        chain("POSTROUTING", among(&[(Place::Last, "-j FLANNEL-POSTRTG")])),
    ])
}

fn saved(text: &str) -> Observed {
    Observed::parse(&format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{text}COMMIT\n"))
}

#[test]
fn what_is_missing_is_made_and_no_more() {
    let all = "\
*nat
-N FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.1.0.0/16 -j RETURN
-A POSTROUTING -j FLANNEL-POSTRTG
COMMIT
";
    let (chain, rule) =
        (":FLANNEL-POSTRTG - [0:0]\n", "-A FLANNEL-POSTRTG -s 10.1.0.0/16 -j RETURN\n");
    let jump = "-A POSTROUTING -j FLANNEL-POSTRTG\n";
    let foreign = "-A POSTROUTING -j KUBE-POSTROUTING\n";
    let table = [
        (String::new(), all.to_owned()),
        (format!("{chain}{rule}{jump}"), String::new()),
        (format!("{chain}{rule}{jump}{foreign}"), String::new()),
        (format!("{chain}{rule}{foreign}"), format!("*nat\n{jump}COMMIT\n")),
        (
            format!("{chain}{rule}{jump}{jump}"),
            "*nat\n-D POSTROUTING -j FLANNEL-POSTRTG\nCOMMIT\n".to_owned(),
        ),
        (format!("{chain}{jump}"), format!("*nat\n{rule}COMMIT\n")),
        (format!("{chain}{rule}{rule}{jump}"), format!("*nat\n-F FLANNEL-POSTRTG\n{rule}COMMIT\n")),
    ];
    for (observed, change) in table {
        assert_eq!(diff(&[agent()], &saved(&observed)).to_string(), change, "{observed}");
    }
    assert_eq!(diff(&[agent()], &Observed::default()).to_string(), all);
}

#[test]
fn first_rules_stand_in_order_before_those_of_others() {
    let table =
        nat(vec![chain("POSTROUTING", among(&[(Place::First, "-j A"), (Place::First, "-j B")]))]);
    assert_eq!(
        diff(&[table], &saved("-A POSTROUTING -j X\n")).to_string(),
        "*nat\n-I POSTROUTING -j B\n-I POSTROUTING -j A\nCOMMIT\n"
    );
}

#[test]
fn unwanted_chain_goes_after_all_that_leads_to_it() {
    let unwanted =
        [nat(vec![chain("CNI-DN-1", Content::Absent), chain("CNI-HOSTPORT-DNAT", among(&[]))])];
    let observed = saved(
        "\
:CNI-DN-1 - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A CNI-DN-1 -p tcp -j DNAT --to-destination 10.1.2.3:80
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j CNI-DN-1
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 81 -j CNI-DN-2
",
    );
    let change = diff(&unwanted, &observed);
    assert_eq!(
        change.to_string(),
        "\
*nat
-F CNI-DN-1
-D CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j CNI-DN-1
-X CNI-DN-1
COMMIT
"
    );
    assert_eq!(change.commands().next().unwrap(), "-t nat -F CNI-DN-1");
    assert!(diff(&unwanted, &saved("")).is_empty());
}

/// A chain of each kind; `-j` leads among them.
fn any_table() -> impl Strategy<Value = Table> {
    let contents = prop::collection::btree_map(any_chain_name(), any_content(), 0..4);
    contents.prop_map(|contents| {
        let absent: Vec<_> = contents
            .iter()
            .filter(|(_, content)| **content == Content::Absent)
            .map(|(name, _)| name.clone())
            .collect();
        let is_sound = |rule: &Rule| !absent.iter().any(|name| rule.target() == Some(name));
        let chains = contents.into_iter().map(|(name, mut content)| {
            match &mut content {
                Content::Exactly(rules) => rules.retain(is_sound),
                Content::Among(rules) => rules.retain(|placed| is_sound(&placed.rule)),
                Content::Anything | Content::Absent => {}
            }
            // A built-in chain cannot be removed, and is never ours alone.
            let content = if name == "OUTPUT" { Content::Among(Vec::new()) } else { content };
            Chain { name, content }
        });
        nat(chains.collect())
    })
}

fn any_chain_name() -> impl Strategy<Value = String> {
    prop_oneof![Just("A"), Just("B"), Just("C"), Just("OUTPUT")].prop_map(str::to_owned)
}

fn any_rule() -> impl Strategy<Value = Rule> {
    prop_oneof![Just("-j ACCEPT"), Just("-j A"), Just("-g B"), Just("-s 1.2.3.4/32")]
        .prop_map(Rule::parse)
}

fn any_content() -> impl Strategy<Value = Content> {
    let places = [Place::First, Place::Last, Place::Absent];
    let exactly = prop::collection::vec(any_rule(), 0..4).prop_map(Content::Exactly);
    let among = prop::collection::btree_map(any_rule(), 0..3_usize, 0..3).prop_map(move |placed| {
        let placed = placed.into_iter();
        Content::Among(placed.map(|(rule, n)| Placed { rule, place: places[n] }).collect())
    });
    prop_oneof![exactly, among, Just(Content::Anything), Just(Content::Absent)]
}

fn any_observed() -> impl Strategy<Value = ObservedTable> {
    let rules = prop::collection::vec(any_rule(), 0..5);
    prop::collection::btree_map(any_chain_name(), rules, 0..4)
}

/// Does what `iptables` would, or says why it would not.
fn step(table: &mut ObservedTable, operation: &Operation) -> std::result::Result<(), &'static str> {
    match operation {
        Operation::NewChain(name) if table.contains_key(name) => return Err("chain exists"),
        Operation::NewChain(name) => drop(table.insert(name.clone(), Vec::new())),
        Operation::Flush(name) => chain_of(table, name)?.clear(),
        Operation::Append(name, rule) => chain_of(table, name)?.push(rule.clone()),
        Operation::Insert(name, rule) => chain_of(table, name)?.insert(0, rule.clone()),
        Operation::Delete(name, rule) => {
            let rules = chain_of(table, name)?;
            let place = rules.iter().position(|r| r == rule).ok_or("no such rule")?;
            rules.remove(place);
        }
        Operation::DeleteChain(name) => {
            if !chain_of(table, name)?.is_empty() {
                return Err("not empty");
            }
            if table.values().flatten().any(|rule| rule.target() == Some(name)) {
                return Err("in use");
            }
            table.remove(name);
        }
    }
    Ok(())
}

fn chain_of<'a>(
    table: &'a mut ObservedTable,
    name: &str,
) -> std::result::Result<&'a mut Vec<Rule>, &'static str> {
    if name == "OUTPUT" {
        return Ok(table.entry(name.to_owned()).or_default());
    }
    table.get_mut(name).ok_or("no such chain")
}

proptest! {
    #[test]
    fn a_change_makes_it_so_and_leaves_the_rest(desired in any_table(), before in any_observed()) {
        let mut after = before.clone();
        let desired = [desired];
        let observe = |table: &ObservedTable| Observed {
            tables: [(TableName::Nat, table.clone())].into(),
            incompatible: Vec::new(),
        };
        for (_, operations) in diff(&desired, &observe(&before)).tables {
            for operation in operations {
                step(&mut after, &operation).map_err(|why| {
                    TestCaseError::fail(format!("{operation}: {why}"))
                })?;
            }
        }
        prop_assert_eq!(diff(&desired, &observe(&after)), Change::default());
        let content = |name: &str| {
            desired[0].chains.iter().find(|chain| chain.name == name).map(|chain| &chain.content)
        };
        for (name, rules) in before.iter().filter(|(name, _)| content(name).is_none()) {
            let leads = |rule: &&Rule| {
                rule.target().is_some_and(|to| content(to) == Some(&Content::Absent))
            };
            let kept: Vec<_> = rules.iter().filter(|rule| !leads(rule)).collect();
            prop_assert_eq!(after[name].iter().collect::<Vec<_>>(), kept);
        }
    }
}
