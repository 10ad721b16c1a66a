// SPDX-License-Identifier: Apache-2.0
//! The end of fjall's newest journal after a power cut.
//!
//! fjall cuts off a batch whose form shows that it is torn, and refuses to open one whose form is whole and whose checksum
//! is wrong. A batch that was never synced may look like that: any of its sectors may be missing, also one in the
//! middle of a value. What was synced lies before what was not, so from the first torn batch on nothing was promised, and
//! all of it is cut.
//!
//! ```text
//!   batch = 1, items u32, number u64 | items | 3, checksum of the items u64, MAGIC
//!   item  = 2, kind u8, compression u8, keyspace u64, key bytes u16, value bytes u32, bytes here u32, key, value
//!         | 4, keyspace u64                                          (integers are little endian)
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8] = b"FJL\x03";

/// Cuts what is torn off the end of the newest journal; a copy of it stays beside the journal.
pub(crate) fn cut_torn_end(directory: &Path) -> io::Result<()> {
    let Some(path) = newest(directory)? else {
        return Ok(());
    };
    let bytes = std::fs::read(&path)?;
    let whole = whole_bytes(&bytes);
    let torn = &bytes[whole..];
    // behind the last batch there are zeros for the next ones
    let Some(last) = torn.iter().rposition(|byte| *byte != 0) else {
        return Ok(());
    };
    let torn = &torn[..=last];
    let copy = path.with_extension("torn");
    log::warn!(path:% = path.display(), bytes = torn.len(), copy:% = copy.display(); "the journal ends in the middle of a commit, which was never acknowledged as kept: it is cut off");
    if let Err(error) = std::fs::write(&copy, torn) {
        // a full disk may be what tore it
        log::warn!(copy:% = copy.display(), error:% = error; "there is no copy of what is cut off");
        drop(std::fs::remove_file(&copy));
    }
    let file = OpenOptions::new().write(true).open(&path)?;
    file.set_len(whole as u64)?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// That with the highest number.
fn newest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut newest = None;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
        newest = newest.max(number.map(|number| (number, path)));
    }
    Ok(newest.map(|(_, path)| path))
}

/// Up to the end of the last batch before the first that is not whole.
fn whole_bytes(journal: &[u8]) -> usize {
    let mut left = journal;
    while let Some(behind) = batch(left) {
        left = behind;
    }
    journal.len() - left.len()
}

/// What is behind a batch, if the bytes begin with a whole one.
fn batch(bytes: &[u8]) -> Option<&[u8]> {
    let (head, mut left) = bytes.split_at_checked(13)?;
    let items = u32::from_le_bytes(head[1..5].try_into().ok()?);
    if head[0] != START {
        return None;
    }
    let all = left;
    for _ in 0..items {
        left = item(left)?;
    }
    let items = &all[..all.len() - left.len()];
    let (end, left) = left.split_at_checked(9 + MAGIC.len())?;
    let checksum = u64::from_le_bytes(end[1..9].try_into().ok()?);
    (end[0] == END && end[9..] == *MAGIC && checksum == xxh3_64(items)).then_some(left)
}

fn item(bytes: &[u8]) -> Option<&[u8]> {
    match *bytes.first()? {
        ITEM => {
            let (head, left) = bytes.split_at_checked(21)?;
            let key_bytes = u16::from_le_bytes(head[11..13].try_into().ok()?);
            let value_bytes = u32::from_le_bytes(head[17..21].try_into().ok()?);
            left.get(usize::from(key_bytes)..)?
                .get(usize::try_from(value_bytes).ok()?..)
        }
        CLEAR => bytes.get(9..),
        _ => None,
    }
}
