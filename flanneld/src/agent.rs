//! The life of the agent: what is read at the start, and what then runs side by side.
//!
//! ```text
//! configuration ─▶ interface ─▶ backend ─▶ lease ─▶ { watch, renewal, kernel, reconciler }
//! ```
//!
//! What can heal is waited for; what cannot ends the start with one line. Nothing that was made in
//! the kernel is removed at the end.

use std::net::SocketAddr;
use std::time::Duration;

use fabric::netlink::Inventory;
use fabric::subnet_file::SubnetFile;
use ipnetwork::IpNetwork;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::backend::BackendError;
use crate::cli::{InterfaceOptions, Options, StoreOptions};
use crate::config::{ConfigError, NetworkConfig};
use crate::external_interface::{self, ExternalInterface, NoInterface};
use crate::family::{Family, PerFamily};
use crate::former::Former;
use crate::glance::Glances;
use crate::health::Readiness;
use crate::kernel::{self, Kernel};
use crate::lease::LeaseKey;
use crate::lease::acquire::Request;
use crate::notifications::Notifications;
use crate::reconciler::{self, Channels, Node};
use crate::reconfigure::{self, Circumstances};
use crate::rules::engine::warn_without_bridge_filter;
use crate::setup::{self, Choices, Setup};
use crate::shutdown::Shutdown;
use crate::store::{DirectoryStore, EtcdStore, KubeStore, LeaseStore, StoreError};
use crate::{health, install, readdress, renewal, retry, tally};

/// The network configuration is asked for this often until there is a valid one.
const CONFIG_RETRY: Duration = Duration::from_secs(1);
/// A machine that boots has its addresses after this long, or somebody has to look.
const INTERFACE_PATIENCE: Duration = Duration::from_secs(20);
const INTERFACE_RETRY: Duration = Duration::from_millis(500);
/// Updates that wait for the loop; a store that is faster waits itself.
const UPDATES: usize = 1024;

/// Why the node cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoInterface(#[from] NoInterface),
    #[error("the network configuration cannot be used")]
    Backend(#[from] BackendError),
    #[error("cannot ask the kernel about interfaces")]
    Inventory(#[from] fabric::netlink::NetlinkError),
    #[error("cannot listen on {address} for probes; see --healthz-ip and --healthz-port")]
    Health {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot {attempt}")]
    System {
        attempt: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// No valid configuration yet.
#[derive(Debug, thiserror::Error)]
enum NoConfig {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Runs until a signal ends it.
pub(crate) fn run(options: Options) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the event loop"))?;
    runtime.block_on(async {
        let mut shutdown = Shutdown::listen().map_err(system("listen for signals"))?;
        tokio::select! {
            () = shutdown.requested() => Ok(()),
            ended = start(options) => ended,
        }
    })
}

async fn start(options: Options) -> Result<(), StartError> {
    info!(version = env!("CARGO_PKG_VERSION"), "flanneld starts");
    for reason in &options.ignored {
        warn!("a variable of the environment was left out: {reason}");
    }
    let (ready, is_ready) = watch::channel(Readiness::default());
    let probes = match options.health {
        Some(address) => Some(
            health::bind(address).await.map_err(|source| StartError::Health { address, source })?,
        ),
        None => None,
    };
    tokio::select! {
        () = answer(probes, is_ready) => Ok(()),
        ended = with_store(options, ready) => ended,
    }
}

async fn answer(probes: Option<TcpListener>, is_ready: watch::Receiver<Readiness>) {
    match probes {
        Some(listener) => health::serve(listener, is_ready).await,
        None => std::future::pending().await,
    }
}

async fn with_store(options: Options, ready: watch::Sender<Readiness>) -> Result<(), StartError> {
    match options.store {
        StoreOptions::Etcd(ref etcd) => serve(EtcdStore::open(etcd.clone())?, options, ready).await,
        StoreOptions::Directory { ref path, ref net_config } => {
            let store = DirectoryStore::open(path.clone(), net_config.clone())?;
            serve(store, options, ready).await
        }
        StoreOptions::Kube(ref kube) => {
            let store = KubeStore::open(kube.clone(), |name| std::env::var(name).ok())?;
            serve(store, options, ready).await
        }
    }
}

/// What a node starts with.
struct Start {
    config: NetworkConfig,
    interface: ExternalInterface,
    choices: Choices,
    request: Request,
    node: Node,
}

/// Reads and chooses what has to be known before anything runs.
async fn prepare(store: &impl LeaseStore, options: &mut Options) -> Result<Start, StartError> {
    let config = network_config(store).await;
    let families: Vec<_> = config.pools.families().collect();
    let facts = store.node().await;
    options.interface.prefer(&facts.addresses);
    let (interface, inventory) = wait_for_interface(&options.interface, &families).await?;
    // What this node had before, as the file for the CNI plugin still says it.
    let before = SubnetFile::read(&options.subnet_file).ok();
    let choices = Choices::of(facts.published);
    let setup = Setup::new(&config, &interface, &choices)?;
    let request = Request {
        pools: config.pools,
        previous: before.as_ref().and_then(previous_subnets),
        attributes: setup.attributes.clone(),
    };
    warn_without_bridge_filter(setup.engine, families.iter().copied());
    let kernel = Kernel::start().map_err(system("start the thread that speaks to the kernel"))?;
    let node = Node {
        setup,
        rules: options.rules.clone(),
        blackhole: options.blackhole_route,
        rules_interval: options.rules_interval,
        ip_masq: options.ip_masq,
        former: before.map(|file| Former::find(&file, &inventory.interfaces)).unwrap_or_default(),
        subnet_file: options.subnet_file.clone(),
        kernel,
        glances: Glances::start().map_err(system("start the thread that looks at parameters"))?,
    };
    Ok(Start { config, interface, choices, request, node })
}

/// Lets everything run side by side until one ends.
async fn serve(
    store: impl LeaseStore,
    mut options: Options,
    ready: watch::Sender<Readiness>,
) -> Result<(), StartError> {
    let Start { config, interface, choices, request, node } = prepare(&store, &mut options).await?;
    let (updates, leases) = mpsc::channel(UPDATES);
    let (published, held) = watch::channel(None);
    let (publish, attributes) = watch::channel(request.attributes.clone());
    let (configs, config) = watch::channel(config);
    let (interfaces, interface) = watch::channel(interface);
    let (remade, setups) = mpsc::channel(1);
    let (doubts, doubted) = mpsc::channel(1);
    let (underlay_changed, config_changed) = (Notify::new(), Notify::new());
    let notifications = Notifications::open(&underlay_changed).map_err(deaf)?;
    let is_ready = ready.subscribe();
    let relist = Notify::new();
    let renewal = renewal::Channels {
        doubts: doubted,
        attributes,
        published,
        relist: &relist,
        ready: ready.subscribe(),
        margin: options.renew_margin,
    };
    let circumstances =
        Circumstances { interface: interface.clone(), held: held.clone(), choices: &choices };
    let asked = Notify::new();
    let channels =
        Channels { leases, setups, publish, held, doubts, notifications, ready, asked: &asked };
    tokio::select! {
        () = store.watch(updates, &relist) => Ok(()),
        () = store.watch_config(&config_changed) => Ok(()),
        () = store.keep(request, renewal) => Ok(()),
        ended = reconciler::run(node, channels) => ended.map_err(deaf),
        () = readdress::follow(&store, &options.interface, &underlay_changed, interfaces) => Ok(()),
        () = reconfigure::follow(&store, &config_changed, circumstances, configs) => Ok(()),
        () = setup::remake(config, interface, &choices, remade) => Ok(()),
        () = notify_supervisor(is_ready.clone()) => Ok(()),
        () = install::tell_runtime(options.cni_conf, is_ready) => Ok(()),
        ended = tally::ask_on_signal(&asked) => ended.map_err(system("listen for SIGUSR1")),
    }
}

/// Waits for a valid configuration, however long it takes: the administrator may just be writing it.
async fn network_config<S: LeaseStore>(store: &S) -> NetworkConfig {
    let read = async || -> Result<NetworkConfig, NoConfig> {
        Ok(S::SUBNETS.parse(&store.network_config().await?)?)
    };
    retry::until_ok("read the network configuration", CONFIG_RETRY, read).await
}

/// Chooses the interface among those of the host; while the machine boots, it may not be there yet.
async fn wait_for_interface(
    options: &InterfaceOptions,
    families: &[Family],
) -> Result<(ExternalInterface, Inventory), StartError> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let (inventory, reach) = kernel::inventory(options.can_reach)?;
        match external_interface::choose(options, families, &inventory, reach) {
            Ok(interface) => {
                info!(
                    %interface,
                    mtu = interface.mtu.get(),
                    "interface for the traffic between nodes chosen"
                );
                return Ok((interface, inventory));
            }
            Err(none) if start.elapsed() > INTERFACE_PATIENCE => return Err(none.into()),
            Err(none) => {
                if !std::mem::replace(&mut told, true) {
                    warn!("{none}; waiting for it for {} s", INTERFACE_PATIENCE.as_secs());
                }
                sleep(INTERFACE_RETRY).await;
            }
        }
    }
}

fn previous_subnets(file: &SubnetFile) -> Option<LeaseKey> {
    let (ipv4, ipv6) = (file.subnet4.map(IpNetwork::V4), file.subnet6.map(IpNetwork::V6));
    LeaseKey::new(PerFamily { ipv4, ipv6 })
}

/// Tells systemd, if it started us, when pods can be started.
async fn notify_supervisor(mut ready: watch::Receiver<Readiness>) {
    if ready.wait_for(|ready| ready.node).await.is_ok()
        && let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready])
    {
        warn!(%error, "the supervisor could not be told that the node is ready");
    }
    std::future::pending().await
}

fn deaf(error: std::io::Error) -> StartError {
    system("listen to the kernel")(error)
}

fn system(attempt: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { attempt, source }
}
