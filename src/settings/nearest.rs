// SPDX-License-Identifier: Apache-2.0
//! The known name that somebody who wrote an unknown one probably meant.

use super::table;

/// The nearest of these names, by the fewest edits; the first of equals.
pub(crate) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<(&'a str, usize)> {
    known
        .into_iter()
        .map(|name| (name, edits(written, name)))
        .min_by_key(|&(_, distance)| distance)
}

/// The nearest path of the file: a mistyped name in its own block, else the right name in the wrong block,
/// else whatever looks most alike.
pub(super) fn nearest_key(written: &str) -> &'static str {
    let (block, name) = split(written);
    let siblings = table::paths().filter(|path| split(path).0 == block);
    if let Some((path, distance)) = siblings
        .map(|path| (path, edits(name, split(path).1)))
        .min_by_key(|&(_, distance)| distance)
        && distance <= (name.len() / 3).max(2)
    {
        return path;
    }
    table::keys()
        .find(|key| split(key).1 == name)
        .or_else(|| nearest(written, table::paths()).map(|(path, _)| path))
        .unwrap_or_default()
}

/// The block and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// Characters to insert, delete, replace or swap with their neighbour (optimal string alignment distance).
fn edits(a: &str, b: &str) -> usize {
    // longer texts than any name are far from all of them
    let a: Vec<char> = a.chars().take(100).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differ = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + differ);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_letters_are_one_edit() {
        assert_eq!(edits("tpc", "tcp"), 1);
        assert_eq!(edits("storage_way", "storage-way"), 1);
        assert_eq!(edits("", "tcp"), 3);
    }

    #[test]
    fn a_mistyped_key_is_looked_for_in_its_block_first() {
        assert_eq!(nearest_key("mqtt.tpc"), "mqtt.tcp");
        assert_eq!(
            nearest_key("mqtt.limits.queue-byte"),
            "mqtt.limits.queue-bytes"
        );
        assert_eq!(nearest_key("redis.options.adr"), "redis.options.addr");
        assert_eq!(nearest_key("logs"), "log");
        assert_eq!(nearest_key("mqtt.listener"), "mqtt.listeners[]");
    }

    #[test]
    fn a_key_in_the_wrong_block_is_found_where_it_belongs() {
        assert_eq!(nearest_key("mqtt.queue-bytes"), "mqtt.limits.queue-bytes");
        assert_eq!(
            nearest_key("mqtt.options.receive-maximum"),
            "mqtt.options.capabilities.receive-maximum"
        );
    }
}
