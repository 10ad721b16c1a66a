// SPDX-License-Identifier: Apache-2.0
//! The fuzz target's property over random commands, the same in every run.

use super::Random;
use crate::fuzzing::check;

#[test]
fn random_commands_hold() {
    for seed in 1..=20_000 {
        let mut random = Random::new(seed);
        let commands = 20 + random.below(1_500);
        let data: Vec<u8> = (0..commands).map(|_| random.below(256) as u8).collect();
        check(&data);
    }
}
