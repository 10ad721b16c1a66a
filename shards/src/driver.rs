// SPDX-License-Identifier: Apache-2.0
//! What waits for a shard's work: a glommio executor, or a plain thread. The only place that knows glommio.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use corqtt_topics::ShardId;
use glommio::io::PollableFd;
use glommio::{LocalExecutorBuilder, Placement};

use crate::config::{Config, Runtime};
use crate::shard::{Ports, Shard};

/// Registered buffers of an executor (bytes): the shard does its own I/O, and the default is 10 MiB.
const EXECUTOR_MEMORY_BYTES: usize = 64 * 1024;
const RING_DEPTH: usize = 128;
const NO_WAIT: Duration = Duration::ZERO;
/// The first part of a wait is in `epoll_wait`, and only what is longer is the executor's: its park and wake cost the CPU
/// of ten such waits, and under load something comes sooner.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// An executor looks at its timers at least this often while it has nothing else to do.
const TICK: Duration = Duration::from_millis(250);

/// A shard could not be started.
#[derive(Debug)]
pub struct StartError {
    /// Which one.
    pub shard: u8,
    /// Why.
    pub cause: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} cannot start: {}", self.shard, self.cause)
    }
}

impl std::error::Error for StartError {}

/// A shard whose thread was started.
#[derive(Debug)]
pub struct Starting {
    shard: u8,
    thread: JoinHandle<()>,
    started: mpsc::Receiver<Result<(), String>>,
}

impl Starting {
    /// Waits until the shard listens, or has taken back what its store kept.
    ///
    /// # Errors
    /// When its executor or its descriptors cannot be had.
    pub fn wait(self) -> Result<Driven, StartError> {
        let cause = match self.started.recv() {
            Ok(Ok(())) => {
                return Ok(Driven {
                    thread: self.thread,
                });
            }
            Ok(Err(cause)) => cause,
            Err(_) => "its thread ended".to_owned(),
        };
        let shard = self.shard;
        Err(StartError { shard, cause })
    }
}

/// A running shard.
#[derive(Debug)]
pub struct Driven {
    thread: JoinHandle<()>,
}

impl Driven {
    /// Waits until the shard has been drained.
    ///
    /// # Errors
    /// If its thread panicked.
    pub fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }
}

/// Whether the kernel and its limits allow glommio; the reason if not.
///
/// # Errors
/// The reason, for the log.
pub fn glommio_available() -> Result<(), String> {
    let built = std::thread::spawn(|| {
        LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(EXECUTOR_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .make()
            .map(drop)
            .map_err(|error| error.to_string())
    });
    built
        .join()
        .unwrap_or_else(|_| Err("the executor cannot be built".to_owned()))
}

/// Starts a shard on its thread. All of them are started before one is waited for: a store gives to all at once.
///
/// # Errors
/// When the thread cannot be had.
pub fn start(me: ShardId, config: &Arc<Config>, ports: Ports) -> Result<Starting, StartError> {
    let error = |cause: String| StartError { shard: me.0, cause };
    let cpu = config.cpus.get(usize::from(me.0)).copied();
    let (ready, started) = mpsc::sync_channel(1);
    let config = config.clone();
    let runtime = config.runtime;
    let run = move || match runtime {
        Runtime::Epoll => run_epoll(me, config, ports, cpu, &ready),
        Runtime::Glommio => run_glommio(me, config, ports, cpu, &ready),
    };
    let thread = std::thread::Builder::new()
        .name(format!("shard-{}", me.0))
        .spawn(run)
        .map_err(|cause| error(cause.to_string()))?;
    Ok(Starting {
        shard: me.0,
        thread,
        started,
    })
}

type Ready = mpsc::SyncSender<Result<(), String>>;

fn build(me: ShardId, config: Arc<Config>, ports: Ports, ready: &Ready) -> Option<Shard> {
    let (shard, told) = match Shard::new(me, config, ports) {
        Ok(shard) => (Some(shard), Ok(())),
        Err(errno) => (None, Err(errno.to_string())),
    };
    // main waits for it
    drop(ready.send(told));
    shard
}

fn run_epoll(me: ShardId, config: Arc<Config>, ports: Ports, cpu: Option<usize>, ready: &Ready) {
    if let Some(cpu) = cpu {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
            return drop(ready.send(Err(format!("it cannot be pinned to CPU {cpu}: {errno}"))));
        }
    }
    let Some(mut shard) = build(me, config, ports, ready) else {
        return;
    };
    while !shard.is_finished() {
        let wait = if shard.arm() { None } else { Some(NO_WAIT) };
        shard
            .poll_kernel(wait)
            .expect("the shard's own epoll descriptor is open");
        shard.turn();
    }
}

/// The shard's epoll descriptor, borrowed for as long as the shard lives.
struct EpollFd(RawFd);

impl AsRawFd for EpollFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl From<BorrowedFd<'_>> for EpollFd {
    fn from(fd: BorrowedFd<'_>) -> Self {
        Self(fd.as_raw_fd())
    }
}

fn run_glommio(me: ShardId, config: Arc<Config>, ports: Ports, cpu: Option<usize>, ready: &Ready) {
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement)
        .io_memory(EXECUTOR_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(cause) => return drop(ready.send(Err(cause.to_string()))),
    };
    executor.run(async {
        let Some(mut shard) = build(me, config, ports, ready) else {
            return;
        };
        let epoll =
            PollableFd::new(EpollFd::from(shard.epoll_fd())).expect("this runs in an executor");
        // an executor that parks with something runnable looks again within a tick
        let ticker = glommio::spawn_local(async {
            loop {
                glommio::timer::sleep(TICK).await;
            }
        })
        .detach();
        while !shard.is_finished() {
            let wait = shard.arm();
            shard
                .poll_kernel(Some(if wait { FIRST_WAIT } else { NO_WAIT }))
                .expect("the shard's own epoll descriptor is open");
            if wait && !shard.has_events() {
                epoll
                    .readable()
                    .await
                    .expect("the shard's own epoll descriptor is open");
                shard
                    .poll_kernel(Some(NO_WAIT))
                    .expect("the shard's own epoll descriptor is open");
            } else {
                glommio::yield_if_needed().await;
            }
            shard.turn();
        }
        ticker.cancel();
    });
}
