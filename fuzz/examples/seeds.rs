// SPDX-License-Identifier: Apache-2.0
//! Writes the corpus that the fuzz target begins with.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/codec");
    fs::create_dir_all(&corpus)?;
    for (i, seed) in corqtt_codec::fuzzing::seeds().iter().enumerate() {
        fs::write(corpus.join(format!("seed-{i:03}")), seed)?;
    }
    Ok(())
}
