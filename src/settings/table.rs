// SPDX-License-Identifier: Apache-2.0
//! The one table of settings: key, flag, kind, default and meaning of each.
//!
//! Defaults, the reading of every source, nearest matches, `--help` and `configs/corqtt.yml` all come from here.
//! Rows stand in the order of the documentation; rows of one YAML block stand together.

use super::choices::{
    AuthSource, AuthWay, BridgeWay, DISCOVERY_WAYS, GroupStrategy, Leave, ListenerKind, LogFormat,
    LogOutput, MinorityPublish, OutboxFull, QueueFull, RAFT_IMPLS, RaftBootstrap, Runtime,
    StorageWay, TlsVersion,
};
use super::parts::Part;
use super::value::{Kind, Unit};

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Path in the YAML file; `[]` follows the name of a list of blocks. None: command line only.
    pub(super) key: Option<&'static str>,
    /// Another path in the file that means the same.
    pub(super) also: Option<&'static str>,
    /// The long flag without dashes. None: YAML only.
    pub(super) flag: Option<&'static str>,
    pub(super) kind: Kind,
    pub(super) default: Preset,
    pub(super) meaning: &'static str,
    /// Naming the setting, and not as off, asks for these parts.
    pub(super) needs: &'static [Part],
    /// Choosing this value asks for this part.
    pub(super) values_need: &'static [(&'static str, Part)],
    /// Why the setting does nothing here, for the warning of who names it.
    pub(super) unused: Option<&'static str>,
}

/// What holds when a setting is not named.
#[derive(Clone, Copy, Debug)]
pub(super) enum Preset {
    /// This text, read as if it was written in the file.
    Is(&'static str),
    /// Worked out at start; this says how.
    Derived(&'static str),
    /// Nothing.
    None,
}

use Preset::{Derived, Is};

impl Row {
    /// What the table and the code call it: the key, or the flag with its dashes.
    pub(super) fn name(&self) -> String {
        match (self.key, self.flag) {
            (Some(key), _) => key.to_owned(),
            (None, Some(flag)) => format!("--{flag}"),
            (None, None) => unreachable!("a row has a key or a flag"),
        }
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        match name.strip_prefix("--") {
            Some(flag) => self.key.is_none() && self.flag == Some(flag),
            None => self.key == Some(name),
        }
    }

    /// The environment variable that stands for the flag.
    pub(super) fn variable(&self) -> Option<String> {
        self.flag
            .map(|flag| format!("CORQTT_{}", flag.to_ascii_uppercase().replace('-', "_")))
    }

    /// Whether the flag may stand without a value.
    pub(super) fn is_switch(&self) -> bool {
        matches!(self.kind, Kind::Bool) || self.flag == Some("raft-bootstrap")
    }

    const fn also(mut self, key: &'static str) -> Self {
        self.also = Some(key);
        self
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    const fn needs(mut self, parts: &'static [Part]) -> Self {
        self.needs = parts;
        self
    }

    const fn values_need(mut self, parts: &'static [(&'static str, Part)]) -> Self {
        self.values_need = parts;
        self
    }

    const fn unused(mut self, why: &'static str) -> Self {
        self.unused = Some(why);
        self
    }
}

const fn key(key: &'static str, kind: Kind, default: Preset, meaning: &'static str) -> Row {
    Row {
        key: Some(key),
        also: None,
        flag: None,
        kind,
        default,
        meaning,
        needs: &[],
        values_need: &[],
        unused: None,
    }
}

const fn flag(flag: &'static str, kind: Kind, default: Preset, meaning: &'static str) -> Row {
    let mut row = key("", kind, default, meaning);
    row.key = None;
    row.flag = Some(flag);
    row
}

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}

const fn seconds(min: u64, max: u64) -> Kind {
    Kind::Duration {
        unit: Unit::Seconds,
        min,
        max,
    }
}

const fn days(max: u64) -> Kind {
    Kind::Duration {
        unit: Unit::Days,
        min: 0,
        max,
    }
}

const fn bytes(min: u64, max: u64) -> Kind {
    Kind::Bytes { min, max }
}

const YEAR: u64 = 365 * 86_400;
const ANY: u64 = u64::MAX;
const PORT: Kind = number(1, 65_535);
const COUNT: Kind = number(0, ANY);
const SIZE: Kind = bytes(0, ANY);
const MIB: u64 = 1 << 20;
const WITH_CREDENTIALS: &[(&str, Part)] = &[
    ("username", Part::AccessControl),
    ("clientid", Part::AccessControl),
];

/// Flags that act at once and are no settings: name, meaning.
pub(super) const ACTIONS: &[(&str, &str)] = &[
    (
        "check",
        "read the settings, say what would run and what is missing, and exit with 0 or 1",
    ),
    ("version", "print the version and exit"),
    ("help", "print this text and exit"),
];

/// Every setting.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    flag("conf", Kind::Path, Preset::None, "YAML file with settings; flags and environment variables override it"),

    key("shards", number(1, 64), Derived("one per CPU that the process may use, at most 64, less one in cluster mode"),
        "how many shards (cores that own clients) run").flag("shards"),
    key("cpus", Kind::Cpus, Derived("the CPUs that the process may use; with one or two of them nothing is pinned"),
        "CPUs that shards are pinned to, one shard each").flag("cpus"),
    key("runtime", Kind::Choice(Runtime::CHOICES), Is("auto"),
        "what drives a shard: auto is glommio, and epoll where the kernel denies io_uring or the memlock limit is too low").flag("runtime"),
    key("leave", Kind::Choice(Leave::CHOICES), Is("drain"),
        "at SIGTERM in a cluster: drain keeps the membership, leave goes for good, now does neither").flag("leave"),

    key("storage-way", Kind::Choice(StorageWay::CHOICES), Is("redb"),
        "where sessions, retained messages and queues are kept").flag("storage-way")
        .values_need(&[("redb", Part::Redb), ("fjall", Part::Fjall), ("redis", Part::Redis)]),
    key("storage-path", Kind::Path, Derived("data/<node name>"), "directory of the embedded store").flag("storage-path"),
    key("storage-sync", Kind::Sync, Is("always"),
        "when an embedded store is flushed to the disk: before each acknowledgement, every so many milliseconds, never")
        .flag("storage-sync"),

    key("bridge-way", Kind::Choice(BridgeWay::CHOICES), Is("none"), "where events are bridged to")
        .values_need(&[("kafka", Part::Bridge)]),
    key("bridge-path", Kind::Path, Preset::None, "YAML file of the bridge"),

    key("auth.way", Kind::Choice(AuthWay::CHOICES), Is("anonymous"), "what identifies a client")
        .also("auth-way").flag("auth-way").values_need(WITH_CREDENTIALS),
    key("auth.datasource", Kind::Choice(AuthSource::CHOICES), Is("free"), "where credentials and access rules are")
        .also("auth-datasource").flag("auth-ds"),
    key("auth.conf-path", Kind::Path, Preset::None, "YAML file of that data source").also("auth-path").flag("auth-path"),
    key("auth.blacklist-path", Kind::Path, Preset::None, "YAML file with the black and white list")
        .needs(&[Part::AccessControl]),

    key("mqtt.tcp", Kind::Listen, Is(":1883"),
        "MQTT over TCP; :PORT is all interfaces; not named and with anonymous clients it is loopback only").flag("tcp"),
    key("mqtt.ws", Kind::Listen, Is(":1882"),
        "MQTT over WebSocket; not named and with anonymous clients it is loopback only")
        .flag("ws").needs(&[Part::WebSocket]),
    key("mqtt.http", Kind::Listen, Is(":8080"), "HTTP interface; not named and with anonymous clients it is loopback only")
        .flag("http").needs(&[Part::Http]),
    key("mqtt.quic", Kind::Listen, Preset::None, "MQTT over QUIC").flag("quic").needs(&[Part::Quic]),
    flag("tls", Kind::Listen, Preset::None, "MQTT over TLS, with the certificate of mqtt.tls").needs(&[Part::Tls]),
    flag("wss", Kind::Listen, Preset::None, "MQTT over WebSocket over TLS").needs(&[Part::WebSocket, Part::Tls]),
    flag("unix", Kind::Path, Preset::None, "MQTT over a Unix socket at this path").needs(&[Part::Unix]),
    key("mqtt.tls.ca-cert", Kind::Path, Preset::None, "PEM file; when named, clients must show a certificate of this CA")
        .needs(&[Part::Tls]),
    key("mqtt.tls.server-cert", Kind::Path, Preset::None, "PEM file with the server's certificate chain").needs(&[Part::Tls]),
    key("mqtt.tls.server-key", Kind::Path, Preset::None, "PEM file with the server's private key").needs(&[Part::Tls]),
    key("mqtt.tls.zero-rtt", Kind::Bool, Is("false"), "whether QUIC clients may send early data").needs(&[Part::Quic]),

    key("mqtt.listeners[].kind", Kind::Choice(ListenerKind::CHOICES), Is("tcp"), "what the listener speaks")
        .values_need(&[("tls", Part::Tls), ("ws", Part::WebSocket), ("wss", Part::WebSocket),
            ("wss", Part::Tls), ("unix", Part::Unix), ("quic", Part::Quic)]),
    key("mqtt.listeners[].address", Kind::Text, Preset::None, "HOST:PORT, :PORT for all interfaces; a path for unix"),
    key("mqtt.listeners[].tls.ca-cert", Kind::Path, Derived("mqtt.tls.ca-cert"), "as mqtt.tls.ca-cert").needs(&[Part::Tls]),
    key("mqtt.listeners[].tls.server-cert", Kind::Path, Derived("mqtt.tls.server-cert"), "as mqtt.tls.server-cert")
        .needs(&[Part::Tls]),
    key("mqtt.listeners[].tls.server-key", Kind::Path, Derived("mqtt.tls.server-key"), "as mqtt.tls.server-key")
        .needs(&[Part::Tls]),
    key("mqtt.listeners[].tls.min-version", Kind::Choice(TlsVersion::CHOICES), Is("1.2"), "oldest TLS version accepted")
        .needs(&[Part::Tls]),
    key("mqtt.listeners[].tls.crl", Kind::Path, Preset::None, "PEM file with revoked client certificates").needs(&[Part::Tls]),
    key("mqtt.listeners[].proxy-protocol-from", Kind::Cidrs, Preset::None,
        "load balancers that send a PROXY header, as address ranges").needs(&[Part::ProxyProtocol]),
    key("mqtt.listeners[].max-connections", COUNT, Is("0"), "connections at once on this listener; 0 = only the global limit"),
    key("mqtt.listeners[].auth", Kind::Choice(AuthWay::CHOICES), Derived("auth.way"),
        "what identifies a client on this listener").values_need(WITH_CREDENTIALS),
    key("mqtt.listeners[].allowed-origins", Kind::Texts, Preset::None, "Origins of browsers that may use WebSocket here")
        .needs(&[Part::WebSocket]),

    key("mqtt.shared.strategy", Kind::Choice(GroupStrategy::CHOICES), Is("round-robin"),
        "how a shared group chooses the member for a message"),
    key("mqtt.shared.groups", Kind::Map, Preset::None, "strategies of groups by their names, where they differ"),

    key("mqtt.limits.connections", COUNT, Derived("the limit of open files less 512"),
        "clients connected at once; 0 = no limit; the same as maximum-clients"),
    key("mqtt.limits.connections-per-ip", COUNT, Is("0"), "connections of one address, or one /64 of IPv6, at once; 0 = no limit"),
    key("mqtt.limits.connect-rate", COUNT, Is("0"), "CONNECT packets per second, as many at once; 0 = no limit"),
    key("mqtt.limits.connect-timeout", seconds(1, 3600), Is("10s"), "time from accept to the end of CONNECT"),
    key("mqtt.limits.queue-messages", COUNT, Is("100000"), "messages queued per session; 0 = no limit"),
    key("mqtt.limits.queue-bytes", SIZE, Is("64MiB"), "bytes queued per session; 0 = no limit"),
    key("mqtt.limits.queue-full", Kind::Choice(QueueFull::CHOICES), Is("drop-oldest"),
        "what happens to a message for a full queue"),
    key("mqtt.limits.out-buffer", SIZE, Is("1MiB"),
        "bytes waiting for a slow reader, beyond which QoS 0 is shed; 0 = no limit"),
    key("mqtt.limits.publish-rate", COUNT, Is("0"), "publishes per client and second, as many at once, beyond which it is not read; 0 = no limit"),
    key("mqtt.limits.subscriptions", COUNT, Is("0"), "subscriptions per client; 0 = no limit"),
    key("mqtt.limits.topic-levels", number(0, 65_535), Is("128"), "levels of a topic; 0 = no limit"),
    key("mqtt.limits.retained-messages", COUNT, Is("0"), "retained messages; 0 = no limit"),
    key("mqtt.limits.retained-bytes", SIZE, Is("0"), "bytes of retained messages; 0 = no limit"),
    key("mqtt.limits.alias-bytes", SIZE, Is("64KiB"), "bytes of topic aliases per connection; 0 = no limit"),
    key("mqtt.limits.memory-max", SIZE, Derived("half of the machine's or the cgroup's memory"),
        "bytes of read buffers, queues, large payloads and out-buffers; a little below it queues count as full, half-sent packets \
         are closed and new clients refused; 0 = no limit"),
    key("mqtt.limits.store-bytes", SIZE, Is("0"), "bytes in the store; 0 = no limit")
        .unused("this build does not enforce it yet"),
    key("mqtt.limits.drain-timeout", seconds(0, 86_400), Is("30s"), "longest time to say good-bye to clients at SIGTERM"),

    key("mqtt.options.client-write-buffer-size", bytes(0, 1024 * MIB), Is("0"), "a hint in bytes; 0 = as needed")
        .unused("buffers are lent to busy connections only and grow as needed"),
    key("mqtt.options.client-read-buffer-size", bytes(0, 1024 * MIB), Is("0"), "a hint in bytes; 0 = as needed")
        .unused("buffers are lent to busy connections only and grow as needed"),
    key("mqtt.options.sys-topic-resend-interval", seconds(1, 86_400), Is("10s"), "time between two updates of $SYS"),
    key("mqtt.options.inline-client", Kind::Bool, Is("false"), "an embedder's client in the process")
        .unused("a server has no inline client"),
    key("mqtt.options.capabilities.maximum-message-expiry-interval", seconds(0, u32::MAX as u64), Is("0"),
        "longest time that a message is kept; 0 = unlimited; shortens retained messages only when named"),
    key("mqtt.options.capabilities.maximum-session-expiry-interval", seconds(0, u32::MAX as u64), Is("4294967295"),
        "longest time that a session outlives its connection; 4294967295 = for ever"),
    key("mqtt.options.capabilities.maximum-client-writes-pending", number(0, u32::MAX as u64), Is("8192"),
        "messages waiting to be written per connection, beyond which QoS 0 is shed; 0 = no limit"),
    key("mqtt.options.capabilities.maximum-packet-size", bytes(0, 268_435_460), Is("1MiB"),
        "largest packet accepted; 0 = the protocol's limit of 268435460"),
    key("mqtt.options.capabilities.receive-maximum", number(1, 65_535), Is("1024"),
        "QoS 1 and 2 publishes that a client may have unacknowledged"),
    key("mqtt.options.capabilities.topic-alias-maximum", number(0, 65_535), Is("65535"), "highest topic alias; 0 = no aliases"),
    key("mqtt.options.capabilities.maximum-qos", number(0, 2), Is("2"), "highest QoS that clients may publish with"),
    key("mqtt.options.capabilities.retain-available", Kind::Bool, Is("true"), "whether messages can be retained"),
    key("mqtt.options.capabilities.wildcard-sub-available", Kind::Bool, Is("true"), "whether filters may have wildcards"),
    key("mqtt.options.capabilities.sub-id-available", Kind::Bool, Is("true"), "whether subscription identifiers work"),
    key("mqtt.options.capabilities.shared-sub-available", Kind::Bool, Is("true"), "whether shared subscriptions work"),
    key("mqtt.options.capabilities.minimum-protocol-version", number(3, 5), Is("3"),
        "oldest protocol level accepted: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0"),
    key("mqtt.options.capabilities.maximum-clients", COUNT, Derived("mqtt.limits.connections"), "clients connected at once; 0 = no limit"),
    key("mqtt.options.capabilities.maximum-inflight", number(1, 65_535), Is("8192"),
        "QoS 1 and 2 messages unacknowledged by a client, whatever it can receive"),
    key("mqtt.options.capabilities.maximum-keepalive", number(0, 65_535), Is("0"),
        "longest keep-alive in seconds, told to MQTT 5.0 clients; 0 = whatever the client asks for; earlier versions always get what they ask for"),
    key("mqtt.options.capabilities.compatibilities.obscure-not-authorized", Kind::Bool, Is("false"),
        "answer unspecified error instead of not authorized").also("mqtt.options.compatibilities.obscure-not-authorized"),
    key("mqtt.options.capabilities.compatibilities.passive-client-disconnect", Kind::Bool, Is("false"),
        "leave it to the client to close after a DISCONNECT was sent")
        .also("mqtt.options.compatibilities.passive-client-disconnect")
        .unused("the broker closes its side and waits two seconds for the client's"),
    key("mqtt.options.capabilities.compatibilities.always-return-response", Kind::Bool, Is("false"),
        "send response information and reason strings even if the client did not ask")
        .also("mqtt.options.compatibilities.always-return-response")
        .unused("there is no response information to return"),
    key("mqtt.options.capabilities.compatibilities.restore-sys-info-restart", Kind::Bool, Is("false"),
        "continue the counters of $SYS after a restart").also("mqtt.options.compatibilities.restore-sys-info-restart")
        .unused("counters begin with the process"),
    key("mqtt.options.capabilities.compatibilities.no-inherited-properties-on-ack", Kind::Bool, Is("false"),
        "do not copy user properties of a packet to its acknowledgement")
        .also("mqtt.options.compatibilities.no-inherited-properties-on-ack")
        .unused("acknowledgements never carry the properties of their packet"),

    key("cluster.node-name", Kind::Text, Derived("the host name"), "name of this node, unique in the cluster").flag("node-name"),
    key("cluster.bind-addr", Kind::Ip, Is("127.0.0.1"), "gossip, raft and links to peers listen here").flag("bind-ip"),
    key("cluster.bind-port", PORT, Is("7946"), "port of gossip, TCP and UDP").flag("gossip-port"),
    key("cluster.advertise-addr", Kind::Ip, Derived("cluster.bind-addr"), "what the other nodes are told").flag("advertise-ip"),
    key("cluster.advertise-port", PORT, Derived("cluster.bind-port"), "gossip port that the other nodes are told"),
    key("cluster.raft-port", PORT, Is("8946"), "port of raft").flag("raft-port"),
    key("cluster.peer-port", PORT, Derived("cluster.bind-port + 10000"), "UDP port of the QUIC links between nodes").flag("peer-port"),
    key("cluster.members", Kind::HostPorts, Preset::None, "seeds: other nodes' HOST:GOSSIP-PORT").flag("members"),
    key("cluster.raft-dir", Kind::Path, Derived("data/<node name>/raft"), "directory of raft's log and snapshots").flag("raft-dir"),
    key("cluster.raft-bootstrap", Kind::Choice(RaftBootstrap::CHOICES), Is("false"),
        "first node of a new cluster; force founds one even where seeds answer").flag("raft-bootstrap"),
    key("cluster.raft-log-level", Kind::Level, Is("warn"), "how much raft logs"),
    key("cluster.secret-file", Kind::Path, Preset::None,
        "file with the shared secret, several lines for rotation; without it nodes link on loopback only")
        .flag("cluster-secret-file"),
    key("cluster.server-reference", Kind::HostPort, Preset::None, "what MQTT 5 clients are told when another node drains")
        .flag("server-reference"),
    key("cluster.dead-node-timeout", seconds(1, YEAR), Is("10s"), "silence after which a node counts as dead; at least three leases"),
    key("cluster.node-forget-timeout", Kind::DurationOrNever { unit: Unit::Seconds }, Is("never"),
        "time after which a dead node is removed for good"),
    key("cluster.lease", Kind::Duration { unit: Unit::Seconds, min: 1, max: 60 }, Is("2s"),
        "time that a node may trust its copy of the cluster's table"),
    key("cluster.fence-timeout", seconds(1, 3600), Is("10s"),
        "time after which a node that is cut off closes connections of persistent sessions"),
    key("cluster.link-stall", seconds(1, 3600), Is("3s"), "time that a slow peer may hold acknowledgements back"),
    key("cluster.holder-timeout", seconds(1, 86_400), Is("30s"), "time that a client waits for the node that holds its session"),
    key("cluster.outbox-bytes", bytes(MIB, ANY), Is("1GiB"), "bytes kept for each peer that is down"),
    key("cluster.outbox-full", Kind::Choice(OutboxFull::CHOICES), Is("refuse"), "what happens to messages for a full outbox"),
    key("cluster.minority-publish", Kind::Choice(MinorityPublish::CHOICES), Is("hold"),
        "what a node that is cut off does with QoS 1 and 2: hold keeps the promise, accept gives it up"),
    key("cluster.minority-start", Kind::Bool, Is("false"), "whether a node that is cut off opens its listeners at start"),
    key("cluster.will-row-max", bytes(0, MIB), Is("16KiB"), "largest will that every node keeps"),
    key("cluster.queue-depth", number(1, 1 << 20), Is("1024"), "gossip messages waiting to be handled"),
    key("cluster.tags", Kind::Map, Preset::None, "texts that go with the node's name"),
    key("cluster.discovery-way", Kind::Choice(DISCOVERY_WAYS), Is("memberlist"), "how nodes find each other")
        .unused("nodes find each other by memberlist"),
    key("cluster.raft-impl", Kind::Choice(RAFT_IMPLS), Is("openraft"), "which raft")
        .unused("raft is openraft"),
    key("cluster.grpc-enable", Kind::Bool, Is("false"), "comqtt's links between nodes").flag("grpc-enable")
        .unused("links between nodes are QUIC"),
    key("cluster.grpc-port", PORT, Derived("cluster.peer-port"), "read as cluster.peer-port").flag("grpc-port"),
    key("cluster.inbound-pool-size", COUNT, Is("0"), "comqtt's pool for messages from peers").unused("there is no such pool"),
    key("cluster.outbound-pool-size", COUNT, Is("0"), "comqtt's pool for messages to peers").unused("there is no such pool"),
    key("cluster.inout-pool-nonblocking", Kind::Bool, Is("false"), "comqtt's mode of these pools").unused("there is no such pool"),
    key("cluster.nodes-file-dir", Kind::Path, Preset::None, "comqtt's directory for the list of members")
        .unused("members are kept in cluster.raft-dir"),

    key("redis.options.addr", Kind::RedisAddress, Is("127.0.0.1:6379"),
        "redis; named without storage-way it selects the redis store").flag("redis"),
    key("redis.options.username", Kind::Text, Preset::None, "user name for redis").flag("redis-user"),
    key("redis.options.password", Kind::Secret, Preset::None, "password for redis").flag("redis-pass"),
    key("redis.options.db", number(0, 65_535), Is("0"), "number of the database in redis").flag("redis-db"),
    key("redis.prefix", Kind::Text, Is("comqtt"), "start of every key in redis"),

    key("log.enable", Kind::Bool, Is("true"), "whether anything is logged").flag("log-enable"),
    key("log.level", Kind::Level, Is("info"), "how much is logged; the flag takes comqtt's numbers 0 to 7").flag("level"),
    key("log.format", Kind::Choice(LogFormat::CHOICES), Is("text"), "the form of a line"),
    key("log.env", Kind::Choice(LogFormat::CHOICES), Preset::None, "0 selects text, 1 JSON, unless log.format says otherwise")
        .flag("env"),
    key("log.output", Kind::Choice(LogOutput::CHOICES), Derived("console, and both when a file is named"), "where lines go"),
    key("log.filename", Kind::Path, Preset::None, "file for every line").flag("log-file"),
    key("log.info-file", Kind::Path, Preset::None, "file for the lines below error").flag("info-file"),
    key("log.error-file", Kind::Path, Preset::None, "file for errors").flag("error-file"),
    key("log.maxsize", number(1, 1 << 20), Is("100"), "size in MB at which a file is rotated"),
    key("log.max-age", days(36_500), Is("30d"), "age in days at which a rotated file is removed; 0 = no limit"),
    key("log.max-backups", number(0, 10_000), Is("10"), "rotated files that are kept; 0 = all"),
    key("log.compress", Kind::Bool, Is("false"), "whether rotated files are compressed with gzip"),
    key("log.caller", Kind::Bool, Is("false"), "comqtt's line numbers").unused("lines carry no line numbers"),
    key("log.localtime", Kind::Bool, Is("false"), "comqtt's local time").unused("times are UTC"),
    key("log.thirdparty-file", Kind::Path, Preset::None, "comqtt's file for libraries")
        .unused("lines of libraries go where the others go"),
    key("log.sampler.burst", COUNT, Is("0"), "comqtt's sampling of lines").unused("lines are not sampled"),
    key("log.sampler.period", COUNT, Is("0"), "comqtt's sampling of lines").unused("lines are not sampled"),

    key("dashboard-enable", Kind::Bool, Is("true"), "whether the HTTP interface has a dashboard").needs(&[Part::Dashboard]),
    key("dashboard.secret-file", Kind::Path, Preset::None, "file with the key that signs logins").needs(&[Part::Dashboard]),
    key("dashboard.users-file", Kind::Path, Preset::None, "file with the dashboard's users").needs(&[Part::Dashboard]),
    key("pprof-enable", Kind::Bool, Is("false"), "Go's profiler").unused("there is no Go runtime to profile; use perf"),
];

/// The place of the setting with this name. The name is one of the table's; the tests read every one.
pub(super) fn place(name: &str) -> usize {
    ROWS.iter()
        .position(|row| row.is_called(name))
        .expect("settings are read by names that are in the table")
}

/// The place of the setting with this flag.
pub(super) fn place_of_flag(flag: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.flag == Some(flag))
}

/// The place of the setting with this path in the file.
pub(super) fn place_of_key(path: &str) -> Option<usize> {
    ROWS.iter()
        .position(|row| row.key == Some(path) || row.also == Some(path))
}

/// Every path that the file may have.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|row| [row.key, row.also]).flatten()
}

/// Every path that the file may have, and every block above one.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    keys().flat_map(|key| {
        let blocks = key.match_indices('.').map(move |(end, _)| &key[..end]);
        blocks.chain([key])
    })
}
