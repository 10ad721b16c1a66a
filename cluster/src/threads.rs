// SPDX-License-Identifier: Apache-2.0
//! What all that runs on the cluster's thread needs of threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whatever became of who had it before: nothing in this crate that is done with a lock stops halfway, and a panic ends
/// the process.
pub(crate) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Away from the cluster's thread: heartbeats do not wait for the disk.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
