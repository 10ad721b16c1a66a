// SPDX-License-Identifier: Apache-2.0
//! Who this node is, as its raft directory has it: a raft id drawn once, a count of its starts, and the name of its cluster
//! once it knows it, in one line of a file.
//!
//! A start that was counted is never counted again, so what a former one said cannot be taken for this one's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use crate::entry::{Boot, NodeId};

/// A node and its present start.
#[derive(Debug)]
pub(crate) struct Birth {
    directory: PathBuf,
    pub(crate) node: NodeId,
    pub(crate) boot: Boot,
    pub(crate) cluster: Option<NonZeroU64>,
}

impl Birth {
    /// Begins a start of the node whose raft directory this is; a directory that is not there is made, and a node with it.
    ///
    /// # Errors
    /// When the directory cannot be used, or what is in it is not a node's.
    pub(crate) fn begin(directory: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let path = directory.display();
            io::Error::new(error.kind(), format!("the raft directory {path}: {error}"))
        };
        fs::create_dir_all(directory).map_err(named)?;
        let (node, boot, cluster) = match fs::read_to_string(directory.join("node")) {
            Ok(text) => parse(&text).ok_or_else(|| {
                named(io::Error::other(
                    "its file \"node\" is not a node's; restore it, or remove the directory and join anew",
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (NodeId(draw().map_err(named)?), Boot(0), None)
            }
            Err(error) => return Err(named(error)),
        };
        let mut birth = Self {
            directory: directory.to_owned(),
            node,
            boot,
            cluster,
        };
        birth.begin_again().map_err(named)?;
        Ok(birth)
    }

    /// Another start of this node: the last one is over.
    pub(crate) fn begin_again(&mut self) -> io::Result<()> {
        let next = Boot(self.boot.0 + 1);
        self.write(next, self.cluster)?;
        self.boot = next;
        Ok(())
    }

    /// This node knows now which cluster is its own.
    pub(crate) fn set_cluster(&mut self, cluster: NonZeroU64) -> io::Result<()> {
        if self.cluster != Some(cluster) {
            self.write(self.boot, Some(cluster))?;
            self.cluster = Some(cluster);
        }
        Ok(())
    }

    fn write(&self, boot: Boot, cluster: Option<NonZeroU64>) -> io::Result<()> {
        let (path, new) = (self.directory.join("node"), self.directory.join("node.new"));
        let mut file = File::create(&new)?;
        let cluster = cluster.map_or(0, NonZeroU64::get);
        writeln!(file, "{:016x} {} {cluster:016x}", self.node.0, boot.0)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.directory)?.sync_all()
    }
}

fn parse(text: &str) -> Option<(NodeId, Boot, Option<NonZeroU64>)> {
    let mut words = text.trim_end().split(' ');
    let node = NodeId::new(u64::from_str_radix(words.next()?, 16).ok()?)?;
    let boot = Boot(words.next()?.parse().ok()?);
    let cluster = u64::from_str_radix(words.next()?, 16).ok()?;
    words
        .next()
        .is_none()
        .then_some((node, boot, NonZeroU64::new(cluster)))
}

/// A number that nobody else draws.
pub(crate) fn draw() -> io::Result<NonZeroU64> {
    loop {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        if let Some(number) = NonZeroU64::new(u64::from_le_bytes(bytes)) {
            return Ok(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stays_itself_and_counts_its_starts() {
        let directory = crate::testing::Directory::new();
        let path = directory.path().join("raft");
        let first = Birth::begin(&path).expect("a node");
        assert_eq!(first.boot, Boot(1));
        let mut second = Birth::begin(&path).expect("the same node");
        assert_eq!((second.node, second.boot), (first.node, Boot(2)));
        second.begin_again().expect("it is written");
        second.set_cluster(NonZeroU64::MAX).expect("it is written");
        let third = Birth::begin(&path).expect("the same node");
        assert_eq!(
            (third.boot, third.cluster),
            (Boot(4), Some(NonZeroU64::MAX))
        );
        fs::write(path.join("node"), "0000000000000000 1 0\n").expect("a file");
        let error = Birth::begin(&path).expect_err("0 is nobody");
        assert!(
            error
                .to_string()
                .contains("its file \"node\" is not a node's"),
            "{error}"
        );
        let other = Birth::begin(&directory.path().join("other")).expect("another node");
        assert_ne!(other.node, first.node);
    }
}
