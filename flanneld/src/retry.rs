//! Trying again what can heal, without filling the log.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::errors::chain;

/// Tries until it works, with growing pauses up to `pause_max`. Each reason is logged once, also if
/// several take turns.
pub(crate) async fn until_ok<T, E, F>(
    what: &'static str,
    pause_max: Duration,
    mut attempt: impl FnMut() -> F,
) -> T
where
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut pause = Duration::from_millis(250).min(pause_max);
    let mut logged = BTreeSet::new();
    loop {
        match attempt().await {
            Ok(value) => {
                if !logged.is_empty() {
                    info!("{what}: it worked in the end");
                }
                return value;
            }
            Err(error) => {
                let reason = chain(&error);
                if !logged.contains(&reason) {
                    warn!("{reason}; trying again");
                    logged.insert(reason);
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(pause_max);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_until_it_works() {
        let attempts = Cell::new(0);
        let fourth = until_ok("count", Duration::from_secs(1), async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 4 { Err(std::fmt::Error) } else { Ok(attempts.get()) }
        });
        assert_eq!(fourth.await, 4);
    }
}
