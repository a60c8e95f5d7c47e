//! The kernel's limits on neighbours, told before they bite.
//!
//! Every peer on the network of the interface takes a neighbour there. Those in the tunnel are
//! permanent, and count only before Linux 5.0 (`neigh_alloc` in the kernel's `net/core/neighbour.c`).
//! From `gc_thresh2` on the kernel throws out neighbours that are in use; at `gc_thresh3` it takes no
//! new ones, and packets are lost.

use std::fmt;
use std::fs;
use std::path::Path;

use fabric::netstate::NetState;

use crate::family::Family;
use crate::kernel_release;
use crate::lease::{Attributes, LeaseKey};
use crate::on_link::OnLink;

/// Neighbours of one family that a node may need at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Demand {
    /// Peers that are reached without a router.
    on_link: usize,
    /// Entries that we make.
    permanent: usize,
}

/// There may be too little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    family: Family,
    needed: usize,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// `gc_thresh2`
    soft: usize,
    /// `gc_thresh3`
    hard: usize,
}

/// Returns where this machine may have too little room for what `state` holds and for these peers.
/// Where the limits cannot be seen, as in a namespace of its own, that is nowhere.
pub(crate) fn shortages(
    on_link: &OnLink,
    peers: &[(&LeaseKey, &Attributes)],
    state: &NetState,
) -> Vec<Shortage> {
    let shortage = |family| {
        let public = peers.iter().filter_map(|(_, attributes)| attributes.public(family));
        let permanent = state.neighbours.keys().filter(|(_, ip)| Family::of(*ip) == family);
        let on_link = public.filter(|ip| on_link.reaches(*ip)).count();
        let demand = Demand { on_link, permanent: permanent.count() };
        let limits = Limits::read(Path::new("/proc/sys"), family)?;
        demand.compare(family, limits, &kernel_release::running())
    };
    Family::ALL.into_iter().filter_map(shortage).collect()
}

impl Demand {
    fn compare(self, family: Family, limits: Limits, release: &str) -> Option<Shortage> {
        let counts = if kernel_release::is_before(release, (5, 0)) { self.permanent } else { 0 };
        let needed = self.on_link + counts;
        (needed > limits.soft).then_some(Shortage { family, needed, limits })
    }
}

impl Limits {
    fn read(parameters: &Path, family: Family) -> Option<Self> {
        let directory = parameters.join(parameter(family, "").replace('.', "/"));
        let value = |name| fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok();
        Some(Self { soft: value("gc_thresh2")?, hard: value("gc_thresh3")? })
    }
}

fn parameter(family: Family, name: &str) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("net.{family}.neigh.default.{name}")
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, needed, limits: Limits { soft, hard } } = *self;
        let [soft_name, hard_name] = ["gc_thresh2", "gc_thresh3"].map(|n| parameter(family, n));
        // As in the kernel's defaults, the second is twice the first.
        let enough = needed.next_power_of_two();
        write!(
            f,
            "{needed} neighbours may be needed, but the kernel throws some out above {soft} and \
             takes no more than {hard}: set {soft_name} to {enough} and {hard_name} to {}",
            enough * 2
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: Limits = Limits { soft: 512, hard: 1024 };

    #[test]
    fn permanent_neighbours_count_before_linux_5() {
        let tunnel = Demand { on_link: 0, permanent: 4000 };
        let flat = Demand { on_link: 513, permanent: 513 };
        let small = Demand { on_link: 512, permanent: 0 };
        for (demand, release, needed) in [
            (tunnel, "6.1.0-40-amd64", None),
            (tunnel, "4.19.0-27-amd64", Some(4000)),
            (flat, "6.1.0-40-amd64", Some(513)),
            (flat, "4.19.0-27-amd64", Some(1026)),
            (small, "4.19.0-27-amd64", None),
        ] {
            let found = demand.compare(Family::V4, DEBIAN, release);
            assert_eq!(found.map(|shortage| shortage.needed), needed, "{demand:?} on {release}");
        }
    }

    #[test]
    fn limits_are_read_for_each_family_and_the_report_says_what_to_set() {
        let parameters = tempfile::tempdir().unwrap();
        for (family, hard) in [("ipv4", "1024\n"), ("ipv6", "2048\n")] {
            let directory = parameters.path().join(format!("net/{family}/neigh/default"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("gc_thresh2"), "512\n").unwrap();
            fs::write(directory.join("gc_thresh3"), hard).unwrap();
        }
        let limits = |family| Limits::read(parameters.path(), family);
        assert_eq!(limits(Family::V4), Some(DEBIAN));
        assert_eq!(limits(Family::V6), Some(Limits { soft: 512, hard: 2048 }));
        assert_eq!(Limits::read(&parameters.path().join("missing"), Family::V4), None);
        let demand = Demand { on_link: 1500, permanent: 1500 };
        let shortage = demand.compare(Family::V6, DEBIAN, "6.1.0").unwrap();
        assert_eq!(
            shortage.to_string(),
            "1500 neighbours may be needed, but the kernel throws some out above 512 and takes no \
             more than 1024: set net.ipv6.neigh.default.gc_thresh2 to 2048 and \
             net.ipv6.neigh.default.gc_thresh3 to 4096"
        );
    }
}
