//! What each command does, in one place per command.

pub mod add;
pub mod bandwidth;
pub mod check;
pub mod del;
pub mod firewall;
pub mod flannel;
pub mod gc;
mod interface;
pub mod loopback;
pub mod macvlan;
pub mod ports;
pub mod ptp;
pub mod status;
pub mod tuning;

use crate::error::Error;
use crate::invocation::Request;
use crate::output;
use crate::plugin::Plugin;

/// Serves a request and returns the document for the runtime, which is empty for most commands.
///
/// # Errors
/// If it cannot be served.
pub fn run(plugin: Plugin, request: &Request) -> Result<String, Error> {
    match request {
        Request::Add(call, netns) => {
            let result = add::run(plugin, call, netns)?;
            return Ok(result.encode(call.version)?);
        }
        Request::Del(call, netns) => del::run(plugin, call, netns.as_deref())?,
        Request::Check(call, netns) => check::run(plugin, call, netns)?,
        Request::Gc(call) => gc::run(plugin, call)?,
        Request::Status(call) => status::run(plugin, call)?,
        Request::Version => return Ok(output::versions(plugin.oldest_version())),
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests;
