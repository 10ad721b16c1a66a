// SPDX-License-Identifier: Apache-2.0
//! How much memory this process may use: the machine's, or less where a control group says so.

use std::fs;
use std::path::{Path, PathBuf};

/// Blocks from this size on are the kernel's again as soon as they are freed (bytes).
const RETURNED_BYTES_MIN: libc::c_int = 256 * 1024;

/// Tells the allocator to give large blocks back. glibc raises that size by itself with each block it frees, up to
/// 32 MiB, and from then on a thousand packets of a megabyte leave their memory with the process.
///
/// To be called before other threads start.
pub(crate) fn return_large_blocks() {
    // elsewhere the allocator has no such knob
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and has no other preconditions; it only changes how malloc works from now on.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_BYTES_MIN);
    }
}

/// Bytes; 0 where nothing says how many.
#[must_use]
pub(crate) fn available() -> u64 {
    available_below(Path::new("/"))
}

fn available_below(root: &Path) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_limit(root, line));
    limits.chain(machine(root)).min().unwrap_or(0)
}

fn machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The lowest limit of a group and of those above it. `line`: `NUMBER:CONTROLLERS:PATH`; version 2 names none.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let mount = root.join(mount);
    let group: PathBuf = mount.join(path.trim_start_matches('/'));
    // in a container the path may be one outside of it; what is mounted there is its own group
    let groups = group
        .ancestors()
        .take_while(|group| group.starts_with(&mount));
    // "max" is no limit
    let limits = groups.filter_map(|group| {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A directory with these files; gone when the test is over.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("corqtt-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                fs::write(path, text).expect("a file");
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:        8388608 kB\nMemFree:          100 kB\n",
    );

    #[test]
    fn without_a_group_it_is_the_machine_s() {
        let tree = Tree::new("machine", &[MEMINFO]);
        assert_eq!(available_below(&tree.0), 8192 * MIB);
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_holds() {
        let tree = Tree::new(
            "v2",
            &[
                MEMINFO,
                ("proc/self/cgroup", "0::/system.slice/corqtt.service\n"),
                (
                    "sys/fs/cgroup/system.slice/corqtt.service/memory.max",
                    "max\n",
                ),
                ("sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
            ],
        );
        assert_eq!(available_below(&tree.0), 1024 * MIB);
    }

    #[test]
    fn a_group_of_the_first_version_counts_too() {
        let tree = Tree::new(
            "v1",
            &[
                MEMINFO,
                (
                    "proc/self/cgroup",
                    "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/docker/1\n",
                ),
                // as it is seen from inside the container
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ],
        );
        assert_eq!(available_below(&tree.0), 512 * MIB);
    }

    #[test]
    fn a_group_with_more_than_there_is_changes_nothing() {
        let tree = Tree::new(
            "unlimited",
            &[
                MEMINFO,
                ("proc/self/cgroup", "4:memory:/\n"),
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
        );
        assert_eq!(available_below(&tree.0), 8192 * MIB);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available() > 64 * MIB);
    }
}
