//! How soon a new node is reached.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, park_timeout};
use std::time::{Duration, Instant};

use flannel_tests::cluster::ETCD_PREFIX;
use flannel_tests::crowd::{self, Peer};
use flannel_tests::node::Node;
use flannel_tests::statistics::Samples;
use flannel_tests::underlay::Underlay;

use crate::agent::Agent;

/// New nodes; each has an address of its own on the underlay.
const SAMPLES: u8 = 40;
/// The first of these addresses.
const FIRST: u8 = 100;
/// Between two new nodes: whatever follows the first is done by then.
const PAUSE: Duration = Duration::from_millis(400);

/// From the commit of a new lease in etcd until the first packet to its subnet leaves a node that
/// knows so many peers.
pub(crate) fn new_peer(known: u32) {
    let underlay = Underlay::create();
    let store = crowd::in_etcd(&underlay, &Peer::several(known));
    let (node, host) = (Node::create(&underlay, 1), underlay.host("newcomers", 2));
    let addresses = (0..SAMPLES).map(|number| Ipv4Addr::new(198, 51, 100, FIRST + number));
    for address in addresses.clone() {
        host.ip(&format!("address add {address}/24 dev eth0"));
    }
    // Outer packets come here, whichever of the new nodes they are for.
    let tunnel = host.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8472)));
    let tunnel = tunnel.expect("the port is free");
    tunnel.set_read_timeout(Some(Duration::from_secs(30))).expect("it is not zero");
    let _agent = Agent::start(&node, &store, &[]);
    let (mut from_request, mut from_answer) = <(Samples, Samples)>::default();
    for (number, address) in (known..).zip(addresses) {
        let newcomer = Peer::at(number, address);
        let (key, lease) = newcomer.lease();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let sender = node.namespace().spawn(move || send_until(&stop, newcomer.base));
        let socket = tunnel.try_clone().expect("it can be cloned");
        let receiver = thread::spawn(move || socket.recv(&mut [0; 2048]).map(|_| Instant::now()));
        park_timeout(PAUSE);
        let key = format!("{ETCD_PREFIX}/subnets/{key}");
        let (asked, answered) = store.etcd().put_at_once(&key, &lease);
        let arrival = receiver.join().expect("the receiver ends");
        let arrival = arrival.expect("a packet to the new node leaves within 30 s");
        done.store(true, Ordering::Relaxed);
        sender.join().expect("the sender ends");
        drain(&tunnel);
        from_request.push(arrival.saturating_duration_since(asked));
        from_answer.push(arrival.saturating_duration_since(answered));
    }
    println!("  a new peer of {}", known + 1);
    println!("  {:<28}{from_answer}   (want 20 ms)", "from etcd's answer");
    println!("  {:<28}{from_request}", "from the request to etcd");
}

/// Sends packets to a subnet, whether there is a way to it or not.
fn send_until(done: &AtomicBool, to: Ipv4Addr) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
    while !done.load(Ordering::Relaxed) {
        // Before there is a way, this is an error.
        let _sent = socket.send_to(b"anybody there?", (to, 9));
        park_timeout(Duration::from_micros(200));
    }
}

/// Throws away what is still on its way to the last node.
fn drain(tunnel: &UdpSocket) {
    tunnel.set_nonblocking(true).expect("it can be");
    park_timeout(Duration::from_millis(20));
    while tunnel.recv(&mut [0; 2048]).is_ok() {}
    tunnel.set_nonblocking(false).expect("it can be");
}
