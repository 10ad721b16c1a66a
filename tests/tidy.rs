// SPDX-License-Identifier: Apache-2.0
//! What holds for all sources, read as text.

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "shards", "bench", "fuzz", "tests"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the sources") {
            let path = entry.expect("an entry of it").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(root).expect("below the root").to_owned();
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 50, "the sources are somewhere else");
    found
}

#[test]
fn glommio_is_imported_in_one_file() {
    let users: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| text.contains(concat!("glommio", "::")))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(users, [Path::new("shards/src/driver.rs")]);
}

#[test]
fn every_source_says_its_licence_in_the_first_line() {
    let missing: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("// SPDX-License-Identifier: Apache-2.0\n"))
        .map(|(path, _)| path)
        .collect();
    assert!(missing.is_empty(), "without a licence line: {missing:?}");
}

#[test]
fn crates_with_rules_forbid_unsafe_code() {
    let missing: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            path.ends_with("src/lib.rs")
                && path.starts_with("shards")
                && !text.contains("#![forbid(unsafe_code)]")
        })
        .map(|(path, _)| path)
        .collect();
    assert!(
        missing.is_empty(),
        "without forbid(unsafe_code): {missing:?}"
    );
}
