// SPDX-License-Identifier: Apache-2.0
//! Who is there: SWIM (Das, Gupta, Motivala 2002) as memberlist has it, and what is wanted of it beside.
//!
//! ```text
//!  Gossip::start ── card ─► every node                 change_card tells a new one
//!                  events ◄ Seen, Gone, Namesake       in order, per node
//!  Gossip::tend  ── joins whom nobody has seen alive: to be called every 2 s, or a partition never heals
//!  Gossip::leave ── a card that says goodbye, then memberlist's own
//! ```
//!
//! memberlist tells a death and a goodbye alike, so the goodbye is on the card. It gossips to the dead for 30 s only and
//! never joins again by itself.

mod sealed;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use compact_str::CompactString;
use corqtt_quic::{Identity, InvalidIdentity};
use futures_util::future::join_all;
use memberlist::Memberlist;
use memberlist::Options;
use memberlist::delegate::{
    AliveDelegate, CompositeDelegate, ConflictDelegate, EventDelegate, NodeDelegate, VoidDelegate,
};
use memberlist::net::{NetTransportOptions, TokioNetTransport};
use memberlist::proto::{
    EncryptionAlgorithm, Label, MaybeResolvedAddress, Meta, NodeState, SecretKey,
};
use memberlist::tokio::TokioSocketAddrResolver;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio::sync::mpsc;

use crate::entry::{Boot, NodeId};
use crate::threads::lock;
use sealed::{Sealed, Terms};

pub use sealed::OnStranger;

/// Nodes of another protocol are strangers.
const LABEL: &str = "corqtt gossip 1";
const ALPN: &[u8] = b"corqtt-gossip/1";
/// A node that is back at another address is believed so long after its death.
const RECLAIM: Duration = Duration::from_secs(1);
/// How long a goodbye, or news of this node, may take to be on its way.
const TELL_MAX: Duration = Duration::from_secs(2);
/// Events that nobody has taken yet; gossip waits beyond.
const EVENTS_MAX: usize = 256;
/// The version of a card.
const VERSION: u8 = 1;

/// What a node tells all others of itself; at most 512 bytes in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its cluster, once it knows it.
    pub cluster: Option<NonZeroU64>,
    /// Its raft id.
    pub node: NodeId,
    /// Which start of it.
    pub boot: Boot,
    /// Where its links are.
    pub links: SocketAddr,
    /// It is about to go, on purpose.
    pub leaves: bool,
}

impl Card {
    fn encode(&self) -> Meta {
        let bytes = postcard::to_extend(self, vec![VERSION]).expect("a card is a plain value");
        Meta::try_from(bytes).expect("a card is small")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        }
    }
}

/// What gossip brings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A node is there, or tells something new of itself.
    Seen {
        /// Its name.
        name: CompactString,
        /// Where it gossips.
        address: SocketAddr,
        /// What it tells.
        card: Card,
    },
    /// A node is gone; whether on purpose, its card tells.
    Gone {
        /// Its name.
        name: CompactString,
        /// What it told last.
        card: Card,
    },
    /// Two nodes have one name, or one is back at another address within a second of its death.
    Namesake {
        /// The name.
        name: CompactString,
        /// Where one was seen first.
        known: SocketAddr,
        /// Where the other one is.
        other: SocketAddr,
    },
    /// A node was not let in.
    Refused {
        /// Its name.
        name: CompactString,
        /// Where it is.
        address: SocketAddr,
        /// Why.
        cause: &'static str,
    },
}

/// What gossip needs to begin.
pub struct Settings {
    /// This node's name.
    pub name: CompactString,
    /// Listens here, TCP and UDP.
    pub bind: SocketAddr,
    /// What others are told; `None`: where it listens.
    pub advertise: Option<SocketAddr>,
    /// This node.
    pub card: Card,
    /// Proves to others that this node is one of them.
    pub identity: Identity,
    /// What packets are sealed with: the first of them, the others are accepted too.
    pub secrets: Vec<String>,
    /// Hears of callers that are not let in.
    pub on_stranger: OnStranger,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // not the secrets
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("bind", &self.bind)
            .field("advertise", &self.advertise)
            .field("card", &self.card)
            .finish_non_exhaustive()
    }
}

/// Gossip cannot begin.
#[derive(Debug)]
#[non_exhaustive]
pub enum GossipError {
    /// The secret cannot be used.
    Secret(InvalidIdentity),
    /// The address cannot be used; why.
    Address(SocketAddr, String),
}

impl fmt::Display for GossipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(error) => error.fmt(f),
            Self::Address(address, cause) => {
                write!(f, "gossip cannot listen on {address}: {cause}")
            }
        }
    }
}

impl std::error::Error for GossipError {}

/// A node that was to be joined, and why it was not.
pub type NotJoined = (String, String);

type Transport = TokioNetTransport<SmolStr, TokioSocketAddrResolver, Sealed>;
type Void = VoidDelegate<SmolStr, SocketAddr>;
type Delegate = CompositeDelegate<SmolStr, SocketAddr, Watch, Watch, Watch, Void, Watch, Void>;

/// This node's gossip.
pub struct Gossip {
    list: Memberlist<Transport, Delegate>,
    card: Arc<Mutex<Card>>,
    address: SocketAddr,
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Gossip {
    /// Begins, inside a tokio runtime with IO and time; what it brings comes to the receiver.
    ///
    /// # Errors
    /// When a secret is too short, or the address cannot be used.
    pub async fn start(settings: Settings) -> Result<(Self, mpsc::Receiver<Event>), GossipError> {
        let Settings {
            name,
            bind,
            advertise,
            card,
            identity,
            secrets,
            on_stranger,
        } = settings;
        let keys = corqtt_quic::keys_of_secrets(&secrets, LABEL).map_err(GossipError::Secret)?;
        let (server, client, tls_name) = identity.over_tcp(ALPN);
        let terms = Terms {
            server,
            client,
            name: tls_name,
            on_stranger,
        };
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let card = Arc::new(Mutex::new(card));
        let watch = Watch {
            own: SmolStr::new(&name),
            card: card.clone(),
            events: sender,
        };
        let delegate = CompositeDelegate::new()
            .with_alive_delegate(watch.clone())
            .with_conflict_delegate(watch.clone())
            .with_event_delegate(watch.clone())
            .with_node_delegate(watch);
        let mut transport =
            NetTransportOptions::with_stream_layer_options(SmolStr::new(&name), terms);
        transport.add_bind_address(bind);
        let transport = transport.maybe_advertise_address(advertise);
        let mut keys = keys.into_iter().map(SecretKey::Aes256);
        let label = Label::try_from(LABEL).expect("it is short");
        // without both it takes, or sends, what is not encrypted at all
        let options = Options::lan()
            .with_label(label)
            .with_dead_node_reclaim_time(RECLAIM)
            .maybe_encryption_algo(Some(EncryptionAlgorithm::NoPadding))
            .with_gossip_verify_incoming(true)
            .with_gossip_verify_outgoing(true)
            .maybe_primary_key(keys.next())
            .with_secret_keys(keys.collect());
        let list = Memberlist::with_delegate(delegate, transport, options)
            .await
            .map_err(|error| GossipError::Address(bind, error.to_string()))?;
        let address = *list.advertise_address();
        Ok((
            Self {
                list,
                card,
                address,
            },
            events,
        ))
    }

    /// Where others are told that it is.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells all others something new of this node; that it takes long is no error, gossip goes on with it.
    pub async fn change_card(&self, change: impl FnOnce(&mut Card)) {
        change(&mut lock(&self.card));
        let _ = self.list.update_node(TELL_MAX).await;
    }

    /// Where nodes are that are alive, as far as this one knows; without itself.
    pub async fn alive(&self) -> BTreeSet<SocketAddr> {
        let all = self.list.online_members().await;
        let others = all.iter().map(|node| *node.address());
        others.filter(|address| *address != self.address).collect()
    }

    /// Joins those `HOST:PORT` of `wanted` that are not seen alive, looking their names up anew; whom it did not reach,
    /// and why. To be called every 2 s with the seeds and with where raft's members were seen last.
    pub async fn tend(&self, wanted: impl IntoIterator<Item = String>) -> Vec<NotJoined> {
        let alive = self.alive().await;
        let joins = wanted.into_iter().map(|place| self.join(place, &alive));
        join_all(joins).await.into_iter().flatten().collect()
    }

    async fn join(&self, place: String, alive: &BTreeSet<SocketAddr>) -> Option<NotJoined> {
        let resolved = tokio::net::lookup_host(place.as_str()).await;
        let resolved = resolved.map(|addresses| addresses.collect::<Vec<_>>());
        let addresses = match resolved {
            Ok(addresses) => addresses,
            Err(error) => return Some((place, format!("the name cannot be resolved: {error}"))),
        };
        let is_known = |address: &SocketAddr| *address == self.address || alive.contains(address);
        if addresses.iter().any(is_known) {
            return None;
        }
        let mut cause = "the name has no address".to_owned();
        for address in addresses {
            match self
                .list
                .join(MaybeResolvedAddress::resolved(address))
                .await
            {
                Ok(_) => return None,
                Err(error) => cause = error.to_string(),
            }
        }
        Some((place, cause))
    }

    /// Says goodbye, and ends; nobody hears of it again.
    pub async fn leave(self) {
        self.change_card(|card| card.leaves = true).await;
        // others find out by themselves if it takes too long
        let _ = self.list.leave(TELL_MAX).await;
        self.end().await;
    }

    /// Ends without a word, as a crash does.
    pub async fn end(self) {
        let _ = self.list.shutdown().await;
    }
}

/// What memberlist is given to ask and to tell.
#[derive(Clone, Debug)]
struct Watch {
    own: SmolStr,
    card: Arc<Mutex<Card>>,
    events: mpsc::Sender<Event>,
}

type Node = Arc<NodeState<SmolStr, SocketAddr>>;

impl Watch {
    fn card(&self) -> Card {
        *lock(&self.card)
    }

    async fn tell(&self, event: Event) {
        // nobody listens when the node goes
        let _ = self.events.send(event).await;
    }

    /// Of another node, and only with a card that can be read: others were refused.
    async fn tell_of(&self, node: &Node, event: impl FnOnce(CompactString, Card) -> Event) {
        if let Some(card) = Card::decode(node.meta())
            && *node.id() != self.own
        {
            self.tell(event(node.id().as_str().into(), card)).await;
        }
    }

    async fn tell_seen(&self, node: &Node) {
        let address = *node.address();
        self.tell_of(node, |name, card| Event::Seen {
            name,
            address,
            card,
        })
        .await;
    }

    /// Why a node is none of this cluster.
    fn refusal(&self, node: &Node) -> Option<&'static str> {
        let own = self.card();
        match Card::decode(node.meta()) {
            None => Some("it tells of itself what this version cannot read"),
            Some(card) => match (own.cluster, card.cluster) {
                (Some(own), Some(other)) if own != other => Some("it is of another cluster"),
                _ => None,
            },
        }
    }
}

/// A node that is none of this cluster.
#[derive(Debug)]
struct Stranger(&'static str);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Stranger {}

impl AliveDelegate for Watch {
    type Error = Stranger;
    type Id = SmolStr;
    type Address = SocketAddr;

    async fn notify_alive(&self, node: Node) -> Result<(), Stranger> {
        if *node.id() == self.own {
            return Ok(());
        }
        match self.refusal(&node) {
            None => Ok(()),
            Some(cause) => {
                self.tell(Event::Refused {
                    name: node.id().as_str().into(),
                    address: *node.address(),
                    cause,
                })
                .await;
                Err(Stranger(cause))
            }
        }
    }
}

impl ConflictDelegate for Watch {
    type Id = SmolStr;
    type Address = SocketAddr;

    async fn notify_conflict(&self, existing: Node, other: Node) {
        self.tell(Event::Namesake {
            name: existing.id().as_str().into(),
            known: *existing.address(),
            other: *other.address(),
        })
        .await;
    }
}

impl EventDelegate for Watch {
    type Id = SmolStr;
    type Address = SocketAddr;

    async fn notify_join(&self, node: Node) {
        self.tell_seen(&node).await;
    }

    async fn notify_leave(&self, node: Node) {
        self.tell_of(&node, |name, card| Event::Gone { name, card })
            .await;
    }

    async fn notify_update(&self, node: Node) {
        self.tell_seen(&node).await;
    }
}

impl NodeDelegate for Watch {
    async fn node_meta(&self, _limit: usize) -> Meta {
        self.card().encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_comes_out_as_it_went_in_and_another_version_does_not() {
        let card = Card {
            cluster: NonZeroU64::new(u64::MAX),
            node: NodeId(NonZeroU64::MAX),
            boot: Boot(u64::MAX),
            links: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
                .parse()
                .expect("an address"),
            leaves: true,
        };
        let mut bytes = card.encode().to_vec();
        assert_eq!(Card::decode(&bytes), Some(card));
        bytes[0] += 1;
        assert_eq!(Card::decode(&bytes), None);
        assert_eq!(Card::decode(&[]), None);
    }
}
