// SPDX-License-Identifier: Apache-2.0
//! The fuzz target's property over random and mutated bytes, the same in every run.

use super::generated::Random;
use crate::fuzzing::{check, seeds};

#[test]
fn seeds_hold() {
    for seed in seeds() {
        check(&seed);
    }
}

#[test]
fn random_bytes_hold() {
    let mut random = Random::new(1);
    for _ in 0..100_000 {
        let bytes = random.below(40);
        let mut data: Vec<u8> = (0..bytes).map(|_| random.byte()).collect();
        // most often a length that fits, else few would get past the fixed header
        if random.below(8) > 0 && data.len() > 2 {
            data[2] = (data.len() - 3) as u8;
        }
        check(&data);
    }
}

#[test]
fn mutated_packets_hold() {
    let mut random = Random::new(2);
    let seeds = seeds();
    for _ in 0..300_000 {
        let mut data = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(3) {
            let at = random.below(data.len());
            match random.below(5) {
                0 => data[at] = random.byte(),
                1 => data[at] ^= 1 << random.below(8),
                2 => data.insert(at, random.byte()),
                3 if data.len() > 3 => _ = data.remove(at),
                _ => {
                    let other = &seeds[random.below(seeds.len())];
                    data.truncate(at.max(3));
                    data.extend_from_slice(&other[random.below(other.len())..]);
                }
            }
        }
        if random.below(4) > 0 && data.len() > 2 && data.len() < 130 {
            data[2] = (data.len() - 3) as u8;
        }
        check(&data);
    }
}
