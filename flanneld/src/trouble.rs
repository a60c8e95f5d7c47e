//! Trouble that lasts is told once, until its reason changes or it ends.

use tracing::{info, warn};

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    reason: Option<String>,
}

impl Trouble {
    /// Tells the reason, unless that was done.
    pub(crate) fn tell(&mut self, reason: &str) {
        if self.reason.as_deref() != Some(reason) {
            warn!("{reason}; trying again");
            self.reason = Some(reason.to_owned());
        }
    }

    /// Tells that it is over, if there was any.
    pub(crate) fn end(&mut self, news: &str) {
        if self.reason.take().is_some() {
            info!("{news}");
        }
    }
}
