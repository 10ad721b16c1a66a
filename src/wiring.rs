// SPDX-License-Identifier: Apache-2.0
//! Builds the parts from the settings, connects them, and takes them down again.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use corqtt_codec::{QoS, Version};
use corqtt_port::auth::{Anonymous, Auth};
use corqtt_port::lane::{self, Sender};
use corqtt_port::store::{Answer, Memory, Store};
use corqtt_shards::{
    Admission, Bound, Capabilities, Certificates, Clients, Compatibilities, Config, DrainStep,
    Driven, Limits, Listener, NameHasher, Network, Ports, Restored, Runtime, Starting, ToShard,
    bind, bind_unix, glommio_available, start,
};
use corqtt_topics::{ShardId, Strategy};
use corqtt_transport::websocket::Origins;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CpuSet;

use crate::cluster::{self, Cluster, Lanes};
use crate::edge::{self, Edge, Http};
use crate::logging::LogHandle;
use crate::notify::{Notifier, SERVING};
use crate::panel::Phase;
use crate::random;
use crate::reload::Outcome;
use crate::settings::{
    self, Address, Limit, LimitSettings, ListenerSettings, ListenerSocket, Settings, TlsSettings,
};
use crate::store::{self, Keeper, Opened};
use crate::tls;

/// File descriptors that are not for connections.
const RESERVED_DESCRIPTORS: u64 = 512;
/// A limit of open files that leaves room for fewer connections was hardly meant.
const CONNECTIONS_FEW: usize = 500;
/// Shards that sets of shards have room for.
const SHARDS_MAX: usize = 64;

/// What the shards ask their questions of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edges {
    /// What the settings say.
    Real,
    /// Doubles that answer late and in random order.
    #[cfg(feature = "doubles")]
    Doubles {
        /// Repeats a run.
        seed: u64,
    },
}

/// The running broker.
#[derive(Debug)]
pub struct Broker {
    shards: Vec<Driven>,
    inboxes: Vec<Sender<ToShard>>,
    certificates: Vec<Shown>,
    edge: Edge,
    /// `None`: sessions end with the process.
    keeper: Option<Keeper>,
    /// `None`: a node by itself.
    cluster: Option<Cluster>,
}

/// The certificates that a listener shows, and where they come from.
#[derive(Debug)]
struct Shown {
    /// Of the listener.
    id: String,
    files: TlsSettings,
    certificates: Arc<Certificates>,
}

impl Broker {
    /// Starts everything; clients can connect when it returns, or, in a cluster, when this node is in it.
    ///
    /// # Errors
    /// When an address is taken, a CPU cannot be had, or the process runs out of something.
    pub fn start(
        settings: &Settings,
        edges: Edges,
        notifier: &Arc<Notifier>,
        log: &LogHandle,
    ) -> anyhow::Result<Self> {
        let mut certificates = Vec::new();
        // a second broker is told of the address that is taken before it makes or opens anything
        let mut config = config(settings, &mut certificates)?;
        let http = settings.http.as_ref().map(Http::bind).transpose()?;
        distinct(&config.listeners, http.as_ref())?;
        let opened = edges.open(settings)?;
        if let Some(opened) = &opened {
            config.hash_seed = opened.hash_seed;
            config.stamp_base = opened.stamp_base();
            config.start = opened.start;
        }
        let config = Arc::new(config);
        let (mut inboxes, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..config.shards {
            let (sender, receiver) =
                lane::polled().context("no file descriptor for a shard's inbox")?;
            inboxes.push(sender);
            receivers.push(receiver);
        }
        let admission = Arc::new(Admission::new(&config));
        let clients = Arc::new(Clients::default());
        let (keeper, mut restored) = match opened {
            Some(opened) => {
                let (keeper, restored) = keep(opened, &config, &inboxes)?;
                (Some(keeper), restored.into_iter().map(Some).collect())
            }
            None => (None, Vec::new()),
        };
        // in a cluster nobody listens before this node is in it
        restored.resize_with(inboxes.len(), || settings.cluster.is_some().then(nothing));
        let lanes = settings.cluster.is_some().then(Lanes::new).transpose()?;
        let to_others = lanes.iter().flat_map(|lanes| lanes.senders.clone());
        let to_others: Vec<_> = to_others.collect();
        let claims = lanes.as_ref().map(|lanes| lanes.claims.clone());
        let lease = lanes.as_ref().map(|lanes| lanes.lease.clone());
        let mut starting = Vec::new();
        let parts = (0..config.shards).zip(receivers).zip(restored);
        for ((number, inbox), restored) in parts {
            let (auth, mut store, mut marks) = edges.ports(number, &inboxes);
            marks.extend(to_others.iter().cloned());
            if let Some(keeper) = &keeper {
                store = keeper.store(number);
            }
            let lanes_of = inboxes.iter().chain(&to_others).cloned();
            let ports = Ports {
                auth,
                store,
                claims: claims.clone(),
                lease: lease.clone(),
                events: None,
                inbox,
                shards: lanes_of.collect(),
                marks,
                admission: admission.clone(),
                clients: clients.clone(),
                restored,
            };
            starting.push(start(ShardId(number), &config, ports)?);
        }
        let shards = starting
            .into_iter()
            .map(Starting::wait)
            .collect::<Result<Vec<_>, _>>()?;
        let (joined, joining) = mpsc::channel();
        let cluster = match (&settings.cluster, lanes) {
            (Some(of), Some(lanes)) => {
                let name = &settings.node_name;
                let node = cluster::Node {
                    name,
                    inboxes: inboxes.clone(),
                    owner: Box::new(owner(&config)),
                    connect_timeout: settings.limits.connect_timeout,
                };
                Some(Cluster::start(of, node, lanes, joined)?)
            }
            _ => None,
        };
        if cluster.is_none() && keeper.is_some() {
            open_to_clients(&inboxes);
        }
        let attached = config.listeners.iter().map(|listener| {
            let protocol = settings.protocol_of(&listener.id);
            (listener.id.clone(), listener.bound.place.clone(), protocol)
        });
        let attached: Vec<_> = attached.collect();
        let tell = move |notifier: &Notifier| {
            for (id, place, protocol) in &attached {
                log::info!(address:% = place, id = id, protocol = *protocol; "attached listener");
            }
            log::info!("server started");
            notifier.ready(SERVING);
        };
        let edge = Edge::start(edge::Parts {
            inboxes: inboxes.clone(),
            clients,
            sys_topic_interval: settings.sys_topic_interval,
            http,
            notifier: notifier.clone(),
            log: log.clone(),
            cluster: cluster.as_ref().map(Cluster::proposer),
            phase: match &cluster {
                Some(_) => Phase::Joining,
                None => Phase::Serving,
            },
            store: keeper.as_ref().map(Keeper::numbers),
        })?;
        if cluster.is_some() {
            let (inboxes, notifier) = (inboxes.clone(), notifier.clone());
            let serving = edge.serving();
            let open = move || {
                // else it never will be in it, or stops before
                if joining.recv().is_ok() {
                    open_to_clients(&inboxes);
                    if serving() {
                        tell(&notifier);
                    }
                }
            };
            std::thread::Builder::new()
                .name("opening".to_owned())
                .spawn(open)
                .context("no thread to wait for the cluster")?;
        } else {
            tell(notifier);
        }
        Ok(Self {
            shards,
            inboxes,
            certificates,
            edge,
            keeper,
            cluster,
        })
    }

    /// Reads every file again that may change under a running broker. What cannot be used changes nothing, and nobody is
    /// disconnected.
    #[must_use]
    pub fn reload(&self) -> Vec<Outcome> {
        let certificates = self.certificates.iter().map(|shown| {
            let (what, of) = ("certificates", shown.id.as_str());
            match tls::terms(&shown.files, Some(&shown.certificates.current())) {
                Ok(terms) => {
                    shown.certificates.exchange(Arc::new(terms));
                    Outcome::taken_over(what, of)
                }
                Err(error) => Outcome::kept(what, of, format!("{error:#}")),
            }
        });
        certificates.collect()
    }

    /// Takes the broker down: wills first, then goodbyes.
    ///
    /// # Errors
    /// In words, what was wrong with its end: `timeout` passed before every connection was closed, say.
    pub fn drain(self, timeout: Duration) -> Result<(), &'static str> {
        let deadline = Instant::now() + timeout;
        self.edge.drain();
        for step in [DrainStep::Wills, DrainStep::Close] {
            if !self.step(step, deadline) {
                return Err("at drain-timeout with connections left");
            }
        }
        self.edge.stop();
        let ended = self.shards.into_iter().all(|shard| shard.join().is_ok());
        let was_out = self.cluster.is_some_and(|cluster| !cluster.stop());
        if let Some(keeper) = self.keeper {
            keeper.stop();
        }
        if was_out {
            Err("because it is not in its cluster")
        } else if !ended {
            Err("after a shard had failed")
        } else {
            Ok(())
        }
    }

    fn step(&self, step: DrainStep, deadline: Instant) -> bool {
        ask_all(&self.inboxes, Some(deadline), |reply| {
            ToShard::Drain(step, reply)
        })
    }
}

/// Asks every shard and waits for all answers; false if the deadline passed first.
fn ask_all(
    inboxes: &[Sender<ToShard>],
    deadline: Option<Instant>,
    ask: impl Fn(Sender<ShardId>) -> ToShard,
) -> bool {
    let (reply, replies) = lane::blocking();
    for inbox in inboxes {
        inbox.push(ask(reply.clone()));
    }
    let mut done = BTreeSet::new();
    let mut batch = Vec::new();
    while done.len() < inboxes.len() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        replies.wait(&mut batch, left);
        done.extend(batch.drain(..).map(|shard: ShardId| shard.0));
    }
    true
}

/// What comes back to a shard that has no store.
fn nothing() -> Restored {
    let (_, nothing) = mpsc::channel();
    nothing
}

/// When every shard knows what the sessions of all others want, clients may come.
fn open_to_clients(inboxes: &[Sender<ToShard>]) {
    ask_all(inboxes, None, ToShard::Restored);
    ask_all(inboxes, None, ToShard::Listen);
}

/// Which shard a client id or topic belongs to.
fn owner(config: &Config) -> impl Fn(&str) -> usize + Send + Sync + 'static {
    let hasher = NameHasher::new(config.hash_seed);
    let shards = u64::from(config.shards);
    move |name: &str| (hasher.hash(name) % shards) as usize
}

/// Starts the store's thread; what each shard takes its sessions from.
fn keep(
    opened: Opened,
    config: &Config,
    inboxes: &[Sender<ToShard>],
) -> anyhow::Result<(Keeper, Vec<Restored>)> {
    let (to_shards, restored) = store::channels(config.shards);
    let owner = owner(config);
    let tell = inboxes.iter().map(|inbox| {
        let inbox = inbox.clone();
        Box::new(move |answer: Answer| inbox.push(ToShard::Store(answer))) as _
    });
    let keeper = opened.start(to_shards, owner, tell.collect())?;
    Ok((keeper, restored))
}

type Answering = (Box<dyn Auth>, Box<dyn Store>, Vec<Sender<ToShard>>);

impl Edges {
    /// The store that the settings name; `None`: memory, or a double.
    fn open(self, settings: &Settings) -> anyhow::Result<Option<Opened>> {
        match self {
            Self::Real => store::open(settings, settings.limits.store_bytes.unwrap_or(0)),
            #[cfg(feature = "doubles")]
            Self::Doubles { .. } => Ok(None),
        }
    }

    /// A shard's authority, its store, and its ways to send marks.
    #[cfg_attr(
        not(feature = "doubles"),
        expect(unused_variables, reason = "only doubles need to know the shard")
    )]
    fn ports(self, shard: u8, inboxes: &[Sender<ToShard>]) -> Answering {
        match self {
            Self::Real => (Box::new(Anonymous), Box::new(Memory), inboxes.to_vec()),
            #[cfg(feature = "doubles")]
            Self::Doubles { seed } => {
                use corqtt_port::doubles::{LateAuth, LateStore, delaying};
                let seed = seed.wrapping_mul(1000) + u64::from(shard) * 100;
                let own = &inboxes[usize::from(shard)];
                let auth = LateAuth::new(delaying(own.clone(), seed, false), ToShard::Auth);
                let store = LateStore::new(delaying(own.clone(), seed + 1, false), ToShard::Store);
                let marks = (2..)
                    .zip(inboxes)
                    .map(|(n, inbox)| delaying(inbox.clone(), seed + n, true))
                    .collect();
                (Box::new(auth), Box::new(store), marks)
            }
        }
    }
}

/// The kernel lets one process bind an address twice, and would then deal out what connects to it. The settings were
/// compared by their texts; here names are resolved.
fn distinct(listeners: &[Listener], http: Option<&Http>) -> anyhow::Result<()> {
    let of_clients = listeners.iter();
    let of_clients = of_clients.filter_map(|of| Some((of.id.as_str(), of.bound.ip()?.into())));
    let of_http = http.into_iter().flat_map(Http::addresses);
    let of_http = of_http.map(|address| ("http", address.into()));
    let all: Vec<(&str, Address)> = of_clients.chain(of_http).collect();
    match settings::shared_addresses(&all).into_iter().next() {
        Some(text) => Err(anyhow::Error::msg(text)),
        None => Ok(()),
    }
}

/// Opens a listener's addresses; a name may stand for several.
fn listen(
    listener: &ListenerSettings,
    certificates: &mut Vec<Shown>,
) -> anyhow::Result<Vec<Listener>> {
    let id = &listener.id;
    let bound: Vec<Bound> = match &listener.socket {
        ListenerSocket::Tcp(address)
        | ListenerSocket::Ws(address)
        | ListenerSocket::Tls(address, _)
        | ListenerSocket::Wss(address, _) => {
            let resolved = address
                .resolve()
                .with_context(|| format!("listener {id}: {address} cannot be resolved"))?;
            let bound = resolved.into_iter().map(|address| bind(id, address));
            bound.collect::<Result<_, _>>()?
        }
        ListenerSocket::Unix(path) => vec![bind_unix(id, path)?],
        // the settings have refused it
        ListenerSocket::Quic(..) => Vec::new(),
    };
    let shown = match &listener.socket {
        ListenerSocket::Tls(_, files) | ListenerSocket::Wss(_, files) => {
            let terms = tls::terms(files, None).with_context(|| format!("listener {id}"))?;
            let shown = Arc::new(Certificates::new(Arc::new(terms)));
            certificates.push(Shown {
                id: id.clone(),
                files: files.clone(),
                certificates: shown.clone(),
            });
            Some(shown)
        }
        _ => None,
    };
    let is_websocket = matches!(
        listener.socket,
        ListenerSocket::Ws(_) | ListenerSocket::Wss(..)
    );
    let proxies: Vec<_> = listener
        .proxy_protocol_from
        .iter()
        .map(|range| Network {
            address: range.network,
            prefix_bits: range.prefix_bits,
        })
        .collect();
    let listeners = bound.into_iter().map(|bound| {
        let is_loopback = bound.ip().is_none_or(|address| address.ip().is_loopback());
        let allowed = listener.allowed_origins.iter().map(String::as_str);
        let origins = Origins::new(allowed, is_loopback)
            .with_context(|| format!("listener {id}: allowed-origins"))?;
        Ok(Listener {
            id: id.clone(),
            bound: Arc::new(bound),
            proxies: proxies.clone(),
            certificates: shown.clone(),
            origins: is_websocket.then(|| Arc::new(origins)),
            connections_max: listener.connections_max.map_or(0, size),
        })
    });
    listeners.collect()
}

/// What holds without a store: each start has a seed of its own.
fn config(settings: &Settings, certificates: &mut Vec<Shown>) -> anyhow::Result<Config> {
    let descriptors = raise_descriptors();
    let (shards, cpus) = placement(settings)?;
    let mut listeners = Vec::new();
    for listener in &settings.listeners {
        listeners.extend(listen(listener, certificates)?);
    }
    Ok(Config {
        shards,
        nodes: match settings.cluster {
            Some(_) => cluster::NODES_MAX,
            None => 0,
        },
        runtime: runtime(settings)?,
        cpus,
        listeners,
        capabilities: capabilities(&settings.capabilities),
        compatibilities: Compatibilities {
            obscure_not_authorized: settings.compatibilities.obscure_not_authorized,
        },
        session: session_limits(settings),
        limits: limits(&settings.limits, descriptors),
        strategy: strategy(settings.shared.strategy),
        group_strategies: settings
            .shared
            .groups
            .iter()
            .map(|(group, of)| (group.clone(), strategy(*of)))
            .collect(),
        hash_seed: random::draw()?,
        stamp_base: 0,
        start: 0,
    })
}

const fn strategy(of: settings::GroupStrategy) -> Strategy {
    match of {
        settings::GroupStrategy::RoundRobin => Strategy::RoundRobin,
        settings::GroupStrategy::Random => Strategy::Random,
        settings::GroupStrategy::Sticky => Strategy::Sticky,
        settings::GroupStrategy::HashClient => Strategy::HashClient,
        settings::GroupStrategy::HashTopic => Strategy::HashTopic,
        settings::GroupStrategy::LocalFirst => Strategy::LocalFirst,
    }
}

/// Raises the soft limit of file descriptors to the hard one; returns what holds then.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(errno) => {
            log::warn!(error:% = errno; "the limit of file descriptors cannot be raised");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

/// How many shards, and a CPU for each (none: not pinned).
fn placement(settings: &Settings) -> anyhow::Result<(u8, Vec<usize>)> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let (most, other_threads) = match settings.cluster {
        Some(_) => (SHARDS_MAX - 1 - usize::from(cluster::NODES_MAX), 1),
        None => (SHARDS_MAX, 0),
    };
    let shards = match (&settings.shards, &settings.cpus) {
        (Some(shards), _) => shards.get(),
        (None, Some(cpus)) => cpus.len().min(most),
        (None, None) => available.saturating_sub(other_threads).max(1).min(most),
    };
    anyhow::ensure!(
        shards <= most,
        "--shards: {shards} are more than the {most} that a node may have"
    );
    let shards = u8::try_from(shards).unwrap_or(u8::MAX);
    let cpus = match &settings.cpus {
        Some(cpus) => {
            if let Some(cpu) = unusable(cpus) {
                let allowed = allowed_cpus()?;
                anyhow::bail!(
                    "--cpus: this process may not run on CPU {cpu}; now it runs on {allowed:?}"
                );
            }
            (0..usize::from(shards))
                .map(|shard| cpus[shard % cpus.len()])
                .collect()
        }
        None if available <= 2 => {
            log::info!(cpus = available, shards = shards; "shards are not pinned on one or two CPUs; --cpus=LIST pins them");
            Vec::new()
        }
        None => {
            let allowed = allowed_cpus()?;
            if allowed.len() < usize::from(shards) {
                log::info!(cpus = allowed.len(), shards = shards; "more shards than CPUs: shards are not pinned");
                Vec::new()
            } else {
                allowed.into_iter().take(usize::from(shards)).collect()
            }
        }
    };
    Ok((shards, cpus))
}

fn allowed_cpus() -> anyhow::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)
        .context("the CPUs of this process are not known")?;
    let all = 0..CpuSet::MAX_CPU;
    Ok(all.filter(|cpu| set.is_set(*cpu)).collect())
}

/// The first of them that this process cannot run on. Tried on a thread of its own: the CPUs that the process was started
/// on are not all that it may have.
fn unusable(cpus: &[usize]) -> Option<usize> {
    let may_run_on = |cpu: usize| {
        let mut set = CpuSet::new();
        cpu < CpuSet::MAX_CPU && {
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).is_ok()
        }
    };
    let find = || cpus.iter().copied().find(|cpu| !may_run_on(*cpu));
    std::thread::scope(|scope| scope.spawn(find).join()).unwrap_or_else(|_| cpus.first().copied())
}

/// What the settings ask of this machine that it does not have: CPUs, io_uring.
#[must_use]
pub fn missing_here(settings: &Settings) -> Vec<anyhow::Error> {
    let checks = [placement(settings).err(), runtime(settings).err()];
    checks.into_iter().flatten().collect()
}

fn runtime(settings: &Settings) -> anyhow::Result<Runtime> {
    match settings.runtime {
        settings::Runtime::Epoll => Ok(Runtime::Epoll),
        settings::Runtime::Glommio => {
            glommio_available().map_err(anyhow::Error::msg).context(
                "--runtime=glommio cannot run here; allow io_uring and raise the memlock limit to 512 KiB, or use --runtime=epoll",
            )?;
            Ok(Runtime::Glommio)
        }
        settings::Runtime::Auto => Ok(match glommio_available() {
            Ok(()) => Runtime::Glommio,
            Err(cause) => {
                log::warn!(cause = cause; "io_uring is not available: shards wait in epoll (--runtime=epoll)");
                Runtime::Epoll
            }
        }),
    }
}

fn capabilities(from: &settings::Capabilities) -> Capabilities {
    Capabilities {
        message_expiry_max_secs: from.message_expiry_max_secs.unwrap_or(0),
        session_expiry_max_secs: from.session_expiry_max_secs,
        packet_bytes_max: from.packet_bytes_max,
        maximum_qos: QoS::from_bits(from.maximum_qos).unwrap_or(QoS::ExactlyOnce),
        retain: from.retain_available,
        wildcards: from.wildcard_sub_available,
        subscription_ids: from.sub_id_available,
        shared: from.shared_sub_available,
        minimum_version: match from.minimum_protocol_version {
            5 => Version::V5,
            4 => Version::V311,
            _ => Version::V31,
        },
        keep_alive_max_secs: from.keepalive_max_secs.unwrap_or(0),
    }
}

/// A limit that this machine cannot count to is none.
fn size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn limits(from: &LimitSettings, descriptors: u64) -> Limits {
    let possible = size(descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(1));
    let connections_max = match from.connections {
        Limit::Derived => possible,
        Limit::None => 0,
        Limit::Max(maximum) => size(maximum),
    };
    if possible < CONNECTIONS_FEW {
        log::warn!(descriptors = descriptors, connections = possible; "the limit of open files leaves room for few connections; raise it (ulimit -n, LimitNOFILE)");
    }
    let per_ip = from.connections_per_ip.unwrap_or(0);
    Limits {
        connections_max,
        connections_per_ip_max: u32::try_from(per_ip).unwrap_or(u32::MAX),
        connects_per_sec: from.connects_per_sec.unwrap_or(0),
        connect_timeout: from.connect_timeout,
        publishes_per_sec: from.publishes_per_sec.unwrap_or(0),
        subscriptions_max: from.subscriptions.map_or(0, size),
        retained_messages_max: from.retained_messages.unwrap_or(0),
        retained_bytes_max: from.retained_bytes.unwrap_or(0),
        memory_bytes_max: match from.memory_bytes {
            Limit::Derived => crate::memory::available() / 2,
            Limit::None => 0,
            Limit::Max(maximum) => maximum,
        },
        topic_levels_max: from.topic_levels.map_or(0, usize::from),
    }
}

fn session_limits(settings: &Settings) -> corqtt_session::Limits {
    let (limits, capabilities) = (&settings.limits, &settings.capabilities);
    let size = |limit: Option<u64>| limit.map_or(usize::MAX, size);
    corqtt_session::Limits {
        inflight_max: capabilities.inflight_max,
        queue_messages_max: limits
            .queue_messages
            .map_or(0, |_| size(limits.queue_messages)),
        queue_bytes_max: limits.queue_bytes.map_or(0, |_| size(limits.queue_bytes)),
        queue_full: match limits.queue_full {
            settings::QueueFull::DropOldest => corqtt_session::QueueFull::DropOldest,
            settings::QueueFull::DropNew => corqtt_session::QueueFull::DropNew,
            settings::QueueFull::Reject => corqtt_session::QueueFull::Reject,
            settings::QueueFull::Disconnect => corqtt_session::QueueFull::Disconnect,
        },
        out_buffer_bytes_max: size(limits.out_buffer_bytes),
        writes_pending_max: size(capabilities.writes_pending_max.map(u64::from)),
        receive_maximum: capabilities.receive_maximum,
        topic_alias_maximum: capabilities.topic_alias_maximum,
        alias_bytes_max: size(limits.alias_bytes),
        memory_full: false,
    }
}
