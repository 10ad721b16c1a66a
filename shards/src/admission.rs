// SPDX-License-Identifier: Apache-2.0
//! What all shards share about limits of the whole node: who may come in, and what each shard holds.
//!
//! A connection is admitted when it is accepted ([`Admission::admit`]), and leaves when its slot is freed
//! ([`Admission::leave`]); on its way to another shard it stays counted. Where a PROXY header tells the client's address,
//! that one is counted when the header came ([`Admission::admit_address`]). All of this is per connection, never per
//! message, so shared counters and a striped lock are cheap enough.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::config::Config;
use crate::limits::{Limited, Lines};
use crate::rate::Rate;
use crate::shares::Shares;

/// Locks of the table of addresses.
const STRIPES: usize = 16;

/// Shared by all shards of a node.
#[derive(Debug)]
pub struct Admission {
    connections: Places,
    /// By number of the listener. Listeners of one name, several addresses of one setting, share theirs.
    listeners: Vec<Arc<Places>>,
    addresses: Option<Addresses>,
    connects: Option<Rate>,
    /// Of `connects`.
    connect_due_ns: AtomicU64,
    pub(crate) lines: Lines,
    pub(crate) shares: Shares,
}

/// Places, some of them taken; `taken <= maximum`.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    maximum: usize,
}

impl Places {
    /// A maximum of 0 is none.
    const fn new(maximum: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            maximum: if maximum == 0 { usize::MAX } else { maximum },
        }
    }

    fn take(&self) -> bool {
        let one_more = |taken| (taken < self.maximum).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }

    fn give_back(&self) {
        let before = self.taken.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "nobody leaves who was not admitted");
    }
}

/// Connections per address.
#[derive(Debug)]
struct Addresses {
    stripes: [Mutex<Counts>; STRIPES],
    hasher: foldhash::fast::RandomState,
    maximum: u32,
}

type Counts = HashMap<IpAddr, u32, foldhash::fast::RandomState>;

impl Addresses {
    fn with<T>(
        &self,
        address: IpAddr,
        change: impl FnOnce(Entry<'_, IpAddr, u32, foldhash::fast::RandomState>) -> T,
    ) -> T {
        let whose = whose(address);
        let stripe = self.hasher.hash_one(whose) as usize % STRIPES;
        let mut counts = self.stripes[stripe]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(counts.entry(whose))
    }

    fn take(&self, address: IpAddr) -> bool {
        self.with(address, |entry| match entry {
            Entry::Vacant(none) => {
                none.insert(1);
                true
            }
            Entry::Occupied(mut taken) if *taken.get() < self.maximum => {
                *taken.get_mut() += 1;
                true
            }
            Entry::Occupied(_) => false,
        })
    }

    fn give_back(&self, address: IpAddr) {
        self.with(address, |entry| {
            if let Entry::Occupied(mut taken) = entry {
                *taken.get_mut() -= 1;
                if *taken.get() == 0 {
                    taken.remove();
                }
            }
        });
    }
}

/// Who is counted for an address: IPv4 also where it is written as IPv6, and the whole /64 of an IPv6 address, which
/// usually is one customer's.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

impl Admission {
    /// Nobody is there.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        let mut listeners: Vec<Arc<Places>> = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let same = config.listeners[..index]
                .iter()
                .position(|other| other.id == listener.id);
            let places = same.map_or_else(
                || Arc::new(Places::new(listener.connections_max)),
                |same| listeners[same].clone(),
            );
            listeners.push(places);
        }
        let addresses = (limits.connections_per_ip_max > 0).then(|| Addresses {
            stripes: std::array::from_fn(|_| Mutex::default()),
            hasher: foldhash::fast::RandomState::default(),
            maximum: limits.connections_per_ip_max,
        });
        Self {
            connections: Places::new(limits.connections_max),
            listeners,
            addresses,
            connects: Rate::per_second(limits.connects_per_sec),
            connect_due_ns: AtomicU64::new(0),
            lines: Lines::default(),
            shares: Shares::new(config.shards),
        }
    }

    /// Connections of all shards.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.taken.load(Ordering::Relaxed)
    }

    /// A connection was accepted. `address` is `None` where there is none, or where it is still to be told.
    ///
    /// # Errors
    /// The limit that it would exceed: nothing was counted.
    pub fn admit(&self, listener: u16, address: Option<IpAddr>) -> Result<(), Limited> {
        let listener = &self.listeners[usize::from(listener)];
        if !listener.take() {
            return Err(Limited::ListenerConnections);
        }
        if !self.connections.take() {
            listener.give_back();
            return Err(Limited::Connections);
        }
        let admitted = address.map_or(Ok(()), |address| self.admit_address(address));
        if admitted.is_err() {
            listener.give_back();
            self.connections.give_back();
        }
        admitted
    }

    /// The address of a connection that was admitted without one.
    ///
    /// # Errors
    /// The limit that it would exceed: the address was not counted.
    pub fn admit_address(&self, address: IpAddr) -> Result<(), Limited> {
        match &self.addresses {
            Some(addresses) if !addresses.take(address) => Err(Limited::ConnectionsPerIp),
            _ => Ok(()),
        }
    }

    /// A connection is over. `address`: if it was admitted.
    pub fn leave(&self, listener: u16, address: Option<IpAddr>) {
        self.listeners[usize::from(listener)].give_back();
        self.connections.give_back();
        if let (Some(addresses), Some(address)) = (&self.addresses, address) {
            addresses.give_back(address);
        }
    }

    /// One more CONNECT.
    ///
    /// # Errors
    /// There are too many in this second.
    pub(crate) fn connect(&self, now_ms: u64) -> Result<(), Limited> {
        let Some(rate) = self.connects else {
            return Ok(());
        };
        let one_more = |due_ns| rate.take(due_ns, now_ms * 1_000_000).ok();
        self.connect_due_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map_or(Err(Limited::ConnectRate), |_| Ok(()))
    }
}

#[cfg(test)]
mod tests;
