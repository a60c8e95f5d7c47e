//! The loop: keeps the kernel equal to the leases.
//!
//! ```text
//! store ─────────LeaseUpdate──▶ ┐
//! renewal ───────Held─────────▶ ├─ table ─ desired() ─▶ kernel ─▶ subnet file, readiness
//! kernel, timers ──changed()──▶ ┘
//! ```
//!
//! An event carries no work: it only causes a pass, which compares everything. A pass that did not
//! achieve everything is followed by another one, with growing pauses.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use fabric::netstate::{NetState, RouteKey};
use fabric::subnet_file::SubnetFile;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info};

use crate::backend::{self, Backends, Desired};
use crate::clock;
use crate::errors::chain;
use crate::former::Former;
use crate::glance::{Expected, Glances};
use crate::health::Readiness;
use crate::kernel::{Kernel, Wanted};
use crate::lease::table::{LeaseTable, LeaseUpdate};
use crate::lease::{Attributes, Lease};
use crate::neighbour_limits;
use crate::notifications::{Interest, Notifications};
use crate::report::Report;
use crate::rules::{self, RuleOptions};
use crate::setup::Setup;

/// Finds what no notification told.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Such comparisons take at most one part in so many of the time, unless that made them too rare.
const CHECK_SHARE: u32 = 10_000;
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(300);
/// Notifications come in bursts, also for what a pass does itself.
const SETTLE_MIN: Duration = Duration::from_millis(20);
/// While notifications do not end, passes take at most one part in so many of the time.
const SETTLE_SHARE: u32 = 5;
/// Whatever the last pass had to do, the next one does not wait longer than this.
const SETTLE_MAX: Duration = Duration::from_millis(400);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What hardly changes while the node runs.
pub(crate) struct Node {
    pub(crate) setup: Setup,
    pub(crate) rules: RuleOptions,
    /// Whether packets to a pod that is not there vanish here, instead of by the default route.
    pub(crate) blackhole: bool,
    /// How often rules are compared when the kernel does not tell that they change.
    pub(crate) rules_interval: Duration,
    /// What the subnet file says about masquerading.
    pub(crate) ip_masq: bool,
    /// What is left of earlier configurations.
    pub(crate) former: Former,
    pub(crate) subnet_file: PathBuf,
    pub(crate) kernel: Kernel,
    pub(crate) glances: Glances,
}

/// Where events come from and where results go.
pub(crate) struct Channels<'a> {
    pub(crate) leases: mpsc::Receiver<LeaseUpdate>,
    /// The lease to work with, once there is one.
    pub(crate) held: watch::Receiver<Option<Lease>>,
    /// The setup, whenever it is another one.
    pub(crate) setups: mpsc::Receiver<Setup>,
    /// Told what the lease shall say, once the kernel does as it says.
    pub(crate) publish: watch::Sender<Attributes>,
    /// Told when the store holds something else under our key.
    pub(crate) doubts: mpsc::Sender<()>,
    pub(crate) notifications: Notifications<'a>,
    pub(crate) ready: watch::Sender<Readiness>,
    /// Told when somebody asks what was done so far.
    pub(crate) asked: &'a Notify,
}

/// The state of the loop.
struct Reconciler {
    node: Node,
    own: Lease,
    table: LeaseTable,
    report: Report,
    /// The backends before the last change, as long as something of them is still needed.
    retiring: Option<Backends>,
    /// How long the last pass took.
    duration: Duration,
    /// Whether nobody tells when the rules change.
    rules_unwatched: bool,
    /// What the subnet file holds, once it was written.
    written: Option<SubnetFile>,
    /// Why it could not be written, as it was told.
    unwritten: Option<String>,
}

/// Runs until the program ends.
///
/// # Errors
/// If the kernel does not tell any more what changes.
pub(crate) async fn run(node: Node, mut channels: Channels<'_>) -> io::Result<()> {
    let own = match channels.held.wait_for(Option::is_some).await {
        Ok(held) => held.clone(),
        Err(_) => return Ok(()),
    };
    let Some(own) = own else { return Ok(()) };
    let mut reconciler = Reconciler {
        node,
        own,
        table: LeaseTable::default(),
        report: Report::default(),
        retiring: None,
        duration: Duration::ZERO,
        rules_unwatched: false,
        written: None,
        unwritten: None,
    };
    // Without a snapshot there is nothing to compare with: what is there would look like too much.
    let Some(snapshot) = channels.leases.recv().await else { return Ok(()) };
    reconciler.take(snapshot, &channels.doubts);
    let mut retry = RETRY_MIN;
    loop {
        channels.notifications.restart(reconciler.interest());
        let done = reconciler.pass(&channels.ready, &channels.publish).await;
        retry = if done { RETRY_MIN } else { (retry * 2).min(RETRY_MAX) };
        let check = reconciler.check_interval();
        let pause = if done { check } else { retry.min(check) };
        let again = Instant::now() + reconciler.departure().map_or(pause, |at| at.min(pause));
        if !reconciler.wait(&mut channels, again).await? {
            return Ok(());
        }
    }
}

impl Reconciler {
    /// Waits for a reason for a pass. Returns false when there will be none any more.
    async fn wait(
        &mut self,
        channels: &mut Channels<'_>,
        mut deadline: Instant,
    ) -> io::Result<bool> {
        let mut settling = false;
        loop {
            tokio::select! {
                update = channels.leases.recv() => {
                    let Some(update) = update else { return Ok(false) };
                    let mut changed = self.take(update, &channels.doubts);
                    while let Ok(update) = channels.leases.try_recv() {
                        changed |= self.take(update, &channels.doubts);
                    }
                    if changed {
                        return Ok(true);
                    }
                }
                held = channels.held.changed() => {
                    if held.is_err() {
                        return Ok(false);
                    }
                    if let Some(own) = channels.held.borrow_and_update().clone() {
                        self.own = own;
                    }
                    return Ok(true);
                }
                setup = channels.setups.recv() => {
                    let Some(setup) = setup else { return Ok(false) };
                    self.change_to(setup);
                    return Ok(true);
                }
                changed = channels.notifications.changed(), if !settling => {
                    changed?;
                    settling = true;
                    deadline = deadline.min(Instant::now() + self.settle());
                }
                () = channels.asked.notified() => {
                    self.report.so_far();
                    self.node.kernel.log_traffic();
                }
                () = self.node.glances.disturbed() => return Ok(true),
                () = sleep_until(deadline) => return Ok(true),
            }
        }
    }

    fn interest(&self) -> Interest {
        let Setup { backends, underlay, networks, .. } = &self.node.setup;
        let retiring = self.retiring.iter().flat_map(Backends::devices);
        Interest {
            devices: backends.devices().into_iter().chain(retiring).collect(),
            underlay: Some(*underlay),
            networks: networks.values().copied().collect(),
        }
    }

    /// Takes another setup. Devices that it does not have stay as long as peers may send to them.
    fn change_to(&mut self, setup: Setup) {
        let before = std::mem::replace(&mut self.node.setup, setup);
        self.node.former.remember(before.networks.values().copied());
        let before = before.backends;
        let devices = self.node.setup.backends.devices();
        if !before.devices().is_subset(&devices) {
            self.retiring = Some(before);
        } else if self.retiring.as_ref().is_some_and(|old| old.devices().is_subset(&devices)) {
            self.retiring = None;
        }
    }

    /// How long to wait for further notifications after the first one.
    fn settle(&self) -> Duration {
        (self.duration * SETTLE_SHARE).clamp(SETTLE_MIN, SETTLE_MAX)
    }

    /// Returns how long a comparison holds if nothing is heard.
    fn check_interval(&self) -> Duration {
        if self.rules_unwatched {
            return self.node.rules_interval;
        }
        (self.duration * CHECK_SHARE).clamp(CHECK_INTERVAL, CHECK_INTERVAL_MAX)
    }

    /// Returns how long the next peer is kept whose lease has ended.
    fn departure(&mut self) -> Option<Duration> {
        let now = clock::since_boot();
        self.table.forget(now).map(|at| at.saturating_sub(now))
    }

    fn take(&mut self, update: LeaseUpdate, doubts: &mpsc::Sender<()>) -> bool {
        match &update {
            LeaseUpdate::Snapshot(all) => debug!(leases = all.len(), "all leases were listed"),
            LeaseUpdate::Put(lease) => {
                debug!(subnet = %lease.subnet, "lease changed");
            }
            LeaseUpdate::Removed(subnet) => debug!(%subnet, "lease removed"),
        }
        let changed = self.table.apply(update, clock::since_boot());
        if !self.table.agrees_with(&self.own) {
            // A full channel means that the doubt is known already.
            let _known = doubts.try_send(());
        }
        changed
    }

    /// Compares and corrects everything once. Returns whether all is as it shall be.
    async fn pass(
        &mut self,
        ready: &watch::Sender<Readiness>,
        publish: &watch::Sender<Attributes>,
    ) -> bool {
        let start = Instant::now();
        let (wanted, retired) = self.wanted();
        let sysctls = wanted.state.sysctls.clone();
        begin(ready);
        let outcome = self.node.kernel.make_true(wanted).await;
        self.duration = start.elapsed();
        self.rules_unwatched = outcome.rules_unwatched;
        self.report.outcome(&outcome, self.duration);
        let written = outcome.node_failures.is_empty() && self.write_subnet_file();
        if outcome.node_failures.is_empty() {
            let attributes = &self.node.setup.attributes;
            publish.send_if_modified(|published| {
                let changed = *published != *attributes;
                published.clone_from(attributes);
                changed
            });
        }
        // What could not be made true is tried again in time, and not at every look.
        self.node.glances.expect(if written {
            Expected { sysctls, file: Some(self.node.subnet_file.clone()) }
        } else {
            Expected::default()
        });
        let achieved =
            Readiness { node: written, peers: outcome.peer_failures.is_empty(), busy_since: None };
        if retired && achieved.is_complete() {
            self.retiring = None;
        }
        ready.send_if_modified(|ready| {
            let before = std::mem::replace(ready, achieved);
            (before.node, before.peers) != (achieved.node, achieved.peers)
        });
        achieved.is_complete() && outcome.tolerated.is_empty()
    }

    /// Returns what the leases mean for this node, and whether nothing of the backends before is
    /// needed any more.
    fn wanted(&mut self) -> (Wanted, bool) {
        self.table.forget(clock::since_boot());
        let own = self.own.subnet;
        let leases = self.table.peers(&own);
        let Setup { backends, networks, engine, on_link, .. } = &self.node.setup;
        let in_use = || backend::tunnels_in_use(&leases);
        let left = self.node.former.scope(&backends.devices(), in_use);
        let mut scope = backends.scope(&own, &leases).join(left);
        let Desired { mut state, left_out, forwarding } = backends.desired(&own, &leases);
        let remains = self.retiring.as_ref().map(|retiring| {
            scope = std::mem::take(&mut scope).join(retiring.scope(&own, &leases));
            retiring.remains(&own, &leases)
        });
        let retired = remains.as_ref().is_some_and(|remains| *remains == NetState::default());
        state.extend(remains.unwrap_or_default());
        self.report.peers(leases.len(), left_out);
        self.report.shortages(neighbour_limits::shortages(on_link, &leases, &state));
        if self.node.blackhole {
            state.blackholes.extend(own.subnets().map(RouteKey::last_resort));
        }
        if !self.node.kernel.sets_parameters() {
            scope.sysctls.clear();
            state.sysctls.clear();
        }
        let rules = rules::desired(&self.node.rules, networks, &own, &backends.tunnel_ports());
        (Wanted { scope, state, engine: *engine, rules, forwarding }, retired)
    }

    /// Tells the CNI plugin, once the node's own device and rules are there.
    fn write_subnet_file(&mut self) -> bool {
        let own = self.own.subnet;
        let networks = self.node.setup.networks.values().copied();
        let mtu = self.node.setup.backends.pod_mtu().get();
        let masquerade = self.node.ip_masq;
        let file = SubnetFile::new(networks, own.subnets(), mtu, masquerade);
        let path = &self.node.subnet_file;
        if self.written.as_ref() == Some(&file) && path.exists() {
            return true;
        }
        match file.write(path) {
            Ok(()) => {
                info!(path = %path.display(), subnet = %own, "subnet file written");
                (self.written, self.unwritten) = (Some(file), None);
                true
            }
            Err(error) => {
                let reason = chain(&error);
                if self.unwritten.as_ref() != Some(&reason) {
                    error!(path = %path.display(), %reason, "the subnet file cannot be written");
                    self.unwritten = Some(reason);
                }
                false
            }
        }
    }
}

/// Notes when the kernel was asked; nobody has to look at that at once.
fn begin(ready: &watch::Sender<Readiness>) {
    ready.send_if_modified(|ready| {
        ready.busy_since = Some(Instant::now());
        false
    });
}
