//! Keeps this node's lease: renews it in time, and takes it again when it was lost.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant as TokioInstant, sleep_until};
use tracing::{info, warn};

use crate::lease::acquire::Request;
use crate::retry;
use crate::store::{Held, LeaseStore, Renewal};

/// A renewal that failed is tried again this often.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// However large the margin, renewing more often than this helps nobody.
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// Takes a lease, trying until there is one.
pub(crate) async fn acquire(store: &impl LeaseStore, request: &Request) -> Held {
    let held =
        retry::until_ok("acquire a lease", RETRY_MAX, async || store.acquire(request).await).await;
    info!(subnet = %held.lease.subnet.ipv4, "lease acquired");
    held
}

/// Keeps the lease as long as the node runs. A message on `doubts` says that the store holds
/// something else under our key; `published` always has the lease that is held.
pub(crate) async fn keep(
    store: &impl LeaseStore,
    mut request: Request,
    margin: Duration,
    mut doubts: mpsc::Receiver<()>,
    published: watch::Sender<Held>,
) {
    let mut held = published.borrow().clone();
    loop {
        let lost = tokio::select! {
            () = sleep_until(renewal_time(&held, margin)) => renew(store, &mut held).await,
            doubt = doubts.recv() => match doubt {
                Some(()) => true,
                None => return,
            },
        };
        if lost {
            warn!(subnet = %held.lease.subnet.ipv4, "the lease is not ours in the store any more");
            request.previous = Some(held.lease.subnet);
            held = acquire(store, &request).await;
        }
        // Whoever listens only wants to know about another subnet.
        published.send_if_modified(|now| {
            let changed = now.lease != held.lease;
            now.clone_from(&held);
            changed
        });
    }
}

async fn renew(store: &impl LeaseStore, held: &mut Held) -> bool {
    let renewal =
        retry::until_ok("renew the lease", RETRY_MAX, async || store.renew(held).await).await;
    match renewal {
        Renewal::Until(expires) => {
            held.expires = expires;
            info!(subnet = %held.lease.subnet.ipv4, "lease renewed");
            false
        }
        Renewal::Lost => true,
    }
}

fn renewal_time(held: &Held, margin: Duration) -> TokioInstant {
    /// A reservation has no end; it is looked at again after a day all the same.
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let now = Instant::now();
    let left = held.expires.map_or(DAY, |end| end.saturating_duration_since(now));
    (now + left.saturating_sub(margin).max(PAUSE_MIN.min(left / 2))).into()
}

#[cfg(test)]
mod tests;
