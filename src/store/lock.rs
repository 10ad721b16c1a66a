// SPDX-License-Identifier: Apache-2.0
//! One process at a time has a store: a locked file in its directory that names the process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

const FILE: &str = "LOCK";

/// Held as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// # Errors
    /// If another process has it, which is named, or the file cannot be had.
    pub(crate) fn take(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("{} cannot be opened", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let holder = match file.read_to_string(&mut holder) {
                    Ok(_) if !holder.trim().is_empty() => holder.trim(),
                    _ => "that is not known",
                };
                bail!(
                    "{} is in use by process {holder}; stop it, or give this one another --storage-path",
                    directory.display()
                );
            }
            Err(errno) => {
                return Err(errno).with_context(|| format!("{} cannot be locked", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self { _file: file })
    }
}
