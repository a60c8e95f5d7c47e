//! What a node makes of the network configuration and of its interface: everything that may change
//! while it runs.
//!
//! ```text
//! reconfigure ──NetworkConfig──────▶ ┐
//! readdress ────ExternalInterface──▶ ┴─ remake ──Setup──▶ reconciler
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;

use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tracing::error;

use crate::backend::{self, BackendError, Backends};
use crate::config::NetworkConfig;
use crate::external_interface::ExternalInterface;
use crate::family::{Family, PerFamily};
use crate::kernel;
use crate::lease::Attributes;
use crate::on_link::OnLink;
use crate::rules::engine::Engine;

/// How this node takes part in the network.
pub(crate) struct Setup {
    pub(crate) backends: Backends,
    /// The interface between nodes.
    pub(crate) underlay: LinkName,
    /// What is on its network.
    pub(crate) on_link: OnLink,
    /// The networks of all pods.
    pub(crate) networks: PerFamily<IpNetwork>,
    /// What evaluates the rules.
    pub(crate) engine: Engine,
    /// What the lease shall say, once the kernel does as it says.
    pub(crate) attributes: Attributes,
}

impl Setup {
    /// Makes it of a configuration for a node with this interface.
    ///
    /// # Errors
    /// If the options of the backend cannot be used.
    pub(crate) fn new(
        config: &NetworkConfig,
        interface: &ExternalInterface,
        choices: &Choices,
    ) -> Result<Self, BackendError> {
        let networks = PerFamily::from_fn(|family| Some(config.pools.get(family)?.network));
        let mac = |family, device| choices.mac_of(family, device);
        let backends = backend::configure(&config.backend, &networks, interface, mac)?;
        Ok(Self {
            attributes: backends.attributes(interface),
            backends,
            underlay: interface.name,
            on_link: interface.on_link.clone(),
            networks,
            engine: choices.engine(config),
        })
    }
}

/// What is chosen once and stays the same for the life of the program.
#[derive(Default)]
pub(crate) struct Choices {
    /// What the node published when it ran last, as far as the store knows.
    published: Option<Attributes>,
    /// The Ethernet addresses of devices that this node makes: those that they have, or had, or
    /// random ones.
    macs: RefCell<BTreeMap<LinkName, MacAddr>>,
    /// The engine for the rules, by the administrator's word.
    engines: RefCell<BTreeMap<Option<bool>, Engine>>,
}

impl Choices {
    /// Begins with what the node published when it ran last.
    pub(crate) fn of(published: Option<Attributes>) -> Self {
        Self { published, ..Self::default() }
    }

    fn mac_of(&self, family: Family, device: LinkName) -> MacAddr {
        let published = || backend::published_mac(self.published.as_ref()?, family);
        let known = || kernel::mac_of(device).or_else(published);
        let choose = || known().unwrap_or_else(|| MacAddr::local(rand::random()));
        *self.macs.borrow_mut().entry(device).or_insert_with(choose)
    }

    fn engine(&self, config: &NetworkConfig) -> Engine {
        let word = config.enable_nftables;
        let choose = || Engine::choose(word, config.pools.families());
        *self.engines.borrow_mut().entry(word).or_insert_with(choose)
    }
}

/// Makes a new setup whenever what it is made of has changed, as long as the program runs.
pub(crate) async fn remake(
    mut configs: watch::Receiver<NetworkConfig>,
    mut interfaces: watch::Receiver<ExternalInterface>,
    choices: &Choices,
    setups: mpsc::Sender<Setup>,
) {
    loop {
        let changed = tokio::select! {
            changed = configs.changed() => changed,
            changed = interfaces.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        let setup = {
            let (config, interface) = (configs.borrow_and_update(), interfaces.borrow_and_update());
            Setup::new(&config, &interface, choices)
        };
        match setup {
            // Nobody listens any more only when the program is ending.
            Ok(setup) => drop(setups.send(setup).await),
            Err(error) => error!(%error, "the interface cannot be used with this configuration"),
        }
    }
}
