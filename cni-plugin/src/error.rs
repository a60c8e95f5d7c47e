//! Errors as the runtime sees them. The only place that knows the codes of the specification.

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::args::ArgsError;
use crate::bandwidth::BandwidthError;
use crate::bridge::BridgeError;
use crate::command::bandwidth::PeerError;
use crate::command::check::Difference;
use crate::command::tuning::KeptError;
use crate::delegate::DelegateError;
use crate::external::ExternalError;
use crate::filter::FilterError;
use crate::firewall::FirewallError;
use crate::firewalld::FirewalldError;
use crate::invocation::InvocationError;
use crate::ipam::config::HostLocalError;
use crate::ipam::fixed::FixedError;
use crate::ipam::range::RangeSet;
use crate::ipam::source::SourceError;
use crate::ipam::store::StoreError;
use crate::ipam::{IpamError, NoAddress};
use crate::iptables::IptablesError;
use crate::kernel::KernelError;
use crate::macvlan::MacvlanError;
use crate::netconf::NetConfError;
use crate::portmap::PortMapError;
use crate::ptp::PtpError;
use crate::result::ResultError;
use crate::sandbox::SandboxError;
use crate::sharing::Conflict;
use crate::state::StateError;
use crate::tuning::TuningError;
use crate::version::{Version, VersionError};

/// Whatever a command can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be understood.
    #[error(transparent)]
    Invocation(#[from] InvocationError),
    /// The agent has not written the subnet file, or not one that makes sense.
    #[error(
        "failed to load flannel 'subnet.env' file: {}. Check the flannel pod log for this node.",
        chain(.0)
    )]
    SubnetFile(fabric::subnet_file::ReadError),
    /// The same, where nobody asked for an attachment yet.
    #[error(
        "no pod can be attached: {}. Check the flannel pod log for this node.",
        chain(.0)
    )]
    NotAvailable(fabric::subnet_file::ReadError),
    /// There is no address for another pod.
    #[error("no pod can be attached: no IP addresses available in range set: {0}")]
    NoAddresses(RangeSet),
    /// There cannot be a bridge.
    #[error("no pod can be attached: {0}")]
    NoBridge(Conflict),
    /// The configuration of the network does not decode.
    #[error(transparent)]
    NetConf(#[from] NetConfError),
    /// `CNI_ARGS` cannot be followed.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// Addresses cannot be handed out as configured.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Ports cannot be led as configured.
    #[error(transparent)]
    Ports(#[from] PortMapError),
    /// There cannot be such limits.
    #[error(transparent)]
    Bandwidth(#[from] BandwidthError),
    /// The node cannot let traffic pass as configured.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// firewalld does not let traffic pass.
    #[error(transparent)]
    Firewalld(#[from] FirewalldError),
    /// The sandbox cannot be changed as configured.
    #[error(transparent)]
    Tuning(#[from] TuningError),
    /// There cannot be such a pair.
    #[error(transparent)]
    Ptp(#[from] PtpError),
    /// There cannot be such an interface.
    #[error(transparent)]
    Macvlan(#[from] MacvlanError),
    /// What the sandbox was before cannot be kept.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// There is no plugin before it in the list.
    #[error("missing prevResult from earlier plugin")]
    NoResult,
    /// It is not known which link of the host is the pod's.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// There is no plugin before it in the list.
    #[error("must be called as chained plugin")]
    NotChained,
    /// The loopback interface of the sandbox is used for something else.
    #[error("loopback interface found with non-loopback address {:?}", .0.to_string())]
    NotLoopback(IpNetwork),
    /// The templates for the delegate are of no use.
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    /// The delegate's configuration cannot be served.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// There is no address.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// Somebody else's plugin did not do what it was to do.
    #[error(transparent)]
    External(#[from] ExternalError),
    /// Somebody else's plugin gave no addresses and said that all is well.
    #[error("IPAM plugin returned missing IP config")]
    NothingGiven,
    /// The sandbox is of no use.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The delegate's configuration cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel is not in the desired state.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The packet filter is not in the desired state.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The result cannot be written, or a previous one cannot be read.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// The list of attachments that are to stay does not decode.
    #[error("failed to load valid attachments")]
    ValidAttachments(#[source] fabric::json::Error),
    /// Some of what was to be removed is still there.
    #[error("{}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Remains(Vec<Error>),
    /// A CHECK found that something is not as it was made.
    #[error(transparent)]
    Difference(#[from] Difference),
}

impl From<Conflict> for Error {
    fn from(error: Conflict) -> Self {
        Self::Kernel(error.into())
    }
}

impl From<fabric::netlink::NetlinkError> for Error {
    fn from(error: fabric::netlink::NetlinkError) -> Self {
        Self::Kernel(error.into())
    }
}

impl From<IptablesError> for Error {
    fn from(error: IptablesError) -> Self {
        Self::Filter(error.into())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Ipam(error.into())
    }
}

/// An error as a document (CNI specification, section 5, "Error").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The version of the specification that the document follows.
    pub cni_version: &'static str,
    /// What kind of error it is.
    pub code: u32,
    /// What was attempted, on what, and why it failed.
    pub msg: String,
    /// What else there is to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    /// The document for a defect of the plugin.
    pub fn internal(text: &str) -> Self {
        let cni_version = Version::NEWEST.as_str();
        Self { cni_version, code: INTERNAL, msg: text.to_owned(), details: String::new() }
    }
}

impl Error {
    /// Returns the document for the runtime.
    pub fn failure(&self, version: Version) -> Failure {
        Failure {
            cni_version: version.as_str(),
            code: self.code(),
            msg: chain(self),
            details: self.details(),
        }
    }

    fn code(&self) -> u32 {
        match self {
            Self::Invocation(error) => invocation_code(error),
            Self::SubnetFile(_) => TRY_AGAIN_LATER,
            Self::NotAvailable(_) | Self::NoAddresses(_) | Self::NoBridge(_) => {
                PLUGIN_NOT_AVAILABLE
            }
            Self::NetConf(_) => UNDECODABLE,
            Self::Source(error) | Self::Bridge(BridgeError::Ipam(error)) => source_code(error),
            Self::ValidAttachments(_) => UNDECODABLE,
            Self::Remains(errors) => errors.first().map_or(INTERNAL, Self::code),
            Self::Ports(error) | Self::Bridge(BridgeError::Ports(error)) => ports_code(error),
            Self::Bandwidth(error) | Self::Bridge(BridgeError::Bandwidth(error)) => match error {
                BandwidthError::Json(_) => UNDECODABLE,
                _ => INVALID_CONFIGURATION,
            },
            Self::Firewall(FirewallError::Json(_)) | Self::Tuning(TuningError::Json(_)) => {
                UNDECODABLE
            }
            Self::Firewalld(_) => KERNEL_REFUSED,
            Self::Tuning(TuningError::Args(_)) => INVALID_ENVIRONMENT,
            Self::Firewall(_) | Self::Tuning(_) => INVALID_CONFIGURATION,
            Self::Ptp(PtpError::Json(_)) | Self::Macvlan(MacvlanError::Json(_)) => UNDECODABLE,
            Self::Ptp(PtpError::Ipam(error)) | Self::Macvlan(MacvlanError::Ipam(error)) => {
                source_code(error)
            }
            Self::Macvlan(MacvlanError::Args(_)) => INVALID_ENVIRONMENT,
            Self::Ptp(_) | Self::Macvlan(_) => INVALID_CONFIGURATION,
            Self::Kept(_) => IO,
            Self::Peer(_) | Self::NoResult => INVALID_CONFIGURATION,
            Self::NotChained => INVALID_CONFIGURATION,
            Self::Args(_) => INVALID_ENVIRONMENT,
            Self::NotLoopback(_) => IN_THE_WAY,
            Self::Delegate(_) => INVALID_CONFIGURATION,
            Self::Bridge(BridgeError::Json(_)) => UNDECODABLE,
            Self::External(error) => external_code(error),
            Self::NothingGiven => INTERNAL,
            Self::Bridge(BridgeError::Unsupported { .. }) => UNSUPPORTED_FIELD,
            Self::Bridge(BridgeError::Args(_)) => INVALID_ENVIRONMENT,
            Self::Bridge(_) => INVALID_CONFIGURATION,
            Self::Ipam(IpamError::Range { reason, .. }) => match reason {
                NoAddress::Exhausted(_) | NoAddress::Taken(..) | NoAddress::Gateway(_) => {
                    NO_FREE_ADDRESS
                }
                NoAddress::Duplicate { .. } => IN_THE_WAY,
                NoAddress::Store(_) => IO,
            },
            Self::Ipam(IpamError::Requested(_)) => NO_FREE_ADDRESS,
            Self::Ipam(IpamError::Store(_) | IpamError::ResolvConf { .. }) | Self::State(_) => IO,
            Self::Sandbox(_) => INVALID_NETNS,
            Self::Kernel(KernelError::Conflict(_)) => IN_THE_WAY,
            Self::Kernel(_) | Self::Filter(_) => KERNEL_REFUSED,
            Self::Result(ResultError::NoAddresses) => INTERNAL,
            Self::Result(_) => UNDECODABLE,
            Self::Difference(Difference::NoPrevResult) => INVALID_CONFIGURATION,
            Self::Difference(_) => NOT_AS_MADE,
        }
    }

    fn details(&self) -> String {
        match self {
            Self::Invocation(InvocationError::ContainerId(id)) => id.clone(),
            Self::Invocation(InvocationError::Name(name)) => name.clone(),
            Self::Invocation(InvocationError::IfName(
                fabric::link_name::InvalidLinkName::TooLong(_),
            )) => "interface name should be less than 16 characters".to_owned(),
            Self::Invocation(InvocationError::Version(VersionError::Incompatible {
                config,
                oldest,
            })) => {
                let ours: Vec<_> =
                    Version::since(*oldest).map(|v| format!("{:?}", v.as_str())).collect();
                format!("config is {config:?}, plugin supports [{}]", ours.join(" "))
            }
            Self::Difference(Difference::State(plan)) => plan.clone(),
            Self::External(ExternalError::Reported { details, .. }) => details.clone(),
            _ => String::new(),
        }
    }
}

// From the specification, section 5.
const INCOMPATIBLE_VERSION: u32 = 1;
const UNSUPPORTED_FIELD: u32 = 2;
const INVALID_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const UNDECODABLE: u32 = 6;
const INVALID_CONFIGURATION: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;
const PLUGIN_NOT_AVAILABLE: u32 = 50;
// From the Go library.
const INVALID_NETNS: u32 = 8;
const INTERNAL: u32 = 999;
// Ours.
const NO_FREE_ADDRESS: u32 = 100;
const KERNEL_REFUSED: u32 = 101;
const NOT_AS_MADE: u32 = 102;
const IN_THE_WAY: u32 = 103;

fn invocation_code(error: &InvocationError) -> u32 {
    match error {
        InvocationError::Missing(_)
        | InvocationError::ContainerId(_)
        | InvocationError::IfName(_)
        | InvocationError::UnknownCommand(_) => INVALID_ENVIRONMENT,
        InvocationError::Stdin(_) => IO,
        InvocationError::Json(_)
        | InvocationError::VersionJson(_)
        | InvocationError::Version(VersionError::Malformed { .. }) => UNDECODABLE,
        InvocationError::NoName | InvocationError::Name(_) => INVALID_CONFIGURATION,
        InvocationError::Version(_) => INCOMPATIBLE_VERSION,
    }
}

fn source_code(error: &SourceError) -> u32 {
    match error {
        SourceError::Unsupported(_) | SourceError::Scope { .. } => UNSUPPORTED_FIELD,
        SourceError::HostLocal(HostLocalError::Json(_))
        | SourceError::Static(FixedError::Json(_)) => UNDECODABLE,
        SourceError::HostLocal(_) | SourceError::Static(_) => INVALID_CONFIGURATION,
    }
}

fn ports_code(error: &PortMapError) -> u32 {
    match error {
        PortMapError::Json(_) => UNDECODABLE,
        PortMapError::Unsupported { .. } => UNSUPPORTED_FIELD,
        _ => INVALID_CONFIGURATION,
    }
}

/// What a plugin says itself is passed on as it is.
fn external_code(error: &ExternalError) -> u32 {
    match error {
        ExternalError::Reported { code, .. } => *code,
        ExternalError::NoName | ExternalError::Name(_) => INVALID_CONFIGURATION,
        ExternalError::NoPaths => INVALID_ENVIRONMENT,
        ExternalError::NotFound { .. } | ExternalError::Run { .. } => IO,
        ExternalError::Unreported { .. } => INTERNAL,
        ExternalError::Result { .. } => UNDECODABLE,
    }
}

/// Joins the text of an error and of those that caused it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
