//! GC: removes what attachments of a network left behind that the runtime does not know any more.
//!
//! Everything that ADD makes carries its attachment's mark, so that this needs no memory of it. One
//! thing that stays does not keep the others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use fabric::json;
use fabric::link_name::LinkName;
use fabric::netlink::{Socket, aliases, observe};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::attachment::{host_veth, is_host_veth_of, of_alias};
use crate::bridge::lookup;
use crate::command::del::{Remains, data_dir, forget_neighbours};
use crate::error::Error;
use crate::filter;
use crate::invocation::{Attachment, Id, NetworkCall};
use crate::ipam::store::{Holder, Store};
use crate::kernel::{self, KernelError, links};
use crate::masquerade;
use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::state::{State, StateFile};

/// Removes what belongs to no attachment that is valid. A runtime that does not say which ones are
/// valid does not say that none is.
///
/// # Errors
/// What could not be removed; all of it is tried.
pub fn run(plugin: Plugin, call: &NetworkCall) -> Result<(), Error> {
    let NetworkCall { network, config } = call;
    let Some(valid) = Valid::of(network, config)? else { return Ok(()) };
    let mut errors = Vec::new();
    match plugin {
        Plugin::Flannel => flannel(&valid, &NetConf::new(config)?, &mut errors),
        Plugin::Bridge => collect(&valid, &[Remains::of_bridge(config)], &mut errors),
        Plugin::HostLocal => {
            let ipam = lookup(config, &["ipam"]).and_then(Value::as_object);
            errors.extend(addresses(&valid, data_dir(ipam.unwrap_or(&Map::new()))).err());
        }
        Plugin::Portmap => errors.extend(rules(&valid).err()),
        Plugin::Loopback | Plugin::Static => {}
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::Remains(errors)) }
}

/// The attachments that stay.
struct Valid {
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
    /// The second name of the list is that of a draft of the specification.
    fn of(network: &Id, config: &Map<String, Value>) -> Result<Option<Self>, Error> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let listed = keys.iter().find_map(|key| config.get(*key).filter(|list| !list.is_null()));
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

    fn has(&self, container: &str, if_name: &str) -> bool {
        let mut attachments = self.attachments.iter();
        attachments.any(|a| a.container.as_str() == container && a.if_name.as_str() == if_name)
    }

    fn has_container(&self, container: &Id) -> bool {
        self.attachments.iter().any(|attachment| attachment.container == *container)
    }
}

/// What is kept of ADDs goes last, and stays if anything else does.
fn flannel(valid: &Valid, conf: &NetConf, errors: &mut Vec<Error>) {
    let mut stale = StateFile::all(&conf.data_dir, &valid.network);
    stale.retain(|(container, _)| !valid.has_container(container));
    let mut remains = vec![Remains::of(conf, &State::Missing)];
    for (_, file) in &stale {
        let of_file = Remains::of(conf, &file.read_for(&valid.network));
        let place = |one: &Remains| (one.data_dir.clone(), one.bridge);
        if !remains.iter().any(|one| place(one) == place(&of_file)) {
            remains.push(of_file);
        }
    }
    collect(valid, &remains, errors);
    StateFile::remove_orphans(&conf.data_dir);
    if errors.is_empty() {
        errors.extend(stale.iter().filter_map(|(_, file)| Some(file.remove().err()?.into())));
    }
}

/// Links go before rules and addresses, as a DEL would do it.
fn collect(valid: &Valid, remains: &[Remains], errors: &mut Vec<Error>) {
    let mut host = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => return errors.push(KernelError::from(error).into()),
    };
    errors.extend(host_veths(&mut host, valid).err());
    errors.extend(rules(valid).err());
    for one in remains {
        match addresses(valid, one.data_dir.clone()) {
            Ok(released) => forget_neighbours(&mut host, one.bridge, released),
            Err(error) => errors.push(error),
        }
    }
}

fn host_veths(host: &mut Socket, valid: &Valid) -> Result<(), Error> {
    let stale = |(name, alias): (LinkName, String)| {
        let (container, if_name, network) = of_alias(&alias)?;
        let ours = network == valid.network.as_str() && !valid.has(container, if_name);
        let attachment = Attachment {
            network: valid.network.clone(),
            container: Id::new(container).filter(|_| ours)?,
            if_name: if_name.parse().ok()?,
        };
        (host_veth(&attachment) == name).then_some((name, attachment))
    };
    let stale: Vec<_> = aliases(host)?.into_iter().filter_map(stale).collect();
    let mut observed = observe(host, &links(stale.iter().map(|(name, _)| *name)))?;
    observed.links.retain(|name, link| {
        stale.iter().any(|(stale, attachment)| stale == name && is_host_veth_of(attachment, link))
    });
    Ok(kernel::remove(host, &observed)?)
}

fn rules(valid: &Valid) -> Result<(), Error> {
    let network = masquerade::network_mark(&valid.network);
    let marks: Vec<_> = valid.attachments.iter().map(masquerade::mark).collect();
    let is_stale = |comment: &str| {
        comment.starts_with(&network) && !marks.iter().any(|mark| comment.starts_with(mark))
    };
    filter::remove_stale(is_stale)?;
    Ok(())
}

fn addresses(valid: &Valid, data_dir: PathBuf) -> Result<BTreeSet<IpAddr>, Error> {
    let Some(store) = Store::existing(&data_dir, &valid.network) else {
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
