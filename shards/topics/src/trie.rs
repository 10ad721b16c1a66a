// SPDX-License-Identifier: Apache-2.0
//! The filters with wildcards, level by level.
//!
//! Children of all nodes lie in one index keyed by (node, level). The walk keeps its own stack, splits the topic
//! only as deep as there are filters, and visits each node at most once.

use compact_str::CompactString;

use crate::hash::{TextHash, mix};
use crate::index::Index;
use crate::slab::{NONE, Slab};

const ROOT: u32 = 0;

#[derive(Debug)]
struct Node {
    /// Empty in a `+` node and in the root.
    level: CompactString,
    parent: u32,
    /// The child `+`.
    plus: u32,
    /// How many other children there are.
    literals: u32,
    /// The filter that ends here.
    end: u32,
    /// The filter that ends with a `#` below this node.
    hash: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            level: CompactString::const_new(""),
            parent: NONE,
            plus: NONE,
            literals: 0,
            end: NONE,
            hash: NONE,
        }
    }
}

/// One level of the topic in hand.
#[derive(Clone, Copy, Debug)]
struct Level {
    start: u32,
    end: u32,
    hash: u64,
}

#[derive(Debug)]
pub(crate) struct Trie {
    hash: TextHash,
    nodes: Slab<Node>,
    children: Index,
    /// The levels that the walk has reached so far; kept for its memory.
    levels: Vec<Level>,
    /// Nodes to visit, each with its depth; kept for its memory.
    stack: Vec<(u32, usize)>,
}

#[inline]
fn child_hash(node: u32, level: u64) -> u64 {
    mix(level ^ mix(u64::from(node)))
}

impl Trie {
    pub(crate) fn new(hash: TextHash) -> Self {
        let mut nodes = Slab::default();
        let root = nodes.insert(Node::default());
        debug_assert_eq!(root, ROOT);
        Self {
            hash,
            nodes,
            children: Index::default(),
            levels: Vec::new(),
            stack: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes[ROOT].hash == NONE
    }

    /// Adds a filter whose entry is `entry`.
    pub(crate) fn insert(&mut self, filter: &str, entry: u32) {
        let mut node = ROOT;
        for level in filter.split('/') {
            node = match level {
                // [MQTT-4.7.1-2] [MQTT5-4.7.1-1] It is the last level.
                "#" => {
                    self.nodes[node].hash = entry;
                    return;
                }
                "+" if self.nodes[node].plus != NONE => self.nodes[node].plus,
                "+" => {
                    let child = self.nodes.insert(Node {
                        parent: node,
                        ..Node::default()
                    });
                    self.nodes[node].plus = child;
                    child
                }
                _ => self.child_or_insert(node, level),
            };
        }
        self.nodes[node].end = entry;
    }

    fn child_or_insert(&mut self, parent: u32, level: &str) -> u32 {
        let hash = self.hash.of(level);
        if let Some(child) = self.child(parent, level.as_bytes(), hash) {
            return child;
        }
        let child = self.nodes.insert(Node {
            level: CompactString::new(level),
            parent,
            ..Node::default()
        });
        self.nodes[parent].literals += 1;
        let nodes = &self.nodes;
        self.children.insert(child_hash(parent, hash), child, |at| {
            child_hash(nodes[at].parent, self.hash.of(&nodes[at].level))
        });
        child
    }

    #[inline]
    fn child(&self, parent: u32, level: &[u8], hash: u64) -> Option<u32> {
        self.children.find(child_hash(parent, hash), |at| {
            let node = &self.nodes[at];
            node.parent == parent && node.level.as_bytes() == level
        })
    }

    /// Takes a filter out, and the nodes that only it needed.
    pub(crate) fn remove(&mut self, filter: &str) {
        let mut node = ROOT;
        let mut ends_here = true;
        for level in filter.split('/') {
            if level == "#" {
                ends_here = false;
                break;
            }
            let child = match level {
                "+" => Some(self.nodes[node].plus).filter(|plus| *plus != NONE),
                _ => self.child(node, level.as_bytes(), self.hash.of(level)),
            };
            let Some(child) = child else { return };
            node = child;
        }
        if ends_here {
            self.nodes[node].end = NONE;
        } else {
            self.nodes[node].hash = NONE;
        }
        self.prune(node);
    }

    fn prune(&mut self, mut node: u32) {
        while node != ROOT {
            let Node {
                parent,
                plus,
                literals,
                end,
                hash,
                ..
            } = self.nodes[node];
            if plus != NONE || literals > 0 || end != NONE || hash != NONE {
                return;
            }
            if self.nodes[parent].plus == node {
                self.nodes[parent].plus = NONE;
            } else {
                self.nodes[parent].literals -= 1;
                let nodes = &self.nodes;
                let hash_of =
                    |at: u32| child_hash(nodes[at].parent, self.hash.of(&nodes[at].level));
                self.children.remove(hash_of(node), node, hash_of);
            }
            self.nodes.remove(node);
            node = parent;
        }
    }

    /// Appends the entries of all filters that match a topic name.
    pub(crate) fn walk(&mut self, topic: &str, found: &mut Vec<u32>) {
        // A filter that starts with a wildcard does not match a topic that starts with $: [MQTT-4.7.2-1]
        // [MQTT5-4.7.2-1]
        let wildcard_first = !topic.starts_with('$');
        let topic = topic.as_bytes();
        self.levels.clear();
        self.stack.clear();
        // Where the next level begins; none when the topic is split to its end.
        let mut rest = Some(0);
        if wildcard_first && self.nodes[ROOT].hash != NONE {
            found.push(self.nodes[ROOT].hash);
        }
        let mut next = Some((ROOT, 0));
        while let Some((at, depth)) = next.take().or_else(|| self.stack.pop()) {
            if self.levels.len() == depth
                && let Some(start) = rest
            {
                let length = topic[start..].iter().position(|byte| *byte == b'/');
                let end = length.map_or(topic.len(), |length| start + length);
                rest = length.map(|_| end + 1);
                let hash = self.hash.of_bytes(&topic[start..end]);
                self.levels.push(Level {
                    start: start as u32,
                    end: end as u32,
                    hash,
                });
            }
            let node = &self.nodes[at];
            let Some(level) = self.levels.get(depth) else {
                if node.end != NONE {
                    found.push(node.end);
                }
                continue;
            };
            let (plus, literals) = (node.plus, node.literals);
            if plus != NONE && (wildcard_first || depth > 0) {
                next = Some(self.reach(plus, depth + 1, found));
            }
            if literals > 0 {
                let text = &topic[level.start as usize..level.end as usize];
                if let Some(child) = self.child(at, text, level.hash) {
                    self.stack.extend(next);
                    next = Some(self.reach(child, depth + 1, found));
                }
            }
        }
    }

    /// A node of the walk, and what it finds at once: `a/#` matches `a` too, so that what ends with # below a node
    /// matches when the node is reached.
    #[inline]
    fn reach(&self, node: u32, depth: usize, found: &mut Vec<u32>) -> (u32, usize) {
        if self.nodes[node].hash != NONE {
            found.push(self.nodes[node].hash);
        }
        (node, depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie(filters: &[&str]) -> Trie {
        let mut trie = Trie::new(TextHash::new(7));
        for (entry, filter) in filters.iter().enumerate() {
            trie.insert(filter, entry as u32);
        }
        trie
    }

    fn found(trie: &mut Trie, topic: &str) -> Vec<u32> {
        let mut found = Vec::new();
        trie.walk(topic, &mut found);
        found.sort_unstable();
        found
    }

    #[test]
    fn plus_stands_for_exactly_one_level_an_empty_one_too() {
        let mut trie = trie(&["a/+", "+", "a/+/c", "/+", "+/+"]);
        assert_eq!(found(&mut trie, "a/b"), [0, 4]);
        assert_eq!(found(&mut trie, "a/"), [0, 4]);
        assert_eq!(found(&mut trie, "a"), [1]);
        assert_eq!(found(&mut trie, "a/b/c"), [2]);
        assert_eq!(found(&mut trie, "/x"), [3, 4]);
    }

    #[test]
    fn hash_stands_for_any_number_of_levels_none_too() {
        let mut trie = trie(&["#", "a/#", "a/b/#", "+/#"]);
        assert_eq!(found(&mut trie, "a"), [0, 1, 3]);
        assert_eq!(found(&mut trie, "a/b/c/d"), [0, 1, 2, 3]);
        assert_eq!(found(&mut trie, "b"), [0, 3]);
    }

    // [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
    #[test]
    fn first_level_wildcards_do_not_see_dollar_topics() {
        let mut trie = trie(&["#", "+/b", "$SYS/#", "$SYS/+", "+/#"]);
        assert_eq!(found(&mut trie, "$SYS/b"), [2, 3]);
        assert_eq!(found(&mut trie, "x/b"), [0, 1, 4]);
    }

    #[test]
    fn nodes_are_pruned_with_their_last_filter() {
        let filters = ["a/b/+", "a/+/c/d", "a/#", "#", "x/y/#", "x/+"];
        let mut trie = trie(&filters);
        for filter in filters {
            assert!(!trie.is_empty());
            trie.remove(filter);
        }
        assert!(trie.is_empty());
        assert_eq!((trie.nodes.len(), trie.children.len()), (1, 0));
    }

    #[test]
    fn a_topic_of_many_levels_is_split_only_as_deep_as_the_filters() {
        let mut trie = trie(&["+/+/+", "#"]);
        let topic = "/".repeat(60_000);
        assert_eq!(found(&mut trie, &topic), [1]);
        assert_eq!(trie.levels.len(), 4);
    }

    #[test]
    fn a_deep_filter_needs_no_deep_stack() {
        let filter = "+/".repeat(30_000);
        let mut trie = trie(&[&filter]);
        assert_eq!(found(&mut trie, &"/".repeat(30_000)), [0]);
        trie.remove(&filter);
        assert!(trie.is_empty());
    }
}
