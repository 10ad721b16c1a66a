// SPDX-License-Identifier: Apache-2.0
//! A log file that is rotated by size; older ones are numbered by time, compressed and removed.
//!
//! `corqtt.log` becomes `corqtt-2026-11-22T10-00-00.000.log`, and `….log.gz` when compressed. Compressing runs on a
//! thread of its own, one at a time, so that it never holds lines up; a half-written one has another ending and is
//! removed by the next run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::clock::{self, Moment};
use crate::settings::Rotation;

/// Log files may name clients and users: they are not for everybody.
const MODE: u32 = 0o640;

const PARTIAL: &str = ".gz.part";

/// Bytes that wait at most before they are written.
const WAITING_BYTES_MAX: usize = 1 << 20;

pub(super) struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// Bytes in the file.
    size: u64,
    /// Lines for the file that were not written yet.
    waiting: Vec<u8>,
    failed: Option<io::Error>,
    tidying: Option<JoinHandle<()>>,
    /// A rotation came while the last one was still being tidied.
    is_untidy: bool,
}

impl RotatingFile {
    pub(super) fn open(path: PathBuf, rotation: Rotation) -> io::Result<Self> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            fs::create_dir_all(folder)?;
        }
        let (file, size) = open(&path)?;
        Ok(Self {
            path,
            rotation,
            file,
            size,
            waiting: Vec::new(),
            failed: None,
            tidying: None,
            is_untidy: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a line, to be written soon.
    pub(super) fn take(&mut self, line: &[u8]) {
        let held = self.size + self.waiting.len() as u64;
        if held > 0 && held + line.len() as u64 > self.rotation.size_bytes {
            self.write_waiting();
            if let Err(error) = self.rotate(clock::now()) {
                // the file grows on: a long log is better than none
                self.failed = Some(error);
            }
        }
        self.waiting.extend_from_slice(line);
        if self.waiting.len() >= WAITING_BYTES_MAX {
            self.write_waiting();
        }
    }

    /// Writes what waits, and says whether there was anything. An error may be of an earlier line, or of a rotation.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        let any = !self.waiting.is_empty();
        self.write_waiting();
        self.failed.take().map_or(Ok(any), Err)
    }

    fn write_waiting(&mut self) {
        match self.file.write_all(&self.waiting) {
            Ok(()) => self.size += self.waiting.len() as u64,
            Err(error) => self.failed = Some(error),
        }
        self.waiting.clear();
    }

    /// Opens the path again: someone moved the file away, or wants to.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.write_waiting();
        (self.file, self.size) = open(&self.path)?;
        Ok(())
    }

    fn rotate(&mut self, now: Moment) -> io::Result<()> {
        let mut moment = now;
        let mut backup = backup_path(&self.path, moment);
        // two rotations in one millisecond
        while backup.try_exists()? || with_ending(&backup, ".gz").try_exists()? {
            moment = moment.next_millisecond();
            backup = backup_path(&self.path, moment);
        }
        fs::rename(&self.path, &backup)?;
        (self.file, self.size) = open(&self.path)?;
        self.is_untidy = true;
        if self.tidying.as_ref().is_none_or(JoinHandle::is_finished) {
            self.start_tidying(now);
        }
        Ok(())
    }

    fn start_tidying(&mut self, now: Moment) {
        let (path, rotation) = (self.path.clone(), self.rotation.clone());
        let tidying = std::thread::Builder::new()
            .name("log-tidy".to_owned())
            .spawn(move || tidy(&path, &rotation, now));
        // without a thread now, the next rotation tries again
        self.tidying = tidying.ok();
        self.is_untidy = self.tidying.is_none();
    }

    /// Waits until rotated files are tidied.
    pub(super) fn finish(&mut self) {
        self.write_waiting();
        if let Some(tidying) = self.tidying.take() {
            let _ = tidying.join();
        }
        if self.is_untidy {
            self.is_untidy = false;
            tidy(&self.path, &self.rotation, clock::now());
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// The part of a file's name before the moment, and the ending after it.
fn name_parts(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path
        .extension()
        .map(|extension| format!(".{}", extension.to_string_lossy()));
    (format!("{stem}-"), ending.unwrap_or_default())
}

fn backup_path(path: &Path, moment: Moment) -> PathBuf {
    let (start, ending) = name_parts(path);
    path.with_file_name(format!("{start}{}{ending}", moment.for_file_name()))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// A rotated file: its moment as in the name, and whether it is compressed.
struct Backup {
    moment: String,
    path: PathBuf,
    is_compressed: bool,
}

/// Removes rotated files that are too many or too old and compresses the others. What fails is left for the next run.
fn tidy(path: &Path, rotation: &Rotation, now: Moment) {
    let mut backups = backups(path);
    // newest first
    backups.sort_by(|a, b| b.moment.cmp(&a.moment));
    let oldest = rotation.age_max.map(|age| now.before(age).for_file_name());
    for (count, backup) in backups.iter().enumerate() {
        let too_many = rotation.backups_max.is_some_and(|max| count >= max);
        let too_old = oldest
            .as_ref()
            .is_some_and(|oldest| backup.moment < *oldest);
        if too_many || too_old {
            let _ = fs::remove_file(&backup.path);
        } else if rotation.compress && !backup.is_compressed {
            let _ = compress(&backup.path);
        }
    }
}

/// The rotated files of this log. Removes half-compressed ones.
fn backups(path: &Path) -> Vec<Backup> {
    let (start, ending) = name_parts(path);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&start)) else {
            continue;
        };
        let (rest, is_partial) = strip(rest, PARTIAL);
        let (rest, is_compressed) = strip(rest, ".gz");
        let Some(moment) = rest
            .strip_suffix(&ending)
            .filter(|moment| is_moment(moment))
        else {
            continue;
        };
        if is_partial {
            let _ = fs::remove_file(entry.path());
        } else {
            found.push(Backup {
                moment: moment.to_owned(),
                path: entry.path(),
                is_compressed,
            });
        }
    }
    found
}

fn strip<'a>(name: &'a str, ending: &str) -> (&'a str, bool) {
    match name.strip_suffix(ending) {
        Some(rest) => (rest, true),
        None => (name, false),
    }
}

/// Whether a part of a name has the shape that a rotation gave it; other files are not ours to remove.
fn is_moment(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00-00-00.000";
    text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            shape => byte == *shape,
        })
}

/// Compresses a file to its name with `.gz`, and removes it once that is whole and on the disk.
fn compress(path: &Path) -> io::Result<()> {
    let partial = with_ending(path, PARTIAL);
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&partial)?;
    let mut encoder = GzEncoder::new(target, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::rename(&partial, with_ending(path, ".gz"))?;
    fs::remove_file(path)
}
