// SPDX-License-Identifier: Apache-2.0
//! Settings whose value is one word (or comqtt's number for it) out of a few.

/// One value of a choice: the words that select it, the name that is shown first.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) words: &'static [&'static str],
}

impl Choice {
    pub(super) fn name(&self) -> &'static str {
        self.words[0]
    }
}

macro_rules! choices {
    ($(#[$meta:meta])* $vis:vis $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $first:literal $(| $also:literal)*),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant),+
        }

        impl $name {
            pub(super) const CHOICES: &'static [Choice] = &[$(Choice { words: &[$first $(, $also)*] }),+];
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The variant at this place of `CHOICES`, which has the order of the enum.
            pub(super) fn nth(place: usize) -> Self {
                Self::ALL[place]
            }

            /// The word for it in settings and in log lines.
            #[must_use]
            $vis fn name(self) -> &'static str {
                Self::CHOICES[self as usize].name()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choices! {
    /// Where sessions, retained messages and what is kept for them are stored.
    pub StorageWay {
        Memory = "memory" | "0",
        Redb = "redb" | "1" | "bolt",
        Fjall = "fjall" | "2" | "badger",
        Redis = "redis" | "3",
    }
}

choices! {
    /// What a client is asked for at CONNECT.
    pub AuthWay {
        Anonymous = "anonymous" | "0",
        Username = "username" | "1",
        ClientId = "clientid" | "2",
    }
}

choices! {
    /// Where user names, passwords and access rules come from.
    pub AuthSource {
        Free = "free" | "0",
        Redis = "redis" | "1",
        Mysql = "mysql" | "2",
        Postgresql = "postgresql" | "3",
        Http = "http" | "4",
        File = "file" | "5",
        Jwt = "jwt" | "6",
    }
}

choices! {
    /// Where events are bridged to.
    pub BridgeWay {
        Off = "none" | "0",
        Kafka = "kafka" | "1",
    }
}

choices! {
    /// What drives a shard.
    pub Runtime {
        /// glommio, or epoll where the kernel denies io_uring.
        Auto = "auto",
        Glommio = "glommio",
        Epoll = "epoll",
    }
}

choices! {
    /// What a node in a cluster does at SIGTERM.
    pub Leave {
        /// Clients are moved on, the membership is kept.
        Drain = "drain",
        /// For good: sessions are handed over, the node leaves raft.
        Leave = "leave",
        Now = "now",
    }
}

choices! {
    /// Whether this node founds a cluster.
    pub RaftBootstrap {
        No = "false" | "0" | "no" | "off",
        Yes = "true" | "1" | "yes" | "on",
        /// Even where seeds of another cluster answer.
        Force = "force",
    }
}

choices! {
    /// What happens to a message for a session whose queue is full.
    pub QueueFull {
        DropOldest = "drop-oldest",
        DropNew = "drop-new",
        Reject = "reject",
        Disconnect = "disconnect",
    }
}

choices! {
    /// How a shared group chooses the member for a message.
    pub GroupStrategy {
        RoundRobin = "round-robin",
        Random = "random",
        /// The same member until it goes.
        Sticky = "sticky",
        /// By the publisher.
        HashClient = "hash-client",
        /// By the topic.
        HashTopic = "hash-topic",
        /// Members near the publisher first.
        LocalFirst = "local-first",
    }
}

choices! {
    /// What happens to a message for a peer whose outbox is full.
    pub OutboxFull {
        Refuse = "refuse",
        DropOldest = "drop-oldest",
    }
}

choices! {
    /// What a node that is cut off does with QoS 1 and 2 publishes.
    pub MinorityPublish {
        Hold = "hold",
        Accept = "accept",
    }
}

choices! {
    /// The form of log lines.
    pub LogFormat {
        Text = "text" | "0",
        Json = "json" | "1",
    }
}

choices! {
    /// Where log lines go.
    pub(super) LogOutput {
        Console = "console" | "0",
        File = "file" | "1",
        Both = "both" | "2",
    }
}

choices! {
    /// What a listener speaks.
    pub(super) ListenerKind {
        Tcp = "tcp",
        Tls = "tls",
        Ws = "ws",
        Wss = "wss",
        Unix = "unix",
        Quic = "quic",
    }
}

choices! {
    /// The oldest TLS version that a listener accepts.
    pub TlsVersion {
        Tls12 = "1.2",
        Tls13 = "1.3",
    }
}

/// comqtt's ways to find nodes; all of them mean memberlist here.
pub(super) const DISCOVERY_WAYS: &[Choice] = &[Choice {
    words: &["memberlist", "0", "1", "2", "serf", "mdns"],
}];

/// comqtt's raft implementations; both mean openraft here.
pub(super) const RAFT_IMPLS: &[Choice] = &[Choice {
    words: &["openraft", "0", "1"],
}];
