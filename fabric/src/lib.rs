//! What the agent and the CNI plugin share: the kernel's network state as data.
//!
//! Both programs compute a state that shall be, [`netlink::observe`] reads the one that is,
//! [`plan::diff`] says what differs, and [`netlink::apply`] makes it so. This crate has no policy:
//! it does not know what a lease or a pod is. It does nothing asynchronously, logs nothing and keeps
//! no state between calls.

pub mod link_name;
pub mod mac;
pub mod mtu;
pub mod vni;

pub mod netlink;
pub mod netns;
pub mod netstate;
pub mod offload;
pub mod packet_filter;
pub mod plan;
pub mod sysctl;
pub mod tun;

pub mod json;
pub mod subnet_file;
