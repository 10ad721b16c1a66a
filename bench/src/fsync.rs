// SPDX-License-Identifier: Apache-2.0

//! What the disk does by itself: small writes to one file, each with its fdatasync. Whoever waits for each commit can be
//! no faster, and a store that gathers is measured by how many messages it brings into one of them.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::clock::{self, SECOND_NS};

/// The file goes round in this size, as a log that is cut does.
const FILE_BYTES: u64 = 16 << 20;

pub(crate) struct Outcome {
    pub(crate) per_s: f64,
    pub(crate) latency: Histogram<u64>,
}

/// Writes `bytes` and syncs, again and again for `for_ns`, to a file in `dir` that is gone afterwards.
pub(crate) fn run(dir: &Path, bytes: usize, for_ns: u64) -> Result<Outcome> {
    ensure!(
        bytes > 0 && bytes as u64 <= FILE_BYTES,
        "--bytes is from 1 to {FILE_BYTES}"
    );
    let path = dir.join(format!("corqtt-bench-{}.fsync", std::process::id()));
    let outcome = write(&path, bytes, for_ns).with_context(|| path.display().to_string());
    let _ = fs::remove_file(&path);
    outcome
}

fn write(path: &Path, bytes: usize, for_ns: u64) -> Result<Outcome> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let block = vec![0xA5; bytes];
    // its blocks are there before: what is measured is no allocation
    file.write_all(&vec![0; FILE_BYTES as usize])?;
    file.sync_all()?;
    file.rewind()?;
    let mut latency = Histogram::new_with_bounds(1, 60 * SECOND_NS, 3)?;
    let started_ns = clock::now_ns();
    let mut now = started_ns;
    while now - started_ns < for_ns {
        if file.stream_position()? + bytes as u64 > FILE_BYTES {
            file.seek(SeekFrom::Start(0))?;
        }
        file.write_all(&block)?;
        file.sync_data()?;
        let after = clock::now_ns();
        latency.saturating_record((after - now).max(1));
        now = after;
    }
    Ok(Outcome {
        per_s: latency.len() as f64 / clock::seconds(now - started_ns),
        latency,
    })
}
