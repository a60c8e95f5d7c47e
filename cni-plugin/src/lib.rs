//! The flannel CNI plugin: attaches pods to the subnet that the agent leased for this node.
//!
//! One process does what the Go plugins `flannel`, `bridge` and `host-local` do in three: it reads
//! the subnet file, takes an address, makes a veth pair between the node's bridge and the sandbox,
//! and tells the runtime. It starts no other programs. Under their names it is those plugins too.
//!
//! [`process`] is the way through: an [`invocation`] becomes a request, a [`command`] serves it, an
//! [`error`] or a [`result`] goes back.

pub mod args;
pub mod command;
pub mod hand_over;
pub mod install;
pub mod invocation;
pub mod netconf;
pub mod plugin;
pub mod process;
pub mod uninstall;
pub mod version;

pub mod attachment;
pub mod bandwidth;
pub mod bridge;
pub mod delegate;
pub mod external;
pub mod ipam;
pub mod macvlan;
pub mod masquerade;
pub mod portmap;
pub mod ptp;
pub mod sharing;
pub mod spoofing;
pub mod tuning;

pub mod dbus;
pub mod filter;
pub mod firewall;
pub mod firewalld;
pub mod iptables;
pub mod kernel;
pub mod sandbox;
pub mod state;

pub mod arena;
pub mod error;
pub mod foreign_bytes;
pub mod output;
pub mod result;
