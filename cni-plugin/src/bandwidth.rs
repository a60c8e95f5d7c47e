//! How much a pod may send and receive: limits as configured, and what makes them true. Pure.
//!
//! What goes to the pod is held back where the host's end of its pair sends. What comes from the pod
//! has been sent already where the host sees it, so it is redirected to a link that is there for
//! nothing else, and held back where that one sends.

use std::time::Duration;

use fabric::json;
use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netstate::{Link, LinkKind, NetState, TokenBucket};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha512};

use crate::attachment;
use crate::bridge::lookup;
use crate::invocation::{Attachment, Id};

/// Checked limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// On what goes to the pod.
    ingress: Option<TokenBucket>,
    /// On what comes from it.
    egress: Option<TokenBucket>,
}

/// Why there are no limits.
#[derive(Debug, thiserror::Error)]
pub enum BandwidthError {
    /// A value is of the wrong type.
    #[error("failed to parse network configuration")]
    Json(#[source] json::Error),
    /// A rate is given and how much may go at once is not.
    #[error("{0}: if rate is set, burst must also be set")]
    NoBurst(&'static str),
    /// The other way round.
    #[error("{0}: if burst is set, rate must also be set")]
    NoRate(&'static str),
    /// More would go at once than the kernel can count.
    #[error("{0}: burst cannot be more than 4GB")]
    Burst(&'static str),
}

/// No packet waits longer than this.
const LATENCY: Duration = Duration::from_millis(25);
const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// Bits per second, and bits.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "limits of bandwidth")]
struct RawLimits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

impl Limits {
    /// Reads the configuration of the plugin `bandwidth`. If the network says anything about it, the
    /// runtime does not.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn new(config: &Map<String, Value>) -> Result<Self, BandwidthError> {
        let is_said = |key: &&str| lookup(config, &[key]).is_some_and(|value| !value.is_null());
        if KEYS.iter().any(is_said) {
            return Self::parse(config.clone().into());
        }
        Self::of_runtime(config)
    }

    /// Reads what the runtime says.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn of_runtime(config: &Map<String, Value>) -> Result<Self, BandwidthError> {
        let said = lookup(config, &["runtimeConfig", "bandwidth"]);
        said.filter(|value| !value.is_null()).cloned().map_or(Ok(Self::default()), Self::parse)
    }

    fn parse(value: Value) -> Result<Self, BandwidthError> {
        let raw: RawLimits = json::from_value(value).map_err(BandwidthError::Json)?;
        Ok(Self {
            ingress: bucket("ingress", raw.ingress_rate, raw.ingress_burst)?,
            egress: bucket("egress", raw.egress_rate, raw.egress_burst)?,
        })
    }

    /// Whether the pod may send and receive as much as it can.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there must be a link for what comes from the pod.
    pub const fn needs_ifb(&self) -> bool {
        self.egress.is_some()
    }
}

fn bucket(
    direction: &'static str,
    rate: u64,
    burst: u64,
) -> Result<Option<TokenBucket>, BandwidthError> {
    const BITS: u64 = 8;
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => Err(BandwidthError::NoBurst(direction)),
        (0, _) => Err(BandwidthError::NoRate(direction)),
        _ if burst / BITS >= u64::from(u32::MAX) => Err(BandwidthError::Burst(direction)),
        // Less than a byte per second cannot be told from nothing.
        _ => Ok(TokenBucket::new((rate / BITS).max(1), (burst / BITS).max(1), LATENCY)),
    }
}

/// Adds to the state of the host what makes the limits of an attachment true, whose end of the pair
/// there is `veth`.
pub fn add_to(
    state: &mut NetState,
    attachment: &Attachment,
    veth: LinkName,
    mtu: Option<Mtu>,
    limits: &Limits,
) {
    state.shapers.extend(limits.ingress.map(|bucket| (veth, bucket)));
    if let Some(bucket) = limits.egress {
        let ifb = ifb(attachment);
        let [a, b, c, d, e, f, ..] = digest(ifb.as_str());
        let link = Link {
            mac: Some(MacAddr::local([a, b, c, d, e, f])),
            mtu,
            alias: Some(attachment::alias(attachment)),
            queue_length: Some(0),
            ..Link::up(LinkKind::Ifb)
        };
        state.links.insert(ifb, link);
        state.shapers.insert(ifb, bucket);
        state.redirects.insert(veth, ifb);
    }
}

/// The name of the link for what comes from the pod. For the first interface of a pod it is that of
/// the Go plugin, which has one for all.
pub fn ifb(attachment: &Attachment) -> LinkName {
    let Attachment { network, container, if_name } = attachment;
    match if_name.as_str() {
        "eth0" => ifb_of_go(network, container),
        other => name(&format!("{network}{container}/{other}")),
    }
}

/// The name of the link for what comes from all interfaces of a container, as the Go plugin makes it.
pub fn ifb_of_go(network: &Id, container: &Id) -> LinkName {
    name(&format!("{network}{container}"))
}

/// The names that such a link may have, whoever made it.
pub fn ifb_names(attachment: &Attachment) -> [LinkName; 2] {
    [ifb(attachment), ifb_of_go(&attachment.network, &attachment.container)]
}

/// Whether a link with one of these names is of the attachment. The Go plugin leaves no remark.
pub fn is_ifb_of(attachment: &Attachment, name: LinkName, link: &Link) -> bool {
    let is_ours = |alias: &String| *alias == attachment::alias(attachment);
    ifb_names(attachment).contains(&name)
        && link.kind == LinkKind::Ifb
        && link.alias.as_ref().is_none_or(is_ours)
}

fn name(text: &str) -> LinkName {
    let digits: String = digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bwp{}", &digits[..12]).parse().expect("fifteen letters and digits are a name")
}

fn digest(text: &str) -> [u8; 64] {
    Sha512::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use fabric::plan::diff;
    use serde_json::json;

    use super::*;

    fn limits(config: Value) -> Result<Limits, String> {
        Limits::new(config.as_object().unwrap()).map_err(|error| crate::error::chain(&error))
    }

    #[test]
    fn the_name_is_that_of_the_go_plugin_for_the_first_interface() {
        let of = |if_name| ifb(&Attachment::named("cbr0", "abc", if_name)).to_string();
        assert_eq!(of("eth0"), "bwp64e75f641d11");
        assert_ne!(of("net1"), of("eth0"));
    }

    #[test]
    fn limits_become_buckets_and_a_redirection() {
        let both = limits(json!({
            "ingressRate": 1_000_000, "ingressBurst": 800_000,
            "egressRate": 2_000_000, "egressBurst": 160_000,
            "runtimeConfig": {"bandwidth": {"ingressRate": 8, "ingressBurst": 8}},
        }));
        let veth: LinkName = "veth01234567".parse().unwrap();
        let mut desired = NetState::default();
        add_to(
            &mut desired,
            &Attachment::named("cbr0", "abc", "eth0"),
            veth,
            Mtu::new(1450),
            &both.unwrap(),
        );
        let expected = "\
ip link add bwp64e75f641d11 address 2a:3d:05:3a:ed:e1 mtu 1450 txqueuelen 0 type ifb
ip link set bwp64e75f641d11 alias \"abc/eth0/cbr0\"
ip link set bwp64e75f641d11 up
tc qdisc replace dev bwp64e75f641d11 root handle 1: tbf rate 250000bps burst 20000 limit 26250
tc qdisc replace dev veth01234567 root handle 1: tbf rate 125000bps burst 100000 limit 103125
tc qdisc add dev veth01234567 handle ffff: ingress
tc filter add dev veth01234567 parent ffff: protocol all prio 1 u32 match u32 0 0 \
action mirred egress redirect dev bwp64e75f641d11
";
        assert_eq!(diff(&desired, &NetState::default()).to_string(), expected);
    }

    #[test]
    fn keys_count_in_any_case_and_zero_is_no_limit() {
        let one = limits(json!({"egressRate": 8000, "egressBurst": 16_000})).unwrap();
        let by_runtime = json!({"bandwidth": {"EgressRate": 8000, "EgressBurst": 16_000}});
        assert_eq!(limits(json!({"RuntimeConfig": by_runtime})).unwrap(), one);
        let zero = json!({"ingressRate": 0, "ingressBurst": 0, "runtimeConfig": by_runtime});
        assert!(limits(zero).unwrap().is_none());
        assert!(limits(json!({"runtimeConfig": {"bandwidth": null}})).unwrap().is_none());
        assert!(limits(json!({"bandwidth": {"egressRate": 8000}})).unwrap().is_none());
        // What containerd sends, which has no burst of its own.
        let huge = json!({"ingressRate": 1_000_000, "ingressBurst": u32::MAX});
        assert!(!limits(huge).unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let table = [
            (json!({"ingressRate": 8}), "ingress: if rate is set, burst must also be set"),
            (json!({"egressBurst": 8}), "egress: if burst is set, rate must also be set"),
            (
                json!({"egressBurst": 34_359_738_360_u64, "egressRate": 1}),
                "egress: burst cannot be more than 4GB",
            ),
            (
                json!({"runtimeConfig": {"bandwidth": 1}}),
                "failed to parse network configuration: \
                 expected limits of bandwidth, found a number",
            ),
            (
                json!({"ingressRate": -1}),
                "failed to parse network configuration: \
                 ingressRate: expected u64, found integer `-1`",
            ),
        ];
        for (config, expected) in table {
            assert_eq!(limits(config).unwrap_err(), expected);
        }
    }
}
