//! GC: removes what attachments of a network left behind that the runtime does not know any more.
//!
//! Everything that ADD makes carries its attachment's mark, so that this needs no memory of it. One
//! thing that stays does not keep the others.

mod by_container;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use fabric::json;
use fabric::link_name::LinkName;
use fabric::netlink::{Socket, aliases, observe};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::attachment::{host_links as host_links_of, is_host_link_of, of_alias};
use crate::bandwidth;
use crate::command::del::{Remains, forget_neighbours};
use crate::command::{firewall, flannel, tuning};
use crate::error::Error;
use crate::external::External;
use crate::filter::{self, FilterError};
use crate::invocation::{Attachment, Id, NetworkCall};
use crate::ipam::store::{Holder, Store};
use crate::ipam::{config, held::Giver};
use crate::iptables;
use crate::kernel::{self, KernelError, links};
use crate::masquerade;
use crate::plugin::Plugin;
use crate::spoofing;
use crate::state::Kept;

/// Removes what belongs to no attachment that is valid. A runtime that does not say which ones are
/// valid does not say that none is.
///
/// # Errors
/// What could not be removed; all of it is tried.
pub fn run(plugin: Plugin, call: &NetworkCall) -> Result<(), Error> {
    let NetworkCall { network, config, .. } = call;
    let Some(valid) = Valid::of(network, config)? else { return Ok(()) };
    let mut errors = Vec::new();
    match plugin {
        Plugin::Flannel => flannel::gc(call, &valid, &mut errors)?,
        Plugin::Bridge | Plugin::Ptp | Plugin::Macvlan => {
            let remains = [Remains::of_bridge(config)];
            collect(call, &valid, &remains, BTreeSet::new(), &mut errors);
        }
        Plugin::HostLocal => {
            errors.extend(addresses(&valid, &config::data_dir(config)).err());
        }
        Plugin::Portmap => errors.extend(rules(&valid, &BTreeSet::new()).err()),
        Plugin::Bandwidth => errors.extend(ifbs(&valid).err()),
        Plugin::Firewall => firewall::gc(&valid, &mut errors),
        Plugin::Tuning => tuning::gc(call, &valid, &mut errors),
        Plugin::Loopback | Plugin::Static => {}
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::Remains(errors)) }
}

/// The keys of the list of valid attachments; the second is that of a draft of the specification.
pub(super) const LISTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The attachments that stay.
pub(super) struct Valid {
    network: Id,
    attachments: Vec<Attachment>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID", default)]
    container_id: String,
    #[serde(default)]
    ifname: String,
}

impl Valid {
    fn of(network: &Id, config: &Map<String, Value>) -> Result<Option<Self>, Error> {
        let listed = LISTS.iter().find_map(|key| config.get(*key).filter(|list| !list.is_null()));
        let Some(listed) = listed else { return Ok(None) };
        let raw: Vec<RawAttachment> =
            json::from_value(listed.clone()).map_err(Error::ValidAttachments)?;
        // What cannot be an attachment cannot have left anything.
        let attachment = |raw: RawAttachment| {
            Some(Attachment {
                network: network.clone(),
                container: Id::new(&raw.container_id)?,
                if_name: raw.ifname.parse().ok()?,
            })
        };
        let attachments = raw.into_iter().filter_map(attachment).collect();
        Ok(Some(Self { network: network.clone(), attachments }))
    }

    /// Of which network they are.
    pub(super) const fn network(&self) -> &Id {
        &self.network
    }

    /// Whether this is one of them.
    pub(super) fn has(&self, container: &str, if_name: &str) -> bool {
        let mut attachments = self.attachments.iter();
        attachments.any(|a| a.container.as_str() == container && a.if_name.as_str() == if_name)
    }

    /// Whether a file is kept for one of them.
    pub(super) fn has_kept(&self, file: &Kept) -> bool {
        match &file.if_name {
            Some(if_name) => self.has(file.container.as_str(), if_name),
            None => self.has_container(&file.container),
        }
    }

    /// Whether this container has one of them.
    pub(super) fn has_container(&self, container: &Id) -> bool {
        self.attachments.iter().any(|attachment| attachment.container == *container)
    }
}

/// Links go before rules and addresses, as a DEL would do it. Some `containers` are known already to
/// have no valid attachment.
pub(super) fn collect(
    call: &NetworkCall,
    valid: &Valid,
    remains: &[Remains],
    mut containers: BTreeSet<Id>,
    errors: &mut Vec<Error>,
) {
    let mut host = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => return errors.push(KernelError::from(error).into()),
    };
    for one in remains {
        if let Giver::HostLocal(data_dir) = &one.giver {
            containers.extend(by_container::with_addresses(valid, data_dir));
        }
    }
    errors.extend(host_links(&mut host, valid, host_links_of).err());
    errors.extend(by_container::remove_ifbs(&mut host, valid, &containers).err());
    errors.extend(rules(valid, &containers).err());
    errors.extend(spoof_checks(&mut host).err());
    for one in remains {
        let released = match &one.giver {
            Giver::HostLocal(data_dir) => addresses(valid, data_dir),
            Giver::External(name) => by_others(name, call).map(|()| BTreeSet::new()),
        };
        match released {
            Ok(released) => forget_neighbours(&mut host, one.bridge, released),
            Err(error) => errors.push(error),
        }
    }
}

fn ifbs(valid: &Valid) -> Result<(), Error> {
    let mut host = Socket::open().map_err(KernelError::from)?;
    host_links(&mut host, valid, |attachment| bandwidth::ifb_names(attachment).into())
}

/// Removes links of attachments that are not valid, of those links that an attachment has by the
/// names in `names`.
fn host_links(
    host: &mut Socket,
    valid: &Valid,
    names: impl Fn(&Attachment) -> Vec<LinkName>,
) -> Result<(), Error> {
    let stale = |(name, alias): (LinkName, String)| {
        let (container, if_name, network) = of_alias(&alias)?;
        let ours = network == valid.network.as_str() && !valid.has(container, if_name);
        let attachment = Attachment {
            network: valid.network.clone(),
            container: Id::new(container).filter(|_| ours)?,
            if_name: if_name.parse().ok()?,
        };
        names(&attachment).contains(&name).then_some((name, attachment))
    };
    let stale: Vec<_> = aliases(host)?.into_iter().filter_map(stale).collect();
    let mut observed = observe(host, &links(stale.iter().map(|(name, _)| *name)))?;
    observed.links.retain(|name, link| {
        let is_of = |(stale, attachment): &(LinkName, Attachment)| {
            stale == name && is_host_link_of(attachment, *name, link)
        };
        stale.iter().any(is_of)
    });
    Ok(kernel::remove(host, &observed)?)
}

/// Removes the rules of attachments that are not valid. Those of the Go plugin that lead ports only
/// name the container.
fn rules(valid: &Valid, containers: &BTreeSet<Id>) -> Result<(), Error> {
    let network = masquerade::network_mark(&valid.network);
    let marks: Vec<_> = valid.attachments.iter().map(masquerade::mark).collect();
    let is_stale = |comment: &str| {
        (comment.starts_with(&network) && !marks.iter().any(|mark| comment.starts_with(mark)))
            || containers.iter().any(|container| container.as_str() == comment)
    };
    filter::remove_stale(is_stale, |_| false)?;
    let is_valid =
        |container: &str| valid.attachments.iter().any(|a| a.container.as_str() == container);
    Ok(iptables::remove_stale(&valid.network, is_valid).map_err(FilterError::from)?)
}

/// Rules that check what a link sends do not say of which network it is, and are of no use without
/// the link.
fn spoof_checks(host: &mut Socket) -> Result<(), Error> {
    let checks = filter::spoof_checks()?;
    if checks.is_empty() {
        return Ok(());
    }
    let present = observe(host, &links(checks.iter().map(|(link, _)| *link)))?;
    let orphans: BTreeSet<_> =
        checks.iter().filter(|(link, _)| !present.links.contains_key(link)).collect();
    let is_stale = |text: &str| orphans.iter().any(|(_, comment)| comment == text);
    let is_stale_chain =
        |name: &str| orphans.iter().any(|(_, comment)| spoofing::is_chain_of(name, comment));
    filter::remove_stale(is_stale, is_stale_chain)?;
    Ok(())
}

fn by_others(name: &str, call: &NetworkCall) -> Result<(), Error> {
    Ok(External::find(name, &call.path)?.gc(call)?)
}

fn addresses(valid: &Valid, data_dir: &Path) -> Result<BTreeSet<IpAddr>, Error> {
    let Some(store) = Store::existing(data_dir, &valid.network) else {
        return Ok(BTreeSet::new());
    };
    let store = store.lock()?;
    store.remove_leftover();
    let is_stale = |holder: &Holder| match holder {
        Holder::Attachment(container, if_name) => !valid.has(container.as_str(), if_name),
        Holder::Container(container) => !valid.has_container(container),
        Holder::Nobody => true,
    };
    Ok(store.release_stale(is_stale)?)
}
