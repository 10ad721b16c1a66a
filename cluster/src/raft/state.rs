// SPDX-License-Identifier: Apache-2.0
//! The machine as openraft drives it, and its snapshots in the raft directory.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{
    EmptyNode, Entry, EntryPayload, LogId, OptionalSend, StorageError, StorageIOError,
    StoredMembership,
};

use super::{Reply, Types, any};
use crate::entry::{NodeId, decode_entry};
use crate::machine::{Machine, Output};
use crate::threads::{aside, lock};

type Id = LogId<u64>;
type Failure = StorageError<u64>;
type Meta = SnapshotMeta<u64, EmptyNode>;

/// What this node has to do because its tables changed.
#[derive(Debug)]
pub struct Applied {
    /// The tables are those of a snapshot: what was known before is void.
    pub is_anew: bool,
    /// The last entry.
    pub index: u64,
    /// In order.
    pub outputs: Vec<Output>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    last: Option<Id>,
    membership: StoredMembership<u64, EmptyNode>,
}

/// The machine of one node; openraft's, its snapshots' and that of whoever looks something up.
pub(crate) struct StateMachine {
    me: NodeId,
    inner: Arc<Mutex<Inner>>,
    files: Files,
    on_applied: Box<dyn FnMut(Applied) + Send + Sync>,
}

impl std::fmt::Debug for StateMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateMachine")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl StateMachine {
    /// The machine as of the last snapshot in a raft directory, or an empty one. `on_applied` hears what changes, on
    /// openraft's task: it must not wait.
    ///
    /// # Errors
    /// When there is a snapshot that cannot be read.
    pub(crate) fn open(
        me: NodeId,
        directory: &Path,
        mut on_applied: Box<dyn FnMut(Applied) + Send + Sync>,
    ) -> io::Result<Self> {
        let files = Files::new(directory);
        let inner = match files.read()? {
            Some((meta, bytes)) => {
                let mut machine = Machine::restore(me, &bytes, None).map_err(io::Error::other)?;
                on_applied(Applied {
                    is_anew: true,
                    index: meta.last_log_id.map_or(0, |last| last.index),
                    outputs: machine.poll_output(),
                });
                Inner {
                    machine,
                    last: meta.last_log_id,
                    membership: meta.last_membership,
                }
            }
            None => Inner {
                machine: Machine::new(me),
                last: None,
                membership: StoredMembership::default(),
            },
        };
        Ok(Self {
            me,
            inner: Arc::new(Mutex::new(inner)),
            files,
            on_applied,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// For whoever looks something up in the tables.
    pub(crate) fn tables(&self) -> Tables {
        Tables(self.inner.clone())
    }
}

/// The tables of this node, to be looked at from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Tables(Arc<Mutex<Inner>>);

impl Tables {
    /// Raft waits meanwhile.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&lock(&self.0).machine)
    }
}

/// Where snapshots lie. One is whole under its name, or not there, and a later one is not replaced by an earlier one:
/// building one takes its time, and meanwhile another may come from the leader.
#[derive(Clone, Debug)]
struct Files {
    directory: PathBuf,
    /// Up to where the last one goes.
    written: Arc<Mutex<Option<Id>>>,
}

impl Files {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            written: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("snapshot")
    }

    fn read(&self) -> io::Result<Option<(Meta, Vec<u8>)>> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(&path, error)),
        };
        match postcard::take_from_bytes::<Meta>(&bytes) {
            Ok((meta, rest)) => Ok(Some((meta, rest.to_vec()))),
            Err(error) => Err(named(&path, error)),
        }
    }

    fn write(&self, meta: &Meta, bytes: &[u8]) -> io::Result<()> {
        let mut written = lock(&self.written);
        if meta.last_log_id < *written {
            return Ok(());
        }
        let (path, new) = (self.path(), self.directory.join("snapshot.new"));
        let head = postcard::to_stdvec(meta).map_err(io::Error::other)?;
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&head)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| named(&path, error))?;
        *written = meta.last_log_id;
        Ok(())
    }
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// Makes a snapshot of the machine as it is then.
#[derive(Debug)]
pub(crate) struct Builder {
    inner: Arc<Mutex<Inner>>,
    files: Files,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        let (inner, files) = (self.inner.clone(), self.files.clone());
        let build = move || {
            let (meta, bytes) = {
                let inner = lock(&inner);
                let at = inner.last.map_or(0, |last| last.index);
                let term = inner.last.map_or(0, |last| last.leader_id.term);
                let meta = Meta {
                    last_log_id: inner.last,
                    last_membership: inner.membership.clone(),
                    snapshot_id: format!("{term}-{at}"),
                };
                (meta, inner.machine.snapshot())
            };
            files.write(&meta, &bytes).map(|()| (meta, bytes))
        };
        let (meta, bytes) = aside(build)
            .await
            .map_err(|error| StorageIOError::write_snapshot(None, any(&error)))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<Id>, StoredMembership<u64, EmptyNode>), Failure> {
        let inner = self.inner();
        Ok((inner.last, inner.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        let mut inner = lock(&self.inner);
        for entry in entries {
            let reply = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Membership(membership) => {
                    inner.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
                EntryPayload::Normal(proposal) => {
                    // what one node cannot read must not be skipped: its tables would differ
                    let decoded = decode_entry(&proposal.0).map_err(|error| {
                        StorageIOError::apply(entry.log_id, openraft::AnyError::new(&error))
                    })?;
                    Some(inner.machine.apply(entry.log_id.index, decoded))
                }
            };
            inner.last = Some(entry.log_id);
            replies.push(reply);
        }
        let applied = Applied {
            is_anew: false,
            index: inner.last.map_or(0, |last| last.index),
            outputs: inner.machine.poll_output(),
        };
        drop(inner);
        (self.on_applied)(applied);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            inner: self.inner.clone(),
            files: self.files.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let bytes = snapshot.into_inner();
        let unreadable = |error: &dyn std::error::Error| {
            let error = io::Error::other(error.to_string());
            StorageIOError::read_snapshot(Some(meta.signature()), any(&error))
        };
        let mut machine = Machine::restore(self.me, &bytes, Some(&self.inner().machine))
            .map_err(|error| unreadable(&error))?;
        let (files, written) = (self.files.clone(), meta.clone());
        aside(move || files.write(&written, &bytes))
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), any(&error)))?;
        let applied = Applied {
            is_anew: true,
            index: meta.last_log_id.map_or(0, |last| last.index),
            outputs: machine.poll_output(),
        };
        *self.inner() = Inner {
            machine,
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        (self.on_applied)(applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        let files = self.files.clone();
        let read = aside(move || files.read())
            .await
            .map_err(|error| StorageIOError::read_snapshot(None, any(&error)))?;
        Ok(read.map(|(meta, bytes)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        }))
    }
}
