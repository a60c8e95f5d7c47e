//! The node condition `NetworkUnavailable`: schedulers keep pods off a node until it is `False`
//! (Kubernetes documentation, "Node Status").

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::node::Node;

const KIND: &str = "NetworkUnavailable";
/// The words of flannel: dashboards know them.
const REASON: &str = "FlannelIsUp";
const MESSAGE: &str = "Flannel is running on this node";

/// Returns the patch that says that the network is there, unless the node says so already.
pub(super) fn patch(node: &Node, now: SystemTime) -> Option<Value> {
    let is_up = |status: &str, reason: &str| status == "False" && reason == REASON;
    if node.condition(KIND).is_some_and(|found| is_up(&found.status, &found.reason)) {
        return None;
    }
    let now = rfc3339(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    Some(json!({ "status": { "conditions": [{
        "type": KIND,
        "status": "False",
        "reason": REASON,
        "message": MESSAGE,
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }] } }))
}

/// The time in UTC as RFC 3339 writes it, from the time since 1970. The date is found by Howard
/// Hinnant's `civil_from_days`.
fn rfc3339(since_1970: Duration) -> String {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let secs = since_1970.as_secs();
    let days = secs / 86_400 + DAYS_TO_1970;
    let (era, day) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months counted from March, so that the leap day comes last.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + later;
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_api_wants_them() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn the_condition_is_said_once() {
        let node = |status: &str, reason: &str| -> Node {
            let condition = json!({ "type": KIND, "status": status, "reason": reason });
            let node = json!({ "metadata": {}, "status": { "conditions": [condition] } });
            serde_json::from_value(node).unwrap()
        };
        assert!(patch(&Node::default(), UNIX_EPOCH).is_some());
        assert!(patch(&node("True", "NoRouteCreated"), UNIX_EPOCH).is_some());
        assert!(patch(&node("False", "RouteCreated"), UNIX_EPOCH).is_some());
        assert!(patch(&node("False", REASON), UNIX_EPOCH).is_none());
    }
}
