//! Sources of zones in firewalld, which lets a zone's packets pass as the zone says: `trusted` lets
//! all of them. Called over D-Bus (firewalld.dbus(5)).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::dbus::{Argument, Bus, Call, DbusError};

const NAME: &str = "org.fedoraproject.FirewallD1";

/// A firewalld that runs.
#[derive(Debug)]
pub struct Firewalld {
    bus: Bus,
}

/// Why firewalld does not do it.
#[derive(Debug, thiserror::Error)]
pub enum FirewalldError {
    /// It is asked for by name.
    #[error("firewalld does not run; start it or configure the backend iptables")]
    NotRunning,
    /// It refuses, or cannot be asked.
    #[error("firewalld cannot {what}")]
    Failed {
        /// The call.
        what: String,
        /// What went wrong.
        #[source]
        source: DbusError,
    },
}

impl Firewalld {
    /// Returns it if it runs.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn running() -> Result<Option<Self>, FirewalldError> {
        let failed = |source| FirewalldError::Failed { what: "be asked".to_owned(), source };
        let Some(mut bus) = Bus::system().map_err(failed)? else { return Ok(None) };
        Ok(bus.has_owner(NAME).map_err(failed)?.then_some(Self { bus }))
    }

    /// Makes an address a source of a zone, unless it is one.
    ///
    /// # Errors
    /// If firewalld refuses, as when the address is a source of another zone.
    pub fn add(&mut self, zone: &str, ip: IpAddr) -> Result<(), FirewalldError> {
        match self.call("addSource", zone, ip) {
            Err(error) if reports(&error, &["ZONE_ALREADY_SET"]) => Ok(()),
            result => result.map(drop).map_err(failed("addSource", zone, ip)),
        }
    }

    /// Makes an address no source of a zone. It may be none.
    ///
    /// # Errors
    /// If firewalld refuses.
    pub fn remove(&mut self, zone: &str, ip: IpAddr) -> Result<(), FirewalldError> {
        // In a conflict it is a source of another zone, by somebody else's will.
        const ABSENT: [&str; 3] = ["UNKNOWN_SOURCE", "ZONE_CONFLICT", "INVALID_ZONE"];
        match self.call("removeSource", zone, ip) {
            Err(error) if reports(&error, &ABSENT) => Ok(()),
            result => result.map(drop).map_err(failed("removeSource", zone, ip)),
        }
    }

    /// Whether an address is a source of a zone.
    ///
    /// # Errors
    /// If firewalld does not say.
    pub fn has(&mut self, zone: &str, ip: IpAddr) -> Result<bool, FirewalldError> {
        let found = self.call("querySource", zone, ip).and_then(|found| match found {
            Argument::Truth(truth) => Ok(truth),
            _ => Err(DbusError::Malformed),
        });
        found.map_err(failed("querySource", zone, ip))
    }

    fn call(&mut self, member: &str, zone: &str, ip: IpAddr) -> Result<Argument, DbusError> {
        self.bus.call(&Call {
            destination: NAME,
            path: "/org/fedoraproject/FirewallD1",
            interface: "org.fedoraproject.FirewallD1.zone",
            member,
            arguments: &[zone, &source(ip)],
        })
    }
}

/// An address as firewalld has it.
pub fn source(ip: IpAddr) -> String {
    IpNetwork::from(ip).to_string()
}

/// Its errors are told apart by the first word of what they say.
fn reports(error: &DbusError, codes: &[&str]) -> bool {
    let DbusError::Reported { name, text } = error else { return false };
    let is_its_own = name == "org.fedoraproject.FirewallD1.Exception";
    is_its_own && text.split(':').next().is_some_and(|code| codes.contains(&code))
}

fn failed(member: &str, zone: &str, ip: IpAddr) -> impl FnOnce(DbusError) -> FirewalldError {
    let what = format!("{member}({zone}, {})", source(ip));
    move |source| FirewalldError::Failed { what, source }
}
