// SPDX-License-Identifier: Apache-2.0
//! The edge thread: what talks to the outside but not MQTT. Today HTTP, `$SYS` and the service manager's watchdog.
//!
//! It shares nothing with the shards but lanes, so however slow its callers are, no client feels it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use corqtt_cluster::Proposer;
use corqtt_port::lane::Sender;
use corqtt_shards::{Clients, ToShard, listen_alone};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::http::{self, Access, Sources};
use crate::logging::LogHandle;
use crate::notify::Notifier;
use crate::numbers::Node;
use crate::panel::{ANSWER_MAX, Panel, Phase};
use crate::settings::HttpSettings;
use crate::store::StoreNumbers;
use crate::system;

/// How long the end of the thread may take; what it still does then is dropped with the process.
const END_MAX: Duration = Duration::from_secs(2);

/// What the thread is given.
pub(crate) struct Parts {
    pub(crate) inboxes: Vec<Sender<ToShard>>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) sys_topic_interval: Duration,
    pub(crate) http: Option<Http>,
    pub(crate) notifier: Arc<Notifier>,
    pub(crate) log: LogHandle,
    /// Where the process stands when the thread begins.
    pub(crate) phase: Phase,
    /// `None`: a node by itself.
    pub(crate) cluster: Option<Proposer>,
    /// Of the store, if there is one that counts.
    pub(crate) store: Option<Arc<StoreNumbers>>,
}

/// The HTTP interface with its addresses taken.
#[derive(Debug)]
pub(crate) struct Http {
    listeners: Vec<(TcpListener, SocketAddr)>,
    access: Access,
}

impl Http {
    /// Takes the addresses.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub(crate) fn bind(settings: &HttpSettings) -> anyhow::Result<Self> {
        let address = &settings.address;
        let resolved = address
            .resolve()
            .with_context(|| format!("listener http: {address} cannot be resolved"))?;
        let listeners = resolved
            .into_iter()
            .map(|address| {
                let (fd, bound) = listen_alone("http", address).map_err(|error| {
                    anyhow!("{error}; --http=HOST:PORT names one, --http=off does without")
                })?;
                Ok((TcpListener::from(fd), bound))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            listeners,
            access: Access::new(settings),
        })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|(_, address)| *address)
    }

    fn is_loopback(&self) -> bool {
        self.listeners
            .iter()
            .all(|(_, address)| address.ip().is_loopback())
    }
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Edge {
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
    phase: watch::Sender<Phase>,
}

impl Edge {
    /// Starts the thread; when it returns, HTTP answers and `$SYS` can be read.
    ///
    /// # Errors
    /// When the process has no thread or file descriptor left.
    pub(crate) fn start(parts: Parts) -> anyhow::Result<Self> {
        let (phase, phases) = watch::channel(parts.phase);
        let (ready, started) = mpsc::sync_channel(1);
        let (ending, ended) = mpsc::sync_channel(1);
        let attached: Vec<_> = parts
            .http
            .iter()
            .flat_map(|http| http.listeners.iter().map(|(_, address)| *address))
            .collect();
        let is_open = parts.http.as_ref().is_some_and(|http| !http.is_loopback());
        let thread = std::thread::Builder::new()
            .name("edge".to_owned())
            .spawn(move || {
                run(parts, phases, &ready);
                // main may have given up on it
                let _ = ending.send(());
            })
            .context("the edge thread cannot be started")?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("it ended")))
            .context("the edge thread cannot work")?;
        for address in attached {
            log::info!(address:% = address, id = "http", protocol = "http"; "attached listener");
        }
        if is_open {
            log::info!(
                "HTTP answers callers from other machines only at /healthz and /readyz, until there is a login"
            );
        }
        Ok(Self {
            thread,
            ended,
            phase,
        })
    }

    /// Tells the thread that clients may come, on a thread of its own. False: the broker is on its way down already.
    pub(crate) fn serving(&self) -> impl FnOnce() -> bool + Send + 'static {
        let phase = self.phase.clone();
        move || {
            phase.send_if_modified(|phase| {
                let joined = *phase == Phase::Joining;
                if joined {
                    *phase = Phase::Serving;
                }
                joined
            })
        }
    }

    /// Clients are being told goodbye: `/readyz` says so.
    pub(crate) fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        self.phase.send_replace(Phase::Over);
        if self.ended.recv_timeout(END_MAX).is_ok() {
            // a panic of it has ended the process already
            let _ = self.thread.join();
        }
    }
}

fn run(parts: Parts, phases: watch::Receiver<Phase>, ready: &mpsc::SyncSender<io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let mut over = phases.clone();
    let started = runtime.block_on(begin(parts, phases));
    let is_up = started.is_ok();
    // main waits for it
    drop(ready.send(started));
    if is_up {
        // the sender is only dropped with the broker
        let _ = runtime.block_on(over.wait_for(|phase| *phase == Phase::Over));
    }
    // tasks end where they are
    runtime.shutdown_background();
}

/// Spawns everything, once `$SYS` is there.
async fn begin(parts: Parts, phases: watch::Receiver<Phase>) -> io::Result<()> {
    let node = Node::start(parts.clients);
    let panel = Arc::new(Panel::new(parts.inboxes, node, phases)?);
    if system::publish(&panel).await
        && let Err(silent) = panel.settle().await
    {
        log::warn!("$SYS may not be there at once: {silent}");
    }
    tokio::spawn(system::keep_publishing(
        panel.clone(),
        parts.sys_topic_interval,
    ));
    if let Some(within) = parts.notifier.watchdog() {
        tokio::spawn(watch_over(panel.clone(), parts.notifier, within));
    }
    if let Some(Http { listeners, access }) = parts.http {
        let sources = Arc::new(Sources {
            panel,
            log_lines_dropped: Box::new(move || parts.log.lines_dropped()),
            store: parts.store,
            evicted: AtomicU64::new(0),
            cluster: parts.cluster,
        });
        let listeners = listeners
            .into_iter()
            .map(|(listener, _)| {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            })
            .collect::<io::Result<_>>()?;
        let app = http::router(sources.clone(), access);
        tokio::spawn(http::serve(listeners, app, sources));
    }
    Ok(())
}

/// Tells the service manager that all is well as long as every shard answers.
async fn watch_over(panel: Arc<Panel>, notifier: Arc<Notifier>, within: Duration) {
    // twice in the interval, as sd_watchdog_enabled(3) asks, and so that one late answer is no alarm
    let every = (within / 2).saturating_sub(ANSWER_MAX).max(within / 4);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // shards end one by one in a drain, which has a deadline of its own
        match panel.phase() {
            Phase::Joining | Phase::Serving => match panel.snapshot().await {
                Ok(_) => notifier.alive(),
                Err(silent) => {
                    log::error!("the service manager is not told that all is well: {silent}")
                }
            },
            Phase::Draining | Phase::Over => notifier.alive(),
        }
    }
}
