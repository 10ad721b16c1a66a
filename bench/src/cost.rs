// SPDX-License-Identifier: Apache-2.0

//! What a broker's process costs, read from /proc: CPU nanoseconds of all its threads, resident bytes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

pub(crate) struct Cost {
    root: PathBuf,
}

impl Cost {
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            root: PathBuf::from(format!("/proc/{pid}")),
        }
    }

    /// CPU time of all living threads, user and system, with the scheduler's precision. A thread that ends takes its
    /// share with it, so a difference of two readings may be too small, never too large.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let tasks = self.root.join("task");
        let mut sum = 0;
        for task in
            fs::read_dir(&tasks).with_context(|| format!("cannot read {}", tasks.display()))?
        {
            // a thread may end between the listing and the read
            let Ok(line) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            sum += run_ns(&line).context("schedstat has another form on this kernel")?;
        }
        Ok(sum)
    }

    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        // smaps_rollup counts pages; VmRSS lags behind by up to 64 pages per thread
        for (file, key) in [("smaps_rollup", "Rss:"), ("status", "VmRSS:")] {
            let Ok(text) = fs::read_to_string(self.root.join(file)) else {
                continue;
            };
            if let Some(kib) = kib_of(&text, key) {
                return Ok(kib * 1024);
            }
        }
        anyhow::bail!(
            "cannot read the resident size under {}",
            self.root.display()
        )
    }
}

fn run_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_proc_are_read() {
        assert_eq!(run_ns("757224 0 3\n"), Some(757_224));
        assert_eq!(run_ns(""), None);
        assert_eq!(kib_of("Name: x\nRss:    1234 kB\n", "Rss:"), Some(1234));
        assert_eq!(kib_of("Name: x\n", "Rss:"), None);
    }

    #[test]
    fn this_process_has_used_cpu_and_memory() {
        let cost = Cost::new(std::process::id());
        assert!(cost.cpu_ns().expect("own schedstat is readable") > 0);
        assert!(cost.rss_bytes().expect("own size is readable") > 0);
    }
}
