//! Reads the state that is: one question per link, one dump per table.

use std::collections::BTreeMap;

use netlink_packet_route::link::LinkMessage;

use super::addresses::{addresses_on, decode_address};
use super::links::name;
use super::neighbours::{fdb_of, neighbours_on};
use super::routes::observe_routes;
use super::rows::permanent_entry;
use super::scope::{Routes, Scope};
use super::socket::{NetlinkError, Socket};
use super::{bridge, parameters, shaping};
use crate::link_name::LinkName;
use crate::netstate::{NetState, Sysctl};
use crate::{offload, sysctl};

/// Reads everything in `scope`. Links that do not exist are missing from the result.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn observe(socket: &mut Socket, scope: &Scope) -> Result<NetState, NetlinkError> {
    let mut state = NetState::default();
    let mut names = BTreeMap::new();
    socket.indices.clear();
    for name in &scope.links {
        if let Some(message) = socket.link_by_name(*name)? {
            socket.indices.insert(*name, message.header.index);
            names.insert(message.header.index, *name);
            let link = socket.decode_link(&message)?;
            state.links.insert(*name, link);
            state.sysctls.extend(parameters_of(*name, scope, &message));
        }
    }
    if !scope.macs.is_empty() && scope.links.len() > state.links.len() {
        for message in socket.tunnels()? {
            let link = socket.decode_link(&message)?;
            if let Some(name) = name(&message)
                && link.mac.is_some_and(|mac| scope.macs.contains(&mac))
            {
                names.insert(message.header.index, name);
                state.links.insert(name, link);
            }
        }
    }
    for index in names.keys() {
        if scope.addresses {
            let rows = socket.dump("addresses", &addresses_on(*index))?;
            let addresses = rows.iter().filter_map(|row| decode_address(row, &names));
            state.addresses.extend(addresses.filter(|address| scope.is_inside(address.ip)));
        }
        if scope.neighbours {
            let rows = socket.dump_with("neighbours", &neighbours_on(*index), permanent_entry)?;
            let named = rows.iter().filter_map(|row| Some((*names.get(&row.index)?, row)));
            // Collected first, because a map is made faster at once than entry by entry.
            let mut found = named.map(|(link, row)| ((link, row.ip), row.mac)).collect();
            state.neighbours.append(&mut found);
        }
        if scope.shaping
            && let Some(to) = shaping::observe_redirect(socket, *index)?
            && let Some(link) =
                names.get(&to).copied().map_or_else(|| socket.name_of(to), |n| Ok(Some(n)))?
        {
            state.redirects.insert(names[index], link);
        }
        if scope.fdb {
            let rows = socket.dump_with("FDB entries", &fdb_of(*index), permanent_entry)?;
            let named = rows.iter().filter_map(|row| Some((*names.get(&row.index)?, row)));
            let mut found = named.map(|(link, row)| ((link, row.mac), row.ip)).collect();
            state.fdb.append(&mut found);
        }
    }
    if scope.vlans {
        state.vlans = bridge::observe_vlans(socket, &names)?;
    }
    if scope.shaping {
        state.shapers = shaping::observe_shapers(socket, &names)?;
    }
    if scope.routes != Routes::None {
        (state.routes, state.blackholes) = observe_routes(socket, scope, names)?;
    }
    if scope.tx_checksum {
        let value = |link: &LinkName| Some((*link, offload::tx_checksum(*link).ok()?));
        state.tx_checksum = state.links.keys().filter_map(value).collect();
    }
    for key in &scope.sysctls {
        let is_known = state.sysctls.contains_key(key) || is_of_missing_link(key, scope, &state);
        if let Some(value) = (!is_known).then(|| sysctl::read(key).ok()).flatten() {
            state.sysctls.insert(key.clone(), value);
        }
    }
    Ok(state)
}

/// What the message about a link says of the parameters in the scope.
fn parameters_of(link: LinkName, scope: &Scope, message: &LinkMessage) -> Vec<(Sysctl, String)> {
    let of_link = |key: &&Sysctl| key.of_link().is_some_and(|(_, name, _)| name == link);
    let keys = scope.sysctls.iter().filter(of_link);
    keys.filter_map(|key| Some((key.clone(), parameters::observed(key, message)?))).collect()
}

/// Whether there is no such parameter because there is no such link.
fn is_of_missing_link(key: &Sysctl, scope: &Scope, state: &NetState) -> bool {
    key.of_link()
        .is_some_and(|(_, link, _)| scope.links.contains(&link) && !state.links.contains_key(&link))
}
