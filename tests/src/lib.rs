//! What end-to-end tests, the lab and the benchmarks are built from.
//!
//! A [`sandbox`] is a private copy of everything the programs touch: its user, network, mount and
//! process namespaces belong to one test, need no root, and vanish with it.
//! In it, a [`cluster`] is a set of [`node`]s on one [`underlay`] with a store for their leases,
//! running the real programs; [`pod`]s are attached the way a container runtime does it, and
//! [`traffic`] tells whether they reach each other.
//! Benchmarks run in the same sandbox and report by [`statistics`].
//!
//! Fixtures report trouble by panicking with a text that says what was expected and what was
//! there: in a test that is the failure, in the lab it is the last line.

pub mod certificates;
pub mod daemon;
pub mod namespace;
pub mod program;
pub mod sandbox;
pub mod wait;
pub mod yaml;

pub mod bad_link;
pub mod cluster;
pub mod crowd;
pub mod device;
pub mod etcd;
pub mod etcd_cluster;
pub mod fault;
pub mod http_proxy;
pub mod impairment;
pub mod kube_api;
pub mod lease_lab;
pub mod net_conf;
pub mod node;
pub mod partition;
pub mod underlay;

pub mod containerd;
pub mod cri;
pub mod plain_tunnel;
pub mod pod;
pub mod podman;
pub mod rule_engine;
pub mod runtime;
pub mod traffic;

pub mod snapshot;
pub mod statistics;
pub mod usage;
