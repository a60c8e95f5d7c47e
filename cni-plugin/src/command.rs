//! What each command does, in one place per command.

pub mod add;
pub mod check;
pub mod del;
pub mod status;

use crate::error::Error;
use crate::invocation::Request;
use crate::output;

/// Serves a request and returns the document for the runtime, which is empty for most commands.
///
/// # Errors
/// If it cannot be served.
pub fn run(request: Request) -> Result<String, Error> {
    match request {
        Request::Add(call, netns) => {
            let result = add::run(&call, &netns)?;
            Ok(result.encode(call.version)?)
        }
        Request::Del(call, netns) => del::run(&call, netns.as_deref()).map(|()| String::new()),
        Request::Check(call, netns) => check::run(&call, &netns).map(|()| String::new()),
        // Like flannel's own plugin, which knows no GC.
        Request::Gc(_) => Ok(String::new()),
        Request::Status(conf) => status::run(&conf).map(|()| String::new()),
        Request::Version => Ok(output::versions()),
    }
}

#[cfg(test)]
mod tests;
