//! Does what a plan says, many requests in one send.

mod links;

use std::collections::BTreeMap;
use std::io;

use super::addresses::{del_address, probe_address, replace_address, replace_unrouted_address};
use super::neighbours::{del_fdb_entry, del_neighbour, replace_fdb_entry, replace_neighbour};
use super::routes::{add_blackhole, add_route, del_blackhole, del_route, replace_route};
use super::socket::{BATCH, Request, Socket};
use super::{bridge, joined, parameters, shaping};
use crate::link_name::LinkName;
use crate::netns::Netns;
use crate::netstate::{Address, LinkKind};
use crate::plan::{Op, Plan};
use crate::{offload, sysctl, tun};
use links::del_link;

/// An operation that was not done.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct ApplyError {
    /// What was tried.
    pub op: Box<Op>,
    /// The kernel's words (its extended acknowledgement, if there is one).
    pub reason: String,
    /// The kernel's error number, if it was the kernel that refused.
    pub errno: Option<i32>,
}

impl ApplyError {
    /// Whether somebody else made or removed something since it was observed.
    pub fn is_race(&self) -> bool {
        self.errno.is_some_and(|errno| errno == libc::EEXIST || GONE.contains(&errno))
    }
}

/// How the kernel says that there is nothing of the kind.
const GONE: [i32; 4] = [libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL];

/// Does every operation in order and returns those that failed; one failure does not stop the rest.
/// To remove what is gone already is no failure.
pub fn apply(socket: &mut Socket, plan: &Plan) -> Vec<ApplyError> {
    let mut applier = Applier {
        indices: std::mem::take(&mut socket.indices),
        socket,
        queued: Vec::new(),
        namespaces: Vec::new(),
        failures: Vec::new(),
    };
    for op in &plan.ops {
        if let Err(failure) = applier.queue(op) {
            applier.fail(op, failure.to_string(), &failure);
        }
    }
    applier.flush();
    let Applier { socket, indices, failures, .. } = applier;
    socket.indices = indices;
    failures
}

struct Applier<'a> {
    socket: &'a mut Socket,
    /// Numbers of the links that were observed or asked for so far.
    indices: BTreeMap<LinkName, u32>,
    /// Not sent yet, each with the operations that it comes from.
    queued: Vec<(Request, Vec<&'a Op>)>,
    /// Namespaces that the requests refer to by descriptor.
    namespaces: Vec<Netns>,
    failures: Vec<ApplyError>,
}

impl<'a> Applier<'a> {
    fn queue(&mut self, op: &'a Op) -> io::Result<()> {
        let Some(request) = self.request(op)? else { return Ok(()) };
        if let Op::AddLink(name, _) | Op::DelLink(name) = op {
            self.indices.remove(name);
        }
        if let Some((last, ops)) = self.queued.last_mut()
            && joined::join(last, &request)
        {
            ops.push(op);
        } else {
            self.queued.push((request, vec![op]));
        }
        if self.queued.len() == BATCH {
            self.flush();
        }
        Ok(())
    }

    /// Returns how rtnetlink is asked for an operation. What it does not know is done at once.
    fn request(&mut self, op: &Op) -> io::Result<Option<Request>> {
        let request = match op {
            Op::SetSysctl(key, value) => match parameters::setting(key, value) {
                Some(request) => request,
                None => {
                    // The link whose parameter it is may still be in the queue.
                    self.flush();
                    return sysctl::write(key, value).map(|()| None);
                }
            },
            Op::SetTxChecksum(link, on) => {
                self.flush();
                return offload::set_tx_checksum(*link, *on).map(|()| None);
            }
            Op::AddLink(name, link) if link.kind == LinkKind::Tun => {
                // One of another kind may still be in the queue for removal.
                self.flush();
                return tun::create(*name).map(|()| None);
            }
            Op::AddLink(name, link) => self.add_link(*name, link)?,
            Op::AddLinkIn(netns, name, link) => self.add_link_in(netns, *name, link)?,
            Op::DelLink(name) => del_link(*name),
            Op::SetLink(name, change) => self.set_link(*name, change)?,
            Op::ReplaceAddress(address) => replace_address(self.index(address.link)?, address.ip),
            Op::ReplaceUnroutedAddress(address) => {
                replace_unrouted_address(self.index(address.link)?, address.ip)
            }
            Op::ProbeAddress(address) => probe_address(self.index(address.link)?, address.ip),
            Op::ReplaceVlan(link, vid, vlan) => {
                bridge::replace_vlan(self.index(*link)?, *vid, *vlan)
            }
            Op::DelVlan(link, vid) => bridge::del_vlan(self.index(*link)?, *vid),
            Op::ClearVlans(link) => bridge::clear_vlans(self.index(*link)?),
            Op::DelAddress(Address { link, ip }) => del_address(self.index(*link)?, *ip),
            Op::ReplaceNeighbour(link, ip, mac) => replace_neighbour(self.index(*link)?, *ip, *mac),
            Op::DelNeighbour(link, ip) => del_neighbour(self.index(*link)?, *ip),
            Op::ReplaceFdbEntry(link, mac, vtep) => {
                replace_fdb_entry(self.index(*link)?, *mac, *vtep)
            }
            Op::DelFdbEntry(link, mac, vtep) => del_fdb_entry(self.index(*link)?, *mac, *vtep),
            Op::AddRoute(key, route) => add_route(self.index(route.link)?, key, route),
            Op::ReplaceRoute(key, route) => replace_route(self.index(route.link)?, key, route),
            Op::DelRoute(key, route) => del_route(self.index(route.link)?, key, route),
            Op::AddBlackhole(key) => add_blackhole(key),
            Op::DelBlackhole(key) => del_blackhole(key),
            Op::ReplaceShaper(link, bucket) => shaping::replace_shaper(self.index(*link)?, bucket),
            Op::DelShaper(link) => shaping::del_shaper(self.index(*link)?),
            Op::AddIngress(link) => shaping::add_ingress(self.index(*link)?),
            Op::AddRedirect(link, to) => {
                shaping::add_redirect(self.index(*link)?, self.index(*to)?)
            }
            Op::DelIngress(link) => shaping::del_ingress(self.index(*link)?),
        };
        Ok(Some(request))
    }

    fn flush(&mut self) {
        let (requests, ops): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queued).into_iter().unzip();
        if requests.is_empty() {
            return;
        }
        match self.socket.execute(requests) {
            Ok(results) => {
                for (ops, result) in ops.into_iter().zip(results) {
                    match (result, ops.as_slice()) {
                        (Ok(()), _) => {}
                        (Err(refusal), [op]) => {
                            self.fail(op, refusal.to_string(), &refusal.errno);
                        }
                        (Err(_), ops) => ops.iter().for_each(|op| self.retry(op)),
                    }
                }
            }
            Err(error) => {
                ops.into_iter().flatten().for_each(|op| self.fail(op, error.to_string(), &error));
            }
        }
        self.namespaces.clear();
    }

    /// Does one of several operations that went together: one refusal does not stop the others.
    fn retry(&mut self, op: &Op) {
        let result = self.request(op).and_then(|request| {
            self.socket
                .execute(request.into_iter().collect())
                .map(|results| results.into_iter().next())
        });
        match result {
            Ok(Some(Err(refusal))) => self.fail(op, refusal.to_string(), &refusal.errno),
            Ok(Some(Ok(())) | None) => {}
            Err(error) => self.fail(op, error.to_string(), &error),
        }
    }

    fn fail(&mut self, op: &Op, reason: String, error: &io::Error) {
        let errno = error.raw_os_error();
        let gone = errno.is_some_and(|errno| GONE.contains(&errno));
        if !(gone && op.is_removal()) {
            self.failures.push(ApplyError { op: Box::new(op.clone()), reason, errno });
        }
    }

    /// Returns the number of a link, which may be among those queued for creation.
    fn index(&mut self, link: LinkName) -> io::Result<u32> {
        if let Some(index) = self.indices.get(&link) {
            return Ok(*index);
        }
        self.flush();
        let found = self.socket.link_by_name(link).map_err(io::Error::other)?;
        let index = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?.header.index;
        self.indices.insert(link, index);
        Ok(index)
    }
}
