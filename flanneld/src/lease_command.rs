//! `flanneld lease list | show | release | reserve`: the store as an operator sees it.
//!
//! Changes are guarded like those of nodes: what changed since it was looked at stays as it is. The
//! answer goes to standard output, as a table or as JSON.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{KubeOptions, LeaseCommand, StoreOptions, Verb};
use crate::config::{ConfigError, NetworkConfig};
use crate::family::Family;
use crate::lease::acquire::{Entry, Listed};
use crate::lease::keeper::{Answer, Guard, Listing, Put, Step};
use crate::lease::{Attributes, LeaseKey, wire};
use crate::store::{
    DirectoryStore, EtcdStore, LEASE_TTL, LeaseStore, SharedStore, StoreError, kube,
};

/// Why a command did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the network configuration cannot be used: {0}")]
    Config(#[from] ConfigError),
    #[error("cannot start the event loop")]
    Runtime(#[from] std::io::Error),
    #[error(
        "Kubernetes assigns subnets to nodes, and takes them back when a node is deleted (kubectl \
         delete node NAME); nothing can be released or reserved here"
    )]
    Assigned,
    #[error("nobody holds {0}; see flanneld lease list")]
    NotHeld(LeaseKey),
    #[error("{0} was changed by somebody else just now; look at it again")]
    Changed(LeaseKey),
    #[error("{subnet} cannot be reserved: {held} is held by {by}; release that first")]
    Held { subnet: LeaseKey, held: LeaseKey, by: String },
    #[error("{0} is none of the subnets that nodes can lease in this network")]
    NotOnOffer(LeaseKey),
}

/// A lease, and until when its node has it.
struct Row {
    entry: Entry,
    held: Held,
}

/// Until when a node has its lease.
enum Held {
    /// For ever.
    Reserved,
    /// A day from when it was renewed last, which is this long ago; nothing if that is over.
    Renewed(Option<Duration>),
    /// As long as there is a node of this name.
    By(String),
}

/// Runs the command and returns what to print.
pub(crate) fn run(command: LeaseCommand) -> Result<String, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let LeaseCommand { verb, json, options } = command;
    let rows = runtime.block_on(async {
        match options.store {
            StoreOptions::Etcd(etcd) => perform(&EtcdStore::open(etcd)?, verb).await,
            StoreOptions::Directory { path, net_config } => {
                perform(&DirectoryStore::open(path, net_config)?, verb).await
            }
            StoreOptions::Kube(options) => look(of_nodes(options).await?, verb),
        }
    })?;
    Ok(if json { as_json(&rows) } else { as_table(&rows) })
}

/// Returns the leases of all nodes of Kubernetes, in the order of their keys.
async fn of_nodes(options: KubeOptions) -> Result<Vec<Row>, StoreError> {
    let leases = kube::leases(options, |name| std::env::var(name).ok()).await?;
    let row = |(node, listed)| {
        let entry = Entry { listed, revision: 0, created: 0, lease: 0 };
        Row { entry, held: Held::By(node) }
    };
    let mut rows: Vec<_> = leases.into_iter().map(row).collect();
    rows.sort_by_key(|row| row.entry.listed.key);
    Ok(rows)
}

/// Does what changes nothing.
fn look(rows: Vec<Row>, verb: Verb) -> Result<Vec<Row>, CommandError> {
    match verb {
        Verb::List => Ok(rows),
        Verb::Show(key) => Ok(vec![find(rows, key)?]),
        Verb::Release(_) | Verb::Reserve(..) => Err(CommandError::Assigned),
    }
}

async fn perform(
    store: &(impl LeaseStore + SharedStore),
    verb: Verb,
) -> Result<Vec<Row>, CommandError> {
    let (rows, revision) = list(store).await?;
    match verb {
        Verb::List | Verb::Show(_) => look(rows, verb),
        Verb::Release(key) => {
            let row = find(rows, key)?;
            let revision = row.entry.revision;
            store.perform(&Step::Delete { key, revision }).await?;
            match store.perform(&Step::Read(key)).await? {
                Answer::Read(Some(entry)) if entry.revision == revision => {
                    Err(CommandError::Changed(key))
                }
                _ => Ok(vec![row]),
            }
        }
        Verb::Reserve(key, ipv4, ipv6) => {
            reserve(store, (rows, revision), key, reservation(ipv4, ipv6)).await
        }
    }
}

/// Returns all leases, in the order of their keys, and the revision of the store.
async fn list(store: &(impl LeaseStore + SharedStore)) -> Result<(Vec<Row>, i64), StoreError> {
    let Answer::Listed(Listing { entries, revision }) = store.perform(&Step::List).await? else {
        return Ok((Vec::new(), 0));
    };
    let ages = store.perform(&Step::Ages(entries.iter().map(Into::into).collect())).await?;
    let ages = if let Answer::Ages(ages) = ages { ages } else { Vec::new() };
    let row = |(entry, age): (Entry, _)| {
        let held = if entry.lease == 0 { Held::Reserved } else { Held::Renewed(age) };
        Row { entry, held }
    };
    let mut rows: Vec<_> = entries.into_iter().zip(ages).map(row).collect();
    rows.sort_by_key(|row| row.entry.listed.key);
    Ok((rows, revision))
}

fn find(rows: Vec<Row>, key: LeaseKey) -> Result<Row, CommandError> {
    let found = rows.into_iter().find(|row| row.entry.listed.key == key);
    found.ok_or(CommandError::NotHeld(key))
}

/// Makes a key without an end; a lease that the node holds already becomes one.
async fn reserve(
    store: &(impl LeaseStore + SharedStore),
    (rows, revision): (Vec<Row>, i64),
    key: LeaseKey,
    reservation: Attributes,
) -> Result<Vec<Row>, CommandError> {
    let config = NetworkConfig::parse(&store.network_config().await?)?;
    let is_on_offer = |subnet| {
        let pool = config.pools.get(Family::of_network(subnet));
        pool.is_some_and(|pool| pool.offers(subnet))
    };
    if !key.subnets().all(is_on_offer) {
        return Err(CommandError::NotOnOffer(key));
    }
    let before = rows.into_iter().find(|row| row.entry.listed.key.overlaps(&key));
    let (guard, attributes) = match before {
        None => (Guard::Free { since: revision }, reservation),
        Some(Row { entry, .. }) => {
            let Listed { key: held, attributes } = entry.listed;
            match attributes {
                Some(attributes) if held == key && attributes.is_same_node(&reservation) => {
                    (Guard::At(entry.revision), attributes)
                }
                attributes => {
                    let by = attributes.and_then(|attributes| attributes.identity());
                    let by = by.map_or("an unreadable value".to_owned(), |ip| ip.to_string());
                    return Err(CommandError::Held { subnet: key, held, by });
                }
            }
        }
    };
    let put = Put { key, attributes: attributes.clone(), guard, lease: 0, replaces: None };
    let Answer::Written(Some(revision)) = store.perform(&Step::Put(put)).await? else {
        return Err(CommandError::Changed(key));
    };
    let listed = Listed { key, attributes: Some(attributes) };
    let entry = Entry { listed, revision, created: revision, lease: 0 };
    Ok(vec![Row { entry, held: Held::Reserved }])
}

/// What a reservation says until its node comes; other nodes have no use for it.
fn reservation(public_ip: Option<Ipv4Addr>, public_ipv6: Option<Ipv6Addr>) -> Attributes {
    Attributes {
        public_ip: public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6,
        backend_type: String::new(),
        backend_data: None,
        backend_v6_data: None,
    }
}

fn as_table(rows: &[Row]) -> String {
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let width = |column: usize, least| {
        cells.iter().map(|row: &[String; 4]| row[column].len()).max().unwrap_or(0).max(least)
    };
    let (subnet_width, ip_width) = (width(0, 20), width(1, 16));
    let title = ["SUBNET", "PUBLIC IP", "BACKEND", "RENEWED"].map(str::to_owned);
    let mut table = String::new();
    for [subnet, ip, backend, renewed] in [title].iter().chain(&cells) {
        writeln!(table, "{subnet:<subnet_width$} {ip:<ip_width$} {backend:<10} {renewed}")
            .expect("a string takes any text");
    }
    table
}

fn cells(Row { entry, held }: &Row) -> [String; 4] {
    let (ip, backend) = match &entry.listed.attributes {
        Some(attributes) => (addresses(attributes), attributes.backend_type.clone()),
        None => ("unreadable".to_owned(), String::new()),
    };
    let renewed = match held {
        Held::Reserved => "reserved".to_owned(),
        Held::Renewed(Some(age)) => {
            let left = LEASE_TTL.saturating_sub(*age);
            format!("{} ago, ends in {}", brief(*age), brief(left))
        }
        Held::Renewed(None) => "ended".to_owned(),
        Held::By(node) => format!("with node {node}"),
    };
    [entry.listed.key.to_plain(), ip, backend, renewed]
}

/// The public addresses, joined as the subnets of a key are.
fn addresses(attributes: &Attributes) -> String {
    let addresses = Family::ALL.into_iter().filter_map(|family| attributes.public(family));
    addresses.map(|ip| ip.to_string()).collect::<Vec<_>>().join("&")
}

fn brief(time: Duration) -> String {
    match time.as_secs() {
        secs @ ..120 => format!("{secs} s"),
        secs @ ..7200 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3600),
    }
}

fn as_json(rows: &[Row]) -> String {
    let row = |Row { entry, held }: &Row| {
        let value = entry.listed.attributes.as_ref().map(wire::encode);
        let value = value.and_then(|value| serde_json::from_slice::<Value>(&value).ok());
        let (age, node) = match held {
            Held::Reserved => (None, None),
            Held::Renewed(age) => (*age, None),
            Held::By(node) => (None, Some(node)),
        };
        json!({
            "subnet": entry.listed.key.to_plain(),
            "key": entry.listed.key.to_string(),
            "reserved": matches!(held, Held::Reserved),
            "renewed_secs_ago": age.map(|age| age.as_secs()),
            "ends_in_secs": age.map(|age| LEASE_TTL.saturating_sub(age).as_secs()),
            "node": node,
            "lease": value,
        })
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    format!("{:#}\n", Value::from(rows))
}

#[cfg(test)]
mod tests;
