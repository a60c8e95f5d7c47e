//! `flanneld lease …`: what is asked for, and in which store.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Command, Options, Typed, UsageError};
use crate::lease::LeaseKey;

pub(super) const USAGE: &str = "usage: flanneld lease list | show SUBNET | release SUBNET | \
     reserve SUBNET --public-ip IP, with --json and the flags of the store";

/// A command about leases.
#[derive(Debug)]
pub(crate) struct LeaseCommand {
    pub(crate) verb: Verb,
    /// Whether programs read the answer.
    pub(crate) json: bool,
    pub(crate) options: Options,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    List,
    Show(LeaseKey),
    Release(LeaseKey),
    /// For the node with these public addresses.
    Reserve(LeaseKey, Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// Reads what follows the word `lease`. Flags may stand before and after the subnet.
pub(super) fn parse(
    arguments: impl Iterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Command, UsageError> {
    let mut arguments: Vec<_> = arguments.collect();
    let before = arguments.len();
    arguments.retain(|argument| argument != "--json" && argument != "-json");
    let json = arguments.len() < before;
    let mut arguments = arguments.into_iter().peekable();
    let is_word = |argument: &String| !argument.starts_with('-');
    let Some(verb) = arguments.next_if(is_word) else {
        return match arguments.next().as_deref() {
            Some("-h" | "--help" | "-help") => Ok(Command::Help),
            _ => Err(UsageError::Lease("what about it?".to_owned())),
        };
    };
    let subnet = arguments.next_if(is_word);
    let Some(mut typed) = Typed::from_arguments(arguments)? else { return Ok(Command::Help) };
    typed.add_environment(environment);
    let options = typed.options()?;
    let verb = self::verb(&verb, subnet.as_deref(), &options)?;
    Ok(Command::Lease(Box::new(LeaseCommand { verb, json, options })))
}

fn verb(verb: &str, subnet: Option<&str>, options: &Options) -> Result<Verb, UsageError> {
    let key = || {
        let text = subnet.ok_or_else(|| UsageError::Lease(format!("{verb} needs a subnet")))?;
        LeaseKey::parse_plain(text)
            .ok_or_else(|| UsageError::Lease(format!("{text} is no subnet: want 10.5.52.0/24")))
    };
    match verb {
        "list" => Ok(Verb::List),
        "show" => key().map(Verb::Show),
        "release" => key().map(Verb::Release),
        "reserve" => {
            let key = key()?;
            let (ipv4, ipv6) = (options.interface.public_ip, options.interface.public_ipv6);
            if ipv4.is_none() && ipv6.is_none() {
                let nobody = "reserve needs --public-ip, or --public-ipv6 where there is no IPv4";
                return Err(UsageError::Lease(nobody.to_owned()));
            }
            if !key.is_network() {
                return Err(UsageError::Lease(format!("{} has host bits", key.to_plain())));
            }
            Ok(Verb::Reserve(key, ipv4, ipv6))
        }
        other => Err(UsageError::Lease(format!("{other} is not known"))),
    }
}
