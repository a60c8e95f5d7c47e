//! The part of a plan that is about how much links send, and where what comes in by them goes.
//!
//! Whatever hangs on a link goes with it.

use std::fmt;

use super::{Diff, Op};
use crate::netstate::TokenBucket;

impl Diff<'_> {
    pub(super) fn shape(&self, ops: &mut Vec<Op>) {
        for (link, bucket) in &self.desired.shapers {
            if self.observed.shapers.get(link) != Some(bucket) || !self.survives(link) {
                ops.push(Op::ReplaceShaper(*link, *bucket));
            }
        }
        for (link, to) in &self.desired.redirects {
            let now = self.observed.redirects.get(link).filter(|_| self.survives(link));
            // What is sent to a link that is made anew goes nowhere.
            if now == Some(to) && self.survives(to) {
                continue;
            }
            ops.extend(now.map(|_| Op::DelIngress(*link)));
            ops.extend([Op::AddIngress(*link), Op::AddRedirect(*link, *to)]);
        }
    }

    pub(super) fn unshape(&self, ops: &mut Vec<Op>) {
        for link in self.observed.redirects.keys() {
            if !self.desired.redirects.contains_key(link) && !self.goes(link) {
                ops.push(Op::DelIngress(*link));
            }
        }
        for link in self.observed.shapers.keys() {
            if !self.desired.shapers.contains_key(link) && !self.goes(link) {
                ops.push(Op::DelShaper(*link));
            }
        }
    }
}

/// As `tc qdisc add dev LINK root tbf` continues.
impl fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " rate {}bps burst {} limit {}", self.rate, self.burst(), self.limit)
    }
}
