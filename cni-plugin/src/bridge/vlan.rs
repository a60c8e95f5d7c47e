//! The VLANs that an attachment belongs to, as a configuration says it.

use std::collections::{BTreeMap, BTreeSet};

use fabric::link_name::{InvalidLinkName, LinkName};
use fabric::netstate::PortVlan;
use serde::Deserialize;

/// The last number of a VLAN (IEEE 802.1Q); the one behind it is reserved.
const VID_MAX: i64 = 4094;

/// The VLAN that a bridge gives to new ports.
const DEFAULT: u16 = 1;

/// The VLANs of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// The one that its untagged frames belong to; `None` for what the bridge has for these.
    pub access: Option<u16>,
    /// Those of the attachment's port of the bridge; none for what the bridge gives to new ports.
    pub port: BTreeMap<u16, PortVlan>,
    /// Whether the bridge must keep VLANs apart.
    pub filtering: bool,
}

/// Why a configuration of VLANs makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    /// There is no VLAN of this number.
    #[error("invalid VLAN ID {0} (must be between 0 and {VID_MAX})")]
    Access(i64),
    /// A range of a trunk begins nowhere.
    #[error("minID and maxID should be configured simultaneously, minID is missing")]
    NoMin,
    /// A range of a trunk ends nowhere.
    #[error("minID and maxID should be configured simultaneously, maxID is missing")]
    NoMax,
    /// A range of a trunk begins with no VLAN.
    #[error("incorrect trunk minID parameter")]
    Min,
    /// A range of a trunk ends with no VLAN.
    #[error("incorrect trunk maxID parameter")]
    Max,
    /// A range of a trunk ends before it begins.
    #[error("minID is greater than maxID in trunk parameter")]
    Order,
    /// There is no VLAN of this number in a trunk.
    #[error("incorrect trunk id parameter")]
    Id,
}

/// An entry of a trunk: a VLAN, a range of them, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RawTrunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
}

impl Vlans {
    /// Checks the keys `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
    ///
    /// # Errors
    /// If a number is none of a VLAN.
    pub fn new(
        access: i64,
        trunk: Option<&[RawTrunk]>,
        keep_default: bool,
    ) -> Result<Self, VlanError> {
        let access = match access {
            0 => None,
            id => Some(vid(id).ok_or(VlanError::Access(id))?),
        };
        let mut tagged = BTreeSet::new();
        for entry in trunk.unwrap_or_default() {
            entry.collect(&mut tagged)?;
        }
        let tag = |vid| (vid, PortVlan { pvid: false, untagged: false });
        let mut port: BTreeMap<_, _> = tagged.into_iter().map(tag).collect();
        if access.is_some() && keep_default {
            port.insert(DEFAULT, PortVlan { pvid: false, untagged: true });
        }
        if access.is_some() || !port.is_empty() {
            let untagged = PortVlan { pvid: true, untagged: true };
            port.insert(access.unwrap_or(DEFAULT), untagged);
        }
        Ok(Self { access, port, filtering: access.is_some() || trunk.is_some() })
    }
}

impl Vlans {
    /// Returns the name of the link by which the node is in the VLAN of the attachments: the bridge
    /// itself if there is none.
    ///
    /// # Errors
    /// If that is too long for a name.
    pub fn gateway_name(&self, bridge: LinkName) -> Result<LinkName, InvalidLinkName> {
        self.access.map_or(Ok(bridge), |vid| format!("{bridge}.{vid}").parse())
    }
}

impl RawTrunk {
    fn collect(self, vlans: &mut BTreeSet<u16>) -> Result<(), VlanError> {
        match (self.min_id, self.max_id) {
            (None, None) => {}
            (None, Some(_)) => return Err(VlanError::NoMin),
            (Some(_), None) => return Err(VlanError::NoMax),
            (Some(min), Some(max)) => {
                let min = vid(min).ok_or(VlanError::Min)?;
                let max = vid(max).ok_or(VlanError::Max)?;
                if min > max {
                    return Err(VlanError::Order);
                }
                vlans.extend(min..=max);
            }
        }
        if let Some(id) = self.id {
            vlans.insert(vid(id).ok_or(VlanError::Id)?);
        }
        Ok(())
    }
}

fn vid(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|vid| (1..=VID_MAX).contains(&i64::from(*vid)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vlans(access: i64, trunk: Value, keep_default: bool) -> Result<String, String> {
        let trunk: Option<Vec<RawTrunk>> = fabric::json::from_value(trunk).unwrap();
        let vlans = Vlans::new(access, trunk.as_deref(), keep_default);
        let vlans = vlans.map_err(|error| error.to_string())?;
        let texts = vlans.port.iter().map(|(vid, vlan)| format!("{vid}{vlan}"));
        Ok(texts.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn a_port_belongs_to_the_vlans_that_are_named() {
        let table = [
            (0, json!(null), false, ""),
            (0, json!(null), true, ""),
            (0, json!([]), false, ""),
            (0, json!([{}]), false, ""),
            (100, json!(null), false, "100 pvid untagged"),
            (100, json!(null), true, "1 untagged, 100 pvid untagged"),
            (1, json!(null), true, "1 pvid untagged"),
            (
                0,
                json!([{"id": 101}, {"minID": 200, "maxID": 202}]),
                false,
                "1 pvid untagged, 101, 200, 201, 202",
            ),
            (0, json!([{"id": 101}]), true, "1 pvid untagged, 101"),
            (
                100,
                json!([{"ID": 102, "minID": 101, "maxID": 101}]),
                false,
                "100 pvid untagged, 101, 102",
            ),
            (100, json!([{"id": 100}, {"id": 101}, {"id": 101}]), false, "100 pvid untagged, 101"),
            (4094, json!(null), false, "4094 pvid untagged"),
        ];
        for (access, trunk, keep_default, expected) in table {
            assert_eq!(vlans(access, trunk, keep_default).as_deref(), Ok(expected));
        }
        let filtering = |access, trunk| Vlans::new(access, trunk, false).unwrap().filtering;
        assert!(filtering(100, None) && filtering(0, Some(&[])) && !filtering(0, None));
    }

    #[test]
    fn numbers_of_no_vlan_are_named() {
        let both = "minID and maxID should be configured simultaneously";
        let table = [
            (4095, json!(null), "invalid VLAN ID 4095 (must be between 0 and 4094)".to_owned()),
            (-1, json!(null), "invalid VLAN ID -1 (must be between 0 and 4094)".to_owned()),
            (0, json!([{"minID": 5}]), format!("{both}, maxID is missing")),
            (0, json!([{"maxID": 5}]), format!("{both}, minID is missing")),
            (0, json!([{"minID": 0, "maxID": 5}]), "incorrect trunk minID parameter".to_owned()),
            (0, json!([{"minID": 4095, "maxID": 1}]), "incorrect trunk minID parameter".to_owned()),
            (0, json!([{"minID": 1, "maxID": 4095}]), "incorrect trunk maxID parameter".to_owned()),
            (
                0,
                json!([{"minID": 9, "maxID": 8}]),
                "minID is greater than maxID in trunk parameter".to_owned(),
            ),
            (0, json!([{"id": 0}]), "incorrect trunk id parameter".to_owned()),
            (0, json!([{"id": 4095}]), "incorrect trunk id parameter".to_owned()),
        ];
        for (access, trunk, expected) in table {
            assert_eq!(vlans(access, trunk, false), Err(expected));
        }
    }
}
