//! The thread that reads and writes kernel state, on one socket of its own.
//!
//! ```text
//! reconciler ──Wanted──▶ observe, compare, apply ──Outcome──▶ reconciler
//! ```

use std::sync::mpsc as blocking;
use std::thread;

use fabric::link_name::LinkName;
use fabric::netlink::{ApplyError, NetlinkError, Report, Scope, Socket, converge};
use fabric::netstate::NetState;
use fabric::sysctl;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::backend::udp::datapath::{DataPath, Forwarding};
use crate::errors::chain;
use crate::rules::NodeRules;
use crate::rules::engine::{Engine, RuleKeeper};

/// What the kernel shall look like.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) scope: Scope,
    pub(crate) state: NetState,
    /// What evaluates the rules.
    pub(crate) engine: Engine,
    pub(crate) rules: NodeRules,
    pub(crate) forwarding: Vec<Forwarding>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Operations that were tried, as commands.
    pub(crate) operations: usize,
    /// What failed of those that concern this node.
    pub(crate) node_failures: Vec<String>,
    /// What failed of those that concern one peer each.
    pub(crate) peer_failures: Vec<String>,
    /// What failed of the rules that pods can do without: old ones that could not be removed, and
    /// those that only some clusters need.
    pub(crate) tolerated: Vec<String>,
    /// Whether the kernel does not tell when the rules change.
    pub(crate) rules_unwatched: bool,
}

impl Outcome {
    /// Returns everything that failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &String> {
        let Self { node_failures, peer_failures, tolerated, .. } = self;
        node_failures.iter().chain(peer_failures).chain(tolerated)
    }
}

/// What the applier thread is asked for.
enum Request {
    MakeTrue(Box<Wanted>, oneshot::Sender<Outcome>),
    LogTraffic,
}

/// The way to the applier thread.
pub(crate) struct Kernel {
    requests: blocking::Sender<Request>,
    sets_parameters: bool,
}

impl Kernel {
    /// Starts the thread, in the network namespace of this one. It ends with this value.
    pub(crate) fn start() -> std::io::Result<Self> {
        let mut socket = Socket::open()?;
        let (requests, queue) = blocking::channel();
        let sets_parameters = !sysctl::is_read_only();
        if !sets_parameters {
            warn!("/proc/sys is read-only, as in a container: kernel parameters stay as they are");
        }
        let serve = move || {
            let (mut data_paths, mut rules) = (Vec::new(), RuleKeeper::default());
            for request in queue {
                match request {
                    Request::MakeTrue(wanted, reply) => {
                        let outcome = make_true(&mut socket, &mut rules, &mut data_paths, *wanted);
                        // Nobody waits for the answer when the program is ending.
                        let _nobody_waits = reply.send(outcome);
                    }
                    Request::LogTraffic => data_paths.iter().for_each(DataPath::log_traffic),
                }
            }
        };
        thread::Builder::new().name("kernel".to_owned()).spawn(serve)?;
        Ok(Self { requests, sets_parameters })
    }

    /// Whether kernel parameters can be set at all; otherwise none may be wanted.
    pub(crate) const fn sets_parameters(&self) -> bool {
        self.sets_parameters
    }

    /// Makes it so, as far as the kernel lets us.
    pub(crate) async fn make_true(&self, wanted: Wanted) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let sent = self.requests.send(Request::MakeTrue(Box::new(wanted), reply));
        match (sent, outcome.await) {
            (Ok(()), Ok(outcome)) => outcome,
            _ => Outcome {
                node_failures: vec!["the thread that speaks to the kernel has ended".to_owned()],
                ..Outcome::default()
            },
        }
    }

    /// Logs what this program itself carried for each peer, if it carries packets.
    pub(crate) fn log_traffic(&self) {
        // Nobody answers any more only when the program is ending.
        let _ending = self.requests.send(Request::LogTraffic);
    }
}

fn make_true(
    socket: &mut Socket,
    rules: &mut RuleKeeper,
    data_paths: &mut Vec<DataPath>,
    mut wanted: Wanted,
) -> Outcome {
    let mut outcome = Outcome::default();
    match converge(socket, &wanted.scope, &wanted.state) {
        Ok(Report { plan, failures }) => {
            outcome.operations = plan.ops.len();
            plan.ops.iter().for_each(|op| debug!("{op}"));
            let (of_peers, of_node): (Vec<_>, _) =
                failures.iter().partition(|failure| failure.op.is_per_peer());
            outcome.peer_failures = texts(&of_peers);
            outcome.node_failures = texts(&of_node);
        }
        Err(error) => outcome.node_failures.push(chain(&error)),
    }
    // Before the rules, which are there already after a restart, and take programs to look at.
    for forwarding in std::mem::take(&mut wanted.forwarding) {
        if let Err(error) = DataPath::ensure(data_paths, forwarding) {
            outcome.node_failures.push(chain(&error));
        }
    }
    make_rules_true(rules, &wanted, &mut outcome);
    outcome
}

fn make_rules_true(keeper: &mut RuleKeeper, wanted: &Wanted, outcome: &mut Outcome) {
    match keeper.make_true(wanted.engine, &wanted.rules) {
        Ok((operations, tolerated)) => {
            let (removed, left) = keeper.clear_elsewhere(wanted.engine, &wanted.rules);
            outcome.operations += operations + removed;
            outcome.tolerated = tolerated.iter().chain(&left).map(|error| chain(error)).collect();
        }
        Err(error) => outcome.node_failures.push(chain(&error)),
    }
    outcome.rules_unwatched = !keeper.is_notified(wanted.engine);
}

fn texts(failures: &[&ApplyError]) -> Vec<String> {
    failures.iter().map(ToString::to_string).collect()
}

/// Takes stock of the host.
pub(crate) fn inventory(
    reach: Option<std::net::IpAddr>,
) -> Result<(fabric::netlink::Inventory, crate::external_interface::Reach), NetlinkError> {
    let mut socket = Socket::open()?;
    let inventory = fabric::netlink::Inventory::take(&mut socket)?;
    let reach = match reach {
        Some(ip) => fabric::netlink::route_to(&mut socket, ip)?,
        None => None,
    };
    Ok((inventory, reach))
}

/// Returns the Ethernet address of a link of this host.
pub(crate) fn mac_of(link: LinkName) -> Option<fabric::mac::MacAddr> {
    let scope = Scope { links: [link].into(), ..Scope::default() };
    let state = fabric::netlink::observe(&mut Socket::open().ok()?, &scope).ok()?;
    state.links.get(&link)?.mac
}
