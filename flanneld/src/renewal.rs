//! Drives the [`Keeper`] of this node: performs its steps on the store, tells the log and the data
//! plane what came of it.

use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::errors::chain;
use crate::family::Family;
use crate::health::Readiness;
use crate::lease::acquire::Request;
use crate::lease::keeper::{Answer, Keeper, Notice, Step, Time, Timing, summary};
use crate::lease::{Attributes, BackendData, Lease, LeaseKey};
use crate::pods;
use crate::store::{LEASE_TTL, SharedStore, StoreError};
use crate::trouble::Trouble;

/// What reaches the renewal, and what it tells.
pub(crate) struct Channels<'a> {
    /// A message says that the store may hold something else under our key.
    pub(crate) doubts: mpsc::Receiver<()>,
    /// What the lease shall say.
    pub(crate) attributes: watch::Receiver<Attributes>,
    /// The lease that the data plane shall work with, once there is one.
    pub(crate) published: watch::Sender<Option<Lease>>,
    /// Told when all leases should be listed again.
    pub(crate) relist: &'a Notify,
    /// What the data plane can do.
    pub(crate) ready: watch::Receiver<Readiness>,
    /// How much of a lease may be left when it is renewed at the latest.
    pub(crate) margin: Duration,
}

/// Gets a lease and keeps it, as long as somebody listens.
pub(crate) async fn keep(
    store: &impl SharedStore,
    request: Request,
    now: impl Fn() -> Time,
    mut channels: Channels<'_>,
) {
    let mut keeper = Keeper::new(request, Timing::with_margin(LEASE_TTL, channels.margin));
    let mut silence = Silence::default();
    loop {
        let asked = now();
        let answer = match keeper.step() {
            Step::Wait(until) => tokio::select! {
                () = sleep(until.saturating_sub(asked)) => Answer::Waited,
                changed = channels.attributes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    keeper.publish(channels.attributes.borrow_and_update().clone(), now());
                    continue;
                }
                doubt = channels.doubts.recv() => {
                    if doubt.is_none() {
                        return;
                    }
                    keeper.doubt(now());
                    continue;
                }
            },
            step => silence.or(store.perform(&step).await),
        };
        keeper.answer((asked, now()), answer, |count| rand::random_range(0..count));
        if keeper.is_confirmed(now()) {
            silence.end(&keeper.step());
        }
        for notice in keeper.notices() {
            if notice.casts_doubt_on_the_table() {
                channels.relist.notify_one();
            }
            tell(&notice);
        }
        let left = keeper.expires().map(|end| end.saturating_sub(now()));
        debug!(?left, confirmed = keeper.is_confirmed(now()), "lease");
        channels.published.send_if_modified(|published| {
            let changed = published.as_ref() != keeper.served();
            *published = keeper.served().cloned();
            changed
        });
    }
}

/// What the store does not do.
#[derive(Default)]
struct Silence {
    trouble: Trouble,
    /// Whether the last request was in vain.
    again: bool,
}

impl Silence {
    fn or(&mut self, answer: Result<Answer, StoreError>) -> Answer {
        self.again = answer.is_err();
        match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.trouble.tell(&chain(&error));
                Answer::Silence
            }
        }
    }
}

impl Silence {
    /// The lease is confirmed, and there is nothing to do but wait.
    fn end(&mut self, step: &Step) {
        if matches!(step, Step::Wait(_)) && !self.again {
            self.trouble.end("the store answers again");
        }
    }
}

fn tell(notice: &Notice) {
    match notice {
        Notice::Acquired { key, before } => tell_acquired(*key, *before),
        Notice::Gone { key } => {
            warn!(subnet = %key, "our key is gone from the store; it is made again if it is free");
        }
        Notice::Changed { key, attributes } => error!(
            subnet = %key, by = %who(attributes.as_ref()),
            "our key was written by somebody else; nothing is written until it is clear by whom"
        ),
        Notice::Unclear { key, age } => warn!(
            subnet = %key, renewed_secs_ago = age.as_secs(),
            "a lease of our public address was written by another node, or by this one before it \
             booted; waiting to see whether it is renewed"
        ),
        Notice::Twin { key, attributes } => error!(
            subnet = %key, by = %who(attributes.as_ref()),
            "another living node has the public address of this one, and they cannot share a \
             lease; see --public-ip and --iface"
        ),
        Notice::Exhausted { network, holders } => error!(
            %network, held_by = %summary(holders),
            "every subnet is held; release one with flanneld lease release, or widen the network"
        ),
    }
}

pub(crate) fn tell_acquired(key: LeaseKey, before: Option<LeaseKey>) {
    match before {
        None => info!(subnet = %key, "lease acquired"),
        Some(before) if before == key => info!(subnet = %key, "the lease is ours again"),
        Some(before) => {
            let is_lost = |subnet: &IpNetwork| key.subnets().all(|now| now != *subnet);
            let lost: Vec<_> = before.subnets().filter(is_lost).collect();
            if lost.is_empty() {
                return info!(subnet = %key, %before, "the lease has a subnet of another family too");
            }
            let pods = lost.into_iter().flat_map(|lost| pods::on(lost, Path::new(pods::NETWORKS)));
            error!(
                subnet = %key, %before, pods = %pods.collect::<Vec<_>>().join(", "),
                "this node got another subnet; pods on the old one must be made anew"
            );
        }
    }
}

/// Names a writer by what it wrote; values are small, and hold no secrets.
fn who(attributes: Option<&Attributes>) -> String {
    let Some(attributes) = attributes else { return "an unreadable value".to_owned() };
    let addresses = Family::ALL.into_iter().filter_map(|family| attributes.public(family));
    let data = Family::ALL.into_iter().filter_map(|family| attributes.data(family));
    let kind = [attributes.backend_type.clone()].into_iter();
    let words =
        addresses.map(|ip| ip.to_string()).chain(kind).chain(data.map(BackendData::to_string));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
