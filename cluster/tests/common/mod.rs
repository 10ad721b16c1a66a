// SPDX-License-Identifier: Apache-2.0
//! What the tests of this folder need. Each of them is a program of its own and uses a part of it.
#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod scaffold;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Mutex;

use corqtt_cluster::{Bootstrap, CoreSettings, Timeouts};

pub(crate) use scaffold::{Directory, run};

/// Of all nodes of a test.
pub(crate) const SECRET: &str = "a secret that all of them know";

/// A port that was free for TCP and UDP a moment ago, and that no other node of these tests comes back to.
pub(crate) fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    loop {
        let listener = std::net::TcpListener::bind(any).expect("a port");
        let address = listener.local_addr().expect("it has one");
        if UdpSocket::bind(address).is_ok() && GIVEN.lock().expect("no panic").insert(address) {
            return address;
        }
    }
}

/// Of a node on free ports, with the gossip addresses of its seeds.
pub(crate) fn core_settings(
    name: &str,
    directory: &Path,
    seeds: impl IntoIterator<Item = SocketAddr>,
    bootstrap: Bootstrap,
    timeouts: Timeouts,
) -> CoreSettings {
    CoreSettings {
        name: name.into(),
        directory: directory.to_owned(),
        gossip: free_address(),
        gossip_advertise: None,
        links: free_address(),
        links_advertise: None,
        seeds: seeds.into_iter().map(|seed| seed.to_string()).collect(),
        bootstrap,
        secrets: vec![SECRET.to_owned()],
        timeouts,
    }
}
