// SPDX-License-Identifier: Apache-2.0
//! Settings: flags over environment over file over defaults, read once at start into plain typed structs.
//!
//! ```text
//! argv ──────────┐
//! CORQTT_* ──────┼─> layers ─> values (one per row of the table) ─> build ─> Settings
//! file (YAML) ───┘                 │                                  │
//!                                  └──> every problem, with its origin ┴─> SettingsError
//! ```
//!
//! `table` is the only place where keys, flags, kinds and defaults are written down.

mod build;
mod choices;
mod document;
mod error;
mod layers;
mod nearest;
mod parts;
mod table;
mod value;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::args::Args;

pub use choices::{
    AuthSource, AuthWay, BridgeWay, GroupStrategy, Leave, LogFormat, MinorityPublish, OutboxFull,
    QueueFull, RaftBootstrap, Runtime, StorageWay, TlsVersion,
};
pub use document::{help, manual, reference};
pub use error::{Problem, SettingsError};
pub use parts::{Part, Parts};
pub use value::{Address, Cidr, Host, Level, Secret};

pub(crate) use nearest::nearest;
pub(crate) use value::read_bool;

/// Everything that the broker was told, checked, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Unique in a cluster; the host name unless named.
    pub node_name: String,
    /// None: one per CPU of `cpus`; without these, one per CPU that the process may use, less one in cluster mode.
    pub shards: Option<NonZeroUsize>,
    /// CPUs to pin shards to, in this order and without repeats; None: as the affinity allows.
    pub cpus: Option<Vec<usize>>,
    pub runtime: Runtime,
    pub leave: Leave,
    pub listeners: Vec<ListenerSettings>,
    /// None: off.
    pub http: Option<HttpSettings>,
    pub shared: SharedSettings,
    pub limits: LimitSettings,
    pub capabilities: Capabilities,
    pub compatibilities: Compatibilities,
    pub sys_topic_interval: Duration,
    /// Hints in bytes; None: as needed.
    pub client_read_buffer_bytes: Option<u64>,
    pub client_write_buffer_bytes: Option<u64>,
    pub storage: StorageSettings,
    pub auth: AuthSettings,
    pub redis: RedisSettings,
    /// None: no bridge.
    pub bridge: Option<BridgeSettings>,
    /// None: a single node.
    pub cluster: Option<ClusterSettings>,
    /// None: off.
    pub dashboard: Option<DashboardSettings>,
    pub log: LogSettings,
    /// What an operator should read once logging is up.
    pub notices: Vec<Notice>,
    /// What is on by default but not in this build.
    pub missing: Vec<Missing>,
    /// What was named anywhere, in the order of the table, secrets masked.
    pub named: Vec<NamedSetting>,
}

/// One socket that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// Its kind, and a number from the second of a kind on: `tcp`, `tcp-2`.
    pub id: String,
    pub socket: ListenerSocket,
    /// Whether the operator asked for it; the default one listens on loopback while clients are anonymous.
    pub is_named: bool,
    /// Load balancers whose PROXY header is believed.
    pub proxy_protocol_from: Vec<Cidr>,
    pub connections_max: Option<u64>,
    /// None: as everywhere.
    pub auth: Option<AuthWay>,
    pub allowed_origins: Vec<String>,
}

/// What a listener speaks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerSocket {
    Tcp(Address),
    Tls(Address, TlsSettings),
    Ws(Address),
    Wss(Address, TlsSettings),
    Unix(PathBuf),
    Quic(Address, TlsSettings),
}

/// Each of these listeners that cannot have its address beside an earlier one, as a sentence.
pub(crate) fn shared_addresses(listeners: &[(&str, Address)]) -> Vec<String> {
    let shared = listeners.iter().enumerate().filter_map(|(at, (id, address))| {
        // of one listener, a name may stand for the addresses of both families
        let mut before = listeners[..at].iter();
        let (other, taken) =
            before.find(|(other, taken)| other != id && taken.overlaps(address))?;
        Some(format!(
            "listener {id} ({address}) and listener {other} ({taken}) have one address; give one of them another port"
        ))
    });
    shared.collect()
}

impl ListenerSocket {
    /// Where TCP is taken.
    #[must_use]
    pub fn tcp_address(&self) -> Option<&Address> {
        match self {
            Self::Tcp(address)
            | Self::Ws(address)
            | Self::Tls(address, _)
            | Self::Wss(address, _) => Some(address),
            Self::Unix(_) | Self::Quic(..) => None,
        }
    }

    /// The word for it in settings and log lines.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Tls(..) => "tls",
            Self::Ws(_) => "ws",
            Self::Wss(..) => "wss",
            Self::Unix(_) => "unix",
            Self::Quic(..) => "quic",
        }
    }

    /// Where it binds, as it is written in settings.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(address) | Self::Ws(address) => address.to_string(),
            Self::Tls(address, _) | Self::Wss(address, _) | Self::Quic(address, _) => {
                address.to_string()
            }
            Self::Unix(path) => path.display().to_string(),
        }
    }
}

/// Certificates of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// When there, clients must show a certificate of this CA.
    pub ca_cert: Option<PathBuf>,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
    pub min_version: TlsVersion,
    pub crl: Option<PathBuf>,
    /// QUIC only.
    pub zero_rtt: bool,
}

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    pub address: Address,
    pub is_named: bool,
}

/// A limit whose default is worked out from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// From the machine, as the field says.
    Derived,
    None,
    Max(u64),
}

/// How shared groups choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// Of those that are not named.
    pub strategy: GroupStrategy,
    /// By name.
    pub groups: BTreeMap<String, GroupStrategy>,
}

/// Limits of the whole node and of each client; None is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// Derived: RLIMIT_NOFILE less 512.
    pub connections: Limit,
    pub connections_per_ip: Option<u64>,
    pub connects_per_sec: Option<u64>,
    pub connect_timeout: Duration,
    pub queue_messages: Option<u64>,
    pub queue_bytes: Option<u64>,
    pub queue_full: QueueFull,
    pub out_buffer_bytes: Option<u64>,
    pub publishes_per_sec: Option<u64>,
    pub subscriptions: Option<u64>,
    pub topic_levels: Option<u16>,
    pub retained_messages: Option<u64>,
    pub retained_bytes: Option<u64>,
    pub alias_bytes: Option<u64>,
    /// Derived: half of the machine's or the cgroup's memory.
    pub memory_bytes: Limit,
    pub store_bytes: Option<u64>,
    pub drain_timeout: Duration,
}

/// What clients may use; MQTT 5 clients are told in CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub message_expiry_max_secs: Option<u32>,
    /// Whether that also holds for retained messages: only when it was named.
    pub shortens_retained: bool,
    /// `u32::MAX`: sessions may last for ever.
    pub session_expiry_max_secs: u32,
    pub writes_pending_max: Option<u32>,
    pub packet_bytes_max: u32,
    pub receive_maximum: u16,
    pub topic_alias_maximum: u16,
    pub maximum_qos: u8,
    pub retain_available: bool,
    pub wildcard_sub_available: bool,
    pub sub_id_available: bool,
    pub shared_sub_available: bool,
    /// Protocol level: 3, 4 or 5.
    pub minimum_protocol_version: u8,
    pub inflight_max: u16,
    pub keepalive_max_secs: Option<u16>,
}

/// Deviations that some clients need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compatibilities {
    pub obscure_not_authorized: bool,
    pub passive_client_disconnect: bool,
    pub always_return_response: bool,
    pub restore_sys_info_restart: bool,
    pub no_inherited_properties_on_ack: bool,
}

/// Where sessions and messages are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageSettings {
    pub way: StorageWay,
    /// Of an embedded store.
    pub path: PathBuf,
    pub sync: StorageSync,
}

/// When an embedded store is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageSync {
    Always,
    Every(Duration),
    Never,
}

/// Who may connect, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthSettings {
    pub way: AuthWay,
    pub source: AuthSource,
    /// Settings of the source.
    pub source_file: Option<PathBuf>,
    pub blacklist_file: Option<PathBuf>,
}

/// How redis is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// `HOST:PORT`, or a URL, which may hold a password.
    pub address: Secret,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub database: u16,
    pub prefix: String,
}

/// The bridge for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSettings {
    pub way: BridgeWay,
    pub file: PathBuf,
}

/// This node in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    pub bind_ip: IpAddr,
    pub advertise_ip: IpAddr,
    pub gossip_port: u16,
    pub advertise_port: u16,
    pub raft_port: u16,
    pub peer_port: u16,
    pub members: Vec<Address>,
    pub raft_dir: PathBuf,
    pub raft_bootstrap: RaftBootstrap,
    pub raft_log_level: Level,
    /// None: links on loopback only.
    pub secret_file: Option<PathBuf>,
    pub server_reference: Option<Address>,
    pub dead_node_timeout: Duration,
    /// None: never.
    pub node_forget_timeout: Option<Duration>,
    pub lease: Duration,
    pub fence_timeout: Duration,
    pub link_stall: Duration,
    pub holder_timeout: Duration,
    pub outbox_bytes: u64,
    pub outbox_full: OutboxFull,
    pub minority_publish: MinorityPublish,
    pub minority_start: bool,
    pub will_row_bytes_max: u64,
    pub queue_depth: u64,
    pub tags: BTreeMap<String, String>,
}

/// The dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DashboardSettings {
    pub secret_file: Option<PathBuf>,
    pub users_file: Option<PathBuf>,
}

/// What is logged, in which form, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub level: Level,
    pub format: LogFormat,
    pub console: bool,
    /// Every line.
    pub file: Option<PathBuf>,
    /// Lines below error.
    pub info_file: Option<PathBuf>,
    /// Errors.
    pub error_file: Option<PathBuf>,
    pub rotation: Rotation,
}

/// When a log file is rotated, and what becomes of it then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub size_bytes: u64,
    pub age_max: Option<Duration>,
    pub backups_max: Option<usize>,
    pub compress: bool,
}

/// A line for the operator about the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub level: log::Level,
    pub text: String,
}

/// Something that would be on by default, if this build had the part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub part: Part,
    /// What is so instead, as a sentence.
    pub text: String,
}

/// A setting that was named, for showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSetting {
    /// Its key in the file, or the flag of what has none.
    pub name: String,
    pub value: String,
    /// Where it was written: `--tcp`, `CORQTT_TCP` or `corqtt.yml:12`.
    pub origin: String,
}

impl Settings {
    /// Reads every source for this build: these flags, these environment variables, the file that they name.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once.
    pub fn load(
        args: &Args,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let environment = layers::corqtt_variables(environment, &mut problems);
        let file = layers::read_file(args, &environment, &mut problems);
        let sources = layers::Sources {
            flags: &args.flags,
            environment: &environment,
            file: file.as_ref(),
        };
        sources.settings(Parts::BUILT, &host_name(), problems)
    }

    /// What the listener of this name speaks.
    #[must_use]
    pub fn protocol_of(&self, listener: &str) -> &'static str {
        let found = self.listeners.iter().find(|each| each.id == listener);
        found.map_or("tcp", |listener| listener.socket.protocol())
    }

    /// Logs what an operator should read about these settings; to be called once, when logging is up.
    pub fn log_notices(&self) {
        for missing in &self.missing {
            log::info!(
                "{}: {} is not in this build",
                missing.text,
                missing.part.name()
            );
        }
        for notice in &self.notices {
            log::log!(notice.level, "{}", notice.text);
        }
    }
}

/// The kernel's host name, if a node can be called so.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if build::is_node_name(name) {
        name.to_owned()
    } else {
        "corqtt".to_owned()
    }
}

/// Every flag, the ones that act at once too.
pub(crate) fn flags() -> impl Iterator<Item = &'static str> {
    let settings = table::ROWS.iter().filter_map(|row| row.flag);
    settings.chain(table::ACTIONS.iter().map(|&(name, _)| name))
}

/// Whether this flag acts at once and is no setting.
pub(crate) fn is_action(flag: &str) -> bool {
    table::ACTIONS.iter().any(|&(name, _)| name == flag)
}

/// Whether this flag may stand without a value; None for an unknown flag.
pub(crate) fn flag_is_switch(flag: &str) -> Option<bool> {
    table::place_of_flag(flag).map(|place| table::ROWS[place].is_switch())
}

/// Whether a word after a switch can only be its value.
pub(crate) fn is_switch_value(word: &str) -> bool {
    read_bool(word).is_some() || word == "force"
}

/// The flag of a field of the parser's struct.
pub(crate) fn flag_of_field(field: &str) -> &'static str {
    table::ROWS
        .iter()
        .filter_map(|row| row.flag)
        .find(|flag| flag.len() == field.len() && flag.replace('-', "_") == field)
        .expect("a test compares the parser's fields with the table")
}
