// SPDX-License-Identifier: Apache-2.0
//! What the tests of this folder need. Each of them is a program of its own and uses a part of it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory of its own, gone with the value.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("corqtt-cluster-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

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

/// Runs a test on a thread with IO and time.
pub(crate) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}
