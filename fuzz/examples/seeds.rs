// SPDX-License-Identifier: Apache-2.0
//! Writes the corpora that the fuzz targets begin with.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    write("codec", &corqtt_codec::fuzzing::seeds())?;
    write("transport", &corqtt_transport::fuzzing::seeds())
}

fn write(target: &str, seeds: &[Vec<u8>]) -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&corpus)?;
    for (i, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{i:03}")), seed)?;
    }
    Ok(())
}
