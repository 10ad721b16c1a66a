// SPDX-License-Identifier: Apache-2.0
use std::num::NonZeroU64;
use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite, blank_ent};
use openraft::{StorageError, Vote};

use super::*;
use crate::entry::NodeId;
use crate::testing::{Directory, run};

const ME: NodeId = NodeId(NonZeroU64::MIN);

fn state(directory: &Path) -> StateMachine {
    StateMachine::open(ME, directory, Box::new(|_| ())).expect("no snapshot, or a good one")
}

struct Stores;

impl StoreBuilder<Types, LogStore, StateMachine, Directory> for Stores {
    async fn build(&self) -> Result<(Directory, LogStore, StateMachine), StorageError<u64>> {
        let directory = Directory::new();
        let log = LogStore::open(directory.path()).expect("a log");
        let state = state(directory.path());
        Ok((directory, log, state))
    }
}

#[test]
fn log_and_machine_are_what_openraft_expects() {
    Suite::test_all(Stores).expect("all of its tests pass");
}

#[test]
fn vote_and_entries_are_there_after_a_restart() {
    let directory = Directory::new();
    run(async {
        let mut log = LogStore::open(directory.path()).expect("a log");
        log.save_vote(&Vote::new(3, 7)).await.expect("a disk");
        let entries = (1..=20).map(|index| blank_ent(3, 7, index));
        log.blocking_append(entries).await.expect("a disk");
        log.truncate(blank_ent::<Types>(3, 7, 16).log_id)
            .await
            .expect("it is there");
        log.purge(blank_ent::<Types>(3, 7, 4).log_id)
            .await
            .expect("it is there");
        log.blocking_append([blank_ent(4, 7, 16)])
            .await
            .expect("a disk");
    });
    run(async {
        let mut log = LogStore::open(directory.path()).expect("a log");
        assert_eq!(
            log.read_vote().await.expect("a disk"),
            Some(Vote::new(3, 7))
        );
        let state = log.get_log_state().await.expect("a disk");
        assert_eq!(state.last_purged_log_id.map(|id| id.index), Some(4));
        assert_eq!(state.last_log_id, Some(blank_ent::<Types>(4, 7, 16).log_id));
        let entries = log.try_get_log_entries(..).await.expect("a disk");
        let indexes: Vec<u64> = entries.iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(indexes, (5..=16).collect::<Vec<u64>>());
    });
}

#[test]
fn a_second_process_does_not_get_the_log() {
    let directory = Directory::new();
    let _log = LogStore::open(directory.path()).expect("a log");
    let error = LogStore::open(directory.path()).expect_err("it is in use");
    assert!(
        error.to_string().contains("log.redb cannot be opened"),
        "{error}"
    );
}
