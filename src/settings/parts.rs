// SPDX-License-Identifier: Apache-2.0
//! Which parts of the broker this build has.
//!
//! A part that is built flips its entry in [`BUILT`]; everything else (start errors, `--check`, the documentation
//! of each key) follows from that.

/// A part of the broker that settings can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Tls,
    WebSocket,
    Http,
    Unix,
    Quic,
    ProxyProtocol,
    Redb,
    Fjall,
    Redis,
    Cluster,
    AccessControl,
    Bridge,
    Dashboard,
}

impl Part {
    #[cfg(test)]
    pub(super) const ALL: [Self; 13] = [
        Self::Tls,
        Self::WebSocket,
        Self::Http,
        Self::Unix,
        Self::Quic,
        Self::ProxyProtocol,
        Self::Redb,
        Self::Fjall,
        Self::Redis,
        Self::Cluster,
        Self::AccessControl,
        Self::Bridge,
        Self::Dashboard,
    ];

    /// Its name in a sentence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::WebSocket => "WebSocket",
            Self::Http => "the HTTP interface",
            Self::Unix => "Unix sockets",
            Self::Quic => "MQTT over QUIC",
            Self::ProxyProtocol => "the PROXY protocol",
            Self::Redb => "the redb store",
            Self::Fjall => "the fjall store",
            Self::Redis => "the redis store",
            Self::Cluster => "cluster mode",
            Self::AccessControl => "access control",
            Self::Bridge => "the Kafka bridge",
            Self::Dashboard => "the dashboard",
        }
    }

    /// What an operator can do who asked for it in a build without it.
    pub(super) fn instead(self) -> &'static str {
        match self {
            Self::Tls | Self::WebSocket | Self::Unix | Self::Quic => "leave it out and use --tcp",
            Self::Redb | Self::Fjall | Self::Redis => "use --storage-way=memory",
            Self::Cluster => "leave it out to run a single node",
            Self::AccessControl => "use --auth-way=0 and listen on loopback only",
            Self::Http | Self::ProxyProtocol | Self::Bridge | Self::Dashboard => "leave it out",
        }
    }
}

/// The parts that exist, beside the TCP listener, the memory store and everything that has no [`Part`].
const BUILT: &[Part] = &[
    Part::Tls,
    Part::WebSocket,
    Part::Http,
    Part::Unix,
    Part::ProxyProtocol,
    Part::Redb,
    Part::Fjall,
    Part::Redis,
    // in the making: for tests only
    #[cfg(feature = "doubles")]
    Part::Cluster,
];

/// A set of parts: those of this build, or others in a test.
#[derive(Clone, Copy, Debug)]
pub struct Parts(&'static [Part]);

impl Parts {
    /// What this build has.
    pub const BUILT: Self = Self(BUILT);

    #[cfg(test)]
    pub(super) const ALL: Self = Self(&Part::ALL);

    #[cfg(test)]
    pub(super) const NONE: Self = Self(&[]);

    /// Whether this part is there.
    #[must_use]
    pub fn has(self, part: Part) -> bool {
        self.0.contains(&part)
    }
}
