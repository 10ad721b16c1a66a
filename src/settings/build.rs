// SPDX-License-Identifier: Apache-2.0
//! From values to settings: what depends on several values, and what this build lacks.
//!
//! Values that could not be read have left a problem and count as not named here, so building always comes to its
//! end and every problem is found in one run.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::choices::{
    AuthSource, AuthWay, BridgeWay, Choice, GroupStrategy, Leave, ListenerKind, LogFormat,
    LogOutput, MinorityPublish, OutboxFull, QueueFull, RaftBootstrap, Runtime, StorageWay,
    TlsVersion,
};
use super::error::Problem;
use super::layers::{Named, Origin, Values};
use super::parts::{Part, Parts};
use super::value::{Address, Level, Secret, Value};
use super::{
    AuthSettings, BridgeSettings, Capabilities, ClusterSettings, Compatibilities,
    DashboardSettings, HttpSettings, Limit, LimitSettings, ListenerSettings, ListenerSocket,
    LogSettings, Missing, Notice, RedisSettings, Rotation, Settings, SettingsError, SharedSettings,
    StorageSettings, StorageSync, TlsSettings, shared_addresses,
};

/// The largest packet that a remaining length of four bytes allows [MQTT5 2.1.4].
const PACKET_BYTES_MAX: u32 = 268_435_460;

/// What links have as their port when only gossip's is named.
const PEER_PORT_ABOVE_GOSSIP: u16 = 10_000;

pub(super) struct Builder<'a> {
    pub(super) values: &'a Values,
    /// The blocks of `mqtt.listeners`.
    pub(super) listeners: Vec<(Origin, Values)>,
    pub(super) cluster_block: Option<Origin>,
    pub(super) parts: Parts,
    pub(super) host_name: &'a str,
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<Notice>,
}

impl Builder<'_> {
    pub(super) fn settings(mut self) -> Result<Settings, SettingsError> {
        let mut missing = Vec::new();
        self.check_parts_and_unused();
        let node_name = self.node_name();
        let storage = self.storage(&node_name, &mut missing);
        let auth = self.auth();
        let listeners = self.listeners(&auth, &mut missing);
        let http = self.http(&auth, &mut missing);
        let bridge = self.bridge();
        let cluster = self.cluster(&node_name);
        let shared = self.shared();
        let limits = self.limits();
        let log = self.log();
        let values = self.values;
        let dashboard =
            (values.bool("dashboard-enable") && self.parts.has(Part::Dashboard)).then(|| {
                DashboardSettings {
                    secret_file: values.path("dashboard.secret-file"),
                    users_file: values.path("dashboard.users-file"),
                }
            });
        let settings = Settings {
            shards: values
                .number("shards")
                .and_then(|shards| NonZeroUsize::new(to(shards))),
            cpus: values.cpus("cpus"),
            runtime: Runtime::nth(values.choice("runtime").unwrap_or_default()),
            leave: Leave::nth(values.choice("leave").unwrap_or_default()),
            listeners,
            http,
            shared,
            limits,
            capabilities: capabilities(values),
            compatibilities: compatibilities(values),
            sys_topic_interval: seconds(values, "mqtt.options.sys-topic-resend-interval"),
            client_read_buffer_bytes: values.above_zero("mqtt.options.client-read-buffer-size"),
            client_write_buffer_bytes: values.above_zero("mqtt.options.client-write-buffer-size"),
            storage,
            auth,
            redis: redis(values),
            bridge,
            cluster,
            dashboard,
            log,
            notices: self.notices,
            missing,
            named: values.shown(),
            node_name,
        };
        let of_clients = settings.listeners.iter().filter_map(|listener| {
            let address = listener.socket.tcp_address()?.clone();
            Some((listener.id.as_str(), address))
        });
        let of_http = settings.http.iter();
        let of_http = of_http.map(|http| ("http", http.address.clone()));
        let addresses: Vec<_> = of_clients.chain(of_http).collect();
        let shared = shared_addresses(&addresses).into_iter();
        self.problems
            .extend(shared.map(|text| Problem::new(text, false)));
        if let (Some(shards), Some(cpus)) = (settings.shards, &settings.cpus)
            && cpus.len() < shards.get()
        {
            self.problems.push(Problem::new(
                format!(
                    "{} shards cannot be pinned to {} CPUs; name one CPU per shard",
                    shards,
                    cpus.len()
                ),
                false,
            ));
        }
        match SettingsError::of(self.problems) {
            Some(error) => Err(error),
            None => Ok(settings),
        }
    }

    fn warn(&mut self, text: String) {
        self.notices.push(Notice {
            level: log::Level::Warn,
            text,
        });
    }

    /// A setting names a part that is not there. The command line is right as such, so its exit code is not that of a
    /// wrong one.
    fn lacks(&mut self, origin: &Origin, part: Part) {
        let text = format!(
            "{origin}: asks for {}, which this build does not have; {}",
            part.name(),
            part.instead()
        );
        self.problems.push(Problem::new(text, false));
    }

    fn check_parts_and_unused(&mut self) {
        let blocks = self
            .listeners
            .iter()
            .flat_map(|(_, values)| values.all_named());
        let named: Vec<_> = self.values.all_named().chain(blocks).collect();
        let mut lacking = Vec::new();
        let mut unused = Vec::new();
        for (row, named) in named {
            let is_off = matches!(named.value, Value::Bool(false) | Value::Off);
            let by_value = row
                .values_need
                .iter()
                .filter(|(word, _)| named.value == Value::Choice(row.kind.choice_named(word)))
                .map(|&(_, part)| part);
            let by_name = row.needs.iter().copied().filter(|_| !is_off);
            if let Some(part) = by_name.chain(by_value).find(|&part| !self.parts.has(part)) {
                lacking.push((named.origin.clone(), part));
            }
            if let Some(why) = row.unused
                && !is_off
            {
                unused.push(format!(
                    "{} is accepted and does nothing: {why}",
                    named.origin
                ));
            }
        }
        for (origin, part) in lacking {
            self.lacks(&origin, part);
        }
        for text in unused {
            self.warn(text);
        }
    }

    fn node_name(&mut self) -> String {
        match self.values.named("cluster.node-name") {
            Some(Named {
                value: Value::Text(name),
                origin,
                ..
            }) => {
                if !is_node_name(name) {
                    self.problems.push(origin.problem(format_args!(
                        "{name:?} is not a node name; expected up to 128 letters, digits, dots, dashes and underscores"
                    )));
                }
                name.clone()
            }
            _ => self.host_name.to_owned(),
        }
    }

    fn storage(&mut self, node_name: &str, missing: &mut Vec<Missing>) -> StorageSettings {
        let values = self.values;
        let part_of = |way| match way {
            StorageWay::Memory => None,
            StorageWay::Redb => Some(Part::Redb),
            StorageWay::Fjall => Some(Part::Fjall),
            StorageWay::Redis => Some(Part::Redis),
        };
        let mut way = StorageWay::nth(values.choice("storage-way").unwrap_or_default());
        if values.named("storage-way").is_some() {
            // if it is missing, that was told with the other parts
        } else if let Some(named) = values.named("redis.options.addr") {
            way = StorageWay::Redis;
            if self.parts.has(Part::Redis) {
                let origin = &named.origin;
                self.notices.push(Notice {
                    level: log::Level::Info,
                    text: format!(
                        "{origin} selects the redis store, since storage-way is not named"
                    ),
                });
            } else {
                self.lacks(&named.origin, Part::Redis);
            }
        } else if let Some(part) = part_of(way).filter(|&part| !self.parts.has(part)) {
            let of_embedded = values
                .named("storage-path")
                .or_else(|| values.named("storage-sync"));
            if let Some(named) = of_embedded {
                self.lacks(&named.origin, part);
            }
            missing.push(Missing {
                part,
                text: "sessions and retained messages are kept in memory and end with the process"
                    .to_owned(),
            });
            way = StorageWay::Memory;
        }
        let sync = if values.is_always("storage-sync") {
            StorageSync::Always
        } else {
            values
                .duration("storage-sync")
                .map_or(StorageSync::Never, StorageSync::Every)
        };
        StorageSettings {
            way,
            path: values
                .path("storage-path")
                .unwrap_or_else(|| PathBuf::from("data").join(node_name)),
            sync,
        }
    }

    fn auth(&mut self) -> AuthSettings {
        let values = self.values;
        let way = AuthWay::nth(values.choice("auth.way").unwrap_or_default());
        let source = AuthSource::nth(values.choice("auth.datasource").unwrap_or_default());
        let source_file = values.path("auth.conf-path");
        if way == AuthWay::Anonymous {
            for name in ["auth.datasource", "auth.conf-path"] {
                if let Some(named) = values.named(name)
                    && named.value != Value::Choice(AuthSource::Free as usize)
                {
                    let text = format!(
                        "{} does nothing while clients are anonymous (auth-way 0)",
                        named.origin
                    );
                    self.warn(text);
                }
            }
        } else if let Some(named) = values.named("auth.way") {
            if !self.parts.has(Part::AccessControl) {
                // told with the other parts
            } else if source == AuthSource::Free {
                self.problems.push(named.origin.problem(
                    "needs a source of credentials; name one with --auth-ds and --auth-path",
                ));
            } else if source_file.is_none() {
                self.problems.push(
                    named.origin.problem(
                        "needs the file that describes its source; name it with --auth-path",
                    ),
                );
            }
        }
        AuthSettings {
            way,
            source,
            source_file,
            blacklist_file: values.path("auth.blacklist-path"),
        }
    }

    fn listeners(
        &mut self,
        auth: &AuthSettings,
        missing: &mut Vec<Missing>,
    ) -> Vec<ListenerSettings> {
        let mut found = Vec::new();
        for (origin, values) in std::mem::take(&mut self.listeners) {
            if let Some(listener) = self.listener(&origin, &values, auth) {
                found.push(listener);
            }
        }
        let has_list = !found.is_empty();
        let values = self.values;
        let plain = |socket, is_named| ListenerSettings {
            id: String::new(),
            socket,
            is_named,
            proxy_protocol_from: Vec::new(),
            connections_max: None,
            auth: None,
            allowed_origins: Vec::new(),
        };

        let tcp = values
            .address("mqtt.tcp")
            .map(|address| (address, values.named("mqtt.tcp").is_some()));
        if let Some((address, is_named)) = tcp
            && (is_named || !has_list)
        {
            let closed = !is_named && auth.way == AuthWay::Anonymous;
            let address = if closed {
                Address::loopback(address.port)
            } else {
                address
            };
            if closed {
                self.notices.push(Notice {
                    level: log::Level::Info,
                    text: format!(
                        "clients are anonymous, so the tcp listener is open to this machine only; \
                         --tcp=:{} opens it to all",
                        address.port
                    ),
                });
            }
            found.push(plain(ListenerSocket::Tcp(address), is_named));
        }

        let ws = values
            .address("mqtt.ws")
            .map(|address| (address, values.named("mqtt.ws").is_some()));
        if let Some((address, is_named)) = ws
            && (is_named || !has_list)
        {
            let closed = !is_named && auth.way == AuthWay::Anonymous;
            let address = if closed {
                Address::loopback(address.port)
            } else {
                address
            };
            if self.parts.has(Part::WebSocket) {
                found.push(plain(ListenerSocket::Ws(address), is_named));
            } else if !is_named {
                missing.push(Missing {
                    part: Part::WebSocket,
                    text: "the ws listener is off".to_owned(),
                });
            }
        }

        for (name, kind) in [
            ("--tls", ListenerKind::Tls),
            ("--wss", ListenerKind::Wss),
            ("mqtt.quic", ListenerKind::Quic),
        ] {
            if let Some((address, named)) = values.address(name).zip(values.named(name))
                && let Some(tls) = self.tls(&named.origin, None)
            {
                found.push(plain(socket_with_tls(kind, address, tls), true));
            }
        }
        if let Some(path) = values.path("--unix") {
            found.push(plain(ListenerSocket::Unix(path), true));
        }
        if found.is_empty() {
            self.problems.push(Problem::new(
                "no listener for clients is on; name one with --tcp=:1883",
                false,
            ));
        }
        name_listeners(&mut found);
        found
    }

    /// One block of `mqtt.listeners`; None when it cannot be understood.
    fn listener(
        &mut self,
        origin: &Origin,
        values: &Values,
        auth: &AuthSettings,
    ) -> Option<ListenerSettings> {
        let name = |name: &str| format!("mqtt.listeners[].{name}");
        let kind = ListenerKind::nth(values.choice(&name("kind")).unwrap_or_default());
        let Some(text) = values.text(&name("address")) else {
            self.problems.push(
                origin.problem("a listener needs an address: HOST:PORT, :PORT, or a path for unix"),
            );
            return None;
        };
        let listener_auth = values.choice(&name("auth")).map(AuthWay::nth);
        if listener_auth.is_some_and(|way| way != AuthWay::Anonymous)
            && auth.source == AuthSource::Free
            && self.parts.has(Part::AccessControl)
        {
            self.problems.push(
                origin.problem("auth needs a source of credentials; name it with auth.datasource"),
            );
        }
        let socket = if kind == ListenerKind::Unix {
            ListenerSocket::Unix(PathBuf::from(text))
        } else {
            let Some(address) = Address::read(&text) else {
                self.problems.push(origin.problem(format_args!(
                    "{text:?} is not an address; expected HOST:PORT or :PORT for all interfaces"
                )));
                return None;
            };
            match kind {
                ListenerKind::Ws => ListenerSocket::Ws(address),
                ListenerKind::Tls | ListenerKind::Wss | ListenerKind::Quic => {
                    socket_with_tls(kind, address, self.tls(origin, Some(values))?)
                }
                ListenerKind::Tcp | ListenerKind::Unix => ListenerSocket::Tcp(address),
            }
        };
        Some(ListenerSettings {
            id: String::new(),
            socket,
            is_named: true,
            proxy_protocol_from: values.cidrs(&name("proxy-protocol-from")),
            connections_max: values.above_zero(&name("max-connections")),
            auth: listener_auth,
            allowed_origins: values.texts(&name("allowed-origins")),
        })
    }

    /// The certificates of a listener: its own, else those of `mqtt.tls`. None, and a problem, without any.
    fn tls(&mut self, origin: &Origin, own: Option<&Values>) -> Option<TlsSettings> {
        let path = |name: &str| {
            own.and_then(|own| own.path(&format!("mqtt.listeners[].tls.{name}")))
                .or_else(|| self.values.path(&format!("mqtt.tls.{name}")))
        };
        let (server_cert, server_key) = (path("server-cert"), path("server-key"));
        let ca_cert = path("ca-cert");
        let Some((server_cert, server_key)) = server_cert.zip(server_key) else {
            // in a build without TLS, that it is missing says it all
            if self.parts.has(Part::Tls) {
                self.problems.push(origin.problem(
                    "needs a certificate; name mqtt.tls.server-cert and mqtt.tls.server-key",
                ));
            }
            return None;
        };
        let min_version = own.and_then(|own| own.choice("mqtt.listeners[].tls.min-version"));
        let crl = own.and_then(|own| own.path("mqtt.listeners[].tls.crl"));
        if crl.is_some() && ca_cert.is_none() {
            self.problems.push(origin.problem(
                "crl needs ca-cert: without it clients show no certificate that could be revoked",
            ));
            return None;
        }
        Some(TlsSettings {
            ca_cert,
            server_cert,
            server_key,
            min_version: TlsVersion::nth(min_version.unwrap_or_default()),
            crl,
            zero_rtt: self.values.bool("mqtt.tls.zero-rtt"),
        })
    }

    fn http(&mut self, auth: &AuthSettings, missing: &mut Vec<Missing>) -> Option<HttpSettings> {
        let address = self.values.address("mqtt.http")?;
        let is_named = self.values.named("mqtt.http").is_some();
        if !self.parts.has(Part::Http) {
            if !is_named {
                missing.push(Missing {
                    part: Part::Http,
                    text: "the http listener is off".to_owned(),
                });
            }
            return None;
        }
        let closed = !is_named && auth.way == AuthWay::Anonymous;
        Some(HttpSettings {
            address: if closed {
                Address::loopback(address.port)
            } else {
                address
            },
            is_named,
        })
    }

    fn bridge(&mut self) -> Option<BridgeSettings> {
        let values = self.values;
        let way = BridgeWay::nth(values.choice("bridge-way")?);
        let named = values.named("bridge-way")?;
        if way == BridgeWay::Off || !self.parts.has(Part::Bridge) {
            return None;
        }
        let Some(file) = values.path("bridge-path") else {
            self.problems.push(
                named
                    .origin
                    .problem("needs the bridge's file; name it with bridge-path"),
            );
            return None;
        };
        Some(BridgeSettings { way, file })
    }

    /// Cluster mode is on when members, bootstrap or a cluster block are there.
    fn cluster(&mut self, node_name: &str) -> Option<ClusterSettings> {
        let values = self.values;
        let members = values.addresses("cluster.members");
        let raft_bootstrap =
            RaftBootstrap::nth(values.choice("cluster.raft-bootstrap").unwrap_or_default());
        let by_members = values
            .named("cluster.members")
            .filter(|_| !members.is_empty());
        let by_bootstrap = values
            .named("cluster.raft-bootstrap")
            .filter(|_| raft_bootstrap != RaftBootstrap::No);
        let asked_by = by_bootstrap
            .or(by_members)
            .map(|named| named.origin.clone())
            .or_else(|| self.cluster_block.clone());
        let Some(asked_by) = asked_by else {
            let idle: Vec<String> = values
                .all_named()
                .filter(|(row, _)| {
                    let of_cluster = row.key.is_some_and(|key| key.starts_with("cluster."))
                        || row.flag == Some("leave");
                    of_cluster && row.key != Some("cluster.node-name") && row.unused.is_none()
                })
                .filter(|(_, named)| named.value != Value::Choice(RaftBootstrap::No as usize))
                .map(|(_, named)| format!("{} does nothing outside cluster mode", named.origin))
                .collect();
            for text in idle {
                self.warn(text);
            }
            return None;
        };
        if !self.parts.has(Part::Cluster) {
            self.lacks(&asked_by, Part::Cluster);
        }

        let port = |name: &str| values.number(name).map(to::<u16>);
        let bind_ip = values
            .ip("cluster.bind-addr")
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let gossip_port = port("cluster.bind-port").unwrap_or_default();
        let raft_port = port("cluster.raft-port").unwrap_or_default();
        let peer_port = self.peer_port(gossip_port);
        let lease = seconds(values, "cluster.lease");
        let dead_node_timeout = seconds(values, "cluster.dead-node-timeout");
        let secret_file = values.path("cluster.secret-file");
        let mut refuse = |name: &str, text: String| {
            let problem = match values.named(name) {
                Some(named) => named.origin.problem(text),
                None => Problem::new(format!("{name}: {text}"), false),
            };
            self.problems.push(problem);
        };
        if raft_port == gossip_port {
            refuse(
                "cluster.raft-port",
                format!("gossip has port {gossip_port} too; they need one each"),
            );
        }
        if dead_node_timeout < 3 * lease {
            refuse(
                "cluster.dead-node-timeout",
                format!("{dead_node_timeout:?} is below three leases of {lease:?}"),
            );
        }
        if !bind_ip.is_loopback() && secret_file.is_none() {
            refuse(
                "cluster.bind-addr",
                "nodes link on loopback only without a shared secret; name one with --cluster-secret-file".to_owned(),
            );
        }
        Some(ClusterSettings {
            bind_ip,
            advertise_ip: values.ip("cluster.advertise-addr").unwrap_or(bind_ip),
            gossip_port,
            advertise_port: port("cluster.advertise-port").unwrap_or(gossip_port),
            raft_port,
            peer_port,
            members,
            raft_dir: values
                .path("cluster.raft-dir")
                .unwrap_or_else(|| PathBuf::from("data").join(node_name).join("raft")),
            raft_bootstrap,
            raft_log_level: values
                .level("cluster.raft-log-level")
                .unwrap_or(Level::Warn),
            secret_file,
            server_reference: values.address("cluster.server-reference"),
            dead_node_timeout,
            node_forget_timeout: values.duration("cluster.node-forget-timeout"),
            lease,
            fence_timeout: seconds(values, "cluster.fence-timeout"),
            link_stall: seconds(values, "cluster.link-stall"),
            holder_timeout: seconds(values, "cluster.holder-timeout"),
            outbox_bytes: values.number("cluster.outbox-bytes").unwrap_or_default(),
            outbox_full: OutboxFull::nth(values.choice("cluster.outbox-full").unwrap_or_default()),
            minority_publish: MinorityPublish::nth(
                values
                    .choice("cluster.minority-publish")
                    .unwrap_or_default(),
            ),
            minority_start: values.bool("cluster.minority-start"),
            will_row_bytes_max: values.number("cluster.will-row-max").unwrap_or_default(),
            queue_depth: values.number("cluster.queue-depth").unwrap_or_default(),
            tags: values.map("cluster.tags"),
        })
    }

    /// The port of links: named, named by comqtt's name, or 10000 above gossip's.
    fn peer_port(&mut self, gossip_port: u16) -> u16 {
        let values = self.values;
        let named = values.number("cluster.peer-port").map(to::<u16>);
        let by_grpc = values.number("cluster.grpc-port").map(to::<u16>);
        if let (Some(grpc_port), Some(grpc)) = (by_grpc, values.named("cluster.grpc-port")) {
            match named {
                Some(peer_port) if peer_port != grpc_port => {
                    self.problems.push(grpc.origin.problem(format_args!(
                        "{grpc_port} is another port than the peer-port {peer_port}; leave it out"
                    )))
                }
                _ => {
                    let text = format!(
                        "{} is read as the port of QUIC links, --peer-port",
                        grpc.origin
                    );
                    self.warn(text);
                }
            }
        }
        let above_gossip = || {
            gossip_port.checked_add(PEER_PORT_ABOVE_GOSSIP).unwrap_or_else(|| {
                self.problems.push(Problem::new(
                    format!("there is no port 10000 above the gossip port {gossip_port} for links; name --peer-port"),
                    false,
                ));
                0
            })
        };
        named.or(by_grpc).unwrap_or_else(above_gossip)
    }

    fn shared(&mut self) -> SharedSettings {
        let values = self.values;
        let mut groups = BTreeMap::new();
        for (group, word) in values.map("mqtt.shared.groups") {
            let choices = GroupStrategy::CHOICES;
            if let Some(nth) = choices.iter().position(|choice| choice.name() == word) {
                groups.insert(group, GroupStrategy::nth(nth));
            } else if let Some(named) = values.named("mqtt.shared.groups") {
                let names = choices.iter().map(Choice::name);
                let names = names.collect::<Vec<_>>().join(", ");
                self.problems.push(named.origin.problem(format_args!(
                    "group {group}: {word:?} is no strategy; expected one of {names}"
                )));
            }
        }
        let strategy = values.choice("mqtt.shared.strategy").unwrap_or_default();
        SharedSettings {
            strategy: GroupStrategy::nth(strategy),
            groups,
        }
    }

    fn limits(&mut self) -> LimitSettings {
        let values = self.values;
        let limit = |name: &str| match values.number(name) {
            None => Limit::Derived,
            Some(0) => Limit::None,
            Some(max) => Limit::Max(max),
        };
        let key = |name: &str| format!("mqtt.limits.{name}");
        let of_limits = limit("mqtt.limits.connections");
        let maximum_clients = "mqtt.options.capabilities.maximum-clients";
        let of_capabilities = limit(maximum_clients);
        let connections = if of_limits == Limit::Derived {
            of_capabilities
        } else {
            of_limits
        };
        if let Some(named) = values.named(maximum_clients)
            && connections != of_capabilities
        {
            self.problems.push(
                named
                    .origin
                    .problem("is the same limit as mqtt.limits.connections, which has another value; leave one out"),
            );
        }
        LimitSettings {
            connections,
            connections_per_ip: values.above_zero(&key("connections-per-ip")),
            connects_per_sec: values.above_zero(&key("connect-rate")),
            connect_timeout: seconds(values, &key("connect-timeout")),
            queue_messages: values.above_zero(&key("queue-messages")),
            queue_bytes: values.above_zero(&key("queue-bytes")),
            queue_full: QueueFull::nth(values.choice(&key("queue-full")).unwrap_or_default()),
            out_buffer_bytes: values.above_zero(&key("out-buffer")),
            publishes_per_sec: values.above_zero(&key("publish-rate")),
            subscriptions: values.above_zero(&key("subscriptions")),
            topic_levels: values.above_zero(&key("topic-levels")).map(to),
            retained_messages: values.above_zero(&key("retained-messages")),
            retained_bytes: values.above_zero(&key("retained-bytes")),
            alias_bytes: values.above_zero(&key("alias-bytes")),
            memory_bytes: limit(&key("memory-max")),
            store_bytes: values.above_zero(&key("store-bytes")),
            drain_timeout: seconds(values, &key("drain-timeout")),
        }
    }

    fn log(&mut self) -> LogSettings {
        let values = self.values;
        let of_format = values
            .choice("log.format")
            .filter(|_| values.named("log.format").is_some());
        let format = of_format.or_else(|| values.choice("log.env"));
        let format = LogFormat::nth(format.unwrap_or_default());
        let files =
            ["log.filename", "log.info-file", "log.error-file"].map(|name| values.path(name));
        let named_a_file = files.iter().any(Option::is_some);
        let output = match values.choice("log.output").map(LogOutput::nth) {
            Some(output) => output,
            None if named_a_file => LogOutput::Both,
            None => LogOutput::Console,
        };
        if output != LogOutput::Console
            && !named_a_file
            && let Some(named) = values.named("log.output")
        {
            self.problems.push(
                named
                    .origin
                    .problem("needs a file; name it with log.filename"),
            );
        }
        let [file, info_file, error_file] =
            files.map(|file| file.filter(|_| output != LogOutput::Console));
        let level = values.level("log.level").unwrap_or(Level::Info);
        LogSettings {
            level: if values.bool("log.enable") {
                level
            } else {
                Level::Off
            },
            format,
            console: output != LogOutput::File,
            file,
            info_file,
            error_file,
            rotation: Rotation {
                size_bytes: values.number("log.maxsize").unwrap_or_default() << 20,
                age_max: values.duration("log.max-age").filter(|age| !age.is_zero()),
                backups_max: values.above_zero("log.max-backups").map(to),
                compress: values.bool("log.compress"),
            },
        }
    }
}

fn capabilities(values: &Values) -> Capabilities {
    let key = |name: &str| format!("mqtt.options.capabilities.{name}");
    let number = |name: &str| values.number(&key(name)).unwrap_or_default();
    let above_zero = |name: &str| values.above_zero(&key(name));
    let bool = |name: &str| values.bool(&key(name));
    let expiry = |name: &str| to::<u32>(seconds(values, &key(name)).as_secs());
    let message_expiry = expiry("maximum-message-expiry-interval");
    Capabilities {
        message_expiry_max_secs: (message_expiry > 0).then_some(message_expiry),
        shortens_retained: message_expiry > 0
            && values
                .named(&key("maximum-message-expiry-interval"))
                .is_some(),
        session_expiry_max_secs: expiry("maximum-session-expiry-interval"),
        writes_pending_max: above_zero("maximum-client-writes-pending").map(to),
        packet_bytes_max: above_zero("maximum-packet-size").map_or(PACKET_BYTES_MAX, to),
        receive_maximum: to(number("receive-maximum")),
        topic_alias_maximum: to(number("topic-alias-maximum")),
        maximum_qos: to(number("maximum-qos")),
        retain_available: bool("retain-available"),
        wildcard_sub_available: bool("wildcard-sub-available"),
        sub_id_available: bool("sub-id-available"),
        shared_sub_available: bool("shared-sub-available"),
        minimum_protocol_version: to(number("minimum-protocol-version")),
        inflight_max: to(number("maximum-inflight")),
        keepalive_max_secs: above_zero("maximum-keepalive").map(to),
    }
}

fn compatibilities(values: &Values) -> Compatibilities {
    let bool =
        |name: &str| values.bool(&format!("mqtt.options.capabilities.compatibilities.{name}"));
    Compatibilities {
        obscure_not_authorized: bool("obscure-not-authorized"),
        passive_client_disconnect: bool("passive-client-disconnect"),
        always_return_response: bool("always-return-response"),
        restore_sys_info_restart: bool("restore-sys-info-restart"),
        no_inherited_properties_on_ack: bool("no-inherited-properties-on-ack"),
    }
}

fn redis(values: &Values) -> RedisSettings {
    RedisSettings {
        address: Secret::new(values.text("redis.options.addr").unwrap_or_default()),
        username: values.text("redis.options.username"),
        password: values.text("redis.options.password").map(Secret::new),
        database: values
            .number("redis.options.db")
            .map(to)
            .unwrap_or_default(),
        prefix: values.text("redis.prefix").unwrap_or_default(),
    }
}

/// A duration that has a default in the table.
fn seconds(values: &Values, name: &str) -> Duration {
    values.duration(name).unwrap_or_default()
}

/// A number whose bounds in the table are those of its type.
fn to<T: TryFrom<u64>>(number: u64) -> T {
    T::try_from(number)
        .ok()
        .expect("the table's bounds are within the type; a test reads each bound")
}

fn socket_with_tls(kind: ListenerKind, address: Address, tls: TlsSettings) -> ListenerSocket {
    match kind {
        ListenerKind::Wss => ListenerSocket::Wss(address, tls),
        ListenerKind::Quic => ListenerSocket::Quic(address, tls),
        _ => ListenerSocket::Tls(address, tls),
    }
}

/// The kind, and a number from the second of a kind on.
fn name_listeners(listeners: &mut [ListenerSettings]) {
    let mut names: Vec<&'static str> = Vec::new();
    for listener in listeners {
        let protocol = listener.socket.protocol();
        names.push(protocol);
        let count = names.iter().filter(|&&name| name == protocol).count();
        listener.id = if count == 1 {
            protocol.to_owned()
        } else {
            format!("{protocol}-{count}")
        };
    }
}

/// Letters, digits, dots, dashes and underscores: it is also the name of a directory.
pub(super) fn is_node_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}
